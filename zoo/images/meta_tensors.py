"""Finds the affine of a MONAI MetaTensor where a file or the user gave it one, not MONAI's default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.real_numbers import plain_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TAG = re.compile(r"[0-9A-Fa-f]{8}")  # how MONAI's PydicomReader calls what a DICOM header holds
_DICOM_POSITION = ("00200032", "00200037")  # ImagePositionPatient, ImageOrientationPatient
_FILES = re.compile(r"\.(nii|nii\.gz|hdr|img|mgh|mgz|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)
_LPS = ("LPS", "LEFT-POSTERIOR-SUPERIOR")


def affine_of(tensor: Any, source: str) -> NDArray[Any]:
    """Return the matrix of a MetaTensor as nibabel has it, x to the right and y to the front.

    MONAI gives every tensor a matrix: one that was made of an array, or read from a file of arrays or pictures, or from
    DICOM without ImageOrientationPatient, has an identity, its axes perhaps exchanged, which says nothing. Of a NIfTI
    file without sform and qform nibabel's guess comes along. So the matrix counts where the header that came along
    speaks for it, or, without one, where it is not an identity and no transform made it from one.

    Args:
        tensor: With MONAI's `affine` and `meta`.
        source: What messages call it.

    Raises:
        InputContractError: The matrix is made up.
    """
    import numpy as np

    matrix: NDArray[Any] = plain_tensor(tensor.affine, f"the affine of {source}").detach().cpu().double().numpy()
    if matrix.shape != (4, 4):
        raise InputContractError(f"{source} has an affine of {matrix.shape}: 4 x 4 numbers are expected")
    meta = {str(key): value for key, value in tensor.meta.items()}
    is_changed = bool(getattr(tensor, "applied_operations", None))
    if not _is_known(matrix, meta, is_changed=is_changed):
        raise InputContractError(
            f"{source} comes without the size and direction of its voxels: its affine may be the identity that MONAI "
            "fills in where no file gives one, so left and right are unknown. Pass the file, "
            "nibabel.Nifti1Image(array, affine), or MetaTensor(array, affine=affine) before any transform of MONAI's; "
            "where the network takes voxels as they are stored, tensor.as_tensor()"
        )
    if str(meta.get("space", "")).upper() in _LPS:
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return matrix


def _is_known(matrix: NDArray[Any], meta: Mapping[str, Any], *, is_changed: bool) -> bool:
    if "sform_code" in meta or "qform_code" in meta:
        return bool(meta.get("sform_code", 0) or meta.get("qform_code", 0))
    if any(_TAG.fullmatch(key) for key in meta):
        return all(tag in meta for tag in _DICOM_POSITION)
    file, read = str(meta.get("filename_or_obj", "")), meta.get("original_affine")
    if read is None and (file or is_changed):  # its reader reads no positions, or a transform moved MONAI's identity
        return False
    return not _is_unit(matrix if read is None else read) or bool(_FILES.search(file))


def _is_unit(affine: Any) -> bool:
    """Whether a matrix is an identity but for the order and direction of the axes, with the origin at the corner."""
    import numpy as np

    matrix = np.asarray(affine, dtype=np.float64)
    size = np.abs(matrix)
    is_order = np.isin(size, (0, 1)).all() and (size.sum(0) == 1).all() and (size.sum(1) == 1).all()
    return bool(is_order and not matrix[:3, 3].any())
