"""Reads the matrix from voxels to mm out of a NIfTI's header, and refuses one that has no meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.grids import voxel_sizes

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray

MNI152 = 4  # as all codes of spaces from NIFTI_XFORM_... of nifti1.h
SCANNER = 1
_VOXEL_SIZES = (0.1, 20.0)  # mm; beyond them a header is in metres or micrometres, or not filled in
_MOST_SHEAR = 0.9  # of a box's volume is left after a shear of 26 degrees, more than any registration or gantry gives


def affine_in(header: Nifti1Header, source: str) -> tuple[NDArray[Any], int]:
    """Return the matrix to go by of a NIfTI's header, and the code of the space it leads to; see `Volume`.

    Raises:
        InputContractError: There is no matrix, it has no meaning, or two mirror each other.
    """
    import numpy as np
    from nibabel.spatialimages import HeaderDataError

    try:
        forms = [form for form in (header.get_sform(coded=True), header.get_qform(coded=True)) if form[0] is not None]
    except (HeaderDataError, ValueError) as error:
        raise InputContractError(f"{source}: the orientation in its header has no meaning ({error})") from error
    if not forms:
        raise InputContractError(
            f"{source} has no affine (sform and qform have code 0), so left and right are unknown. Set its "
            "affine (image.set_sform(affine, code='mni')); if you know that its voxels are in the order that "
            "the network expects, pass the array"
        )
    if len(forms) == 2 and np.linalg.det(forms[0][0]) * np.linalg.det(forms[1][0]) < 0:
        raise InputContractError(
            f"{source} contradicts itself about left and right: its sform and its qform are mirror images of each "
            "other. Find out which is right and write it into both (image.set_sform, image.set_qform)"
        )
    affine, space = next((form for form in forms if form[1] == MNI152), forms[0])
    return checked_affine(affine, source), int(space)


def checked_affine(affine: NDArray[Any], source: str) -> NDArray[Any]:
    """Return a matrix in float64.

    Raises:
        InputContractError: It has no meaning: voxels of no scan, or axes that are far from right angles.
    """
    import numpy as np

    sizes, (least, most) = voxel_sizes(affine), _VOXEL_SIZES
    sane = np.isfinite(affine).all() and sizes.min() >= least and sizes.max() <= most
    if not sane or abs(np.linalg.det(affine[:3, :3] / sizes)) < _MOST_SHEAR:
        raise InputContractError(
            f"{source} has a meaningless affine in its header: rows {affine[:3].tolist()}. Voxels of {least:g} to "
            f"{most:g} mm along axes at right angles are expected; set the matrix, or resample with the tool it is from"
        )
    return affine.astype(np.float64)
