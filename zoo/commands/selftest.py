"""What `zoo selftest` does: runs networks on drawn inputs, and says which compute what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.commands.printing import raise_for_failed
from zoo.errors import OptionError, ZooError
from zoo.registry import list_models
from zoo.selftest import Case, Outcome, cases_of, run_case, versions


def find_cases(names: Sequence[str], *, everything: bool, cache_dir: Path | None) -> list[Case]:
    """Return what is to be tested.

    Raises:
        OptionError: Nothing is named, or names beside `--all`; or of one no values are stored.
        UnknownModelError: There is no such model, or it has no weights with this tag.
    """
    if bool(names) == everything:
        raise OptionError("zoo selftest: expected MODEL or MODEL.TAG, any number, or --all")
    found = [case for name in names or list_models() for case in cases_of(name, cache_dir)]
    return [case for i, case in enumerate(found) if case not in found[:i]]


def run_each(cases: Sequence[Case], device: str, precision: str, cache_dir: Path | None) -> Iterator[Outcome]:
    """Yield what became of each case, as it is done."""
    for case in cases:
        yield run_case(case, device=device, precision=precision, cache_dir=cache_dir)


def line_of(outcome: Outcome) -> str:
    """The line of a case."""
    verdict = "ok" if outcome.ok else "FAILED" if outcome.problem else "DIFFERS"
    return f"{verdict:<8}{outcome.seconds:7.1f} s  {_said_of(outcome)}"


def _said_of(outcome: Outcome) -> str:
    """What was tested, and what is wrong with it."""
    case, first = outcome.case, outcome.first
    title = f"{case.model}: {case.what}"
    if not first:
        return title + (f"; {outcome.problem}" if outcome.problem else "")
    number = next(i for i, stage in enumerate(case.stages) if stage.name == first.stage)
    allowed = outcome.tolerance * case.stages[number].deviation
    return (
        f"{title}; first at stage {first.stage}, {number + 1} of {len(case.stages)}: {first.what} {first.expected:.6g} "
        f"is expected, {first.came:.6g} came, {allowed:.2g} off is allowed"
    )


def row_of(outcome: Outcome) -> dict[str, Any]:
    """What a program gets of a case."""
    case, facts = outcome.case, asdict(outcome)
    return {
        **{"model": case.model, "tag": case.tag, "options": dict(case.options), "what": case.what, "ok": outcome.ok},
        **{name: value for name, value in facts.items() if name not in ("case", "differences")},
        "largest": outcome.largest,
        "first": asdict(outcome.first) if outcome.first else None,
    }


def summary_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines for the end: how many are as stored, how near these came to the tolerance, and what computed."""
    last, right = outcomes[-1], [each for each in outcomes if each.ok]
    largest = max((each.largest for each in right), default=0.0)
    return [
        f"{len(right)} of {len(outcomes)} compute what is stored, on {last.device} in {last.precision}: of a stage's "
        f"standard deviation they are at most {largest:.1g} off, and {last.tolerance:g} is allowed",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]


def check(outcomes: Sequence[Outcome]) -> None:
    """Raise `ZooError`, which names them, where networks are not as stored."""
    failed = [_said_of(each) for each in outcomes if not each.ok]
    raise_for_failed(failed, f"of {len(outcomes)} do not compute here what is stored", ZooError)
