"""Pictures of what a fine-tuned network looked at, by occlusion: squares of the image are hidden one after the other.

Occlusion (Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014) asks the network itself
and takes nothing of it for granted: it is the same for convolutions and transformers, and for each way of pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import Parts
from zoo.files import write_atomically
from zoo.messages import printable
from zoo.tasks.panels import draw_panels, planes_at, shades, with_heat
from zoo.tasks.predictor import Predictor
from zoo.transforms import ImageTransform, SliceTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from zoo.tasks.panels import Panel

_BOXES = {2: 49, 3: 125}
"""Squares or cubes that an image is divided into, about, by its axes: 7 or 5 along each. A second grid of them lies
between those of the first."""
_MOST_TARGETS = 3
_SHOWN_SIDE = 384
_TITLE, _SUBTITLE = 36, 46
"""Letters that have room over a panel."""


@dataclass(frozen=True, eq=False)
class Target:
    """An output of which a picture is drawn."""

    number: int
    title: str
    """Its name, and what the network says of it."""


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


def draw(predictor: Predictor, image: Any, file: Path, *, title: str) -> Path:
    """Write a picture of what the network looked at in an image, as a PNG, whole or not at all.

    Of labels those are drawn that hold by their thresholds, the surest three at most; if none does, and of classes, the
    most probable one. Of numbers the first three are.

    Args:
        predictor: Of labels, classes or numbers.
        image: What the predictor takes.
        file: The PNG; its folder is made.
        title: What the image is called.

    Raises:
        InputContractError: As of a predictor.
    """
    parts = predictor.embedder.reader(image)
    rows = predictor.embedder.rows(parts).numpy()
    targets = choose_targets(predictor, rows.sum(0))
    panels: list[Panel] = []
    for target in targets:
        found = occlude(predictor, parts, target.number)
        panels += _panels(predictor, image, found, target)
    picture = draw_panels(panels, f"{printable(title)}\n{_legend(predictor)}")
    write_atomically(file, lambda temporary: picture.save(temporary, format="PNG"))
    return file


def choose_targets(predictor: Predictor, values: NDArray[Any]) -> list[Target]:
    """Return the outputs of which pictures are drawn, for the outputs `(K,)` of an image."""
    outputs, names = predictor.outputs, predictor.classes
    answers = outputs.answers(values[None])
    if outputs.kind == "numbers":
        return [Target(i, f"{names[i]}: {answers[0, i]:.4g}") for i in range(len(names))][:_MOST_TARGETS]
    order = [int(i) for i in answers[0].argsort()[::-1]]
    if outputs.kind == "labels":
        held = outputs.decisions(answers)[0]
        order = [i for i in order if held[i]][:_MOST_TARGETS] or order[:1]
    else:
        order = [int(outputs.decisions(answers)[0])]
    return [Target(i, f"{names[i]}: probability {answers[0, i]:.2f}") for i in order]


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
    volume = parts
    for side in space:
        volume *= side
    return max(1, min(round((volume / _BOXES[len(space)]) ** (1 / len(space))), *space))


def _hidden(
    predictor: Predictor, parts: Parts, number: int, side: int
) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield the boxes of a part, and what the network returns of it with each of them hidden: outputs `(K,)`."""
    import torch

    part, size = parts.inputs[0][number], predictor.embedder.batch_size
    fill = _surroundings(part, 3 * side)
    boxes = [box for box in _boxes(part.shape[1:], side) if not _is_same(part, fill, box)]
    for first in range(0, len(boxes), size):
        chosen = boxes[first : first + size]
        changed = part[None].repeat(len(chosen), *([1] * part.ndim))
        for i, box in enumerate(chosen):
            changed[(i, slice(None), *box)] = fill[(slice(None), *box)]
        others = [each[number : number + 1].expand(len(chosen), *each.shape[1:]) for each in parts.inputs[1:]]
        weights = parts.weights
        if weights is not None:
            weights = weights[number : number + 1].expand(len(chosen), *weights.shape[1:])
        with torch.inference_mode():
            rows = predictor.embedder.rows(Parts((changed, *others), weights, parts.alone))
        yield from zip(chosen, rows.numpy(), strict=True)


def _boxes(space: Sequence[int], side: int) -> list[tuple[slice, ...]]:
    """Boxes side by side that cover a part, as even as they can be, and as many less one an axis shifted by a half."""
    counts = [max(1, round(length / side)) for length in space]
    found: list[tuple[slice, ...]] = []
    for shift in (0.0, 0.5):
        axes = []
        for length, count in zip(space, counts, strict=True):
            halves = shift if count > 1 else 0.0
            edges = [round((i + halves) * length / count) for i in range(count + 1 - bool(halves))]
            axes.append([slice(low, high) for low, high in pairwise(edges)])
        found += product(*axes)
    return found if max(counts) > 1 else found[:1]


def _is_same(part: Tensor, fill: Tensor, box: tuple[slice, ...]) -> bool:
    """Whether there is nothing to hide, as in the air around a patient."""
    import torch

    own = (slice(None), *box)
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


def _panels(predictor: Predictor, image: Any, found: Occlusion, target: Target) -> list[Panel]:
    """Two panels of a film or slice, the image and the colours over it; of a volume three, its planes."""
    import numpy as np

    strongest = float(np.abs(found.falls).max())
    heat = found.falls / max(strongest, 1e-12)
    most = float(found.falls.max())
    said = (
        f"occlusion: {_score_name(predictor)} falls by {most:.3g} at most" if most > 0 else "occlusion: nothing in it"
    )
    title = _cut(target.title, _TITLE)
    if found.image.ndim == 2:
        grey = _film(predictor, image, found)
        part = found.part or "as the network is given it"
        size = " x ".join(map(str, found.image.shape))
        shown = with_heat(grey, _stretched(heat, grey.shape))
        plain = (255 * grey).round().astype(np.uint8)
        return [("Image", _cut(f"{part}, {size} pixels", _SUBTITLE), plain), (title, _cut(said, _SUBTITLE), shown)]
    axes, spacing = _lie(predictor)
    grey = shades(found.image)
    panels: list[Panel] = []
    for (name, plane), (_, colours) in zip(
        planes_at(grey, found.point, axes, spacing), planes_at(heat, found.point, axes, spacing), strict=True
    ):
        line = f"{name}, {found.part}" if found.part else name
        smooth = _stretched(plane, _larger(plane.shape)), _stretched(colours, _larger(plane.shape))
        panels.append(
            (title if not panels else "", line if panels else _cut(f"{line}; {said}", 60), with_heat(*smooth))
        )
    return panels


def _film(predictor: Predictor, image: Any, found: Occlusion) -> NDArray[Any]:
    """A film in more pixels than a network takes, where it takes few; a slice as it is. From 0 to 1."""
    transform: Any = predictor.embedder.transform
    shown = found.image
    if isinstance(transform, ImageTransform) and (times := _SHOWN_SIDE // min(shown.shape)) > 1:
        shown = transform.finer(times)(image)[0].numpy()
    return shades(shown)


def _lie(predictor: Predictor) -> tuple[tuple[str, ...] | None, tuple[float, ...] | None]:
    """Where the axes of the network's input point to, and the size of its voxels, as far as its contract says."""
    import numpy as np
    from nibabel import orientations

    contract = predictor.input
    if contract.affine is not None:
        affine = np.array(contract.affine)
        axes = orientations.aff2axcodes(affine)
        return tuple(map(str, axes)), tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    spacing = contract.spacing if contract.spacing is not None and len(contract.spacing) == 3 else None
    return (tuple(contract.orientation) if contract.orientation else None), spacing


def _larger(shape: tuple[int, ...]) -> tuple[int, int]:
    times = _SHOWN_SIDE / max(shape)
    return max(1, round(shape[0] * times)), max(1, round(shape[1] * times))


def _stretched(plane: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Bring `(H, W)` to another shape, by linear steps."""
    import torch
    from torch.nn.functional import interpolate

    given = torch.from_numpy(plane.copy())[None, None].float()
    found: NDArray[Any] = interpolate(given, size=tuple(shape), mode="bilinear", align_corners=False)[0, 0].numpy()
    return found


def _legend(predictor: Predictor) -> str:
    score = _score_name(predictor)
    return f"Occlusion: the {score} falls where red is hidden, which speaks for the answer, and rises where blue is."


def _score_name(predictor: Predictor) -> str:
    return "number" if predictor.outputs.kind == "numbers" else "logit"


def _cut(text: str, most: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
