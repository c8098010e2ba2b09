"""Reads the manifest of imports, `$ZOO_HOME/manifest.json`, and lets one process at a time change it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.fetching import write_shared
from zoo.files import read_text
from zoo.locks import held
from zoo.manifest import user_manifest
from zoo.record import WeightsFile, read_manifest


def imported_records(cache_dir: str | Path | None = None) -> tuple[WeightsFile, ...]:
    """The records of all imports, the last one first.

    Raises:
        OptionError: The manifest cannot be read, or is not what `zoo import` writes.
    """
    manifest = user_manifest(cache_dir)
    return read_manifest(manifest, imported=True) if manifest.is_file() else ()


def imported_record(model: str, tag: str, cache_dir: str | Path | None = None) -> WeightsFile | None:
    """The record of a model that was imported under this tag; None where nothing was.

    Raises:
        OptionError: As `imported_records`.
    """
    return next((r for r in imported_records(cache_dir) if (r.tag, r.models) == (tag, (model,))), None)


@contextmanager
def changed_records(cache_dir: str | Path | None = None) -> Iterator[list[dict[str, Any]]]:
    """Yield the records as they are written, to be changed in place; after the block they are written anew.

    Two processes that read, change and write at once would lose the record of one: the second waits for the first.

    Raises:
        OptionError: What is there cannot be read.
        ZooError: Another process has not finished for a minute.
        OSError: The cache cannot be written.
    """
    manifest = user_manifest(cache_dir)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with held(lock_of(manifest)):
        imported_records(cache_dir)  # checked
        there = json.loads(read_text(manifest))["weights"] if manifest.is_file() else []
        yield there
        write_shared(manifest, json.dumps({"schema": 1, "weights": there}, indent=2) + "\n")


def put_record(record: dict[str, Any], cache_dir: str | Path | None = None, *, first: bool) -> None:
    """Write a record in place of an earlier one of this model and tag.

    Args:
        record: As a manifest has it.
        cache_dir: The cache; see `cache_home`.
        first: Whether it goes to the head of the manifest, where of several defaults the first counts. So it does
            where there is no earlier one.
    """
    with changed_records(cache_dir) as weights:
        positions = [i for i, r in enumerate(weights) if (r["tag"], r["models"]) == (record["tag"], record["models"])]
        for i in reversed(positions):
            del weights[i]
        position = 0 if first or not positions else positions[0]
        weights.insert(position, record)


def lock_of(manifest: Path) -> Path:
    """The file that is there while somebody changes a manifest."""
    return manifest.with_name(f".{manifest.name}.lock")
