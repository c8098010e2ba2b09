r"""Segment whole CTs with MONAI SSL's networks, or take their features, window by window.

    zoo segment monai-ssl-unetr ct.nii.gz --checkpoint runs/btcv/best.pt -o labels
    python -m zoo.entries.monai_ssl.segment segment --image ct.nii.gz --checkpoint runs/swin/best.pt \
        --model monai-ssl-swinunetr --window 64 --out labels
    python -m zoo.entries.monai_ssl.segment features --image a.nii.gz dicom_folder --out features

An image is a NIfTI file in HU, a folder with one DICOM series, or a folder of images. It is brought to the input
contract of the weights (`zoo.load_transform`): with `--checkpoint` that of the file's header, which the recipes write,
else the model's. `--spacing`, `--window`, `--num-heads` and `--merging` are for files that do not say them. No file
says the window of a Swin UNETR: give `--window` if it was trained on other crops than 96.

Files in OUT: `<name>_labels.nii.gz` (uint8), on the image's own grid; or `<name>_features.npz` with `map`
(768, D/16, H/16, W/16), `pooled` (768,) and `affine`, the matrix from the centre of a token to mm; of
`--model monai-ssl-swinvit` with 32 in place of 16. An image that cannot
be segmented is left out and named at the end, with exit code 1; images that share a name are called by their folder's
too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoo.commands.segmenting import label_writer, load_segmenter, write_each
from zoo.entries.monai_ssl.contract import build_transform
from zoo.entries.monai_ssl.windows import (
    ENCODERS,
    OVERLAP,
    WINDOWS_AT_ONCE,
    extract_features,
    step_of,
    window_of,
)
from zoo.entry import Labels
from zoo.errors import OptionError
from zoo.images import find_images, names_of
from zoo.loading import input_of
from zoo.networks.windows import margins
from zoo.registry import get_entry
from zoo.tasks.labelling import label_volume, windows_of
from zoo.training import distributed
from zoo.training.args import run_command
from zoo.training.arrays import save_arrays
from zoo.transforms import place_volume

UNETR, SWIN = SEGMENTERS = ("monai-ssl-unetr", "monai-ssl-swinunetr")
TASKS = {"segment": (SEGMENTERS, OVERLAP), "features": (ENCODERS, 0.0)}
"""Task -> the models that it takes, and by how much windows overlap."""

Features = tuple[Tensor, Tensor, npt.NDArray[Any]]
"""The map `(768, D/16, H/16, W/16)`, of a Swin transformer with 32 in place of 16; its mean `(768,)`; and the matrix
from the centre of a token to mm."""


def segment_volume(
    model: nn.Module,
    transform: Any,
    path: Path,
    batch_size: int | None = None,
    overlap: float | None = None,
    *,
    window: int | None = None,
) -> Labels:
    """Labels of a CT on its own grid, and its matrix; see `zoo.tasks.labelling.label_image`.

    Args:
        model: UNETR or Swin UNETR, on any device.
        transform: From `zoo.load_transform`, of the weights.
        path: NIfTI, or a folder with a DICOM series.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too.
        window: Side of a window in voxels; None for that of the network.

    Raises:
        InputContractError: The CT cannot be read, or does not meet the input contract.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    asked: dict[str, Any] = {"batch_size": batch_size, "overlap": overlap, "window": (window,) * 3 if window else ()}
    return label_volume(model, transform, path, windows_of(get_entry(UNETR), model, transform, **asked))


def features_of(
    model: nn.Module, transform: Any, path: Path, batch_size: int | None = None, overlap: float = 0.0
) -> Features:
    """Features of a CT, with their place; arguments and errors are those of `segment_volume`."""
    placed = place_volume(path, transform)
    image = torch.from_numpy(placed.image)[None]
    at_once = WINDOWS_AT_ONCE if batch_size is None else batch_size
    found, pooled = extract_features(model, image, batch_size=at_once, overlap=overlap)
    step = step_of(model)
    before, _ = margins(placed.image.shape, window_of(model), step)
    to_voxel = np.diag((step, step, step, 1.0))
    to_voxel[:3, 3] = [side.start - low + (step - 1) / 2 for side, low in zip(placed.box, before, strict=True)]
    return found, pooled, placed.whole.affine @ to_voxel


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Segment the images, or take their features; returns the files, of this process under `torchrun`."""
    args = parse(argv)
    made, out = "labels" if args.task == "segment" else args.task, Path(args.out)
    volumes = names_of(find_images(args.image, volumes=True), made)
    processes = distributed.start(args.device)
    transform = build_transform(input_of(args.model, args.checkpoint), args.spacing)
    options = {"num_heads": args.num_heads, "merging": args.merging}
    options |= {"num_classes": 0} if args.task == "features" else {}
    model = load_segmenter(args.model, args.checkpoint, processes.device, **options)
    mine = dict(list(volumes.items())[processes.rank :: processes.world])
    bar, windows = processes.is_main, {"batch_size": args.batch_size, "overlap": args.overlap}
    if args.task == "segment":
        find = partial(segment_volume, model, transform, **windows, window=args.window)
        written = write_each(mine, find, label_writer(out), bar=bar)
    else:
        take = partial(features_of, model, transform, **windows)
        written = write_each(mine, take, partial(write_features, out), bar=bar)
    distributed.barrier()  # torchrun ends the others with the first that fails
    distributed.stop()
    written.check(out, made)
    return [*written.files]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, with the defaults of its task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--image", nargs="+", required=True, help="NIfTI files or folders with one DICOM series")
    parser.add_argument("--out", required=True, help="folder for labels or features")
    parser.add_argument("--model", help="model, with or without a tag; default: that of the task")
    parser.add_argument("--checkpoint", help="file to take instead of the model's own weights")
    parser.add_argument("--spacing", default="", help="size of voxels in mm, x,y,z; default: that of the weights")
    parser.add_argument("--num-heads", type=int, help="attention heads of a ViT; default: one for each 64 channels")
    parser.add_argument("--merging", help="duplicated or complete, for a Swin UNETR; default: that of its weights")
    parser.add_argument("--window", type=int, help="side of a window in voxels; default: that of the network")
    parser.add_argument("--batch-size", type=int, default=WINDOWS_AT_ONCE, help="windows at once")
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


def write_features(out: Path, name: str, path: Path, found: Features) -> Path:
    """Write the features of a CT into a folder; returns the file."""
    file = out / f"{name}_features.npz"
    save_arrays(file, map=found[0].numpy(), pooled=found[1].numpy(), affine=found[2])
    return file


if __name__ == "__main__":
    run_command(main)
