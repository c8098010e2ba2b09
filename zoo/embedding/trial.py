"""Tries a few cases of a cohort, to say what a run would take and which cases it would refuse."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from zoo.embedding.cases import Cases
from zoo.embedding.dataset import describe, look_into
from zoo.embedding.embedder import Embedder, reason
from zoo.embedding.reading import read_units

_EMBEDDED = 16
"""Cases that go through the network, at most."""
_LEAST = 2
"""Those without which nothing is known of the network's time: the first one warms up."""
_SECONDS = 30.0
"""How long it takes, unless fewer than the least are through by then."""
_GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole part, lie evenly in (0, 1), however many there are."""


@dataclass(frozen=True)
class Trial:
    """What was seen of some cases."""

    read: int
    """How many were read."""
    refused: dict[str, str]
    """Those of them that have no features, and why."""
    reading: float
    """Seconds that one case takes to be read, by one process."""
    computing: float
    """Seconds that one case takes in the network."""

    def seconds(self, cases: int, workers: int) -> float:
        """How long a run over so many cases takes, about."""
        return cases * max(self.reading / max(1, workers), self.computing)


def left_in(out: Path, embedder: Embedder, cases: Cases, *, half: bool, retry_failed: bool) -> tuple[Cases, str]:
    """Return the cases that a run into a folder would do, and how many it has, in words; nothing is changed there.

    Raises:
        OptionError: The run would be refused: the folder is no folder of features, or holds others.
    """
    folder = look_into(out, describe(embedder.facts(), cases, embedder.rows_of, half=half), cases)
    everything = range(len(cases))
    return cases.take(folder.left(everything, retry_failed=retry_failed)), folder.state([everything])


def try_cases(embedder: Embedder, cases: Cases) -> Trial:
    """Embed a few cases, spread over the list, read further ones until half a minute is over, and write nothing."""
    order = sorted(range(len(cases)), key=lambda i: i * _GOLDEN % 1)
    reader, began = embedder.reader, time.monotonic()
    refused: dict[str, str] = {}
    read, embedded, reading, computing = 0, 0, 0.0, 0.0
    while read < len(order) and (time.monotonic() - began < _SECONDS or (embedded < _LEAST and read < _EMBEDDED)):
        started = time.monotonic()
        (unit,) = read_units(cases, [[order[read]]], reader, 0)
        read, reading = read + 1, reading + time.monotonic() - started
        if unit.groups and embedded == _EMBEDDED:
            continue
        started = time.monotonic()
        (found,) = embedder.embed(unit)
        if found.features is None:
            refused[cases.ids[found.case]] = reason(cases, found)
        elif embedded:
            computing += time.monotonic() - started
        embedded += bool(unit.groups)
    return Trial(read, refused, reading / max(1, read), computing / max(1, embedded - 1))
