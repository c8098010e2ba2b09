"""Completes a record of a manifest from the file itself: size, sha256, and the commits of its sources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import DownloadError, OptionError
from zoo.fetching import fetch, is_on_this_machine, state_of
from zoo.files import read_text, write_text
from zoo.manifest import packaged_manifest
from zoo.messages import printable
from zoo.record import WeightsFile, read_manifest
from zoo.registry import get_entry, split_name

if TYPE_CHECKING:
    from zoo.fetching import Fetched

_COMMIT = re.compile(r"hf://[^/@]+/[^/@]+@[0-9a-f]{40}/")


@dataclass(frozen=True)
class Pinned:
    """What `pin_record` wrote."""

    manifest: Path
    changes: dict[str, Any]
    """Field of the record -> its new value; empty where the record was complete."""
    unreached: dict[str, str]
    """Source that was left as it is -> why nothing could be learnt of it."""


def pin_record(
    name: str, manifest: str | Path | None = None, *, cache_dir: str | Path | None = None, progress: bool = True
) -> Pinned:
    """Fetch the file of a record and write its size, its sha256 and the commits of its sources into the manifest.

    A digest that the record has must hold, and stays. A source whose host does not answer stays as it is. The rest of
    the manifest keeps every character, its line ends too; of a link the file that it leads to is changed.

    Args:
        name: `MODEL.TAG`.
        manifest: The manifest to change; None for the one of this checkout.
        cache_dir: Cache folder; default `$ZOO_HOME`.
        progress: Whether to draw a progress bar, on a terminal.

    Raises:
        OptionError: The name has no tag, the manifest has no such record, or its text is laid out in another way.
        DownloadError: No source gave the file, or it was here and no host answers; `IntegrityError` where all gave
            another than is on record.
    """
    path = Path(manifest) if manifest else packaged_manifest()
    model, tag = split_name(name)
    if not tag:
        raise OptionError(f"{name!r}: expected MODEL.TAG, the weights whose record is to be completed")
    record = _record(get_entry(model).name, tag, path)
    was_here = is_on_this_machine(record, cache_dir)
    fetched = fetch(record, request=name, cache_dir=cache_dir, offline=False, progress=progress)
    sources, unreached = _at_commits(record, fetched.sha256, none_asked=was_here)
    found = {"sources": sources, "bytes": fetched.path.stat().st_size, "sha256": fetched.sha256}
    changes = {key: value for key, value in found.items() if value != _as_json(getattr(record, key))}
    if "sha256" in changes:
        changes["sha256_note"] = _note(record, fetched)
    if changes:
        write_text(path.resolve(), _edited(read_text(path, newline=""), path, model, tag, changes), newline="")
        read_manifest(path)  # as everybody will
    return Pinned(path, changes, unreached)


def _note(record: WeightsFile, fetched: Fetched) -> str:
    """On whose word the digest is; what stood there before may hold more than that it was unknown."""
    proof = f", and has {fetched.proved_by}" if fetched.proved_by else ""
    before = f"; before: {record.sha256_note}" if record.sha256_note else ""
    return f"of the file that {fetched.source} gave on {date.today().isoformat()}{proof}{before}"


def _record(model: str, tag: str, manifest: Path) -> WeightsFile:
    for record in read_manifest(manifest):
        if record.tag == tag and model in record.models:
            return record
    raise OptionError(f"{manifest} has no record of {model}.{printable(tag)}; `zoo pin --manifest FILE` names another")


def _at_commits(record: WeightsFile, sha256: str, *, none_asked: bool) -> tuple[list[str], dict[str, str]]:
    """The sources with their commits, and those whose host does not answer with the reason.

    Args:
        record: Of the file.
        sha256: Of the file that was fetched.
        none_asked: Whether it was on this machine, so that no host has answered yet.

    Raises:
        DownloadError: No host answers.
    """
    sources, unreached, answers = [], {}, 0
    for source in record.sources:
        try:
            fixed = _at_commit(source, record, sha256)
        except DownloadError as error:
            sources.append(source)
            unreached[source] = str(error)
            continue
        sources.append(fixed)
        answers += fixed != source
    if unreached and none_asked and not answers:
        raise DownloadError(
            "no host answers, and the file was on this machine already, so that nothing can be checked: "
            f"{'; '.join(unreached.values())}"
        )
    return sources, unreached


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
        written = json.dumps(value, ensure_ascii=False)
        if line := _line(part, key):
            part = part[: line.start(1)] + written + part[line.end(1) :]
        elif line := _line(part, "sha256"):  # which each record has, and the note stands below it
            part = f'{part[: line.end(1)]},{line[3]}\n      "{key}": {written}{part[line.end(1) :]}'
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


def _line(part: str, key: str) -> re.Match[str] | None:
    """The line of a field: its value, a comma, and what of its end is before the line feed."""
    return re.search(rf'^      "{key}": (.*?)(,?)(\r?)$', part, re.MULTILINE)


def _span(text: str, model: str, tag: str) -> tuple[int, int]:
    """Where the text of a record begins and ends."""
    decoder, position = json.JSONDecoder(), text.index("[", text.index('"weights"')) + 1
    while (position := text.find("{", position)) >= 0:
        raw, end = decoder.raw_decode(text, position)
        if raw.get("tag") == tag and model in raw.get("models", []):
            return position, end
        position = end
    raise OptionError(f"the manifest has no record of {model}.{tag}")
