"""Progress of a run: a bar in a terminal, elsewhere a line a minute; inside `recording` a file gets the lines too."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from zoo.oddities import count_in

T = TypeVar("T")

MINUTE = 60.0
"""Seconds between two lines."""


class _Told:
    """Where this process records its messages, and when the last was."""

    file: Path | None = None
    at = 0.0


@contextmanager
def recording(file: Path) -> Iterator[None]:
    """Copy the messages of `say` inside the block to a file, each behind its time; blocks may be nested."""
    before, _Told.file = _Told.file, file
    try:
        yield
    finally:
        _Told.file = before


@contextmanager
def warnings_in(file: Path) -> Iterator[None]:
    """Copy the package's warnings inside the block to a file, those of processes that begin meanwhile too.

    What `zoo.oddities.each_once` around the block counts follows at its end. Inside another block of the same file it
    does nothing.
    """
    present = [each.baseFilename for each in logging.getLogger("zoo").handlers if isinstance(each, logging.FileHandler)]
    if str(file.absolute()) in present:
        yield
        return
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("zoo").addHandler(handler)
    count_in(handler)
    try:
        yield
    finally:
        logging.getLogger("zoo").removeHandler(handler)
        handler.close()


def say(text: str) -> None:
    """Print a message about a run, or what to do after it, on stderr: stdout is for results."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
    _record(text)


def say_in_time(text: str) -> None:
    """Say it at once in a terminal, elsewhere only if nothing was said for a minute."""
    if sys.stderr.isatty() or _is_due():
        say(text)


def follow(
    items: Iterable[T],
    what: str,
    total: int,
    *,
    done: int = 0,
    line: Callable[[int], str] | None = None,
    count: Callable[[T], int] | None = None,
    is_shown: bool = True,
) -> Iterator[T]:
    """Yield the items, and show how many of them are done.

    Args:
        items: Anything.
        what: What they are, for the bar.
        total: Number of items, with those that were done before.
        done: Number of those that were done before.
        line: Makes the line that is said each minute of the number done; default that number.
        count: Returns how many an item counts as; default 1.
        is_shown: Whether this process shows it, as the first of several does; the others only record their lines.
    """
    in_terminal = is_shown and sys.stderr.isatty()
    _Told.at = _Told.at or time.monotonic()
    with tqdm(desc=what, total=total, initial=done, leave=False, disable=not in_terminal) as bar:
        for item in items:
            yield item
            step = count(item) if count else 1
            done += step
            bar.update(step)
            if _is_due():
                text = line(done) if line else f"{what}: {done} of {total}"
                if is_shown and not in_terminal:
                    say(text)
                else:
                    _record(text)


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
        pass  # a missing line is no reason to end a run; a state that cannot be saved is
