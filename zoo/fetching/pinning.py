"""Pins digests that nobody has published: the first file used sets the digest, and later files must have it."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.fetching.cache import hash_file, read_stamp, stamp_path, write_stamp
from zoo.fetching.digests import difference, digests_of
from zoo.fetching.remote import Statement
from zoo.formats import SAFETENSORS, TORCH_LEGACY, TORCH_ZIP, sniff
from zoo.record import WeightsFile

if TYPE_CHECKING:
    from zoo.record import RemoteFile

log = logging.getLogger("zoo")


def recorded_digest(file: RemoteFile, target: Path) -> str | None:
    """The digest a file must have: the manifest's, else the one pinned in the stamp of `target`, its cached file."""
    pinned = None if file.sha256 else read_stamp(stamp_path(target))
    return file.sha256 or (pinned.sha256 if pinned else None)


def expected_digests(file: RemoteFile, target: Path) -> dict[str, str]:
    """All digests that a file must have, by kind: those of the manifest, and the sha256 pinned for its cached file."""
    pinned = recorded_digest(file, target)
    return file.digests | ({"sha256": pinned} if pinned else {})


def proof_of(file: RemoteFile, says: Statement | None = None) -> str:
    """What proves a file without a sha256 on record: another digest on record, or one that its host states."""
    if file.sha256:
        return ""
    if file.digests:
        return f"the {' and '.join(f'{kind} {digest}' for kind, digest in file.digests.items())} on record"
    return f"the {' and '.join(says.digests)} that {says.by} states" if says and says.digests else ""


def pin(file: RemoteFile, path: Path, target: Path) -> str | None:
    """Take the digest of a file of which none is on record, and put it on record in the stamp of `target`.

    Args:
        file: What it is a file of.
        path: The file; None is returned if it does not exist, cannot be read, or cannot be what `file` describes.
        target: Its path in the cache, which is `path` itself but for files that are read in place.
    """
    if not os.path.isfile(path) or not os.access(path, os.R_OK) or other_file(file, path) or misfit(file, path):
        return None
    stat = path.stat()
    digest, proof = hash_file(path), proof_of(file)
    if proof:
        log.info("%s has %s; from now on its sha256 must be %s", path, proof, digest)
    else:
        log.warning("no digest is on record for %s; from now on it must be %s", path, digest)
    stamp = None if path == target else stamp_path(target)
    write_stamp(path, sha256=digest, source="", proved_by=proof, stat=stat, stamp=stamp)
    return digest


def other_file(file: RemoteFile, path: Path) -> str:
    """Say how a file differs from a record without a sha256, by its size or another digest; empty where it does not."""
    if file.bytes is not None and (size := path.stat().st_size) != file.bytes:
        return f"its size is {size:,} bytes, not {file.bytes:,}"
    expected = {kind: digest for kind, digest in file.digests.items() if kind != "sha256"}
    return difference(expected, digests_of(path, expected)) if expected else ""


def misfit(file: RemoteFile, path: Path) -> str:
    """Say why a file cannot be the one that is sought, as far as its container tells; empty where it can.

    Only files that would be pinned are checked, and of these only weights. Torch is not needed.
    """
    if file.digests or not isinstance(file, WeightsFile):
        return ""
    kind = sniff(path)
    if kind == TORCH_ZIP:
        try:
            with zipfile.ZipFile(path) as archive:
                is_saved = any(name.endswith("data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, ValueError, LookupError, NotImplementedError, OSError, MemoryError):  # if damaged
            return "it begins like a PyTorch checkpoint, but is cut short"
        return "" if is_saved else "it is a zip archive that torch.save did not write"
    may_be = kind in (SAFETENSORS, TORCH_LEGACY) or kind.startswith("TensorFlow")
    return "" if may_be else f"it is a {kind}, not a checkpoint"


def why_unused(file: RemoteFile, target: Path) -> str:
    """Why the file at its path in the cache is not the one that is sought, and what may be done if it is."""
    if not os.access(target, os.R_OK):
        return "it cannot be read by this user"
    if problem := other_file(file, target) or misfit(file, target):
        return problem
    reason = f"its sha256 is not {recorded_digest(file, target)}"
    return reason if file.sha256 else f"{reason}; {unpinning(file, target)}"


def unpinning(file: RemoteFile, target: Path) -> str:
    """How to replace the first file that was used by another; empty where a digest is published."""
    if file.digests:
        return ""
    return (
        f"no digest of this file is published, so that of the first one used is kept in {stamp_path(target)}: "
        f"remove it to accept another file"
    )
