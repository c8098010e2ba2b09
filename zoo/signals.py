"""Signals that end a command or a run: Ctrl-C, `kill`, a scheduler's warning."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class Ended(SystemExit):
    """A signal has ended a command. Its exit code is the shell's, 128 and the signal's number; no traceback follows."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise `Ended` inside the block, so that temporary files are removed on the way out."""
    with handling((signal.SIGINT, signal.SIGTERM), _end):
        yield


@contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have `handler` called for some signals inside the block; afterwards they do what they did before.

    One that was ignored before, as SIGINT is in a shell's background jobs, stays so. Outside the main thread, which
    alone may say what signals do, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in heeded.items():
            signal.signal(number, old)


def _end(number: int, _: FrameType | None) -> None:
    raise Ended(number)
