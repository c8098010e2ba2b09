"""Label maps: a whole number for each voxel of an image, 0 for the background."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.files import write_atomically
from zoo.images.volumes import Volume, read_volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray

MOST_CLASSES = 256
"""That labels of one byte tell apart."""


def read_labels(path: Path) -> Volume:
    """Read a label map `(i, j, k)` with its affine, in any form that `read_volume` reads.

    Raises:
        InputContractError: It cannot be read, or has values that no class can have.
    """
    import numpy as np

    found = read_volume(path)
    values = np.unique(found.values)
    if wrong := [f"{value:g}" for value in values if not (0 <= value < MOST_CLASSES and value == round(value))]:
        raise InputContractError(f"{path} has values {', '.join(wrong[:10])}: whole numbers from 0 on are expected")
    return found


def write_labels(labels: NDArray[Any], file: Path, affine: NDArray[Any], header: Nifti1Header | None = None) -> None:
    """Write labels as a NIfTI of uint8, compressed, whole or not at all; the same labels give the same bytes.

    Args:
        labels: `(i, j, k)`, from 0 to 255.
        file: `*.nii.gz`; its folder is made.
        affine: `(4, 4)`, from voxel `(i, j, k, 1)` to mm.
        header: Of the image that they are of, whose codes and units are taken over; None where it is no NIfTI.
    """
    import numpy as np
    from nibabel.nifti1 import Nifti1Image

    found = Nifti1Image(labels, affine, header, dtype=np.uint8)
    found.header["cal_min"] = found.header["cal_max"] = 0  # grey levels, in which viewers would show no label
    write_atomically(file, lambda temporary: temporary.write_bytes(gzip.compress(found.to_bytes(), mtime=0)))
