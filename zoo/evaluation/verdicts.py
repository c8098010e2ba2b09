"""Says in two plain sentences what a probe found; "better" only where the corrected interval allows it."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.evaluation.report import LINEAR, MEASURES, Cohort, Difference, EncoderResult, Overlap, Split, Verdict
from zoo.messages import decimal, first_names, printable

_WORDS = {"random": "its network with random weights", "intensities": "plain intensities of the images"}
_SAID = {
    "better": "better than",
    "worse": "worse than",
    "not told apart": "not told apart from",
    "unknown": "not compared, for want of an interval, with",
}

_TOO_FEW: Verdict = "too few groups"


def verdict(
    encoders: Sequence[EncoderResult], best: str, main: str, split: Split, cohort: Cohort, overlaps: Sequence[Overlap]
) -> tuple[str, str]:
    """Return the two sentences.

    Args:
        encoders: Those that were asked about, with their differences.
        best: Name of the one with the largest main measure.
        main: Key of the measure that decides.
        split: What was learnt from and tested.
        cohort: All cases.
        overlaps: What was seen in pre-training.
    """
    leader = next(each for each in encoders if each.name == best)
    tested = split.too_few("groups" if cohort.group_column else "cases")
    return _gain(leader, encoders, main, tested), _limits(leader, encoders, split, cohort, overlaps)


def _gain(leader: EncoderResult, encoders: Sequence[EncoderResult], main: str, tested: tuple[str, int] | None) -> str:
    value = leader.measures[LINEAR][main].value
    known = "undefined" if value is None else decimal(value)
    only = len(encoders) == 1
    has = f"has {MEASURES[main]}" if only else f"has the largest {MEASURES[main]} of the {len(encoders)} encoders,"
    start = f"By a linear probe {printable(leader.name)} {has} {known}"
    against = {d.to: d for d in leader.differences if d.probe == LINEAR and d.to in _WORDS}
    if not against:
        return f"{start}; there is no baseline beside it, so that nothing says whether its pre-training helps."
    few = [_valued(d) for d in against.values() if d.verdict == _TOO_FEW]
    told = [f"{_SAID[d.verdict]} {_valued(d)}" for d in against.values() if d.verdict != _TOO_FEW]
    said = [f"it is {' and '.join(told)}"] if told else []
    if few and tested:
        said.append(
            f"{tested[0]} are too few to tell it from {' and from '.join(few)}, at least {tested[1]} are needed"
        )
    return f"{start}: {'; '.join(said)}."


def _valued(difference: Difference) -> str:
    """What an encoder is compared with, and the difference."""
    found, said = difference.difference, _WORDS[difference.to]
    if found.value is None:
        return said
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    interval = f", 95 % interval {' to '.join(decimal(end, '+.3f') for end in ends)}" if ends else ""
    return f"{said} ({decimal(found.value, '+.3f')}{interval})"


def _limits(
    leader: EncoderResult,
    encoders: Sequence[EncoderResult],
    split: Split,
    cohort: Cohort,
    overlaps: Sequence[Overlap],
) -> str:
    groups = f" of {split.test_groups} groups" if cohort.group_column else ""
    said = [f"{split.test_cases} cases{groups} were tested" + (f", {split.repeats} times" if split.repeats > 1 else "")]
    if len(encoders) > 1:
        said.insert(0, _among(leader, encoders))
    if seen := [each for each in overlaps if each.seen_test]:
        worst = max(seen, key=lambda each: each.seen_test)
        said.append(
            f"{worst.seen_test} of them, by image or patient, are in the training list of {printable(worst.encoder)}, "
            "whose result may therefore be too good"
        )
    elif known := [each.encoder for each in overlaps if each.ids and each.readable == each.ids]:
        said.append(f"none of them is in the training list of {first_names(known)}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _among(leader: EncoderResult, encoders: Sequence[EncoderResult]) -> str:
    """How the others compare with the leader."""
    to_best = {
        each.name: d.verdict for each in encoders for d in each.differences if d.probe == LINEAR and d.to == "best"
    }
    worse = [name for name, said in to_best.items() if said == "worse"]
    few = [name for name, said in to_best.items() if said == _TOO_FEW]
    alike = [name for name, said in to_best.items() if said not in ("worse", _TOO_FEW)]
    parts = [f"it is better than {first_names(worse)}"] if worse else []
    parts += [f"it is not told apart from {first_names(alike)}"] if alike else []
    parts += [f"so few groups cannot tell it from {first_names(few)}"] if few else []
    return " and ".join(parts) or f"{printable(leader.name)} has nothing beside it"
