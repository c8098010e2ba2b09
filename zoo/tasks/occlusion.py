"""What a fine-tuned network looked at, by occlusion: squares of the image are hidden one after the other.

Occlusion (Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014) asks the network itself
and takes nothing of it for granted: it is the same for convolutions and transformers, and for each way of pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.entry import Parts
from zoo.tasks.predictor import Predictor
from zoo.transforms import SliceTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Box: TypeAlias = tuple[slice, ...]

_BOXES = {2: 49, 3: 64}
"""Squares or cubes that an image is divided into, about, by its axes: 7 or 4 along each. A second grid of them lies
between those of the first."""


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What hiding each square of an image, or of the part of it that speaks most, changes."""

    image: NDArray[Any]
    """What the network is given, its first channel: `(H, W)` or `(D, H, W)`."""
    falls: NDArray[Any]
    """Of the same shape: by how much the score falls where the square around a pixel is hidden; negative if it rises.

    The score of labels and classes is the logit, the logarithm of the odds; of numbers the number itself.
    """
    point: tuple[int, ...]
    """Middle of the square that lowers the score most where it is hidden."""
    part: str
    """Which part of the image it is; empty for the whole."""


def occlude(predictor: Predictor, parts: Parts, output: int) -> Occlusion:
    """Hide squares or cubes of an image one after the other, and see how the score of an output changes.

    What is hidden gets the values of its wider surroundings, so that no edge appears that could itself be taken for a
    finding. Of an image whose parts lie in one volume all parts are looked at; else, as of slices, the part alone that
    raises the score most.

    Args:
        predictor: The network.
        parts: Of one image, from `Embedder.reader`.
        output: Which of the outputs.
    """
    import numpy as np

    rows = predictor.embedder.rows(parts).numpy()
    looked_at: Sequence[int] = range(len(rows))
    if parts.corners is None and len(rows) > 1:
        looked_at = [int(rows[:, output].argmax())]
    first = parts.inputs[0]
    space = tuple(first.shape[2:])
    corners = parts.corners or ((0,) * len(space),) * len(rows)
    shape = tuple(max(corners[p][a] for p in looked_at) + space[a] for a in range(len(space)))
    image, falls, covers = (np.zeros(shape, np.float32) for _ in range(3))
    side, whole, largest, point = _side_of(space, len(looked_at)), rows.sum(0), -np.inf, tuple(n // 2 for n in shape)
    score = _score(predictor, whole, output)
    for p in looked_at:
        here = tuple(slice(c, c + s) for c, s in zip(corners[p], space, strict=True))
        image[here] = first[p, 0].float().numpy()
        for box, row in _hidden(predictor, parts, p, side):
            there = tuple(slice(b.start + c, b.stop + c) for b, c in zip(box, corners[p], strict=True))
            fall = score - _score(predictor, whole - rows[p] + row, output)
            falls[there] += fall
            covers[there] += 1
            if fall > largest:
                largest, point = fall, tuple((b.start + b.stop) // 2 for b in there)
    what = "slice" if isinstance(predictor.embedder.transform, SliceTransform) else "part"
    name = f"{what} {looked_at[0] + 1} of {len(rows)}" if len(looked_at) < len(rows) else ""
    return Occlusion(image, falls / np.maximum(covers, 1), point, name)


def _score(predictor: Predictor, values: NDArray[Any], output: int) -> float:
    """The logarithm of the odds of a label or class; a number as the table has it."""
    import numpy as np

    if predictor.outputs.kind == "numbers":
        return float(predictor.outputs.answers(values[None])[0, output])
    if predictor.outputs.kind == "labels":
        return float(values[output])
    others = np.delete(values, output)
    return float(values[output] - np.logaddexp.reduce(others))


def _side_of(space: Sequence[int], parts: int) -> int:
    """Pixels along a side of a square or cube, so that there are about as many of them as planned in all parts."""
    side: float = (parts * prod(space) / _BOXES[len(space)]) ** (1 / len(space))
    return max(1, min(round(side), *space))


def _hidden(predictor: Predictor, parts: Parts, number: int, side: int) -> Iterator[tuple[Box, NDArray[Any]]]:
    """Yield the boxes of a part, and what the network returns of it with each of them hidden: outputs `(K,)`."""
    part, size = parts.inputs[0][number], predictor.embedder.batch_size
    fill = _surroundings(part, 3 * side)
    boxes = [box for box in _boxes(part.shape[1:], side) if not _is_same(part, fill, box)]
    for first in range(0, len(boxes), size):
        chosen = boxes[first : first + size]
        changed = part[None].repeat(len(chosen), *([1] * part.ndim))
        for i, box in enumerate(chosen):
            changed[i][_in_all_channels(box)] = fill[_in_all_channels(box)]
        others = [each[number : number + 1].expand(len(chosen), *each.shape[1:]) for each in parts.inputs[1:]]
        weights = parts.weights
        if weights is not None:
            weights = weights[number : number + 1].expand(len(chosen), *weights.shape[1:])
        rows = predictor.embedder.rows(Parts((changed, *others), weights, parts.alone))
        yield from zip(chosen, rows.numpy(), strict=True)


def _boxes(space: Sequence[int], side: int) -> list[Box]:
    """Boxes side by side that cover a part, as even as they can be, and as many less one an axis shifted by a half."""
    counts = [max(1, round(length / side)) for length in space]
    found: list[Box] = []
    for shift in (0.0, 0.5):
        axes = []
        for length, count in zip(space, counts, strict=True):
            halves = shift if count > 1 else 0.0
            edges = [round((i + halves) * length / count) for i in range(count + 1 - bool(halves))]
            axes.append([slice(low, high) for low, high in pairwise(edges)])
        found += product(*axes)
    return found if max(counts) > 1 else found[:1]


def _in_all_channels(box: Box) -> Box:
    return (slice(None), *box)


def _is_same(part: Tensor, fill: Tensor, box: Box) -> bool:
    """Whether there is nothing to hide, as in the air around a patient."""
    import torch

    own = _in_all_channels(box)
    return torch.allclose(part[own], fill[own], atol=1e-4)


def _surroundings(part: Tensor, width: int) -> Tensor:
    """Return `(C, *space)` with means over squares or cubes of this width, and linear steps between them."""
    from torch.nn import functional as F

    space = part.shape[1:]
    cells = [max(1, round(length / width)) for length in space]
    pool, mode = (F.adaptive_avg_pool2d, "bilinear") if len(space) == 2 else (F.adaptive_avg_pool3d, "trilinear")
    means: Any = pool(part[None], tuple(cells))  # type: ignore[arg-type]
    found: Tensor = F.interpolate(means, size=tuple(space), mode=mode, align_corners=False)[0]
    return found
