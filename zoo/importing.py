"""`zoo import`: a checkpoint of the user's own becomes loadable by name."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.cache import hash_file
from zoo.download import fetch
from zoo.errors import CheckpointFormatError
from zoo.loading import load_model
from zoo.manifest import RemoteFile, WeightsFile, read_manifest, records, user_manifest
from zoo.registry import get_entry, split_name

DEFAULT_TAG = "imported"


def import_weights(name: str, file: str | Path, *, cache_dir: str | Path | None = None) -> WeightsFile:
    """Check that a file fills a model, copy it into the cache, and record it in `$ZOO_HOME/manifest.json`.

    From then on `load_model` finds it under the name, before the records that ship with the package. A file whose
    digest is on record keeps what the record says of it (tag, licences, who trained it); any other was trained by the
    user.

    Args:
        name: `MODEL` or `MODEL.TAG`; without a tag, the one on record for the digest, else "imported".
        file: Any form of checkpoint that `load_model(MODEL, checkpoint=...)` takes.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
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
    facts = asdict(known) if known else {"trained_by": "user"}
    record: dict[str, Any] = {
        **{key: value for key, value in facts.items() if key not in ("base", "default") and value},
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


def _put_first(record: dict[str, Any], manifest: Path) -> None:
    """Write the record at the head of a manifest, in place of an earlier one of this model and tag."""
    present = json.loads(manifest.read_text("utf-8"))["weights"] if manifest.is_file() else []
    rest = [r for r in present if (r["tag"], r["models"]) != (record["tag"], record["models"])]
    temporary = manifest.with_name(f"{manifest.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(json.dumps({"schema": 1, "weights": [record, *rest]}, indent=2) + "\n", "utf-8")
    os.replace(temporary, manifest)
