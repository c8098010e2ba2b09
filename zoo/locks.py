"""A lock that a killed process does not hold, made by exclusive creation: `flock` lies on Lustre and some NFS."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import ZooError
from zoo.files import is_alive, this_process

PATIENCE = 60.0
"""Seconds to wait for another process; what is done under a lock takes some milliseconds."""
_PAUSE = 0.01
_TOKEN = re.compile(r"([0-9a-f]{12}-\d+-\d*) [0-9a-f]{16}")


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Let one process at a time, of all machines that share a file system, into the block.

    Args:
        lock: A file that is there while somebody is in the block. Its folder must exist.

    Raises:
        ZooError: Another process was in the block for a minute.
        OSError: The folder cannot be written.
    """
    give_up = time.monotonic() + PATIENCE
    while not _create(lock):
        if _remove_if_dead(lock):
            continue
        if time.monotonic() > give_up:
            raise ZooError(
                f"{lock} was there for {PATIENCE:.0f} s, which says that another process writes beside it "
                f"({_holder(lock) or 'unknown'}). If none does, remove that file"
            )
        time.sleep(_PAUSE * (1 + secrets.randbelow(4)))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _create(lock: Path) -> bool:
    """Create the file with the name of this process inside; False if it is there already."""
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, f"{this_process()} {secrets.token_hex(8)}".encode())
        with suppress(OSError):  # some file systems have no permissions
            os.fchmod(handle, 0o644)  # others must be able to tell whether we live, whatever the umask
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return True


def _holder(lock: Path) -> str:
    """What is inside; empty if the file is gone, cannot be read, or was made a moment ago."""
    try:
        return lock.read_bytes()[:200].decode("ascii", "replace")
    except OSError:
        return ""


def _is_dead(lock: Path, holder: str) -> bool:
    """Whether the lock is still that of `holder`, and no process holds it."""
    try:
        written = lock.stat().st_mtime
    except OSError:
        return False
    if _holder(lock) != holder:
        return False
    match = _TOKEN.fullmatch(holder)
    return not is_alive(match[1], written) if match else time.time() - written > PATIENCE


def _remove_if_dead(lock: Path) -> bool:
    """Remove the lock of a process that was killed; False if it is not that, or another process is at it.

    Two that both find it dead must not both remove it: the second might take away the lock of a third that came in
    between. So one says first, by another file, that it removes the lock of this holder, and then looks once more.
    """
    holder = _holder(lock)
    if not _is_dead(lock, holder):
        return False
    claim = lock.with_name(f"{lock.name}.{hashlib.sha256(holder.encode()).hexdigest()[:16]}")
    if not _create(claim):
        return False
    try:
        if _is_dead(lock, holder):
            lock.unlink()
    finally:
        claim.unlink(missing_ok=True)
    return True
