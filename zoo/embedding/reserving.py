"""Holds a folder of features for one run, whose processes may be several, and marks what has come to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.embedding.failures import file_of
from zoo.embedding.shares import ALONE, Share
from zoo.errors import OptionError
from zoo.features import FINISHED, is_finished
from zoo.locks import acquire, holder_of, release
from zoo.messages import printable

_LOG = "embed"


def log_of(out: Path, rank: int) -> Path:
    """Where a process records its course; that it is written shows other machines that the process lives."""
    return file_of(out, _LOG, rank, ".log")


@contextmanager
def reserved(out: Path, share: Share) -> Iterator[None]:
    """Hold the folder for this process; the other processes of one run may hold it too.

    A block that ends well marks this share as finished, which `zoo.read_features` looks for.

    Raises:
        OptionError: Another run writes to the folder.
        OSError: It cannot be written.
    """
    lock = out / f"{_name(share)}.lock"
    _take(lock, out)
    try:
        _refuse_others(out, share)  # after our own lock: two runs that begin at once see each other
        yield
        (out / f"{_name(share)}{FINISHED}").touch()
    finally:
        release(lock)


@contextmanager
def holding_finished(out: Path) -> Iterator[bool]:
    """Hold a folder whose processes have all come to their end, for one that takes the rows out of it.

    Yields:
        Whether this process holds it: not where a share is left to do, or another process writes to it or holds it.
    """
    lock = out / f"{_name(ALONE)}.lock"
    try:
        if is_held := is_finished(out):
            _take(lock, out)
            _refuse_others(out, ALONE)
    except (FileNotFoundError, OptionError):
        is_held = False
    try:
        yield is_held
    finally:
        release(lock)


def _name(share: Share) -> str:
    return f".rank-{share.rank}-of-{share.world}"


def forget_finished(out: Path, share: Share) -> None:
    """Remove the mark of this share, and those of runs that divided the cases otherwise."""
    for mark in out.glob(f".rank-*{FINISHED}"):
        if mark.name == f"{_name(share)}{FINISHED}" or not mark.name.endswith(f"-of-{share.world}{FINISHED}"):
            mark.unlink(missing_ok=True)


def _refuse_others(out: Path, share: Share) -> None:
    """Raise `OptionError` where a run that divides the cases otherwise writes to the folder."""
    for other in out.glob(".rank-*.lock"):
        if not other.name.endswith(f"-of-{share.world}.lock"):
            _take(other, out)
            release(other)


def _take(lock: Path, out: Path) -> None:
    rank = lock.name.split("-")[1]
    signs = [log_of(out, int(rank))] if rank.isdigit() else []
    if not acquire(lock, signs=signs):
        raise OptionError(
            f"another run writes to {out} ({printable(holder_of(lock)) or 'a process that has only begun'}): wait for "
            f"its end, or give another OUT. If that machine is gone, remove {lock}"
        )
