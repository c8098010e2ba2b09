"""Signals that ask a run to end: a scheduler's warning, `kill`, Ctrl-C.

They act at once, except inside `deferring`, where they are noted and the loop asks for them between two steps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zoo.signals import handling

STOPPED = 75
"""Exit code of a stopped run that can be resumed: EX_TEMPFAIL of BSD's sysexits.h."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

_SECONDS_TO_END = 1.0
"""What a process of a loader may still take when its parent is dead."""


class Stopped(SystemExit):
    """A signal has ended the run, which can be resumed: exit code 75."""

    def __init__(self, words: str) -> None:
        super().__init__(STOPPED)
        self.words = words


class _Noted:
    """State of this process; signals go to a process as a whole."""

    heeding = 0
    deferring = 0
    asked: signal.Signals | None = None


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Make the signals raise `Stopped` inside the block, except inside `deferring`; a second SIGINT ends at once.

    `handling` says how ignored signals and other threads are treated. Blocks may be nested.
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
    """Only note the signals of `heeding_signals` inside the block; `asked_by` names them.

    Raises:
        Stopped: At the end of the outermost block, where a signal was noted in it; one from before has been raised.
    """
    before = _Noted.asked
    _Noted.deferring += 1
    try:
        yield
    finally:
        _Noted.deferring -= 1
    if _Noted.asked and _Noted.heeding and not _Noted.deferring and not before:
        raise Stopped(_words(_Noted.asked))


def asked_by() -> str:
    """Name of the signal that has asked the run to end; empty if there was none."""
    return _Noted.asked.name if _Noted.asked else ""


def leave_to_parent(_: int = 0) -> None:
    """Make a loader's process ignore signals to the whole group, as the present step of its parent needs it.

    It ends when its parent is dead. Torch looks for that too, but not for a parent that died before the process was
    ready: it would stay for good, with whatever files and connections of its parent it holds.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.get_start_method() != "forkserver":  # there the server is the parent
        threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _end_with(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # which `end_cleanly` heeds
    time.sleep(_SECONDS_TO_END)
    os._exit(1)


def end_cleanly(_: int = 0) -> None:
    """Make a process that prepares files remove half-written ones before it ends with its parent."""
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
