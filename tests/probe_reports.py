"""Made-up reports of `zoo probe` for tests of what is made of them; no number in them was measured."""

import numpy as np

from zoo.evaluation.report import (
    KNN,
    LINEAR,
    Cohort,
    Difference,
    EncoderResult,
    Estimate,
    Map,
    Neighbour,
    Overlap,
    Point,
    ProbeReport,
    Query,
    Repeat,
    Shown,
    Split,
    Target,
)

CLASSIFYING = ("auroc", "average_precision", "balanced_accuracy")
MEASURING = ("r2", "mean_absolute_error", "rank_correlation")
SIZES = (10, 25, 50, 100, None)
TRAINED, TESTED, SHOWN = 400, 200, 300


def made_report(
    names=("model-a.tag-1", "model-b.tag-2"), *, classes=("no", "yes"), column="finding", paths=None, ids=None, seed=0
):
    """A report with a twin for each encoder and plain intensities; of numbers where there are no classes."""
    rng = np.random.default_rng(seed)
    kind = "numbers" if not classes else "binary" if len(classes) == 2 else "classes"
    measures = CLASSIFYING if classes else MEASURING
    labels = [str(label) for label in (rng.choice(classes, SHOWN) if classes else rng.normal(60, 12, SHOWN).round(1))]
    shown = tuple(
        Shown(
            id=ids[i] if ids else f"case-{i:04}",
            path=str(paths[i % len(paths)]) if paths else None,
            label=labels[i],
            group=f"patient-{i // 2}",
            part="test" if i < 100 else "train",
        )
        for i in range(SHOWN)
    )
    twins = {name: f"{name.split('.')[0]}, random weights" for name in names}
    others = [(twin, "random") for twin in dict.fromkeys(twins.values())] + [("plain intensities", "intensities")]
    results = [_result(rng, name, "encoder", measures, labels, twins[name], names) for name in names]
    results += [_result(rng, name, role, measures, labels, None, names) for name, role in others]
    best = max(results[: len(names)], key=lambda each: each.measures[LINEAR][measures[0]].value).name
    return ProbeReport(
        verdict=("This report is synthetic.", "No encoder is told apart from another."),
        warnings=("All numbers of this report are made up.",),
        target=Target(
            column=column,
            kind=kind,
            said_by="column",
            classes=tuple(classes),
            counts={name: labels.count(str(name)) for name in classes},
            range=None if classes else (20.5, 99.5),
        ),
        cohort=Cohort(640, 600, 310, "patient", 20, 0, 20, {name: 3 for name in names}),
        split=Split("column", "split", TRAINED, 205, TESTED, 105, 1, 1, TRAINED),
        main_measure=measures[0],
        best=best,
        encoders=tuple(results),
        shown=shown,
        overlaps=(
            Overlap(names[0], "list of the authors", 600, 590, 4, 6, 5, ("A rule on file names.",)),
            *(Overlap(name, "no list is published", 600, 0, 0, 0, 0) for name in names[1:]),
        ),
        repeat=Repeat(
            command=f"zoo probe labels.csv --column {column} {' '.join(names)} -o out",
            seed=seed,
            rounds=2000,
            table="labels.csv",
            table_sha256="0" * 64,
            versions={"medssl-zoo": "0.1.0", "torch": "2.14.1"},
            date="2026-11-29T18:05:00+00:00",
            seconds=61.4,
        ),
    )


def _result(rng, name, role, measures, labels, twin, names):
    skill = {"encoder": rng.uniform(0.7, 0.85), "random": 0.58, "intensities": 0.62}[role]
    found = {probe: {m: _estimate(rng, m, skill) for m in measures} for probe in (LINEAR, KNN)}
    return EncoderResult(
        name=name,
        role=role,
        dimensions=2048,
        measures=found,
        chosen={LINEAR: "C 0.01", KNN: "k 15"},
        curve=tuple(_point(rng, size, skill) for size in SIZES),
        differences=tuple(_differences(rng, name, measures[0], twin, names)) if role == "encoder" else (),
        twin=twin,
        map=_map(rng, labels) if role == "encoder" else None,
        queries=tuple(_query(rng, case) for case in range(6)) if role == "encoder" else (),
        facts={"model": name, "input": {"size": [224, 224]}} if role == "encoder" else {},
        digest=rng.bytes(32).hex(),
    )


def _estimate(rng, measure, skill):
    value = skill + rng.normal(0, 0.01) if measure != "mean_absolute_error" else 12.5 - 8 * skill
    half = rng.uniform(0.02, 0.05)
    return Estimate(value, value - half, value + half)


def _point(rng, size, skill):
    cases = size or TRAINED
    mean = 0.5 + (skill - 0.5) * (np.log(cases) / np.log(TRAINED)) ** 1.5 + rng.normal(0, 0.004)
    half = 0.35 / np.sqrt(cases) + 0.02
    return Point(size, cases, 1 if size is None else 10, float(mean), float(mean - half), float(mean + half))


def _differences(rng, name, measure, twin, names):
    for probe in (LINEAR, KNN):
        for to, other in (("random", twin), ("intensities", "plain intensities"), ("best", names[0])):
            if other != name:
                value = 0.12 if to != "best" else -0.01
                gain = Estimate(value + rng.normal(0, 0.01), value - 0.05, value + 0.05)
                p = 0.0004 if to != "best" else 0.71
                yield Difference(
                    to, other, probe, measure, gain, p, min(1, 2 * p), "better" if to != "best" else "not told apart"
                )


def _map(rng, labels):
    cases = range(100, SHOWN)
    shift = np.array([sorted(set(labels)).index(labels[case]) for case in cases]) % 7
    x, y = rng.normal(shift, 1), rng.normal(shift % 2, 1)
    return Map(tuple(cases), tuple(x.tolist()), tuple(y.tolist()), (0.31, 0.12))


def _query(rng, case):
    near = rng.choice(np.arange(100, SHOWN), 5, replace=False)
    similarities = sorted(rng.uniform(0.5, 0.99, 5), reverse=True)
    return Query(case, tuple(Neighbour(int(i), float(s)) for i, s in zip(near, similarities, strict=True)))
