"""Small charts as SVG for a page: curves with bands, clouds of points, bars of intervals.

Each line or class has its own marker beside its own colour, so that neither print nor colour blindness loses one. The
texts are in the font of the page, and ElementTree escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from xml.etree import ElementTree as Xml

from zoo.messages import printable


class Look(NamedTuple):
    """How a line or class is drawn."""

    colour: str
    marker: str
    """A path of some 8 units a side around the origin."""
    dash: str = ""


_COLOURS = ("#0b62a4", "#c4500b", "#0a7f5a", "#8e3b8a", "#8a6d00", "#3c4fc4", "#a32036", "#4b7a0a")
"""At least 4.5 to 1 against white."""
_MARKERS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "m-3.5-3.5h7v7h-7z",  # square
    "m0-4.6l4.4 7.8h-8.8z",  # triangle
    "m0-5l4.4 5l-4.4 5l-4.4-5z",  # diamond
    "m0 4.6l4.4-7.8h-8.8z",  # triangle on its tip
    "m-1.4-4.6h2.8v3.2h3.2v2.8h-3.2v3.2h-2.8v-3.2h-3.2v-2.8h3.2z",  # cross
    "m-4.4 0l2.2-3.9h4.4l2.2 3.9l-2.2 3.9h-4.4z",  # hexagon
    "m-4.5-2h9v4h-9z",  # bar
)
_RAMP = ("#440154", "#3b528b", "#1f7f7a", "#4c8c2b", "#a07800")
"""From small to large, as matplotlib's viridis but for its light end, which white paper swallows."""
_DASHES = ("6 4", "9 3 2 3")
_INK, _FAINT = "#333333", "#d9d9d9"
_FONT = 14
PLAIN = Look("#6b6b6b", _MARKERS[3], "1.5 3")
"""Of plain intensities, which every network is compared with."""
REST = Look("#767676", "m-2.5-2.5h5v5h-5z")
"""Of all that has no look of its own."""


def looks(count: int) -> list[Look]:
    """The looks of lines or classes; from the ninth on colours come again, with other markers."""
    return [Look(_COLOURS[i % 8], _MARKERS[(i + i // 8) % 8]) for i in range(count)]


def twin_looks(count: int) -> list[Look]:
    """The looks of random weights: dark grey and dashed."""
    return [Look("#3d3d3d", _MARKERS[(i + 1) % 8], _DASHES[i // 8 % 2]) for i in range(count)]


def ramp() -> list[Look]:
    """The looks of five steps from small to large."""
    return [Look(colour, marker) for colour, marker in zip(_RAMP, _MARKERS[: len(_RAMP)], strict=True)]


@dataclass(frozen=True)
class Curve:
    """A line with its band."""

    look: Look
    points: Sequence[tuple[float, float, float, float]]
    """x, y, and the lower and upper end of the band there; x rises."""


class _Frame:
    """A drawing with its axes, from numbers to units of the drawing; y points up.

    What is drawn `inside` is cut off below the axis.
    """

    WIDTH, HEIGHT = 460, 320
    LEFT, RIGHT, TOP = 52, 14, 12

    def __init__(self, title: str, xs: Sequence[float], ys: Sequence[float], *, bottom: int = 48) -> None:
        self.bottom = self.HEIGHT - bottom
        self.svg = Xml.Element(
            "svg", {"viewBox": f"0 0 {self.WIDTH} {self.HEIGHT}", "role": "img", "aria-label": printable(title)}
        )
        self.inside = _add(self.svg, "svg", width=str(self.WIDTH), height=str(self.bottom + 5))
        self._xs, self._ys = (min(xs), max(xs)), (min(ys), max(ys))

    def x(self, value: float) -> float:
        low, high = self._xs
        share = (value - low) / (high - low) if high > low else 0.5
        return self.LEFT + share * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, value: float) -> float:
        low, high = self._ys
        share = (value - low) / (high - low) if high > low else 0.5
        return self.bottom - share * (self.bottom - self.TOP)

    def labels(self, x_label: str, y_label: str) -> None:
        """Say what the axes are."""
        middle = (self.TOP + self.bottom) / 2
        across = (self.LEFT + self.WIDTH - self.RIGHT) / 2
        _text(self.svg, x_label, across, self.HEIGHT - 8)
        _text(self.svg, y_label, 14, middle, transform=f"rotate(-90 14 {middle:g})")


def curves(
    title: str,
    lines: Sequence[Curve],
    bounds: tuple[float, float],
    *,
    x_label: str,
    y_label: str,
    level: float | None = None,
) -> Any:
    """Draw curves with their bands over a logarithmic axis; returns markup, as every function here.

    Args:
        title: What the drawing shows, for those who do not see it.
        lines: At least one; those that come later lie over the others.
        bounds: The least and the greatest y that must be in sight; what lies below the axis is cut off.
        x_label: What x is.
        y_label: What y is.
        level: A y that is marked, such as that of guessing.
    """
    xs = sorted({x for line in lines for x, *_ in line.points})
    steps = _steps(*bounds)
    frame = _Frame(title, [math.log(x) for x in xs], steps)
    _rule(frame, steps, [(math.log(x), f"{x:,.0f}") for x in xs])
    frame.labels(x_label, y_label)
    if level is not None:
        _line(frame, frame.LEFT, frame.y(level), frame.WIDTH - frame.RIGHT, frame.y(level), _INK, 1.2)
    for line in lines:
        _band(frame, line)
    for line in lines:
        _stroke(frame, line)
    return _markup(frame.svg)


def cloud(
    title: str, parts: Iterable[tuple[Look, Sequence[tuple[float, float]]]], *, x_label: str, y_label: str
) -> Any:
    """Draw points, those of each part with its look.

    Args:
        title: What the drawing shows, for those who do not see it.
        parts: Looks with their points `(x, y)`; at least one point in all.
        x_label: What x is.
        y_label: What y is.
    """
    drawn = [(look, points) for look, points in parts if points]
    xs, ys = zip(*(point for _, points in drawn for point in points), strict=True)
    frame = _Frame(title, _wider(xs), _wider(ys), bottom=30)
    frame.labels(x_label, y_label)
    right = frame.WIDTH - frame.RIGHT
    _add(frame.svg, "path", d=f"M{frame.LEFT} {frame.TOP}V{frame.bottom}H{right}", fill="none", stroke=_FAINT)
    for look, points in drawn:
        path = "".join(f"M{frame.x(x):.1f} {frame.y(y):.1f}{look.marker}" for x, y in points)
        _add(frame.svg, "path", d=path, fill=look.colour, fill_opacity="0.55", stroke=look.colour, stroke_width="0.6")
    return _markup(frame.svg)


def strip(
    interval: tuple[float, float, float], scale: tuple[float, float], look: Look, *, level: float | None = None
) -> Any:
    """Draw an interval with its middle on a scale, for a cell of a table, whose text has the numbers.

    Args:
        interval: Its lower end, where the marker stands, and its upper end.
        scale: What the ends of the strip are.
        look: Colour and marker.
        level: A value that is marked; None for none.
    """
    width, height = 150, 16

    def x(value: float) -> float:
        least, most = scale
        return 6 + (width - 12) * (value - least) / (most - least)

    low, middle, high = interval
    svg = Xml.Element("svg", {"viewBox": f"0 0 {width} {height}", "class": "strip", "aria-hidden": "true"})
    if level is not None and scale[0] <= level <= scale[1]:
        _add(svg, "path", d=f"M{x(level):.1f} 0V{height}", stroke=_INK, stroke_width="1", stroke_dasharray="2 2")
    ends = f"M{x(low):.1f} 4v8m0-4H{x(high):.1f}m0-4v8"
    _add(svg, "path", d=ends, stroke=look.colour, stroke_width="1.8", fill="none")
    _add(svg, "path", d=f"M{x(middle):.1f} {height / 2:g}{look.marker}", fill=look.colour)
    return _markup(svg)


def swatch(look: Look) -> Any:
    """Draw the sign of a line or class for a legend."""
    svg = Xml.Element("svg", {"viewBox": "0 0 36 14", "class": "swatch", "aria-hidden": "true"})
    line = _add(svg, "path", d="M1 7h34", stroke=look.colour, stroke_width="2")
    if look.dash:
        line.set("stroke-dasharray", look.dash)
    _add(svg, "path", d=f"M18 7{look.marker}", fill=look.colour)
    return _markup(svg)


def dot(look: Look) -> Any:
    """Draw the marker of a class for a legend."""
    svg = Xml.Element("svg", {"viewBox": "0 0 14 14", "class": "dot", "aria-hidden": "true"})
    _add(svg, "path", d=f"M7 7{look.marker}", fill=look.colour)
    return _markup(svg)


def _rule(frame: _Frame, ys: Sequence[float], xs: Sequence[tuple[float, str]]) -> None:
    """Draw the lines of the y axis with their numbers, and the numbers of the x axis that do not meet."""
    digits = max(0, -math.floor(math.log10(ys[1] - ys[0]) + 1e-9))
    for value in ys:
        _line(frame, frame.LEFT, frame.y(value), frame.WIDTH - frame.RIGHT, frame.y(value), _FAINT, 1)
        text = f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        _text(frame.svg, text, frame.LEFT - 6, frame.y(value) + 5, text_anchor="end")
    left_of = math.inf
    for value, text in reversed(xs):  # the last one, all labels, is always there
        x, half = min(frame.x(value), frame.WIDTH - len(text) * 4.0), len(text) * 4.0
        _line(frame, frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4, _INK, 1)
        if x + half + 4 < left_of:
            _text(frame.svg, text, x, frame.bottom + 19)
            left_of = x - half


def _band(frame: _Frame, line: Curve) -> None:
    upper = [f"{frame.x(math.log(x)):.1f} {frame.y(high):.1f}" for x, _, _, high in line.points]
    lower = [f"{frame.x(math.log(x)):.1f} {frame.y(low):.1f}" for x, _, low, _ in reversed(line.points)]
    opacity = "0.07" if line.look.dash else "0.14"
    _add(frame.inside, "path", d=f"M{'L'.join([*upper, *lower])}z", fill=line.look.colour, fill_opacity=opacity)


def _stroke(frame: _Frame, line: Curve) -> None:
    points = [f"{frame.x(math.log(x)):.1f} {frame.y(y):.1f}" for x, y, *_ in line.points]
    path = _add(
        frame.inside, "path", d=f"M{'L'.join(points)}", fill="none", stroke=line.look.colour, stroke_width="2.2"
    )
    if line.look.dash:
        path.set("stroke-dasharray", line.look.dash)
    _add(frame.inside, "path", d="".join(f"M{point}{line.look.marker}" for point in points), fill=line.look.colour)


def _steps(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`, four to eight of them."""
    span = max(high - low, 1e-3)
    size = 10.0 ** math.floor(math.log10(span / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 6)
    first = math.floor(low / size + 1e-9)
    last = max(math.ceil(high / size - 1e-9), first + 1)
    return [n * size for n in range(first, last + 1)]


def _wider(values: Sequence[float]) -> tuple[float, float]:
    """The range of values with room for markers at its ends."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _line(frame: _Frame, x0: float, y0: float, x1: float, y1: float, colour: str, width: float) -> None:
    _add(frame.svg, "path", d=f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}", stroke=colour, stroke_width=f"{width:g}")


def _text(svg: Xml.Element, text: str, x: float, y: float, **attributes: str) -> None:
    given = {"text_anchor": "middle", "font_size": str(_FONT), "fill": _INK} | attributes
    _add(svg, "text", x=f"{x:.1f}", y=f"{y:.1f}", **given).text = text


def _markup(svg: Xml.Element) -> Any:
    from markupsafe import Markup

    return Markup(Xml.tostring(svg, encoding="unicode"))


def _add(parent: Xml.Element, tag: str, **attributes: str) -> Xml.Element:
    return Xml.SubElement(parent, tag, {name.replace("_", "-"): value for name, value in attributes.items()})
