"""Reads the lesions of a table, each a volume with a seed point, for networks that look at one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import OptionError, PathNotFoundError
from zoo.messages import first_names, printable, said_of_missing
from zoo.tables import SUFFIXES, Table, read_columns

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
        tables: CSV, TSV or Parquet files that have the `COLUMNS`; others are left alone.

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


def lesions_of(table: Table, path_column: str = COLUMNS[0]) -> list[Lesion]:
    """Return the lesion of each row of a table, its path as it stands there.

    Raises:
        OptionError: A column is absent, there are no rows, or one is without a path or three numbers.
    """
    wanted = (path_column, *COLUMNS[1:])
    if absent := [column for column in wanted if column not in table.columns]:
        raise OptionError(
            f"{printable(table.path)} lacks columns {first_names(absent)}; {printable(', '.join(wanted))} are expected"
        )
    if not len(table):
        raise OptionError(f"{printable(table.path)} has no rows: one for each lesion is expected")
    columns = {column: table.columns[column] for column in wanted}
    return [
        _lesion(dict(zip(wanted, row, strict=True)), f"{printable(table.path)}, {table.at(number)}")
        for number, row in enumerate(zip(*columns.values(), strict=True))
    ]


def _check_exist(paths: Iterable[Path]) -> None:
    given = list(paths)
    if missing := [printable(path) for path in given if not path.exists()]:
        raise PathNotFoundError(said_of_missing(missing, len(given)))


def _lesions_in(table: Path) -> list[Lesion]:
    if table.is_dir() or table.suffix.lower() not in SUFFIXES:
        raise OptionError(
            f"{table} comes without a seed point: this network looks at one lesion. A table ({', '.join(SUFFIXES)}) "
            f"with the columns {', '.join(COLUMNS)} is expected, a row for each lesion, its point in LPS mm. In Python "
            "load_transform(NAME)((path, (x, y, z))) makes the input of one"
        )
    return lesions_of(read_columns(table))


def _lesion(row: dict[str, Any], at: str) -> Lesion:
    path, *cells = row.values()
    try:
        x, y, z = map(float, cells)
    except (TypeError, ValueError):
        x = y = z = float("nan")
    if not isinstance(path, str) or not path.strip() or not all(map(isfinite, (x, y, z))):
        said = ", ".join(f"{printable(column)} {printable(cell)!r:.80}" for column, cell in row.items())
        raise OptionError(f"{at}: {said}: a path and three numbers in mm are expected")
    return Lesion(Path(path), (x, y, z))
