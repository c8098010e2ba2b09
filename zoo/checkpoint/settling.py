"""Settles the options that names and shapes of a file do not tell: who states them, and the default where nobody does.

An entry names them in `Entry.settled`. The record of published weights says them in `options`; your own file in
its header, where recipes and `zoo export` write them, or by the names of its tensors, as far as the entry's `convert`
can tell.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from zoo.checkpoint.report import NOT_SAID, LoadReport
from zoo.entry import Config, Entry
from zoo.errors import CheckpointMismatchError

log = logging.getLogger("zoo")

ASKED = "as asked for"
NAMED = "the tag that was named"
RECORD = "the record of the weights"
HEADER = "the file's header"
NAMES = "the names in the file"

_ADAPTABLE = ("num_classes", "in_channels", "img_size")
"""Options that may differ from the file's: heads are replaced, first convolutions and positions adapted."""


def settle(
    entry: Entry, said: Mapping[str, Mapping[str, Any]], asked: Config, *, named: Mapping[str, Any] | None = None
) -> tuple[Config, dict[str, str]]:
    """Settle the options that names and shapes do not tell.

    Args:
        entry: Names them and their defaults.
        said: Statements about the loaded file, by who makes them, the strongest last; other options are ignored. What
            `convert` assumes of such a file is `assumed` among those of its names.
        asked: What the user asked for.
        named: The options of the tag that was named, which hold where nothing is said of the file itself, unless its
            names and shapes are those of other weights, of which something else is assumed.

    Returns:
        The options, and who said each: `NOT_SAID` where nobody did.

    Raises:
        CheckpointMismatchError: What is said of the file contradicts itself, or what was asked for contradicts it.
    """
    options: Config = {}
    by: dict[str, str] = {}
    assumed = said.get(NAMES, {}).get("assumed", {})
    for name in entry.settled:
        voices = {who: each[name] for who, each in said.items() if name in each}
        if name not in (*_ADAPTABLE, *entry.free):
            _check_agreement(name, voices | ({ASKED: asked[name]} if name in asked else {}))
        lesser = {NOT_SAID: entry.config[name]} | ({NAMED: named[name]} if named and name in named else {})
        if name in assumed and list(lesser.values())[-1] != assumed[name]:
            lesser = {NOT_SAID: assumed[name]}
        chosen = lesser | voices | ({ASKED: asked[name]} if name in asked else {})
        by[name], options[name] = list(chosen.items())[-1]
    return options, by


def _check_agreement(name: str, voices: Mapping[str, Any]) -> None:
    """Raise where voices differ; None says nothing."""
    voices = {who: value for who, value in voices.items() if value is not None}
    if all(value == next(iter(voices.values())) for value in voices.values()):
        return
    listed = ", ".join(f"{value!r} ({who})" for who, value in voices.items())
    raise CheckpointMismatchError(
        f"{name} is contradicted: {listed}. It changes what the same tensors compute: leave {name}= out to use the "
        "file's own value, or correct its record or header"
    )


def silences(facts: Config, said_by: Mapping[str, str]) -> dict[str, str]:
    """Return the options that a file leaves open and nobody says -> what is assumed, from `convert`'s `unclear`."""
    return {option: text for option, text in facts.get("unclear", {}).items() if said_by.get(option) == NOT_SAID}


def warn_of_silence(report: LoadReport, facts: Config) -> None:
    """Log a warning of each option that nobody said, though it makes another network of the same tensors.

    Published weights have the published head.
    """
    for option, text in silences(facts, report.said_by).items():
        if not (report.tag and option in _ADAPTABLE):
            log.warning("%s does not say its %s: %s", report.source, option, text)


def without_guesses(options: Mapping[str, Any], said_by: Mapping[str, str]) -> Config:
    """Return the options that somebody said: a default is no fact about a file that others trained."""
    return {name: value for name, value in options.items() if said_by[name] != NOT_SAID}
