"""The affine map that is best by Mattes' mutual information, found from the measure's exact derivative.

ITK takes the slope of an image from its neighbouring voxels, which is not that of its linear interpolation; near the
best map its optimisers therefore stop early, the sooner the sharper the edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Image
from scipy.optimize import minimize

from zoo.entries.drasclr.ct.mutual_information import BINS, SEED
from zoo.entries.drasclr.ct.scan import Matrix

_PAD = 2  # empty bins at each end, for a spline is four bins wide
_RADIUS = 100.0  # mm from the lungs' centre, where a number of the linear part counts as much as one of the shift
_UNIT, _FLAT = 1e3, 1e-2  # of the measure; slope per mm at which the map is less than 0.01 mm from the best
_ITERATIONS = 60

Floats = npt.NDArray[np.floating]


class MutualInformation:
    """Mattes' measure of two images at points spread over the fixed one, as a function of the map between them."""

    def __init__(self, fixed: Nifti1Image, moving: Nifti1Image, start: Matrix, samples: int) -> None:
        """Spread the points; those outside the moving image under the map `start` are left out for good."""
        values = np.asarray(fixed.dataobj, dtype=np.float32)
        spread = np.unravel_index(np.linspace(0, values.size - 1, samples).astype(np.int64), values.shape)
        voxels = np.stack(spread, axis=1) + np.random.default_rng(SEED).uniform(-0.5, 0.5, (samples, 3))
        voxels = voxels.clip(0, np.array(values.shape) - 1)
        self._points = apply_affine(fixed.affine, voxels)
        self._moving = np.asarray(moving.dataobj, dtype=np.float32)
        self._to_voxels = np.linalg.inv(moving.affine)
        last = np.array(self._moving.shape) - 1
        there = apply_affine(self._to_voxels @ start, self._points)
        is_inside = ((there >= 0) & (there <= last)).all(axis=1)
        if not is_inside.any():
            raise RuntimeError("the two masks do not overlap")
        self._points = self._points[is_inside]
        at, _ = _interpolate(values, voxels[is_inside])
        self._fixed_bins = np.floor(_in_bins(at, values)[0]).clip(_PAD, BINS - _PAD - 1).astype(np.int64)

    def __call__(self, matrix: Matrix) -> tuple[float, Matrix]:
        """Return the measure under a map `(4, 4)` and its derivative by the map's upper rows, `(3, 4)`."""
        values, slopes = _interpolate(self._moving, apply_affine(self._to_voxels @ matrix, self._points))
        positions, per_bin = _in_bins(values, self._moving)
        first = np.floor(positions).clip(_PAD, BINS - _PAD - 1).astype(np.int64)
        weights, changes = _splines(positions - first)
        cells = self._fixed_bins * BINS + first - 1
        counts = np.zeros(BINS * BINS)
        for offset, weight in enumerate(weights):
            counts += np.bincount(cells + offset, weight, BINS * BINS)
        joint = counts.reshape(BINS, BINS) / len(values)
        ours, theirs = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
        logs = np.log(joint / np.where(theirs > 0, theirs, 1), where=joint > 0, out=np.zeros_like(joint))
        measure = float((joint * logs).sum() - (ours * np.log(ours, where=ours > 0, out=np.zeros_like(ours))).sum())
        edge = np.flatnonzero(slopes.any(axis=1))
        pull = sum(change[edge] * logs.ravel()[cells[edge] + i] for i, change in enumerate(changes))
        forces = slopes[edge] * (pull * per_bin / len(values))[:, None] @ self._to_voxels[:3, :3]
        return measure, np.column_stack([forces.T @ self._points[edge], forces.sum(axis=0)])


def maximise(measure: MutualInformation, start: Matrix, centre: Floats) -> Matrix:
    """Return the best affine map `(4, 4)` near `start`; `centre` `(3,)` is the middle of what matters, in mm."""

    def to_map(numbers: Floats) -> Matrix:
        found: Matrix = start.copy()
        found[:3, :3] += numbers[:9].reshape(3, 3) / _RADIUS
        found[:3, 3] += numbers[9:] - (found[:3, :3] - start[:3, :3]) @ centre
        return found

    def loss(numbers: Floats) -> tuple[float, Floats]:
        value, by_map = measure(to_map(numbers))
        linear = (by_map[:, :3] - np.outer(by_map[:, 3], centre)) / _RADIUS
        return -_UNIT * value, -_UNIT * np.concatenate([linear.ravel(), by_map[:, 3]])

    found = minimize(loss, np.zeros(12), jac=True, method="BFGS", options={"gtol": _FLAT, "maxiter": _ITERATIONS})
    return to_map(found.x)


def _in_bins(values: Floats, image: Floats) -> tuple[Floats, float]:
    """Positions on the axis of the bins, which the image's range fills but for the ends; bins per unit."""
    low, high = float(image.min()), float(image.max())
    per_bin = (BINS - 2 * _PAD) / (high - low)
    return (values.astype(np.float64) - low) * per_bin + _PAD, per_bin


def _splines(part: Floats) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """What a value gives to the bin before its own, to its own and to the two after it, and the derivatives.

    `part` is how far into its bin it lies, from 0 to 1.
    """
    square, cube, left = part**2, part**3, 1 - part
    weights = (left**3 / 6, (4 - 6 * square + 3 * cube) / 6, (1 + 3 * part + 3 * square - 3 * cube) / 6, cube / 6)
    changes = (-(left**2) / 2, (3 * square - 4 * part) / 2, (1 + 2 * part - 3 * square) / 2, square / 2)
    return weights, changes


def _interpolate(image: Floats, voxels: Floats) -> tuple[Floats, Floats]:
    """Values `(N,)` of an image between its voxels, linearly, and their slopes `(N, 3)`; outside, those of the edge."""
    last = np.array(image.shape) - 1
    kept = voxels.clip(0, last)
    corner = np.minimum(np.floor(kept), last - 1).astype(np.int64)
    x, y, z = (kept - corner).astype(np.float32).T
    strides = np.array([image.shape[1] * image.shape[2], image.shape[2], 1])
    flat, here = np.ravel(image), corner @ strides
    corners = [flat[here + np.array(step) @ strides] for step in np.ndindex(2, 2, 2)]
    along_z = [high - low for low, high in zip(corners[::2], corners[1::2], strict=True)]
    edges = [low + z * rise for low, rise in zip(corners[::2], along_z, strict=True)]
    low, high = (edges[i] + y * (edges[i + 1] - edges[i]) for i in (0, 2))
    slope_y = edges[1] - edges[0] + x * (edges[3] - edges[2] - edges[1] + edges[0])
    sides = [along_z[i] + y * (along_z[i + 1] - along_z[i]) for i in (0, 2)]
    slopes = np.stack([high - low, slope_y, sides[0] + x * (sides[1] - sides[0])], axis=1)
    slopes[kept != voxels] = 0
    return low + x * (high - low), slopes
