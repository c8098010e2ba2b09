"""The parts of a cohort that a run learns from, is chosen by and is tested on: train, val and test, by group."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from zoo.errors import OptionError
from zoo.messages import csv_cell, first_names, printable
from zoo.training.table import read_table, write_table

PARTS = ("train", "val", "test")
SPLITS = "splits.csv"
"""File in OUT that says which case is in which part."""
FOLD = "fold"
"""Column of tables of a cross-validation: the fold in which a case is tested, from 0."""
_LABELS = "labels"

Split: TypeAlias = Mapping[str, Sequence[int]]
"""Part -> positions of its cases, in their order; without `test` nothing is tested."""

_SHARES = 5
"""One of so many shares is the test part, and of what is left one of so many the validation part."""
_FEWEST_GROUPS = 10
"""Groups of which three parts can be made; of fewer, one part would have a single patient."""


def given_split(
    words: Sequence[object], ids: Sequence[str], groups: Sequence[str], strata: Sequence[str], seed: int
) -> Split:
    """Return the parts that a table's column says; where it has no `val`, that is drawn from `train` by group.

    Args:
        words: The column's cells: train, val or test.
        ids: What the cases are called, for messages.
        groups: What each case must stay together with.
        strata: What the drawn part should have its share of.
        seed: Of the draw.

    Raises:
        OptionError: A cell has another word, no case is for training, or a group is in two parts.
    """
    parts = ["" if word is None else str(word).strip().lower() for word in words]
    if odd := sorted({part for part in parts if part not in PARTS}):
        where = [printable(ids[i]) for i, part in enumerate(parts) if part == odd[0]]
        raise OptionError(
            f"the split of {sum(part not in PARTS for part in parts)} cases is none of train, val and test: it is "
            f"{first_names(map(repr, odd))}, {odd[0]!r} for example of {first_names(where, 3)}. Write one of the three "
            "words, or drop the rows"
        )
    split = {part: [i for i, own in enumerate(parts) if own == part] for part in PARTS}
    _check_apart(split, groups)
    if not split["train"]:
        raise OptionError("no case has the split train: at least some are needed to learn from")
    if not split["val"]:
        _check_enough([groups[i] for i in split["train"]])
        split["train"], split["val"] = _cut(split["train"], groups, strata, seed)
    return {part: rows for part, rows in split.items() if rows}


def unused_parts(columns: Mapping[str, Sequence[object]]) -> str:
    """Say which columns of a table have parts that nobody asks for, a published split perhaps; empty where none has.

    Args:
        columns: Cells by the names of the columns.
    """
    found = [printable(name) for name, cells in columns.items() if _are_parts(cells)]
    if not found:
        return ""
    return (
        f"the table's column {first_names(found, 3)} says train, val or test of each case, and is not used: with "
        f"--split {shlex.quote(found[0])} the parts are those"
    )


def _are_parts(cells: Sequence[object]) -> bool:
    said = set[str]()
    for cell in cells:
        said.add(str(cell).strip().lower())
        if not said <= {*PARTS}:  # of most columns the first cell tells
            return False
    return "train" in said and len(said) > 1


def draw_split(groups: Sequence[str], strata: Sequence[str], seed: int) -> Split:
    """Draw the parts: a fifth of the cases for the test, of the rest a fifth for validation, no group in two parts.

    Raises:
        OptionError: There are fewer than ten groups.
    """
    _check_enough(groups)
    rest, test = _cut(range(len(groups)), groups, strata, seed)
    train, val = _cut(rest, groups, strata, seed)
    return {"train": train, "val": val, "test": test}


def draw_folds(groups: Sequence[str], strata: Sequence[str], count: int, seed: int) -> list[Split]:
    """Draw the parts of each fold of a cross-validation: every case is tested once, by a network that did not see it.

    Raises:
        OptionError: There are fewer than ten groups, or fewer than folds.
    """
    _check_enough(groups)
    folds = _folds(range(len(groups)), groups, strata, count, seed)
    splits: list[Split] = []
    for test in folds:
        tested = set(test)
        train, val = _cut([i for i in range(len(groups)) if i not in tested], groups, strata, seed)
        splits.append({"train": train, "val": val, "test": test})
    return splits


def write_splits(
    out: Path, ids: Sequence[str], groups: Sequence[str], labels: Sequence[str], splits: Sequence[Split]
) -> None:
    """Write which case is in which part, with its labels; of a cross-validation, in which fold it is tested."""
    rows = [(ids[i], groups[i], labels[i], part) for i, part in _parts_of(splits)]
    write_table(out / SPLITS, ("id", "group", _LABELS, _column(splits)), rows)


def check_kept(out: Path, ids: Sequence[str], labels: Sequence[str], splits: Sequence[Split]) -> None:
    """Raise `OptionError` where a run in OUT had other cases, labels or parts.

    It would be trained on its test part, or go on to learn something else than it learnt before.
    """
    file = out / SPLITS
    if not file.is_file():
        return
    column = _column(splits)
    rows = read_table(file)
    before = {
        what: {row["id"]: row.get(name, "") for row in rows} for what, name in (("parts", column), (_LABELS, _LABELS))
    }
    now = {"parts": {csv_cell(ids[i]): csv_cell(part) for i, part in _parts_of(splits)}}
    now[_LABELS] = {csv_cell(ids[i]): csv_cell(labels[i]) for i, _ in _parts_of(splits)}
    for what, own in now.items():
        if changed := [id for id in {**before[what], **own} if before[what].get(id) != own.get(id)]:
            raise OptionError(
                f"{file} has other {what} than the table gives now, for {len(changed)} cases: "
                f"{first_names(changed, 10)}. Go on with the table that the run began with, or give another --out"
            )


def _column(splits: Sequence[Split]) -> str:
    return "split" if len(splits) == 1 else FOLD


def _parts_of(splits: Sequence[Split]) -> list[tuple[int, object]]:
    """The position of each case and its part, or the fold in which it is tested."""
    part: dict[int, object] = {}
    for fold, split in enumerate(splits):
        for name, rows in split.items() if len(splits) == 1 else [(fold, split["test"])]:
            part |= dict.fromkeys(rows, name)
    return sorted(part.items())


def _check_apart(split: Split, groups: Sequence[str]) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for part, rows in split.items():
        for i in rows:
            found[groups[i]].add(part)
    if both := {group: parts for group, parts in found.items() if len(parts) > 1}:
        named = [f"{group} in {' and '.join(p for p in PARTS if p in parts)}" for group, parts in both.items()]
        raise OptionError(
            f"{len(both)} of {len(found)} groups are in more than one part: {first_names(named, 10)}. What is learnt "
            "of a patient would count as skill in the test: give each group one word"
        )


def _check_enough(groups: Sequence[str]) -> None:
    """Raise `OptionError` where there are too few groups to draw parts of them, before any is taken away."""
    if (count := len(set(groups))) < _FEWEST_GROUPS:
        raise OptionError(
            f"{count} groups (without --group each case is one) cannot be divided at random, at least {_FEWEST_GROUPS} "
            "are expected: give a column of train, val and test by --split"
        )


def _cut(rows: Sequence[int], groups: Sequence[str], strata: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Divide cases into most of them and a fifth of them, by group, strata alike."""
    # Of a stratum with fewer groups than folds some folds have none: the fold that is most like the whole is taken.
    held = min(_folds(rows, groups, strata, _SHARES, seed), key=lambda fold: _unlikeness(fold, rows, strata))
    taken = set(held)
    return [i for i in rows if i not in taken], held


def _unlikeness(fold: Sequence[int], rows: Sequence[int], strata: Sequence[str]) -> float:
    """How far the shares of the strata in a fold are from those in all rows, and its size from its share."""
    ours, whole = (Counter(strata[i] for i in part) for part in (fold, rows))
    apart = sum(abs(ours[name] / max(1, len(fold)) - count / len(rows)) for name, count in whole.items())
    return apart + abs(len(fold) * _SHARES / len(rows) - 1)


def _folds(rows: Sequence[int], groups: Sequence[str], strata: Sequence[str], count: int, seed: int) -> list[list[int]]:
    from sklearn.model_selection import StratifiedGroupKFold

    if (distinct := len({groups[i] for i in rows})) < count:
        raise OptionError(f"{distinct} groups cannot be divided into {count} folds: give fewer")
    places = np.arange(len(rows))
    own_strata, own_groups = [strata[i] for i in rows], [groups[i] for i in rows]
    if max(Counter(own_strata).values()) < count:  # no stratum could be in each fold: scikit-learn refuses that
        own_strata = [""] * len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stratum with fewer cases than folds: `Task.check` says what it means
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(places, own_strata, own_groups)
        return [[rows[i] for i in held] for _, held in folds]
