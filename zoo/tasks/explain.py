"""Pictures of what a fine-tuned network says of an image: where it looked, or the labels that it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import NONZERO
from zoo.files import write_atomically
from zoo.images import read_volume, voxel_sizes
from zoo.messages import printable
from zoo.tasks.occlusion import Occlusion, occlude
from zoo.tasks.panels import draw_panels, label_colours, overlaid, planes_at, shades, with_heat
from zoo.tasks.predictor import Predictor
from zoo.transforms import ImageTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.entry import Labels, Transform
    from zoo.tasks.panels import Panel

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
    parts = predictor.embedder.reader(image).scaled()
    rows = predictor.embedder.rows(parts).numpy()
    targets = choose_targets(predictor, rows.sum(0))
    panels: list[Panel] = []
    for target in targets:
        found = occlude(predictor, parts, target.number)
        panels += _panels(predictor, image, found, target)
    lines = [printable(title), _legend(predictor), _rule(predictor, targets)]
    picture = draw_panels(panels, "\n".join(filter(None, lines)))
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


def _panels(predictor: Predictor, image: Any, found: Occlusion, target: Target) -> list[Panel]:
    """Two panels of a film or slice, the image and the colours over it; of a volume three, its planes."""
    import numpy as np

    strongest = float(np.abs(found.falls).max())
    heat = found.falls / max(strongest, 1e-12)
    said = said_of_falls(found.falls, _score_name(predictor))
    title = _cut(target.title, _TITLE)
    if found.image.ndim == 2:
        grey = _film(predictor, image, found)
        size = " x ".join(map(str, found.image.shape))
        shown = with_heat(grey, _stretched(heat, grey.shape))
        plain = (255 * grey).round().astype(np.uint8)
        return [
            ("Image", _cut(f"{found.part or 'film'}; the network takes {size} pixels", _SUBTITLE), plain),
            (title, _cut(said, _SUBTITLE), shown),
        ]
    axes, spacing = _lie(predictor)
    seen = found.image
    if predictor.input.normalise == NONZERO:  # around the patient is 0, amid the values of tissue
        seen = np.where(seen == 0, seen.min(), seen)
    grey = shades(seen)
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


def said_of_falls(falls: NDArray[Any], score: str) -> str:
    """How far hiding a square moves a score, down and up: the fullest colour is the larger of the two."""
    down, up = max(0.0, float(falls.max())), max(0.0, -float(falls.min()))
    return f"hiding moves the {score} {-down:+.2g} to {up:+.2g}" if max(down, up) > 0 else "hiding changes nothing"


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


def _rule(predictor: Predictor, targets: Sequence[Target]) -> str:
    """How probabilities become decisions; of many labels, for those that are drawn."""
    outputs = predictor.outputs
    if outputs.kind != "labels":
        return outputs.rule(predictor.classes)
    drawn = [target.number for target in targets]
    of_drawn = replace(outputs, thresholds=tuple(outputs.thresholds[i] for i in drawn))
    return of_drawn.rule([predictor.classes[i] for i in drawn])


def _score_name(predictor: Predictor) -> str:
    return "number" if predictor.outputs.kind == "numbers" else "logit"


def _cut(text: str, most: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def draw_found(
    transform: Transform, classes: Sequence[str], image: Path, found: Labels, file: Path, *, title: str
) -> Path:
    """Write a picture of the labels that were found in an image, as a PNG, whole or not at all.

    Args:
        transform: Of the network.
        classes: Names of the labels, the background first.
        image: Path of the image.
        found: Its labels on its own grid.
        file: The PNG; its folder is made.
        title: What the image is called.
    """
    labels, affine = found
    if labels.ndim == 2:
        placed: Any = transform
        grey = _stretched(shades(placed.place(image)[0][0].numpy()), labels.shape)
        panels = [("Image", _size(labels), overlaid(grey, 0 * labels)), ("Labels", "", overlaid(grey, labels))]
    else:
        panels = _labelled_planes(shades(read_volume(image, least=(1, 1, 1)).values), labels, affine)
    drawn = draw_panels(panels, printable(title), legend=label_colours(list(map(printable, classes))[1:]))
    write_atomically(file, lambda temporary: drawn.save(temporary, format="PNG"))
    return file


def _labelled_planes(grey: NDArray[Any], labels: NDArray[Any], affine: NDArray[Any] | None) -> list[Panel]:
    """Three planes of a volume, each where most of it is labelled."""
    from nibabel import orientations

    point = [int((labels > 0).sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    point = point if labels.any() else [side // 2 for side in labels.shape]
    axes = None if affine is None else tuple(map(str, orientations.aff2axcodes(affine)))
    lie = axes, None if affine is None else tuple(map(float, voxel_sizes(affine)))
    pairs = zip(planes_at(grey, point, *lie), planes_at(labels, point, *lie), strict=True)
    title = "Labels" if labels.any() else "Nothing but background"
    return [
        ("" if number else title, name, overlaid(*_enlarged(plane, below)))
        for number, ((name, plane), (_, below)) in enumerate(pairs)
    ]


def _enlarged(plane: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A plane and its labels in as many pixels as are shown: labels keep their edges."""
    import numpy as np

    shape = _larger(plane.shape)
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, plane.shape, strict=True))
    return _stretched(plane, shape), labels[rows][:, columns]


def _size(pixels: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, pixels.shape))} pixels"
