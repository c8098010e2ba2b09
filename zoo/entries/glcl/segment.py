"""Segment whole volumes with GLCL's U-Net: labels on each scan's own grid, as fine-tuning judges them.

    python -m zoo.entries.glcl.segment --image a.nii.gz b.nii.gz --checkpoint runs/two/glcl-unet.two.safetensors \
        --out labels
    python -m zoo.entries.glcl.segment --image scans --model glcl-unet.two --out labels

An image is a NIfTI file, or a folder for all that are in it. Size and pixels of the slices are those of the weights
(`zoo.load_transform`): with `--checkpoint` the ones in the file's header, which fine-tuning writes into all that it
saves, else the model's, or those of the tag that is named. `--n4` and `--channel` must be as in training, which no
file says.

Files in OUT: `<name>_labels.nii.gz`, uint8, with the scan's header: 0 and the ranks of the structures; of volumes that
share a name, as 001/img.nii.gz and 002/img.nii.gz, `<folder>_<name>_labels.nii.gz`. A volume that cannot be segmented
is left out and named at the end, with exit code 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

import zoo
from zoo.entries.glcl.placing import find_labels
from zoo.entries.glcl.volumes import as_volume, correct_bias, read_image
from zoo.errors import InputContractError, OptionError
from zoo.images import find_images, names_of, read_header, write_labels
from zoo.loading import input_of
from zoo.messages import listed, with_path
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import run_command
from zoo.training.evaluate import judging
from zoo.training.finetune import check_trained
from zoo.training.progress import say
from zoo.transforms import SliceTransform, build_slice_transform

UNET = "glcl-unet"


def segment_volume(
    model: nn.Module, path: str | Path, transform: SliceTransform, *, n4: bool = False, channel: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return the labels of a scan, uint8 `(X, Y, Z)`, voxel by voxel of its file.

    Args:
        model: GLCL's U-Net, on any device. It is in eval mode meanwhile.
        path: NIfTI, slices along its third axis.
        transform: From `zoo.load_transform`, of the weights.
        n4: Whether to correct the bias field first, as `zoo.entries.glcl.volumes.correct_bias` does.
        channel: Which to take of a file with a fourth axis.

    Raises:
        InputContractError: The scan cannot be read, or cannot be what the network was trained on.
    """
    image, grid = read_image(Path(path), channel)
    image = correct_bias(image, grid.spacing) if n4 else image
    placed = transform.place(as_volume(image, grid, str(path), transform.preprocessing.orientation))
    slices = placed.tensor.to(next(model.parameters()).device)
    with judging(model):
        labels = find_labels(model, slices, placed.resampled, placed.shape[:2])
    return placed.at_home(labels.cpu().numpy())


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Segment the volumes; returns the files, of this process under `torchrun`."""
    args = parse(argv)
    images = names_of(find_images(args.image, volumes=True))
    processes = distributed.start(args.device)
    transform = build_slice_transform(input_of(args.model, args.checkpoint))
    model = load_network(args.model, args.checkpoint, processes.device)
    files, failed = [], []
    mine = list(images.items())[processes.rank :: processes.world]
    for name, path in tqdm(mine, desc="volumes", disable=None if processes.is_main else True):
        try:
            labels = segment_volume(model, path, transform, n4=args.n4, channel=args.channel)
        except (InputContractError, OSError) as error:
            failed.append(with_path(path, error))
            continue
        file, header = Path(args.out) / f"{name}_labels.nii.gz", read_header(path)
        write_labels(labels, file, header.get_best_affine(), header)
        files.append(file)
    distributed.barrier()  # torchrun ends the others with the first that fails
    distributed.stop()
    if files:
        say(f"{args.out}: labels of {len(files)} volume(s), {_origin(model, transform)}")
    if failed:
        rest = f"the others are in {args.out}" if files else "nothing was written"
        raise InputContractError(f"{len(failed)} volume(s) have no labels, {rest}:{listed(failed)}")
    return files


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", nargs="+", required=True, help="NIfTI files, or folders for all that are in them")
    parser.add_argument("--out", required=True, help="folder for the labels")
    parser.add_argument("--model", default=UNET, help=f"{UNET}, with or without a tag")
    parser.add_argument("--checkpoint", help="file to take instead of the model's own weights")
    parser.add_argument("--n4", action="store_true", help="correct the bias field of each volume first, 10 s and more")
    parser.add_argument("--channel", type=int, help="which to take of files with a fourth axis, from 0 on")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    if get_entry(args.model).name != UNET:
        raise OptionError(f"--model {args.model}: expected {UNET} or {UNET}.TAG")
    return args


def load_network(name: str, checkpoint: str | None, device: torch.device) -> nn.Module:
    """The U-Net, whole.

    Raises:
        OptionError: The weights are those of an encoder, or of a part of the decoder.
    """
    model = zoo.load_model(name, checkpoint=checkpoint, device=device)
    check_trained(model, "zoo.entries.glcl.finetune")
    return model


def command_for(file: Path, *, n4: bool, channel: int | None) -> str:
    """The command that segments volumes with a file of weights."""
    more = [*(["--n4"] if n4 else []), *([] if channel is None else [f"--channel {channel}"])]
    return " ".join(["python -m zoo.entries.glcl.segment --image SCAN --out labels --checkpoint", str(file), *more])


def _origin(model: nn.Module, transform: SliceTransform) -> str:
    """Which weights, and on what slices: a file that says nothing of its input has the model's."""
    report, facts = zoo.load_report(model), transform.preprocessing
    (height, width), spacing = facts.size, " x ".join(f"{side:g}" for side in facts.spacing or ())
    return f"by {report.name} from {report.source}, in slices of {height} x {width} pixels of {spacing} mm"


if __name__ == "__main__":
    run_command(main)
