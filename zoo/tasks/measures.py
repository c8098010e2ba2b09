"""Measures of answers under weights of the cases, so that the same code gives a value and its bootstrap interval.

Each function takes what is fixed and returns a measure: from weights `(..., cases)`, how often each case was drawn, to
a number for each row of weights, NaN where it is not defined. All draws of a bootstrap are one call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from zoo.training.evaluate import draw_groups, interval_of
from zoo.training.metrics import Array, Floats, Results, or_none

Measure: TypeAlias = Callable[[Floats], Any]
"""The result is a float of one row of weights `(cases,)`, else an array of floats."""

BINS = 10
"""Bins of equal width of the expected calibration error, and of the reliability diagram."""
FEW = 10
"""Cases below which a result says little."""


FEWEST_GROUPS = 4
"""Groups from which on draws with replacement differ enough for an interval."""


def auroc_of(truth: Array, scores: Array) -> Measure:
    """Area under the ROC curve of labels of 0 and 1; ties count half."""
    positive, by_score = truth == 1, _Ties(scores)

    def measure(weights: Floats) -> Any:
        won = by_score.sums(weights * positive)
        lost = by_score.sums(weights * ~positive)
        return _ratio((won * (np.cumsum(lost, -1) - lost / 2)).sum(-1), won.sum(-1) * lost.sum(-1))

    return measure


def average_precision_of(truth: Array, scores: Array) -> Measure:
    """Mean of the precision over the positive cases, from the highest score down, as scikit-learn has it.

    NaN without a negative case, too, where it would be 1 whatever the scores. By chance it is above the share of
    positive cases, the more so the fewer cases: of 10 among 50 it is 0.26 on average, and 0.37 as the mean of 5 folds
    with 2 of them each. So it is to be read beside random weights.
    """
    positive, by_score = truth == 1, _Ties(-scores)

    def measure(weights: Floats) -> Any:
        found = by_score.sums(weights * positive)
        all_found, taken = np.cumsum(found, -1), np.cumsum(by_score.sums(weights), -1)
        precision = np.divide(all_found, taken, out=np.zeros_like(taken), where=taken > 0)
        others = (weights * ~positive).sum(-1)
        return _ratio((precision * found).sum(-1), np.where(others > 0, found.sum(-1), 0))

    return measure


def share_of(held: Array, among: Array) -> Measure:
    """Share of the cases `among` that are `held`: sensitivity among the positive ones, for example."""
    both, all_of_them = (held & among).astype(float), among.astype(float)
    return lambda weights: _ratio(weights @ both, weights @ all_of_them)


def calibration_error_of(truth: Array, probabilities: Array) -> Measure:
    """Expected calibration error: the mean over bins of |share of positives - mean probability|, by their cases."""
    by_bin, apart = _Ties(bins_of(probabilities)), truth - probabilities
    return lambda weights: _ratio(np.abs(by_bin.sums(weights * apart)).sum(-1), weights.sum(-1))


def bins_of(probabilities: Array) -> Array:
    """The bin of each probability, 0 to `BINS` - 1."""
    found: Array = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return found


def r2_of(truth: Array, found: Array) -> Measure:
    """Share of the variance of the truth that is explained; below 0 for what the mean would beat."""
    spread = _squares_of(truth)
    return lambda weights: 1 - _ratio(weights @ (truth - found) ** 2, spread(weights))


def r2_of_part(truth: Array, rows: Array, found: Array, among: Array) -> Measure:
    """R2 of a part of the cases, beside the variance of all that are tested: a part's own would differ by the part.

    Of parts of one size that make up all, the mean is the R2 of all, `r2_of`.

    Args:
        truth: Of all cases; the measure takes weights of all.
        rows: Positions of the part's cases.
        found: What is said of these.
        among: Positions of all that are tested.
    """
    squares, spread = (truth[rows] - found) ** 2, _squares_of(truth[among])

    def measure(weights: Floats) -> Any:
        own, tested = weights[..., rows], weights[..., among]
        return 1 - _ratio(_ratio(own @ squares, own.sum(-1)) * tested.sum(-1), spread(tested))

    return measure


def _squares_of(truth: Array) -> Measure:
    """Sum of the squares around the mean; 0 where all drawn cases are alike."""
    apart = truth - truth.mean() if truth.size else truth  # squares of numbers far from 0 would lose their digits
    least = 1e-12 * float(np.max(apart**2, initial=0))  # what rounding leaves

    def measure(weights: Floats) -> Any:
        spread = weights @ apart**2 - weights.sum(-1) * _ratio(weights @ apart, weights.sum(-1)) ** 2
        return np.where(spread > least, spread, 0)

    return measure


def mean_error_of(truth: Array, found: Array) -> Measure:
    """Mean absolute error, in units of the truth."""
    errors = np.abs(truth - found)
    return lambda weights: _ratio(weights @ errors, weights.sum(-1))


def mean_of_values(values: Array) -> Measure:
    """The mean over the cases that have a value, of values (N,) that are NaN where there is none."""
    known = np.isfinite(values)
    numbers, counted = np.where(known, values, 0), known.astype(float)
    return lambda weights: _ratio(weights @ numbers, weights @ counted)


def rank_correlation_of(truth: Array, found: Array) -> Measure:
    """Spearman's rank correlation; tied values share their mean rank."""
    both = [_Ties(values) for values in (truth, found)]

    def measure(weights: Floats) -> Any:
        ranks = []
        for own in both:
            counts = own.sums(weights)
            ranks.append((np.cumsum(counts, -1) - counts / 2)[..., own.rank])
        means = [np.asarray(_ratio((weights * rank).sum(-1), weights.sum(-1))) for rank in ranks]
        a, b = (rank - mean[..., None] for rank, mean in zip(ranks, means, strict=True))
        return _ratio((weights * a * b).sum(-1), np.sqrt((weights * a**2).sum(-1) * (weights * b**2).sum(-1)))

    return measure


def mean_of(measures: Sequence[Measure]) -> Measure:
    """Mean of several measures, of those that are defined."""

    def measure(weights: Floats) -> Any:
        values = np.array([each(weights) for each in measures])
        is_defined = ~np.isnan(values)
        return _ratio(np.where(is_defined, values, 0).sum(0), is_defined.sum(0))

    return measure


def of_cases(rows: Array, measure: Measure) -> Measure:
    """A measure of some cases, by positions or a mask, that is given the weights of all."""
    return lambda weights: measure(weights[..., rows])


def where_known(of: Callable[[Array, Array], Measure], truth: Array, found: Array) -> Measure:
    """A measure of the cases whose truth is no NaN, that is given the weights of all."""
    known = np.isfinite(truth)
    return of_cases(known, of(truth[known], found[known]))


def mean_over(parts: Sequence[Array], measures: Sequence[Measure]) -> Measure:
    """Mean over parts of the cases, such as folds, of what orders cases in each; from weights of all cases.

    Scores of networks that were trained apart are not on one scale: an order of all cases together would judge the
    scales, too, and of folds that are pooled chance itself would be below 0.5. A part where a measure is not defined
    does not count.

    Args:
        parts: Positions or masks of the cases of each.
        measures: One of each, from the weights of its cases.
    """
    return mean_of([of_cases(rows, measure) for rows, measure in zip(parts, measures, strict=True)])


def parts_of(folds: Sequence[int], count: int) -> list[Array]:
    """Return a mask of the cases of each fold, for `mean_over`; without folds all of them are one part."""
    numbers = np.asarray(folds if len(folds) else np.zeros(count, int))
    return [numbers == fold for fold in np.unique(numbers)]


def of_folds(name: str, folds: Sequence[int]) -> str:
    """The name of a measure, with the number of the folds that it is the mean of, where there are any."""
    return f"{name}, mean of {len(set(folds))} folds" if folds else name


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
        low, high = interval_of(np.concatenate([measure(weights) for weights in draw_groups(groups, rounds=rounds)]))
    return unknown if low == high else {"value": value, "low": or_none(low), "high": or_none(high)}


def all_with_intervals(measures: Mapping[str, Measure], groups: Sequence[str], *, rounds: int = 2000) -> Results:
    """Return each of some measures by its name, see `with_interval`."""
    return {name: with_interval(measure, groups, rounds=rounds) for name, measure in measures.items()}


class _Ties:
    """Values in their order, those that are equal together."""

    def __init__(self, values: Array) -> None:
        self.rank: Array = np.unique(values, return_inverse=True)[1]
        """Of each value among the distinct ones."""
        self._order = np.argsort(self.rank, kind="stable")
        self._starts = np.flatnonzero(np.diff(self.rank[self._order], prepend=-1))

    def sums(self, weights: Floats) -> Floats:
        """Return the sum of the weights `(..., cases)` of each distinct value, in their order."""
        ordered: Floats = weights[..., self._order]
        return ordered if len(self._starts) == len(self._order) else np.add.reduceat(ordered, self._starts, -1)


def _ratio(part: Any, whole: Any) -> Any:
    """A quotient, NaN where the whole is not above 0."""
    found = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return float(found) if found.ndim == 0 else found
