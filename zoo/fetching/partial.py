"""Temporary files of downloads under way.

Each is written by one process and carries that process in its name, so that no lock is needed: what a dead process
left is claimed by an atomic rename, which only one of several can win, and what a live one writes is left alone.
The name is `<target>.<writer>.<random>.<validator>.part`; the validator holds source and entity tag where only these
can tell, later, that more bytes belong to the same file.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from zoo.fetching.cache import make_folder, remove_quietly, share
from zoo.fetching.digests import Hasher, digests_of
from zoo.fetching.remote import SourceError
from zoo.files import is_alive, remove_leftovers, sync, temporary_name, this_process

log = logging.getLogger("zoo")

STALE = 7 * 24 * 3600
"""Seconds without a write after which a partial is deleted."""
LONGEST_ETAG = 80
"""Characters; a longer tag would make the name too long for the file system, and counts as none."""

_FREE = "free"
"""In place of a writer: left on purpose, for anyone to go on from."""
_NAME = re.compile(rf"({_FREE}|[0-9a-f]{{12}}-\d+-\d*)\.[0-9a-f]{{8}}\.([\w=-]*)\.part")


class StorageError(Exception):
    """The cache cannot be written. Never leaves the package: `fetch` turns it into the message for the user."""

    def __init__(self, error: OSError) -> None:
        """Keep the reason that the system gave."""
        super().__init__(error.strerror or str(error))
        self.full = error.errno in (errno.ENOSPC, errno.EDQUOT)


class Partial:
    """A download under way: a temporary file beside the target, hashed while it is written.

    As a context manager it removes the file when that is spoilt or was not needed, and after any other error leaves it
    for a later process to go on from.
    """

    def __init__(
        self,
        target: Path,
        source: str = "",
        *,
        lasting: bool = True,
        kinds: Iterable[str] = ("sha256",),
        expected_size: int | None = None,
    ) -> None:
        """Open a fresh temporary file.

        Args:
            target: Final path of the file. Its folder is made.
            source: The source, if the digest is unknown: only bytes from there, with their entity tag, are gone on
                from. Empty if the digest is known, which proves in the end what came from anywhere.
            lasting: Whether what is there after an error is kept to go on from; not worth it for a copy of a file.
            kinds: Digests to compute, sha256 among them.
            expected_size: Bytes of the whole file; None if that is not known.

        Raises:
            StorageError: The folder cannot be written.
        """
        self.target = target
        self.source = source
        self.lasting = lasting
        self.etag = ""
        self.size = 0
        self.continued = False
        """Whether the bytes come from more than one answer of a server."""
        self.received = 0
        """Bytes ever written, those thrown away included."""
        self.restarts = 0
        """Number of times that bytes were thrown away."""
        self.path = self._name(this_process())
        self._new_hasher = partial(Hasher, (*kinds,), expected_size)
        self._hasher = self._new_hasher()
        self._moved = False
        with _storing():
            make_folder(target.parent)
            _remove_stale(target.parent)
            remove_leftovers(target.parent)
            self._file = open(self.path, "xb+")  # noqa: SIM115 (closed by finish or __exit__)
            share(self.path)

    def _name(self, writer: str) -> Path:
        if not self.lasting:
            return temporary_name(self.target)
        validator = _validator(self.source, self.etag)
        return self.target.with_name(f"{self.target.name}.{writer}.{secrets.token_hex(4)}.{validator}.part")

    @property
    def resumable(self) -> bool:
        """Whether more bytes may follow those inside: the digest will prove them, or an entity tag does."""
        return not self.source or bool(self.etag)

    @property
    def digest(self) -> str:
        """The sha256 of what has been written."""
        return self._hasher.digests()["sha256"]

    def digests(self, kinds: Collection[str]) -> dict[str, str]:
        """Return digests of what has been written, by kind; those that were not computed on the way by reading it."""
        found = self._hasher.digests()
        if missing := [kind for kind in kinds if kind not in found]:
            with _storing():
                self._file.flush()
                found |= digests_of(self.path, missing)
        return found

    def claim_what_is_left(self) -> None:
        """Go on from the bytes that a dead process left, if there are any."""
        for left, etag in _left_by_the_dead(self.target, self.source):
            empty, self.etag = self.path, etag
            self.path = self._name(this_process())
            try:
                os.rename(left, self.path)
                os.utime(self.path)
            except OSError:  # another process was faster
                self.path, self.etag = empty, ""
                continue
            remove_quietly(empty)
            with _storing():
                self._file.close()
                self._file = open(self.path, "rb+")  # noqa: SIM115
                while chunk := self._file.read(1 << 20):
                    self._hasher.update(chunk)
                self.size = self._file.tell()
            self.continued = True
            log.info("going on from the %d bytes that an earlier download left", self.size)
            return

    def restart(self, etag: str = "") -> None:
        """Throw away what is inside and begin at byte 0, with bytes that the server calls `etag`."""
        self.restarts += self.size > 0
        with _storing():
            if self.size:
                self._file.seek(0)
                self._file.truncate()
            self.size, self.continued, self._hasher = 0, False, self._new_hasher()
            if self.source and etag != self.etag:
                self.etag = etag if len(etag) <= LONGEST_ETAG else ""
                old, self.path = self.path, self._name(this_process())
                os.rename(old, self.path)

    def write(self, chunk: bytes) -> None:
        """Append and hash."""
        with _storing():
            self._file.write(chunk)
        self._hasher.update(chunk)
        self.size += len(chunk)
        self.received += len(chunk)

    def finish(self) -> os.stat_result:
        """Sync to disk, close, and return size and time of the finished file."""
        with _storing():
            self._file.flush()
            os.fsync(self._file.fileno())
            stat = os.fstat(self._file.fileno())
            self._file.close()
        return stat

    def move_to_target(self) -> None:
        """Give the finished file its final name, in one step. What dead processes left of it is of no more use."""
        with _storing():
            os.replace(self.path, self.target)
            self._moved = True
            sync(self.target.parent)
        for left, _ in _left_by_the_dead(self.target, ""):
            remove_quietly(left)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._moved:
            return
        spoilt = isinstance(error, StorageError) or (isinstance(error, SourceError) and error.spoilt)
        try:
            self._file.close()  # writes what is buffered, so a full disk may show here once more
            if error and not spoilt and self.size and self.resumable and self.lasting:
                os.rename(self.path, self._name(_FREE))
        except OSError as failure:
            log.debug("%s is not kept: %s", self.path, failure)
        remove_quietly(self.path)


def _left_by_the_dead(target: Path, source: str) -> list[tuple[Path, str]]:
    """The partials that may be gone on from, the longest first, with their entity tags."""
    found = []
    for path in target.parent.glob(f"{target.name}.*.part"):
        match = _NAME.fullmatch(path.name.removeprefix(f"{target.name}."))
        if match is None or (source and not match[2].startswith(f"{_short_hash(source)}-")):
            continue
        try:
            stat = path.stat()
        except OSError:
            continue  # its writer was faster
        writing = match[1] != _FREE and is_alive(match[1], stat.st_mtime)
        if not writing and os.access(path, os.R_OK | os.W_OK):
            found.append((stat.st_size, path, _etag_in(match[2]) if source else ""))
    return [(path, etag) for _, path, etag in sorted(found, reverse=True)]


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("*.part"):
        try:
            old = time.time() - path.stat().st_mtime > STALE
        except OSError:
            continue  # its writer was faster
        if old:
            remove_quietly(path)


def _validator(source: str, etag: str) -> str:
    if not source or not etag:
        return ""
    return f"{_short_hash(source)}-{base64.urlsafe_b64encode(etag.encode()).decode()}"


def _etag_in(validator: str) -> str:
    return base64.urlsafe_b64decode(validator.partition("-")[2]).decode()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(error) from error
