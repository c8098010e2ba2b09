"""Divides cases into what is learnt from and what is tested, and draws few labels; groups stay whole."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.labelled import TEST
from zoo.messages import first_names
from zoo.training.evaluate import shares_of
from zoo.training.metrics import Array

FOLDS, REPEATS = 5, 3
SIZES = (10, 25, 50, 100)
"""Labelled cases of the few-label curve, before all of them."""
DRAWS = 10
_FEWEST_OF_CLASS = 2


class Fold(NamedTuple):
    """Positions of the cases that are learnt from and of those that are tested, in their order."""

    train: Array
    test: Array
    repeat: int
    """Which division of all cases it is of."""


class Draw(NamedTuple):
    """Few labelled cases of a training part."""

    fold: int
    """Position of the fold whose test part is asked."""
    train: Array


def given_fold(parts: Sequence[str]) -> list[Fold]:
    """Return the one fold that a column says."""
    is_test = np.array([part == TEST for part in parts])
    return [Fold(np.flatnonzero(~is_test), np.flatnonzero(is_test), 0)]


def draw_folds(groups: Array, strata: Array, names: Sequence[str], *, repeats: int, seed: int) -> list[Fold]:
    """Draw the folds of repeated cross-validations: in each of them every group is tested once.

    There are five, or as many as the rarest class has groups.

    Args:
        groups: Number of each case's group.
        strata: What each fold should have its share of, numbered from 0.
        names: Of the strata, for messages.
        repeats: Times that all cases are divided.
        seed: Of the draws.

    Raises:
        OptionError: A stratum has one group.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = min(FOLDS, *_groups_per_stratum(groups, strata))
    if count < _FEWEST_OF_CLASS:
        rare = [names[s] for s, own in enumerate(_groups_per_stratum(groups, strata)) if own < _FEWEST_OF_CLASS]
        raise OptionError(
            f"{first_names(rare)}: cases of one group alone cannot be learnt from and tested: more groups of each "
            "class are expected, or leave those cases out"
        )
    folds = []
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strata with fewer cases than folds, which the count rules out
            folds += [Fold(train, test, repeat) for train, test in splitter.split(strata, strata, groups)]
    return folds


def check_parts(folds: Sequence[Fold], strata: Array, names: Sequence[str], *, of_classes: bool) -> None:
    """Raise `OptionError` where a class cannot be learnt in some fold, or nothing can be told of what is tested."""
    for fold in folds:
        learnt = np.bincount(strata[fold.train], minlength=len(names))
        if of_classes and (rare := [name for name, own in zip(names, learnt, strict=True) if own < _FEWEST_OF_CLASS]):
            raise OptionError(
                f"a training part has fewer than {_FEWEST_OF_CLASS} cases of {first_names(map(repr, rare))}: give more "
                "cases of each class, or divide them otherwise"
            )
        if of_classes and len(np.unique(strata[fold.test])) < 2:
            raise OptionError(
                f"all {len(fold.test)} tested cases are of one class: cases of two at least are needed to test with"
            )
        if len(fold.test) < 2:
            raise OptionError(f"{len(fold.test)} case is tested: more are needed")


def draw_labels(
    folds: Sequence[Fold], groups: Array, strata: Array, *, sizes: Sequence[int] = SIZES, count: int, seed: int
) -> dict[int, list[Draw]]:
    """Draw few labelled cases from training parts: by size, `count` draws, from one fold after the other.

    Each has its share of every stratum, at least two cases of it. Groups are drawn whole, so that a draw can have some
    cases more than were asked for. Sizes that a training part does not exceed, or that cannot hold two cases of each
    stratum, are left out.
    """
    fewest, found = len(np.unique(strata)), dict[int, list[Draw]]()
    for size in sorted({*sizes}):
        if size >= min(len(fold.train) for fold in folds) or size < _FEWEST_OF_CLASS * fewest:
            continue
        found[size] = [
            Draw(i % len(folds), _draw(folds[i % len(folds)].train, groups, strata, size, [seed, size, i]))
            for i in range(count)
        ]
    return found


def _draw(rows: Array, groups: Array, strata: Array, size: int, seed: Sequence[int]) -> Array:
    """Take whole groups in a random order, those that have a case of which more are wanted."""
    own, counts = np.unique(strata[rows], return_counts=True)
    left = dict(zip(own.tolist(), shares_of(size, counts).tolist(), strict=True))
    names, first = np.unique(groups[rows], return_inverse=True)
    members = np.split(rows[np.argsort(first, kind="stable")], np.cumsum(np.bincount(first))[:-1])
    taken: list[Array] = []
    for group in np.random.default_rng(list(seed)).permutation(len(names)):
        of = strata[members[group]].tolist()
        if any(left[each] > 0 for each in of):
            taken.append(members[group])
            for each in of:
                left[each] -= 1
        if all(number <= 0 for number in left.values()):
            break
    return np.sort(np.concatenate(taken))


def _groups_per_stratum(groups: Array, strata: Array) -> list[int]:
    return [len(np.unique(groups[strata == stratum])) for stratum in np.unique(strata)]
