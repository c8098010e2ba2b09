"""Pictures of results: images in a row with their titles; planes of a volume; colours over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Pixels: TypeAlias = NDArray[np.uint8]
    Panel: TypeAlias = tuple[str, str, Pixels]
    """Title, the line below it, and pixels `(H, W)` or `(H, W, 3)`."""
    Colour: TypeAlias = tuple[int, int, int]

PANEL_SIDE = 384
_GAP = 16
_TITLE = 60
_FOOTER = 40
_LINE = 24
_PLANES = ("sagittal", "coronal", "axial")
_SHOWN = ("L", "P", "S")
"""Where the axes of a volume point to once it lies as planes are shown."""
_PAPER = "white"
_FOR, _AGAINST = (230, 60, 30), (40, 110, 230)
_STRONGEST = 0.65
"""Opacity of the strongest colour: what lies below it stays to be seen."""
_COLOURS = (
    (230, 60, 30),
    (40, 140, 230),
    (60, 180, 75),
    (240, 190, 20),
    (150, 80, 200),
    (0, 180, 180),
    (240, 120, 180),
)
"""Of the labels 1, 2, ..., again from the first one on where there are more."""


def draw_panels(panels: Sequence[Panel], footer: str, legend: Sequence[tuple[str, Colour]] = ()) -> Image.Image:
    """Return one picture with every panel in a row, and a line or several at the foot.

    Panels are brought to `PANEL_SIDE` pixels along their longer side with bicubic interpolation.

    Args:
        panels: Titles, lines below them, and pixels.
        footer: Lines.
        legend: Words for one more line, each with the colour that it is written in.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, lines = _GAP + len(panels) * (PANEL_SIDE + _GAP), footer.split("\n")
    canvas = Image.new("RGB", (width, _TITLE + PANEL_SIDE + _FOOTER + _LINE * (len(lines) - 1 + bool(legend))), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (title, subtitle, pixels) in enumerate(panels):
        left = _GAP + index * (PANEL_SIDE + _GAP)
        draw.text((left, 8), title, fill="black", font=ImageFont.load_default(20))
        draw.text((left, 34), subtitle, fill="dimgray", font=ImageFont.load_default(16))
        scale = PANEL_SIDE / max(pixels.shape[:2])
        wide, tall = (max(1, round(side * scale)) for side in pixels.shape[1::-1])
        panel = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BICUBIC)
        canvas.paste(panel.convert("RGB"), (left + (PANEL_SIDE - wide) // 2, _TITLE + (PANEL_SIDE - tall) // 2))
    for number, line in enumerate(lines):
        foot = (_GAP, _TITLE + PANEL_SIDE + 10 + _LINE * number)
        draw.text(foot, line, fill="dimgray", font=ImageFont.load_default(16))
    start = float(_GAP)
    for word, colour in legend:
        foot = (round(start), _TITLE + PANEL_SIDE + 10 + _LINE * len(lines))
        draw.text(foot, word, fill=colour, font=ImageFont.load_default(16))
        start += draw.textlength(word, font=ImageFont.load_default(16)) + _GAP
    return canvas


def label_colours(names: Sequence[str]) -> list[tuple[str, Colour]]:
    """Return the legend of labels 1, 2, ... by their names, in the colours of `overlaid`."""
    return [(name, _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)]


def shades(values: NDArray[Any]) -> NDArray[Any]:
    """Return values of any range as float32 from 0 to 1: the darkest and brightest hundredth are cut off."""
    import numpy as np

    low, high = np.percentile(values, (1, 99))
    found: NDArray[Any] = ((values - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return found


def with_heat(grey: NDArray[Any], heat: NDArray[Any]) -> Pixels:
    """Return an image `(H, W)` from 0 to 1 in colours `(H, W, 3)`: red where `heat` is positive, blue where negative.

    Args:
        grey: The image.
        heat: `(H, W)`, from -1 to 1; the colour is the stronger, the farther from 0.
    """
    import numpy as np

    colour = np.where(heat[..., None] > 0, np.array(_FOR), np.array(_AGAINST))
    return _mixed(grey, colour, _STRONGEST * np.abs(heat).clip(0, 1))


def overlaid(grey: NDArray[Any], labels: NDArray[Any]) -> Pixels:
    """Return an image `(H, W)` from 0 to 1 in colours `(H, W, 3)`, one for each label; 0 has none."""
    import numpy as np

    colour = np.array(_COLOURS)[(labels.astype(np.int64) - 1) % len(_COLOURS)]
    return _mixed(grey, colour, np.where(labels > 0, 0.5, 0.0))


def _mixed(grey: NDArray[Any], colour: NDArray[Any], opacity: NDArray[Any]) -> Pixels:
    import numpy as np

    mixed = 255 * grey[..., None] * (1 - opacity[..., None]) + colour * opacity[..., None]
    found: Pixels = np.rint(mixed.clip(0, 255)).astype(np.uint8)
    return found


def planes_at(
    volume: NDArray[Any], point: Sequence[int], axes: Sequence[str] | None, spacing: Sequence[float] | None
) -> list[tuple[str, NDArray[Any]]]:
    """Return the three planes of a volume through a voxel, each with its name.

    Where it is known how the volume lies they are sagittal, coronal and axial, the patient's right and front on the
    left-hand side, head up, or the front of an axial plane. Pixels are square.

    Args:
        volume: `(i, j, k)`.
        point: The voxel `(i, j, k)`.
        axes: Where the axes point to, as `("R", "A", "S")`; None if that is not known.
        spacing: Size of a voxel in mm along each axis; None for voxels taken as cubes.
    """
    import numpy as np
    from nibabel import orientations

    where, steps = np.zeros(volume.shape, bool), np.ones(3) if spacing is None else np.asarray(spacing, float)
    where[tuple(point)] = True
    names: Sequence[str] = ("across the first axis", "across the second axis", "across the third axis")
    if axes is not None:
        turn = orientations.ornt_transform(orientations.axcodes2ornt(tuple(axes)), orientations.axcodes2ornt(_SHOWN))
        volume, where = (orientations.apply_orientation(each, turn) for each in (volume, where))
        steps, names = steps[np.argsort(turn[:, 0])], _PLANES
    at = np.argwhere(where)[0]
    found = []
    for axis, name in enumerate(names):
        columns, rows = (each for each in range(3) if each != axis)
        plane = np.take(volume, at[axis], axis).T  # rows run along the later axis
        upright = plane[::-1] if rows == 2 else plane  # which points to the head
        found.append((name, _square(upright, steps[rows], steps[columns])))
    return found


def _square(plane: NDArray[Any], tall: float, wide: float) -> NDArray[Any]:
    """Repeat the rows or columns of a plane so that its pixels are as good as square."""
    import numpy as np

    step = min(tall, wide)
    rows, columns = (np.arange(round(n * s / step)) * step / s for n, s in zip(plane.shape, (tall, wide), strict=True))
    found: NDArray[Any] = plane[rows.astype(int).clip(max=plane.shape[0] - 1)][
        :, columns.astype(int).clip(max=plane.shape[1] - 1)
    ]
    return found
