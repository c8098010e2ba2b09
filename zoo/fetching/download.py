"""Fetches a record's file from its sources, and verifies what is in the cache.

The file is long because a fetched file and one that was there before are proved by the same steps, which stand here.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import DownloadError, IntegrityError
from zoo.fetching.advice import cannot_store, no_source_left
from zoo.fetching.cache import (
    Stamp,
    file_path,
    hash_file,
    invalidate_stamp,
    proven_digest,
    read_stamp,
    stamp_again,
    stamp_path,
    write_stamp,
)
from zoo.fetching.digests import difference, digests_of
from zoo.fetching.partial import Partial, StorageError
from zoo.fetching.pinning import expected_digests, misfit, other_file, pin, proof_of, recorded_digest, why_unused
from zoo.fetching.remote import Remote, SourceError, Statement, WrongDigestError, WrongFileError
from zoo.fetching.sources import candidates, is_remote, packaged_path, resolve, shown
from zoo.fetching.transfer import Answer, ask, copy_file, progress_bar, transfer
from zoo.settings import cache_home, is_offline

if TYPE_CHECKING:
    from zoo.record import RemoteFile

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Fetched:
    """A file on this machine whose digest is proved."""

    path: Path
    sha256: str
    source: str
    """The source string, or the mirror's address, that it came from; empty if it was put there by hand."""
    proved_by: str = ""
    """What the digest was held against where no sha256 is on record; empty where nobody states a digest."""


@dataclass(frozen=True)
class Verification:
    """The result of hashing again."""

    found: tuple[Path, ...]
    """The files that were hashed; empty if nothing was downloaded yet."""
    problems: tuple[str, ...]
    """One line per file that is not what it must be, naming it; empty if all is well."""


def fetch(
    file: RemoteFile,
    *,
    request: str,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Fetched:
    """Return the file, verified: from the package, from the cache, or else from the first source that gives it.

    Any number of processes may do this at once. What is in the cache under a final name was whole and right when it
    got that name.

    Args:
        file: What to fetch.
        request: What the user asked for, for messages.
        cache_dir: The cache; see `cache_home`.
        offline: Whether connections are forbidden; see `is_offline`.
        progress: Whether to draw a progress bar, on a terminal.

    Raises:
        OfflineError: The file is not on this machine, and connections are forbidden.
        IntegrityError: Every source gave a file with another digest.
        DownloadError: No source gave the file, or the cache cannot take it.
    """
    target = file_path(file, cache_dir)
    if ready := _on_this_machine(file, target):
        return ready
    if os.path.isfile(target):
        log.warning("%s is not used: %s", target, why_unused(file, target))
    failures: list[tuple[str, SourceError]] = []
    skipped: list[str] = []
    for source in candidates(file):
        if is_offline(offline) and is_remote(source):
            skipped.append(source)
            continue
        try:
            ready = _fetch_from(source, file, target, progress)
        except SourceError as error:
            failures.append((source, error))
            ready = _on_this_machine(file, target)  # another process may have fetched it meanwhile
        except StorageError as error:
            raise DownloadError(cannot_store(file, request, target, error)) from error
        if ready:
            for failed, reason in failures:  # where none is left the error says this
                log.warning("%s: %s: %s", request, shown(failed), reason)
            return ready
    raise no_source_left(file, request, target, failures, skipped)


def state_of(source: str, base: Path = Path()) -> Statement:
    """Return what the host of a source says of the file there now, without its bytes.

    Raises:
        DownloadError: The hub does not answer.
    """
    try:
        origin = resolve(source, base)
        return Statement() if isinstance(origin, Path) else ask(origin)
    except SourceError as error:
        raise DownloadError(f"{shown(source)}: {error}") from error


def is_on_this_machine(file: RemoteFile, cache_dir: str | Path | None = None) -> bool:
    """Whether a file lies where this one does, in the package or the cache; `fetch` proves what it holds."""
    paths = [file_path(file, cache_dir), *filter(None, map(packaged_path, file.sources))]
    return any(os.path.isfile(path) for path in paths)


def take(file: RemoteFile, path: Path, *, request: str, cache_dir: str | Path | None = None) -> Fetched:
    """Copy a file of this machine into the cache as one on record, proved as a download is.

    Args:
        file: What it is to be.
        path: The file, absolute.
        request: What the user asked for, for messages.
        cache_dir: The cache; see `cache_home`.

    Raises:
        IntegrityError: It has another size or digest.
        DownloadError: The cache cannot take it.
    """
    target = file_path(file, cache_dir)
    try:
        return _fetch_from(f"file:{path}", file, target, progress=False)
    except SourceError as error:
        raise IntegrityError(f"{request}: {path} is not it: {error}") from error
    except StorageError as error:
        raise DownloadError(cannot_store(file, request, target, error)) from error


def is_ready_offline(file: RemoteFile, cache_dir: str | Path | None = None, *, sources: bool = True) -> bool:
    """Whether `fetch` would give the file without a connection. It is hashed unless its stamp proves it.

    Args:
        file: Which file.
        cache_dir: The cache; see `cache_home`.
        sources: Whether files on this machine that its sources or the mirror name count, beside package and cache.
    """
    target = file_path(file, cache_dir)
    expected, stamp = recorded_digest(file, target), stamp_path(target)
    for path, beside in ((target, None), *((path, stamp) for path in map(packaged_path, file.sources) if path)):
        if expected and proven_digest(path, expected, stamp=beside):
            return True
        if not expected and path.is_file() and not (other_file(file, path) or misfit(file, path)):
            return True
    local = [source for source in candidates(file) if source.startswith("file:")] if sources else []
    return any(_is_right(resolve(source, file.base), file, target) for source in local)


def _is_right(origin: Remote | Path, file: RemoteFile, target: Path) -> bool:
    """Whether a file of this machine has the size and digests that are expected."""
    if not isinstance(origin, Path) or not origin.is_file() or file.bytes not in (None, origin.stat().st_size):
        return False
    expected = expected_digests(file, target)
    return not difference(expected, digests_of(origin, expected)) and not misfit(file, origin)


def _on_this_machine(file: RemoteFile, target: Path) -> Fetched | None:
    expected, stamp = recorded_digest(file, target), stamp_path(target)
    known = read_stamp(stamp)
    if not file.sha256 and known and os.path.isfile(target) and not _is_still_on_record(file, target, known):
        return None
    if digest := proven_digest(target, expected) if expected else pin(file, target, target):
        known = read_stamp(stamp)
        return Fetched(target, digest, known.source, known.proved_by) if known else Fetched(target, digest, "")
    for source in file.sources:
        path = packaged_path(source)
        if path and (digest := proven_digest(path, expected, stamp=stamp) if expected else pin(file, path, target)):
            return Fetched(path, digest, source)
    return None


def _is_still_on_record(file: RemoteFile, target: Path, known: Stamp) -> bool:
    """Whether a pinned file has what the record states by now; once that holds, the stamp says so."""
    if file.bytes in (None, known.size) and proof_of(file) in ("", known.proved_by):
        return True
    try:
        stat = target.stat()
        if other_file(file, target):
            return False
    except OSError:
        return True  # as `proven_digest` says in full
    if known.describes("", stat):
        stamp_again(replace(known, proved_by=proof_of(file)), target, sha256=known.sha256, stat=stat, stamp=None)
    return True


def _fetch_from(source: str, file: RemoteFile, target: Path, progress: bool) -> Fetched:
    origin = resolve(source, file.base)
    if packaged := packaged_path(source):
        raise _refused_in_place(packaged, recorded_digest(file, target))
    try:
        return _bring(origin, source, file, target, progress, fresh=isinstance(origin, Path))
    except _MisfitError:
        log.warning("%s: the parts of an interrupted download do not fit; once more from byte 0", shown(source))
        return _bring(origin, source, file, target, progress, fresh=True)


class _MisfitError(WrongDigestError):
    """Bytes that came in several parts do not make the file; in one part they may."""


def _bring(origin: Remote | Path, source: str, file: RemoteFile, target: Path, progress: bool, fresh: bool) -> Fetched:
    expected = expected_digests(file, target)
    stated = {"md5"} if source.startswith("zenodo:") else set()
    answer = Answer()
    with (
        Partial(
            target,
            source="" if expected else source,
            lasting=not isinstance(origin, Path),
            kinds={"sha256", *expected, *stated},
            expected_size=file.bytes,
        ) as part,
        progress_bar(file.filename, file.bytes, progress) as advance,
    ):
        if not fresh:
            part.claim_what_is_left()
        if isinstance(origin, Path):
            copy_file(origin, part, file.bytes, advance)
        elif not expected or difference(expected, part.digests(expected)):
            answer = transfer(origin, part, file, advance)
        if part.size == 0:
            raise SourceError("the file there is empty")
        return _keep(part, file, target, shown(source), answer, may_misfit=part.continued and not fresh)


def _keep(part: Partial, file: RemoteFile, target: Path, source: str, answer: Answer, *, may_misfit: bool) -> Fetched:
    """Give a right download its final name and its stamp."""
    known = expected_digests(file, target)  # asked again: another process may have pinned it meanwhile
    expected = known | {kind: digest for kind, digest in answer.says.digests.items() if kind not in known}
    if problem := difference(expected, part.digests(expected)):
        if may_misfit:
            raise _MisfitError(problem)
        raise WrongDigestError(problem)
    stat = part.finish()
    if not expected and (problem := misfit(file, part.path)):
        raise WrongFileError(problem)
    proof = proof_of(file, answer.says)
    if proven_digest(target, recorded_digest(file, target)):
        return Fetched(target, part.digest, source, proof)  # another process was faster; its file may be in use
    part.move_to_target()
    write_stamp(target, sha256=part.digest, source=source, etag=answer.etag, proved_by=proof, stat=stat)
    log.info("fetched %s from %s", target, source)
    return Fetched(target, part.digest, source, proof)


def _refused_in_place(path: Path, expected: str | None) -> SourceError:
    if not path.is_file():
        return SourceError(f"{path} is missing from the installed package")
    return WrongDigestError(f"sha256 of {path} is {hash_file(path)}, not {expected}; reinstall the package")


def verify_file(file: RemoteFile, *, cache_dir: str | Path | None = None) -> Verification:
    """Hash a downloaded file and its converted copies again, whatever their stamps say.

    The stamp of a bad one is made invalid, so that the next load replaces it.

    Args:
        file: Which file.
        cache_dir: The cache; see `cache_home`.
    """
    target = file_path(file, cache_dir)
    expected = recorded_digest(file, target)
    paths = [target, *filter(None, map(packaged_path, file.sources))]
    found = [(p, expected, None if p == target else stamp_path(target)) for p in paths if p.is_file()]
    for copy in sorted((cache_home(cache_dir) / "converted").glob(f"{expected}.*.safetensors")):
        stamp = read_stamp(stamp_path(copy))
        found.append((copy, stamp.sha256 if stamp else None, None))
    problems = [_problem(*each) for each in found]
    if not file.sha256 and target.is_file() and (problem := other_file(file, target)):
        problems.append(f"{target}: {problem}, as the record has it by now; remove it and its stamp to fetch it anew")
    return Verification(tuple(path for path, *_ in found), tuple(p for p in problems if p))


def _problem(path: Path, expected: str | None, in_place: Path | None) -> str:
    if expected is None:
        return f"{path}: no digest is on record for it; the next load pins one"
    known = read_stamp(in_place or stamp_path(path))
    try:
        stat = path.stat()
        digest = hash_file(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if digest != expected:
        invalidate_stamp(in_place or stamp_path(path))
        remedy = "reinstall the package" if in_place else "the next load replaces it"
        return f"{path}: sha256 is {digest}, must be {expected}; {remedy}"
    stamp_again(known, path, sha256=digest, stat=stat, stamp=in_place)
    return ""
