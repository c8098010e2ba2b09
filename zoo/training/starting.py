"""The weights that a pre-training run begins with: `--init` fills the parts of a method that they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.checkpoint import check_values, find_prefix, is_counter, load_report
from zoo.entry import Config, State
from zoo.errors import OptionError
from zoo.formats import RANDOM
from zoo.messages import first_names
from zoo.progress import say
from zoo.provenance import base_of
from zoo.training import distributed
from zoo.training.args import arg, flag_of
from zoo.training.base_weights import BaseWeights, find_weights, warn_of_other_input
from zoo.training.resuming import must_resume, noted_base

ABSENT = "not found in the file"


class Starting(Protocol):
    """Arguments that say what a pre-training run begins with."""

    init: str
    out: str
    resume: bool


def init_arg(*, was: str = "") -> Any:
    """Declare the field `init` of a recipe; `was` as for `zoo.training.args.arg`."""
    return arg(
        "weights to begin with, MODEL, MODEL.TAG or a file; parts that these lack start at random, and all do without",
        "",
        was=was,
    )


@dataclass(frozen=True)
class Part:
    """A part of a method that weights may have, whole or not at all."""

    label: str
    """What it is, in words."""
    model: str
    """Entry whose network has it."""
    names: Mapping[str, str]
    """Prefixes of its tensors in that network -> in a network of the method."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `load_model` that ask for it."""


@dataclass(frozen=True)
class Own:
    """Tensors of a method that no entry has. What its pre-training saved has them under the method's names."""

    label: str
    """What they are, in words."""
    names: tuple[str, ...]
    """Their names in the method."""
    needs: str = ""
    """Label of the part without whose weights they mean nothing; empty for none."""
    refused: str = ""
    """Why the run does not take them, whatever the file has; empty where it does."""


def same_names(prefixes: Sequence[str], inside: str = "") -> dict[str, str]:
    """`Part.names` of a part whose tensors have the entry's names in the method too, behind a prefix."""
    return {prefix: f"{inside}{prefix}" for prefix in prefixes}


def start_from_init(
    method: nn.Module,
    args: Starting,
    parts: Sequence[Part],
    *,
    networks: Sequence[str],
    input: Mapping[str, Any],
    own: Sequence[Own] = (),
    decided: Callable[[Config], Mapping[str, Any]] = lambda facts: {},
) -> dict[str, Any]:
    """Fill the parts of a method that the weights of `--init` have, and say in a line which these are.

    A run that is resumed has its weights in OUT: nothing is filled. Called by all processes.

    Args:
        method: The method with random weights, on the CPU.
        args: The run.
        parts: Parts of the method, first the encoder, which the weights must have.
        networks: Prefixes in the method of the network that is trained, and of its momentum copies, which start equal.
        input: As for `pretraining_header`: the fields of the entries' `Preprocessing` that the run changed.
        own: Further tensors of the method.
        decided: From what the weights say of the encoder's network to the arguments of the run that must say the same.

    Returns:
        The base of the header: where the weights are from, with their licences.

    Raises:
        OptionError: OUT holds a run and `resume` is off; the weights are for other arguments, or of another family.
        CheckpointMismatchError: The file does not hold the encoder.
        UnknownModelError: `--init` is neither the name of weights nor a file; or another error of `load_model`.
    """
    with distributed.raising_together():
        if must_resume(Path(args.out), resume=args.resume):
            return noted_base(args)
        if not args.init:
            return dict(RANDOM)
        weights = find_weights(args.init, parts[0].model)
        check_decided(args, weights, parts[0], decided)
        lacking = fill(method, weights, parts, networks)
        lacking |= fill_own(method, weights, own, lacking)
        base = base_of(weights.report)
    if distributed.rank() == 0:
        say(start_in_words(weights, parts, own, lacking))
        warn_of_other_input(weights, parts[0].model, input)
    return base


def check_decided(
    args: Starting, weights: BaseWeights, encoder: Part, decided: Callable[[Config], Mapping[str, Any]]
) -> None:
    """Raise `OptionError` where the run has another value of an argument that its weights decide."""
    settled = load_report(weights.network(encoder.model, encoder.options)).options
    said = decided({**weights.facts(encoder.model), **settled})
    if other := [name for name, value in said.items() if value != getattr(args, name)]:
        theirs, ours = (
            " ".join(f"{flag_of(name)} {value}" for name, value in pairs)
            for pairs in ([(name, said[name]) for name in other], [(name, getattr(args, name)) for name in other])
        )
        raise OptionError(f"--init {args.init} is of a run with {theirs}, this one has {ours}: give {theirs}")


def fill(method: nn.Module, weights: BaseWeights, parts: Sequence[Part], networks: Sequence[str]) -> dict[str, str]:
    """Fill the parts of a method, in the network that is trained and in its momentum copies.

    Returns:
        Why a part stays as it is, by its label.

    Raises:
        OptionError: The encoder does not fit.
    """
    tensors = method.state_dict()
    lacking: dict[str, str] = {}
    for part in parts:
        is_encoder = part is parts[0]
        if not is_encoder and not weights.has(part.model, tuple(part.names)):
            lacking[part.label] = ABSENT
            continue
        values = values_of(part, weights)
        start = tuple(f"{networks[0]}{prefix}" for prefix in part.names.values())
        wanted = {name.removeprefix(networks[0]): t for name, t in tensors.items() if name.startswith(start)}
        why = misfit(wanted, values)
        if why and is_encoder:
            raise OptionError(
                f"--init {weights.name}: its {part.label} is not that of this run: {why}. Give the arguments that it "
                "was trained with, or other weights"
            )
        if why:
            lacking[part.label] = why
            continue
        _copy({f"{prefix}{name}": value for prefix in networks for name, value in values.items()}, tensors)
    return lacking


def values_of(part: Part, weights: BaseWeights) -> State:
    """Tensors of a part that the weights fill, under the names that a network of the method has."""
    network = weights.network(part.model, part.options)
    report, state = load_report(network), network.state_dict()
    filled = (*report.loaded, *report.adapted)
    return {
        f"{new}{name.removeprefix(old)}": state[name]
        for old, new in part.names.items()
        for name in filled
        if name.startswith(old)
    }


def fill_own(method: nn.Module, weights: BaseWeights, own: Sequence[Own], lacking: Mapping[str, str]) -> dict[str, str]:
    """Fill the tensors of a method that no entry has.

    Args:
        method: The method.
        weights: The weights.
        own: The tensors.
        lacking: From `fill`.

    Returns:
        Why some stay as they are, by their label.
    """
    tensors, stored = method.state_dict(), weights.stored
    found: dict[str, str] = {}
    for each in own:
        prefix = find_prefix(stored.tensors, each.names) or ""
        theirs = {name: stored.tensors[f"{prefix}{name}"] for name in each.names if f"{prefix}{name}" in stored.tensors}
        if not theirs:
            found[each.label] = ABSENT
        elif each.refused:
            found[each.label] = each.refused
        elif each.needs in lacking:
            found[each.label] = f"of no use without the {each.needs}"
        elif why := misfit({name: tensors[name] for name in each.names}, theirs):
            found[each.label] = why
        else:
            values = stored.read(theirs)
            check_values(values, stored.path)
            _copy(values, tensors)
    return found


def misfit(wanted: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> str:
    """How tensors of a file differ in names and shapes from those of a run, in words; empty where they do not."""

    def shape(tensors: Mapping[str, Tensor], name: str) -> str:
        return "x".join(map(str, tensors[name].shape)) if name in tensors else "absent"

    pairs = {name: (shape(values, name), shape(wanted, name)) for name in {**wanted, **values} if not is_counter(name)}
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not other:
        return ""
    theirs, ours = next(iter(other.values()))
    return f"{first_names(other, 1)}: {theirs} in the file, {ours} in the run"


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write values into the tensors of their names; a momentum copy lacks the parts that it does not need."""
    for name, value in values.items():
        if name in tensors:
            tensors[name].copy_(value)


def start_in_words(weights: BaseWeights, parts: Sequence[Part], own: Sequence[Own], lacking: Mapping[str, str]) -> str:
    """The line that says what was loaded, what is fresh, and why."""
    labels = [part.label for part in parts] + [each.label for each in own]
    loaded = [label for label in labels if label not in lacking]
    reasons = {why: [label for label, its in lacking.items() if its == why] for why in lacking.values()}
    fresh = [f"{', '.join(labels)} ({why})" for why, labels in reasons.items()]
    note = load_report(weights.network(parts[0].model, parts[0].options)).note
    line = f"begins with {weights.title}: {', '.join(loaded)} loaded"
    return "; ".join([line, *([f"fresh: {', '.join(fresh)}"] if fresh else []), *([note] if note else [])])
