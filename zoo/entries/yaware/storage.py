"""Where y-Aware's volumes lie: one array, or a folder of NIfTI files that a table names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputContractError, OptionError
from zoo.volumes import read_volume

Row = dict[str, str]

log = logging.getLogger("zoo")

IDENTIFIERS = ("participant_id", "session", "run")
"""Columns that identify a row, as BIDS calls them."""


def identify(rows: Sequence[Row], table: Path) -> list[str]:
    """Return what each row is called: its identifiers, as `sub-01_ses-2`, else its file, else its number from 0.

    Raises:
        OptionError: Identifiers are empty, or not unique.
    """
    if "participant_id" not in rows[0]:
        return [row.get("file", f"volume {i}") for i, row in enumerate(rows)]
    columns = [column for column in IDENTIFIERS if column in rows[0]]
    names = ["_".join(row[column].strip() for column in columns) for row in rows]
    if empty := [i for i, row in enumerate(rows, start=1) if not row["participant_id"].strip()]:
        raise OptionError(f"{table}: {len(empty)} rows have no participant_id (first: row {empty[0]})")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise OptionError(
            f"{table}: {len(twice)} identifiers ({', '.join(columns)}) stand in several rows (first: "
            f"{', '.join(twice[:5])}). Remove repeated rows; sessions of one subject are told by a column 'session'"
        )
    return names


def open_array(source: Path) -> npt.NDArray[Any]:
    """Map an array, so that only what is asked for is read.

    Raises:
        InputContractError: It is no `.npy` file, or is cut short.
    """
    try:
        array: npt.NDArray[Any] = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputContractError(f"cannot read {source} as an array of volumes (.npy): {error}") from error
    return array


def check_array(source: Path, count: int, table: Path) -> tuple[int, ...]:
    """Return the shape of an array's volumes.

    Raises:
        OptionError: There is no such file, or the table has another number of rows than it has volumes.
        InputContractError: It is no array of volumes.
    """
    if not source.is_file():
        raise OptionError(f"{source} is neither an array of volumes (.npy) nor a folder of NIfTI files")
    array = open_array(source)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = getattr(array, "dtype", "several arrays")
        raise InputContractError(f"{source} holds {kind}: one array of real numbers is expected")
    is_single = array.ndim == 5 and array.shape[1] == 1
    if not (is_single or array.ndim == 4):
        raise InputContractError(f"{source} has shape {array.shape}: (n, 1, D, H, W) or (n, D, H, W) is expected")
    if len(array) != count:
        raise OptionError(f"{source} has {len(array)} volumes, {table} has {count} rows: one row a volume is expected")
    return array.shape[-3:]


def check_order(source: Path, rows: Sequence[Row], names: Sequence[str], table: Path) -> None:
    """Compare the table's identifiers with the array's, where it has some.

    Raises:
        OptionError: They differ, or the table has none.
    """
    file = source.with_suffix(".ids.txt")
    if not file.is_file():
        log.info("%s: its volumes are taken to be in the order of %s; no %s says so", source, table, file.name)
        return
    if "participant_id" not in rows[0]:
        raise OptionError(f"{file} says whose the volumes are, but {table} has no column participant_id")
    stored = file.read_text().split()
    if len(stored) != len(names):
        raise OptionError(f"{file} has {len(stored)} identifiers, {table} has {len(names)} rows")
    if wrong := [i for i, pair in enumerate(zip(stored, names, strict=True)) if pair[0] != pair[1]]:
        raise OptionError(
            f"{table} is not in the order of {source}: {len(wrong)} of {len(names)} rows differ, the first is row "
            f"{wrong[0] + 1}, {names[wrong[0]]!r} where the array has {stored[wrong[0]]!r}. "
            f"Sort the table by {file.name}"
        )


def find_files(folder: Path, rows: Sequence[Row], names: Sequence[str], table: Path) -> list[Path]:
    """File of each row: what its column `file` says, else the one file whose name has the row's identifiers in it.

    Raises:
        OptionError: There is neither column, or several files or several rows fit.
        InputContractError: Files are missing.
    """
    if "file" in rows[0]:
        found = [[folder / row["file"].strip()] for row in rows]
    elif "participant_id" in rows[0]:
        there = [file for file in sorted(folder.rglob("*.nii*")) if file.name.endswith((".nii", ".nii.gz"))]
        found = [_matches(row, there) for row in rows]
    else:
        raise OptionError(f"{table} says whose the volumes in {folder} are by neither column: file, participant_id")
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
        raise OptionError(f"{table}: {len(twice)} files stand for several rows (first: {', '.join(twice[:5])})")
    return [files[0] for files in found]


def _matches(row: Row, files: Sequence[Path]) -> list[Path]:
    """Files whose names have each of the row's identifiers in them, as a whole word: sub-1 is not in sub-10."""
    words = [row[column].strip() for column in IDENTIFIERS if column in row]
    return [
        file
        for file in files
        if all(word in file.name and re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", file.name) for word in words)
    ]


def read_in_place(path: Path) -> tuple[npt.NDArray[Any], str]:
    """Return a file's voxels (D, H, W) in its own grid, and where its axes point to, as "RAS".

    Raises:
        InputContractError: It cannot be read, is not one volume, or does not say where it lies.
    """
    import nibabel

    volume = read_volume(path)
    axes_of: Any = nibabel.orientations.aff2axcodes
    return volume.values, "unknown" if volume.affine is None else "".join(axes_of(volume.affine))
