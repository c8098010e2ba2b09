"""Looks ids up among training images for a user who did not ask: nothing that goes wrong ends what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.errors import UnknownModelError, ZooError
from zoo.evaluation.overlap import Overlap, find_overlap, has_training_ids
from zoo.messages import reason_of


class Unasked(NamedTuple):
    """What was found without being asked for."""

    overlap: Overlap | None = None
    """None where nothing is on record of the weights, or nothing is known."""
    problem: str = ""
    """Why nothing is known, where the list cannot be had now, as without a connection."""


def look_up_unasked(ids: Sequence[str], name: str, *, cache_dir: str | Path | None = None) -> Unasked:
    """Look ids up among the training images of weights, where a list is on record.

    Args:
        ids: As `find_overlap` takes them.
        name: `MODEL` or `MODEL.TAG`; of a manifest that is not here nothing is on record.
        cache_dir: Cache folder; default `$ZOO_HOME`.
    """
    try:
        return Unasked(find_overlap(ids, name, cache_dir=cache_dir) if has_training_ids(name, cache_dir) else None)
    except UnknownModelError:
        return Unasked()
    except (ZooError, OSError) as error:
        return Unasked(problem=f"the list could not be had: {reason_of(error)}")
