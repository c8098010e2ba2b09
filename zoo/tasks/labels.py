"""The columns of labels of a fine-tuning run's table: what their cells mean, as numbers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.embedding import Cases
from zoo.errors import OptionError
from zoo.messages import first_names
from zoo.tasks.args import UNCERTAIN
from zoo.tasks.outputs import Kind
from zoo.tasks.table import alike, column_of, text_of

log = logging.getLogger("zoo")

_MOST_CLASSES = 100
"""Classes that a column of text may have before it is taken for something else, as names or dates."""
_DOUBTFUL = -1
"""An uncertain label, in tables such as CheXpert's."""


class Columns(NamedTuple):
    """Columns of labels as numbers."""

    kind: Kind
    """`labels`, `classes` or `numbers`."""
    names: tuple[str, ...]
    """Of the outputs: the columns, or the classes of the one column."""
    values: NDArray[np.float64]
    """`(cases, columns)`; NaN for an empty cell. Of classes `(cases, 1)`, the number of each one's class."""


def with_labels(cases: Cases, columns: Sequence[str], uncertain: str = "") -> Cases:
    """Return the cases that have at least one of some labels; the others are left out, and counted.

    Args:
        cases: Of the table.
        columns: Of the labels.
        uncertain: As `labels_in` takes it.

    Raises:
        OptionError: There is no such column, or no case has a label.
    """
    doubtful = [_say_cells(column_of(cases, column, "--label"), column, uncertain) for column in columns]
    if uncertain and not any(doubtful):
        log.warning("--uncertain %s: no cell of --label %s is -1", uncertain, ", ".join(columns))
    cells = [labels_in(cases, column, uncertain) for column in columns]
    kept = [i for i, row in enumerate(zip(*cells, strict=True)) if any(row)]
    if not kept:
        raise OptionError(f"--label {', '.join(columns)}: no case has a value there")
    if spare := len(cases) - len(kept):
        without = [cases.ids[i] for i in sorted(set(range(len(cases))) - set(kept))]
        log.warning("%d of %d cases have no label and are left out: %s", spare, len(cases), first_names(without))
    return cases.take(kept)


def _say_cells(cells: Sequence[Any], column: str, uncertain: str) -> int:
    """Say which words of a column count as no label, and what becomes of its uncertain labels; return their number."""
    words = Counter(text for cell in cells if cell is not None and not text_of(cell) and (text := str(cell).strip()))
    if words:
        said = first_names([f"{count} {word!r}" for word, count in words.most_common()], 10)
        log.warning("--label %s: %d cells count as no label: %s", column, words.total(), said)
    doubtful = sum(_number(text_of(cell)) == _DOUBTFUL for cell in cells)
    if doubtful and uncertain:
        means = UNCERTAIN[uncertain] or "no label"
        log.warning("--label %s: %d cells are -1 and count as %s, by --uncertain", column, doubtful, means)
    return doubtful


def labels_in(cases: Cases, column: str, uncertain: str = "") -> list[str]:
    """Return the cells of a column of labels as texts, empty where there is none.

    Args:
        cases: Of the table.
        column: Its name.
        uncertain: One of `UNCERTAIN`, what a cell of -1 is; empty to leave it as it is.

    Raises:
        OptionError: There is no such column.
    """
    texts = [text_of(cell) for cell in column_of(cases, column, "--label")]
    return [UNCERTAIN[uncertain] if uncertain and _number(text) == _DOUBTFUL else text for text in texts]


def _check_certain(texts: Sequence[str], column: str) -> None:
    """Raise `OptionError` where -1 stands beside 0 or 1: as a class it would be learnt as a third finding."""
    counts = Counter(_number(text) for text in texts if text)
    if _DOUBTFUL in counts and len(counts) > 1 and set(counts) <= {_DOUBTFUL, 0, 1}:
        said = ", ".join(f"{int(value)} in {counts[value]}" for value in (_DOUBTFUL, 0, 1) if value in counts)
        raise OptionError(
            f"--label {column} is {said} cells: tables such as CheXpert's have -1 for an uncertain label. Say what it "
            "is by --uncertain ignore (no label), positive (1) or negative (0); where -1 is a class, write it as a word"
        )


def classes_or_labels(cases: Cases, columns: Sequence[str], uncertain: str = "") -> Columns:
    """Read what classify learns: columns of 0 and 1, or one column of classes.

    Args:
        cases: Of the table.
        columns: Of the labels.
        uncertain: As `labels_in` takes it.

    Raises:
        OptionError: Cells are neither, or -1 beside 0 and 1 without a word on what that is.
    """
    texts = [labels_in(cases, column, uncertain) for column in columns]
    for name, own in zip(columns, texts, strict=True):
        _check_certain(own, name)
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
    """Raise `OptionError` where classes differ in capitals or blanks alone: they would be learnt as opposites."""
    if several := alike(names):
        raise OptionError(
            f"--label {column} has classes that differ in capitals or blanks alone: {first_names(several, 5)}. Write "
            "each class in one way"
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
