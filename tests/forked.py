"""A function in a process of its own, as a scheduler starts it: forked, so that it has the imports and the patches."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
"""Environment of a process whose memory is measured: glibc gives freed tensors back at once, and leaves no holes."""


class Orphan(multiprocessing.Process):
    """Begins its work once the process that has started it, which it kills, is dead."""

    def start(self) -> None:
        super().start()
        os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> None:
        while os.getppid() == multiprocessing.parent_process().pid:
            time.sleep(0.01)
        super().run()


def start(function: Callable[..., object], *args: Any) -> BaseProcess:
    """Start it as the first process of a group; what it writes goes where this process's output goes."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(function, args))
    process.start()
    return process


def wait(process: BaseProcess, seconds: float = 60) -> int:
    """The exit code of a process, which has some time to end."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process did not end in {seconds} seconds")
    return process.exitcode


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when a condition is true, which has some time to become so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def _alone(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.setsid()
    code: Any = 0
    try:
        function(*args)
    except SystemExit as end:
        code = end.code
    gc.collect()  # loaders that the exception held end their processes, which heed no signal
    sys.exit(code)
