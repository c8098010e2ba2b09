"""`zoo import`: a checkpoint of the user's own becomes loadable by name."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.cache import hash_file
from zoo.download import fetch
from zoo.entry import Entry
from zoo.errors import CheckpointFormatError, OptionError
from zoo.formats import open_checkpoint
from zoo.loading import load_model
from zoo.manifest import RemoteFile, WeightsFile, packaged_manifest, read_manifest, records, user_manifest
from zoo.registry import get_entry, split_name

DEFAULT_TAG = "imported"


def import_weights(
    name: str, file: str | Path, *, size: int | None = None, cache_dir: str | Path | None = None
) -> WeightsFile:
    """Check that a file fills a model, copy it into the cache, and record it in `$ZOO_HOME/manifest.json`.

    From then on `load_model` finds it under the name, before the records that ship with the package. A file whose
    digest is on record keeps what the record says of it (tag, licences, who trained it); any other was trained by the
    user.

    Args:
        name: `MODEL` or `MODEL.TAG`; without a tag, the one on record for the digest, else "imported".
        file: Any form of checkpoint that `load_model(MODEL, checkpoint=...)` takes.
        size: Side of the images the file was trained on, where it is not the entry's. What the recipes export says
            it itself.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: The tag is no tag, or stands for weights of the zoo that are another file.
        CheckpointFormatError: There is no such file.
        CheckpointMismatchError: The file does not fill the model.
    """
    entry = get_entry(name)
    source = Path(file).absolute()
    if not source.is_file():
        raise CheckpointFormatError(f"cannot import {file} as {name!r}: there is no such file")
    load_model(entry.name, checkpoint=source)
    digest = hash_file(source)
    known = next((r for r in records(entry.name, cache_dir) if r.sha256 == digest), None)
    tag = split_name(name)[1] or (known.tag if known else DEFAULT_TAG)
    _check_tag(entry.name, tag, digest)
    record: dict[str, Any] = {
        **(_facts(known) if known else {"trained_by": "user", "input": _input_of(entry, source, size)}),
        "tag": tag,
        "models": [entry.name],
        "state": "hosted",
        "sources": [f"file:{source}"],
        "bytes": source.stat().st_size,
        "sha256": digest,
    }
    kept = RemoteFile((f"file:{source}",), record["bytes"], digest)
    fetch(kept, request=f"{entry.name}.{tag}", cache_dir=cache_dir, progress=False)
    manifest = user_manifest(cache_dir)
    _put_first(record, manifest)
    return next(r for r in read_manifest(manifest) if r.tag == tag and entry.name in r.models)


def _check_tag(model: str, tag: str, digest: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag):
        raise OptionError(f"{tag!r} cannot be a tag: expected letters, digits, dots, dashes and underscores")
    ours = next((r for r in read_manifest(packaged_manifest()) if r.tag == tag and model in r.models), None)
    if ours and ours.sha256 and ours.sha256 != digest:
        raise OptionError(
            f"{model}.{tag} stands for weights of the zoo with sha256 {ours.sha256}, the file has {digest}: "
            f"import it under another tag, for example {model}.mine"
        )


def _facts(known: WeightsFile) -> dict[str, Any]:
    """What is on record of a file, as a manifest has it."""
    facts = {f.name: getattr(known, f.name) for f in fields(known) if f.name not in ("base", "default", "assets")}
    assets = {
        name: {"sources": list(asset.sources), "bytes": asset.bytes, "sha256": asset.sha256}
        for name, asset in known.assets.items()
    }
    return {key: value for key, value in (facts | {"assets": assets}).items() if value}


def _input_of(entry: Entry, source: Path, size: int | None) -> dict[str, Any]:
    """The input that a file was trained on: as the user says, else as its header says, else the entry's."""
    if size is None:
        stored: dict[str, Any] = json.loads(open_checkpoint(source).metadata.get("input", "{}"))
        return stored
    if size < 1:
        raise OptionError(f"size={size}: expected the side of the images in pixels")
    published = entry.preprocessing
    if len(published.size) != 2:
        raise OptionError(f"size={size} for {entry.name!r}: it takes volumes, whose size follows from their grid")
    resize = published.resize and round(published.resize * size / min(published.size))
    return {"size": [size] * len(published.size), "resize": resize}


def _put_first(record: dict[str, Any], manifest: Path) -> None:
    """Write the record at the head of a manifest, in place of an earlier one of this model and tag."""
    present = json.loads(manifest.read_text("utf-8"))["weights"] if manifest.is_file() else []
    rest = [r for r in present if (r["tag"], r["models"]) != (record["tag"], record["models"])]
    temporary = manifest.with_name(f"{manifest.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(json.dumps({"schema": 1, "weights": [record, *rest]}, indent=2) + "\n", "utf-8")
    os.replace(temporary, manifest)
