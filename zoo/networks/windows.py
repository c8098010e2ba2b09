"""Whole volumes through a 3D network, window by window, put together again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor
from torch.nn import functional as F

from zoo.entry import Parts
from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_windows
from zoo.transforms import VolumeTransform, place_volume

Shape: TypeAlias = tuple[int, ...]


def slide_over(
    predict: Callable[[Tensor], Any],
    volume: Tensor,
    window: Shape,
    *,
    batch_size: int,
    overlap: float,
    device: torch.device,
) -> Tensor:
    """Return what a network in eval mode makes of the windows of a volume, `(C, ...)`, or `(N, C, ...)` of a batch.

    Windows that overlap are averaged, all counting alike; a volume smaller than a window is padded with 0.

    Args:
        predict: The network, or one of its methods.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)`, on any device; the result is put there too.
        window: Voxels of a window along each axis.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, from 0 to below 1.
        device: Where the network is.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    check_axes_of(volume)
    check_windows(overlap, batch_size)
    batch = volume if volume.ndim == 5 else volume[None]
    devices: dict[str, Any] = {"sw_device": device, "device": batch.device}
    with torch.no_grad():
        found: Any = sliding_window_inference(batch, window, batch_size, predict, overlap=overlap, **devices)
    stitched: Tensor = found if volume.ndim == 5 else found[0]
    return stitched


def pool_over(
    features: Callable[[Tensor], Tensor],
    volume: Tensor,
    window: Shape,
    step: int,
    *,
    batch_size: int,
    overlap: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return the map of a whole volume, `(C, D/step, ...)`, and its mean `(C,)`.

    The volume is padded with 0, on both sides alike, to whole cells of the map and to at least one window; the map is
    that of the padded volume. The mean is over the cells in which there is some of the volume. Where windows overlap,
    as the last one of an axis does, features are averaged. Of one window, both are the encoder's own.

    Args:
        features: What makes the map of a window.
        volume: As `slide_over` takes it, and all other arguments.
        window: Voxels of a window along each axis, multiples of `step`.
        step: Voxels along a side of a cell.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, which must be whole cells.
        device: Where the network is.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    check_axes_of(volume)
    if uneven := [side for side in window if int(side * (1 - overlap)) % step]:
        whole = "0" if any(side // 2 % step for side in window) else "0 or 0.5"
        raise OptionError(
            f"overlap={overlap}: windows of {uneven[0]} voxels would begin inside a token of {step}; {whole} is "
            "expected, for example"
        )
    sides = tuple(volume.shape[-3:])
    before, after = margins(sides, window, step)
    padding = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    padded = F.pad(volume, padding)
    found = slide_over(features, padded, window, batch_size=batch_size, overlap=overlap, device=device)
    d, h, w = (slice(low // step, -(-(low + side) // step)) for low, side in zip(before, sides, strict=True))
    return found, found[..., d, h, w].mean(dim=(-3, -2, -1))


@dataclass(frozen=True)
class WindowReader:
    """Cuts whole volumes into windows side by side, for `Entry.parts`; the air around a volume is left out."""

    transform: VolumeTransform
    window: Shape
    step: int
    """Voxels along a side of a cell of the network's last map."""
    stride: int | None = None
    """Voxels along a side of a cell of the map that is averaged; None for `step`."""

    def __call__(self, image: Any) -> Parts:
        """Return the windows of a volume, and the share of each cell of their maps in its mean."""
        volume = torch.from_numpy(place_volume(image, self.transform).image)[None]
        return cut_windows(volume, self.window, self.step, self.stride)


def cut_windows(volume: Tensor, window: Shape, step: int, stride: int | None = None) -> Parts:
    """Return windows `(n, 1, *window)` of a volume, and weights `(n, *cells)` for the mean of their maps.

    Args:
        volume: `(1, D, H, W)`; it is padded, and the last window of an axis laid, as `pool_over` does without overlap.
        window: Voxels of a window along each axis, multiples of `step`.
        step: Voxels along a side of a cell of the network's last map.
        stride: Of the map that is averaged, a divisor of `step`; None for `step`.
    """
    cell, sides = stride or step, tuple(volume.shape[1:])
    before, after = margins(sides, window, step)
    padded = F.pad(volume, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])
    axes = [
        _shares(low, side, whole, whole_side, cell)
        for low, side, whole, whole_side in zip(before, sides, window, padded.shape[1:], strict=True)
    ]
    windows, weights, corners = [], [], []
    for (x, a), (y, b), (z, c) in product(*axes):
        windows.append(padded[:, x : x + window[0], y : y + window[1], z : z + window[2]])
        weights.append(a[:, None, None] * b[:, None] * c)
        corners.append((x, y, z))
    return Parts((torch.stack(windows),), torch.stack(weights), corners=tuple(corners))


def _shares(before: int, side: int, window: int, padded: int, cell: int) -> list[tuple[int, Tensor]]:
    """Start of each window along one axis, and what each of its cells counts in the mean along that axis."""
    starts = [min(first, padded - window) for first in range(0, padded, window)]
    covered = torch.zeros(padded // cell, dtype=torch.float64)
    for start in starts:
        covered[start // cell : (start + window) // cell] += 1
    inside = torch.zeros_like(covered)
    inside[before // cell : -(-(before + side) // cell)] = 1
    share = inside / covered / inside.sum()
    return [(start, share[start // cell : (start + window) // cell].float()) for start in starts]


def margins(sides: Shape, window: Shape, step: int) -> tuple[Shape, Shape]:
    """Voxels before and after each axis of a volume that fill it up to whole cells and to at least one window."""
    lacking = [max(whole, -(-side // step) * step) - side for side, whole in zip(sides, window, strict=True)]
    before = tuple(n // 2 for n in lacking)
    return before, tuple(n - low for n, low in zip(lacking, before, strict=True))


def check_axes_of(volume: Tensor) -> None:
    """Raise `InputContractError` where this is neither a volume with its channels nor a batch of them."""
    if volume.ndim not in (4, 5):
        raise InputContractError(
            f"the volume has shape {tuple(volume.shape)}: (1, D, H, W) or a batch (N, 1, D, H, W) is expected"
        )
