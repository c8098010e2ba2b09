"""Measures of a probe's answers over all folds, their draws by group, and what differences of them mean."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from zoo.evaluation.probes import class_aurocs
from zoo.evaluation.report import Estimate, Verdict
from zoo.evaluation.splits import Fold
from zoo.tasks.measures import (
    FEWEST_GROUPS,
    Measure,
    average_precision_of,
    mean_error_of,
    mean_of,
    mean_over,
    of_cases,
    r2_of,
    r2_of_part,
    rank_correlation_of,
    share_of,
)
from zoo.tasks.telling import Rarest, too_few
from zoo.training.metrics import Array, Floats

K = TypeVar("K", bound=Hashable)

ROUNDS = 2000
LEVEL = 0.05
_AT_ONCE = 2_000_000
"""Weights in memory at a time."""


def main_measure(classes: int) -> str:
    """Key of the measure that decides."""
    return "auroc" if classes else "r2"


def measures_of(truth: Floats, folds: Sequence[Fold], scores: Sequence[Floats], classes: int) -> dict[str, Measure]:
    """Return the measures of a probe, each from weights of all cases.

    What orders cases is measured in each fold and averaged, see `mean_over`. Errors and shares of right answers are
    pooled in each repeat.

    Args:
        truth: `(cases,)`.
        folds: All of them.
        scores: What the probe says of each fold's tested cases.
        classes: 0 for numbers.
    """
    each = [_of_fold(truth[fold.test], own, classes) for fold, own in zip(folds, scores, strict=True)]
    tests = [fold.test for fold in folds]
    found = {name: mean_over(tests, [own[name] for own in each]) for name in each[0]}
    repeats = [
        [i for i, fold in enumerate(folds) if fold.repeat == repeat]
        for repeat in dict.fromkeys(f.repeat for f in folds)
    ]
    pooled: dict[str, list[Measure]] = {}
    for repeat in repeats:
        tested = np.concatenate([folds[i].test for i in repeat])
        if classes:
            said = np.concatenate([_decisions(scores[i], truth[folds[i].train], classes) for i in repeat])
            own = {"balanced_accuracy": _balanced_accuracy(truth[tested], said, classes)}
        else:
            said = np.concatenate([scores[i] for i in repeat])
            own = {"r2": r2_of(truth[tested], said), "mean_absolute_error": mean_error_of(truth[tested], said)}
        for name, measure in own.items():
            pooled.setdefault(name, []).append(of_cases(tested, measure))
    found |= {name: mean_of(own) for name, own in pooled.items()}
    return found


def main_of_draw(truth: Floats, test: Array, scores: Floats, classes: int, tested: Array) -> Measure:
    """Return the measure that decides, of the tested cases of one fold, from weights of all cases.

    It is that of `measures_of`: errors of numbers stand beside the variance of all tested cases, as of pooled folds.

    Args:
        truth: Of all cases.
        test: Positions of the fold's tested cases.
        scores: Of these.
        classes: 0 for numbers.
        tested: Positions of the tested cases of all folds.
    """
    if not classes:
        return r2_of_part(truth, test, scores, tested)
    return of_cases(test, class_aurocs(truth[test], scores, classes))


def _of_fold(truth: Floats, scores: Floats, classes: int) -> dict[str, Measure]:
    if not classes:
        return {"rank_correlation": rank_correlation_of(truth, scores)}
    wanted = [1] if classes == 2 else range(classes)
    precision = mean_of([average_precision_of(truth == c, scores[:, c]) for c in wanted])
    return {"auroc": class_aurocs(truth, scores, classes), "average_precision": precision}


def _decisions(scores: Floats, learnt: Floats, classes: int) -> Array:
    """The class of each case that is most likely for its share of the training part, which balanced accuracy asks."""
    shares = np.bincount(learnt.astype(int), minlength=classes) / len(learnt)
    found: Array = np.argmax(scores / shares.clip(1e-12), 1)
    return found


def _balanced_accuracy(truth: Floats, said: Array, classes: int) -> Measure:
    return mean_of([share_of(said == c, truth == c) for c in range(classes)])


def resample(measures: Mapping[K, Measure], groups: Array, tested: Array, *, rounds: int, seed: int) -> dict[K, Floats]:
    """Return the values `(1 + rounds,)` of measures, on all tested cases first, then on draws of whole groups.

    All measures see the same draws, so that the difference of two rows of values is a paired one.

    Args:
        measures: From weights of all cases.
        groups: Number of each case's group.
        tested: Positions of the cases that are tested; groups of others are not drawn.
        rounds: Draws with replacement, of as many groups as are tested.
        seed: Of the draws.
    """
    members = np.unique(groups[tested])
    place = np.searchsorted(members, groups).clip(max=len(members) - 1)
    rng = np.random.default_rng([seed, rounds])
    found: dict[K, list[Floats]] = {key: [] for key in measures}
    step = max(1, _AT_ONCE // len(groups))
    is_tested = np.zeros(len(groups))
    is_tested[tested] = 1
    for first in range(0, 1 + rounds, step):
        counts = [
            np.bincount(rng.integers(len(members), size=len(members)), minlength=len(members))
            if i
            else np.ones(len(members))
            for i in range(first, min(first + step, 1 + rounds))
        ]
        weights = np.array(counts, np.float64)[:, place] * is_tested
        for key, measure in measures.items():
            found[key].append(measure(weights))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def estimate(values: Floats, groups: int) -> Estimate:
    """Return a value and its 95 % interval from what `resample` returns.

    There is none for fewer groups than `FEWEST_GROUPS`, and where all draws agree, as for an AUROC of 1: a bootstrap
    would show no doubt at all, where it can tell nothing of it.
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(value):
        return Estimate(None)
    if groups < FEWEST_GROUPS or not len(drawn):
        return Estimate(value)
    low, high = (float(each) for each in np.percentile(drawn, [2.5, 97.5]))
    return Estimate(value) if low == high else Estimate(value, low, high)


def p_value(differences: Floats) -> float:
    """Return the two-sided p of a difference: twice the share of draws on the other side of 0, at most 1."""
    drawn = differences[1:][~np.isnan(differences[1:])]
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(drawn)))


def holm(ps: Sequence[float | None], *, of: int = 0) -> list[float | None]:
    """Return p-values after Holm's correction for all that are known, in their order.

    Args:
        ps: None where nothing is known.
        of: Tests that these were picked from; 0 for themselves alone.
    """
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: float(ps[i] or 0))
    found: list[float | None] = [None] * len(ps)
    count, largest = max(of, len(order)), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * float(ps[i] or 0)))
        found[i] = largest
    return found


def verdict_of(difference: Estimate, p_holm: float | None, groups: int, rarest: Rarest | None = None) -> Verdict:
    """Return what may be said of a difference between results on tested groups, and of how many of the rarest class."""
    if difference.low is None or difference.high is None or p_holm is None:
        return "unknown"
    if too_few(groups, rarest):
        return "too few groups"
    if p_holm >= LEVEL or difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if difference.low > 0 else "worse"
