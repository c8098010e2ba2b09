"""The drawings of a report: strips of intervals, few-label curves, maps of cases."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from zoo.evaluation.charts import PLAIN, REST, Curve, Look, cloud, curves, dot, looks, ramp, strip, swatch, twin_looks
from zoo.evaluation.report import MEASURES, PROBES, Difference, EncoderResult, Estimate, Map, ProbeReport
from zoo.evaluation.wording import number

GUESSING: Mapping[str, float] = {"auroc": 0.5, "r2": 0.0}
"""What a measure is of features that tell nothing."""
LEAST: Mapping[str, float] = {"r2": -0.5}
"""Below this a measure is cut off in drawings: a few draws far below guessing would press all others together."""
_MOST_CLASSES = 8
"""Classes that a map tells apart; the rarest of more are drawn as one."""


@dataclass(frozen=True)
class Panel:
    """A drawing with its legend."""

    title: str
    svg: Any
    """Markup."""
    legend: tuple[tuple[Any, str], ...]
    """Signs, as markup, and what each stands for."""


def bars_of(report: ProbeReport) -> dict[tuple[str, str], Any]:
    """Strips of the main measure by name and probe, all on one scale; None where there is nothing to draw."""
    estimates = {
        (each.name, probe): each.measures[probe][report.main_measure] for each in report.encoders for probe in PROBES
    }
    return _strips(report, estimates, GUESSING.get(report.main_measure))


def difference_bars_of(report: ProbeReport) -> dict[tuple[str, Difference], Any]:
    """Strips of the paired differences by encoder and difference, all on one scale with 0 marked."""
    return _strips(report, {(each.name, d): d.difference for each in report.asked() for d in each.differences}, 0.0)


def curves_of(report: ProbeReport) -> list[Panel]:
    """Few-label curves: of all encoders together where there are several, then of each beside its baselines."""
    asked = report.asked()
    baselines = [each for each in report.encoders if each.role == "intensities"]
    groups = [("All encoders", asked)] if len(asked) > 1 else []
    for each in asked:
        twins = [other for other in report.encoders if other.name == each.twin]
        groups.append((each.name, [each, *twins, *baselines]))
    seen = [value for each in report.encoders for _, *values in _points(each) for value in values]
    if not seen:
        return []
    level = GUESSING.get(report.main_measure, seen[0])
    bounds = max(min(*seen, level), LEAST.get(report.main_measure, -inf)), max(*seen, level)
    return [_curves(report, title, results, bounds) for title, results in groups]


def maps_of(report: ProbeReport) -> list[Panel]:
    """The map of each encoder, cases drawn by their label, and one legend for all."""
    key, part_of = _parts(report)
    return [_map(each.name, each.map, key, part_of) for each in report.asked() if each.map and each.map.cases]


def _strips(report: ProbeReport, estimates: Mapping[Any, Estimate], level: float | None) -> dict[Any, Any]:
    look_of = _looks(report)
    ends = [end for each in estimates.values() for end in (each.value, each.low, each.high) if end is not None]
    if not ends:
        return dict.fromkeys(estimates)
    least = -inf if level is None else level + LEAST.get(report.main_measure, -inf)
    scale = _scale([max(end, least) for end in [*ends, *([] if level is None else [level])]])
    return {key: _strip(each, scale, look_of[key[0]], level) for key, each in estimates.items()}


def _strip(estimate: Estimate, scale: tuple[float, float], look: Look, level: float | None) -> Any:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None:
        return None
    return strip((value if low is None else low, value, value if high is None else high), scale, look, level=level)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 1, high + 1)


def _looks(report: ProbeReport) -> dict[str, Look]:
    """The look of each set of features, the same in every drawing."""
    asked = [each.name for each in report.asked()]
    twins = [each.name for each in report.encoders if each.role == "random"]
    found = {each.name: PLAIN for each in report.encoders if each.role == "intensities"}
    return found | dict(zip([*asked, *twins], [*looks(len(asked)), *twin_looks(len(twins))], strict=True))


def _points(result: EncoderResult) -> list[tuple[float, float, float, float]]:
    """The points of a curve that are known, with its band, which has no width where there is no interval."""
    return [
        (p.cases, p.mean, p.mean if p.low is None else p.low, p.mean if p.high is None else p.high)
        for p in result.curve
        if p.mean is not None
    ]


def _curves(report: ProbeReport, title: str, results: Sequence[EncoderResult], bounds: tuple[float, float]) -> Panel:
    look_of, measure = _looks(report), MEASURES[report.main_measure]
    drawn = [(each, points) for each in results if (points := _points(each))]
    said = "; ".join(
        f"{each.name}: {number(points[0][1])} with {points[0][0]} labels, {number(points[-1][1])} with {points[-1][0]}"
        for each, points in drawn
    )
    svg = curves(
        f"{measure} by number of labelled cases. {said}",
        [Curve(look_of[each.name], points) for each, points in reversed(drawn)],
        bounds,
        x_label="labelled training cases",
        y_label=f"{measure}, linear probe",
        level=GUESSING.get(report.main_measure),
    )
    return Panel(title, svg, tuple((swatch(look_of[each.name]), each.name) for each, _ in drawn))


def _map(name: str, found: Map, key: Sequence[tuple[Look, str]], part_of: Sequence[int]) -> Panel:
    points: list[list[tuple[float, float]]] = [[] for _ in key]
    for case, x, y in zip(found.cases, found.x, found.y, strict=True):
        points[part_of[case]].append((x, y))
    x_label, y_label = _axes_of(found)
    svg = cloud(
        f"Map of {len(found.cases)} cases by the features of {name}, by {found.method}, drawn by label",
        [(look, each) for (look, _), each in zip(key, points, strict=True)],
        x_label=x_label,
        y_label=y_label,
    )
    return Panel(name, svg, tuple((dot(look), label) for look, label in key))


def _axes_of(found: Map) -> tuple[str, str]:
    if found.explained is None:
        return "first axis of UMAP", "second axis of UMAP"
    first, second = (f"{100 * share:.0f} % of variance" for share in found.explained)
    return f"first component ({first})", f"second component ({second})"


def _parts(report: ProbeReport) -> tuple[list[tuple[Look, str]], list[int]]:
    """Looks and names of the labels that maps tell apart, and which of them each shown case has."""
    labels = [case.label for case in report.shown]
    if report.target.kind == "numbers":
        return _fifths([float(label) for label in labels])
    kept = [label for label, _ in Counter(labels).most_common(_MOST_CLASSES)]
    names = [name for name in report.target.classes if name in kept]
    key = list(zip(looks(len(names)), names, strict=True))
    if others := len(set(labels) - set(names)):
        key.append((REST, f"{others} other classes"))
    return key, [names.index(label) if label in names else len(names) for label in labels]


def _fifths(values: Sequence[float]) -> tuple[list[tuple[Look, str]], list[int]]:
    """Five steps with as many cases each, as far as equal numbers let them."""
    ordered = sorted(values)
    tops = sorted({ordered[max(0, round(len(ordered) * n / 5) - 1)] for n in range(1, 6)})
    part_of = [bisect_left(tops, value) for value in values]
    pairs = list(zip(values, part_of, strict=True))
    steps = [[value for value, part in pairs if part == n] for n in range(len(tops))]
    shown = ramp()[: len(steps)]
    key = [(look, f"{min(step):g} to {max(step):g}") for look, step in zip(shown, steps, strict=True)]
    return key, part_of
