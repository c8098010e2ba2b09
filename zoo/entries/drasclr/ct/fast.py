"""Affine registration of an atlas' lungs with a patient's in seconds: matched moments, then smoothed masks.

The measure is that of the authors' schedule. An affine map has twelve numbers, for which voxels of 2 mm are plenty; and
from moments little is left to find. Of masks with sharp edges the measure has many peaks, which put landmarks some
1 mm apart; smoothed, they have one, which the same map is found for from every start near by.
"""

from __future__ import annotations

import math

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

from zoo.entries.drasclr.ct.converge import MutualInformation, maximise
from zoo.entries.drasclr.ct.lung_masks import LUNGS
from zoo.entries.drasclr.ct.scan import Matrix
from zoo.images import voxel_sizes

SPACING = 2.0
"""Least voxels in mm."""
LEVELS = ((4.0, 500_000), (2.0, 2_000_000))
"""Smoothing in mm, and most points that the measure is taken at, from coarse to fine; never more than voxels."""
_MOMENTS_AT = 2.0  # mm between the voxels that moments are taken of

Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Mean `(3,)` in mm and covariance `(3, 3)` in mm2 of the voxels of a lung."""


def by_scipy(fixed: Nifti1Image, moving: Nifti1Image) -> Matrix:
    """Return the map from points of `fixed` to those of `moving`, `(4, 4)` in nibabel's convention."""
    theirs = moments(fixed)
    centre = np.mean([mean for mean, _ in theirs], axis=0)
    found = match_moments(theirs, moments(moving))
    fixed, moving = _coarse(fixed), _coarse(moving)
    for sigma, most in LEVELS:
        samples = min(most, math.prod(fixed.shape))
        measure = MutualInformation(_smooth(fixed, sigma), _smooth(moving, sigma), found, samples)
        found = maximise(measure, found, centre)
    return found


def moments(mask: Nifti1Image) -> list[Moments]:
    """Mean and covariance of the positions of each lung, right before left."""
    steps = [max(1, int(_MOMENTS_AT / size)) for size in voxel_sizes(mask.affine)]
    labels = np.asarray(mask.dataobj)[tuple(slice(None, None, step) for step in steps)]
    found = []
    for lung in LUNGS:
        points = nibabel.affines.apply_affine(mask.affine, np.argwhere(labels == lung) * steps)
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


def _coarse(mask: Nifti1Image) -> Nifti1Image:
    """The mask in voxels of about 2 mm, or as they are where they are larger, each the mean of the finer ones in it."""
    steps = [max(1, round(SPACING / size)) for size in voxel_sizes(mask.affine)]
    counts = [n // step for n, step in zip(mask.shape, steps, strict=True)]
    kept = np.asarray(mask.dataobj)[tuple(slice(n * step) for n, step in zip(counts, steps, strict=True))]
    parts = kept.reshape([size for pair in zip(counts, steps, strict=True) for size in pair])
    affine = mask.affine @ np.diag((*steps, 1))
    affine[:3, 3] += mask.affine[:3, :3] @ ((np.array(steps) - 1) / 2)  # the middle of the finer voxels
    return Nifti1Image(parts.mean(axis=(1, 3, 5), dtype=np.float32), affine)


def _smooth(mask: Nifti1Image, sigma: float) -> Nifti1Image:
    """The mask smoothed by `sigma` mm; lungs cut by its edge go on there."""
    values = gaussian_filter(np.asarray(mask.dataobj), sigma / voxel_sizes(mask.affine), mode="nearest")
    return Nifti1Image(values, mask.affine)
