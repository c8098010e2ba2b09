"""Affine registration of an atlas' lungs with a patient's, as the authors of DrasCLR do it.

Only the masks count, with a different value in each lung. The measure is Mattes' mutual information with 32 bins over
half of the voxels, on three scales, from matched centres of mass (batmanlab/DrasCLR, preprocess/3_registration.py).
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image

from zoo.entries.drasclr.ct.scan import Matrix, import_itk
from zoo.errors import InputContractError, OptionError
from zoo.images import to_itk
from zoo.messages import install_hint

log = logging.getLogger("zoo")

ENGINES = ("auto", "antspyx", "simpleitk")
BINS, SAMPLED, STEP = 32, 0.5, 0.01
"""Bins of the histogram; share of the voxels; largest step of the optimiser in mm."""
LEVELS = ((500, 4, 2), (250, 2, 1), (100, 1, 0))
"""Iterations, shrink factor and smoothing in voxels, from coarse to fine."""
LUNGS = (50, 100)
"""Values of the right and the left lung in the atlas' mask, and in the authors' masks of patients."""
_LEAST_OVERLAP, _USUAL_OVERLAP = 0.5, 0.8  # Dice; healthy lungs reach 0.9 under an affine map
_SEED = 1  # of the sampled places, so that a scan gives the same map every time
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # from ITK's world to nibabel's, and back


@dataclass(frozen=True, eq=False)
class Affine:
    """A map from the atlas to a patient, the direction in which ITK and ANTs map points."""

    matrix: Matrix
    """`(4, 4)`, from mm to mm in nibabel's convention: x to the right, y to the front, z to the top."""
    engine: str
    """Engine that found it."""

    def __call__(self, points: npt.ArrayLike) -> Matrix:
        """Return the positions in the patient of points `(N, 3)` of the atlas, `(N, 3)` mm."""
        moved: Matrix = nibabel.affines.apply_affine(self.matrix, np.asarray(points, dtype=np.float64))
        return moved


def choose_engine(engine: str) -> str:
    """Return the engine that will be used; "auto" is antspyx where it is installed, else SimpleITK, which is logged.

    Raises:
        OptionError: There is no such engine, or it is not installed.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    has_ants = find_spec("ants") is not None
    if engine == "antspyx" and not has_ants:
        raise OptionError(f"engine 'antspyx' needs the package: {install_hint('antspyx', 'drasclr')}")
    if engine == "auto":
        engine = "antspyx" if has_ants else "simpleitk"
        if not has_ants:
            log.warning("antspyx, which the authors use, is not installed: SimpleITK registers the lungs instead")
    return engine


def register(fixed: Nifti1Image, moving: Nifti1Image, engine: str = "auto") -> Affine:
    """Find the affine map from points of `fixed` to the same points of `moving`.

    Args:
        fixed: The atlas' mask: 50 in the right lung, 100 in the left, 0 elsewhere.
        moving: The patient's mask, with the same values. Grids and orientations may differ.
        engine: "antspyx", "simpleitk" (the same measure, schedule and kind of optimiser) or "auto".

    Raises:
        OptionError: There is no such engine, or it is not installed.
        InputContractError: The engine gave up.
    """
    engine = choose_engine(engine)
    find = _register_by_ants if engine == "antspyx" else _register_by_itk
    try:
        matrix, offset, centre = find(fixed, moving)
    except RuntimeError as error:
        raise InputContractError(f"{engine} could not register the lungs with the atlas: {error}") from error
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = matrix, offset + centre - matrix @ centre
    return Affine(_FLIP @ found @ _FLIP, engine)


def overlap(fixed: Nifti1Image, moving: Nifti1Image, affine: Affine) -> dict[str, float]:
    """Return the Dice of the right and of the left lung with the atlas', 0 to 1.

    Counted at some 200,000 voxels of the atlas, each with the patient's nearest voxel.
    """
    atlas, lungs = np.asarray(fixed.dataobj), np.asarray(moving.dataobj)
    stride = max(1, round((atlas.size / 2e5) ** (1 / 3)))
    voxels = np.mgrid[tuple(slice(0, n, stride) for n in atlas.shape)].reshape(3, -1).T
    points = affine(nibabel.affines.apply_affine(fixed.affine, voxels))
    there = np.rint(nibabel.affines.apply_affine(np.linalg.inv(moving.affine), points)).astype(np.int64)
    is_inside = ((there >= 0) & (there < lungs.shape)).all(axis=1)
    found = np.zeros(len(voxels), lungs.dtype)
    found[is_inside] = lungs[tuple(there[is_inside].T)]
    wanted = atlas[tuple(voxels.T)]
    pairs = {name: (wanted == value, found == value) for name, value in zip(("right", "left"), LUNGS, strict=True)}
    return {name: round(float(2 * (a & b).sum() / (a.sum() + b.sum())), 4) for name, (a, b) in pairs.items()}


def check_overlap(found: dict[str, float], source: str) -> None:
    """Log where a lung's Dice is below 0.8; below 0.5 raise `InputContractError`."""
    said = f"{source}: the Dice of its lungs with the atlas' is " + ", ".join(f"{n} {x:.2f}" for n, x in found.items())
    if min(found.values()) < _LEAST_OVERLAP:
        raise InputContractError(
            f"{said}; at least {_LEAST_OVERLAP} are expected. The registration failed, or the mask does not hold two "
            "whole lungs: look at both, and give a mask of the lungs"
        )
    if min(found.values()) < _USUAL_OVERLAP:
        log.warning(
            "%s, where at least %g is usual: patches may show other places than the atlas'", said, _USUAL_OVERLAP
        )


def _register_by_ants(fixed: Nifti1Image, moving: Nifti1Image) -> tuple[Any, Any, Any]:
    """Run antsRegistration with the authors' arguments; return matrix, offset and centre of its map, in ITK's world.

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
            "random-seed": _SEED,
            "output": out,
        }
        ants.registration([word for name, value in arguments.items() for word in (f"--{name}", str(value))], None)
        found = ants.read_transform(f"{out}0GenericAffine.mat")
    numbers = np.array(found.parameters, dtype=np.float64)
    return numbers[:9].reshape(3, 3), numbers[9:], np.array(found.fixed_parameters, dtype=np.float64)


def _register_by_itk(fixed: Nifti1Image, moving: Nifti1Image) -> tuple[Any, Any, Any]:
    """Do the same with SimpleITK, in one registration per scale, for only ANTs has iterations by scale.

    The optimiser's settings are those of ANTs (ANTsX/ANTs, Examples/itkantsRegistrationHelper.hxx).
    """
    sitk = import_itk()
    images = [to_itk(np.asarray(mask.dataobj, dtype=np.float32), mask.affine) for mask in (fixed, moving)]
    centred = sitk.CenteredTransformInitializer(
        *images, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    found = sitk.AffineTransform(centred)
    for iterations, factor, sigma in LEVELS:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(SAMPLED, _SEED)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsConjugateGradientLineSearch(
            STEP,
            iterations,
            lineSearchUpperLimit=2,
            lineSearchEpsilon=0.2,
            estimateLearningRate=method.EachIteration,
            maximumStepSizeInPhysicalUnits=STEP,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([factor])
        method.SetSmoothingSigmasPerLevel([sigma])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        method.SetInitialTransform(found, inPlace=True)
        method.Execute(*images)
    centre = np.array(found.GetCenter())
    return np.array(found.GetMatrix()).reshape(3, 3), np.array(found.GetTranslation()), centre
