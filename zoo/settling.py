"""Options that the names and shapes of a file do not tell: who says them, and what is taken where nobody does.

An entry names them in `Entry.settled`. The record of published weights says them in `options`; a file of one's own in
its header, where `header_of` puts them, or by the names of its tensors, as far as the entry's `convert` can tell.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from zoo.entry import Config, Entry
from zoo.errors import CheckpointMismatchError
from zoo.report import NOT_SAID, LoadReport

log = logging.getLogger("zoo")

ASKED = "as asked for"
NAMED = "the tag that was named"
RECORD = "the record of the weights"
HEADER = "the file's header"
NAMES = "the names in the file"

_ADAPTABLE = ("num_classes", "in_channels")
"""What may be asked for whatever a file says: heads are replaced, first convolutions adapted."""


def settle(
    entry: Entry, said: Mapping[str, Mapping[str, Any]], asked: Config, *, named: Mapping[str, Any] | None = None
) -> tuple[Config, dict[str, str]]:
    """Find out the options that names and shapes do not tell.

    Args:
        entry: Says which they are, and what is taken by default.
        said: Who says what of the file that is loaded, the strongest last; other options are passed over.
        asked: What the user asked for.
        named: The options of the tag that was named, which hold where nothing is said of the file itself.

    Returns:
        The options, and who said each: `NOT_SAID` where nobody did.

    Raises:
        CheckpointMismatchError: What is said of the file contradicts itself, or what was asked for contradicts it.
    """
    options: Config = {}
    by: dict[str, str] = {}
    for name in entry.settled:
        voices = {who: each[name] for who, each in said.items() if name in each}
        _check_agreement(name, voices | ({ASKED: asked[name]} if name in asked else {}))
        lesser = {NOT_SAID: entry.config[name]} | ({NAMED: named[name]} if named and name in named else {})
        chosen = lesser | voices | ({ASKED: asked[name]} if name in asked else {})
        by[name], options[name] = list(chosen.items())[-1]
    return options, by


def _check_agreement(name: str, voices: Mapping[str, Any]) -> None:
    """Raise where voices differ; what is adapted to the user's wish may."""
    if name in _ADAPTABLE or all(value == next(iter(voices.values())) for value in voices.values()):
        return
    listed = ", ".join(f"{value!r} ({who})" for who, value in voices.items())
    raise CheckpointMismatchError(
        f"{name} is contradicted: {listed}. With the same tensors it makes another network: leave {name}= out to take "
        "what the file was trained with, or correct what is wrong in its record or header"
    )


def warn_of_silence(report: LoadReport, entry: Entry) -> None:
    """Log a warning of each option that nobody said, though it makes another network of the same tensors."""
    for name, who in report.said_by.items():
        if who == NOT_SAID:
            log.warning(
                "%s: %s does not say its %s, which makes another network of the same tensors: %s=%r is taken. The card "
                "(%s) says what else there is",
                *(report.name, report.source, name, name, report.options[name], entry.card),
            )


def without_guesses(options: Config, said_by: Mapping[str, str]) -> Config:
    """Return the options that somebody said: a default is no fact about a file that others trained."""
    return {name: value for name, value in options.items() if said_by[name] != NOT_SAID}


def header_of(options: Config) -> dict[str, str]:
    """Return what the header of a file must say, so that its network is built alike again.

    Args:
        options: Those of the load report; of a network that was not trained on since, `without_guesses`.
    """
    return {"options": json.dumps(options)} if options else {}
