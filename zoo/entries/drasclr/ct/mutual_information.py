"""One affine registration of two masks by Mattes' mutual information, with SimpleITK, for any schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.entries.drasclr.ct.scan import Matrix, import_itk

BINS, SAMPLED = 32, 0.5
"""Bins of the histogram; share of the voxels that are sampled (batmanlab/DrasCLR, preprocess/3_registration.py)."""
SEED = 1
"""Of the sampled positions, so that a scan gives the same map every time."""
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # from ITK's world to nibabel's, and back


def refine(
    images: Sequence[Any],
    found: Any,
    *,
    iterations: int,
    step: float,
    sampled: float,
    seed: int = SEED,
    shrink: int = 1,
    sigma: int = 0,
) -> None:
    """Improve an affine transform of SimpleITK in place.

    The optimiser's settings are those of ANTs (ANTsX/ANTs, Examples/itkantsRegistrationHelper.hxx).

    Args:
        images: The fixed and the moving mask, images of SimpleITK with the same kind of real numbers.
        found: The transform to begin with.
        iterations: Most iterations; fewer are done where the measure stays.
        step: Largest first step of a search along a line, in mm.
        sampled: Share of the fixed mask's voxels that the measure is taken of.
        seed: Of the samples' positions within their voxels.
        shrink: Factor by which voxels grow.
        sigma: Smoothing in voxels before that.
    """
    sitk = import_itk()
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(sampled, seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsConjugateGradientLineSearch(
        step,
        iterations,
        lineSearchUpperLimit=2,
        lineSearchEpsilon=0.2,
        estimateLearningRate=method.EachIteration,
        maximumStepSizeInPhysicalUnits=step,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink])
    method.SetSmoothingSigmasPerLevel([sigma])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(found, inPlace=True)
    method.Execute(*images)


def to_matrix(found: Any) -> Matrix:
    """Return an affine transform of SimpleITK as `(4, 4)` in nibabel's convention."""
    return matrix_of(found.GetMatrix(), found.GetTranslation(), found.GetCenter())


def from_matrix(matrix: Matrix, centre: Sequence[float]) -> Any:
    """Return a map `(4, 4)` in nibabel's convention as a transform of SimpleITK with a centre `(3,)` in ITK's world."""
    in_itk, middle = _FLIP @ matrix @ _FLIP, np.array(centre)
    found = import_itk().AffineTransform(3)
    found.SetCenter(middle.tolist())
    found.SetMatrix(in_itk[:3, :3].ravel().tolist())
    found.SetTranslation((in_itk[:3, 3] + in_itk[:3, :3] @ middle - middle).tolist())
    return found


def matrix_of(linear: Any, translation: Any, centre: Any) -> Matrix:
    """Return a map of ITK's world, in the three parts that ITK and ANTs keep, as `(4, 4)` in nibabel's convention."""
    in_itk, middle = np.eye(4), np.array(centre, dtype=np.float64)
    in_itk[:3, :3] = np.array(linear, dtype=np.float64).reshape(3, 3)
    in_itk[:3, 3] = np.array(translation, dtype=np.float64) + middle - in_itk[:3, :3] @ middle
    found: Matrix = _FLIP @ in_itk @ _FLIP
    return found
