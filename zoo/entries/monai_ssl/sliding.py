"""Run MONAI SSL networks over whole volumes: segment a CT, or take its features, window by window.

    python -m zoo.entries.monai_ssl.sliding segment --image ct.nii.gz --checkpoint runs/btcv/best.pt --out labels
    python -m zoo.entries.monai_ssl.sliding features --image a.nii.gz dicom_folder --out features

An image is a NIfTI file in HU or a folder with one DICOM series. It is brought to the input contract of the model's
weights (`zoo.load_transform`), with `--checkpoint` of the model itself; `--spacing` and `--num-heads` are for networks
that were trained with others, which their files do not say.

Files in OUT: `<name>_labels.nii.gz` (uint8), on the image's own grid; or `<name>_features.npz` with `map`
(768, D/16, H/16, W/16), `pooled` (768,) and `affine`, the matrix from the centre of a token to mm.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from nibabel.nifti1 import Nifti1Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import zoo
from zoo.entries.monai_ssl.model import PatchEmbedding
from zoo.entries.monai_ssl.names import PATCH
from zoo.entries.monai_ssl.placing import Placed, Shape, build_transform, place
from zoo.errors import InputContractError, OptionError
from zoo.registry import get_entry
from zoo.report import first_names
from zoo.training import distributed
from zoo.training.args import run_command
from zoo.training.evaluate import judging
from zoo.training.finetune import input_of
from zoo.training.runlog import write_atomically

SEGMENTERS = ("monai-ssl-unetr", "monai-ssl-swinunetr")
ENCODER = "monai-ssl-vitb16"
TASKS = {"segment": (SEGMENTERS, 0.25), "features": ((ENCODER,), 0.0)}
"""Task -> the models that it takes, and by how much windows overlap."""
PUBLISHED_WINDOW = 96


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Segment the images, or take their features; returns the files, of this process under `torchrun`."""
    args = parse(argv)
    images = names_of(args.image)
    processes = distributed.start(args.device)
    transform = build_transform(input_of(args), args.spacing)
    model = load_network(args.task, args.model, args.checkpoint, processes.device, args.num_heads)
    files = []
    for name in tqdm(list(images)[processes.rank :: processes.world], desc="images", disable=None):
        placed, target = place(images[name], transform), Path(args.out) / name
        if args.task == "segment":
            file = write_labels(model, placed, target, args.window, args.batch_size, args.overlap)
        else:
            file = write_features(model, placed, target, args.batch_size, args.overlap)
        files.append(file)
    distributed.stop()
    return files


class Arguments(argparse.Namespace):
    """What `input_of` asks of a command line; the weights are never random here."""

    model: str
    checkpoint: str
    from_scratch = False


def parse(argv: Sequence[str] | None) -> Arguments:
    """Read the command line, with the defaults of its task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--image", nargs="+", required=True, help="NIfTI files or folders with one DICOM series")
    parser.add_argument("--out", required=True, help="folder for what is found")
    parser.add_argument("--model", help="model, with or without a tag; by default that of the task")
    parser.add_argument("--checkpoint", help="file to take instead of the model's own weights")
    parser.add_argument("--spacing", default="", help="voxels in mm, x,y,z; by default those the weights know")
    parser.add_argument("--num-heads", type=int, help="attention heads of a ViT; by default one for each 64 channels")
    parser.add_argument("--window", type=int, help="voxels along a side; by default what the network was built for")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at once")
    parser.add_argument("--overlap", type=float, help="share of a window that the next one covers too")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv, Arguments())
    models, overlap = TASKS[args.task]
    args.model = args.model or models[0]
    args.overlap = overlap if args.overlap is None else args.overlap
    if get_entry(args.model).name not in models:
        raise OptionError(f"--model {args.model}: {args.task} takes {' or '.join(models)}, with or without a tag")
    if args.window and args.task == "features":
        raise OptionError(f"--window {args.window}: features are taken in the windows that the encoder was built for")
    return args


def names_of(images: Sequence[str]) -> dict[str, Path]:
    """What the files made of each image are called: its own name without suffix.

    Raises:
        OptionError: Images do not exist (all are named), or two have one name.
    """
    paths = [Path(image) for image in images]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise OptionError(f"{len(missing)} of {len(paths)} images do not exist: {', '.join(missing)}")
    names = [path.resolve().name.removesuffix(".gz").removesuffix(".nii") for path in paths]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise OptionError(
            f"several images are called {', '.join(twice)}, as what is written would be: one call for each"
        )
    return dict(zip(names, paths, strict=True))


def load_network(
    task: str, name: str, checkpoint: str | None, device: torch.device, num_heads: int | None = None
) -> nn.Module:
    """The network of a task, whole.

    Raises:
        OptionError: The weights are those of an encoder alone, and segmentation is asked for.
    """
    options: dict[str, Any] = {} if num_heads is None else {"num_heads": num_heads}
    classes = 0 if task == "features" else None
    model = zoo.load_model(name, checkpoint=checkpoint, num_classes=classes, device=device, **options)
    report = zoo.load_report(model)
    if report.fresh:
        raise OptionError(
            f"{report.name} from {report.source}: {len(report.fresh)} tensors of the network are not in the file, "
            f"{first_names(report.fresh)}, so that it has not learned to segment. Fine-tune it first: "
            "python -m zoo.entries.monai_ssl.finetune"
        )
    return model


def write_labels(
    model: nn.Module, placed: Placed, target: Path, window: int | None, batch_size: int, overlap: float
) -> Path:
    """Segment a placed CT and write the labels on its own grid; returns the file."""
    image = torch.from_numpy(placed.image)[None]
    labels = segment(model, image, window=window, batch_size=batch_size, overlap=overlap)
    found = Nifti1Image(placed.at_home(labels.numpy()), placed.home.affine)
    path = target.with_name(f"{target.name}_labels.nii.gz")
    write_atomically(path, lambda temporary: temporary.write_bytes(gzip.compress(found.to_bytes(), mtime=0)))
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


def segment(
    model: nn.Module,
    volume: Tensor,
    *,
    window: int | Shape | None = None,
    batch_size: int = 4,
    overlap: float = 0.25,
) -> Tensor:
    """Return the class of each voxel of a volume, uint8 `(D, H, W)`, or `(N, D, H, W)` of a batch.

    The arguments are those of `slide`.
    """
    logits = slide(model, volume, window=window, batch_size=batch_size, overlap=overlap)
    return logits.argmax(dim=-4).to(torch.uint8)


def slide(
    model: nn.Module,
    volume: Tensor,
    *,
    window: int | Shape | None = None,
    batch_size: int = 4,
    overlap: float = 0.25,
) -> Tensor:
    """Return the logits of a whole volume, `(C, D, H, W)`, or `(N, C, D, H, W)` of a batch.

    Windows overlap, and all count alike where they do; a volume smaller than a window is padded with 0. The defaults
    are the published ones (Project-MONAI/tutorials, vit_unetr_ssl, ssl_finetune.ipynb).

    Args:
        model: UNETR or Swin UNETR, on any device. It is in eval mode meanwhile.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)` as `zoo.load_transform` makes it, on any device; the logits are put
            there too.
        window: Voxels of a window along each axis; None for what the network was built for, `window_of`.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, from 0 to below 1.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    return _slide(model, model, volume, _sides(model, window), batch_size, overlap)


def extract_features(
    model: nn.Module, volume: Tensor, *, batch_size: int = 4, overlap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the features of a whole volume: the map `(768, D/16, H/16, W/16)`, and their mean `(768,)`.

    The volume is padded with 0, on both sides alike, to whole tokens of 16 voxels and to at least one window; the map
    is that of the padded volume. The mean is over the tokens in which there is some of the volume. Where windows
    overlap, as the last one of an axis does, features are averaged. Of one window, both are the encoder's own.

    Args:
        model: ViT encoder, on any device. It is in eval mode meanwhile.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)` as `zoo.load_transform` makes it, on any device; the features are
            put there too, with a first axis N for a batch.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, which must be whole tokens: 0 or 0.5, for example.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range, or the encoder has no `forward_features`.
    """
    _check_axes(volume)
    features = getattr(model, "forward_features", None)
    if features is None:
        raise OptionError(f"{type(model).__name__} has no forward_features: expected the encoder, {ENCODER}")
    window = window_of(model)
    if uneven := [side for side in window if int(side * (1 - overlap)) % PATCH]:
        raise OptionError(
            f"overlap={overlap}: windows of {uneven[0]} voxels would begin inside a token of {PATCH}; 0 or 0.5 are "
            "expected, for example"
        )
    sides = tuple(volume.shape[-3:])
    before, after = margins(sides, window)
    padding = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    found = _slide(model, features, F.pad(volume, padding), window, batch_size, overlap)
    d, h, w = (slice(low // PATCH, -(-(low + side) // PATCH)) for low, side in zip(before, sides, strict=True))
    return found, found[..., d, h, w].mean(dim=(-3, -2, -1))


def window_of(model: nn.Module) -> Shape:
    """Return the voxels of a window along each axis: what a ViT's table of positions is for; else, as published, 96."""
    grids = [module.grid for module in model.modules() if isinstance(module, PatchEmbedding)]
    return tuple(side * PATCH for side in grids[0]) if grids else (PUBLISHED_WINDOW,) * 3


def _sides(model: nn.Module, window: int | Shape | None) -> Shape:
    if window is None:
        return window_of(model)
    return (window,) * 3 if isinstance(window, int) else tuple(window)


def margins(sides: Shape, window: Shape) -> tuple[Shape, Shape]:
    """Voxels before and after each axis of a volume that fill it up to whole tokens and to at least one window."""
    lacking = [max(whole, -(-side // PATCH) * PATCH) - side for side, whole in zip(sides, window, strict=True)]
    before = tuple(n // 2 for n in lacking)
    return before, tuple(n - low for n, low in zip(lacking, before, strict=True))


def _slide(model: nn.Module, predict: Any, volume: Tensor, window: Shape, batch_size: int, overlap: float) -> Tensor:
    """What `predict` makes of the windows of a volume, put together; overlapping parts are averaged."""
    _check_axes(volume)
    if not 0 <= overlap < 1 or batch_size < 1:
        raise OptionError(
            f"overlap={overlap}, batch_size={batch_size}: from 0 to below 1, and at least 1, are expected"
        )
    batch = volume if volume.ndim == 5 else volume[None]
    with judging(model):
        found: Any = sliding_window_inference(
            batch,
            window,
            batch_size,
            predict,
            overlap=overlap,
            sw_device=next(model.parameters()).device,
            device=batch.device,
        )
    stitched: Tensor = found if volume.ndim == 5 else found[0]
    return stitched


def _check_axes(volume: Tensor) -> None:
    if volume.ndim not in (4, 5):
        raise InputContractError(
            f"the volume has shape {tuple(volume.shape)}: (1, D, H, W) or a batch (N, 1, D, H, W) is expected"
        )


if __name__ == "__main__":
    run_command(main)
