"""Classes of the pixels or voxels of whole images, window by window, in memory that does not grow with their length.

Windows go from one end of an axis to the other, so that the slices behind them are done: nothing more is kept of these
than what is asked for. Where windows overlap their logits are averaged, as MONAI's `sliding_window_inference` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import TypeAlias

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.nn import functional as F

from zoo.entry import Windows
from zoo.errors import InputContractError, OptionError
from zoo.images import MOST_CLASSES
from zoo.networks.sizes import check_windows
from zoo.networks.windows import margins

Shape: TypeAlias = tuple[int, ...]
Predict: TypeAlias = Callable[[Tensor], Tensor]
"""Windows `(N, C, *size)` to logits `(N, K, *size)`."""

_LEAST_WEIGHT = 1e-3
"""Of a voxel in the corner of a window (MONAI, inferers/utils.py)."""


def find_classes(
    predict: Predict,
    image: Tensor,
    windows: Windows,
    *,
    device: torch.device | None = None,
    sums: torch.dtype = torch.float32,
) -> Tensor:
    """Return the class of each pixel or voxel of an image, uint8 `(*space)`, on the device of the image.

    Args:
        predict: A network in eval mode; no gradients are kept.
        image: `(C, *space)`, as a transform makes it, in two or three dimensions.
        windows: With a size. An image smaller than a window is filled up with 0 on both sides.
        device: Where the network is; None for that of the image.
        sums: Type of the sums of logits: half precision takes half the memory, where there are a hundred classes.

    Raises:
        InputContractError: A sum of logits is NaN, or beyond the numbers of its type.
        OptionError: Numbers of `windows` are out of their range, or there are more classes than uint8 tells apart.
    """
    labels = torch.empty(image.shape[1:], dtype=torch.uint8, device=image.device)
    for axis, at, logits in stitch(predict, image, windows, device, sums):
        if len(logits) > MOST_CLASSES:
            raise OptionError(f"the network has {len(logits)} classes; labels of one byte tell {MOST_CLASSES} apart")
        best, found = logits.max(dim=0)
        if not best.isfinite().all():
            beyond = " or beyond half precision, 65504," if sums is torch.half else " or infinite"
            raise InputContractError(
                f"the network's logits are NaN{beyond} in this image: its labels would mean nothing. Are the weights "
                "those of a segmenter that was trained?"
            )
        labels.select(axis, at).copy_(found)
    return labels


def find_logits(predict: Predict, image: Tensor, windows: Windows, *, device: torch.device | None = None) -> Tensor:
    """Return the logits of a whole image, float32 `(K, *space)`; arguments as `find_classes` takes them."""
    found = list(stitch(predict, image, windows, device, torch.float32))
    axis, _, _ = found[0]
    return torch.stack([logits for _, _, logits in found], dim=axis + 1)


@torch.no_grad()
def stitch(
    predict: Predict, image: Tensor, windows: Windows, device: torch.device | None, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield an axis, a position on it and the logits `(K, *others)` there, float32, from the first to the last.

    Arguments are those of `find_classes`; `dtype` is its `sums`.
    """
    check_windows(windows.overlap, windows.at_once)
    size, axis = windows.size, _axis(image.shape[1:], windows.size)
    filled, before = _fill_up(image, size)
    weights = _weights(windows).to(image.device)
    starts = [_starts(side, n, windows.overlap) for side, n in zip(filled.shape[1:], size, strict=True)]
    others = list(product(*(starts[:axis] + starts[axis + 1 :])))
    inside = tuple(slice(low, low + n) for low, n in zip(before, image.shape[1:], strict=True))
    across = (slice(None), *inside[:axis], *inside[axis + 1 :])
    sums, counts = dict[int, Tensor](), dict[int, Tensor]()
    for top, next_top in pairwise((*starts[axis], filled.shape[axis + 1])):
        corners = [(*corner[:axis], top, *corner[axis:]) for corner in others]
        for first in range(0, len(corners), windows.at_once):
            cuts = [_cut(corner, size) for corner in corners[first : first + windows.at_once]]
            batch = torch.stack([filled[:, *cut] for cut in cuts]).to(device or image.device)
            for logits, cut in zip(predict(batch), cuts, strict=True):
                weighted = logits.to(image.device, torch.float32) * weights
                _add(sums, weighted.to(dtype), cut, axis, filled.shape[1:])
                _add(counts, weights[None], cut, axis, filled.shape[1:])
        for at in range(top, next_top):
            found, count = sums.pop(at), counts.pop(at)
            if inside[axis].start <= at < inside[axis].stop:
                yield axis, at - inside[axis].start, found[across].float() / count[across]


def _add(sums: dict[int, Tensor], found: Tensor, cut: tuple[slice, ...], axis: int, shape: Sequence[int]) -> None:
    """Add what was found in a window `(K, *size)` to the sums `(K, *others)` of the slices that it lies in."""
    others = (slice(None), *cut[:axis], *cut[axis + 1 :])
    for i, at in enumerate(range(cut[axis].start, cut[axis].stop)):
        if at not in sums:
            sides = (*shape[:axis], *shape[axis + 1 :])
            sums[at] = torch.zeros((len(found), *sides), dtype=found.dtype, device=found.device)
        sums[at][others] += found.select(axis + 1, i)


def _axis(sides: Shape, size: Shape) -> int:
    """Return the axis along which an image has the most windows: what is kept at a time is then the least."""
    lengths = [side / n for side, n in zip(sides, size, strict=True)]
    return lengths.index(max(lengths))


def _weights(windows: Windows) -> Tensor:
    """Return what each pixel or voxel of a window counts, float32 `(*size)`."""
    mode = "gaussian" if windows.gaussian else "constant"
    found: Tensor = compute_importance_map(windows.size, mode=mode, sigma_scale=0.125).float()
    return found.clamp(min=max(found.min().item(), _LEAST_WEIGHT))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis; the last one ends with it."""
    step = max(1, int(side * (1 - overlap)))
    return [min(at, length - side) for at in range(0, length - side + step, step)]


def _cut(corner: Shape, size: Shape) -> tuple[slice, ...]:
    return tuple(slice(at, at + n) for at, n in zip(corner, size, strict=True))


def _fill_up(image: Tensor, size: Shape) -> tuple[Tensor, Shape]:
    """Return an image of at least one window, and how far the given one lies from its first corner."""
    before, after = margins(tuple(image.shape[1:]), size, 1)
    around = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(image, around), before
