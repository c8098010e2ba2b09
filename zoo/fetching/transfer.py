"""Brings the bytes of one source into a temporary file: retries, resumption, lengths."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from zoo.fetching.client import CHUNK, is_page, new_session, open_remote, read_chunks
from zoo.fetching.digests import difference
from zoo.fetching.partial import Partial
from zoo.fetching.remote import OtherFileStatedError, Remote, SourceError, Statement, TransientError, WrongFileError
from zoo.fetching.sources import refuse_page
from zoo.settings import retry_wait

if TYPE_CHECKING:
    import requests

    from zoo.record import RemoteFile

log = logging.getLogger("zoo")

ATTEMPTS = 5
"""Attempts per source in a row that bring no byte."""
RESTARTS = 9
"""Times that bytes are thrown away for one source: a server that ignores `Range` and always cuts is left in the end."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts at most; where a server asks for more, the next source is tried at once."""
LARGEST = 16 << 30
"""Bytes that a file of unknown size may have: five times the largest published one. Without a bound a server that never
ends its answer fills the disk."""

Advance = Callable[[int], object]


def copy_file(path: Path, part: Partial, size: int | None, advance: Advance) -> None:
    """Copy a file of this machine into `part`; `size` are the bytes that it must have, None if that is not known.

    Raises:
        SourceError: There is no such file, it cannot be read, or it does not have `size` bytes.
        StorageError: The cache cannot be written.
    """
    try:
        with path.open("rb") as file:
            head = file.read(CHUNK)
            refuse_page(head)
            _check_length(os.fstat(file.fileno()).st_size, size)
            for chunk in chain([head], iter(lambda: file.read(CHUNK), b"")):
                part.write(chunk)
                advance(part.size)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


@dataclass(frozen=True)
class Answer:
    """What came with the bytes of a file."""

    etag: str = ""
    says: Statement = field(default_factory=Statement)


def transfer(remote: Remote, part: Partial, file: RemoteFile, advance: Advance) -> Answer:
    """Fetch an address into `part`, going on from what is inside, with retries.

    Args:
        remote: The address.
        part: Where the bytes go; they may come in several answers.
        file: Its record. A host that states another digest is left before a byte comes.
        advance: Called with the number of bytes there are, for the progress bar.

    Raises:
        SourceError: The source did not give the file.
        StorageError: The cache cannot be written.
        OptionError: `ZOO_RETRY_WAIT` is not a number.
    """
    attempts = failures = 0
    wait = retry_wait()
    with new_session() as session:
        while True:
            attempts += 1
            before = part.received
            try:
                return _attempt(session, remote, part, file, advance)
            except TransientError as error:
                if error.wait > LONGEST_WAIT:
                    raise SourceError(f"{error}; it asks to wait for {error.wait:,.0f} seconds") from error
                failures = 1 if part.received > before else failures + 1
                if failures == ATTEMPTS or part.restarts > RESTARTS:
                    raise SourceError(f"{error} (given up after {attempts} attempts)") from error
                pause = min(max(wait * 2 ** (failures - 1), error.wait), LONGEST_WAIT)
                level = logging.WARNING if failures == 1 else logging.INFO  # said once, not five times
                log.log(level, "%s: %s; next attempt in %.3g s", urlsplit(remote.url).hostname, error, pause)
                time.sleep(pause)


def ask(remote: Remote) -> Statement:
    """Return what a host says of a file, without its bytes. One attempt.

    Raises:
        SourceError: It does not answer, or refuses.
    """
    with new_session() as session:
        try:
            response, says = open_remote(session, remote, {})
        except TransientError as error:
            raise SourceError(str(error)) from error
        response.close()
    return says


def _attempt(session: requests.Session, remote: Remote, part: Partial, file: RemoteFile, advance: Advance) -> Answer:
    if not part.resumable:
        part.restart()
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    if part.size and part.etag:
        headers["If-Range"] = part.etag
    response, says = open_remote(session, remote, headers)
    size = file.bytes
    with closing(response):
        if problem := difference(file.digests, says.digests):
            raise OtherFileStatedError(f"{says.by} states another file than the one on record: {problem}")
        begin, total = _extent(response, part)
        chunks = read_chunks(response)
        head = next(chunks, b"")
        if begin == 0:
            refuse_page(head)
        if is_page(response):
            raise SourceError("an HTML page came instead of the file")
        _check_length(total, size)
        most = LARGEST if size is None else size
        etag = response.headers.get("ETag", "")
        if begin:
            part.continued = True
        else:  # only now, when this looks like the file, is what came earlier given up
            part.restart("" if etag.startswith("W/") else etag)
        for chunk in chain([head], chunks):
            if part.size + len(chunk) > most:
                allowed = f"{most:,} bytes that a file may have" if size is None else f"{size:,} bytes on record"
                raise WrongFileError(f"the body is longer than the {allowed}")
            part.write(chunk)
            advance(part.size)
        if part.size < (total or 0) or (part.size < (size or 0) and not _ends_by_itself(response)):
            raise TransientError(f"the connection was cut after {part.size:,} of {total or size:,} bytes")
    if size is not None and part.size < size:
        raise WrongFileError(f"the body is shorter than on record: {part.size:,} of {size:,} bytes")
    return Answer(etag, says)


def _extent(response: requests.Response, part: Partial) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and how many the file has as far as the server says."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    changed = part.etag and response.headers.get("ETag", part.etag) != part.etag
    if response.status_code == 206 and match and int(match[1]) == part.size and not changed:
        return part.size, int(match[2]) + 1 if match[3] == "*" else int(match[3])
    if not part.size:
        raise SourceError(f"HTTP {response.status_code} in answer to a request for the whole file")
    part.restart()
    raise TransientError("the server does not give the rest of what is here; next from byte 0")


def _ends_by_itself(response: requests.Response) -> bool:
    """Whether the end of the body is marked, so that a short one is not just a lost connection."""
    return "Content-Length" in response.headers or "Transfer-Encoding" in response.headers


def _check_length(length: int | None, size: int | None) -> None:
    if length is not None and size is None and length > LARGEST:
        raise SourceError(f"the file there has {length:,} bytes, more than the {LARGEST:,} that a file may have")
    if length is not None and size is not None and length != size:
        than = "shorter" if length < size else "longer"
        raise SourceError(f"the file there is {than} than on record: {length:,} bytes instead of {size:,}")


@contextmanager
def progress_bar(label: str, total: int | None, shown: bool) -> Iterator[Advance]:
    """Yield a function that takes the bytes there are; it draws a bar on stderr if wanted, and if that is a terminal.

    Args:
        label: What is fetched.
        total: Bytes in all; None if that is not known.
        shown: Whether a bar is wanted.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda size: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield lambda size: bar.update(size - bar.n)
