"""Segment whole volumes with GLCL's U-Net: labels on each scan's own grid.

    zoo segment glcl-unet a.nii.gz b.nii.gz --checkpoint runs/two/glcl-unet.two.safetensors -o labels
    python -m zoo.entries.glcl.segment --image scans --model glcl-unet.two --n4 --out labels

An image is a NIfTI file, a folder with one DICOM series of MR, or a folder of images. Size and pixels of the slices are
those of the weights (`zoo.load_transform`): with `--checkpoint` those of the file's header, which fine-tuning writes,
else those of the model or tag. So are `--n4` and `--channel`; for a file that does not say them they must be as in
training.

Files in OUT: `<name>_labels.nii.gz`, uint8, with the scan's header: 0 and the ranks of the structures; for volumes that
share a name, as 001/img.nii.gz and 002/img.nii.gz, `<folder>_<name>_labels.nii.gz`. A volume that cannot be segmented
is left out and named at the end, with exit code 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from zoo.commands.segmenting import label_writer, load_segmenter, what_was_written, write_each
from zoo.entries.glcl.volumes import correct_bias, read_image
from zoo.entry import Labels
from zoo.errors import CheckpointFormatError, OptionError
from zoo.images import Volume, find_images, is_dicom, names_of, read_header, read_volume
from zoo.loading import input_of
from zoo.progress import say
from zoo.registry import get_entry
from zoo.tasks.labelling import label_slices
from zoo.tasks.saved import learnt_reading
from zoo.training import distributed
from zoo.training.args import run_command
from zoo.transforms import SliceTransform, build_slice_transform

UNET = "glcl-unet"
N4, CHANNEL = "n4", "channel"
_KNOWN = {N4: bool, CHANNEL: int}
"""What a header's `reading` says, see `zoo.formats.header`."""


def segment_volume(
    model: nn.Module, path: str | Path, transform: SliceTransform, *, n4: bool = False, channel: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return the labels of a scan, uint8 `(X, Y, Z)`, voxel by voxel of its file; see `label_volume`."""
    return label_volume(model, transform, Path(path), n4=n4, channel=channel)[0]


def label_volume(
    model: nn.Module,
    transform: SliceTransform,
    path: Any,
    batch_size: int | None = None,
    overlap: float | None = None,
    *,
    n4: bool = False,
    channel: int | None = None,
) -> Labels:
    """Labels of a scan, uint8 `(X, Y, Z)`, voxel by voxel of its file, and its matrix, for `Entry.segment`.

    Args:
        model: GLCL's U-Net, on any device. It is in eval mode meanwhile.
        transform: From `zoo.load_transform`, of the weights.
        path: NIfTI, or a folder with a DICOM series; slices along the third axis.
        batch_size: Slices at once; None for 20.
        overlap: None, for slices do not overlap.
        n4: Whether to correct the bias field first, as `zoo.entries.glcl.volumes.correct_bias` does.
        channel: Channel to take of a file with a fourth axis.

    Raises:
        InputContractError: The scan cannot be read, or does not meet the input contract.
        OptionError: An overlap is asked for.
    """
    volume, affine = read_scan(path, transform.preprocessing.orientation or "RA", channel, n4=n4)
    return label_slices(model, transform, volume, batch_size, overlap)[0], affine


def read_scan(
    path: Any, orientation: str, channel: int | None = None, *, n4: bool = False
) -> tuple[Volume, npt.NDArray[Any] | None]:
    """Read a scan, NIfTI or a DICOM series, or take one that was read, and the affine of its file.

    The affine of the two differs where a NIfTI lacks a position, see `volumes.read_image`.
    """
    if not isinstance(path, Path) or path.is_dir() or is_dicom(path):
        volume = read_volume(path, least=(1, 1, 1))  # the transform checks the number of slices
        affine = volume.affine
    else:
        volume = read_image(path, orientation, channel)
        affine = read_header(path).get_best_affine()
    values = correct_bias(volume.values, volume.grid.spacing) if n4 else volume.values
    return replace(volume, values=values), affine


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Segment the volumes; returns the files, of this process under `torchrun`."""
    args = parse(argv)
    volumes, out = names_of(find_images(args.image, volumes=True)), Path(args.out)
    processes = distributed.start(args.device)
    transform = build_slice_transform(input_of(args.model, args.checkpoint))
    model = load_segmenter(args.model, args.checkpoint, processes.device)
    n4, channel = reading_of(args)  # only now the file of a tag is here
    mine = dict(list(volumes.items())[processes.rank :: processes.world])
    find = partial(label_volume, model, transform, n4=n4, channel=channel)
    written = write_each(mine, find, label_writer(out), bar=processes.is_main)
    distributed.barrier()  # torchrun ends the others with the first that fails
    distributed.stop()
    if written.files:
        say(what_was_written(out, len(written.files), model, transform.preprocessing))
    written.check(out)
    return [*written.files]


def reading_of(args: argparse.Namespace) -> tuple[bool, int | None]:
    """Whether to correct the bias field, and the channel to take: what the weights say, and what is asked for.

    Raises:
        OptionError: A channel is asked for that is not the weights'.
        CheckpointFormatError: The weights say something that cannot be, or that this version does not know.
    """
    learnt = learnt_reading(args.model, args.checkpoint)
    if not _KNOWN.items() >= {key: type(value) for key, value in learnt.items()}.items():
        raise CheckpointFormatError(
            f"{args.checkpoint or args.model} says that scans were put through {dict(learnt)}: expected {N4}, true or "
            f"false, and {CHANNEL}, a whole number. A newer zoo may know it"
        )
    channel = learnt.get(CHANNEL, args.channel)
    if args.channel not in (None, channel):
        raise OptionError(f"--channel {args.channel}: by their header the weights learnt from channel {channel}")
    return args.n4 or bool(learnt.get(N4)), channel


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", nargs="+", required=True, help="NIfTI files, or folders of images")
    parser.add_argument("--out", required=True, help="folder for the labels")
    parser.add_argument("--model", default=UNET, help=f"{UNET}, with or without a tag")
    parser.add_argument("--checkpoint", help="file to take instead of the model's own weights")
    parser.add_argument("--n4", action="store_true", help="correct the bias field of each volume first, 10 s and more")
    parser.add_argument("--channel", type=int, help="channel of files with a fourth axis, from 0 on")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    if get_entry(args.model).name != UNET:
        raise OptionError(f"--model {args.model}: expected {UNET} or {UNET}.TAG")
    return args


def command_for(file: Path) -> str:
    """The command that segments volumes with a file that fine-tuning wrote."""
    return f"python -m zoo.entries.glcl.segment --image SCAN --out labels --checkpoint {file}"


if __name__ == "__main__":
    run_command(main)
