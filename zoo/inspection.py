"""What a checkpoint holds and which models it fits, without running anything that is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.building import build_network
from zoo.checkpoint import convert, set_aside
from zoo.coverage import compare, shape_text
from zoo.entry import Config, Entry, State
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError, UnsafeCheckpointError
from zoo.formats import StoredState, base_of, open_checkpoint
from zoo.registry import entries
from zoo.report import NOT_SAID, first_names
from zoo.safety import refused_globals
from zoo.settling import HEADER, NAMES, settle
from zoo.sniffing import sniff

if TYPE_CHECKING:
    from zoo.coverage import Coverage


@dataclass(frozen=True)
class Match:
    """How far a file fills one model."""

    model: str
    matched: int
    """How many of the tensors that the file must have are in it, with the right shape."""
    needed: int
    """Tensors of the model, but for those of parts that it can do without and of which the file has nothing."""
    complete: bool
    """Whether `load_model` takes the file."""
    prefix: str
    """What stands in front of the network's names in the file."""
    head: str
    """Name and shape of the head in the file; empty where it has none that the model knows."""
    call: str
    """How to load it; empty unless `complete`."""
    problem: str = ""
    """Why a file with all tensors does not load: what an option must say, or one that cannot be read. Else empty."""
    unsaid: tuple[str, ...] = ()
    """Options that make another network of the same tensors, and of which the file says nothing."""

    def __str__(self) -> str:
        place = f" behind {self.prefix!r}" if self.prefix else ""
        head = f", head {self.head}" if self.head else ""
        problem = f": {self.problem}" if self.problem else ""
        verdict = f"\n  {self.call}" if self.complete else f" (does not load{problem})"
        unsaid = f"\n  does not say its {', '.join(self.unsaid)}, see the card" if self.unsaid else ""
        return f"{self.model}: {self.matched} of {self.needed} tensors{place}{head}{verdict}{unsaid}"


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint holds. Prints as a short page."""

    path: str
    format: str
    size: int
    """Bytes of the file, or of all of a TensorFlow checkpoint's."""
    containers: tuple[str, ...] = ()
    """Keys that lead from the top of the file to the tensors."""
    beside: tuple[str, ...] = ()
    """Other keys at the top."""
    tensors: int = 0
    types: Mapping[str, int] = field(default_factory=dict)
    """Type of number -> bytes of tensors of that type."""
    first_names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    """Prefixes behind which a model of the zoo was found."""
    matches: tuple[Match, ...] = ()
    """The models that at least one tensor fits, best first."""
    refused: tuple[str, ...] = ()
    """Functions and classes that opening the file would have to import, and that are refused."""
    problem: str = ""
    """Why the file cannot be loaded; empty if it can be read."""

    def __str__(self) -> str:
        types = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in self.types.items())
        place = f" under {' > '.join(map(repr, self.containers))}" if self.containers else ""
        names = f"{self.tensors}{place} ({types}): {', '.join(self.first_names)}, ..." if self.tensors else ""
        rows = {
            "problem": self.problem,
            "refused": ", ".join(self.refused),
            "tensors": names,
            "beside": ", ".join(self.beside),
            "models": "\n".join(map(str, self.matches)) or ("none of the zoo's" if self.tensors else ""),
        }
        lines = [f"{self.path}: {self.format}, {self.size / 1e6:.1f} MB"]
        for label, text in rows.items():
            lines += [f"  {label if i == 0 else '':<9} {line}" for i, line in enumerate(text.splitlines())]
        return "\n".join(lines)


def inspect_checkpoint(path: str | Path) -> CheckpointSummary:
    """Say what a file holds and which models it fits. Nothing in it is run, and no values are read.

    A file that cannot be loaded gives a summary too, with the reason in `problem`.

    Raises:
        CheckpointFormatError: There is no such file.
    """
    path = Path(path).expanduser()
    kind = sniff(path)
    size = path.stat().st_size if path.is_file() else 0
    try:
        stored = open_checkpoint(path, mmap=True)
    except (CheckpointFormatError, UnsafeCheckpointError) as error:
        refused = refused_globals(path) if isinstance(error, UnsafeCheckpointError) else ()
        return CheckpointSummary(str(path), kind, size, refused=refused, problem=str(error))
    types: Counter[str] = Counter()
    for tensor in stored.tensors.values():
        types[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    matches = match_all(stored)
    return CheckpointSummary(
        path=str(path),
        format=kind,
        size=sum(file.stat().st_size for file in stored.files),
        containers=stored.containers,
        beside=stored.beside,
        tensors=len(stored.tensors),
        types=dict(types),
        first_names=tuple(stored.tensors)[:3],
        prefixes=tuple(dict.fromkeys(match.prefix for match in matches)),
        matches=matches,
    )


def match_all(stored: StoredState) -> tuple[Match, ...]:
    """Compare the tensors of a file with every model; those that fit at all, best first."""
    found = (_match(entry, stored) for entry in entries().values())
    fitting = (match for match in found if match and match.matched)
    return tuple(sorted(fitting, key=lambda m: (m.complete, m.matched / m.needed, m.needed), reverse=True))


def _match(entry: Entry, stored: StoredState) -> Match | None:
    try:
        state, facts = convert(entry, stored.tensors)
    except CheckpointMismatchError:
        return None
    origin = {id(tensor): name for name, tensor in stored.tensors.items()}
    places = ((origin[id(t)], n) for n, t in state.items() if n.startswith(entry.required) and id(t) in origin)
    place, kept = next(places, ("", ""))
    if not kept:
        return None
    prefix = place.removesuffix(kept) if place.endswith(kept) else ""
    heads = [f"{n} {shape_text(t)}" for n, t in state.items() if n.startswith(entry.head) and t.ndim > 1]
    config = {**entry.config, **facts}
    try:
        _, said_by = settle(entry, {HEADER: stored.options, NAMES: facts}, {})
        found, problem = _coverage(entry, state, config, stored)
    except (CheckpointFormatError, CheckpointMismatchError, OptionError) as error:
        count = sum(name.startswith(entry.required) for name in state)
        return Match(entry.name, count, count, False, prefix, heads[-1] if heads else "", "", str(error))
    loads = found.complete and not problem
    call = f"load_model({entry.name!r}, checkpoint={str(stored.path)!r})" if loads else ""
    if call and heads and "projection" in entry.config:
        projected, obstacle = _coverage(entry, state, config | {"projection": True}, stored, head_required=True)
        is_whole = projected.complete and not obstacle
        call += " (with projection=True it returns what its head does)" if is_whole else ""
    return Match(
        model=entry.name,
        matched=found.matched(found.needed),
        needed=len(found.needed),
        complete=loads,
        prefix=prefix,
        head=heads[-1] if heads else "",
        call=call,
        problem=problem if found.complete else "",
        unsaid=tuple(name for name, who in said_by.items() if who == NOT_SAID) if loads else (),
    )


def _coverage(
    entry: Entry, state: State, config: Config, stored: StoredState, *, head_required: bool = False
) -> tuple[Coverage, str]:
    """How far a state dict fills a network, and what of it cannot be read from its file."""
    own, rest, obstacles = build_network(entry, config).state_dict(), dict(state), stored.obstacles
    set_aside(own, rest, entry, keep_head=head_required)
    wanted = {id(base_of(tensor)) for tensor in rest.values()}
    unreadable = [name for name in obstacles if id(stored.tensors[name]) in wanted]
    problem = f"{first_names(unreadable)} cannot be read: {obstacles[unreadable[0]]}" if unreadable else ""
    return compare(own, rest, entry, head_required=head_required), problem


def guess(entry: Entry, stored: StoredState) -> str:
    """Say what may be the cause when a file does not fill a model.

    Args:
        entry: The model that was asked for.
        stored: The file.
    """
    matches, names = match_all(stored), stored.tensors
    if not matches:
        return f"no model of the zoo has names like {first_names(names, 3)}: another network, or renamed tensors"
    best = matches[0]
    if best.model == entry.name:
        return f"a {entry.name!r} of other widths, with parts cut away, or with parts of another network added"
    if not best.complete:
        return f"the closest model is {best.model!r}, with {best.matched} of {best.needed} tensors"
    absent = [part.removesuffix(".") for part in entry.required if not any(f".{part}" in f".{name}" for name in names)]
    lacks = f"; it has nothing under {', '.join(absent)}" if absent else ""
    return f"the file holds a {best.model!r} and no more{lacks}. That loads with {best.call}"
