"""How far a run is: a bar in a terminal, elsewhere a line a minute, which `run.log` in OUT always gets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from zoo.training import distributed

T = TypeVar("T")

MINUTE = 60.0
"""Seconds between two lines."""


class _Told:
    """What this process has told, and where."""

    file: Path | None = None
    at = 0.0


@contextmanager
def recording(file: Path) -> Iterator[None]:
    """Have what `say` says inside the block also go to a file, behind the time; blocks may lie in each other."""
    before, _Told.file = _Told.file, file
    try:
        yield
    finally:
        _Told.file = before


def say(text: str) -> None:
    """Tell whoever follows a run how it goes, or what to do after it: on stderr, for stdout is for results."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
    _record(text)


def say_in_time(text: str) -> None:
    """Say it in a terminal; elsewhere if nothing was said for a minute."""
    if sys.stderr.isatty() or _is_due():
        say(text)


def follow(
    items: Iterable[T], what: str, total: int, *, done: int = 0, line: Callable[[int], str] | None = None
) -> Iterator[T]:
    """Yield the items, and show on the first process how many of them are done.

    Args:
        items: Anything.
        what: What they are, for the bar.
        total: How many there are, with those that were done before.
        done: How many were.
        line: What to say in a minute's line, from the number that is done; default that number.
    """
    is_shown = distributed.rank() == 0
    in_terminal = is_shown and sys.stderr.isatty()
    bar = tqdm(items, what, total, initial=done, leave=False, disable=not in_terminal)
    for number, item in enumerate(bar, start=done + 1):
        yield item
        if is_shown and _is_due():
            text = line(number) if line else f"{what}: {number} of {total}"
            (_record if in_terminal else say)(text)


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `12 min`, `3 h 05 min`, `2 days 4 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} days {hours % 24} h"


def _is_due() -> bool:
    return time.monotonic() - _Told.at >= MINUTE


def _record(text: str) -> None:
    _Told.at = time.monotonic()
    if _Told.file is None:
        return
    try:
        with _Told.file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
    except OSError:
        pass  # a line less is no reason to end a run: what cannot be saved will
