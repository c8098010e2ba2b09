"""Lists the cases of a cohort: files, folders, and the rows of a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.embedding.lesions import COLUMNS, Lesion, lesions_of, read_lesions
from zoo.embedding.paths import NAMED, check_there
from zoo.errors import OptionError, PathNotFoundError
from zoo.images import find_images
from zoo.messages import first_names, printable
from zoo.tables import ArrowColumn, Table, TextColumn, column_names, read_columns, separator_hint

PATH_COLUMNS = ("path", "image_path", "file")
"""Names under which the column of paths is looked for, the first ones first."""
_OURS = re.compile(r"(id|path|slice|patch|feature|token)s?|zoo|f\d+")
"""Names that columns or arrays of ours have in files of features."""


@dataclass(frozen=True)
class Cases:
    """The cases of a cohort, by column: what a process that embeds a share of them is given."""

    ids: Sequence[str]
    """What each is called, no two alike: its cell in the table's column of ids, else its path as it was given, and
    with it the point of a lesion."""
    paths: Sequence[str]
    """What is opened, a file or the folder of a DICOM series."""
    carried: Mapping[str, Sequence[Any]]
    """Further columns of the table by name: texts, or `ArrowColumn`s of Parquet. Empty without a table."""
    points: Sequence[tuple[float, float, float]] | None
    """Seed points in LPS mm, for networks that look at one lesion."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def have_ids(self) -> bool:
        """Whether they are not called by their paths."""
        return any(id != path for id, path in zip(self.ids, self.paths, strict=True))

    def case(self, index: int) -> Path | Lesion:
        """What a transform takes of a case."""
        path = Path(self.paths[index])
        return path if self.points is None else Lesion(path, self.points[index])

    def take(self, indices: Sequence[int]) -> Cases:
        """Return some of the cases, in the order of `indices`; `range(rank, len(cases), ranks)` is a rank's share."""
        return Cases(
            tuple(self.ids[i] for i in indices),
            tuple(self.paths[i] for i in indices),
            {name: _taken(column, indices) for name, column in self.carried.items()},
            None if self.points is None else tuple(self.points[i] for i in indices),
        )


def find_cases(paths: Sequence[str | Path], *, volumes: bool, lesions: bool = False) -> Cases:
    """Return the images at some paths, each once, called by their paths.

    Args:
        paths: Files, and folders for all images in them, see `zoo.images.find_images`; or tables of lesions, whose
            relative paths lead from the working directory, see `zoo.embedding.lesions`.
        volumes: Whether volumes are looked for, not films.
        lesions: Whether the network looks at one lesion.

    Raises:
        PathNotFoundError: A path does not exist; ten are named.
        OptionError: There are no images, or a folder or table cannot be read.
    """
    if not lesions:
        found = TextColumn.of(map(str, find_images(paths, volumes=volumes)))
        return Cases(found, found, {}, None)
    listed = read_lesions([paths] if isinstance(paths, str | Path) else paths)
    if not listed:
        raise OptionError(f"no lesions: name tables with the columns {', '.join(COLUMNS)}")
    points = tuple(lesion.point for lesion in listed)
    return Cases(TextColumn.of(map(str, listed)), TextColumn.of(str(lesion.path) for lesion in listed), {}, points)


def read_list(
    table: str | Path,
    *,
    volumes: bool,
    lesions: bool = False,
    path_column: str | None = None,
    root: str | Path | None = None,
    root_flag: str = "--root",
    id_column: str = "id",
) -> Cases:
    """Return the cases of a table, one for each row, in the order of the rows.

    Args:
        table: `.csv`, `.tsv` or `.parquet`. For volumes a path may be a folder that has DICOM directly in it. All
            columns but those of paths and ids are carried; cells of text files stay text.
        volumes: Whether cases are volumes, not films.
        lesions: Whether the network looks at one lesion: `coordX`, `coordY` and `coordZ` are its seed point in LPS mm.
        path_column: Column of paths; None for the first of `PATH_COLUMNS` that is there, of lesions `image_path`.
        root: Folder from which relative paths lead; None for the table's own, wherever the program was started.
        root_flag: What the command calls `root`, for messages.
        id_column: Column of ids. A table without `id` has its paths for ids; any other name must be there.

    Raises:
        PathNotFoundError: The table or a path does not exist; ten are named.
        OptionError: The table cannot be read, lacks a column, has no rows, a cell without a path or id, ids that are
            not unique, a path twice without ids, a folder that is no series, or a column that is called like one of
            ours.
    """
    table = Path(table)
    names = column_names(table)
    paths_in = _path_column(table, names, path_column, COLUMNS[:1] if lesions else PATH_COLUMNS)
    ids_in = _id_column(table, names, id_column)
    carried = [name for name in names if name not in (paths_in, ids_in)]
    _check_names(table, carried)
    rows = read_columns(table)
    given = _paths_in(rows, paths_in)
    points = tuple(lesion.point for lesion in lesions_of(rows, paths_in)) if lesions else None
    paths = _joined(given, table.parent if root is None else _folder(root))
    if ids_in:
        ids = _texts(rows, ids_in, rows.columns[ids_in], "id")
        _check_ids(table, ids_in, ids)
    else:
        ids = _called(given, points)
        _check_once(table, _called(paths, points))
    check_there(given, paths, None if root is None else Path(root), table, volumes=volumes, root_flag=root_flag)
    return Cases(TextColumn.of(ids), TextColumn.of(paths), {name: rows.columns[name] for name in carried}, points)


def _taken(column: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    return column.take(indices) if isinstance(column, ArrowColumn) else [column[i] for i in indices]


# The columns


def _path_column(table: Path, names: Sequence[str], asked: str | None, expected: Sequence[str]) -> str:
    if found := [name for name in ([asked] if asked is not None else expected) if name in names]:
        return found[0]
    wanted = repr(asked) if asked is not None else " or ".join(map(repr, expected))
    way = separator_hint(names) or "name one of them by --path-column, in Python path_column="
    raise OptionError(
        f"{printable(table)} has no column {printable(wanted)} with the paths; its columns are {_quoted(names)}: {way}"
    )


def _id_column(table: Path, names: Sequence[str], asked: str) -> str | None:
    if asked in names:
        return asked
    if asked == "id":
        return None
    raise OptionError(
        f"{printable(table)} has no column {printable(repr(asked))} with the ids; its columns are {_quoted(names)}: "
        "name one of them by --id-column, in Python id_column="
    )


def _check_names(table: Path, carried: Sequence[str]) -> None:
    if ours := [name for name in carried if _OURS.fullmatch(name)]:
        raise OptionError(
            f"{printable(table)} has columns called {_quoted(ours)}, which would be carried to files of features and "
            "are names of columns there: rename them in the table"
        )


def _quoted(names: Sequence[str]) -> str:
    return first_names(map(repr, names), 2 * NAMED)


# The rows


def _paths_in(table: Table, column: str) -> list[str]:
    cells = list(table.columns[column])
    if others := [cell for cell in cells if cell is not None and not isinstance(cell, str)]:
        raise OptionError(
            f"{printable(table.path)}: column {printable(repr(column))} holds {type(others[0]).__name__}, such as "
            f"{printable(repr(others[0])):.80}: paths as texts are expected"
        )
    return _texts(table, column, cells, "path")


def _texts(table: Table, column: str, cells: Sequence[Any], what: str) -> list[str]:
    """Cells of paths or ids as texts, none of them blank."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    if not texts:
        raise OptionError(f"{printable(table.path)} has no rows: one for each case is expected")
    if blank := [table.at(row) for row, text in enumerate(texts) if not text.strip()]:
        raise OptionError(
            f"{printable(table.path)} has {len(blank)} rows without {what} in column {printable(repr(column))}: "
            f"{first_names(blank, NAMED)}. Fill them in, or drop these rows"
        )
    return texts


def _folder(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise PathNotFoundError(f"the root {printable(root)} of the table's paths is no folder that exists")
    return Path(root)


def _joined(given: Sequence[str], base: Path) -> list[str]:
    """Paths as they are opened; where that is as they were given, the same texts."""
    opened = (str(base / path) for path in given)
    return [path if path == joined else joined for path, joined in zip(given, opened, strict=True)]


def _check_ids(table: Path, column: str, ids: Sequence[str]) -> None:
    if twice := _repeated(ids):
        raise OptionError(
            f"{printable(table)} has {len(twice)} ids more than once in column {printable(repr(column))}: "
            f"{first_names(twice, NAMED)}. Each row needs its own"
        )


def _called(paths: list[str], points: Sequence[tuple[float, float, float]] | None) -> list[str]:
    """What cases without ids of their own are called."""
    if points is None:
        return paths
    return [str(Lesion(Path(path), point)) for path, point in zip(paths, points, strict=True)]


def _check_once(table: Path, cases: Sequence[str]) -> None:
    if twice := _repeated(cases):
        raise OptionError(
            f"{printable(table)} has {len(twice)} paths more than once: {first_names(twice, NAMED)}. Drop the rows "
            "that repeat them, or add a column 'id' that tells them apart"
        )


def _repeated(texts: Iterable[str]) -> list[str]:
    return [text for text, count in Counter(texts).items() if count > 1]
