"""Finds the seed points of a volume: coordinates in mm as they are given, or the centre of a mask."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zoo.errors import InputContractError, OptionError
from zoo.images import Volume, VolumeInput, read_volume
from zoo.oddities import warn_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Convention: TypeAlias = Literal["LPS", "RAS"]
PointInput: TypeAlias = "Sequence[float] | Sequence[Sequence[float]] | ArrayLike | VolumeInput"

CONVENTIONS = ("LPS", "RAS")
"""Where the coordinates of a point grow to: left, posterior, superior, as DICOM and ITK have it, or right, anterior."""
_SIGNS = {"LPS": (-1.0, -1.0, 1.0), "RAS": (1.0, 1.0, 1.0)}
_ANY_SIDES = (1, 1, 1)


def find_points(given: PointInput, volume: Volume, convention: Convention) -> tuple[NDArray[Any], bool]:
    """Return the seed points in RAS mm, `(n, 3)`, and whether several were asked for.

    Args:
        given: A point `(x, y, z)`, several `(n, 3)`, or a mask of one lesion as `read_volume` reads it, an array on the
            volume's own grid.
        volume: That they lie in.
        convention: Of the coordinates; a mask has its own.

    Raises:
        InputContractError: They are neither, or the mask is empty or of several lesions.
        OptionError: There is no such convention.
    """
    import numpy as np

    if convention not in CONVENTIONS:
        raise OptionError(f"convention={convention!r}: expected {' or '.join(map(repr, CONVENTIONS))}")
    if _is_mask(given):
        return _centre(given, volume)[None], False
    try:
        points = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim not in (1, 2) or not points.size or points.shape[-1] != 3 or not np.isfinite(points).all():
        raise InputContractError(
            f"the seed point of {volume.source} is {given!r:.80}: three finite numbers (x, y, z) in mm are expected, "
            "several such points, or a mask of the lesion"
        )
    return np.atleast_2d(points) * _SIGNS[convention], points.ndim == 2


def _is_mask(given: Any) -> bool:
    from nibabel.spatialimages import SpatialImage

    return isinstance(given, (str, PathLike, SpatialImage, Volume)) or getattr(given, "ndim", 0) >= 3


def _centre(given: Any, volume: Volume) -> NDArray[Any]:
    """Return the mean position of the voxels of a mask, in RAS mm."""
    import numpy as np

    mask = read_volume(given, least=_ANY_SIDES)
    if mask.affine is None and mask.values.shape != volume.values.shape:
        raise InputContractError(
            f"the mask {mask.source} has {mask.values.shape} voxels, {volume.source} {volume.values.shape}: an array "
            "is taken to be on the volume's own grid. Pass the mask's file, or nibabel.Nifti1Image(array, affine)"
        )
    inside = np.argwhere(mask.values != 0)
    _check_mask(mask, inside)
    matrix = volume.grid.affine if mask.affine is None else mask.affine
    centre: NDArray[Any] = matrix[:3, :3] @ inside.mean(axis=0) + matrix[:3, 3]
    return centre


def _check_mask(mask: Volume, inside: NDArray[Any]) -> None:
    """Check that a mask is of one lesion, for the centre of several lies between them."""
    import numpy as np
    from scipy import ndimage

    if not len(inside):
        raise InputContractError(f"the mask {mask.source} is 0 everywhere: voxels of a lesion are expected in it")
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    values = mask.values[box]
    found = np.unique(values[values != 0])
    if len(found) > 1 or not np.isfinite(found).all():
        raise InputContractError(
            f"the mask {mask.source} has {len(found)} values other than 0: a mask of one lesion is expected, with one. "
            "Of several lesions pass one at a time, for example labels == 1"
        )
    if (parts := ndimage.label(values != 0, structure=np.ones((3, 3, 3)))[1]) > 1:
        warn_of(
            mask.source,
            f"the mask {mask.source} has {parts} parts that do not touch: the seed point is the centre of all, which "
            "may lie in none. Of several lesions pass one at a time",
        )
