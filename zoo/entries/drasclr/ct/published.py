"""Affine registration of an atlas' lungs with a patient's on the authors' schedule, by their engine or by SimpleITK.

Mattes' mutual information over half of the voxels, on three scales, from matched centres of mass (batmanlab/DrasCLR,
preprocess/3_registration.py).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Image

from zoo.entries.drasclr.ct.mutual_information import BINS, SAMPLED, SEED, matrix_of, refine, to_matrix
from zoo.entries.drasclr.ct.scan import Matrix, import_itk
from zoo.images import to_itk

STEP = 0.01
"""Largest step of the optimiser in mm."""
LEVELS = ((500, 4, 2), (250, 2, 1), (100, 1, 0))
"""Iterations, shrink factor and smoothing in voxels, from coarse to fine."""


def by_ants(fixed: Nifti1Image, moving: Nifti1Image) -> Matrix:
    """Run antsRegistration with the authors' arguments; return the map from points of `fixed` to those of `moving`.

    Without the full arguments `ants.registration` has its own schedule for affine maps, with other steps.
    """
    import ants

    iterations, factors, sigmas = ("x".join(map(str, column)) for column in zip(*LEVELS, strict=True))
    with tempfile.TemporaryDirectory(prefix="zoo-register-") as folder:
        names = [str(Path(folder) / f"{name}.nii") for name in ("fixed", "moving")]
        for name, mask in zip(names, (fixed, moving), strict=True):
            image = Nifti1Image(np.asarray(mask.dataobj, dtype=np.int16), mask.affine)
            image.set_qform(mask.affine, code=1)
            image.set_sform(mask.affine, code=1)
            nibabel.save(image, name)
        pair, out = ",".join(names), str(Path(folder) / "map")
        arguments = {
            "dimensionality": 3,
            "initial-moving-transform": f"[{pair},1]",
            "transform": f"Affine[{STEP}]",
            "metric": f"MI[{pair},1,{BINS},Regular,{SAMPLED}]",
            "convergence": iterations,
            "smoothing-sigmas": sigmas,
            "shrink-factors": factors,
            "random-seed": SEED,
            "output": out,
        }
        ants.registration([word for name, value in arguments.items() for word in (f"--{name}", str(value))], None)
        found = ants.read_transform(f"{out}0GenericAffine.mat")
    return matrix_of(found.parameters[:9], found.parameters[9:], found.fixed_parameters)


def by_itk(fixed: Nifti1Image, moving: Nifti1Image) -> Matrix:
    """Return the map from points of `fixed` to those of `moving` by SimpleITK."""
    images = as_itk(fixed, moving)
    found = match_centres(images)
    follow(images, found, LEVELS)
    return to_matrix(found)


def as_itk(fixed: Nifti1Image, moving: Nifti1Image) -> tuple[Any, Any]:
    """Return both masks as SimpleITK has them."""
    one, other = (to_itk(np.asarray(mask.dataobj, dtype=np.float32), mask.affine) for mask in (fixed, moving))
    return one, other


def match_centres(images: Sequence[Any]) -> Any:
    """Return the affine transform that moves the first mask's centre of mass to the second's, and is centred there."""
    sitk = import_itk()
    way = sitk.CenteredTransformInitializerFilter.MOMENTS
    return sitk.AffineTransform(sitk.CenteredTransformInitializer(*images, sitk.AffineTransform(3), way))


def follow(
    images: Sequence[Any],
    found: Any,
    levels: Sequence[tuple[int, int, int]],
    *,
    most: float = math.inf,
    seed: int = SEED,
) -> None:
    """Improve an affine transform of SimpleITK in place, scale after scale, with at most `most` samples on each.

    Each scale is a registration of its own, because only ANTs has iterations by scale.
    """
    for iterations, shrink, sigma in levels:
        share = min(SAMPLED, most * shrink**3 / images[0].GetNumberOfPixels())
        refine(images, found, iterations=iterations, step=STEP, sampled=share, seed=seed, shrink=shrink, sigma=sigma)
