"""Reads the column that a probe learns: two values, several, or numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.report import Target, TargetKind
from zoo.messages import first_names, printable
from zoo.training.metrics import Array, Floats

KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
_MOST_WHOLE = 10
"""Different whole numbers up to which a column is taken for classes, as grades are; of more it is measured."""
_MOST_CLASSES = 100
"""Classes that a column may have before it is taken for something else, as names or dates."""
_STRATA = 4
"""Parts of equal size that measured numbers are divided into, so that folds and draws have some of each."""


def read_target(texts: Sequence[str], column: str, kind: str | None = None) -> tuple[Target, Floats]:
    """Return what a column is, and a number for each case: that of its class, or its own.

    Args:
        texts: Cells of the column, none of them empty.
        column: Its name.
        kind: One of the `KINDS`; None to tell it from the cells. Numbers are `numbers` but where there are two of them,
            or up to ten whole ones.

    Raises:
        OptionError: The cells cannot be of that kind, or of any.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"--kind {printable(kind)}: {', '.join(KINDS)} are known")
    numbers = [_number(text) for text in texts]
    found: Any = kind or _kind_of(texts, numbers)
    said_by: Literal["column", "user"] = "user" if kind else "column"
    if found == "numbers":
        values = _numbers(texts, numbers, column)
        return Target(column, "numbers", said_by, (), {}, (float(values.min()), float(values.max()))), values
    names, classes = _classes(texts, numbers, column)
    if found == "binary" and len(classes) != 2:
        raise OptionError(f"--kind binary: column {printable(column)} has {len(classes)} values, {_values(classes)}")
    counts = Counter(names)
    position = {name: i for i, name in enumerate(classes)}
    target = Target(column, found, said_by, classes, {name: counts[name] for name in classes}, None)
    return target, np.array([position[name] for name in names], np.float64)


def strata_of(target: Target, values: Floats) -> Array:
    """Return what folds and draws should have their share of: the class of each case, or a quarter of the numbers."""
    if target.kind != "numbers":
        return values.astype(np.int64)
    cuts = np.quantile(values, np.arange(1, _STRATA) / _STRATA)
    found: Array = np.unique(np.searchsorted(cuts, values), return_inverse=True)[1]
    return found


def _kind_of(texts: Sequence[str], numbers: Sequence[float | None]) -> TargetKind:
    distinct = set(texts) if None in numbers else set(numbers)
    if len(distinct) == 2:
        return "binary"
    if None in numbers:
        return "classes"
    are_whole = all(number is not None and number.is_integer() for number in distinct)  # type: ignore[union-attr]
    return "classes" if are_whole and len(distinct) <= _MOST_WHOLE else "numbers"


def _numbers(texts: Sequence[str], numbers: Sequence[float | None], column: str) -> Floats:
    if odd := [text for text, number in zip(texts, numbers, strict=True) if number is None or math.isinf(number)]:
        raise OptionError(
            f"--kind numbers: {len(odd)} of {len(texts)} cells of column {printable(column)} are no numbers, "
            f"{_values(odd)}"
        )
    values = np.array(numbers, np.float64)
    if values.min() == values.max():
        raise OptionError(f"column {printable(column)} is {values[0]:g} in all cases: there is nothing to tell apart")
    return values


def _classes(
    texts: Sequence[str], numbers: Sequence[float | None], column: str
) -> tuple[Sequence[str], tuple[str, ...]]:
    """The class of each case, and all classes in order: of numbers by value, so that 0 and 0.0 are one."""
    if None not in numbers:
        texts = [f"{number:.17g}" for number in numbers]
        classes = tuple(sorted(set(texts), key=float))
    else:
        classes = tuple(sorted(set(texts)))
    if len(classes) < 2:
        raise OptionError(
            f"column {printable(column)} is {printable(repr(classes[0]))} in all cases: there is nothing to tell apart"
        )
    alike = Counter(name.casefold() for name in classes)
    if several := [repr(name) for name in classes if alike[name.casefold()] > 1]:
        raise OptionError(
            f"column {printable(column)} has classes that differ in capitals alone: {first_names(several, 6)}. Write "
            "each class in one way"
        )
    if len(classes) > min(_MOST_CLASSES, len(texts) // 2):
        raise OptionError(
            f"column {printable(column)} has {len(classes)} classes for {len(texts)} cases, {_values(texts)}: a class "
            "needs several cases. For measured numbers give --kind numbers"
        )
    return texts, classes


def _number(text: str) -> float | None:
    """A text as a number; None where it is none."""
    if "_" in text:  # Python takes 1_0 for 10; in a table it is a name
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _values(texts: Sequence[str]) -> str:
    return first_names([repr(text) for text in dict.fromkeys(texts)], 5)
