"""Labels of whole CTs by CT-FM's segmenter, whose 118 logits for each voxel are summed in half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from zoo.entries.ct_fm.contract import WINDOWS
from zoo.entry import Labels, Windows
from zoo.errors import OptionError
from zoo.images import read_volume
from zoo.tasks.labelling import label_volume
from zoo.tasks.sliding import find_classes
from zoo.training.evaluate import judging
from zoo.transforms import warn_of_spacing

Shape: TypeAlias = tuple[int, int, int]

TRAINED_SPACING = (1.5, 1.5, 1.5)
"""Voxels in mm of TotalSegmentator's published scans, on which the whole-body weights were trained as they are."""


def segment_volume(
    model: nn.Module,
    transform: Any,
    path: Any,
    batch_size: int | None = None,
    overlap: float | None = None,
    *,
    window: Shape | None = None,
) -> Labels:
    """Labels of a CT on its own grid, and its matrix; what `Entry.segment` is.

    Args:
        model: The segmenter, on any device.
        transform: From `zoo.load_transform`, of the weights.
        path: NIfTI, or a folder with a DICOM series.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too.
        window: Its voxels along each axis; None for those of the training.

    Raises:
        InputContractError: The CT cannot be read, or cannot be what the network was trained on.
        OptionError: `overlap` or `batch_size` is out of its range, or the network has no classes.
    """
    if isinstance(model.get_submodule("up_layers.3.head"), nn.Identity):
        raise OptionError("num_classes=0: the network returns maps and tells no classes apart; load it with its head")
    volume = read_volume(path)
    if transform.preprocessing.spacing is None:
        warn_of_spacing(volume, TRAINED_SPACING)
    return label_volume(model, transform, volume, _windows(window, batch_size, overlap), sums=torch.half)


def label(
    model: nn.Module,
    volume: Tensor,
    *,
    window: Shape | None = None,
    batch_size: int | None = None,
    overlap: float | None = None,
) -> Tensor:
    """Return the class of each voxel of a volume, uint8 `(D, H, W)`; see `zoo.tasks.sliding.find_classes`.

    Args:
        model: The segmenter, on any device. It is in eval mode meanwhile.
        volume: `(C, D, H, W)` as `zoo.load_transform` makes it.
        window: Voxels of a window along each axis; None for those of the training.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, from 0 to below 1.

    Raises:
        InputContractError: A sum of logits is NaN or beyond half precision.
        OptionError: `overlap` or `batch_size` is out of its range, or there are more classes than uint8 tells apart.
    """
    device = next(model.parameters()).device
    with judging(model):
        return find_classes(model, volume, _windows(window, batch_size, overlap), device=device, sums=torch.half)


def _windows(window: Shape | None, batch_size: int | None, overlap: float | None) -> Windows:
    asked: dict[str, Any] = {"size": window, "at_once": batch_size, "overlap": overlap}
    return replace(WINDOWS, **{name: value for name, value in asked.items() if value is not None})
