"""Signals that ask a run to end: a scheduler's warning, `kill`, Ctrl-C.

They are obeyed at once, but for `deferring`, where they are noted and asked for between two steps.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zoo.signals import handling

STOPPED = 75
"""Exit code of a run that can be gone on with: EX_TEMPFAIL of BSD's sysexits.h."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal has ended the run, which can be gone on with: exit code 75."""

    def __init__(self, words: str) -> None:
        super().__init__(STOPPED)
        self.words = words


class _Noted:
    """What is known in this process, to which signals belong."""

    heeding = 0
    deferring = 0
    asked: signal.Signals | None = None


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Have the signals raise `Stopped` inside the block, unless it is inside `deferring`; a second SIGINT ends at once.

    Ignored signals and other threads than the main one: see `handling`. Blocks may lie in each other.
    """
    if not _Noted.heeding:
        _Noted.asked = None
    _Noted.heeding += 1
    try:
        with handling(SIGNALS, _note):
            yield
    finally:
        _Noted.heeding -= 1


@contextmanager
def deferring() -> Iterator[None]:
    """Have the signals of `heeding_signals` only noted inside the block, for `asked_by`.

    Raises:
        Stopped: At the end of the block, where one was noted and nobody has asked.
    """
    _Noted.deferring += 1
    try:
        yield
    finally:
        _Noted.deferring -= 1
    if _Noted.asked and not _Noted.deferring:
        raise Stopped(_words(_Noted.asked))


def asked_by() -> str:
    """Name of the signal that has asked the run to end; empty if there was none."""
    return _Noted.asked.name if _Noted.asked else ""


def leave_to_parent(_: int = 0) -> None:
    """Have a loader's process go on when the whole group gets a signal: the step that its parent is at needs it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_cleanly(_: int = 0) -> None:
    """Have a process that prepares files remove what it has half written before it ends with its parent."""
    leave_to_parent()
    signal.signal(signal.SIGTERM, _end)  # what the parent ends it with


def _end(*_: object) -> None:
    raise SystemExit(0)


def _note(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and _Noted.asked:
        raise KeyboardInterrupt
    _Noted.asked = signal.Signals(number)
    if not _Noted.deferring:
        raise Stopped(_words(_Noted.asked))


def _words(number: signal.Signals) -> str:
    return f"stopped by {number.name}; what is done is kept: the same command with --resume goes on"
