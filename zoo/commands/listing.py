"""Lists weights with the facts that people choose by, and picks them by these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import MODALITIES, TASKS
from zoo.errors import OptionError
from zoo.fetching import file_path, is_on_this_machine, read_stamp, stamp_path
from zoo.manifest import plain_record, records
from zoo.registry import get_entry, resolve
from zoo.settings import is_offline

if TYPE_CHECKING:
    from zoo.entry import Entry
    from zoo.record import WeightsFile

_HAD = {"hosted": "hosted", "on-request": "ask authors", "withdrawn": "withdrawn", "not-published": "no file"}
"""State of weights -> how to get them, in a word or two."""
_WHOSE = {"zoo": " (zoo's)", "user": " (yours)"}
"""Mark of weights that are not the authors'."""
_GIVES = {"encoder": "features", "segmentation": "maps", "restoration": "the image"}
"""What networks of each task return where they have no pooled features."""


@dataclass(frozen=True)
class Listed:
    """One model with one of its weights."""

    name: str
    tag: str
    """Empty where no weights are on record."""
    summary: str
    modalities: tuple[str, ...]
    anatomy: str
    dimension: int
    task: str
    num_features: int | None
    parameters: int
    bytes: int | None
    state: str
    trained_by: str
    here: bool
    """Whether the file is on this machine, in the package or the cache."""
    available: bool
    """Whether it can be loaded now, without asking anyone."""
    commercial: bool
    """Whether the licences of code, weights and training data all allow commercial use."""
    default: bool
    """Whether the name without a tag loads these weights."""

    def row(self) -> dict[str, Any]:
        """The line of `zoo list`, at most 100 columns wide."""
        size = "-" if self.bytes is None else f"{self.bytes / 1e6:,.0f} MB"
        gives = f"{self.num_features} features" if self.num_features else _GIVES[self.task]
        return {
            "model": self.name,
            "tag": f"{self.tag}{'*' if self.default else ''}",
            "takes": f"{self.dimension}D {'/'.join(self.modalities)} {self.anatomy}",
            "gives": gives,
            "size": size,
            "weights": f"{'here' if self.here else _HAD[self.state]}{_WHOSE.get(self.trained_by, '')}",
        }


def check_filters(modality: str | None, task: str | None) -> None:
    """Raise `OptionError` for a word that no model is described by."""
    for option, word, words in (("--modality", modality, MODALITIES), ("--task", task, TASKS)):
        if word is not None and word not in words:
            raise OptionError(f"{option} {word}: expected {', '.join(words[:-1])} or {words[-1]}")


def list_weights(
    models: Iterable[str],
    *,
    modality: str | None = None,
    task: str | None = None,
    available: bool = False,
    commercial: bool = False,
    cache_dir: str | Path | None = None,
) -> list[Listed]:
    """Return the weights of some models that pass all filters.

    Args:
        models: Names without tags.
        modality: One of `MODALITIES`; None for all.
        task: One of `TASKS`; None for all.
        available: Only what can be loaded now: what is on this machine, or hosted while connections are allowed.
        commercial: Only what the licences of code, weights and training data all allow commercial use of.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: A filter is not one of its words.
    """
    check_filters(modality, task)
    found = []
    for name in models:
        entry, plain = get_entry(name), plain_record(name, cache_dir)
        if (modality is None or modality in entry.modalities) and task in (None, entry.task):
            found += [_listed(entry, record, record == plain, cache_dir) for record in records(name, cache_dir)]
    return [each for each in found if (each.available or not available) and (each.commercial or not commercial)]


def pinned_facts(name: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The sha256 pinned for a file of which none is on record, and who stated it; empty without a file in the cache."""
    record = resolve(name, cache_dir).record
    known = None if record is None or record.sha256 else read_stamp(stamp_path(file_path(record, cache_dir)))
    if known is None:
        return {}
    return {"pinned": {"sha256": known.sha256, "proved_by": known.proved_by or "nobody: it is the first copy's"}}


def _listed(entry: Entry, record: WeightsFile, default: bool, cache_dir: str | Path | None) -> Listed:
    here = is_on_this_machine(record, cache_dir)
    return Listed(
        name=entry.name,
        tag=record.tag,
        summary=entry.summary,
        modalities=entry.modalities,
        anatomy=entry.anatomy,
        dimension=entry.dimension,
        task=entry.task,
        num_features=entry.num_features,
        parameters=entry.parameters,
        bytes=record.bytes,
        state=record.state,
        trained_by=record.trained_by,
        here=here,
        available=here or (record.state == "hosted" and not is_offline()),
        commercial=record.allows("commercial"),
        default=default,
    )
