"""Painting of the synthetic cohort's volumes: shapes of the reference anatomy, moved, one over the other.

Lengths are in millimetres, densities in HU. A shape's depth is the distance below its surface, negative outside; a
voxel that a surface passes through gets a mixture, as in a scanner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from zoo.entries.monai_ssl.phantom_anatomy import TISSUES, Point, Shape
from zoo.training.fields import smooth_field

Array = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]

SHAPE = (76, 60, 56)
SPACING = 4.0
"""Voxels along x (left to right), y (back to front) and z (feet to head), and their size in millimetres."""
EVERYWHERE: Box = (slice(None),) * 3
COARSE = 4
"""Step in voxels of the coarse grid on which a shape is located."""


@dataclass
class Canvas:
    """A volume that is painted from the back to the front, in the coordinates of the reference anatomy."""

    rng: np.random.Generator
    positions: Array
    """Position of each voxel in the reference anatomy, (3, W, D, H) in millimetres."""
    phase: Array
    """Shares (3,) of the columns of `TISSUES`."""

    def __post_init__(self) -> None:
        self.hu = np.full(self.positions.shape[1:], TISSUES["air"][0], dtype=np.float32)
        self.labels = np.zeros(self.hu.shape, dtype=np.uint8)
        self.densities: dict[tuple[str, str], float] = {}
        self.moves: dict[str, Move] = {}

    def density(self, tissue: str, group: str = "") -> float:
        """HU of a tissue of this patient: each group differs a little from others of the tissue."""
        if (tissue, group) not in self.densities:
            mean = float(np.dot(self.phase, TISSUES[tissue]))
            self.densities[tissue, group] = mean + float(self.rng.normal(0, 13 if abs(mean) < 180 else 35))
        return self.densities[tissue, group]

    def paint(self, depth: Array, hu: float | Array, label: int | None = 0, box: Box = EVERYWHERE) -> None:
        """Cover where `depth` of a box, millimetres below a surface, is positive; None keeps the labels."""
        share = np.clip(depth / SPACING + 0.5, 0, 1)
        self.hu[box] += share * (hu - self.hu[box])
        if label is not None:
            self.labels[box][depth > 0] = label

    def paint_shapes(self, shapes: Sequence[Shape]) -> None:
        """Paint shapes of the reference anatomy, moved and scaled like this patient's groups."""
        for shape in shapes:
            if shape.group not in self.moves:
                self.moves[shape.group] = draw_move(self.rng, shape)
            hu, move = self.density(shape.tissue, shape.group), self.moves[shape.group]
            box = find_box(move.back(self.positions[:, ::COARSE, ::COARSE, ::COARSE]), shape)
            depth = move.depth(self.positions[:, *box], shape)
            self.paint(depth, hu, None if shape.keep else shape.label, box)
            if shape.hollow:
                self.fill(depth, box)

    def fill(self, depth: Array, box: Box) -> None:
        """Paint the contents of a hollow organ: fluid or food, and sometimes gas, which rises to the front."""
        inside, front = depth - self.rng.uniform(2, 6), self.positions[1][box]
        self.paint(inside, self.rng.uniform(0, 75), None, box)
        share = self.rng.uniform(0.6, 1.5)  # of the way to the front; beyond 1 there is no gas
        if share < 1 and (inside > 0).any():
            level = np.quantile(front[inside > 0], share)
            self.paint(np.minimum(inside, front - level), TISSUES["gas"][0], None, box)


@dataclass(frozen=True)
class Move:
    """Difference of a group of shapes from the reference anatomy."""

    centre: Array
    shift: Array
    turn: Array
    """Rotation (3, 3)."""
    scale: Array

    def back(self, positions: Array) -> Array:
        """Positions (3, ...) before the move."""
        turned = np.tensordot(self.turn / self.scale[:, None], positions - column(self.centre + self.shift), 1)
        points: Array = turned + column(self.centre)
        return points

    def depth(self, positions: Array, shape: Shape) -> Array:
        """Depth (...) of positions (3, ...) below a shape's surface in millimetres, negative outside."""
        points = self.back(positions)
        depths = [ellipsoid(points, centre, half) for centre, half in shape.ellipsoids]
        if shape.tube:
            depths.append(tube(points, shape.tube))
        united: Array = np.maximum.reduce(depths) * self.scale.mean()
        return united


def draw_move(rng: np.random.Generator, shape: Shape) -> Move:
    """Draw the move of a group, around the middle of its first shape; small organs vary less in place."""
    points = np.array([point for point, _ in shape.parts()])
    size = max(float(np.max(size)) for _, size in shape.parts())
    length = max(2 * size, float(np.ptp(points, axis=0).max()))
    angles = rng.normal(0, 7 if length < 150 else 2.5, 3)  # a shape that runs through the whole trunk cannot turn much
    return Move(
        points.mean(0).astype(np.float32),
        rng.normal(0, np.clip(size / 8, 2, 6), 3).astype(np.float32),
        Rotation.from_euler("xyz", angles, degrees=True).as_matrix().astype(np.float32),
        np.exp(rng.normal(0, 0.10, 3)).astype(np.float32),
    )


def find_box(points: Array, shape: Shape) -> Box:
    """Part of the volume that holds a shape, from positions of every fourth voxel (3, ...) before the shape's move."""
    ends = np.array([np.add(point, sign * np.array(size)) for point, size in shape.parts() for sign in (-1, 1)])
    margin = 2 * COARSE * SPACING
    near = (points > column(ends.min(0) - margin)) & (points < column(ends.max(0) + margin))
    found = np.argwhere(near.all(0)) * COARSE
    if not len(found):
        return (slice(0),) * 3
    low, high = (found.min(0) - COARSE).clip(0), found.max(0) + COARSE + 1
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def ellipsoid(points: Array, centre: Point, half: Point) -> Array:
    """Depth (W, D, H) of points (3, W, D, H) below an ellipsoid, to first order in the distance."""
    scaled = (points - column(centre)) / column(half)
    radius = np.sqrt((scaled**2).sum(0)).clip(1e-3)
    slope = np.sqrt(((scaled / column(half)) ** 2).sum(0)).clip(1e-6)
    depth: Array = radius * (1 - radius) / slope
    return depth


def tube(points: Array, line: Sequence[tuple[Point, float]]) -> Array:
    """Depth (W, D, H) of points (3, W, D, H) below a tube of changing radius along a smooth line."""
    knots = np.array([(*point, radius) for point, radius in line])
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    smooth = make_interp_spline(steps, knots, k=min(3, len(knots) - 1))
    count = max(3, round(steps[-1] / np.clip(knots[:, 3].mean(), 6, 15)) + 1)
    samples = smooth(np.linspace(0, steps[-1], count)).astype(np.float32)
    depth: Array = np.full(points.shape[1:], -np.inf, dtype=np.float32)
    for (*start, first), (*end, last) in pairwise(samples):
        way = np.subtract(end, start)
        along = np.clip(np.tensordot(way, points - column(start), 1) / (way @ way), 0, 1)
        distance = np.sqrt(((points - column(start) - along * column(way)) ** 2).sum(0))
        np.maximum(depth, first + along * (last - first) - distance, out=depth)
    return depth


def column(point: npt.ArrayLike) -> Array:
    """Reshape (3,) so that it broadcasts with (3, W, D, H)."""
    return np.asarray(point, dtype=np.float32).reshape(3, 1, 1, 1)


def field_of(rng: np.random.Generator, length: float) -> Array:
    """Random field as `SHAPE` of unit variance that varies over `length` millimetres."""
    return smooth_field(rng, SHAPE, SPACING, length).astype(np.float32)
