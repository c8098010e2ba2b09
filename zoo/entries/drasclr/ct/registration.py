"""Affine registration of an atlas' lungs with a patient's: which way it is done, and how well it fits.

Only the masks count, with a different value in each lung. `fast` is the authors' schedule on coarse masks with fewer
samples; `published` is that schedule on the masks as they are, which takes some 25 minutes of a processor for a CT of
full size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image

from zoo.entries.drasclr.ct import fast, published
from zoo.entries.drasclr.ct.lung_masks import LUNGS
from zoo.entries.drasclr.ct.scan import Matrix
from zoo.errors import InputContractError, OptionError
from zoo.messages import install_hint
from zoo.oddities import warn_of

log = logging.getLogger("zoo")

REGISTRATIONS = ("fast", "published")
ENGINES = ("auto", "antspyx", "simpleitk")
_WAYS = {
    ("fast", "simpleitk"): fast.by_itk,
    ("published", "antspyx"): published.by_ants,
    ("published", "simpleitk"): published.by_itk,
}
_LEAST_OVERLAP, _USUAL_OVERLAP = 0.5, 0.8  # Dice; healthy lungs reach 0.9 under an affine map


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


def choose_engine(engine: str = "auto", registration: str = "fast") -> str:
    """Return the engine that will be used.

    The fast registration is SimpleITK's. For the published one "auto" is antspyx where it is installed, else SimpleITK,
    which is logged.

    Raises:
        OptionError: There is no such engine or registration, the engine is not installed, or it is not for this
            registration.
    """
    if registration not in REGISTRATIONS:
        raise OptionError(f"registration must be one of {', '.join(REGISTRATIONS)}, not {registration!r}")
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if registration == "fast":
        if engine == "antspyx":
            raise OptionError(
                "engine 'antspyx' does not do the registration 'fast', which is SimpleITK's: ask for 'published', or "
                "leave the engine out"
            )
        return "simpleitk"
    has_ants = find_spec("ants") is not None
    if engine == "antspyx" and not has_ants:
        raise OptionError(f"engine 'antspyx' needs the package: {install_hint('antspyx', 'drasclr')}")
    if engine == "auto":
        engine = "antspyx" if has_ants else "simpleitk"
        if not has_ants:
            log.warning("antspyx, which the authors use, is not installed: SimpleITK registers the lungs instead")
    return engine


def register(fixed: Nifti1Image, moving: Nifti1Image, engine: str = "auto", *, registration: str = "fast") -> Affine:
    """Find the affine map from points of `fixed` to the same points of `moving`.

    Args:
        fixed: The atlas' mask: 50 in the right lung, 100 in the left, 0 elsewhere.
        moving: The patient's mask, with the same values. Grids and orientations may differ.
        engine: Of the published registration "antspyx" or "simpleitk" (the same measure, schedule and kind of
            optimiser), of the fast one "simpleitk"; or "auto", see `choose_engine`.
        registration: "fast", or "published" for the authors' schedule.

    Raises:
        OptionError: There is no such engine or registration, or the engine is not installed or not for it.
        InputContractError: The engine gave up.
    """
    engine = choose_engine(engine, registration)
    try:
        return Affine(_WAYS[registration, engine](fixed, moving), engine)
    except RuntimeError as error:
        raise InputContractError(f"{engine} could not register the lungs with the atlas: {error}") from error


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
        usual = f"where at least {_USUAL_OVERLAP:g} is usual"
        warn_of(source, f"{said}, {usual}: patches may show other places than the atlas'")
