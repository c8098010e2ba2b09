"""Writes files so that each is whole or absent, whoever else writes it and whenever the process is killed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.processes import is_alive, this_process

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{12}-\d+-\d*)\.[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there is brought to the disk, then renamed into place.

    The temporary name is this block's alone, so that any number of processes may write one file: the last one counts,
    and a reader sees one of theirs or what was there before. After an error `path` is as it was.

    Args:
        path: The file. Its folder is made where there is none.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{this_process()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill the temporary name of `replacing`, which then becomes `path`.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that a power cut does not leave an empty file behind.

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
