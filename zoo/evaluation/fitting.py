"""Fits the probes of all contenders on the same folds and draws, and compares them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zoo.evaluation.judging import (
    estimate,
    holm,
    main_measure,
    main_of_draw,
    measures_of,
    p_value,
    resample,
    verdict_of,
)
from zoo.evaluation.labelled import Labelled
from zoo.evaluation.probes import FITS, Part, fit_linear
from zoo.evaluation.report import (
    KNN,
    LINEAR,
    PROBES,
    Difference,
    EncoderResult,
    Estimate,
    Point,
    Target,
)
from zoo.evaluation.sources import Contender
from zoo.evaluation.splits import Draw, Fold
from zoo.progress import follow, say
from zoo.tasks.measures import Measure
from zoo.tasks.telling import Rarest, rarest_of
from zoo.training.metrics import Array, Floats


@dataclass(frozen=True, eq=False)
class Plan:
    """What every contender is asked: the same cases, folds and draws."""

    target: Target
    labelled: Labelled
    labels: Floats
    groups: Array
    strata: Array
    folds: Sequence[Fold]
    draws: Mapping[int, Sequence[Draw]]
    seed: int
    rounds: int

    @property
    def classes(self) -> int:
        """0 for numbers."""
        return len(self.target.classes)

    @cached_property
    def tested(self) -> Array:
        """Positions of all cases that are tested."""
        return np.unique(np.concatenate([fold.test for fold in self.folds]))

    @cached_property
    def rarest(self) -> Rarest | None:
        """The class that the fewest tested groups have; None of numbers."""
        labels, names = self.labels[self.tested], self.target.classes
        held = [(f"of class {name}", labels == c) for c, name in enumerate(names)]
        return rarest_of(held, self.groups[self.tested])


def judge(plan: Plan, contenders: Sequence[Contender]) -> dict[str, EncoderResult]:
    """Fit all probes of all contenders, and return their results by name."""
    measures: dict[tuple[Any, ...], Measure] = {}
    chosen: dict[tuple[str, str], list[float]] = {}
    sets = [(contender, i, own) for contender in contenders for i, own in enumerate(contender.sets)]
    jobs = len(plan.folds) * len(PROBES) + sum(map(len, plan.draws.values()))
    say(f"probing {len(sets)} sets of features of {len(plan.labelled)} cases, {jobs} fits each")
    for contender, i, own in follow(sets, "features probed", len(sets)):
        values = own.values.astype(np.float64)
        for name in PROBES:
            scores = []
            for fold in plan.folds:
                fitted = FITS[name](part_of(plan, values, fold.train))
                scores.append(fitted.scores(values[fold.test]))
                chosen.setdefault((contender.name, name), []).append(fitted.chosen)
            for key, measure in measures_of(plan.labels, plan.folds, scores, plan.classes).items():
                measures[contender.name, i, name, key] = measure
        for size, few in plan.draws.items():
            for d, draw in enumerate(few):
                test = plan.folds[draw.fold].test
                found = fit_linear(part_of(plan, values, draw.train)).scores(values[test])
                measures[contender.name, i, size, d] = main_of_draw(plan.labels, test, found, plan.classes, plan.tested)
    say(f"drawing {plan.rounds} resamples of {len(np.unique(plan.groups[plan.tested]))} tested groups")
    drawn = resample(measures, plan.groups, plan.tested, rounds=plan.rounds, seed=plan.seed)
    by_name = {each.name: _mean_over_seeds(each, drawn) for each in contenders}
    differences = compare(plan, contenders, by_name)
    return {
        each.name: _result(plan, each, by_name[each.name], chosen, differences.get(each.name, ()))
        for each in contenders
    }


def part_of(plan: Plan, values: Floats, rows: Array) -> Part:
    """Return the cases that a probe may see."""
    return Part(values[rows], plan.labels[rows], plan.groups[rows], plan.classes, plan.seed)


def _mean_over_seeds(contender: Contender, values: Mapping[tuple[Any, ...], Floats]) -> dict[tuple[Any, ...], Floats]:
    keys = dict.fromkeys(key[2:] for key in values if key[0] == contender.name)
    return {key: np.mean([values[(contender.name, i, *key)] for i in range(len(contender.sets))], 0) for key in keys}


def compare(
    plan: Plan, contenders: Sequence[Contender], values: Mapping[str, Mapping[tuple[Any, ...], Floats]]
) -> dict[str, tuple[Difference, ...]]:
    """Return the paired differences of each encoder to its twin, to plain intensities, and to the best encoder.

    The best is picked by the same cases, so that its differences are corrected as all pairs of encoders: of ten that
    are worth the same, the best would else be called better than another one in 15 of 100 cohorts.
    """
    main, tested = main_measure(plan.classes), len(np.unique(plan.groups[plan.tested]))
    encoders = [each for each in contenders if each.role == "encoder"]
    plain = next((each.name for each in contenders if each.role == "intensities"), None)
    found: dict[str, list[Difference]] = {each.name: [] for each in encoders}
    for name in PROBES:
        best = best_of(encoders, values, name, main)
        others = {
            "random": [(each.name, each.twin) for each in encoders],
            "intensities": [(each.name, plain) for each in encoders],
            "best": [(each.name, best if each.name != best else None) for each in encoders],
        }
        picked_from = {"best": len(encoders) * (len(encoders) - 1) // 2}
        for to, pairs in others.items():
            known = [(own, other) for own, other in pairs if other is not None]
            apart = [values[own][name, main] - values[other][name, main] for own, other in known]
            estimates = [estimate(each, tested) for each in apart]
            ps = [None if e.low is None else p_value(each) for e, each in zip(estimates, apart, strict=True)]
            for (own, other), e, p, corrected in zip(
                known, estimates, ps, holm(ps, of=picked_from.get(to, 0)), strict=True
            ):
                said = verdict_of(e, corrected, tested, plan.rarest)
                found[own].append(Difference(to, other, name, main, e, p, corrected, said))  # type: ignore[arg-type]
    return {name: tuple(own) for name, own in found.items()}


def best_of(
    encoders: Sequence[Contender], values: Mapping[str, Mapping[tuple[Any, ...], Floats]], name: str, main: str
) -> str:
    """Return the encoder with the largest main measure by a probe, the first of several."""
    return max(encoders, key=lambda each: float(np.nan_to_num(values[each.name][name, main][0], nan=-np.inf))).name


def _result(
    plan: Plan,
    contender: Contender,
    values: Mapping[tuple[Any, ...], Floats],
    chosen: Mapping[tuple[str, str], list[float]],
    differences: tuple[Difference, ...],
) -> EncoderResult:
    tested = len(np.unique(plan.groups[plan.tested]))
    measures: dict[str, dict[str, Estimate]] = {name: {} for name in PROBES}
    for key, own in values.items():
        if key[0] in measures:
            measures[key[0]][key[1]] = estimate(own, tested)
    facts = dict(contender.sets[0].facts)
    if contender.role == "random":
        facts = {**facts, "seeds": [each.facts.get("seed") for each in contender.sets]}
        facts.pop("seed", None)
    digests = [each.digest for each in contender.sets]
    return EncoderResult(
        contender.name,
        contender.role,
        int(contender.sets[0].values.shape[1]),
        measures,
        {name: _in_words(name, plan.classes, chosen[contender.name, name]) for name in PROBES},
        (*_curve(plan, values, tested), _whole(plan, measures)),
        differences,
        contender.twin,
        None,
        (),
        facts,
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _curve(plan: Plan, values: Mapping[tuple[Any, ...], Floats], tested: int) -> Iterator[Point]:
    """The points below the whole training part; their intervals are over tested groups and draws."""
    for size, draws in plan.draws.items():
        each = np.stack([values[size, d] for d in range(len(draws))], 1)
        rng = np.random.default_rng([plan.seed, size, len(draws)])
        shares = rng.multinomial(len(draws), np.full(len(draws), 1 / len(draws)), size=len(each)).astype(float)
        shares[0] = 1
        is_known = ~np.isnan(each)
        with np.errstate(invalid="ignore"):
            mean = (np.where(is_known, each, 0) * shares).sum(1) / (is_known * shares).sum(1)
        found = estimate(mean, tested)
        cases = round(float(np.mean([len(draw.train) for draw in draws])))
        yield Point(size, cases, len(draws), found.value, found.low, found.high)


def _whole(plan: Plan, measures: Mapping[str, Mapping[str, Estimate]]) -> Point:
    found = measures[LINEAR][main_measure(plan.classes)]
    cases = round(float(np.mean([len(fold.train) for fold in plan.folds])))
    return Point(None, cases, len(plan.folds), found.value, found.low, found.high)


def _in_words(probe: str, classes: int, chosen: Sequence[float]) -> str:
    what = "k" if probe == KNN else "C" if classes else "alpha"
    low, high = min(chosen), max(chosen)
    return f"{what} = {low:.3g}" if low == high else f"{what} = {low:.3g} to {high:.3g}"
