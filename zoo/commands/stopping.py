"""What Ctrl-C and a scheduler's SIGTERM do to a command: what was begun is tidied up, and one line says so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(SystemExit):
    """A signal came. Its exit code is the shell's, 128 and the signal's number; no traceback follows."""

    def __init__(self, number: int) -> None:
        """Keep the word for it."""
        super().__init__(128 + number)
        self.word = WORDS[signal.Signals(number)]


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` within the block, so that temporary files are removed on the way out.

    Only the main thread may say what signals do; in any other the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in WORDS}
    # Ignored before, as SIGINT is in a shell's background jobs, it stays so.
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)
