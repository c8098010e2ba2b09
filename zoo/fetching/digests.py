"""Computes the digests that a record or a host states of a file: sha256, md5, and the id of a git blob."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK = 1 << 20
_NEW: Mapping[str, Callable[[int], _Hash]] = {
    "sha256": lambda size: hashlib.sha256(),
    "md5": lambda size: hashlib.md5(usedforsecurity=False),
    "git_blob": lambda size: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
}
"""By kind, a new hash of a file of some size: a git blob begins with it (gitformat-pack and git hash-object)."""


class Hasher:
    """Digests of bytes that come in pieces.

    Args:
        kinds: Which of `record.DIGESTS`.
        size: Bytes that will come. Where that is not known the id of a git blob cannot be computed on the way.
    """

    def __init__(self, kinds: Iterable[str], size: int | None = None) -> None:
        known = [kind for kind in kinds if kind != "git_blob" or size is not None]
        self._hashes = {kind: _NEW[kind](size or 0) for kind in known}

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        for each in self._hashes.values():
            each.update(chunk)

    def digests(self) -> dict[str, str]:
        """Return the digests of what has come, hexadecimal, by kind."""
        return {kind: each.hexdigest() for kind, each in self._hashes.items()}


def digests_of(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Return digests of a file, by kind, reading it once."""
    hasher = Hasher(kinds, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.digests()


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Say which digest differs, as `sha256 is ..., not ...`; empty where every digest that both have is equal."""
    return next(
        (
            f"{kind} is {found[kind]}, not {expected[kind]}"
            for kind in expected
            if kind in found and found[kind] != expected[kind]
        ),
        "",
    )
