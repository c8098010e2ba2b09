"""Looks ids up among training images for a user who did not ask: nothing that goes wrong ends what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.errors import UnknownModelError, ZooError
from zoo.evaluation.overlap import Overlap, find_overlap, has_training_ids
from zoo.formats import told
from zoo.messages import printable, reason_of
from zoo.tasks.saved import header_of


class Unasked(NamedTuple):
    """What was found without being asked for."""

    overlap: Overlap | None = None
    """With the images that published weights were trained on; None where nothing is on record, or nothing is known."""
    problem: str = ""
    """Why nothing is known, where the list cannot be had now, as without a connection."""
    learnt: str = ""
    """The task whose labels a network has learnt; empty where its file does not say that it has."""


def look_up_unasked(
    ids: Sequence[str], name: str, *, checkpoint: str | Path | None = None, cache_dir: str | Path | None = None
) -> Unasked:
    """Look ids up among the training images of weights, or of those that a file began with, where a list is on record.

    Args:
        ids: As `find_overlap` takes them.
        name: `MODEL` or `MODEL.TAG`; of a manifest that is not here nothing is on record.
        checkpoint: A file that is loaded in the place of the weights.
        cache_dir: Cache folder; default `$ZOO_HOME`.
    """
    learnt = ""
    try:
        header, file = header_of(name, checkpoint, cache_dir)
        learnt = printable(header.get("task", ""))
        published = name
        if checkpoint is not None or not has_training_ids(name, cache_dir):
            published = _began_with(header, file)
        if not published or not has_training_ids(published, cache_dir):
            return Unasked(learnt=learnt)
        return Unasked(find_overlap(ids, published, cache_dir=cache_dir), learnt=learnt)
    except UnknownModelError:
        return Unasked(learnt=learnt)
    except (ZooError, OSError) as error:
        return Unasked(problem=f"the list could not be had: {reason_of(error)}", learnt=learnt)


def _began_with(header: Mapping[str, str], file: Path) -> str:
    """The published weights that the training of a file began with; empty where it does not say."""
    base = told(header, "base", dict, file)
    while isinstance(base.get("base"), dict):
        base = base["base"]
    return f"{base['model']}.{base['tag']}" if base.get("model") and base.get("tag") else ""
