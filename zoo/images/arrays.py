"""Reads a `.npy` file so that neither its header nor its size can take more memory than its values need."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.images.reading import MOST_VOXELS, check_count, fill, refused, start_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 2**16
"""NumPy itself refuses one of more than 10 000 bytes, after it has read it."""


def map_npy(path: Path) -> NDArray[Any]:
    """Return the array of a `.npy` file, of any type and shape but of Python's objects, mapped and not read.

    Raises:
        InputContractError: It is not a whole `.npy` file, or declares too much.
    """
    import numpy as np

    with refused(f"cannot read {path} as an array"):
        start = start_of(path, "array")
        if not start.startswith(_MAGIC):
            raise ValueError("it is not a .npy file")
        if start[6] > 1 and int.from_bytes(start[8:12], "little") > _LONGEST_HEADER:
            raise ValueError("its header is longer than any that NumPy writes")
        with np.errstate(over="ignore"):
            array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if excess := path.stat().st_size - array.offset - array.nbytes:
            raise ValueError(f"it has {excess} bytes more than its header declares")
        check_count(array.shape, MOST_VOXELS, path, unit="values")
        mapped: NDArray[Any] = array
        return mapped


def read_values(path: Path, mapped: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the real numbers of a mapped file as float32 `shape`, C order, without its pages in memory.

    Args:
        path: The file.
        mapped: From `map_npy`.
        shape: Its shape, with or without axes of length 1.

    Raises:
        InputContractError: The file cannot be read.
    """
    import numpy as np

    found: Any = mapped
    is_fortran = found.flags.f_contiguous and not found.flags.c_contiguous
    with refused(f"cannot read {path} as an array"), path.open("rb") as file:
        values = np.empty(shape, np.float32)
        file.seek(found.offset)

        def read(part: tuple[int, ...]) -> NDArray[Any]:
            return np.fromfile(file, found.dtype, prod(part)).reshape(part)

        with np.errstate(over="ignore", invalid="ignore"):
            fill(values.T if is_fortran else values, read)
    return values
