"""Arrays in files of NumPy's formats: read without pickle, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputContractError
from zoo.files import write_atomically


def read_array(file: Path, what: str, *, is_mapped: bool = False) -> npt.NDArray[Any]:
    """Read or map an array of any shape and any type but Python objects; errors call it `what`.

    Raises:
        InputContractError: The file is missing, cut short, or not `.npy`.
    """
    try:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r" if is_mapped else None, allow_pickle=False)
    except OSError as error:
        raise InputContractError(f"cannot read {what} from {file}: {error.strerror or error}") from error
    except (EOFError, ValueError) as error:  # NumPy's own message advises unpickling
        raise InputContractError(f"cannot read {what} from {file}: a whole .npy file is expected") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputContractError(f"cannot read {what} from {file}, which holds several arrays: .npy is expected")
    return array


def read_numbers(file: Path, shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """Read an array of real numbers.

    Raises:
        InputContractError: The file is missing, does not hold real numbers, or has another shape than expected.
    """
    array = read_array(file, "an array")
    if array.dtype.kind not in "biuf" or (shape is not None and array.shape != tuple(shape)):
        expected = "" if shape is None else f" {tuple(shape)}"
        raise InputContractError(f"{file} holds {array.dtype} {array.shape}: real numbers{expected} are expected")
    return array


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array that this zoo wrote, so that only the part that is used is read."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write `.npy`, whole or not at all; several processes may write the same array."""
    write_atomically(path, lambda place: _open_and(np.save, place, array))


def save_arrays(path: Path, **arrays: npt.ArrayLike) -> None:
    """Write `.npz`."""
    write_atomically(path, lambda place: _open_and(np.savez, place, **arrays))


def _open_and(save: Callable[..., None], place: Path, *args: Any, **arrays: Any) -> None:
    """Save into an open file: given a name, NumPy would add a suffix."""
    with place.open("wb") as file:
        save(file, *args, **arrays)
