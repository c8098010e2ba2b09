"""Describes a checkpoint and the models that it fits, without running anything in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from zoo.checkpoint.building import build_network
from zoo.checkpoint.coverage import compare, shape_text
from zoo.checkpoint.filling import set_aside
from zoo.checkpoint.keys import convert
from zoo.checkpoint.likeness import digest_of_known_size, refuse_other_family
from zoo.checkpoint.settling import HEADER, NAMES, settle, silences
from zoo.checkpoint.summary import CheckpointSummary, Match
from zoo.checkpoint.values import faults
from zoo.entry import Config, Entry, State
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError, UnsafeCheckpointError
from zoo.fetching import local_file
from zoo.formats import KEYS, StoredState, open_checkpoint, origins_of, refused_globals, sniff
from zoo.messages import first_names
from zoo.registry import entries

if TYPE_CHECKING:
    from zoo.checkpoint.coverage import Coverage


def inspect_checkpoint(path: str | Path) -> CheckpointSummary:
    """Describe a file and the models that it fits. Nothing in it is run.

    Its values are read once, as `load_model` does: a file with NaN, or with a record that is not what was written, is
    not said to load. A file that cannot be loaded gives a summary too, with the reason in `problem`.

    Raises:
        CheckpointFormatError: There is no such file, or only a pointer to it.
    """
    path = local_file(path)
    kind = sniff(path)
    size = path.stat().st_size if path.is_file() else 0
    try:
        stored = open_checkpoint(path, mmap=True)
        _ = stored.input, stored.options  # a header that cannot be read is said here, and not by a model
    except (CheckpointFormatError, UnsafeCheckpointError) as error:
        refused = refused_globals(path) if isinstance(error, UnsafeCheckpointError) else ()
        return CheckpointSummary(str(path), kind, size, refused=refused, problem=str(error))
    types: Counter[str] = Counter()
    for tensor in stored.tensors.values():
        types[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    problem, bad = _read_values(stored)
    matches = match_all(stored, bad)
    return CheckpointSummary(
        path=str(path),
        format=kind,
        size=sum(file.stat().st_size for file in stored.files),
        containers=stored.containers,
        beside=stored.beside,
        header={key: stored.metadata[key] for key in KEYS if key in stored.metadata},
        tensors=len(stored.tensors),
        types=dict(types),
        first_names=tuple(stored.tensors)[:3],
        prefixes=tuple(dict.fromkeys(match.prefix for match in matches)),
        faults=bad,
        matches=() if problem else matches,
        problem=problem,
    )


def _read_values(stored: StoredState) -> tuple[str, dict[str, str]]:
    """Return why the values cannot be read, and which of them no network computes with."""
    try:
        stored.check_records()
        return "", faults(stored.values())
    except CheckpointFormatError as error:
        return str(error), {}


def match_all(stored: StoredState, bad: Mapping[str, str] = MappingProxyType({})) -> tuple[Match, ...]:
    """Compare the tensors of a file with every model; those that fit at all, best first.

    Args:
        stored: The file.
        bad: Tensors with values that no network computes with, and what they are.
    """
    digest = digest_of_known_size(stored)
    found = (_match(entry, stored, bad, digest) for entry in entries().values())
    fitting = (match for match in found if match and match.matched)
    return tuple(sorted(fitting, key=lambda m: (m.complete, m.matched / m.needed, m.needed), reverse=True))


def _match(entry: Entry, stored: StoredState, bad: Mapping[str, str], digest: str | None) -> Match | None:
    try:
        state, facts = convert(entry, stored.tensors)
    except CheckpointMismatchError:
        return None
    origin = {id(tensor): name for name, tensor in stored.tensors.items()}
    pairs = ((origin[id(t)], n) for n, t in state.items() if n.startswith(entry.required) and id(t) in origin)
    stored_name, kept = next(pairs, ("", ""))
    if not kept:
        return None
    prefix = stored_name.removesuffix(kept) if stored_name.endswith(kept) else ""
    heads = [f"{n} {shape_text(t)}" for n, t in state.items() if n.startswith(entry.head) and t.ndim > 1]
    config = {**entry.config, **facts}
    try:
        _, said_by = settle(entry, {HEADER: stored.options, NAMES: facts}, {})
        found, problem = _coverage(entry, state, config, stored, bad)
        if found.complete:
            refuse_other_family(entry, stored, sha256=digest)
    except (CheckpointFormatError, CheckpointMismatchError, OptionError) as error:
        count = sum(name.startswith(entry.required) for name in state)
        return Match(entry.name, count, count, False, prefix, heads[-1] if heads else "", "", str(error))
    loads = found.complete and not problem
    call = f"load_model({entry.name!r}, checkpoint={str(stored.path)!r})" if loads else ""
    if call and heads and "projection" in entry.config:
        projected, obstacle = _coverage(entry, state, config | {"projection": True}, stored, bad, head_required=True)
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
        unclear=silences(facts, said_by) if loads else {},
    )


def _coverage(
    entry: Entry,
    state: State,
    config: Config,
    stored: StoredState,
    bad: Mapping[str, str],
    *,
    head_required: bool = False,
) -> tuple[Coverage, str]:
    """Compare a state dict with a network, and say which of its tensors cannot be read from the file."""
    own, rest, obstacles = build_network(entry, config).state_dict(), dict(state), stored.obstacles
    set_aside(own, rest, entry, keep_head=head_required)
    wanted = {id(each) for tensor in rest.values() for each in origins_of(tensor)}
    unreadable = [name for name in obstacles if id(stored.tensors[name]) in wanted]
    problem = f"{first_names(unreadable)} cannot be read: {obstacles[unreadable[0]]}" if unreadable else ""
    useless = [name for name in bad if id(stored.tensors[name]) in wanted]
    problem = problem or (f"{bad[useless[0]]} in {first_names(useless)}" if useless else "")
    return compare(own, rest, entry, head_required=head_required), problem


def guess(entry: Entry, stored: StoredState) -> str:
    """Guess why a file does not fill a model.

    Args:
        entry: The model that was asked for.
        stored: The file.
    """
    matches, names = match_all(stored), stored.tensors
    if not matches:
        return f"no model of the zoo has names like {first_names(names, 3)}: another network, or renamed tensors"
    best = matches[0]
    if best.model == entry.name:
        return f"a {entry.name!r} of other widths, with parts missing, or with parts of another network added"
    if not best.complete:
        return f"the closest model is {best.model!r}, with {best.matched} of {best.needed} tensors"
    absent = [part.removesuffix(".") for part in entry.required if not any(f".{part}" in f".{name}" for name in names)]
    lacks = f"; it has nothing under {', '.join(absent)}" if absent else ""
    return f"the file holds a {best.model!r} and no more{lacks}. That loads with {best.call}"
