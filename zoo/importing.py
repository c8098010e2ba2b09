"""`zoo import` and `zoo remove`: a checkpoint of the user's own becomes loadable by name, and is forgotten again."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.cache import cache_home, converted_path, file_path, hash_file, stamp_path, write_stamp
from zoo.checkpoint import convert
from zoo.download import fetch
from zoo.entry import Entry
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError, UnknownModelError
from zoo.files import write_text
from zoo.formats import open_checkpoint
from zoo.loading import load_model
from zoo.locate import write_converted
from zoo.manifest import (
    RemoteFile,
    WeightsFile,
    input_for,
    manifests,
    packaged_manifest,
    read_manifest,
    records,
    user_manifest,
)
from zoo.registry import get_entry, split_name
from zoo.report import LoadReport, load_report
from zoo.tensorflow_bundle import find_bundle

DEFAULT_TAG = "imported"


def import_weights(
    name: str,
    file: str | Path,
    *,
    size: int | None = None,
    num_classes: int | None = None,
    cache_dir: str | Path | None = None,
) -> WeightsFile:
    """Check that a file fills a model, copy it into the cache, and record it in `$ZOO_HOME/manifest.json`.

    From then on `load_model` finds it under the name, before the records that ship with the package. A file whose
    digest is on record keeps what the record says of it (tag, licences, who trained it); any other was trained by the
    user.

    Args:
        name: `MODEL` or `MODEL.TAG`; without a tag, the one on record for the digest, else "imported".
        file: Any form of checkpoint that `load_model(MODEL, checkpoint=...)` takes. A TensorFlow checkpoint becomes one
            file of safetensors.
        size: Side of the images the file was trained on, where it is not the entry's. What the recipes save says it
            itself.
        num_classes: Outputs of the file's head, where neither its shape nor a header says what they are.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: The tag is no tag, or stands for weights of the zoo that are another file.
        CheckpointFormatError: There is no such file.
        CheckpointMismatchError: The file does not fill the model.
    """
    entry = get_entry(name)
    source = Path(file).absolute()
    if not source.is_file() and not find_bundle(source):
        raise CheckpointFormatError(f"cannot import {file} as {name!r}: there is no such file")
    report = load_report(load_model(entry.name, checkpoint=source, num_classes=num_classes))
    _check_head(entry, report, source, num_classes)
    facts = {"options": dict(report.options)} if entry.settled else {}
    with _as_one_file(entry, source, cache_dir) as single:
        return _import_file(entry, name, single, source, size, facts, cache_dir)


def _import_file(
    entry: Entry,
    name: str,
    single: Path,
    source: Path,
    size: int | None,
    facts: Mapping[str, Any],
    cache_dir: str | Path | None,
) -> WeightsFile:
    """Copy a file that is known to load and record it; `source` is what the user has, `facts` what is known of it."""
    digest = hash_file(single)
    known = next((r for r in records(entry.name, cache_dir) if r.sha256 == digest), None)
    tag = split_name(name)[1] or (known.tag if known else DEFAULT_TAG)
    _check_tag(entry.name, tag, digest)
    record: dict[str, Any] = {
        **(_facts(known) if known else {"trained_by": "user", "input": _input_of(entry, source, size, tag), **facts}),
        "tag": tag,
        "models": [entry.name],
        "state": "hosted",
        "sources": [f"file:{source}"],
        "bytes": single.stat().st_size,
        "sha256": digest,
    }
    kept = RemoteFile((f"file:{single}",), record["bytes"], digest)
    fetch(kept, request=f"{entry.name}.{tag}", cache_dir=cache_dir, progress=False)
    if single != source:
        write_stamp(file_path(kept, cache_dir), sha256=digest, source=record["sources"][0])  # not the temporary file
        record |= {"sources": [f"file:{file_path(kept, cache_dir)}"], "provenance": {"file": str(source)}}
    manifest = user_manifest(cache_dir)
    _put_first(record, manifest)
    return next(r for r in read_manifest(manifest) if r.tag == tag and entry.name in r.models)


@contextmanager
def _as_one_file(entry: Entry, source: Path, cache_dir: str | Path | None) -> Iterator[Path]:
    """The file itself; for a TensorFlow checkpoint, which is several, a temporary one with its tensors."""
    stored = open_checkpoint(source)
    if stored.files == (source,):
        yield source
        return
    home = cache_home(cache_dir)
    home.mkdir(parents=True, exist_ok=True)
    single = home / f"import.{secrets.token_hex(4)}.safetensors"
    try:
        write_converted(entry, stored, *convert(entry, stored.tensors), single)
        yield single
    finally:
        single.unlink(missing_ok=True)


def remove_weights(name: str, *, cache_dir: str | Path | None = None) -> WeightsFile:
    """Undo `import_weights`: take the record out of `$ZOO_HOME/manifest.json`, and the file out of the cache.

    A file that another record stands for stays. The user's own file, which was copied, is not touched.

    Args:
        name: `MODEL.TAG`, as it was imported.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Returns:
        The record that was removed.

    Raises:
        UnknownModelError: No such model, or nothing was imported under this name.
    """
    model, tag = get_entry(name).name, split_name(name)[1]
    manifest = user_manifest(cache_dir)
    imported = read_manifest(manifest) if manifest.is_file() else ()
    record = next((r for r in imported if r.tag == tag and r.models == (model,)), None)
    if record is None:
        there = ", ".join(f"{m}.{r.tag}" for r in imported for m in r.models) or "none"
        raise UnknownModelError(
            f"nothing was imported as {name!r}, so there is nothing to remove; imported are: {there}"
        )
    _write([r for r in _raw(manifest) if (r["tag"], r["models"]) != (tag, [model])], manifest)
    in_use = {r.sha256 for path in manifests(cache_dir) for r in read_manifest(path)}
    if record.sha256 and record.sha256 not in in_use:
        copies = converted_path(record.sha256, "*", cache_dir)
        for path in (file_path(record, cache_dir), *copies.parent.glob(copies.name)):
            path.unlink(missing_ok=True)
            stamp_path(path).unlink(missing_ok=True)
    return record


def _check_head(entry: Entry, report: LoadReport, source: Path, num_classes: int | None) -> None:
    """Raise `CheckpointMismatchError` where a file has no head of so many classes: the name would load a fresh one."""
    if num_classes and any(name.startswith(entry.head) for name in report.fresh):
        raise CheckpointMismatchError(
            f"num_classes={num_classes} for {source}: the file has no head of so many outputs as {entry.name!r}; "
            "`zoo inspect` shows what it has. Leave num_classes out to take it as it is"
        )


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


def _input_of(entry: Entry, source: Path, size: int | None, tag: str = "") -> dict[str, Any]:
    """The input that a file was trained on: as the user says, else as its header, the tag's record, the entry say."""
    ours = next((r for r in read_manifest(packaged_manifest()) if r.tag == tag and entry.name in r.models), None)
    on_record = input_for(entry.name, ours.input) if ours else {}
    if size is None:
        return input_for(entry.name, open_checkpoint(source).input) or on_record
    if size < 1:
        raise OptionError(f"size={size}: expected the side of the images in pixels")
    published = entry.preprocessing
    if len(published.size) != 2:
        raise OptionError(f"size={size} for {entry.name!r}: it takes volumes, whose size follows from their grid")
    resize = published.resize and round(published.resize * size / min(published.size))
    return on_record | {"size": [size] * len(published.size), "resize": resize}


def _put_first(record: dict[str, Any], manifest: Path) -> None:
    """Write the record at the head of a manifest, in place of an earlier one of this model and tag."""
    rest = [r for r in _raw(manifest) if (r["tag"], r["models"]) != (record["tag"], record["models"])]
    _write([record, *rest], manifest)


def _raw(manifest: Path) -> list[dict[str, Any]]:
    """The records of a manifest as they are written, none where there is no manifest."""
    found: list[dict[str, Any]] = json.loads(manifest.read_text("utf-8"))["weights"] if manifest.is_file() else []
    return found


def _write(weights: list[dict[str, Any]], manifest: Path) -> None:
    write_text(manifest, json.dumps({"schema": 1, "weights": weights}, indent=2) + "\n")
