"""What the cells of a user's table mean, as texts, numbers and classes: one rule for probes and for fine-tuning."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from zoo.errors import OptionError
from zoo.messages import first_names, printable
from zoo.tables import EMPTY

log = logging.getLogger("zoo")

UNCERTAIN = {"ignore": "", "positive": "1", "negative": "0"}
"""Words of `--uncertain` -> the label that a cell of -1 is then taken for, empty for none."""

_MOST_CLASSES = 100
"""Classes that a column may have before it is taken for something else, as names or dates."""
_DOUBTFUL = -1
"""An uncertain label, in tables such as CheXpert's."""
_COMMA = re.compile(r"[+-]?\d+,\d+")
"""A number with a decimal comma; of a CSV such a cell stands in quotes."""
_TRUTH = {"true": "1", "false": "0", "": ""}
_POINT = re.compile(r"(\d+)\.0*")
"""A whole number with a point."""
_NONE_OF_PANDAS = ("NAType", "NaTType")
"""Types of cells without a value that compare with nothing."""


def text_of(cell: object) -> str:
    """A cell as text, empty where it says nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ in _NONE_OF_PANDAS:
        return ""
    if isinstance(cell, bool | np.bool_):
        return str(int(cell))
    text = str(cell).strip()
    return "" if text.lower() in EMPTY else text


def texts_of(cells: Iterable[object]) -> list[str]:
    """The cells of a column of labels as texts; where all are the words true and false, in any capitals, as 1 and 0.

    So pandas writes truth values to CSV, which Parquet keeps as such.
    """
    texts = [text_of(cell) for cell in cells]
    words = {text.lower() for text in texts if text}
    return [_TRUTH[text.lower()] for text in texts] if words and words <= set(_TRUTH) else texts


def number_of(text: str) -> float | None:
    """A text as a finite number; None where it is none, as an empty one."""
    if "_" in text:  # Python takes 1_0 for 10; in a table it is a name
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number + 0.0 if math.isfinite(number) else None  # -0 is 0


def alike(texts: Iterable[str]) -> list[str]:
    """Texts that differ in capitals or blanks alone, or are one whole number, those alike together."""
    return _of_one_key(texts, lambda text: own.lstrip("0") if (own := _whole(text)).isdecimal() else own)


def say_alike(texts: Iterable[str], flag: str) -> None:
    """Warn of texts that count as different and are `alike`."""
    if pairs := alike(dict.fromkeys(texts)):
        log.warning(
            "%s has values that differ in capitals or blanks alone, or are one number, and count as different: %s. "
            "Write each in one way",
            flag,
            first_names(pairs, 10),
        )


def check_groups(texts: Sequence[str], flag: str) -> None:
    """Check how groups are written, and warn of those that are `alike`.

    Ids such as 007 and 7 may be different patients, and are warned of; 7.0 is what a column of numbers with gaps makes
    of 7.

    Raises:
        OptionError: A whole number is written with a point and without: its cases could be on both sides of a split.
    """
    if several := _of_one_key(dict.fromkeys(texts), _without_point):
        raise OptionError(f"{flag} has groups that are one number: {first_names(several, 10)}. Write each in one way")
    say_alike(texts, flag)


def is_doubtful(text: str) -> bool:
    """Whether a cell is an uncertain label, -1."""
    return number_of(text) == _DOUBTFUL


def certain(texts: Iterable[str], uncertain: str) -> list[str]:
    """Return labels with those of -1 as one of `UNCERTAIN` has them; as they are where it is empty.

    Raises:
        OptionError: There is no such word.
    """
    if uncertain and uncertain not in UNCERTAIN:
        raise OptionError(f"--uncertain {printable(uncertain)}: {', '.join(UNCERTAIN)} are known")
    return [UNCERTAIN[uncertain] if uncertain and is_doubtful(text) else text for text in texts]


def say_cells(columns: Mapping[str, Sequence[object]], flag: str, uncertain: str) -> None:
    """Say which words count as no label, and what becomes of labels of -1; warn where none of the columns has any.

    Args:
        columns: Cells as the table has them, by column.
        flag: That named the columns.
        uncertain: As `certain` takes it.
    """
    doubtful = 0
    for column, cells in columns.items():
        texts = texts_of(cells)
        own = [cell for cell, text in zip(cells, texts, strict=True) if isinstance(cell, str) and not text]
        if words := Counter(filter(None, map(str.strip, own))):
            said = first_names([f"{count} {word!r}" for word, count in words.most_common()], 10)
            log.warning("%s %s: %d cells count as no label: %s", flag, printable(column), words.total(), said)
        found = sum(map(is_doubtful, texts))
        doubtful += found
        if found and uncertain:
            means = UNCERTAIN[uncertain] or "no label"
            log.warning("%s %s: %d cells are -1 and count as %s, by --uncertain", flag, printable(column), found, means)
    if uncertain and not doubtful:
        log.warning("--uncertain %s: no cell of %s %s is -1", uncertain, flag, printable(", ".join(columns)))


def check_certain(texts: Sequence[str], what: str) -> None:
    """Raise `OptionError` where -1 stands beside 0 or 1: as a class it would be learnt as a third finding.

    Args:
        texts: Cells of a column, empty ones too.
        what: The column, as messages name it.
    """
    counts = Counter(number_of(text) for text in texts if text)
    if _DOUBTFUL in counts and len(counts) > 1 and set(counts) <= {_DOUBTFUL, 0, 1}:
        said = ", ".join(f"{value} in {counts[value]}" for value in (_DOUBTFUL, 0, 1) if value in counts)
        raise OptionError(
            f"{what} is {said} cells: tables such as CheXpert's have -1 for an uncertain label. Say what it is by "
            "--uncertain ignore (no label), positive (1) or negative (0); where -1 is a class, write it as a word"
        )


def read_numbers(texts: Sequence[str], what: str, otherwise: str) -> list[float]:
    """Return cells as numbers, NaN for empty ones.

    Args:
        texts: Cells of a column.
        what: The column, as messages name it.
        otherwise: What to do where it has classes, for messages.

    Raises:
        OptionError: A cell is no finite number.
    """
    numbers = [number_of(text) for text in texts]
    if odd := [text for text, number in zip(texts, numbers, strict=True) if text and number is None]:
        raise OptionError(
            f"{what}: {len(odd)} of {len(texts)} cells are no numbers, {values_of(odd)}. {_with_points(odd)}{otherwise}"
        )
    return [math.nan if number is None else number for number in numbers]


def read_classes(texts: Sequence[str], what: str, otherwise: str) -> tuple[list[int], tuple[str, ...]]:
    """Return the number of each case's class, and all classes in order: by value, so that 0 and 0.0 are one.

    Args:
        texts: Cells of a column, none of them empty.
        what: The column, as messages name it.
        otherwise: What to do where it has measured numbers, for messages.

    Raises:
        OptionError: All are of one class, there are too many classes, or a class is written in several ways.
    """
    numbers = [number for text in texts if (number := number_of(text)) is not None]
    if len(numbers) == len(texts):
        names = [f"{number:.17g}" if number.is_integer() else repr(number) for number in numbers]
        classes = tuple(sorted(set(names), key=float))
    else:
        names = list(texts)
        classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise OptionError(f"{what} is {printable(repr(classes[0]))} in all cases: there is nothing to tell apart")
    if several := _of_one_key(classes, lambda name: _spelling(name) if (n := number_of(name)) is None else n):
        raise OptionError(
            f"{what} has classes that differ in capitals or blanks alone, or are one number: {first_names(several)}. "
            "Write each class in one way"
        )
    if len(classes) > min(_MOST_CLASSES, len(texts) // 2):
        raise OptionError(
            f"{what} has {len(classes)} classes for {len(texts)} cases, {values_of(texts)}: a class needs several "
            f"cases. {_almost_numbers(texts)}{otherwise}"
        )
    position = {name: i for i, name in enumerate(classes)}
    return [position[name] for name in names], classes


def values_of(texts: Iterable[str]) -> str:
    """Some of the cells, each once, for messages."""
    return first_names([repr(text) for text in dict.fromkeys(texts)])


def _spelling(text: str) -> str:
    return "".join(text.casefold().split())


def _whole(text: str) -> str:
    """A whole number without its point, anything else as it is spelled; of any length, as a float would not tell."""
    return _spelling(_without_point(text))


def _without_point(text: str) -> str:
    return found[1] if (found := _POINT.fullmatch(text)) else text


def _of_one_key(texts: Iterable[str], key: Callable[[str], Hashable]) -> list[str]:
    by_key = dict[Hashable, list[str]]()
    for text in texts:
        by_key.setdefault(key(text), []).append(text)
    return [" and ".join(map(repr, own)) for own in by_key.values() if len(own) > 1]


def _with_points(odd: Iterable[str]) -> str:
    return "Write a point for the decimal comma. " if any(map(_COMMA.fullmatch, odd)) else ""


def _almost_numbers(texts: Sequence[str]) -> str:
    """What keeps most cells of a column from being read as numbers; empty where most are none."""
    odd = [text for text in texts if number_of(text) is None]
    others = [text for text in odd if not _COMMA.fullmatch(text)]
    if not odd or 2 * len(others) > len(texts):
        return ""
    said = f"{len(others)} cells are no numbers, {values_of(others)}: correct them or leave them empty. "
    return f"{_with_points(odd)}{said if others else ''}"
