"""One run at a time in a folder: `run.lock` says which process is at work there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.errors import OptionError
from zoo.locks import acquire, holder_of, is_ours, release
from zoo.messages import printable
from zoo.training.failures import of_system

LOCK = "run.lock"
_SIGNS_OF_LIFE = ("run.log", "last.pt")
"""Files that a run writes beside its lock; `run.log` about once a minute."""


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Reserve a folder for this process inside the block; it is made if it does not exist.

    A lock whose holder is dead is taken over. Blocks of one process may be nested. A folder that was made and stayed
    empty is removed.

    Raises:
        OptionError: A run is at work there, or the folder cannot be written.
    """
    lock = out / LOCK
    if is_ours(lock):
        yield
        return
    try:
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        is_free = acquire(lock, signs=[out / name for name in _SIGNS_OF_LIFE])
    except OSError as error:
        raise OptionError(f"--out {out} cannot be written: {of_system(error)}. Give another --out") from error
    if not is_free:
        raise OptionError(
            f"a run is at work in --out {out} ({printable(holder_of(lock)) or 'a process that has only begun'}): wait "
            f"for its end, or give another --out. If that machine is gone, remove {lock}"
        )
    try:
        yield
    finally:
        release(lock)
        if is_new:
            with suppress(OSError):
                out.rmdir()


def check_held(out: Path) -> None:
    """Raise `OptionError` where this process no longer holds its folder."""
    lock = out / LOCK
    if not is_ours(lock):
        what = "another run has taken it" if lock.exists() else f"it was removed, or its {LOCK} was"
        raise OptionError(f"--out {out} is no longer this run's: {what}; nothing more was written there")
