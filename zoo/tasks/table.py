"""The table of a fine-tuning run: its cases, their labels as numbers, and what they must stay together with."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.embedding import Cases, find_cases, read_list
from zoo.errors import OptionError
from zoo.messages import first_names, printable
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.outputs import Kind
from zoo.training.table import EMPTY

log = logging.getLogger("zoo")

_MOST_CLASSES = 100
"""Classes that a column of text may have before it is taken for something else, as names or dates."""
_SERIES = re.compile(r"(.+?)[_-]\d+$")
"""Names of files that number the images of one patient, as 00000013_004."""


class Columns(NamedTuple):
    """Columns of labels as numbers."""

    kind: Kind
    """`labels`, `classes` or `numbers`."""
    names: tuple[str, ...]
    """Of the outputs: the columns, or the classes of the one column."""
    values: NDArray[np.float64]
    """`(cases, columns)`; NaN for an empty cell. Of classes `(cases, 1)`, the number of each one's class."""


def read_cases(args: FinetuneArgs, *, volumes: bool, lesions: bool) -> Cases:
    """Return the cases of the run's table.

    Raises:
        OptionError: The table cannot be read, or does not fit the folder.
    """
    if args.data and not Path(args.data).is_dir():
        raise OptionError(f"--data {args.data} is no folder that exists: give the one that holds the images")
    cases = read_list(
        args.table,
        volumes=volumes,
        lesions=lesions,
        path_column=args.path_column or None,
        root=args.data or None,
        root_flag="--data",
    )
    if args.data and not lesions:
        _say_unlisted(cases, Path(args.data), volumes=volumes)
    return cases


def _say_unlisted(cases: Cases, folder: Path, *, volumes: bool) -> None:
    """Warn of images in the folder that the table does not have."""
    listed = {Path(path).resolve() for path in cases.paths}
    try:
        there = find_cases([folder], volumes=volumes).paths
    except OptionError:  # none that this network takes: what the table lists is elsewhere, and exists
        return
    if spare := [path for path in there if Path(path).resolve() not in listed]:
        log.warning(
            "%s has %d images that the table does not list, which are left out: %s",
            folder,
            len(spare),
            first_names([str(Path(path).relative_to(folder)) for path in spare], 10),
        )


def column_of(cases: Cases, column: str, flag: str) -> Sequence[Any]:
    """Return a column of the table that a flag names.

    Raises:
        OptionError: There is no such column.
    """
    if column in cases.carried:
        return cases.carried[column]
    raise OptionError(
        f"{flag} {printable(column)}: the table has no such column; it has {first_names(cases.carried, 20)}, beside "
        "those of paths and ids"
    )


def groups_of(cases: Cases, args: FinetuneArgs) -> list[str]:
    """Return what each case must stay together with: the cell of `--group`, or the first case of the same file.

    Raises:
        OptionError: A case has no group, or a file is in two groups.
    """
    if not args.group:
        if not args.split and (series := series_in(cases.paths)):
            log.warning(
                "names of files look like several images of one patient (%s): give --group COLUMN, so that a patient's "
                "images stay together",
                first_names(series, 3),
            )
        first = dict[Path, str]()
        return [first.setdefault(Path(path).resolve(), id) for id, path in zip(cases.ids, cases.paths, strict=True)]
    cells = [text_of(cell) for cell in column_of(cases, args.group, "--group")]
    if blank := [id for id, cell in zip(cases.ids, cells, strict=True) if not cell]:
        raise OptionError(
            f"--group {args.group}: {len(blank)} cases have no group, {first_names(blank, 10)}. Fill them in, or drop "
            "these rows"
        )
    check_files(cases.paths, cells, args.group)
    return cells


def check_files(paths: Sequence[str], groups: Sequence[str], column: str) -> None:
    """Raise `OptionError` where a file of several cases is in two groups: both sides of a split would have it."""
    first = dict[Path, str]()
    files = [Path(path).resolve() for path in paths]
    if both := [
        f"{printable(path)} in {printable(first[file])} and {printable(group)}"
        for path, file, group in zip(paths, files, groups, strict=True)
        if first.setdefault(file, group) != group
    ]:
        raise OptionError(
            f"--group {column}: {len(both)} files are in more than one group: {first_names(both, 10)}. Give all rows "
            "of a file one group"
        )


def series_in(paths: Sequence[str]) -> list[str]:
    """Return files whose names share what is before the number at their end, where at least a tenth of them do."""
    stems = [Path(path).name.split(".")[0] for path in dict.fromkeys(paths)]
    before = [found[1] if (found := _SERIES.match(stem)) else stem for stem in stems]
    counts = Counter(before)
    shared = [stem for stem, own in zip(stems, before, strict=True) if counts[own] > 1]
    # All images of `film_1, film_2, ...` share their beginning: that says nothing of patients.
    return shared if len(counts) > 2 and 10 * len(shared) >= len(stems) else []


def with_labels(cases: Cases, columns: Sequence[str]) -> Cases:
    """Return the cases that have at least one of some labels; the others are left out, and counted.

    Raises:
        OptionError: There is no such column, or no case has a label.
    """
    cells = [column_of(cases, column, "--label") for column in columns]
    kept = [i for i, row in enumerate(zip(*cells, strict=True)) if any(text_of(cell) for cell in row)]
    if not kept:
        raise OptionError(f"--label {', '.join(columns)}: no case has a value there")
    if spare := len(cases) - len(kept):
        without = [cases.ids[i] for i in sorted(set(range(len(cases))) - set(kept))]
        log.warning("%d of %d cases have no label and are left out: %s", spare, len(cases), first_names(without))
    return cases.take(kept)


def classes_or_labels(cases: Cases, columns: Sequence[str]) -> Columns:
    """Read what classify learns: columns of 0 and 1, or one column of classes.

    Raises:
        OptionError: Cells are neither.
    """
    texts = [[text_of(cell) for cell in column_of(cases, column, "--label")] for column in columns]
    numbers = [[_number(text) for text in column] for column in texts]
    are_binary = [all(n in (0, 1) or (n is not None and math.isnan(n)) for n in column) for column in numbers]
    if all(are_binary):
        values = np.array([[np.nan if n is None else n for n in column] for column in numbers], np.float64).T
        return Columns("labels", tuple(columns), values)
    if len(columns) > 1:
        column = next(i for i, is_binary in enumerate(are_binary) if not is_binary)
        odd = [text for text, n in zip(texts[column], numbers[column], strict=True) if text and n not in (0, 1)]
        raise OptionError(
            f"--label {', '.join(columns)}: of several columns each holds 0, 1 or nothing, but {columns[column]} has "
            f"{_values(odd)}. Name one column of classes, or write 0 and 1"
        )
    return _classes(texts[0], columns[0])


def _classes(texts: Sequence[str], column: str) -> Columns:
    numbers = [_number(text) for text in texts]
    distinct = sorted(set(texts))
    if not any(n is None or math.isnan(n) for n in numbers):
        if odd := [text for text, n in zip(texts, numbers, strict=True) if n is not None and not float(n).is_integer()]:
            raise OptionError(
                f"--label {column}: {len(odd)} cells are no whole numbers, such as {odd[0]}: for measured numbers give "
                "--task regress"
            )
        texts = [str(int(n)) for n in numbers if n is not None]
        distinct = sorted(set(texts), key=int)
    _check_spelling(distinct, column)
    if len(distinct) > min(_MOST_CLASSES, len(texts) // 2):
        raise OptionError(
            f"--label {column} has {len(distinct)} classes for {len(texts)} cases, {_values(texts)}: a class needs "
            "several cases. For measured numbers give --task regress"
        )
    position = {name: i for i, name in enumerate(distinct)}
    return Columns("classes", tuple(distinct), np.array([[position[text]] for text in texts], np.float64))


def _check_spelling(names: Sequence[str], column: str) -> None:
    """Raise `OptionError` where classes differ in capitals alone: they would be learnt as opposites."""
    alike = dict[str, list[str]]()
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    if several := [" and ".join(map(repr, own)) for own in alike.values() if len(own) > 1]:
        raise OptionError(
            f"--label {column} has classes that differ in capitals alone: {first_names(several, 5)}. Write each class "
            "in one way"
        )


def numbers_in(cases: Cases, columns: Sequence[str]) -> Columns:
    """Read what regress learns.

    Raises:
        OptionError: A cell is no number.
    """
    found = []
    for column in columns:
        texts = [text_of(cell) for cell in column_of(cases, column, "--label")]
        numbers = [_number(text) for text in texts]
        if odd := [text for text, n in zip(texts, numbers, strict=True) if n is None or math.isinf(n)]:
            raise OptionError(
                f"--label {column}: {len(odd)} of {len(texts)} cells are no numbers, {_values(odd)}. For classes give "
                "--task classify"
            )
        found.append(numbers)
    return Columns("numbers", tuple(columns), np.array(found, np.float64).T)


def text_of(cell: object) -> str:
    """A cell as text, empty where it says nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    text = str(cell).strip()
    return "" if text.lower() in EMPTY else text


def _number(text: str) -> float | None:
    """A text as a number, NaN for an empty one; None where it is none."""
    if "_" in text:  # Python takes 1_0 for 10; in a table it is a name
        return None
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None


def _values(texts: Sequence[str]) -> str:
    return first_names([repr(text) for text in dict.fromkeys(texts)], 5)
