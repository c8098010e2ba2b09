"""Finds the weight file of a request on this machine: the user's, or the verified one of a name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from zoo.checkpoint import (
    HEADER,
    NAMES,
    as_counts,
    check_values,
    convert,
    export_safetensors,
    faults,
    left_out,
    settle,
    without_guesses,
)
from zoo.entry import Config, Entry, State
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError
from zoo.fetching import (
    clear_leftovers,
    converted_path,
    fetch,
    fetch_hub,
    file_path,
    hash_file,
    is_hub,
    make_folder,
    mark_finite,
    proven_digest,
    read_stamp,
    share,
    stamp_path,
    write_stamp,
)
from zoo.files import user_path
from zoo.formats import SAFETENSORS, StoredState, is_of_recipe, open_checkpoint, other_float, told
from zoo.messages import printable
from zoo.record import WeightsFile
from zoo.registry import Resolved, entries
from zoo.version import __version__

log = logging.getLogger("zoo")

_NOTE = "converted"
"""The only entry in a copy's header, so that all copies have equal bytes: JSON of what the file itself stated."""


_WITH_LABELS = ("classify", "regress", "segment")
"""Tasks in the header of a file, see `zoo.formats.header`, that no pre-training has."""
_FIRST_COPY = "nothing but the first copy that this cache had, for nobody has published a digest"


@dataclass(frozen=True)
class Located:
    """A weight file on this machine."""

    path: Path
    source: str
    record: WeightsFile | None = None
    """None for the user's file."""
    sha256: str | None = None
    proved_by: str = ""
    """What proved the file where no sha256 is on record, see `fetching`."""
    converted: bool = False
    """Whether `path` is the safetensors copy that was made of the file."""
    are_finite: bool = False
    """Whether the values are known to be finite, from when they were all read."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The record's options of the network."""
        return self.record.options if self.record else {}

    def dropped(self, stored: StoredState) -> dict[str, str]:
        """The tensors that were left out of the copy, and why."""
        return _note(stored)["dropped"] if self.converted else {}

    def said(self, stored: StoredState) -> Mapping[str, Any]:
        """The options in the file's header that names and shapes do not tell, see `checkpoint.settling`."""
        return {**stored.options, **_note(stored)["options"]}

    def remark(self, entry: Entry, stored: StoredState, facts: Config) -> str:
        """A sentence on what else the file is, from `convert` or its header; of a copy, what was said of the file."""
        return str(_note(stored).get("remark", "")) if self.converted else _remark(entry, stored, facts)

    def facts(self) -> dict[str, Any]:
        """Fields of the report."""
        origin = {"source": self.source, "sha256": self.sha256}
        if self.record is None:
            note = f"file proved by {self.proved_by}" if self.proved_by else ""
            return {"tag": "", "trained_by": "user", "note": note, **origin}
        note = self.record.sha256_note if self.record.sha256 else f"file proved by {self.proved_by or _FIRST_COPY}"
        return {"tag": self.record.tag, "trained_by": self.record.trained_by, "note": note, **origin}


def find_file(wanted: Resolved, checkpoint: str | Path | None, *, offline: bool | None, progress: bool) -> Located:
    """Find the file that a request is for.

    Args:
        wanted: What the name stands for.
        checkpoint: The user's file, which is neither verified nor converted, or an address of the hub, which is
            verified; None for the one on record, which is both: fetched where it is not in the cache, and a float32
            safetensors copy made of anything else.
        offline: Whether connections are forbidden; see `is_offline`.
        progress: Whether to draw a progress bar.

    Raises:
        WeightsUnavailableError: No weights can be had under this name.
        DownloadError: The file could not be fetched; `OfflineError`, `IntegrityError` for these causes.
        OptionError: `checkpoint` is not a path.
    """
    if checkpoint is not None:
        return _own(checkpoint, wanted.cache_dir, offline=offline, progress=progress)
    record, cache_dir = wanted.weights, wanted.cache_dir
    fetched = fetch(record, request=wanted.name, cache_dir=cache_dir, offline=offline, progress=progress)
    located = Located(fetched.path, fetched.source or str(fetched.path), record, fetched.sha256, fetched.proved_by)
    return _converted(wanted.entry, located, cache_dir)


def of_hub(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: bool = False,
) -> tuple[str, str | Path | None]:
    """Return the model and the file for an address of the hub in a name's place; any other name as it is.

    Args:
        name: `hf://owner/name@revision`, of whose file the header names the model.
        checkpoint: The file that was given beside the name.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        offline: Whether connections are forbidden; see `is_offline`.
        progress: Whether to draw a progress bar.

    Raises:
        OptionError: A file was given beside an address.
        CheckpointFormatError: The file does not say which model of the zoo it is of.
        DownloadError: It cannot be fetched; `OfflineError`, `IntegrityError` for these causes.
    """
    if not is_hub(name):
        return name, checkpoint
    if checkpoint is not None:
        raise OptionError(f"{name!r} is a model and its file; checkpoint={str(checkpoint)!r} is a second one")
    found = fetch_hub(fspath(name), cache_dir, offline=offline, progress=progress)
    model = open_checkpoint(found.path).metadata.get("model", "")
    if model not in entries():
        said = f"names {printable(model)!r}, which the zoo does not have" if model else "has no header that names one"
        raise CheckpointFormatError(
            f"{found.source} does not say which model of the zoo it is of: it {said}, as what `zoo export --to-hub` "
            f"wrote does. Name the model: load_model(MODEL, checkpoint={found.address!r}); `zoo inspect "
            f"{found.address}` says which fit"
        )
    return model, found.address


def _own(checkpoint: str | Path, cache_dir: str | Path | None, *, offline: bool | None, progress: bool) -> Located:
    if is_hub(checkpoint):
        found = fetch_hub(fspath(checkpoint), cache_dir, offline=offline, progress=progress)
        return Located(found.path, found.source, None, found.sha256, found.proved_by)
    if not isinstance(checkpoint, (str, PathLike)):  # a state dict has megabytes of words
        raise OptionError(
            f"checkpoint= is a {type(checkpoint).__name__}: expected the path of a file on this machine. Save it, "
            "or a state dict of the network's own names goes into load_model(..., pretrained=False) by load_state_dict"
        )
    if "://" in str(checkpoint):
        raise OptionError(f"checkpoint={checkpoint!r}: expected the path of a file on this machine")
    path = user_path(checkpoint)
    return Located(path, str(path))


def _converted(entry: Entry, located: Located, cache_dir: str | Path | None) -> Located:
    """Return the float32 safetensors copy of a verified file, made now if there is none and it would load faster.

    The file itself is returned where it is as fast to load, and where no copy can be made.
    """
    copy = converted_path(str(located.sha256), entry.name, cache_dir)
    stamp = read_stamp(stamp_path(copy))
    if stamp is not None and stamp.zoo == __version__ and proven_digest(copy) is not None:
        return replace(located, path=copy, converted=True, are_finite=True)
    stored = open_checkpoint(located.path)
    if stored.format == SAFETENSORS and not any(map(other_float, stored.tensors.values())):
        return replace(located, are_finite=_are_finite(stored, located, cache_dir))
    try:
        state, facts = convert(entry, stored.tensors)
    except CheckpointMismatchError:
        return located  # not this model's, as the load that follows says in full
    if state.keys().isdisjoint((entry.stem, *entry.side_stems)):
        return located
    try:
        make_folder(copy.parent)
        clear_leftovers(cache_dir)
        write_converted(entry, stored, state, facts, copy)
        share(copy)
        stat = copy.stat()  # before hashing: another process may replace it by its own, equal copy
        write_stamp(copy, sha256=hash_file(copy), source=located.source, stat=stat)
    except OSError as error:
        log.info("%s is read as it is: %s", located.path, error)
        return located
    return replace(located, path=copy, converted=True, are_finite=True)


def _are_finite(stored: StoredState, located: Located, cache_dir: str | Path | None) -> bool:
    """Whether all values of a verified file are finite; read once, then remembered by its stamp."""
    stamp = stamp_path(file_path(located.record, cache_dir)) if located.record else None
    known = read_stamp(stamp) if stamp else None
    if known and known.finite:
        return True
    if faults(stored.values()):
        return False
    if stamp:
        mark_finite(stamp)
    return True


def _note(stored: StoredState) -> dict[str, Any]:
    """The note in a copy's header: what was dropped from its file, the options stated there, and a remark.

    Raises:
        CheckpointFormatError: The note has another form.
    """
    note: dict[str, Any] = {"dropped": {}, "options": {}} | told(stored.metadata, _NOTE, dict, stored.path)
    if not all(isinstance(note[key], dict) for key in ("dropped", "options")):
        raise CheckpointFormatError(f"{stored.path} has an entry {_NOTE!r} in its header that the zoo did not write")
    return note


def _remark(entry: Entry, stored: StoredState, facts: Config) -> str:
    """A sentence on what else a file is: what `convert` says, else a recipe's header of a training with labels."""
    task = stored.metadata.get("task")
    if "remark" in facts or not entry.is_encoder or task not in _WITH_LABELS or not is_of_recipe(stored.metadata):
        return str(facts.get("remark", ""))
    return (
        f"its header says that it learnt to {task} with labels: its features are not those of the self-supervised "
        "pre-training"
    )


def write_converted(entry: Entry, stored: StoredState, state: State, facts: Config, target: Path) -> None:
    """Write what `convert` made of a file as safetensors, with a note of what it left out and what else it says.

    Values are checked.

    Args:
        entry: Whose `convert` it was.
        stored: The file.
        state: What was kept of its tensors; emptied on the way.
        facts: What only the file knows.
        target: The file to write.

    Raises:
        CheckpointFormatError: A value is not finite, or not what was written.
        CheckpointMismatchError: The header of the file contradicts the names in it.
        OSError: It cannot be written.
    """
    if stored.mapped:  # else they are read, and compared, below
        stored.check_records(state)
    said = without_guesses(*settle(entry, {HEADER: stored.options, NAMES: facts}, {}))
    said_of_it = {"remark": remark} if (remark := _remark(entry, stored, facts)) else {}
    note = json.dumps({"dropped": left_out(stored.tensors, state, entry.unused), "options": said, **said_of_it})
    values = stored.read(state)
    as_counts(values)
    check_values(values, stored.path)
    config = {**entry.config, **facts}
    for name, why in (entry.correct(values, config) if entry.correct else {}).items():
        log.debug("%s: %s", name, why)
    export_safetensors(values, target, metadata={_NOTE: note})
