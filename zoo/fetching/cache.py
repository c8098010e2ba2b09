"""Knows the paths of cached files, and keeps the stamps that record their digests.

A stamp is a small JSON file beside a cached one. While size and modification time are those it records, the file
counts as proved; otherwise the file is hashed again. Nothing needs a lock, and all of it works on a read-only cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.files import read_text, remove_leftovers, replacing
from zoo.settings import cache_home
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo.record import RemoteFile

log = logging.getLogger("zoo")


def make_folder(folder: Path) -> None:
    """Make a folder of the cache. It is as open to others as the one that it lies in, whatever the umask.

    Raises:
        OSError: It cannot be made.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)  # the cache itself, which the user's umask is for
        folder.mkdir(exist_ok=True)
        share(folder)


def share(path: Path) -> None:
    """Let a file or folder of the cache be read and written by whom the folder that it lies in is, as far as we may.

    In a cache that many share one user's umask would else lock all others out.
    """
    try:
        path.chmod(path.parent.stat().st_mode & (0o7777 if path.is_dir() else 0o666))
    except OSError as error:
        log.debug("%s keeps its permissions: %s", path, error)


def write_shared(path: Path, text: str) -> None:
    """Write a text of the cache, whole or not at all, for all who share the cache.

    Raises:
        OSError: It cannot be written; what was there before is untouched.
    """
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
        share(temporary)


def clear_leftovers(cache_dir: str | Path | None = None) -> None:
    """Remove the temporary files that killed processes left in the cache; what a live one writes is left alone."""
    home = cache_home(cache_dir)
    for folder in (home, home / "files", home / "converted"):
        remove_leftovers(folder)


def file_path(file: RemoteFile, cache_dir: str | Path | None = None) -> Path:
    """Where a fetched file lies: named by its digest, or by its first source's while its own is unknown."""
    if file.sha256:
        return cache_home(cache_dir) / "files" / file.sha256
    source = file.sources[0] if file.sources else ""
    digest = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
    return cache_home(cache_dir) / "files" / f"source-{digest}"


def converted_path(sha256: str, model: str, cache_dir: str | Path | None = None) -> Path:
    """Where the safetensors copy of the file with this digest lies, converted for `model`."""
    return cache_home(cache_dir) / "converted" / f"{sha256}.{model}.safetensors"


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits, reading it piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Stamp:
    """Size, time and digest of a file when it was last hashed, and where it came from."""

    sha256: str
    size: int
    mtime_ns: int
    """Modification time in nanoseconds; -1 once the file was found to be bad, so that it is hashed before any use."""
    source: str = ""
    etag: str = ""
    zoo: str = ""
    path: str = ""
    """The file itself, where it is read in place and so does not lie beside the stamp."""
    proved_by: str = ""
    """What the digest was first held against where no sha256 is on record; empty where nobody states a digest."""
    finite: bool = False
    """Whether every value in it was read once and found to be finite."""

    def describes(self, path: str, stat: os.stat_result) -> bool:
        """Whether a file (`path` as in the field) is the one that was hashed, as far as size and time tell."""
        return (self.path, self.size, self.mtime_ns) == (path, stat.st_size, stat.st_mtime_ns)


def stamp_path(path: Path) -> Path:
    """Where the stamp of a cached file lies."""
    return path.with_name(path.name + ".json")


def read_stamp(stamp: Path) -> Stamp | None:
    """Read a stamp; None where there is none or it is unreadable, which only means that the file is hashed again."""
    try:
        content = json.loads(read_text(stamp))
        return Stamp(**{f.name: content[f.name] for f in fields(Stamp) if f.name in content})
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_stamp(
    path: Path,
    *,
    sha256: str,
    source: str,
    etag: str = "",
    proved_by: str = "",
    stat: os.stat_result | None = None,
    stamp: Path | None = None,
) -> None:
    """Record that `path` has this digest. On a read-only cache nothing is written and nothing is raised.

    Args:
        path: The file.
        sha256: Its digest, 64 hexadecimal digits.
        source: The source string or address that it came from.
        etag: The `ETag` of the answer it came in, if any.
        proved_by: As in `Stamp`.
        stat: Size and time of the file from before it was hashed; taken now if None.
        stamp: Where to write, if the file is read in place; beside the file if None.
    """
    stat = stat or path.stat()
    in_place = str(path) if stamp else ""
    content = Stamp(sha256, stat.st_size, stat.st_mtime_ns, source, etag, __version__, in_place, proved_by)
    _write(stamp or stamp_path(path), content)


def stamp_again(known: Stamp | None, path: Path, *, sha256: str, stat: os.stat_result, stamp: Path | None) -> None:
    """Record a digest as `write_stamp` does, with what the last stamp says of the file's origin."""
    origin = {"source": known.source, "etag": known.etag, "proved_by": known.proved_by} if known else {"source": ""}
    write_stamp(path, sha256=sha256, stat=stat, stamp=stamp, **origin)


def mark_finite(stamp: Path) -> None:
    """Note that every value of the file was read and found to be finite, so that later loads need not read them."""
    if content := read_stamp(stamp):
        _write(stamp, replace(content, finite=True))


def invalidate_stamp(stamp: Path) -> None:
    """Make the next use hash the file again. The digest stays on record, which may be the only one there is."""
    if content := read_stamp(stamp):
        _write(stamp, replace(content, mtime_ns=-1))


def _write(stamp: Path, content: Stamp) -> None:
    try:
        write_shared(stamp, json.dumps(asdict(content), indent=1) + "\n")
    except OSError as error:
        log.debug("no stamp written at %s: %s", stamp, error)


def remove_quietly(path: Path) -> None:
    """Remove a temporary file if it is there and the folder allows it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s stays: %s", path, error)


def proven_digest(path: Path, expected: str | None = None, *, stamp: Path | None = None) -> str | None:
    """Return the digest of a cached file if that is proved; None if the file is not there, unreadable, or another.

    The stamp proves it while size and modification time are unchanged. Otherwise the file is hashed, and a right
    digest is stamped anew.

    Args:
        path: The file.
        expected: The digest it must have. If None, the one in the stamp counts (pinned at the first download, or taken
            when a converted copy was written), and without a stamp nothing is proved.
        stamp: Where the stamp lies, if the file is read in place; beside the file if None.
    """
    known = read_stamp(stamp or stamp_path(path))
    expected = expected or (known.sha256 if known else None)
    if expected is None or not os.path.isfile(path):  # false, too, where another user's folder cannot be looked into
        return None
    try:
        path.open("rb").close()  # its stamp may be open to us, and the file not
        stat = path.stat()
        if known and known.sha256 == expected and known.describes(str(path) if stamp else "", stat):
            return expected
        if hash_file(path) != expected:
            return None
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return None
    stamp_again(known, path, sha256=expected, stat=stat, stamp=stamp)
    return expected
