"""Reads the column that a probe learns: two values, several, or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.report import Target, TargetKind
from zoo.messages import printable
from zoo.tasks.cells import (
    certain,
    check_certain,
    number_of,
    read_classes,
    read_numbers,
    say_cells,
    texts_of,
    values_of,
)
from zoo.training.metrics import Array, Floats

KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
_MOST_WHOLE = 10
"""Different whole numbers up to which a column is taken for classes, as grades are; of more it is measured."""
_STRATA = 4
"""Parts of equal size that measured numbers are divided into, so that folds and draws have some of each."""


def read_labels(cells: Sequence[Any], column: str, kind: str | None, uncertain: str) -> list[str]:
    """Return the labels of a column as texts, empty for none, and say what becomes of words and of -1.

    Args:
        cells: As the table has them.
        column: Its name.
        kind: As `read_target` takes it.
        uncertain: What a label of -1 is, as `zoo.tasks.cells.certain` takes it.

    Raises:
        OptionError: The column has measured numbers, and `uncertain` is said of it; or there is no such word.
    """
    texts = texts_of(cells)
    labels = certain(texts, uncertain)
    if uncertain and (kind or _kind_of([text for text in texts if text])) == "numbers":
        raise OptionError(
            f"--uncertain {uncertain}: column {printable(column)} has measured numbers, of which -1 is one: drop it, "
            "or give --kind classes where they are classes"
        )
    say_cells({column: cells}, "--column", uncertain)
    return labels


def read_target(texts: Sequence[str], column: str, kind: str | None = None) -> tuple[Target, Floats]:
    """Return what a column is, and a number for each case: that of its class, or its own.

    Args:
        texts: Cells of the column, none of them empty.
        column: Its name.
        kind: One of the `KINDS`; None to tell it from the cells. Numbers are `numbers` but where there are two of them,
            or up to ten whole ones.

    Raises:
        OptionError: The cells cannot be of that kind, or of any; -1 stands beside 0 and 1.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"--kind {printable(kind)}: {', '.join(KINDS)} are known")
    found: Any = kind or _kind_of(texts)
    said_by: Literal["column", "user"] = "user" if kind else "column"
    what = f"column {printable(column)}"
    if found == "numbers":
        values = _numbers(texts, what)
        return Target(column, "numbers", said_by, (), {}, (float(values.min()), float(values.max()))), values
    check_certain(texts, what)
    numbers, classes = read_classes(texts, what, "For measured numbers give --kind numbers")
    if found == "binary" and len(classes) != 2:
        raise OptionError(f"--kind binary: {what} has {len(classes)} values, {values_of(classes)}")
    counts = Counter(numbers)
    target = Target(column, found, said_by, classes, {name: counts[i] for i, name in enumerate(classes)}, None)
    return target, np.array(numbers, np.float64)


def strata_of(target: Target, values: Floats) -> Array:
    """Return what folds and draws should have their share of: the class of each case, or a quarter of the numbers."""
    if target.kind != "numbers":
        return values.astype(np.int64)
    cuts = np.quantile(values, np.arange(1, _STRATA) / _STRATA)
    found: Array = np.unique(np.searchsorted(cuts, values), return_inverse=True)[1]
    return found


def _kind_of(texts: Sequence[str]) -> TargetKind:
    numbers = {number_of(text) for text in texts}
    if len(set(texts) if None in numbers else numbers) == 2:
        return "binary"
    if None in numbers:
        return "classes"
    are_whole = all(number is not None and number.is_integer() for number in numbers)
    return "classes" if are_whole and len(numbers) <= _MOST_WHOLE else "numbers"


def _numbers(texts: Sequence[str], what: str) -> Floats:
    values = np.array(read_numbers(texts, f"--kind numbers: {what}", "For classes leave --kind out"), np.float64)
    if values.min() == values.max():
        raise OptionError(f"{what} is {values[0]:g} in all cases: there is nothing to tell apart")
    return values
