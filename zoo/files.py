"""Writes files whole or not at all, whoever else writes them and whenever the process is killed.

A writer is known to be alive by the name of its process, which is unique across machines, containers and reboots.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from zoo.errors import OptionError

SILENT = 3600
"""Seconds without a write after which a writer that cannot be looked up counts as dead: longer than any retry waits."""

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{12}-\d+-\d*)\.[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; the file written there is synced to disk, then renamed into place.

    The temporary name is this block's alone, so that any number of processes may write one file: the last one counts,
    and a reader sees one of theirs or what was there before. After an error `path` is as it was.

    Args:
        path: The file, in a folder that exists.

    Raises:
        OSError: The file cannot be written.
    """
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield the name of a file for this block alone, beside `path`; the file is removed at the end.

    The name says which process writes it, so that `remove_leftovers` knows what a killed one left.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other write has; see `temporary_beside`."""
    return path.with_name(f".{path.name}.{this_process()}.{secrets.token_hex(4)}.tmp")


def read_text(path: Path, *, newline: str | None = None) -> str:
    """The text of a file, in UTF-8.

    Args:
        path: The file.
        newline: As of `open`: `""` keeps line ends as they are; None makes line feeds of all.

    Raises:
        OSError: It cannot be read, or is a folder, a pipe or a device.
        UnicodeDecodeError: It is not text.
    """
    with open(path, encoding="utf-8", newline=newline, opener=_open_regular) as file:
        return file.read()


def _open_regular(path: str, flags: int) -> int:
    """Open a file for reading; a pipe without waiting for its writer, to refuse it."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(f"{path} is a folder, a pipe or a device: a file is expected")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill the temporary name of `replacing`, which then becomes `path`; its folder is made.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str, *, newline: str | None = None) -> None:
    """Write a text in UTF-8, whole or not at all; see `write_atomically`. `newline` is as of `open`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8", newline=newline))


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk, so that a power cut does not leave an empty file behind.

    Raises:
        OSError: The file cannot be brought there. Folders of systems that cannot do it are passed over.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if is_folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers were killed; what a live process writes is left alone."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        try:
            if match and not is_alive(match[1], path.stat().st_mtime):
                path.unlink(missing_ok=True)
        except OSError:
            continue  # its writer was faster, or the folder cannot be written


class Pointer(NamedTuple):
    """What a program leaves in a repository instead of a large file."""

    program: str
    command: str
    """Fetches the file, in its repository."""

    def __str__(self) -> str:
        return f"a {self.program} pointer, not the file itself: `{self.command}` in its repository fetches the file"


_LFS = Pointer("Git LFS", "git lfs pull")
_ANNEX = Pointer("git-annex", "git annex get")
_STARTS = {
    _LFS: (b"version https://git-lfs", b"version https://hawser"),
    _ANNEX: (b"/annex/objects/", b"/.git/annex/objects/"),
}


def pointer_in(start: bytes) -> Pointer | None:
    """The pointer that a file with these first bytes is; None for any other file."""
    return next((pointer for pointer, starts in _STARTS.items() if start.startswith(starts)), None)


def pointer_at(link: Path) -> Pointer | None:
    """The pointer that a link without a target is; None for any other link, and for what is not a link."""
    return _ANNEX if link.is_symlink() and "annex/objects/" in link.readlink().as_posix() else None


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path that a user, a setting or a manifest names, with `~` resolved.

    Raises:
        OptionError: It is not a string, is empty, or cannot be a path on this machine, such as `~nobody-here/file`.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise OptionError(f"{path!r} is not a path; a string is expected")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise OptionError(f"{os.fspath(path)!r} is not a path: it {'has a null character' if path else 'is empty'}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(f"{os.fspath(path)!r} begins with the home of a user unknown to this machine") from error


def this_process() -> str:
    """Name of the running process: machine, number and start time, for `is_alive`. Made of letters, digits and `-`."""
    return f"{this_machine()}-{os.getpid()}-{_start_time(str(os.getpid()))}"


def this_machine() -> str:
    """Twelve digits for the scope of a process number: one boot of one machine, and one container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: the start time is unknown too, so that silence alone tells
        boot = socket.gethostname()
    return hashlib.sha256(boot.encode()).hexdigest()[:12]


def is_alive(process: str, last_write: float) -> bool:
    """Whether a process is still running; one that cannot be looked up is, until it has written nothing for an hour.

    Args:
        process: Its name, from `this_process`.
        last_write: When it last wrote, in seconds since the epoch.
    """
    machine, pid, started = process.split("-")
    if machine == this_machine() and started and (now := _start_time(pid)):
        return now == started
    return time.time() - last_write < SILENT


def _start_time(pid: str) -> str:
    """When a process of this machine started, in clock ticks; 0 if it is no longer running; empty if nobody can say."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0" if _is_gone(pid) else ""
    return "0" if state in "ZX" else numbers[18]


def _is_gone(pid: str) -> bool:
    if not Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(int(pid), 0)  # another user's process may be hidden from /proc
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
