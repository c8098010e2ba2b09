"""The report of `zoo probe` as one HTML file: no script, nothing fetched, for a screen, a telephone and a printer.

The page computes nothing: it says the numbers of the report. Texts of files and tables are escaped where they are put
in, by Jinja2, after `printable` has made their control characters visible; a policy in the page's head forbids scripts
and requests on top of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import InputContractError
from zoo.evaluation.drawings import GUESSING, LEAST, bars_of, curves_of, difference_bars_of, maps_of
from zoo.evaluation.report import KNN, LINEAR, MEASURES, EncoderResult, Neighbour, ProbeReport, Shown
from zoo.evaluation.thumbnails import thumbnail
from zoo.evaluation.wording import FILTERS, shown
from zoo.files import write_text
from zoo.messages import first_names, problem_of
from zoo.progress import follow

_TEMPLATE = "page.html.jinja"
_PROBES = {LINEAR: "Linear probe", KNN: "Nearest neighbours"}
"""Probes in words, the one that decides first."""
_MEANINGS = {
    "auroc": "It is the chance that of two cases of different classes the right one is ranked first: 0.5 is guessing, "
    "1 is perfect.",
    "r2": "It is the share of the variance that is explained: 0 is no better than the mean, 1 is perfect.",
}
_SIGNS = {"better": "▲", "worse": "▼", "not told apart": "=", "too few groups": "?", "unknown": "?"}


@dataclass(frozen=True)
class Picture:
    """What stands for a case among neighbours."""

    address: str | None
    """`data:` address of its picture; None where there is none."""
    reason: str
    """Why not; empty where there is one."""


@dataclass(frozen=True)
class Query:
    """A test case with the training cases that each encoder has nearest to it."""

    case: Shown
    picture: Picture | None
    found: tuple[tuple[str, tuple[tuple[Neighbour, Shown, Picture | None], ...]], ...]
    """Encoder, and its neighbours, the nearest first."""


def write_page(report: ProbeReport, path: str | Path, *, images: bool = True) -> None:
    """Write a report as a page, whole or not at all.

    Args:
        report: Of `zoo.probe`.
        path: The file, `report.html`.
        images: Whether the page holds small pictures of the cases that it shows as neighbours: they are read anew, and
            whoever gets the page sees them. Of an image that cannot be read the page says why.

    Raises:
        OSError: The page cannot be written.
    """
    write_text(Path(path), html_of(report, _pictures(report) if images else {}))


def html_of(report: ProbeReport, pictures: Mapping[int, Picture]) -> str:
    """Return the page of a report.

    Args:
        report: Of `zoo.probe`.
        pictures: By position in `report.shown`; empty for neighbours by their names alone.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    template = environment.from_string(Path(__file__).with_name(_TEMPLATE).read_text("utf-8"))
    page: str = template.render(
        report=report,
        main=MEASURES[report.main_measure],
        meanings=_MEANINGS,
        guessing=GUESSING.get(report.main_measure),
        measures=MEASURES,
        too_few=_too_few(report),
        probes=_PROBES,
        signs=_SIGNS,
        least=LEAST.get(report.main_measure),
        ranked=ranked(report),
        bars=bars_of(report),
        difference_bars=difference_bars_of(report),
        charts=curves_of(report),
        maps=maps_of(report),
        by_umap=any(each.map is not None and each.map.method == "UMAP" for each in report.encoders),
        queries=_queries(report, pictures),
        missing=_missing(report, pictures),
    )
    return page


def _too_few(report: ProbeReport) -> tuple[str, int] | None:
    """Which tested groups are too few to tell, and how many are needed."""
    return report.split.too_few(f"tested {'groups' if report.cohort.group_column else 'cases'}")


def ranked(report: ProbeReport) -> list[EncoderResult]:
    """The encoders by the main measure, the largest first, then the baselines."""

    def order(result: EncoderResult) -> tuple[bool, float]:
        value = result.measures[LINEAR][report.main_measure].value
        return result.role != "encoder", float("inf") if value is None else -value

    return sorted(report.encoders, key=order)


def _pictures(report: ProbeReport) -> dict[int, Picture]:
    """Small pictures of the cases that are shown as neighbours."""
    queries = [query for result in report.encoders for query in result.queries]
    cases = {query.case for query in queries} | {each.case for query in queries for each in query.neighbours}
    return {case: _picture(report.shown[case]) for case in follow(sorted(cases), "pictures for the page", len(cases))}


def _picture(case: Shown) -> Picture:
    if case.path is None:
        return Picture(None, "no image is known")
    try:
        return Picture(thumbnail(Path(case.path)), "")
    except (InputContractError, OSError) as error:
        return Picture(None, problem_of(error))


def _missing(report: ProbeReport, pictures: Mapping[int, Picture]) -> dict[str, str]:
    """Why cases have no picture, and which they are."""
    cases: dict[str, list[str]] = {}
    for case, picture in pictures.items():
        if picture.reason:
            cases.setdefault(picture.reason, []).append(report.shown[case].id)
    return {reason: first_names(names) for reason, names in cases.items()}


def _queries(report: ProbeReport, pictures: Mapping[int, Picture]) -> list[Query]:
    found: dict[int, list[Any]] = {}
    for result in report.asked():
        for query in result.queries:
            near = tuple((each, report.shown[each.case], pictures.get(each.case)) for each in query.neighbours)
            found.setdefault(query.case, []).append((result.name, near))
    return [Query(report.shown[case], pictures.get(case), tuple(rows)) for case, rows in found.items()]
