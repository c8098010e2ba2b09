"""Takes the files of a folder into the cache whose digest a record has, for `zoo import FOLDER`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.commands.carrying import LIST, NeededFile, find_needed
from zoo.errors import CheckpointFormatError, ZooError
from zoo.fetching import clear_leftovers, difference, digests_of, file_path, is_ready_offline, take

TAKEN, HERE, DAMAGED, UNKNOWN = "taken", "here already", "DAMAGED", "not known"


@dataclass(frozen=True)
class Found:
    """One file of the folder."""

    path: Path
    verdict: str
    """One of the four above."""
    said: str
    """Which weights it is of; or what is wrong, and what to do."""


def import_folder(folder: str | Path, cache_dir: str | Path | None = None) -> list[Found]:
    """Take every file in a folder, and in those below it, whose sha256, md5 or git blob a record states.

    Names play no part. Weights, assets and lists of training images get into the cache as a download does; no record
    changes.

    Args:
        folder: Which folder. Its files stay where they are.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        DownloadError: The cache cannot take a file.
        CheckpointFormatError: The folder has no files.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if not paths:
        raise CheckpointFormatError(f"{folder} has no files: a folder of weight files is expected")
    clear_leftovers(cache_dir)
    known = find_needed((), cache_dir, imported=False)
    return [_import(path.absolute(), known, cache_dir) for path in paths]


def check_found(folder: str | Path, found: Sequence[Found]) -> None:
    """Raise `ZooError` where a file is damaged, or none is known."""
    counts = Counter(each.verdict for each in found)
    if counts[DAMAGED]:
        raise ZooError(f"{folder}: {counts[DAMAGED]} file(s) are damaged; fetch them anew")
    if counts[UNKNOWN] == len(found):
        raise ZooError(
            f"{folder}: no record has the digest of any of its {len(found)} file(s). `zoo import MODEL.TAG FILE` "
            "takes one of your own, or one whose digest nobody has published"
        )


def _import(path: Path, known: Sequence[NeededFile], cache_dir: str | Path | None) -> Found:
    size = path.stat().st_size
    may_be = [each for each in known if each.file.digests and each.file.bytes in (None, size)]
    try:
        digests = digests_of(path, {kind for each in may_be for kind in each.file.digests}) if may_be else {}
    except OSError as error:
        return Found(path, DAMAGED, f"it cannot be read: {error.strerror}")
    right = [each for each in may_be if not difference(each.file.digests, digests)]
    if not right:
        return _explained(path, known, digests)
    titles = "; ".join(each.title for each in right)
    if all(is_ready_offline(each.file, cache_dir, sources=False) for each in right):
        return Found(path, HERE, titles)
    for each in right:
        take(each.file, path, request=each.title, cache_dir=cache_dir)
    return Found(path, TAKEN, titles)


def _explained(path: Path, known: Sequence[NeededFile], digests: dict[str, str]) -> Found:
    """Say why a file was not taken. It is damaged where a record has its size, or the digest that it is named by."""
    size = path.stat().st_size
    for each in known:
        file, target = each.file, file_path(each.file)
        named = bool(file.sha256) and path.name == target.name
        if named and file.bytes not in (None, size):
            return Found(path, DAMAGED, f"it is named as {each.title}, which has {file.bytes:,} bytes, not {size:,}")
        if file.digests and (named or file.bytes == size):
            problem = difference(file.digests, digests)
            return Found(path, DAMAGED, f"it has the {'name' if named else 'size'} of {each.title}, but its {problem}")
        if file.sources and not file.digests and path.name in (target.name, file.filename):
            way = f"copy it to {target}" if each.what == LIST else f"`zoo import {each.names[0]} FILE` takes it"
            return Found(path, UNKNOWN, f"perhaps {each.title}, of which nobody has published a digest: {way}")
    return Found(path, UNKNOWN, "no record has its digest")
