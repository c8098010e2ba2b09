"""Holds a request, or a user's file, against `ZOO_POLICY`: by the record of the weights, else by a file's header."""

from __future__ import annotations

from pathlib import Path

from zoo import policy
from zoo.fetching import file_path, hash_file
from zoo.files import user_path
from zoo.formats import StoredState, open_checkpoint, told
from zoo.manifest import records
from zoo.record import WeightsFile
from zoo.registry import list_models, resolve


def check_request(name: str, checkpoint: str | Path | None, cache_dir: str | Path | None = None) -> None:
    """Refuse a request before it is carried out, here or by other processes.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: The user's file; None for the weights that the name stands for.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        PolicyError: The licences do not allow the use, or the file states none.
    """
    if not policy.in_force():
        return
    if checkpoint is not None:
        check_licences(open_checkpoint(user_path(checkpoint)), cache_dir)
    elif record := resolve(name, cache_dir).record:
        policy.check_record(name, record)


def check_licences(stored: StoredState, cache_dir: str | Path | None = None) -> None:
    """Refuse a user's file. It is hashed only where a policy is set.

    Args:
        stored: The file, opened.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        PolicyError: The licences do not allow the use, or the file states none.
    """
    if not policy.in_force():
        return
    if record := _record_of(stored, cache_dir):
        policy.check_record(str(stored.path), record)
    else:
        policy.check_base(stored.path, told(stored.metadata, "base", dict, stored.path))


def _record_of(stored: StoredState, cache_dir: str | Path | None) -> WeightsFile | None:
    """The record of any model that a file is of, by its digest, or as the cached file of one without a digest."""
    digest = hash_file(stored.path) if stored.files == (stored.path,) else None
    known = (record for model in list_models() for record in records(model, cache_dir))
    return next((r for r in known if (r.sha256 or "") == digest or file_path(r, cache_dir) == stored.path), None)
