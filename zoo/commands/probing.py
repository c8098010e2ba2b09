"""What `zoo probe` does: features on a user's own labels, as a report in a folder and a short table."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.commands.printing import table_lines
from zoo.errors import OptionError
from zoo.evaluation.page import write_page
from zoo.evaluation.probing import probe
from zoo.evaluation.report import KNN, LINEAR, MEASURES, EncoderResult, Estimate, ProbeReport
from zoo.messages import decimal, printable
from zoo.progress import recording, warnings_in

REPORT = "report.json"
PAGE = "report.html"
LOG = "probe.log"
FEATURES = "features"
_OURS = {REPORT, PAGE, LOG, FEATURES}


def probe_into(
    labels: Path, features: Sequence[Path], names: Sequence[str], out: Path, *, pictures: bool = True, **options: Any
) -> ProbeReport:
    """Probe features, and write the report into a folder; what is embedded for it stays there for the next run.

    Args:
        labels: The table.
        features: Files and folders of features.
        names: Models to embed by; those that are paths of features, as behind one `--features`, count as these.
        out: The folder.
        pictures: Whether the page has small pictures of images.
        **options: Of `zoo.probe`.

    Raises:
        OptionError: There is nothing to probe, the folder holds something else; what else `zoo.probe` raises.
        OSError: The folder cannot be written.
    """
    if not features and not names:
        raise OptionError("nothing to probe: give files or folders of features by --features, or names of models")
    check_folder(out)
    with _folder(out), warnings_in(out / LOG), recording(out / LOG):
        (out / LOG).touch()  # before any features: by it the next run knows the folder as a probe's
        command = command_of(labels, features, names, out, options)
        report = probe([*features, *names], labels, out=out / FEATURES, command=command, **options)
        report.write(out / REPORT)
        write_page(report, out / PAGE, images=pictures)
    return report


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make a folder, and leave nothing new in it where the block is refused before anything is embedded."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    is_first = not (out / LOG).exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        inside = list((out / FEATURES).rglob("*"))
        if is_first and all(path.is_dir() for path in inside):
            (out / LOG).unlink(missing_ok=True)
            _drop_empty([*sorted(inside, reverse=True), out / FEATURES, *made])
        raise


def _drop_empty(folders: Sequence[Path]) -> None:
    """Remove folders in this order, as far as they are there and nothing is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def command_of(
    labels: Path, features: Sequence[Path], names: Sequence[str], out: Path, options: Mapping[str, Any]
) -> str:
    """Return the command in full, with what was asked for."""
    flags = [word for path in features for word in ("--features", path)]
    for name, value in options.items():
        if value is not None and (name, value) != ("device", "auto"):
            flags += [f"--{name.replace('_', '-')}", value]
    return shlex.join(map(str, ["zoo", "probe", labels, *names, *flags, "-o", out]))


def check_folder(out: Path) -> None:
    """Raise `OptionError` where OUT is a file, or a folder of something else: `-o .` among images is a slip."""
    if out.is_file():
        raise OptionError(f"-o {out} is a file: a folder for the report is expected")
    strange = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.is_dir() else []
    others = [name for name in strange if name not in _OURS]
    others += [FEATURES] if FEATURES in strange else []  # which may be another's
    if others and not {REPORT, LOG}.intersection(strange):
        raise OptionError(f"-o {out} holds {printable(others[0])} and no report: give a new folder")


def page_of(report: ProbeReport, out: Path) -> Iterator[str]:
    """Yield what to print of a report: the verdict, what a reader must know, and a line for each encoder."""
    yield from report.verdict
    for warning in report.warnings:
        yield f"note: {warning}"
    yield ""
    yield from table_lines([_row(each, report) for each in report.encoders])
    yield ""
    yield f"{out / PAGE}: the same with curves, a map and nearest neighbours, for a browser"
    yield f"{out / REPORT}: all measures, intervals, curves and how to repeat it"


def _row(result: EncoderResult, report: ProbeReport) -> dict[str, str]:
    main = report.main_measure
    few = [point for point in result.curve if point.size is not None]
    several = len(report.asked()) > 1
    return {
        "features": result.name,
        f"{MEASURES[main]} (95 %), linear": _interval(result.measures[LINEAR][main]),
        "kNN": _number(result.measures[KNN][main].value),
        **{f"{point.size} labels": _number(point.mean) for point in few[:: max(1, len(few) - 1)]},
        **{f"to {to}": _difference(result, to) for to in ("random", "intensities", "best")[: 2 + several]},
    }


def _difference(result: EncoderResult, to: str) -> str:
    """How far the linear probe is above another one's, with a star where the two are told apart."""
    found = next((each for each in result.differences if each.probe == LINEAR and each.to == to), None)
    if found is None:
        return "-"
    return _number(found.difference.value, "+.3f") + ("*" if found.verdict in ("better", "worse") else "")


def _interval(found: Estimate) -> str:
    return _number(found.value) + ("" if found.low is None else f" ({_number(found.low)} to {_number(found.high)})")


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else decimal(value, form)
