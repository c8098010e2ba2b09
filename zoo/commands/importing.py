"""Makes the user's checkpoint loadable by name, for `zoo import`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.checkpoint import convert, fingerprint, load_report, refuse_other_family, without_guesses
from zoo.commands.import_rules import (
    check_default,
    check_fingerprint,
    check_head,
    check_tag,
    facts_in_header,
    facts_on_record,
    resized_input,
)
from zoo.commands.imported import imported_record, put_record
from zoo.entry import Config, Entry, State
from zoo.errors import DownloadError, IntegrityError, OfflineError, ZooError
from zoo.fetching import clear_leftovers, fetch, file_path, hash_file, local_file, write_stamp
from zoo.files import temporary_beside
from zoo.formats import StoredState, open_checkpoint
from zoo.loading import load_model
from zoo.locate import write_converted
from zoo.manifest import input_for, record_with_digest, record_with_tag
from zoo.messages import printable
from zoo.policy import lifted
from zoo.record import RemoteFile, WeightsFile
from zoo.registry import get_entry, split_name
from zoo.settings import cache_home

log = logging.getLogger("zoo")

DEFAULT_TAG = "imported"


def import_weights(
    name: str,
    file: str | Path,
    *,
    size: int | None = None,
    num_classes: int | None = None,
    default: bool = False,
    cache_dir: str | Path | None = None,
) -> WeightsFile:
    """Check that a file fills a model, copy it into the cache, and record it in `$ZOO_HOME/manifest.json`.

    From then on `load_model` finds it under its full name. What the plain name loads stays what it was, unless
    `default` says otherwise. A file whose digest is on record, or that is imported under a tag on record, keeps what
    the record says of it (licences, assets, input, who trained it); any other was trained by the user. Where nobody
    has published a digest, that of the first file imported under the tag is kept, and the record says on whose word.

    Args:
        name: `MODEL` or `MODEL.TAG`; without a tag, the one on record for the digest, else "imported".
        file: Any form of checkpoint that `load_model(MODEL, checkpoint=...)` takes. A TensorFlow checkpoint becomes one
            file of safetensors.
        size: Side of the images the file was trained on, where it is not the entry's. What the recipes save says it
            itself.
        num_classes: Outputs of the file's head, where neither its shape nor a header says what they are.
        default: Whether the model's name without a tag is to load this file from now on.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: The tag is malformed, or stands for another file of the zoo's; or a file with a task head is to be
            an encoder's default.
        CheckpointFormatError: There is no such file, or it is no checkpoint that can be read.
        CheckpointMismatchError: The file does not fill the model, or is not what is on record for the tag.
    """
    entry = get_entry(name)
    source = local_file(file, cache_dir, progress=True).absolute()
    clear_leftovers(cache_dir)
    published = record_with_tag(entry.name, split_name(name)[1], cache_dir, imported=False)
    request = f"{entry.name}.{published.tag}" if published else entry.name
    with lifted():
        report = load_report(load_model(request, checkpoint=source, num_classes=num_classes, cache_dir=cache_dir))
    check_head(entry, report, source, num_classes)
    options = without_guesses(report.options, report.said_by)
    stored = open_checkpoint(source)
    state, config = convert(entry, stored.tensors)
    network = fingerprint(state)
    with _as_one_file(entry, stored, state, config, cache_dir) as single:
        digest = hash_file(single)
        refuse_other_family(entry, stored, cache_dir, sha256=digest)
        known = record_with_digest(entry.name, digest, cache_dir)
        tag = split_name(name)[1] or (known.tag if known else DEFAULT_TAG)
        check_tag(entry.name, tag, single, digest, cache_dir)
        earlier = imported_record(entry.name, tag, cache_dir)
        asked = _Import(entry, tag, stored, config, network, single, digest, earlier, cache_dir)
        record = _put(asked, options, size, default)
    _bring_assets(record, source, cache_dir)
    return record


@dataclass(frozen=True)
class _Import:
    """A file that is known to load, and the tag that it is imported under."""

    entry: Entry
    tag: str
    stored: StoredState
    """The user's file, opened."""
    config: Config
    """What only the file knows of its network."""
    fingerprint: str
    """Names and shapes of the network's tensors."""
    single: Path
    """The same weights in one file, which is `source` itself where that is one."""
    sha256: str
    """Digest of `single`."""
    earlier: WeightsFile | None
    """The record of an earlier import under this tag."""
    cache_dir: str | Path | None

    @property
    def name(self) -> str:
        """The name that loads it."""
        return f"{self.entry.name}.{self.tag}"

    @property
    def source(self) -> Path:
        """The user's file, or what stands for the several files of a TensorFlow checkpoint."""
        return self.stored.path

    @property
    def is_copy(self) -> bool:
        """Whether the one file was made of several, so that its copy in the cache is all that stays."""
        return self.single != self.source


def _put(asked: _Import, options: Mapping[str, Any], size: int | None, default: bool) -> WeightsFile:
    """Copy a file into the cache and record it."""
    facts = facts_on_record(asked.entry.name, asked.tag, asked.sha256, asked.source, asked.cache_dir)
    check_fingerprint(asked.name, asked.entry, asked.fingerprint, facts)
    if "provenance" not in facts:
        facts = facts_in_header(asked.stored, asked.config) | facts
    is_default = default or (asked.earlier is not None and asked.earlier.default)
    if is_default:
        check_default(asked.entry, asked.tag, asked.config)
    own: dict[str, Any] = {
        "tag": asked.tag,
        "models": [asked.entry.name],
        "state": "hosted",
        "default": is_default,
        "sha256": asked.sha256,
        "bytes": asked.single.stat().st_size,
        "input": _imported_input(asked, size, facts),
        "sources": [_keep(asked)],
    }
    if options:
        own["options"] = {**facts.get("options", {}), **options}
    if asked.is_copy:
        own["provenance"] = {**facts.get("provenance", {}), "file": str(asked.source)}
    put_record(facts | own, asked.cache_dir, first=default or asked.earlier is None)
    _keep(asked)  # again: whoever removed the file of an earlier record may have removed this one
    record = imported_record(asked.entry.name, asked.tag, asked.cache_dir)
    if record is None:
        raise ZooError(f"{asked.name} was removed while it was imported; import it again")
    return record


def _keep(asked: _Import) -> str:
    """Copy the one file into the cache, and return the source that its record names."""
    kept = RemoteFile((f"file:{asked.single}",), asked.single.stat().st_size, asked.sha256)
    fetch(kept, request=asked.name, cache_dir=asked.cache_dir, offline=True, progress=False)
    if not asked.is_copy:
        return f"file:{asked.source}"
    path = file_path(kept, asked.cache_dir)
    write_stamp(path, sha256=asked.sha256, source=f"file:{asked.source}")  # not the temporary file
    return f"file:{path}"


def _bring_assets(record: WeightsFile, source: Path, cache_dir: str | Path | None) -> None:
    """Take what belongs to the weights from beside the file, without a connection; say what is left to fetch."""
    name = f"{record.models[0]}.{record.tag}"
    for what, asset in record.assets.items():
        beside = source.parent / asset.filename
        asset = replace(asset, sources=(f"file:{beside}", *asset.sources)) if beside.is_file() else asset
        try:
            fetch(asset, request=name, cache_dir=cache_dir, offline=True, progress=False)
        except (DownloadError, IntegrityError, OfflineError):
            log.warning(
                "%s also needs its %s, %s: it is fetched on first use, or now by `zoo download %s`; on a "
                "machine without connections put it beside the file and import the file again",
                name,
                what,
                printable(asset.filename),
                name,
            )


@contextmanager
def _as_one_file(
    entry: Entry, stored: StoredState, state: State, config: Config, cache_dir: str | Path | None
) -> Iterator[Path]:
    """The file itself; for a TensorFlow checkpoint, which is several, a temporary one with its tensors."""
    if stored.files == (stored.path,):
        yield stored.path
        return
    home = cache_home(cache_dir)
    home.mkdir(parents=True, exist_ok=True)
    with temporary_beside(home / "import.safetensors") as single:
        write_converted(entry, stored, state, config, single)
        yield single


def _imported_input(asked: _Import, size: int | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The input that a file was trained on: as the user says, else as its header, else as the record says.

    What the user said when the same file was imported before under this tag still holds.
    """
    said = {} if size is None else resized_input(asked.entry, size)
    if asked.earlier and asked.earlier.sha256 == asked.sha256:
        return {**asked.earlier.input, **said}
    stated = input_for(asked.entry.name, asked.stored.input)
    return {**(stated or facts.get("input", {})), **said}
