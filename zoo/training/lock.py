"""One run at a time in a folder: `run.lock` says which process is at work there.

No lock of the file system's is used: on Lustre, GPFS and some NFS they do not hold. A name that exists does.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import OptionError
from zoo.files import is_alive, this_process
from zoo.messages import printable
from zoo.training.failures import of_system

LOCK = "run.lock"
_SIGNS_OF_LIFE = (LOCK, "run.log", "last.pt")
"""Files that a run writes; `run.log` about once a minute."""
_TO_WRITE_A_NAME = 10
"""Seconds between a lock's making and the holder's name in it, with much to spare."""


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Keep a folder, which is made if it is not there, for this process inside the block.

    A lock whose holder is dead is taken over. Blocks of one process may lie in each other. A folder that was made and
    stayed empty is removed.

    Raises:
        OptionError: A run is at work there, or the folder cannot be written.
    """
    if is_held(out):
        yield
        return
    try:
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        while not _create(out / LOCK):
            _bury(out)
    except OSError as error:
        raise OptionError(f"--out {out} cannot be written: {of_system(error)}. Give another") from error
    try:
        yield
    finally:
        if is_held(out):
            (out / LOCK).unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                out.rmdir()


def is_held(out: Path) -> bool:
    """Whether this process holds a folder."""
    return _holder(out / LOCK).partition(" ")[0] == this_process()


def check_held(out: Path) -> None:
    """Raise `OptionError` where the folder that this process held is gone, or another's."""
    if not is_held(out):
        what = "another run has taken it" if (out / LOCK).exists() else f"it was removed, or its {LOCK} was"
        raise OptionError(f"--out {out} is no longer this run's: {what}; nothing more was written there")


def _create(lock: Path) -> bool:
    """Write a new lock; False if there is one."""
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{this_process()} process {os.getpid()} on {socket.gethostname()}")
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    return True


def _bury(out: Path) -> None:
    """Remove the lock of a dead process.

    Raises:
        OptionError: Its holder lives.
    """
    holder = _holder(out / LOCK)
    if _lives(holder, out):
        who = printable(holder.partition(" ")[2]) or "a process that has only begun"
        raise OptionError(
            f"a run is at work in --out {out} ({who}): give another, or wait for its end. If that machine is gone, "
            f"remove {out / LOCK}"
        )
    grave = out / f".{LOCK}.{this_process()}.{secrets.token_hex(4)}.tmp"
    with suppress(FileNotFoundError):  # another was faster
        os.rename(out / LOCK, grave)
        if _holder(grave) != holder:  # another was faster, and this is its new lock
            with suppress(FileExistsError):
                os.link(grave, out / LOCK)
        grave.unlink()


def _holder(lock: Path) -> str:
    try:
        return lock.read_text("utf-8", "replace")
    except OSError:
        return ""


def _lives(holder: str, out: Path) -> bool:
    """Whether the holder is running; one on another machine is while it shows signs of life, see `is_alive`."""
    times = [path.stat().st_mtime for path in map(out.joinpath, _SIGNS_OF_LIFE) if path.exists()]
    try:
        return is_alive(holder.partition(" ")[0], max(times, default=0.0))
    except ValueError:  # its name is not written yet, or never was before a power cut
        return time.time() - max(times, default=0.0) < _TO_WRITE_A_NAME
