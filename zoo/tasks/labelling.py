"""Labels of whole images by a network that segments: a volume's on its own grid, a film's for each of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Entry, Labels, Transform, Windows
from zoo.errors import OptionError
from zoo.images import read_volume
from zoo.networks.vit import PatchEmbedding
from zoo.tasks.sliding import find_classes, find_logits
from zoo.training.evaluate import judging
from zoo.transforms import ImageTransform, SliceTransform, VolumeTransform, place_volume, put_back

SLICES_AT_ONCE = 20
"""Slices that go through a network together, where nobody says how many."""


def label_image(
    entry: Entry,
    model: nn.Module,
    transform: Transform,
    image: Any,
    *,
    batch_size: int | None = None,
    overlap: float | None = None,
    window: tuple[int, ...] = (),
) -> Labels:
    """Return the classes of an image, uint8 on its own grid, and the matrix of that grid; of a film its pixels alone.

    Args:
        entry: Of the network.
        model: The network, on any device. It is in eval mode meanwhile.
        transform: From `zoo.load_transform`, of the weights.
        image: What the transform takes: of a volume one whose position is known, where the transform turns its axes or
            resamples it.
        batch_size: Windows or slices at once; None for the family's choice.
        overlap: Share of a window that the next one covers too; None for the family's choice.
        window: Sides of the windows that the network was trained on; empty for those of the entry.

    Raises:
        InputContractError: The image cannot be read, or cannot be what the network was trained on.
        OptionError: The network does not segment, or not with these numbers.
    """
    check_classes(entry, model)
    image = Path(image) if isinstance(image, str) else image
    if isinstance(transform, SliceTransform) and entry.segment is None:
        return label_slices(model, transform, image, batch_size, overlap)
    if entry.segment is not None and not window:
        return entry.segment(model, transform, image, batch_size, overlap)
    windows = windows_of(entry, model, transform, batch_size=batch_size, overlap=overlap, window=window)
    label: Callable[..., Labels] = label_film if isinstance(transform, ImageTransform) else label_volume
    return label(model, transform, image, windows)


def check_classes(entry: Entry, model: Any) -> None:
    """Raise `OptionError` where a network gives its images no classes."""
    if not entry.segments:
        raise OptionError(f"{entry.name!r} does not segment: {entry.summary}")
    if not model.num_classes:
        gives = "restores the image" if entry.restores and model.num_classes is None else "returns maps"
        raise OptionError(
            f"{entry.name!r} without classes {gives} and tells no classes apart: load weights that were trained to "
            "segment, with their num_classes"
        )


def windows_of(
    entry: Entry,
    model: nn.Module,
    transform: Transform,
    *,
    batch_size: int | None = None,
    overlap: float | None = None,
    window: tuple[int, ...] = (),
) -> Windows:
    """Return the windows of a network: the entry's, but where others are asked for or the network was built for them.

    Raises:
        OptionError: The entry has none.
    """
    if entry.windows is None:
        raise OptionError(f"{entry.name!r} does not segment in windows: {entry.summary}")
    built = next((module.window for module in model.modules() if isinstance(module, PatchEmbedding)), ())
    size = tuple(window or built or entry.windows.size or transform.preprocessing.size)
    return replace(
        entry.windows,
        size=size,
        overlap=entry.windows.overlap if overlap is None else overlap,
        at_once=entry.windows.at_once if batch_size is None else batch_size,
    )


def label_volume(
    model: nn.Module, transform: VolumeTransform, volume: Any, windows: Windows, *, sums: torch.dtype = torch.float32
) -> Labels:
    """Return the labels of a volume on its own grid, `(i, j, k)`, and its matrix; 0 where it is air, see `Placed`.

    Args:
        model: The network, on any device.
        transform: Of the weights.
        volume: As `label_image` takes it.
        windows: With a size.
        sums: As `sliding.find_classes` takes it.
    """
    found = read_volume(volume)
    contract = transform.preprocessing
    stays = found.affine is None and contract.orientation is None and contract.spacing is None
    placed = place_volume(replace(found, affine=np.eye(4)) if stays else found, transform, margin=windows.margin)
    device = next(model.parameters()).device
    with judging(model):
        labels = find_classes(logits_of(model), torch.from_numpy(placed.image)[None], windows, device=device, sums=sums)
    return placed.at_home(labels.numpy()), found.affine


def logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what makes logits of all classes: of a network with one, of a structure, 0 stands for the background."""
    if getattr(model, "num_classes", None) != 1:
        return model

    def logits(x: Tensor) -> Tensor:
        found: Tensor = model(x)
        return torch.cat([torch.zeros_like(found), found], dim=1)

    return logits


def label_film(model: nn.Module, transform: ImageTransform, film: Any, windows: Windows) -> Labels:
    """Return the labels of a film, `(H, W)` of its own pixels, and None.

    The film is resized as for training, without a centre crop; probabilities are resized back, and then compared.
    """
    image, shape = transform.place(film)
    device = next(model.parameters()).device
    with judging(model):
        logits = find_logits(logits_of(model), image.detach().cpu(), windows, device=device)
    return at_pixels(logits, shape).numpy(), None


def at_pixels(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the class of each pixel of a film, uint8 `(H, W)`, from logits `(K, H', W')` of the resized one."""
    maps = F.interpolate(logits.float().softmax(0)[None], size=shape, mode="bilinear", align_corners=False)
    return maps[0].argmax(0).to(torch.uint8)


def label_slices(
    model: nn.Module,
    transform: SliceTransform,
    volume: Any,
    batch_size: int | None = None,
    overlap: float | None = None,
) -> Labels:
    """Return the labels of a volume that goes through a network slice by slice, on its own grid, and its matrix.

    Raises:
        InputContractError: The volume cannot be read, or cannot be what the network was trained on.
        OptionError: An overlap is asked for, or fewer than one slice at once.
    """
    check_slices(batch_size, overlap)
    found = read_volume(volume, least=(1, 1, 1))  # the transform checks the number of slices
    placed = transform.place(found)
    slices = placed.tensor.to(next(model.parameters()).device)
    with judging(model):
        labels = classes_of_slices(model, slices, placed.resampled, placed.shape[:2], batch_size or SLICES_AT_ONCE)
    return placed.at_home(labels.cpu().numpy()), found.affine


def check_slices(batch_size: int | None, overlap: float | None) -> None:
    """Raise `OptionError` where slices are to overlap, or there is to be none at once."""
    if overlap is not None:
        raise OptionError(f"overlap={overlap}: the network takes whole slices, which do not overlap; leave it out")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least 1 is expected")


def classes_of_slices(
    network: nn.Module,
    slices: Tensor,
    resampled: tuple[int, int],
    shape: tuple[int, int],
    at_once: int = SLICES_AT_ONCE,
) -> Tensor:
    """Return what a network finds in a volume, uint8 (X, Y, Z), at the resolution at which it was scanned.

    Probabilities are put back where the slices were cut out, resized linearly, and only then compared (as
    krishnabits001/domain_specific_cl does in its validation).

    Args:
        network: Slices (N, 1, S, S) to logits (N, C, S, S), in eval mode.
        slices: All of the volume's (Z, 1, S, S), on the network's device; the labels are put there too.
        resampled: Their pixels before crop and padding, as `SliceTransform.place` returns them.
        shape: X and Y.
        at_once: Slices that go through the network together.
    """
    parts = []
    for some in torch.split(slices, at_once):
        maps = put_back(network(some).float().softmax(1), resampled)
        maps = F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)
        parts.append(maps.argmax(1).to(torch.uint8))
    return torch.cat(parts).movedim(0, 2)
