"""Reads the table of a probe: its cases, their labels, what they must stay together with, and their part."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError
from zoo.evaluation.target import read_labels
from zoo.messages import first_names, printable
from zoo.tables import read_columns, separator_hint
from zoo.tasks.cells import check_groups, text_of
from zoo.tasks.splits import unused_parts
from zoo.tasks.table import check_files, series_in

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger("zoo")

PATH_COLUMNS = ("path", "image_path", "file")
TRAIN, VAL, TEST = "train", "val", "test"
_PARTS = (TRAIN, VAL, TEST)


@dataclass(frozen=True)
class Labelled:
    """Cases with a label, in the order of their rows."""

    rows: tuple[int, ...]
    """Position of each case in the table."""
    ids: tuple[str, ...]
    """What each is called: its id, else its path, else its row."""
    paths: tuple[str, ...] | None
    """As the table has them; None where it has no column of them."""
    have_ids: bool
    texts: tuple[str, ...]
    """Labels."""
    groups: tuple[str, ...]
    parts: tuple[str, ...] | None
    """Train or test; None without a column of parts."""
    group_column: str | None
    split_column: str | None
    table: Path | None
    """None where it came from memory."""
    table_rows: int
    without_label: int
    without_split: int
    all_names: Sequence[str]
    """Ids of all rows of the table, those without a label too."""
    all_paths: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, kept: Sequence[int]) -> Labelled:
        """Return some of the cases, in the order of `kept`."""

        def of(cells: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(cells[i] for i in kept)

        return replace(
            self,
            rows=of(self.rows),
            ids=of(self.ids),
            paths=None if self.paths is None else of(self.paths),
            texts=of(self.texts),
            groups=of(self.groups),
            parts=None if self.parts is None else of(self.parts),
        )

    @property
    def root(self) -> Path:
        """From where relative paths lead where nobody says it."""
        return self.table.parent if self.table is not None else Path()


def read_labelled(
    table: str | Path | DataFrame,
    column: str,
    *,
    group: str | None = None,
    split: str | None = None,
    path_column: str | None = None,
    kind: str | None = None,
    uncertain: str | None = None,
) -> Labelled:
    """Return the cases of a table that have a label, and a part where parts are asked for.

    Args:
        table: `.csv`, `.tsv` or `.parquet`, or a DataFrame.
        column: Column of labels.
        group: Column of what each case must stay together with, the patient; None for each case alone.
        split: Column of train, val and test. Cases of `val` are tested where there is no `test`, else learnt from.
        path_column: Column of paths; None for the first of `PATH_COLUMNS`.
        kind: As `zoo.evaluation.target.read_target` takes it.
        uncertain: What a label of -1 is, as `zoo.tasks.cells.certain` takes it; None to leave it as it is.

    Raises:
        OptionError: A column or row is not there or cannot be used, an id is there twice, a case has no group, or a
            file or a group is on both sides.
    """
    columns, path = _columns_of(table)
    labels = read_labels(_cells(columns, column, "--column", path), column, kind, uncertain or "")
    paths = _paths(columns, path_column, path)
    ids = _ids(columns, paths, len(labels), path)
    words = None if split is None else [text_of(cell).lower() for cell in _cells(columns, split, "--split", path)]
    groups = ids if group is None else _groups(columns, group, ids, path)
    without = [i for i, label in enumerate(labels) if not label]
    unplaced = [i for i, label in enumerate(labels) if label and words is not None and not words[i]]
    left_out = {*without, *unplaced}
    kept = [i for i in range(len(labels)) if i not in left_out]
    if not labels:
        raise OptionError(f"{printable(path) if path else 'the table'} has no rows: one for each case is expected")
    if not kept:
        lacking = "a value there" if split is None else f"a value there and a {printable(split)}"
        raise OptionError(f"--column {printable(column)}: no case has {lacking}")
    if split is None and (unused := unused_parts(columns)):
        log.warning("%s", unused)
    _say_left_out([ids[i] for i in without], "no label", len(labels))
    _say_left_out([ids[i] for i in unplaced], "no part", len(labels))
    found = Labelled(
        tuple(kept),
        tuple(ids[i] for i in kept),
        None if paths is None else tuple(paths[i] for i in kept),
        "id" in columns,
        tuple(labels[i] for i in kept),
        tuple(groups[i] for i in kept),
        None if words is None else _parts([words[i] for i in kept], [ids[i] for i in kept], str(split)),
        group,
        split,
        path,
        len(labels),
        len(without),
        len(unplaced),
        ids,
        paths,
    )
    _check_groups(found)
    return found


def _columns_of(table: str | Path | DataFrame) -> tuple[Mapping[str, Sequence[Any]], Path | None]:
    if isinstance(table, str | Path):
        return read_columns(Path(table)).columns, Path(table)
    return {str(name): table[name].tolist() for name in table.columns}, None


def _cells(columns: Mapping[str, Sequence[Any]], name: str, flag: str, path: Path | None) -> Sequence[Any]:
    if name in columns:
        return columns[name]
    where = printable(path) if path else "the table"
    hint = f": {hint}" if (hint := separator_hint([*columns])) else ""
    raise OptionError(f"{flag} {printable(name)}: {where} has no such column; it has {first_names(columns, 20)}{hint}")


def _paths(columns: Mapping[str, Sequence[Any]], asked: str | None, path: Path | None) -> list[str] | None:
    name = asked or next((name for name in PATH_COLUMNS if name in columns), None)
    return None if name is None else [str(cell) for cell in _cells(columns, name, "--path-column", path)]


def _ids(columns: Mapping[str, Sequence[Any]], paths: list[str] | None, rows: int, path: Path | None) -> list[str]:
    if "id" in columns:
        ids = [text_of(cell) for cell in columns["id"]]
        if blank := sum(not id for id in ids):
            raise OptionError(f"{blank} rows of {printable(path or 'the table')} have no id: fill them in")
    else:
        ids = paths or [f"row {i + 1}" for i in range(rows)]
    seen = set[str]()
    if twice := [id for id in ids if id in seen or seen.add(id)]:  # type: ignore[func-returns-value]
        raise OptionError(
            f"{printable(path or 'the table')} has {len(twice)} cases more than once: {first_names(twice, 10)}. Drop "
            "the rows that repeat them, or add a column 'id' that tells them apart"
        )
    return ids


def _groups(columns: Mapping[str, Sequence[Any]], name: str, ids: Sequence[str], path: Path | None) -> list[str]:
    cells = [text_of(cell) for cell in _cells(columns, name, "--group", path)]
    if blank := [id for id, cell in zip(ids, cells, strict=True) if not cell]:
        raise OptionError(
            f"--group {printable(name)}: {len(blank)} cases have no group, {first_names(blank, 10)}. Fill them in, or "
            "drop these rows"
        )
    check_groups(cells, f"--group {printable(name)}")
    return cells


def _parts(words: Sequence[str], ids: Sequence[str], column: str) -> tuple[str, ...]:
    """Train or test for each case."""
    if odd := [(word, id) for word, id in zip(words, ids, strict=True) if word not in _PARTS]:
        raise OptionError(
            f"--split {printable(column)}: the part of {len(odd)} cases is none of {', '.join(_PARTS)}: it is "
            f"{odd[0][0]!r} for example of {printable(odd[0][1])}. Write one of the three words, or nothing to leave "
            "the case out"
        )
    tested = TEST if TEST in words else VAL
    for part in (TRAIN, tested):
        if part not in words:
            raise OptionError(
                f"--split {printable(column)}: no case with a label has the part {part}. Cases to learn from and cases "
                "to test are expected"
            )
    return tuple(TEST if word == tested else TRAIN for word in words)


def _check_groups(found: Labelled) -> None:
    """Raise `OptionError` where a file or a group would be on both sides."""
    if found.paths is not None:
        opened = [str(found.root / path) for path in found.paths]
        if found.group_column is not None:
            check_files(opened, found.groups, found.group_column)
        elif found.split_column is None and (series := series_in(found.paths)):
            log.warning(
                "names of files look like several images of one patient (%s): give --group COLUMN, so that a patient's "
                "images stay together",
                first_names(series, 3),
            )
        if found.group_column is None:
            _check_once(opened, found)
    if found.parts is not None:
        _check_apart(found.groups, found.parts)


def _check_once(opened: Sequence[str], found: Labelled) -> None:
    """Raise `OptionError` where a file is there as two cases, each of which is a group of its own."""
    first = dict[Path, str]()
    if twice := [
        f"{printable(path)} as {first[file]} and {id}"
        for path, file, id in zip(opened, map(Path.resolve, map(Path, opened)), found.ids, strict=True)
        if first.setdefault(file, id) != id
    ]:
        raise OptionError(
            f"{len(twice)} files are there as several cases: {first_names(twice, 10)}. Name a column by --group that "
            "keeps the cases of a file together"
        )


def _check_apart(groups: Sequence[str], parts: Sequence[str]) -> None:
    sides = {part: {g for g, own in zip(groups, parts, strict=True) if own == part} for part in (TRAIN, TEST)}
    if both := sorted(sides[TRAIN] & sides[TEST]):
        raise OptionError(
            f"{len(both)} of {len(set(groups))} groups are both in the training part and tested: "
            f"{first_names(both, 10)}. What is learnt of a patient would count as skill in the test: give each group "
            "one word"
        )


def _say_left_out(ids: Sequence[str], why: str, rows: int) -> None:
    if ids:
        log.warning("%d of %d cases have %s and are left out: %s", len(ids), rows, why, first_names(ids))
