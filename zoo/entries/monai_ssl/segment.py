"""Run MONAI SSL networks over whole volumes: segment a CT, or take its features, window by window.

    python -m zoo.entries.monai_ssl.segment segment --image ct.nii.gz --checkpoint runs/btcv/best.pt --out labels
    python -m zoo.entries.monai_ssl.segment features --image a.nii.gz dicom_folder --out features

An image is a NIfTI file in HU or a folder with one DICOM series. It is brought to the input contract of the model's
weights (`zoo.load_transform`); with `--checkpoint` to that in the file's header, which the recipes write, else to the
model's. `--spacing`, `--window`, `--num-heads` and `--merging` are for files that do not say; `--window` also for a
Swin UNETR that was trained on other crops than 96, for none of its files does.

Files in OUT: `<name>_labels.nii.gz` (uint8), on the image's own grid; or `<name>_features.npz` with `map`
(768, D/16, H/16, W/16), `pooled` (768,) and `affine`, the matrix from the centre of a token to mm.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import zoo
from zoo import images
from zoo.entries.monai_ssl.convert import PATCH
from zoo.entries.monai_ssl.placing import Placed, build_transform, place
from zoo.entries.monai_ssl.windows import ENCODER, extract_features, margins, segment, window_of
from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.images import find_images, names_of
from zoo.loading import input_of
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import run_command
from zoo.training.finetune import check_trained

SEGMENTERS = ("monai-ssl-unetr", "monai-ssl-swinunetr")
TASKS = {"segment": (SEGMENTERS, 0.25), "features": ((ENCODER,), 0.0)}
"""Task -> the models that it takes, and by how much windows overlap."""


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Segment the images, or take their features; returns the files, of this process under `torchrun`."""
    args = parse(argv)
    found = names_of(find_images(args.image, volumes=True), "labels" if args.task == "segment" else args.task)
    processes = distributed.start(args.device)
    transform = build_transform(input_of(args.model, args.checkpoint), args.spacing)
    options = {"num_heads": args.num_heads, "merging": args.merging}
    model = load_network(args.task, args.model, args.checkpoint, processes.device, **options)
    files = []
    for name in tqdm(list(found)[processes.rank :: processes.world], desc="images", disable=None):
        placed, target = place(found[name], transform), Path(args.out) / name
        if args.task == "segment":
            file = write_labels(model, placed, target, args.window, args.batch_size, args.overlap)
        else:
            file = write_features(model, placed, target, args.batch_size, args.overlap)
        files.append(file)
    distributed.stop()
    return files


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, with the defaults of its task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--image", nargs="+", required=True, help="NIfTI files or folders with one DICOM series")
    parser.add_argument("--out", required=True, help="folder for what is found")
    parser.add_argument("--model", help="model, with or without a tag; by default that of the task")
    parser.add_argument("--checkpoint", help="file to take instead of the model's own weights")
    parser.add_argument("--spacing", default="", help="voxels in mm, x,y,z; by default those the weights know")
    parser.add_argument("--num-heads", type=int, help="attention heads of a ViT; by default one for each 64 channels")
    parser.add_argument("--merging", help="of a Swin UNETR: duplicated or complete; by default as its weights say")
    parser.add_argument("--window", type=int, help="voxels along a side; by default what the network was built for")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at once")
    parser.add_argument("--overlap", type=float, help="share of a window that the next one covers too")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    models, overlap = TASKS[args.task]
    args.model = args.model or models[0]
    args.overlap = overlap if args.overlap is None else args.overlap
    if get_entry(args.model).name not in models:
        raise OptionError(f"--model {args.model}: {args.task} takes {' or '.join(models)}, with or without a tag")
    if args.window and args.task == "features":
        raise OptionError(f"--window {args.window}: features are taken in the windows that the encoder was built for")
    return args


def load_network(task: str, name: str, checkpoint: str | None, device: torch.device, **options: Any) -> nn.Module:
    """The network of a task, whole.

    Args:
        task: One of `TASKS`.
        name: The model, with or without a tag.
        checkpoint: A file to take instead of the model's own weights.
        device: Where the network is moved to.
        **options: Of `load_model`; None for what the weights say.

    Raises:
        OptionError: The weights are those of an encoder alone, and segmentation is asked for.
    """
    asked = {option: value for option, value in options.items() if value is not None}
    classes = 0 if task == "features" else None
    model = zoo.load_model(name, checkpoint=checkpoint, num_classes=classes, device=device, **asked)
    check_trained(model, "zoo.entries.monai_ssl.finetune")
    return model


def write_labels(
    model: nn.Module, placed: Placed, target: Path, window: int | None, batch_size: int, overlap: float
) -> Path:
    """Segment a placed CT and write the labels on its own grid; returns the file."""
    image = torch.from_numpy(placed.image)[None]
    labels = segment(model, image, window=window, batch_size=batch_size, overlap=overlap)
    path = target.with_name(f"{target.name}_labels.nii.gz")
    images.write_labels(placed.at_home(labels.numpy()), path, placed.home.affine)
    return path


def write_features(model: nn.Module, placed: Placed, target: Path, batch_size: int, overlap: float) -> Path:
    """Take the features of a placed CT and write them with their place; returns the file."""
    found, pooled = extract_features(
        model, torch.from_numpy(placed.image)[None], batch_size=batch_size, overlap=overlap
    )
    before, _ = margins(placed.image.shape, window_of(model))
    first = [side.start - low + (PATCH - 1) / 2 for side, low in zip(placed.box, before, strict=True)]
    to_voxel = np.diag((PATCH, PATCH, PATCH, 1.0))
    to_voxel[:3, 3] = first
    affine = placed.whole.affine @ to_voxel
    path = target.with_name(f"{target.name}_features.npz")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, map=found.numpy(), pooled=pooled.numpy(), affine=affine)

    write_atomically(path, write)
    return path


if __name__ == "__main__":
    run_command(main)
