"""Measures of answers under weights of the cases, so that the same code gives a value and its bootstrap interval.

Each function takes what is fixed and returns a measure: from weights `(cases,)`, how often each case was drawn, to a
number, NaN where it is not defined.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from zoo.training.evaluate import bootstrap_by_group
from zoo.training.metrics import Array, Floats, Results, or_none

Measure: TypeAlias = Callable[[Floats], float]

BINS = 10
"""Bins of equal width of the expected calibration error, and of the reliability diagram."""
FEW = 10
"""Cases below which a result says little."""


FEWEST_GROUPS = 4
"""Groups from which on draws with replacement differ enough for an interval."""


def auroc_of(truth: Array, scores: Array) -> Measure:
    """Area under the ROC curve of labels of 0 and 1; ties count half."""
    positive, tied = truth == 1, _tied(scores)

    def measure(weights: Floats) -> float:
        won = np.bincount(tied, weights * positive)
        lost = np.bincount(tied, weights * ~positive)
        return _ratio(float((won * (np.cumsum(lost) - lost / 2)).sum()), float(won.sum() * lost.sum()))

    return measure


def average_precision_of(truth: Array, scores: Array) -> Measure:
    """Mean of the precision over the positive cases, from the highest score down, as scikit-learn has it."""
    positive, tied = truth == 1, _tied(-scores)

    def measure(weights: Floats) -> float:
        found = np.bincount(tied, weights * positive)
        all_found, taken = np.cumsum(found), np.cumsum(np.bincount(tied, weights))
        precision = np.divide(all_found, taken, out=np.zeros_like(taken), where=taken > 0)
        return _ratio(float((precision * found).sum()), float(found.sum()))

    return measure


def share_of(held: Array, among: Array) -> Measure:
    """Share of the cases `among` that are `held`: sensitivity among the positive ones, for example."""
    both = (held & among).astype(float)

    def measure(weights: Floats) -> float:
        return _ratio(float(weights @ both), float(weights @ among))

    return measure


def calibration_error_of(truth: Array, probabilities: Array) -> Measure:
    """Expected calibration error: the mean over bins of |share of positives - mean probability|, by their cases."""
    bins = bins_of(probabilities)

    def measure(weights: Floats) -> float:
        return _ratio(float(np.abs(np.bincount(bins, weights * (truth - probabilities))).sum()), float(weights.sum()))

    return measure


def bins_of(probabilities: Array) -> Array:
    """The bin of each probability, 0 to `BINS` - 1."""
    found: Array = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return found


def r2_of(truth: Array, found: Array) -> Measure:
    """Share of the variance of the truth that is explained; below 0 for what the mean would beat."""

    def measure(weights: Floats) -> float:
        mean = _ratio(float(weights @ truth), float(weights.sum()))
        return 1 - _ratio(float(weights @ (truth - found) ** 2), float(weights @ (truth - mean) ** 2))

    return measure


def mean_error_of(truth: Array, found: Array) -> Measure:
    """Mean absolute error, in units of the truth."""
    errors = np.abs(truth - found)
    return lambda weights: _ratio(float(weights @ errors), float(weights.sum()))


def rank_correlation_of(truth: Array, found: Array) -> Measure:
    """Spearman's rank correlation; tied values share their mean rank."""
    tied = [_tied(values) for values in (truth, found)]

    def measure(weights: Floats) -> float:
        ranks = []
        for own in tied:
            counts = np.bincount(own, weights)
            ranks.append((np.cumsum(counts) - counts / 2)[own])
        a, b = (rank - np.average(rank, weights=weights) for rank in ranks)
        return _ratio(float(weights @ (a * b)), float(np.sqrt((weights @ a**2) * (weights @ b**2))))

    return measure


def mean_of(measures: Sequence[Measure]) -> Measure:
    """Mean of several measures, of those that are defined."""

    def measure(weights: Floats) -> float:
        values = [each(weights) for each in measures]
        defined = [value for value in values if value == value]
        return sum(defined) / len(defined) if defined else float("nan")

    return measure


def difference_of(one: Measure, other: Measure) -> Measure:
    """Difference of two measures of the same cases, whose interval is then a paired one."""
    return lambda weights: one(weights) - other(weights)


def with_interval(measure: Measure, groups: Sequence[str], *, rounds: int = 2000) -> Results:
    """Return `value`, and `low` and `high` of its 95 % interval by group; None where they are not defined.

    So it is for fewer than `FEWEST_GROUPS`, and where all draws agree, as for a sensitivity of 1: a bootstrap would
    show no doubt at all, where it can tell nothing of it.
    """
    value = measure(np.ones(len(groups)))
    unknown: Results = {"value": or_none(value), "low": None, "high": None}
    if value != value or len(set(groups)) < FEWEST_GROUPS:
        return unknown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of draws in which nothing is defined
        low, high = bootstrap_by_group(measure, groups, rounds=rounds)
    return unknown if low == high else {"value": value, "low": or_none(low), "high": or_none(high)}


def all_with_intervals(measures: Mapping[str, Measure], groups: Sequence[str], *, rounds: int = 2000) -> Results:
    """Return each of some measures by its name, see `with_interval`."""
    return {name: with_interval(measure, groups, rounds=rounds) for name, measure in measures.items()}


def said_of_pair(pair: Results) -> Results:
    """The paired gain with a sentence, which says "better" or "worse" only where the interval is all on one side."""
    low, high = pair["low"], pair["high"]
    if low is None or high is None:
        verdict = "no interval can be given, so nothing is said of which is better"
    elif low > 0:
        verdict = "better than random weights"
    elif high < 0:
        verdict = "worse than random weights"
    else:
        verdict = "the interval holds 0, so these cases do not tell the two apart"
    interval = "" if low is None else f" (95 % interval {low:+.3f} to {high:+.3f}, by group)"
    return {**pair, "said": f"{pair['of']}: gain over random weights {pair['gain']:+.3f}{interval}: {verdict}"}


def _tied(values: Array) -> Array:
    """The rank of each value among the distinct ones."""
    found: Array = np.unique(values, return_inverse=True)[1]
    return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
