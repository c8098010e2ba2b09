"""Files of a run, written and read whole or not at all, with a digest of every byte."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointFormatError, IntegrityError
from zoo.files import replacing
from zoo.formats import check_torch, load_torch, sniff
from zoo.training.failures import of_system

_MARK = b"sha256 of what is before these words: "
_SEAL = len(_MARK) + 64
"""Bytes of the comment at the end of the zip archive that `torch.save` writes; whoever reads the archive skips it."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state by `torch.save`, with a digest at its end that `read_state` checks.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)  # `ranks`; an OUT that was removed is not made again
        with replacing(path) as temporary:
            _write_sealed(temporary, state)


def _write_sealed(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, torch writes its name into the file, and no two would be equal
        torch.save(state, file)
    _seal(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a system error inside the block name the file that is written and say what remains.

    Raises:
        OSError: The system error, with that message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer hides an OSError behind a RuntimeError
        causes = [cause for cause in (error, error.__context__) if isinstance(cause, OSError)]
        if not causes:
            raise
        raise OSError(
            f"{path} cannot be written: {of_system(causes[0])}. What was saved before stays; once there is room, the "
            "same command with --resume goes on"
        ) from error


def read_state(path: Path, keys: Collection[str] = (), *, mmap: bool = False) -> dict[str, Any]:
    """Read what `write_state` wrote, tensors on the CPU.

    Args:
        path: The file.
        keys: Keys that it must have.
        mmap: Whether tensors are mapped, so that unused ones take no memory.

    Raises:
        CheckpointFormatError: It is not what `write_state` wrote, or lacks keys.
        IntegrityError: Its digest is wrong.
        UnsafeCheckpointError: Opening it would run code.
    """
    check_seal(path)
    check_torch(path, kind := sniff(path))
    state = load_torch(path, kind, mapped=mmap)
    if missing := [key for key in keys if not isinstance(state, dict) or key not in state]:
        raise CheckpointFormatError(f"{path} is not the state of a run: it lacks {', '.join(missing)}")
    read: dict[str, Any] = state
    return read


def check_seal(path: Path) -> None:
    """Compare a file with the digest at its end.

    Raises:
        CheckpointFormatError: There is no such file, or no digest in it.
        IntegrityError: The digests differ.
    """
    if not path.is_file():
        raise CheckpointFormatError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a file is expected")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _SEAL
        file.seek(max(0, size))
        mark, stored = file.read(len(_MARK)), file.read().decode("ascii", "replace")
        if size < 0 or mark != _MARK:
            raise CheckpointFormatError(
                f"{path} ({sniff(path)}) lacks the digest that a run writes at the end of its files: it is cut short, "
                "or no run wrote it"
            )
        file.seek(0)
        digest = _digest(file, size)
    if digest != stored:
        raise IntegrityError(f"{path} is damaged: its sha256 is {digest}, and was {stored!r} when it was written")


def _seal(path: Path) -> None:
    """Write a zip archive's digest into its comment; the length of the comment is set first and counts."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the last field of an archive without a comment: the comment's length
        file.write(struct.pack("<H", _SEAL))
        size = file.tell()
        file.seek(0)
        digest = _digest(file, size)
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode("ascii"))


def _digest(file: Any, size: int) -> str:
    """Digest of the next `size` bytes of a file."""
    found = hashlib.sha256()
    while piece := file.read(min(size, 1 << 20)):
        found.update(piece)
        size -= len(piece)
    return found.hexdigest()
