"""The columns of labels of a fine-tuning run's table: what their cells mean, as numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.embedding import Cases
from zoo.errors import OptionError
from zoo.messages import first_names, printable
from zoo.tasks.cells import (
    certain,
    check_certain,
    number_of,
    read_classes,
    read_numbers,
    say_cells,
    text_of,
    texts_of,
    values_of,
)
from zoo.tasks.outputs import Kind
from zoo.tasks.table import column_of

log = logging.getLogger("zoo")


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
    cells = [labels_in(cases, column, uncertain) for column in columns]
    say_cells({column: column_of(cases, column, "--label") for column in columns}, "--label", uncertain)
    kept = [i for i, row in enumerate(zip(*cells, strict=True)) if any(row)]
    if not kept:
        raise OptionError(f"--label {', '.join(columns)}: no case has a value there")
    if spare := len(cases) - len(kept):
        without = [cases.ids[i] for i in sorted(set(range(len(cases))) - set(kept))]
        log.warning("%d of %d cases have no label and are left out: %s", spare, len(cases), first_names(without))
    return cases.take(kept)


def labels_in(cases: Cases, column: str, uncertain: str = "") -> list[str]:
    """Return the cells of a column of labels as texts, empty where there is none.

    Args:
        cases: Of the table.
        column: Its name.
        uncertain: One of `UNCERTAIN`, what a cell of -1 is; empty to leave it as it is.

    Raises:
        OptionError: There is no such column.
    """
    return certain(texts_of(column_of(cases, column, "--label")), uncertain)


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
        check_certain(own, f"--label {printable(name)}")
    odd = [[text for text in own if text and number_of(text) not in (0, 1)] for own in texts]
    if not any(odd):
        values = [[np.nan if (n := number_of(text)) is None else n for text in own] for own in texts]
        return Columns("labels", tuple(columns), np.array(values, np.float64).T)
    if len(columns) > 1:
        column = next(i for i, own in enumerate(odd) if own)
        raise OptionError(
            f"--label {', '.join(columns)}: of several columns each holds 0, 1 or nothing, but {columns[column]} has "
            f"{values_of(odd[column])}. Name one column of classes, or write 0 and 1"
        )
    return _classes(texts[0], columns[0])


def _classes(texts: Sequence[str], column: str) -> Columns:
    numbers, classes = read_classes(texts, f"--label {printable(column)}", "For measured numbers give --task regress")
    return Columns("classes", classes, np.array(numbers, np.float64)[:, None])


def numbers_in(cases: Cases, columns: Sequence[str]) -> Columns:
    """Read what regress learns.

    Raises:
        OptionError: A cell is no number.
    """
    found = []
    for column in columns:
        texts = [text_of(cell) for cell in column_of(cases, column, "--label")]
        found.append(read_numbers(texts, f"--label {printable(column)}", "For classes give --task classify"))
    return Columns("numbers", tuple(columns), np.array(found, np.float64).T)
