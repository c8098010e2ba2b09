"""Surroundings of a run: its processes, its reserved folder, its log, and the signals that end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from zoo.files import remove_leftovers
from zoo.progress import recording, say, warnings_in
from zoo.stopping import Stopped, heeding_signals
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.lock import holding


class Place(Protocol):
    """Arguments that say where a run is computed and kept."""

    out: str
    device: str


@contextmanager
def running(args: Place) -> Iterator[Processes]:
    """Join the processes of a run inside the block, then part; see `at_work`.

    Raises:
        OptionError: As `distributed.start` and `at_work`.
        Stopped: A signal ended the run.
    """
    processes = distributed.start(args.device)
    try:
        with at_work(Path(args.out), processes):
            yield processes
    except Stopped:
        distributed.stop()
        raise
    distributed.stop()  # not after an error: the others may be gone


@contextmanager
def at_work(out: Path, processes: Processes) -> Iterator[None]:
    """Reserve OUT for this run, record its messages and warnings in `run.log` there, heed signals; may be nested.

    Raises:
        OptionError: Another run is at work in OUT, or it cannot be written.
        Stopped: A signal ended the run; its message was said.
    """
    with ExitStack() as stack:
        stack.enter_context(heeding_signals())
        with distributed.raising_together():
            if processes.is_main:
                stack.enter_context(holding(out))
                for folder in (out, out / "ranks"):
                    remove_leftovers(folder)
        if processes.is_main:
            stack.enter_context(warnings_in(out / "run.log"))
            stack.enter_context(recording(out / "run.log"))
        try:
            yield
        except Stopped as stopped:
            if processes.is_main and stopped.words:
                say(stopped.words)
                stopped.words = ""  # said once, however many blocks are nested
            raise
