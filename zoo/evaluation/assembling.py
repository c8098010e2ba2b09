"""Puts together the report of a probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zoo.evaluation.fitting import Plan
from zoo.evaluation.judging import main_measure
from zoo.evaluation.labelled import TEST
from zoo.evaluation.looks import map_of, nearest_of, pick_mapped, pick_queries, queries_of
from zoo.evaluation.probes import MOST_KEPT
from zoo.evaluation.report import (
    LINEAR,
    Cohort,
    EncoderResult,
    Overlap,
    ProbeReport,
    Repeat,
    Shown,
    Split,
)
from zoo.evaluation.sources import Contender
from zoo.evaluation.verdicts import verdict
from zoo.messages import first_names
from zoo.tasks.measures import FEW


def assemble(
    plan: Plan,
    contenders: Sequence[Contender],
    results: Mapping[str, EncoderResult],
    without_features: int,
    missing: Sequence[str],
    overlaps: tuple[Overlap, ...],
) -> ProbeReport:
    """Return the report, but for how to repeat it.

    Args:
        plan: What was asked.
        contenders: What was compared.
        results: Of each of them, by name.
        without_features: Cases that were left out for want of features.
        missing: What a reader must know of missing baselines.
        overlaps: What was seen in pre-training.
    """
    shown, results = _with_looks(plan, contenders, results)
    encoders = [each for each in results.values() if each.role == "encoder"]
    main = main_measure(plan.classes)
    best = max(encoders, key=lambda each: _value(each, main)).name
    spare = {each.name: each.sets[0].spare for each in contenders if each.role == "encoder" and each.sets[0].spare}
    cohort = _cohort(plan, without_features, spare)
    split = _split(plan)
    return ProbeReport(
        verdict(encoders, best, main, split, cohort, overlaps),
        (*missing, *_seen(overlaps), *_cautions(plan, cohort, split)),
        plan.target,
        cohort,
        split,
        main,
        best,
        tuple(results.values()),
        shown,
        overlaps,
        Repeat("", plan.seed, plan.rounds, "", "", {}, "", 0.0),
    )


def _value(result: EncoderResult, main: str) -> float:
    value = result.measures[LINEAR][main].value
    return -np.inf if value is None else value


def _with_looks(
    plan: Plan, contenders: Sequence[Contender], results: Mapping[str, EncoderResult]
) -> tuple[tuple[Shown, ...], dict[str, EncoderResult]]:
    """The cases that are shown, and the results of encoders with their map and neighbours."""
    encoders = [each for each in contenders if each.role == "encoder"]
    fold = plan.folds[0]
    mapped = pick_mapped(len(plan.labelled), plan.seed).tolist()
    queries = pick_queries(fold, plan.strata, plan.seed)
    nearest = {each.name: nearest_of(each.sets[0], fold, queries) for each in encoders}
    near = [case for own in nearest.values() for _, found in own for case, _ in found]
    cases = sorted({*mapped, *queries, *near})
    position = {case: i for i, case in enumerate(cases)}
    images = _images_of(contenders)
    shown = tuple(_shown(plan, case, images[case]) for case in cases)
    found = dict(results)
    for each in encoders:
        drawn = map_of(each.sets[0], mapped, position, plan.seed)
        found[each.name] = replace(found[each.name], map=drawn, queries=queries_of(nearest[each.name], position))
    return shown, found


def _images_of(contenders: Sequence[Contender]) -> list[str | None]:
    """Where the image of each case is, as far as one of the contenders knows and it is there."""
    found: list[str | None] = [None] * len(contenders[0].sets[0].values)
    for each in contenders:
        for i, path in enumerate(each.sets[0].images):
            if found[i] is None and path is not None and Path(path).exists():
                found[i] = path
    return found


def _shown(plan: Plan, case: int, image: str | None) -> Shown:
    own, classes = plan.labelled, plan.target.classes
    label = classes[int(plan.labels[case])] if classes else own.texts[case]  # 1.0 of a table is class 1
    part = "both" if own.parts is None else "test" if own.parts[case] == TEST else "train"
    return Shown(own.ids[case], image, label, own.groups[case], part)  # type: ignore[arg-type]


def _cohort(plan: Plan, without_features: int, spare: Mapping[str, int]) -> Cohort:
    own = plan.labelled
    return Cohort(
        own.table_rows,
        len(own),
        len(np.unique(plan.groups)),
        own.group_column,
        own.without_label,
        own.without_split,
        without_features,
        spare,
    )


def _split(plan: Plan) -> Split:
    trained = [fold.train for fold in plan.folds]
    rarest = plan.rarest
    repeats = len({fold.repeat for fold in plan.folds})
    return Split(
        "cross-validation" if plan.labelled.parts is None else "column",
        plan.labelled.split_column,
        round(float(np.mean([len(rows) for rows in trained]))),
        round(float(np.mean([len(np.unique(plan.groups[rows])) for rows in trained]))),
        len(plan.tested),
        len(np.unique(plan.groups[plan.tested])),
        len(plan.folds) // repeats,
        repeats,
        min(MOST_KEPT, max(len(rows) for rows in trained)),
        None if rarest is None else rarest.named,
        0 if rarest is None else rarest.groups,
    )


def _seen(overlaps: Sequence[Overlap]) -> Iterator[str]:
    for each in overlaps:
        if each.seen_test:
            yield (
                f"{each.encoder} was trained on {each.seen_test} of the tested cases, or on images of their patients: "
                "its result may be too good."
            )
        if each.readable < each.ids:
            yield (
                f"For {each.ids - each.readable} of {each.ids} cases nothing says whether {each.encoder} was trained "
                "on them."
            )


def _cautions(plan: Plan, cohort: Cohort, split: Split) -> Iterator[str]:
    groups, labels = plan.groups[plan.tested], plan.labels[plan.tested]
    what = "cases" if cohort.group_column is None else "groups"
    if cohort.group_column is None:
        yield "Each case counts as a group of its own: where patients have several, give --group."
    for number, why in (
        (cohort.without_label, "no label"),
        (cohort.without_split, "no part"),
        (cohort.without_features, "no features of some encoder or baseline"),
    ):
        if number:
            yield f"{number} of {cohort.rows} cases were left out: they have {why}."
    if plan.target.classes:
        counts = [len(np.unique(groups[labels == c])) for c in range(plan.classes)]
        few = [name for name, n in zip(plan.target.classes, counts, strict=True) if n < FEW]
        if few:
            yield f"Fewer than {FEW} tested {what} are of {first_names(few)}: that tells little."
    if found := split.too_few(what):
        yield (
            f"Only {found[0]} are tested: intervals of fewer than {found[1]} are too narrow, so that nothing is called "
            "better or worse."
        )
    if (learnt := max(len(fold.train) for fold in plan.folds)) > split.neighbour_cases:
        yield (
            f"Nearest neighbours are looked for among {split.neighbour_cases:,} of {learnt:,} training cases, drawn at "
            "random; the linear probe learns from all."
        )
    if not plan.draws:
        yield "There is no curve of few labels: the training part is too small for it."
