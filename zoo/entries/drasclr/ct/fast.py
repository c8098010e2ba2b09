"""Affine registration of an atlas' lungs with a patient's in a minute: matched moments, then coarse voxels.

The measure is that of the authors' schedule. An affine map has twelve numbers, for which voxels of 2 mm are plenty; and
from moments little is left to find.
"""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy.optimize import least_squares

from zoo.entries.drasclr.ct.lung_masks import LUNGS
from zoo.entries.drasclr.ct.mutual_information import SAMPLED, refine, to_matrix, to_transform
from zoo.entries.drasclr.ct.scan import Matrix, import_itk
from zoo.images import to_itk, voxel_sizes

LEVELS = ((4.0, 1), (2.0, 1), (2.0, 0))
"""Voxels in mm and smoothing in voxels, from coarse to fine; without any smoothing the optimiser stalls too early."""
ITERATIONS, SAMPLES = 100, 500_000
"""Most iterations of a level; voxels of the atlas that the measure is taken of, at most the published share of them."""
STEP = 0.2
"""Largest first step of the optimiser in mm: from 0.01, the authors', it needs twice the iterations."""
_MOMENTS_AT = 2.0  # mm between the voxels that moments are taken of

Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Mean `(3,)` in mm and covariance `(3, 3)` in mm2 of the voxels of a lung."""


def by_itk(fixed: Nifti1Image, moving: Nifti1Image) -> Matrix:
    """Return the map from points of `fixed` to those of `moving`, `(4, 4)` in nibabel's convention."""
    theirs = moments(fixed)
    start = match_moments(theirs, moments(moving))
    found = to_transform(start, np.mean([mean for mean, _ in theirs], axis=0))
    for spacing, sigma in LEVELS:
        images = [_coarse(mask, spacing) for mask in (fixed, moving)]
        sampled = min(SAMPLED, SAMPLES / images[0].GetNumberOfPixels())
        refine(images, found, iterations=ITERATIONS, step=STEP, sampled=sampled, sigma=sigma)
    return to_matrix(found.GetMatrix(), found.GetTranslation(), found.GetCenter())


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


def _coarse(mask: Nifti1Image, spacing: float) -> Any:
    """A mask of SimpleITK in voxels of about `spacing` mm, each the mean of the finer ones in it."""
    image = to_itk(np.asarray(mask.dataobj, dtype=np.float32), mask.affine)
    return import_itk().BinShrink(image, [max(1, round(spacing / size)) for size in image.GetSpacing()])
