"""Reads the lesions of a table, each a volume with a seed point, for networks that look at one."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from zoo.errors import OptionError, PathNotFoundError
from zoo.messages import first_names, printable

COLUMNS = ("image_path", "coordX", "coordY", "coordZ")
"""As FMCIB's authors call them: the path from the working directory, and the seed point in LPS mm."""


class Lesion(NamedTuple):
    """A volume and a seed point in it, as `CropTransform` takes them."""

    path: Path
    point: tuple[float, float, float]

    def __str__(self) -> str:
        x, y, z = self.point
        return f"{self.path} ({x!r}, {y!r}, {z!r})"


def read_lesions(tables: Sequence[str | Path]) -> list[Lesion]:
    """Return the lesions of some tables, in their order, each once.

    Args:
        tables: CSV files with a header that has the `COLUMNS`; others are left alone.

    Raises:
        PathNotFoundError: A table or a volume does not exist; ten are named.
        OptionError: A path is that of no table, or a table cannot be read, lacks a column, or has a cell without a
            number where one is due.
    """
    files = [Path(table) for table in tables]
    _check_exist(files)
    lesions = dict.fromkeys(lesion for file in files for lesion in _lesions_in(file))
    _check_exist(dict.fromkeys(lesion.path for lesion in lesions))
    return list(lesions)


def _check_exist(paths: Iterable[Path]) -> None:
    given = list(paths)
    if missing := [printable(path) for path in given if not path.exists()]:
        raise PathNotFoundError(f"{len(missing)} of {len(given)} paths do not exist: {first_names(missing, 10)}")


def _lesions_in(table: Path) -> list[Lesion]:
    if table.is_dir() or table.suffix.lower() != ".csv":
        raise OptionError(
            f"{table} comes without a seed point: this network looks at one lesion. A .csv with the columns "
            f"{', '.join(COLUMNS)} is expected, a row for each lesion, its point in LPS mm. In Python "
            "load_transform(NAME)((path, (x, y, z))) makes the input of one"
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise OptionError(f"{table} lacks columns {', '.join(absent)}; {', '.join(COLUMNS)} are expected")
            lesions = [_lesion(row, f"{table}, line {reader.line_num}") for row in reader]
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {table} as a table (CSV in UTF-8 is expected): {error}") from error
    if not lesions:
        raise OptionError(f"{table} has no rows: one for each lesion is expected")
    return lesions


def _lesion(row: dict[str, str], at: str) -> Lesion:
    path, *cells = (row[column] for column in COLUMNS)
    try:
        x, y, z = map(float, cells)
    except ValueError:
        x = y = z = float("nan")
    if not path.strip() or not all(map(isfinite, (x, y, z))):
        said = ", ".join(f"{column} {printable(row[column])!r:.80}" for column in COLUMNS)
        raise OptionError(f"{at}: {said}: a path and three numbers in mm are expected")
    return Lesion(Path(path), (x, y, z))
