"""Undoes an import, for `zoo remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.commands.imported import changed_records, imported_record, imported_records
from zoo.errors import UnknownModelError
from zoo.fetching import converted_path, file_path, stamp_path
from zoo.manifest import manifests, user_manifest
from zoo.messages import printable
from zoo.record import WeightsFile, read_manifest
from zoo.registry import get_entry, split_name


def remove_weights(name: str, *, cache_dir: str | Path | None = None) -> WeightsFile:
    """Undo `zoo import`: take the record out of `$ZOO_HOME/manifest.json`, and the file out of the cache.

    A file that another record stands for stays. The user's file, which was copied, is not touched.

    Args:
        name: `MODEL.TAG`, as it was imported.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Returns:
        The record that was removed.

    Raises:
        UnknownModelError: No such model, or nothing was imported under this name.
    """
    model, tag = get_entry(name).name, split_name(name)[1]
    record = imported_record(model, tag, cache_dir)
    if record is None:
        there = ", ".join(f"{m}.{r.tag}" for r in imported_records(cache_dir) for m in r.models) or "none"
        raise UnknownModelError(
            f"nothing was imported as {name!r}, so there is nothing to remove; the imports are: {printable(there)}"
        )
    with changed_records(cache_dir) as weights:
        weights[:] = [r for r in weights if (r["tag"], r["models"]) != (tag, [model])]
        if record.sha256 and not _is_in_use(record.sha256, weights, cache_dir):
            copies = converted_path(record.sha256, "*", cache_dir)
            for path in (file_path(record, cache_dir), *copies.parent.glob(copies.name)):
                path.unlink(missing_ok=True)
                stamp_path(path).unlink(missing_ok=True)
    return record


def _is_in_use(sha256: str, weights: list[dict[str, Any]], cache_dir: str | Path | None) -> bool:
    """Whether a file is one of those in `weights`, the user's manifest to be, or in another one."""
    others = (
        r.sha256 for path in manifests(cache_dir) if path != user_manifest(cache_dir) for r in read_manifest(path)
    )
    return sha256 in {*others, *(r["sha256"] for r in weights)}
