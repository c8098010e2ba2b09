"""Labels of whole CTs by CT-FM's segmenter, window by window, in memory that does not grow with the length of a scan.

118 logits for each voxel of a CT are tens of gigabytes. Windows go from one end of the first axis to the other, so that
the slices behind them are done: of these the labels alone are kept.
"""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Labels
from zoo.errors import InputContractError, OptionError
from zoo.images import MOST_CLASSES, read_volume
from zoo.networks.sizes import check_windows
from zoo.networks.windows import margins
from zoo.training.evaluate import judging
from zoo.transforms import place_volume, warn_of_spacing

Shape: TypeAlias = tuple[int, int, int]

WINDOW: Shape = (96, 160, 160)
OVERLAP, WINDOWS_AT_ONCE = 0.625, 1
"""As published, but for the windows at once, two there (CT-FM, evaluation/totalseg.yaml)."""
MARGIN = 10
"""Voxels that are kept around the box of all that is not air (CT-FM, evaluation/totalseg.yaml)."""
TRAINED_SPACING = (1.5, 1.5, 1.5)
"""Voxels in mm of TotalSegmentator's published scans, on which the whole-body weights were trained as they are."""
_LEAST_WEIGHT = 1e-3
"""Of a voxel in the corner of a window (MONAI, inferers/utils.py)."""


def segment_volume(
    model: nn.Module,
    transform: Any,
    path: Path,
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
        window: Its voxels along each axis; None for those of the training, `WINDOW`.

    Raises:
        InputContractError: The CT cannot be read, or cannot be what the network was trained on.
        OptionError: `overlap` or `batch_size` is out of its range, or the network has no classes.
    """
    if isinstance(model.get_submodule("up_layers.3.head"), nn.Identity):
        raise OptionError("num_classes=0: the network returns maps and tells no classes apart; load it with its head")
    volume = read_volume(path)
    if transform.preprocessing.spacing is None:
        warn_of_spacing(volume, TRAINED_SPACING)
    placed = place_volume(volume, transform, margin=MARGIN)
    image = torch.from_numpy(placed.image)[None]
    at_once, share = WINDOWS_AT_ONCE if batch_size is None else batch_size, OVERLAP if overlap is None else overlap
    labels = label(model, image, window=window, batch_size=at_once, overlap=share)
    return placed.at_home(labels.numpy()), placed.home.affine


def label(
    model: nn.Module,
    volume: Tensor,
    *,
    window: Shape | None = None,
    batch_size: int = WINDOWS_AT_ONCE,
    overlap: float = OVERLAP,
) -> Tensor:
    """Return the class of each voxel of a volume, uint8 `(D, H, W)`.

    Logits of windows that overlap are added, weighted by a Gaussian around the middle of each, as MONAI's
    `sliding_window_inference` does in its mode "gaussian"; a volume smaller than a window is filled up with 0 on both
    sides. Sums are kept in half precision, and of as many slices as a window has.

    Args:
        model: The segmenter, on any device. It is in eval mode meanwhile.
        volume: `(C, D, H, W)` as `zoo.load_transform` makes it.
        window: Voxels of a window along each axis; None for those of the training, `WINDOW`.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, from 0 to below 1.

    Raises:
        InputContractError: A sum of logits is NaN or beyond half precision.
        OptionError: `overlap` or `batch_size` is out of its range, or there are more classes than uint8 tells apart.
    """
    check_windows(overlap, batch_size)
    window = window or WINDOW
    filled, box = _fill_up(volume, window)
    tops, rows, columns = (_starts(n, side, overlap) for n, side in zip(filled.shape[1:], window, strict=True))
    corners = list(product(rows, columns))
    weights = _weights(window)
    labels = torch.empty(filled.shape[1:], dtype=torch.uint8)
    sums: dict[int, Tensor] = {}
    with judging(model):
        for top, next_top in pairwise((*tops, filled.shape[1])):
            for first in range(0, len(corners), batch_size):
                _add(sums, model, filled, weights, [(top, *at) for at in corners[first : first + batch_size]])
            for done in range(top, next_top):
                labels[done] = _classes(sums.pop(done))
    return labels[box]


def _add(sums: dict[int, Tensor], model: nn.Module, volume: Tensor, weights: Tensor, corners: list[Shape]) -> None:
    """Add the weighted logits of some windows to the sums `(classes, H, W)` of the slices that they lie in."""
    cuts = [tuple(slice(at, at + n) for at, n in zip(corner, weights.shape, strict=True)) for corner in corners]
    device = next(model.parameters()).device
    batch: Tensor = model(torch.stack([volume[:, *cut] for cut in cuts]).to(device))
    if batch.shape[1] > MOST_CLASSES:
        raise OptionError(f"the network has {batch.shape[1]} classes; labels of one byte tell {MOST_CLASSES} apart")
    for logits, (slices, rows, columns) in zip(batch, cuts, strict=True):
        weighted = logits.float().mul_(weights.to(device)).half().cpu()
        for i, at in enumerate(range(slices.start, slices.stop)):
            if at not in sums:
                sums[at] = torch.zeros((len(logits), *volume.shape[2:]), dtype=torch.half)
            sums[at][:, rows, columns] += weighted[:, i]


def _classes(sums: Tensor) -> Tensor:
    """Return the class of each voxel `(H, W)` of the sums of a slice."""
    best, found = sums.float().max(dim=0)
    if not best.isfinite().all():
        raise InputContractError(
            "the network's logits are NaN or beyond half precision, 65504, in this volume: its labels would mean "
            "nothing. Are the weights those of a segmenter that was trained?"
        )
    return found.to(torch.uint8)


def _weights(window: Shape) -> Tensor:
    """Return the weight of each voxel of a window, a Gaussian around its middle."""
    found: Tensor = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).float()
    return found.clamp(min=max(found.min().item(), _LEAST_WEIGHT))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis; the last one ends with it."""
    step = max(1, int(side * (1 - overlap)))
    return [min(at, length - side) for at in range(0, length - side + step, step)]


def _fill_up(volume: Tensor, window: Shape) -> tuple[Tensor, tuple[slice, ...]]:
    """Return a volume of at least one window, and where the given one lies in it."""
    before, after = margins(tuple(volume.shape[1:]), window, 1)
    around = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    box = tuple(slice(low, low + side) for low, side in zip(before, volume.shape[1:], strict=True))
    return F.pad(volume, around), box
