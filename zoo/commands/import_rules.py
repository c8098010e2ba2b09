"""Rules of `zoo import`: which tag a file may take, and which facts on record it keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.checkpoint import LoadReport
from zoo.commands.imported import imported_record
from zoo.entry import Config, Entry
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError
from zoo.fetching import file_path, other_file, proof_of, recorded_digest, unpinning
from zoo.formats import StoredState, is_of_recipe, told
from zoo.manifest import packaged_manifest, record_with_digest, record_with_tag
from zoo.record import WeightsFile, depth_of

_DEEPEST = 16
"""Levels of lists and objects in the base weights and classes of a header; what recipes write has 5, and one more for
each run that began with the weights of another."""


def check_tag(model: str, tag: str, single: Path, digest: str, cache_dir: str | Path | None) -> None:
    """Refuse a malformed tag, and one that stands for another file; `digest` is the sha256 of `single`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag):
        raise OptionError(f"{tag!r} cannot be a tag: expected letters, digits, dots, dashes and underscores")
    ours = record_with_tag(model, tag, cache_dir, imported=False)
    if ours is None or ours.sha256 == digest:
        return
    other = f"import it under another tag, for example {model}.mine"
    if ours.sha256:
        raise OptionError(
            f"{model}.{tag} stands for weights of the zoo with sha256 {ours.sha256}, the file has {digest}: {other}"
        )
    if problem := other_file(ours, single):
        raise OptionError(f"{model}.{tag} stands for weights of the zoo, and of the file the {problem}: {other}")
    if ours.base != packaged_manifest().resolve().parent:
        raise OptionError(f"{model}.{tag} is on record in ZOO_MANIFEST, which comes before imports: {other}")
    path = file_path(ours, cache_dir)
    pinned = recorded_digest(ours, path)
    if pinned and pinned != digest:
        raise OptionError(
            f"{model}.{tag} has sha256 {pinned}, the file has {digest}; {unpinning(ours, path)}. Or {other}"
        )
    earlier = imported_record(model, tag, cache_dir)
    if earlier and earlier.sha256 != digest and earlier.sha256_note:
        raise OptionError(
            f"{model}.{tag} was imported with sha256 {earlier.sha256}, the file has {digest}, and nobody has published "
            f"which is right. To take this one: `zoo remove {model}.{tag}`, and import it again. Or {other}"
        )


def check_fingerprint(name: str, entry: Entry, found: str, facts: Mapping[str, Any]) -> None:
    """Hold the fingerprint of a file against the one on record for it."""
    expected = facts.get("fingerprint", {}).get(entry.name)
    if expected and expected != found:
        raise CheckpointMismatchError(
            f"the file loads, but is not {name}: its names and shapes are not those on record for these weights "
            f"(fingerprint {expected} expected, {found} found). Import it under another tag, as {entry.name}.mine"
        )


def check_head(entry: Entry, report: LoadReport, source: Path, num_classes: int | None) -> None:
    """Raise `CheckpointMismatchError` where a file has no head of so many classes: the name would load a fresh one."""
    if num_classes and any(name.startswith(entry.head) for name in report.fresh):
        raise CheckpointMismatchError(
            f"num_classes={num_classes} for {source}: the file has no head of that many outputs for {entry.name!r}; "
            "`zoo inspect` shows what it has. Leave num_classes out to take it as it is"
        )


def check_default(entry: Entry, tag: str, config: Config) -> None:
    """Refuse a file with a task head as an encoder's default: a run must not start from somebody's classes."""
    if entry.is_encoder and (classes := config.get("num_classes")):
        raise OptionError(
            f"{entry.name!r} without a tag must load an encoder, and this file has a task head of {classes} outputs: "
            f"a run that starts from it would start from its classes and test patients. Without --default it loads as "
            f"{entry.name}.{tag}; if that is the default already, import it under another tag"
        )


def facts_on_record(model: str, tag: str, digest: str, source: Path, cache_dir: str | Path | None) -> dict[str, Any]:
    """Facts on record about a file, or about the tag it is imported under, as a manifest has them."""
    if known := record_with_digest(model, digest, cache_dir, imported=False):
        return _as_written(known, model)
    if known := record_with_tag(model, tag, cache_dir, imported=False):
        proof = proof_of(known)
        word = f"which has {proof}" if proof else "on the word of the user who imported it"
        kind = "sha256" if known.digests else "digest"
        note = f"no {kind} is published: this is that of {source.name}, taken as the {known.trained_by}' {word}"
        return _as_written(known, model) | {"sha256_note": note}
    return {"trained_by": "user"}


def facts_in_header(stored: StoredState, config: Config) -> dict[str, Any]:
    """Facts from the header of a file that is not on record, as its record has them.

    Args:
        stored: The file.
        config: What only the file knows of its network.

    Returns:
        Under `provenance` task, classes, number of classes, base weights, recipe and command, as far as there are; the
        licences of the base weights, from which those of the file follow.

    Raises:
        CheckpointFormatError: The header has something else under these keys.
    """
    if not is_of_recipe(stored.metadata):
        return {}
    base = told(stored.metadata, "base", dict, stored.path)
    classes = told(stored.metadata, "classes", list, stored.path)
    licences = base.pop("licences", {})
    if not isinstance(licences, dict) or depth_of([base, licences, classes]) > _DEEPEST:
        raise CheckpointFormatError(f"{stored.path} has base weights or classes in its header that no recipe wrote")
    stated: dict[str, Any] = {key: stored.metadata.get(key) for key in ("task", "recipe", "command")}
    stated |= {"classes": classes, "num_classes": config.get("num_classes"), "base": base}
    provenance = {key: value for key, value in stated.items() if value}
    return {"provenance": provenance} | ({"licences": licences} if licences else {})


def resized_input(entry: Entry, size: int) -> dict[str, Any]:
    """Fields of the input of images of another side than the entry's, in pixels."""
    published = entry.preprocessing
    if size < 1:
        raise OptionError(f"size={size}: expected the side of the images in pixels")
    if len(published.size) != 2:
        raise OptionError(f"size={size} for {entry.name!r}: it takes volumes, whose size follows from their grid")
    resize = published.resize and round(published.resize * size / min(published.size))
    return {"size": [size] * len(published.size), "resize": resize}


def _as_written(known: WeightsFile, model: str) -> dict[str, Any]:
    """The facts of a record as a manifest has them, of one model."""
    facts = {f.name: getattr(known, f.name) for f in fields(known) if f.name not in ("base", "default", "assets")}
    for name in ("fingerprint", "fresh"):
        facts[name] = {key: value for key, value in getattr(known, name).items() if key == model}
    facts["assets"] = {
        name: {"sources": list(asset.sources), "bytes": asset.bytes, "sha256": asset.sha256}
        for name, asset in known.assets.items()
    }
    return {key: value for key, value in facts.items() if value}
