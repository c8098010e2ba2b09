"""Draws a synthetic frontal chest radiograph: a picture for demonstrations and tests that shows no patient.

Coordinates run from -1 to 1 over the film, `y` downwards; `u` is the distance from the midline, so that what both sides
share is drawn once. Shapes are soft-edged maps from 0 to 1, and what they absorb adds up as thickness of tissue does.
The numbers were set by eye, next to real films.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Map: TypeAlias = NDArray[np.float64]


def chest_phantom(size: int = 256, seed: int = 0) -> NDArray[np.uint8]:
    """Return a chest film `(size, size)` of 8 bits: dark lungs, bright heart and abdomen, ribs, clavicles, vessels.

    The same `size` and `seed` give the same picture; another seed gives other vessels, texture and noise.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    u = np.abs(x)
    lung = np.where(x > 0, _lung(y, u, with_heart=True), _lung(y, u, with_heart=False))
    vessels = np.where(x > 0, _vessels(y, u, rng), _vessels(y, u, rng))
    tissue = _soft_tissue(y, x) - (0.44 + 0.26 * _bump(u - 0.36, 0.42)) * lung
    tissue += 1.7 * _bones(y, u) * (0.55 + 0.45 * lung) + 1.1 * vessels * lung
    tissue += 0.05 * _clouds(size, 12, rng) + 0.035 * lung * _clouds(size, 48, rng)
    body = _body(y, x)
    film: Map = 0.04 + 0.98 * body * (1 - np.exp(-1.15 * np.clip(tissue, 0, None)))
    film += 0.03 * body * _clouds(size, 3, rng) + 0.01 * rng.standard_normal(film.shape)
    levels: Map = np.clip(5 + 235 * (film - 0.03) / 0.83, 0, 255)
    return levels.astype(np.uint8)


def _inside(distance: Map, edge: float = 0.012) -> Map:
    """Go from 0 to 1 over `edge` where the signed distance turns positive."""
    return 1 / (1 + np.exp(-np.clip(distance / edge, -40, 40)))


def _ridge(distance: Map, width: float | Map) -> Map:
    """Fall off from 1 on a line to both sides."""
    return np.exp(-((distance / width) ** 2))


def _bump(distance: Map, width: float) -> Map:
    """Thickness across a round body."""
    return np.sqrt(np.clip(1 - (distance / width) ** 2, 0, 1))


def _disc(y: Map, x: Map, radii: tuple[float, float], tilt: float, edge: float) -> Map:
    """Fill a tilted ellipse around the origin."""
    along, across = y * np.cos(tilt) - x * np.sin(tilt), y * np.sin(tilt) + x * np.cos(tilt)
    return _inside((1 - np.hypot(along / radii[0], across / radii[1])) * min(radii), edge)


def _clouds(size: int, cells: int, rng: np.random.Generator) -> Map:
    """Return smooth noise of unit variance with about `cells` blobs a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _body(y: Map, x: Map) -> Map:
    """Trunk, shoulders with the upper arms, and neck."""
    u = np.abs(x)
    shoulders = _inside(y + 0.98 - 0.42 * np.clip(u - 0.19, 0, None) ** 1.35, 0.015)
    trunk = shoulders * _inside(0.86 + 0.05 * np.cos(3 * (y - 0.1)) - u)
    arms = shoulders * _inside(0.25 * u - 0.02 - y, 0.05)
    neck = _inside(0.22 + 0.35 * np.clip(-y - 0.86, 0, 1) - u)
    body: Map = np.maximum(np.maximum(trunk, arms), neck)
    return body


def _cage(y: Map) -> Map:
    """Half width of the rib cage at each height."""
    half_width: Map = 0.73 * np.clip(1 - np.abs((y - 0.4) / np.where(y < 0.4, 1.19, 1.6)) ** 2.6, 0, 1) ** 0.55
    return half_width


def _lung(y: Map, u: Map, *, with_heart: bool) -> Map:
    """Air between rib cage, mediastinum and diaphragm; the left lung gives way to aortic arch and heart."""
    mediastinum = 0.12 + 0.05 * _ridge(y + 0.05, 0.2)
    if with_heart:
        mediastinum += 0.08 * _ridge(y + 0.32, 0.11) + 0.31 * _ridge(y - 0.34, 0.36)
    else:
        mediastinum += 0.03 * _ridge(y + 0.45, 0.2) + 0.11 * _ridge(y - 0.25, 0.25)
    dome = (0.42 if with_heart else 0.36) + np.where(u < 0.36, 0.5, 1.9) * (u - 0.36) ** 2
    return _inside(_cage(y) - 0.035 - u) * _inside(u - mediastinum, 0.018) * _inside(dome - y, 0.01)


def _soft_tissue(y: Map, x: Map) -> Map:
    """Chest wall, abdomen, mediastinum, heart and spine, less the air of trachea, bronchi and stomach."""
    u = np.abs(x)
    wall: Map = 0.3 + 0.72 * np.clip(1 - u**2, 0.05, 1) + 0.25 * _inside(y - 0.35, 0.15)
    wall += 0.16 * _disc(y + 0.66, u - 0.93, (0.13, 0.11), 0, 0.015)
    middle = 0.3 * _ridge(x, 0.13) + 0.28 * _disc(y - 0.22, x - 0.13, (0.3, 0.22), -0.5, 0.05)
    spine = 0.07 * np.cos(2 * np.pi * y / 0.125) * _inside(0.075 - u, 0.01) * _inside(0.7 - y, 0.1)
    trachea = 0.26 * _ridge(x - 0.01, 0.036) * _inside(-0.28 - y, 0.03)
    offset = np.abs(x - 0.01)
    bronchi = 0.14 * _ridge(y + 0.28 - 1.1 * offset, 0.02) * _inside(0.11 - offset, 0.02)
    stomach = 0.35 * _disc(y - 0.58, x - 0.4, (0.055, 0.13), 0.1, 0.02)
    return wall + middle + spine - trachea - bronchi - stomach


def _bones(y: Map, u: Map) -> Map:
    """Ten posterior ribs, seven fainter anterior ones, clavicles, scapulae and the edge of the cage."""
    across = u / np.maximum(_cage(y), 0.05)
    cage = _inside(1.02 - across, 0.02)
    total = 0.05 * _ridge(across - 1, 0.05) * _inside(0.9 - y, 0.1) * _inside(y + 0.75, 0.05)
    for i in range(10):
        course = -0.8 + 0.125 * i - 0.1 * np.sin(np.pi * np.clip(u, 0, 0.5) / 0.55)
        course += (0.55 + 0.07 * i) * np.clip(u - 0.2, 0, 1) ** 2
        total += 0.085 * _bar(y - course, 0.024 + 0.0012 * i) * cage * _inside(u - 0.03, 0.02)
    for i in range(1, 8):
        course = -0.62 + 0.15 * i + 0.3 * np.clip(0.75 - u, 0, 1) ** 1.2
        total += 0.04 * _inside(0.022 - np.abs(y - course), 0.008) * cage * _inside(u - 0.26 - 0.02 * i, 0.05)
    clavicle = y + 0.61 + 0.3 * np.clip(u - 0.08, 0, 1) - 0.05 * np.sin(7 * (u - 0.08))
    total += 0.17 * _bar(clavicle, 0.028 + 0.012 * np.abs(u - 0.4)) * _inside(u - 0.08, 0.01) * _inside(0.8 - u, 0.02)
    scapula = _ridge(u - 0.73 - 0.1 * (y + 0.2), 0.014)
    return total + 0.1 * scapula * _inside(y + 0.62, 0.04) * _inside(-0.02 - y, 0.04)


def _bar(distance: Map, half_width: float | Map) -> Map:
    """Draw a bone along a line: a band with brighter, cortical rims."""
    from_rim = np.abs(distance) - half_width
    return _inside(-from_rim, 0.007) * (0.65 + 0.65 * _ridge(from_rim, 0.009))


def _vessels(y: Map, u: Map, rng: np.random.Generator) -> Map:
    """Draw the hilum of one lung and the vessels that wind out of it, thinner with the distance."""
    radius, angle = np.hypot(y + 0.06, u - 0.19), np.arctan2(y + 0.06, u - 0.19)
    total = 0.1 * _ridge(radius, 0.09)
    for start in np.linspace(-1.45, 1.45, 14) + rng.uniform(-0.07, 0.07, 14):
        length, bend = rng.uniform(0.3, 0.6), rng.uniform(-1.2, 1.2)
        course = start + bend * radius + 0.25 * radius * np.sin(rng.uniform(7, 12) * radius + rng.uniform(0, 6))
        aside = radius * np.sin(np.clip(angle - course, -1.5, 1.5))
        taper = np.clip(1.1 - radius / length, 0, 1)
        line = _ridge(aside, 0.017 * np.maximum(taper, 0.15)) * _inside(length - radius, 0.06)
        total += 0.085 * taper * line * _inside(radius - 0.05, 0.03)
    return total
