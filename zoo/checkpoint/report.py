"""Reports where each tensor of a network came from; `load_model` leaves the report on the network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, takewhile, zip_longest
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError
from zoo.messages import first_names, printable

if TYPE_CHECKING:
    from torch import nn

ATTRIBUTE = "zoo_report"
HEAD_MISFIT = "the head does not fit"
"""Start of the reason for dropping a head that the user may count on."""

AS_STORED = "as stored"
NOT_SAID = "not said, so the default was taken"

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_PARTS = ("adapted", "fresh", "dropped")
_MOST_GROUPS = 16
"""Rows of a table. Networks of more layers than that at their top are counted by the first word of their names."""
_MOST_LINES = 4
"""Groups that share a reason and have a line each; more of them have one together."""


@dataclass
class LoadReport:
    """Where every parameter and buffer of a network came from. Prints as a short table.

    The four parts map a tensor's name to the reason; `dropped` has names of the file, the others names of the network.
    """

    model: str
    """Name of the entry."""
    loaded: dict[str, str] = field(default_factory=dict)
    """Filled from the file: `as stored`, or widened from a smaller type."""
    adapted: dict[str, str] = field(default_factory=dict)
    """Filled from the file after a change of shape."""
    fresh: dict[str, str] = field(default_factory=dict)
    """Initialised as the network's library does it, here or, where the reason is `UNTRAINED`, before it was saved."""
    dropped: dict[str, str] = field(default_factory=dict)
    """In the file, but not in this network."""
    tag: str = ""
    """Tag of the weights; empty for the user's file and for random weights."""
    source: str = ""
    """Where the file came from, `random` if there was none."""
    sha256: str | None = None
    """Digest that the file was verified by; None for `checkpoint=`."""
    trained_by: str = ""
    """`authors`, `zoo` or `user`; empty where nobody said."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that the network was built with and that the names and shapes of its tensors do not tell."""
    said_by: dict[str, str] = field(default_factory=dict)
    """Who said each of the options; `NOT_SAID` where nobody did."""
    note: str = ""
    """On whose word the digest is, where nobody has published one; what the file is beside what was asked for."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All options that the network was built with, those that the file's names and shapes tell among them."""

    @property
    def name(self) -> str:
        """The model's name with its tag."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @property
    def is_random(self) -> bool:
        """Whether nothing is from a file; one may be called as `source` then says."""
        return self.source == "random" and bool(self.fresh) and not self.loaded and not self.adapted

    def __str__(self) -> str:
        digest = f" (sha256 {self.sha256[:12]}…)" if self.sha256 else ""
        lines = [f"{self.name} from {self.source or 'a state dict'}{digest}", *_table(self)]
        lines += [f"  note     {self.note}"] if self.note else []
        said = {name: value for name, value in self.options.items() if value is not None}  # None changes nothing
        lines += [f"  option   {name}={value!r}: {self.said_by.get(name, '')}" for name, value in said.items()]
        changes = Counter(reason for reason in self.loaded.values() if reason != AS_STORED)
        lines += [f"  loaded   {count} of them {reason}" for reason, count in changes.items()]
        for part in _PARTS:
            lines += [f"  {part:<8} {line}" for line in summarise(getattr(self, part))]
        return "\n".join(map(printable, lines))


def _table(report: LoadReport) -> list[str]:
    """Count the tensors of each module group of the network."""
    tensors = {part: list(getattr(report, part)) for part in ("loaded", "adapted", "fresh")}
    is_long = len({_group(name) for names in tensors.values() for name in names}) > _MOST_GROUPS
    parts = {p: Counter(_word(name) if is_long else _group(name) for name in names) for p, names in tensors.items()}
    groups = list(dict.fromkeys(group for counts in parts.values() for group in counts))
    width = max(map(len, ["group", *groups]))
    lines = [f"  {'group':<{width}} " + "".join(f"{part:>9}" for part in parts)]
    return lines + [f"  {g:<{width}} " + "".join(f"{counts[g]:>9}" for counts in parts.values()) for g in groups]


def _group(name: str) -> str:
    return name.partition(".")[0]


def _word(name: str) -> str:
    return re.split(r"[._/]", name, maxsplit=1)[0]


def summarise(reasons: dict[str, str]) -> list[str]:
    """One line for all names of one group that share a reason: `encoder_k.* (384): key network`.

    Where many groups share it, there is one for all of them: `a/W, a/b, ... (85 in all): decoder`.
    """
    together: dict[str, dict[str, list[str]]] = {}
    for name, reason in reasons.items():
        together.setdefault(reason, {}).setdefault(_group(name), []).append(name)
    lines = []
    for reason, groups in together.items():
        if len(groups) > _MOST_LINES:
            lines.append(f"{first_names(chain(*groups.values()), 2)}: {reason}")
        else:
            lines += [f"{_common(names)}: {reason}" for names in groups.values()]
    return lines


def _common(names: list[str]) -> str:
    """The common start of several names, cut at a dot, and their number."""
    if len(names) < 3:
        return ", ".join(map(printable, names))
    columns = zip_longest(*(name.split(".") for name in names))
    start = "".join(f"{column[0]}." for column in takewhile(lambda column: len(set(column)) == 1, columns))
    return f"{printable(start)}* ({len(names)})"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and `torch.compile`."""
    while inner := _WRAPPERS.get(type(model).__name__):
        model = getattr(model, inner)
    return model


def load_report(model: nn.Module) -> LoadReport:
    """Return the report that `load_model` left on a network.

    Args:
        model: A network from `load_model`, a copy of one, or either inside DDP or `torch.compile`.

    Raises:
        OptionError: The network is not from the zoo.
    """
    report = getattr(unwrap(model), ATTRIBUTE, None)
    if not isinstance(report, LoadReport):
        raise OptionError(
            f"this {type(model).__name__} carries no load report: expected a network that zoo.load_model returned. "
            "In your own network, pass the part that came from the zoo"
        )
    return report
