"""What is tested, with its values in `values.json`, which `benchmarks/selftest_values.py` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from zoo.entry import Entry
from zoo.errors import OptionError
from zoo.files import read_text
from zoo.manifest import record_with_tag, records
from zoo.policy import refuses
from zoo.record import WeightsFile
from zoo.registry import get_entry, resolve
from zoo.selftest.stages import Stage

VALUES = Path(__file__).with_name("values.json")
COMMAND = "python benchmarks/selftest_values.py"
"""What stores the values."""


@dataclass(frozen=True)
class Case:
    """A network of one configuration with drawn tensors, or with the weights of one file; and what came out of it."""

    model: str
    inputs: tuple[tuple[int, ...], ...]
    """Shape of each argument of the network."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """In which the network differs from the entry's own configuration."""
    tag: str = ""
    """Of the weights; empty for drawn tensors."""
    sha256: str = ""
    """Of the weights' file."""
    stages: tuple[Stage, ...] = ()

    @property
    def name(self) -> str:
        """The model, with the tag where it has that tag's weights."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @property
    def what(self) -> str:
        """What is tested, for whoever reads the result."""
        said = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"weights {self.name}" if self.tag else f"network with drawn tensors{said and f', {said}'}"


@cache
def stored_cases() -> tuple[Case, ...]:
    """All cases, in the order of the registry."""
    return tuple(map(_case, json.loads(read_text(VALUES))["cases"]))


def _case(raw: Mapping[str, Any]) -> Case:
    stages = tuple(
        Stage(name, tuple(shape), mean, deviation, largest, tuple(samples))
        for name, shape, mean, deviation, largest, samples in raw["stages"]
    )
    inputs = tuple(map(tuple, raw["inputs"]))
    return Case(raw["model"], inputs, raw["options"], raw["tag"], raw["sha256"], stages)


def cases_of(name: str, cache_dir: str | Path | None = None) -> list[Case]:
    """Return what is tested under a name: of a model all that is stored, of a tag the network that its weights need.

    Weights that come with the package are run themselves, unless `ZOO_POLICY` refuses them. Those of other tags are
    proved by their digests at each load.

    Args:
        name: `MODEL` or `MODEL.TAG`.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model, or it has no weights with this tag.
        OptionError: No values are stored for it.
    """
    found = resolve(name, cache_dir)
    entry = found.entry
    own = [case for case in stored_cases() if case.model == entry.name and _can_be_run(case, cache_dir)]
    options = own_options(entry, found.record.options) if found.tag and found.record else {}
    if found.tag:
        own = [case for case in own if (case.tag == found.tag if case.tag else dict(case.options) == options)]
    if all(case.tag for case in own):
        raise OptionError(f"{name}: no values are stored for {_configuration(options)}; {_way_out(entry, found.tag)}")
    return own


def _configuration(options: Mapping[str, Any]) -> str:
    return "a network with " + ", ".join(f"{k}={v!r}" for k, v in options.items()) if options else "its network"


def _way_out(entry: Entry, tag: str) -> str:
    return f"`zoo selftest {entry.name}` tests the published one" if tag else f"store them: {COMMAND} {entry.name}"


def _can_be_run(case: Case, cache_dir: str | Path | None) -> bool:
    """Whether a case's weights, if it has any, are those of this name here, and `ZOO_POLICY` does not refuse them."""
    record = record_with_tag(case.model, case.tag, cache_dir) if case.tag else None
    return not case.tag or (record is not None and record.sha256 == case.sha256 and not refuses(record))


def own_options(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options in which a network differs from the entry's own configuration, as JSON has them."""
    differing = {name: value for name, value in options.items() if value != entry.config.get(name)}
    return dict(json.loads(json.dumps(differing)))


def cases_due(model: str, inputs: tuple[tuple[int, ...], ...], more: Iterable[Mapping[str, Any]] = ()) -> list[Case]:
    """Return the cases that must have values, without them.

    They are the network as the entry has it, as each published record has it, and the weights that come with the
    package.

    Args:
        model: Its name.
        inputs: Shape of each argument of the network.
        more: Options of further networks.
    """
    entry, published = get_entry(model), records(model, imported=False)
    networks = [{}, *(own_options(entry, each) for each in (*(r.options for r in published), *more))]
    unlike = [options for i, options in enumerate(networks) if options not in networks[:i]]
    packaged = [record for record in published if _is_packaged(record)]
    return [
        *(Case(model, inputs, options) for options in unlike),
        *(Case(model, inputs, own_options(entry, r.options), r.tag, r.sha256 or "") for r in packaged),
    ]


def _is_packaged(record: WeightsFile) -> bool:
    return any(source.startswith("package:") for source in record.sources)
