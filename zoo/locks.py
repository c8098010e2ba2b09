"""Locks that a killed process does not hold: a file that is there while its holder lives, made by exclusive creation.

`flock` lies on Lustre, GPFS and some NFS; that a name exists does not.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import ZooError
from zoo.files import is_alive, this_process

PATIENCE = 60.0
"""Seconds to wait for another process; what is done under a lock takes some milliseconds."""
_PAUSE = 0.01
_TO_WRITE_A_NAME = 10
"""Seconds between a lock's making and the holder's name in it, with much to spare."""
_NAME = re.compile(r"([0-9a-f]{12}-\d+-\d*) (.*)", re.DOTALL)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Let one process at a time, of all machines that share a file system, into the block.

    Args:
        lock: A file that is there while somebody is in the block. Its folder must exist.

    Raises:
        ZooError: Another process was in the block for a minute.
        OSError: The folder cannot be written.
    """
    if not acquire(lock, patience=PATIENCE):
        raise ZooError(
            f"{lock} was there for {PATIENCE:.0f} s, which says that another process writes beside it "
            f"({holder_of(lock) or 'unknown'}). If none does, remove that file"
        )
    try:
        yield
    finally:
        release(lock)


def acquire(lock: Path, *, patience: float = 0.0, signs: Sequence[Path] = ()) -> bool:
    """Make a lock for this process; one whose holder is dead is taken over.

    Args:
        lock: The file; its folder must exist.
        patience: Seconds to wait for a holder that lives.
        signs: Further files that the holder writes, by which one on another machine is known to live; see `is_alive`.

    Returns:
        Whether the lock is this process's now.

    Raises:
        OSError: The folder cannot be written.
    """
    began = time.monotonic()
    while not _create(lock):
        content = _read(lock)
        is_dead = _is_dead(lock, content, signs)
        if is_dead and _bury(lock, content, signs):
            continue
        # Else it is gone, or another buries it, or its holder is about to write its name: the next look tells more.
        is_settled = not is_dead and _NAME.fullmatch(content)
        if time.monotonic() - began > (patience if is_settled else PATIENCE):
            return False
        time.sleep(_PAUSE * (1 + secrets.randbelow(4)))
    return True


def release(lock: Path) -> None:
    """Remove the lock of this process; another's, which has taken it over, is left."""
    if is_ours(lock):
        lock.unlink(missing_ok=True)


def is_ours(lock: Path) -> bool:
    """Whether this process holds a lock."""
    match = _NAME.fullmatch(_read(lock))
    return match is not None and match[1] == this_process()


def holder_of(lock: Path) -> str:
    """Process and machine of a lock's holder, in words; empty if they are not known."""
    match = _NAME.fullmatch(_read(lock))
    return match[2] if match else ""


def _create(lock: Path) -> bool:
    """Create the file with the name of this process inside; False if it is there already."""
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, f"{this_process()} process {os.getpid()} on {socket.gethostname()}".encode())
        with suppress(OSError):  # some file systems have no permissions
            os.fchmod(handle, 0o644)  # others must be able to tell whether we live, whatever the umask
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return True


def _read(lock: Path) -> str:
    """What is inside; empty if the file is gone, cannot be read, or was made a moment ago."""
    try:
        return lock.read_bytes()[:200].decode("utf-8", "replace")
    except OSError:
        return ""


def _is_dead(lock: Path, content: str, signs: Sequence[Path] = ()) -> bool:
    """Whether the lock is there with this content, and the process that wrote it is dead."""
    try:
        times = [lock.stat().st_mtime, *(path.stat().st_mtime for path in signs if path.exists())]
    except OSError:
        return False
    if _read(lock) != content:
        return False
    match, last_write = _NAME.fullmatch(content), max(times)
    return not is_alive(match[1], last_write) if match else time.time() - last_write > _TO_WRITE_A_NAME


def _bury(lock: Path, content: str, signs: Sequence[Path] = ()) -> bool:
    """Remove the lock of a dead process; False if another process is at it.

    Two that both find it dead must not both remove it: the second might take away the lock of a third that came in
    between. So one says first, by a lock of its own, that it removes the lock of this holder, and then looks once more.
    Of a process that was killed at just that, the second lock is buried in the same way.
    """
    claim = lock.with_name(f"{lock.name}.{hashlib.sha256(content.encode()).hexdigest()[:16]}")
    if not _create(claim):
        if _is_dead(claim, rival := _read(claim)):
            _bury(claim, rival)
        return False
    try:
        if _is_dead(lock, content, signs):
            lock.unlink(missing_ok=True)
    finally:
        release(claim)
    return True
