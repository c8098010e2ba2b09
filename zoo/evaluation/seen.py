"""Looks up, unasked, which cases of a probe the weights of its encoders were trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.evaluation.overlap import Overlap as Found
from zoo.evaluation.report import Overlap
from zoo.evaluation.sources import Contender
from zoo.evaluation.unasked import look_up_unasked
from zoo.training.metrics import Array

log = logging.getLogger("zoo")

_LEARNT = "it has learnt labels before ({}): on cases that it learnt from, its result is too good"


def look_up(
    contenders: Sequence[Contender], names: Sequence[str], tested: Array, cache_dir: str | Path | None = None
) -> Iterator[Overlap]:
    """Yield what was found for each encoder of published weights of which something is on record.

    A list that cannot be had now, as without a connection, is said in the notes: nothing is then known of any case.

    Args:
        contenders: What is compared.
        names: Of the images, or the ids, of the cases.
        tested: Positions of the cases that are tested.
        cache_dir: Cache folder.
    """
    for contender in contenders:
        facts = contender.sets[0].facts
        if contender.role != "encoder" or not facts.get("tag"):  # a file without a name, which is not here any more
            continue
        model = str(facts["model"])
        found, problem, learnt = look_up_unasked(names, model, cache_dir=cache_dir)
        notes = [_LEARNT.format(learnt)] if learnt else []
        for note in notes:
            log.warning("%s: %s", model, note)
        if problem:
            log.warning("%s: whether it was trained on these cases is not known: %s", model, problem)
        if found:
            yield _as_reported(contender.name, found, tested, notes)
        elif problem or notes:
            why = problem or "what it began with is not on record"
            yield Overlap(contender.name, why, len(names), 0, 0, 0, 0, tuple(notes))


def _as_reported(name: str, found: Found, tested: Array, notes: Sequence[str]) -> Overlap:
    is_tested = {*tested.tolist()}
    seen = [i for i, row in enumerate(found.rows) if row.is_seen]
    return Overlap(
        name,
        found.source or found.note or "the record of the weights",
        len(found.rows),
        found.readable,
        found.seen_images,
        found.seen_by_patient,
        sum(i in is_tested for i in seen),
        (*notes, *found.warnings),
    )
