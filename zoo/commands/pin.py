"""Completes a record of a manifest from the file itself: size, sha256, and the commits of its sources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from zoo.errors import OptionError
from zoo.fetching import fetch, state_of
from zoo.files import read_text, write_text
from zoo.manifest import packaged_manifest
from zoo.messages import printable
from zoo.record import WeightsFile, read_manifest
from zoo.registry import get_entry, split_name

_COMMIT = re.compile(r"hf://[^/@]+/[^/@]+@[0-9a-f]{40}/")


@dataclass(frozen=True)
class Pinned:
    """What `pin_record` wrote."""

    manifest: Path
    changes: dict[str, Any]
    """Field of the record -> its new value; empty where the record was complete."""


def pin_record(
    name: str, manifest: str | Path | None = None, *, cache_dir: str | Path | None = None, progress: bool = True
) -> Pinned:
    """Fetch the file of a record and write its size, its sha256 and the commits of its sources into the manifest.

    A digest that the record has must hold, and stays. The rest of the manifest keeps every character.

    Args:
        name: `MODEL.TAG`.
        manifest: The manifest to change; None for the one of this checkout.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        progress: Whether to draw a progress bar, on a terminal.

    Raises:
        OptionError: The name has no tag, the manifest has no such record, or its text is laid out in another way.
        DownloadError: No source gave the file; `IntegrityError` where all gave another than is on record.
    """
    path = Path(manifest) if manifest else packaged_manifest()
    model, tag = split_name(name)
    if not tag:
        raise OptionError(f"{name!r}: expected MODEL.TAG, the weights whose record is to be completed")
    record = _record(get_entry(model).name, tag, path)
    fetched = fetch(record, request=name, cache_dir=cache_dir, offline=False, progress=progress)
    sources = [_at_commit(source, record, fetched.sha256) for source in record.sources]
    found = {"sources": sources, "bytes": fetched.path.stat().st_size, "sha256": fetched.sha256}
    changes = {key: value for key, value in found.items() if value != _as_json(getattr(record, key))}
    if "sha256" in changes:
        proof = f", and has {fetched.proved_by}" if fetched.proved_by else ""
        changes["sha256_note"] = f"of the file that {fetched.source} gave on {date.today().isoformat()}{proof}"
    if changes:
        write_text(path, _edited(read_text(path), path, model, tag, changes))
        read_manifest(path)  # as everybody will
    return Pinned(path, changes)


def _record(model: str, tag: str, manifest: Path) -> WeightsFile:
    for record in read_manifest(manifest):
        if record.tag == tag and model in record.models:
            return record
    raise OptionError(f"{manifest} has no record of {model}.{printable(tag)}; `zoo pin --manifest FILE` names another")


def _at_commit(source: str, record: WeightsFile, sha256: str) -> str:
    """A source of the hub with the commit in place of a branch, a tag or a short commit; any other as it is.

    What the hub states of the file at that commit must be the digest of the file that was fetched, which may have come
    from the cache, or from another source.
    """
    if not source.startswith("hf://") or _COMMIT.match(source):
        return source
    commit = state_of(source, record.base).revision
    if not commit:
        raise OptionError(f"{source}: the hub does not name the commit that this revision stands for")
    fixed = re.sub(r"@[^/]+/", f"@{commit}/", source, count=1)
    stated = state_of(fixed, record.base).digests.get("sha256")
    if stated != sha256:
        raise OptionError(
            f"{fixed}: the hub states {f'sha256 {stated}' if stated else 'no sha256'} of the file there, and the one "
            f"that was fetched has {sha256}. Remove it from the cache and pin again, or correct the source"
        )
    return fixed


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _edited(text: str, path: Path, model: str, tag: str, changes: dict[str, Any]) -> str:
    """Change fields of one record in the text of a manifest, each of which stands in a line of its own."""
    start, end = _span(text, model, tag)
    part, before = text[start:end], json.loads(text[start:end])
    for key, value in changes.items():
        line = re.search(rf'^      "{key}": (.*?)(,?)$', part, re.MULTILINE)
        if line:
            part = part[: line.start(1)] + json.dumps(value, ensure_ascii=False) + part[line.end(1) :]
    try:
        is_right = json.loads(part) == before | changes
    except ValueError:
        is_right = False
    if not is_right:
        raise OptionError(
            f"{path}: the record {tag!r} is laid out in another way than its neighbours, so that it is left as it is. "
            f"Write by hand: {json.dumps(changes, ensure_ascii=False)}"
        )
    return text[:start] + part + text[end:]


def _span(text: str, model: str, tag: str) -> tuple[int, int]:
    """Where the text of a record begins and ends."""
    decoder, position = json.JSONDecoder(), text.index("[", text.index('"weights"')) + 1
    while (position := text.find("{", position)) >= 0:
        raw, end = decoder.raw_decode(text, position)
        if raw.get("tag") == tag and model in raw.get("models", []):
            return position, end
        position = end
    raise OptionError(f"the manifest has no record of {model}.{tag}")
