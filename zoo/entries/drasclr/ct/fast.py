"""Affine registration of an atlas' lungs with a patient's in a minute or two: the authors' schedule on masks of 2 mm.

An affine map has twelve numbers, for which voxels of 2 mm and a part of them on the finest scale are plenty. Scales and
start stay the authors', because their optimiser stops beside the peak of the measure: from another start, or by an
optimiser that reaches the peak, landmarks end up to 2 mm from theirs. Only a patient whom their start loses begins from
matched moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy.optimize import least_squares

from zoo.entries.drasclr.ct.lung_masks import LUNGS
from zoo.entries.drasclr.ct.mutual_information import from_matrix, to_matrix
from zoo.entries.drasclr.ct.published import LEVELS, as_itk, follow, match_centres
from zoo.entries.drasclr.ct.scan import Matrix
from zoo.images import voxel_sizes

SPACING = 2.0
"""Least voxels in mm."""
MOST_SAMPLES = 375_000
"""Samples of the measure on any scale: of the authors' atlas in voxels of 2 mm, those of the middle one."""
SEEDS = (1, 2, 3)
"""Of the sampled positions: maps of single seeds, theirs as well, scatter by half a millimetre."""
LOST = 20.0
"""Mean distance in mm from where moments put the lungs' points, beyond which a map is lost; drawn ones have 3 to 6."""

Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Mean `(3,)` in mm and covariance `(3, 3)` in mm2 of the voxels of a lung."""


def by_itk(fixed: Nifti1Image, moving: Nifti1Image) -> Matrix:
    """Return the map from points of `fixed` to those of `moving`, `(4, 4)` in nibabel's convention."""
    fixed, moving = _coarse(fixed), _coarse(moving)
    images, lungs = as_itk(fixed, moving), moments(fixed)
    start = match_centres(images)
    found = _mean_map(images, start)
    expected = match_moments(lungs, moments(moving))
    if _distance(found, expected, lungs) > LOST:
        found = _mean_map(images, from_matrix(expected, start.GetCenter()))
    return found


def _mean_map(images: Sequence[Any], start: Any) -> Matrix:
    """Follow the schedule with samples of each seed; the mean of the maps puts points at the mean of their places."""
    found = []
    for seed in SEEDS:
        found.append(type(start)(start))
        follow(images, found[-1], LEVELS, most=MOST_SAMPLES, seed=seed)
    mean: Matrix = np.mean([to_matrix(each) for each in found], axis=0)
    return mean


def moments(mask: Nifti1Image) -> list[Moments]:
    """Mean and covariance of the positions of each lung, right before left."""
    labels = np.asarray(mask.dataobj)
    found = []
    for lung in LUNGS:
        points = nibabel.affines.apply_affine(mask.affine, np.argwhere(labels == lung))
        found.append((points.mean(axis=0), np.cov(points.T)))
    return found


def match_moments(fixed: list[Moments], moving: list[Moments]) -> Matrix:
    """Return the affine map `(4, 4)` that comes nearest to turning the moments of two lungs into those of others.

    It is exact where an affine map relates the lungs. One body would leave open how it is turned; the line from the
    right lung's centre to the left one's, and two covariances, do not.
    """
    (right, left), (there_right, there_left) = ([mean for mean, _ in both] for both in (fixed, moving))
    size = np.sqrt(np.mean([np.trace(covariance) for _, covariance in moving]))  # makes mm of mm2
    upper = np.triu_indices(3)

    def missed(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        linear = numbers.reshape(3, 3)
        spread = [
            ((linear @ here @ linear.T - there) / size)[upper]
            for (_, here), (_, there) in zip(fixed, moving, strict=True)
        ]
        return np.concatenate([linear @ (right - left) - (there_right - there_left), *spread])

    found = np.eye(4)
    found[:3, :3] = least_squares(missed, np.eye(3).ravel()).x.reshape(3, 3)
    found[:3, 3] = (there_right + there_left) / 2 - found[:3, :3] @ (right + left) / 2
    return found


def _distance(one: Matrix, other: Matrix, lungs: list[Moments]) -> float:
    """Mean distance in mm between the places of some points of the lungs under two maps."""
    points = np.concatenate([mean + side * np.linalg.cholesky(spread).T for mean, spread in lungs for side in (-1, 1)])
    apart = nibabel.affines.apply_affine(one, points) - nibabel.affines.apply_affine(other, points)
    return float(np.linalg.norm(apart, axis=1).mean())


def _coarse(mask: Nifti1Image) -> Nifti1Image:
    """The mask with every n-th voxel, so that voxels have about 2 mm; as it is where they are larger."""
    steps = [max(1, round(SPACING / size)) for size in voxel_sizes(mask.affine)]
    values = np.asarray(mask.dataobj)[tuple(slice(None, None, step) for step in steps)]
    return Nifti1Image(np.ascontiguousarray(values), mask.affine @ np.diag((*steps, 1)))
