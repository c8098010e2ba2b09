"""Files of y-Aware's volumes, one array or a folder of NIfTI files, and the rows of a table that belong to them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import voxel_sizes
from zoo.messages import lengths
from zoo.tables import EMPTY
from zoo.training.arrays import read_array
from zoo.transforms import VolumeTransform, build_volume_transform

Row = dict[str, str]

log = logging.getLogger("zoo")

IDENTIFIERS = ("participant_id", "session", "run")
"""Columns that identify a row, by their BIDS names; `session` and `run` may be empty."""
SAME_PLACE = 1e-3
"""Largest difference, in mm, between voxel-to-world matrices of files on one grid."""
_OF_MAPS = r"^(?:s\d*)?(?:m0?)?(?:w[cp]\d|[cp]\d(?!\d))"
"""Prefixes of CAT12 and SPM, directly before the name of the scan: smoothed, modulated, warped, and the tissue (mwp1,
m0wp1, smwc1, c1). Without the w, a following digit may belong to another number."""


def identify(rows: Sequence[Row], table: Path) -> list[str]:
    """Return a name for each row: its identifiers, as `sub-01_ses-2`, else its file, else its number from 0.

    Raises:
        OptionError: Identifiers are empty, or not unique.
    """
    if "participant_id" not in rows[0]:
        return [row.get("file", f"volume {i}") for i, row in enumerate(rows)]
    columns = [column for column in IDENTIFIERS if column in rows[0]]
    names = ["_".join(_identifiers(row)) for row in rows]
    if empty := [i for i, row in enumerate(rows, start=1) if _is_empty(row["participant_id"])]:
        raise OptionError(f"{table}: {len(empty)} rows have no participant_id (first: row {empty[0]})")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise OptionError(
            f"{table}: {len(twice)} identifiers ({', '.join(columns)}) are in several rows (first: "
            f"{', '.join(twice[:5])}). Remove repeated rows; a column 'session' tells sessions of one subject apart"
        )
    return names


def conditions(rows: str) -> dict[str, str]:
    """Column -> value of "column=value,column=value".

    Raises:
        OptionError: `rows` has another form.
    """
    conditions = {}
    for part in filter(None, rows.split(",")):
        column, equals, value = part.partition("=")
        if not equals:
            raise OptionError(f"rows {rows!r}: expected column=value, or several with commas between")
        conditions[column.strip()] = value.strip()
    return conditions


def open_array(source: Path) -> npt.NDArray[Any]:
    """Map an array of volumes, so that only the part that is used is read.

    Raises:
        InputContractError: The file is not `.npy`, or is cut short.
    """
    return read_array(source, "an array of volumes", is_mapped=True)


def check_array(source: Path, count: int, table: Path) -> tuple[int, ...]:
    """Return the shape of an array's volumes.

    Raises:
        OptionError: The file does not exist, or the table has another number of rows.
        InputContractError: The file does not hold an array of volumes.
    """
    if not source.is_file():
        raise OptionError(f"{source} is neither an array of volumes (.npy) nor a folder of NIfTI files")
    array = open_array(source)
    if array.dtype.kind not in "buif":
        raise InputContractError(f"{source} holds {array.dtype}: one array of real numbers is expected")
    is_single = array.ndim == 5 and array.shape[1] == 1
    if not (is_single or array.ndim == 4):
        raise InputContractError(f"{source} has shape {array.shape}: (n, 1, D, H, W) or (n, D, H, W) is expected")
    if len(array) != count:
        raise OptionError(
            f"{source} has {len(array)} volumes, but {table} has {count} rows: one row for each volume is expected"
        )
    return array.shape[-3:]


def check_order(source: Path, rows: Sequence[Row], names: Sequence[str], table: Path) -> None:
    """Compare the table's identifiers with those of the array, where it has a file of them.

    Raises:
        OptionError: They differ, or the table has no identifiers.
    """
    file = source.with_suffix(".ids.txt")
    if not file.is_file():
        if "participant_id" in rows[0]:
            _warn_of_order(source, table)
        return
    if "participant_id" not in rows[0]:
        raise OptionError(f"{file} identifies the volumes, but {table} has no column participant_id")
    stored = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if len(stored) != len(names):
        raise OptionError(f"{file} has {len(stored)} identifiers, but {table} has {len(names)} rows")
    if wrong := [i for i, pair in enumerate(zip(stored, names, strict=True)) if pair[0] != pair[1]]:
        raise OptionError(
            f"{table} is not in the order of {source}: {len(wrong)} of {len(names)} rows differ, the first is row "
            f"{wrong[0] + 1}, {names[wrong[0]]!r} where the array has {stored[wrong[0]]!r}. "
            f"Sort the table by {file.name}"
        )


@cache  # once, however many sets of rows are read from the two
def _warn_of_order(source: Path, table: Path) -> None:
    log.warning(
        "nothing shows whether the rows of %s are in the order of the volumes of %s: write the identifiers in the "
        "array's order, one a line, into %s",
        table,
        source,
        source.with_suffix(".ids.txt"),
    )


def find_files(folder: Path, rows: Sequence[Row], names: Sequence[str], table: Path) -> list[Path]:
    """File of each row: that of its column `file`, else the one file whose name contains the row's identifiers.

    Raises:
        OptionError: Both columns are missing, or several files fit a row, or one file several rows.
        InputContractError: Files are missing.
    """
    if "file" in rows[0]:
        found = [[folder / row["file"].strip()] for row in rows]
    elif "participant_id" in rows[0]:
        there = [file for file in sorted(folder.rglob("*.nii*")) if file.name.endswith((".nii", ".nii.gz"))]
        found = [_matches(row, there) for row in rows]
    else:
        raise OptionError(f"{table} has neither a column file nor participant_id to find volumes in {folder} by")
    if missing := [name for name, files in zip(names, found, strict=True) if not any(f.is_file() for f in files)]:
        raise InputContractError(
            f"{len(missing)} of {len(rows)} volumes are not in {folder}: {', '.join(missing[:10])}"
        )
    for name, files in zip(names, found, strict=True):
        if len(files) > 1:
            raise OptionError(
                f"{len(files)} files in {folder} fit {name}: {', '.join(f.name for f in files[:5])}. Name each row's "
                f"file in a column 'file' of {table}"
            )
    if twice := [str(file) for file, count in Counter(files[0] for files in found).items() if count > 1]:
        raise OptionError(f"{table}: {len(twice)} files belong to several rows (first: {', '.join(twice[:5])})")
    return [files[0] for files in found]


def _matches(row: Row, files: Sequence[Path]) -> list[Path]:
    """Files whose names contain each of the row's identifiers as a whole word: sub-10 does not contain sub-1."""
    words = _identifiers(row)
    return [file for file in files if all(word in file.name and _has_word(file.name, word) for word in words)]


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?:{_OF_MAPS}|(?<![^\W_])){re.escape(word)}(?![^\W_])", name) is not None


def _identifiers(row: Row) -> list[str]:
    """Identifiers that a row has, `participant_id` first."""
    return [row[column].strip() for column in IDENTIFIERS if column in row and not _is_empty(row[column])]


def _is_empty(cell: str) -> bool:
    return cell.strip().lower() in EMPTY


def build_transform(contract: Preprocessing, source: Path) -> VolumeTransform:
    """Return the transform that brings the files of a folder to the grid of an input contract.

    Raises:
        OptionError: The contract has no affine.
    """
    if contract.affine is None:
        raise OptionError(
            f"{source}: the position of these weights' input ({contract.size} voxels) is not on record, so NIfTI files "
            f"cannot be brought to its grid; give an array, or files on that grid with --grid any"
        )
    return build_volume_transform(contract)


def is_same_place(one: npt.NDArray[np.float64] | None, other: npt.NDArray[np.float64] | None) -> bool:
    """Whether two voxel-to-world matrices are equal, or both unknown."""
    if one is None or other is None:
        return one is other
    return bool(np.abs(one - other).max() <= SAME_PLACE)


def affine_in_words(affine: npt.NDArray[np.float64] | None) -> str:
    """Directions of the axes, size of the voxels and origin of a voxel-to-world matrix, for messages."""
    import nibabel

    if affine is None:
        return "at no known place"
    axes: Any = nibabel.orientations.aff2axcodes
    sizes = lengths(voxel_sizes(affine))
    origin = ", ".join(f"{x:.4g}" for x in affine[:3, 3])
    return f"axes {''.join(axes(affine))}, voxels of {sizes} mm, the first at ({origin}) mm"
