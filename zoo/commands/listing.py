"""Lists weights with the facts that people choose by, and picks them by these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.entry import MODALITIES, TASKS
from zoo.errors import OptionError
from zoo.fetching import file_path, is_on_this_machine, read_stamp, stamp_path
from zoo.manifest import plain_record, records
from zoo.policy import refuses
from zoo.registry import get_entry, resolve
from zoo.settings import is_offline

if TYPE_CHECKING:
    from zoo.entry import Entry
    from zoo.record import WeightsFile

_HAD = {"hosted": "hosted", "on-request": "ask authors", "withdrawn": "withdrawn", "not-published": "no file"}
"""State of weights -> how to get them, in a word or two."""
_WHOSE = {"zoo": " (zoo's)", "user": " (yours)"}
"""Mark of weights that are not the authors'."""
_GIVES = {"segmentation": "maps", "restoration": "the image"}
"""What networks of each task return that have no pooled features."""


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
    """What the network as published is for."""
    tasks: tuple[str, ...]
    """That, and what `num_classes` makes of it."""
    num_features: int | None
    parameters: int
    bytes: int | None
    state: str
    trained_by: str
    here: bool
    """Whether the file is on this machine, in the package or the cache."""
    available: bool
    """Whether it can be loaded now, without asking anyone."""
    fresh: str
    """What of the network the file lacks, so that it is made fresh; empty where it has all of it."""
    commercial: bool
    """Whether the licences of code, weights and training data all allow commercial use."""
    commercial_use: str
    """The strictest of what these say of it: `yes`, `no` or `unknown`."""
    default: bool
    """Whether the name without a tag loads these weights."""

    def row(self) -> dict[str, Any]:
        """The line of `zoo list`, at most 100 columns wide."""
        gives = str(self.num_features) if self.num_features else _GIVES[self.task]
        return {
            "model": self.name,
            "tag": f"{self.tag}{'*' if self.default else ''}",
            "takes": f"{self.dimension}D {'/'.join(self.modalities)} {self.anatomy}",
            "features": f"fresh {gives}" if self.fresh else gives,
            "MB": "-" if self.bytes is None else f"{self.bytes / 1e6:.0f}",
            "commercial": self.commercial_use,
            "weights": f"{'here' if self.here else _HAD[self.state]}{_WHOSE.get(self.trained_by, '')}",
        }


class Filter(NamedTuple):
    """One thing that is asked of weights."""

    passes: Callable[[Listed], bool]
    words: str
    """What is asked, said after a number of weights."""


def filters_for(modality: str | None, task: str | None, available: bool, commercial: bool) -> list[Filter]:
    """Return the filters that were asked for.

    Args:
        modality: One of `MODALITIES`; None for all.
        task: One of `TASKS`; None for all.
        available: Only what can be loaded now: what is on this machine, or hosted while connections are allowed, and
            not refused by `ZOO_POLICY`.
        commercial: Only what the licences of code, weights and training data all allow commercial use of.

    Raises:
        OptionError: No model is described by such a word.
    """
    for option, word, words in (("--modality", modality, MODALITIES), ("--task", task, TASKS)):
        if word is not None and word not in words:
            raise OptionError(f"{option} {word}: expected {', '.join(words[:-1])} or {words[-1]}")
    now = "now, without connections" if is_offline() else "now"
    asked = (
        (modality is not None, Filter(lambda each: modality in each.modalities, f"for {modality}")),
        (task is not None, Filter(lambda each: task in each.tasks, f"for {task}")),
        (available, Filter(lambda each: each.available, f"to be had {now}")),
        (commercial, Filter(lambda each: each.commercial, "with licences that all allow commercial use")),
    )
    return [filter for is_asked, filter in asked if is_asked]


def list_weights(models: Iterable[str], pattern: str = "*", *, cache_dir: str | Path | None = None) -> list[Listed]:
    """Return the weights of some models whose MODEL or MODEL.TAG matches a shell pattern.

    Args:
        models: Names without tags.
        pattern: As `"caid-*"` or `"*.mine"`.
        cache_dir: Cache folder; default `$ZOO_HOME`.
    """
    found = []
    for name in models:
        entry, plain = get_entry(name), plain_record(name, cache_dir)
        for record in records(name, cache_dir):
            if fnmatchcase(name, pattern) or fnmatchcase(f"{name}.{record.tag}", pattern):
                found.append(_listed(entry, record, record == plain, cache_dir))
    return found


def passing(found: Iterable[Listed], filters: Iterable[Filter]) -> list[Listed]:
    """Return the weights that pass all filters."""
    return [each for each in found if all(passes(each) for passes, _ in filters)]


def why_none(found: Sequence[Listed], filters: Iterable[Filter]) -> str:
    """Say how many of some weights each filter leaves, up to the one that leaves none."""
    left, said = list(found), [f"no weights pass all filters: {len(found)} match by name"]
    for asked in filters:
        left = passing(left, [asked])
        said.append(f"{len(left) or 'none'} of these {asked.words}")
        if not left:
            break
    return ", ".join(said)


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
        tasks=entry.tasks,
        num_features=entry.num_features,
        parameters=entry.parameters,
        bytes=record.bytes,
        state=record.state,
        trained_by=record.trained_by,
        here=here,
        available=(here or (record.state == "hosted" and not is_offline())) and not refuses(record),
        fresh=record.fresh.get(entry.name, ""),
        commercial=record.allows("commercial"),
        commercial_use=record.verdict("commercial"),
        default=default,
    )
