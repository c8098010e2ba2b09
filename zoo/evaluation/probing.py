"""Probes features on a user's own labels: `zoo.probe`.

The file is long because the steps from a table to a report stand here in their order.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.judging import (
    ROUNDS,
    estimate,
    holm,
    main_measure,
    main_of_fold,
    measures_of,
    p_value,
    resample,
    verdict_of,
)
from zoo.evaluation.labelled import TEST, Labelled, in_one_order, read_labelled
from zoo.evaluation.looks import map_of, nearest_of, pick_mapped, pick_queries, queries_of
from zoo.evaluation.matching import FeatureSet
from zoo.evaluation.probes import FITS, Part, fit_linear
from zoo.evaluation.report import (
    KNN,
    LINEAR,
    PROBES,
    Cohort,
    Difference,
    EncoderResult,
    Estimate,
    Overlap,
    Point,
    ProbeReport,
    Repeat,
    Shown,
    Split,
    Target,
)
from zoo.evaluation.seen import look_up
from zoo.evaluation.sources import Contender, Where, find_contenders
from zoo.evaluation.splits import DRAWS, REPEATS, SIZES, Draw, Fold, check_parts, draw_folds, draw_labels, given_fold
from zoo.evaluation.target import read_target, strata_of
from zoo.evaluation.verdicts import verdict
from zoo.messages import first_names, install_hint
from zoo.progress import follow, say
from zoo.tasks.measures import FEW, Measure
from zoo.training.metrics import Array, Floats
from zoo.version import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

_PACKAGES = ("numpy", "scikit-learn", "scipy", "torch")
_ALIKE = 1e-4
"""Largest difference of standardised features by which two images are one: batches round otherwise."""


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

    @property
    def tested(self) -> Array:
        """Positions of all cases that are tested."""
        return np.unique(np.concatenate([fold.test for fold in self.folds]))


def probe(
    features: Any,
    table: str | Path | DataFrame,
    *,
    column: str,
    group: str | None = None,
    split: str | None = None,
    kind: str | None = None,
    data: str | Path | None = None,
    path_column: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    sizes: Sequence[int] = SIZES,
    draws: int = DRAWS,
    command: str | None = None,
) -> ProbeReport:
    """Return what frozen features are worth on labels of your own, beside random weights and plain intensities.

    Everything is fitted and chosen on training parts alone. Cases of one group are never on both sides. The order of
    the table's rows changes nothing.

    Args:
        features: What to probe, one of these, a sequence of them, or a mapping from names to them.
            The path of a folder, `.npz` or `.csv` that `zoo embed` wrote.
            What `zoo.read_features` returned.
            An array `(N, D)` in the order of the table's rows.
            `MODEL` or `MODEL.TAG`, by which the table's images are embedded first.
        table: `.csv`, `.tsv`, `.parquet` or a DataFrame: a row for each case, with `id`, or a column of paths.
        column: Column of labels: two values, several, or numbers. Cases without one are left out.
        group: Column of what stays together, the patient; None for each case alone.
        split: Column of `train` and `test` (or `val`); None for repeated cross-validation by group.
        kind: `binary`, `classes` or `numbers`; None to tell it from the column.
        data: Folder from which the table's paths lead; None for the table's own.
        path_column: Column of paths; None for `path`, `image_path` or `file`.
        out: Folder in which features are kept, and found by the next call; None to keep none.
        device: Where networks run.
        workers: Processes that read images; None for one less than there are processors.
        cache_dir: Folder of downloads.
        seed: Of folds, draws and resamples.
        rounds: Of the bootstrap.
        repeats: Of the cross-validation.
        sizes: Numbers of labelled cases of the few-label curve, below all of them.
        draws: Of each size.
        command: How to do it again; None for the program's own words.

    Raises:
        OptionError: Table, features and columns do not fit together, or a group or an image is on both sides.
        InputContractError: Features cannot be read, or are not finite.
    """
    began, date = time.monotonic(), datetime.now().astimezone().isoformat(timespec="seconds")
    check_installed()
    check_counts(seed=seed, rounds=rounds, repeats=repeats, draws=draws)
    labelled = read_labelled(table, column, group=group, split=split, path_column=path_column)
    read_target(labelled.texts, column, kind)  # refused before images are embedded
    options = {"device": device, "workers": workers, "cache_dir": None if cache_dir is None else Path(cache_dir)}
    where = Where(_path(data), path_column, _path(out), **options)  # type: ignore[arg-type]
    contenders, kept, warnings = find_contenders(features, labelled, where)
    embedding = time.monotonic() - began
    spare = len(labelled) - len(kept)
    labelled, contenders = _ordered(labelled.take(kept), contenders)
    plan = make_plan(labelled, column, kind, seed=seed, rounds=rounds, repeats=repeats, sizes=sizes, draws=draws)
    check_images(contenders, labelled)
    results = judge(plan, contenders)
    overlaps = tuple(look_up(contenders, image_names(labelled), plan.tested, cache_dir))
    report = _report(plan, contenders, results, spare, warnings, overlaps)
    repeat = Repeat(
        command or _call(contenders, labelled, column, group, split, kind, seed),
        seed,
        rounds,
        str(labelled.table) if labelled.table else "a table in memory",
        _table_digest(table),
        {"zoo": __version__, "python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        date,
        round(time.monotonic() - began - embedding, 3),
    )
    return replace(report, repeat=repeat)


def _call(contenders: Sequence[Contender], labelled: Labelled, column: str, *more: Any) -> str:
    """How a program called it."""
    names = [each.name for each in contenders if each.role == "encoder"]
    given = dict(zip(("group", "split", "kind", "seed"), more, strict=True))
    said = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
    table = "table" if labelled.table is None else repr(str(labelled.table))
    return f"zoo.probe([{', '.join(map(repr, names))}], {table}, column={column!r}{said})"


def check_installed() -> None:
    """Raise `OptionError` where a library is missing that every probe needs."""
    for package, module in (("scikit-learn", "sklearn"), ("pandas", "pandas")):
        if find_spec(module) is None:
            raise OptionError(f"a probe needs {package}: {install_hint(package, 'train')}")


def check_counts(**counts: int) -> None:
    """Raise `OptionError` where a number cannot be what it is for."""
    for name, value in counts.items():
        least = {"seed": 0, "rounds": 200, "draws": 10}.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name}={value!r}: a whole number of at least {least} is expected")


def make_plan(
    labelled: Labelled,
    column: str,
    kind: str | None,
    *,
    seed: int,
    rounds: int,
    repeats: int,
    sizes: Sequence[int],
    draws: int,
) -> Plan:
    """Return what every contender is asked.

    Raises:
        OptionError: The cases cannot be divided so that something can be learnt and tested.
    """
    target, labels = read_target(labelled.texts, column, kind)
    strata = strata_of(target, labels)
    names = target.classes or [f"quarter {i + 1}" for i in range(int(strata.max()) + 1)]
    groups = np.unique(np.array(labelled.groups, dtype=object), return_inverse=True)[1]
    if labelled.parts is not None:
        folds = given_fold(labelled.parts)
    else:
        folds = draw_folds(groups, strata, names, repeats=repeats, seed=seed)
    check_parts(folds, strata, names, of_classes=bool(target.classes))
    few = draw_labels(folds, groups, strata, sizes=sizes, count=draws, seed=seed)
    return Plan(target, labelled, labels, groups, strata, folds, few, seed, rounds)


def check_images(contenders: Sequence[Contender], labelled: Labelled) -> None:
    """Raise `OptionError` where one image is there twice, in two groups, by its features.

    A copy under another name, or of a patient who has two numbers, would be learnt from and tested.
    """
    for contender in contenders:
        if contender.role != "encoder":
            continue
        if twice := list(_copies(contender.sets[0], labelled)):
            pairs = [
                f"{labelled.ids[a]} ({labelled.groups[a]}) and {labelled.ids[b]} ({labelled.groups[b]})"
                for a, b in twice
            ]
            raise OptionError(
                f"{len(twice)} pairs of cases in different groups have the same features by {contender.name}: "
                f"{first_names(pairs, 5)}. The same image would be learnt from and tested: give both one group by "
                "--group, or drop one of them"
            )


def _copies(features: FeatureSet, labelled: Labelled) -> Iterator[tuple[int, int]]:
    """Pairs of cases in different groups with the same features; found along one line, so in linear time."""
    values = features.values.astype(np.float64)
    deviation = values.std(0)
    values = (values - values.mean(0)) / np.where(deviation > 1e-12, deviation, 1)
    line = values @ np.random.default_rng(0).standard_normal(values.shape[1])
    order = np.argsort(line, kind="stable")
    for step in (1, 2, 3):
        for a, b in zip(order[:-step].tolist(), order[step:].tolist(), strict=True):
            if labelled.groups[a] != labelled.groups[b] and np.abs(values[a] - values[b]).max() <= _ALIKE:
                yield min(a, b), max(a, b)


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
                measures[contender.name, i, size, d] = _on(test, main_of_fold(plan.labels[test], found, plan.classes))
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


def _on(rows: Array, measure: Measure) -> Measure:
    return lambda weights: measure(weights[..., rows])


def _mean_over_seeds(contender: Contender, values: Mapping[tuple[Any, ...], Floats]) -> dict[tuple[Any, ...], Floats]:
    keys = dict.fromkeys(key[2:] for key in values if key[0] == contender.name)
    return {key: np.mean([values[(contender.name, i, *key)] for i in range(len(contender.sets))], 0) for key in keys}


def compare(
    plan: Plan, contenders: Sequence[Contender], values: Mapping[str, Mapping[tuple[Any, ...], Floats]]
) -> dict[str, tuple[Difference, ...]]:
    """Return the paired differences of each encoder to its twin, to plain intensities, and to the best encoder."""
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
        for to, pairs in others.items():
            known = [(own, other) for own, other in pairs if other is not None]
            apart = [values[own][name, main] - values[other][name, main] for own, other in known]
            estimates = [estimate(each, tested) for each in apart]
            ps = [None if e.low is None else p_value(each) for e, each in zip(estimates, apart, strict=True)]
            for (own, other), e, p, corrected in zip(known, estimates, ps, holm(ps), strict=True):
                said = verdict_of(e, corrected)
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


def _report(
    plan: Plan,
    contenders: Sequence[Contender],
    results: Mapping[str, EncoderResult],
    without_features: int,
    missing: Sequence[str],
    overlaps: tuple[Overlap, ...],
) -> ProbeReport:
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
    shown = tuple(_shown(plan.labelled, case, images[case]) for case in cases)
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


def _shown(labelled: Labelled, case: int, image: str | None) -> Shown:
    part = "both" if labelled.parts is None else "test" if labelled.parts[case] == TEST else "train"
    return Shown(labelled.ids[case], image, labelled.texts[case], labelled.groups[case], part)  # type: ignore[arg-type]


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
                f"Of {each.ids - each.readable} of {each.ids} cases nothing says whether {each.encoder} was trained on "
                "them."
            )


def _cautions(plan: Plan, cohort: Cohort, split: Split) -> Iterator[str]:
    if cohort.group_column is None:
        yield "Each case counts as a group of its own: where patients have several, give --group."
    for number, why in (
        (cohort.without_label, "no label"),
        (cohort.without_split, "no part"),
        (cohort.without_features, "no features of some encoder"),
    ):
        if number:
            yield f"{number} of {cohort.rows} cases were left out: they have {why}."
    if plan.target.classes:
        counts = np.bincount(plan.labels[plan.tested].astype(int), minlength=plan.classes)
        few = [name for name, n in zip(plan.target.classes, counts, strict=True) if n < FEW]
        if few:
            yield f"Fewer than {FEW} tested cases are of {first_names(few)}: that tells little."
    elif split.test_cases < FEW:
        yield f"{split.test_cases} cases are tested: fewer than {FEW} tell little."
    if not plan.draws:
        yield "There is no curve of few labels: the training part is too small for it."


def image_names(labelled: Labelled) -> Sequence[str]:
    """Names of the cases by which training lists tell images: those of files, else ids."""
    return labelled.ids if labelled.paths is None else [Path(path).name for path in labelled.paths]


def _ordered(labelled: Labelled, contenders: Sequence[Contender]) -> tuple[Labelled, list[Contender]]:
    """Cases in an order that does not depend on the table's rows."""
    first = contenders[0].sets[0].values
    keys = [hashlib.sha256(row.tobytes()).hexdigest() for row in np.ascontiguousarray(first, np.float32)]
    order = in_one_order(labelled, keys)
    return labelled.take(order), [each.take(order) for each in contenders]


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _table_digest(table: Any) -> str:
    if isinstance(table, str | Path):
        with Path(table).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
