"""Tells a user's file from the weights of other families, where names and shapes of tensors do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint.export import fingerprint
from zoo.errors import CheckpointMismatchError
from zoo.fetching import hash_file
from zoo.manifest import published_records
from zoo.registry import entries
from zoo.tensor_names import strip_prefix

if TYPE_CHECKING:
    from zoo.entry import Entry, State
    from zoo.formats import StoredState
    from zoo.record import WeightsFile


def refuse_other_family(
    entry: Entry, stored: StoredState, cache_dir: str | Path | None = None, *, sha256: str | None = None
) -> None:
    """Refuse a file that is certainly another family's: its header says so, or its digest is on record.

    Args:
        entry: The model that is to be filled.
        stored: The file. It is hashed only where it has the size of another family's file.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        sha256: Its digest where that is known.

    Raises:
        CheckpointMismatchError: It is; the message names the right model.
    """
    theirs = entries().get(stored.metadata.get("model", ""))
    if theirs and theirs.family != entry.family:
        raise CheckpointMismatchError(
            f"the header of {stored.path} says that it is for {theirs.name!r}, not for {entry.name!r}. Name that model"
        )
    if record := _record_elsewhere(entry, stored, cache_dir, sha256):
        names = " or ".join(repr(f"{model}.{record.tag}") for model in record.models)
        raise CheckpointMismatchError(
            f"{stored.path} is the file of {names}, by its sha256 {record.sha256}, and not one of {entry.name!r}, "
            f"whatever the names in it fit. Load {names}; to start {entry.name!r} from its tensors all the same, save "
            "them as a separate file"
        )


def digest_of_known_size(stored: StoredState) -> str | None:
    """The digest of a file that has the size of one on record; None for any other, which is not hashed."""
    if stored.files != (stored.path,):
        return None
    size = stored.path.stat().st_size
    return hash_file(stored.path) if any(r.sha256 and r.bytes == size for r in published_records()) else None


def doubt(entry: Entry, stored: StoredState, state: State, said: str) -> str:
    """Return a sentence on other networks whose names and shapes a file has too; empty where there are none.

    Args:
        entry: The model that it fills.
        stored: The file.
        state: What `convert` made of it.
        said: What is said of the file already.
    """
    if stored.metadata.get("model") in entries():
        return ""
    names = [*_twins(entry, stored, state), *entry.namesakes]
    unsaid = [name for name in names if name not in said]
    return f"names and shapes do not tell it from {' or '.join(unsaid)}" if unsaid else ""


def _record_elsewhere(
    entry: Entry, stored: StoredState, cache_dir: str | Path | None, sha256: str | None
) -> WeightsFile | None:
    """The record of another family that has the digest of a file; None if this family has one with it, or no family."""
    if stored.files != (stored.path,):
        return None
    size = stored.path.stat().st_size
    known = [r for r in published_records(cache_dir) if r.sha256 and (r.bytes == size or (sha256 and r.bytes is None))]
    others = [record for record in known if entry.family not in _families(record)]
    if not others:
        return None
    digest = sha256 or hash_file(stored.path)
    found = [record for record in known if record.sha256 == digest]
    return found[0] if found and all(record in others for record in found) else None


def _families(record: WeightsFile) -> set[str]:
    return {entries()[model].family for model in record.models if model in entries()}


def _twins(entry: Entry, stored: StoredState, state: State) -> list[str]:
    """Models of other families on record, which published files fill by the same names and shapes.

    Their own `convert` has the last word: what stands beside a network may tell whose it is.
    """
    network = {name: tensor for name, tensor in state.items() if name.startswith(entry.required)}
    inside = [strip_prefix(network, entry.required[0])] if len(entry.required) == 1 else []
    prints = {fingerprint(part) for part in (network, *inside)}
    alike = [
        entries()[model]
        for record in published_records()
        for model, known in record.fingerprint.items()
        if known in prints and model in entries() and entries()[model].family != entry.family
    ]
    return list(dict.fromkeys(other.name for other in alike if _takes(other, stored)))


def _takes(entry: Entry, stored: StoredState) -> bool:
    try:
        entry.convert(stored.tensors)
    except CheckpointMismatchError:
        return False
    return True
