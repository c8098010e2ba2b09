"""Runs an entry's `convert` on the tensors of a file, and says why a tensor is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoo.formats import origins_of

if TYPE_CHECKING:
    from zoo.entry import Config, Entry, State

_ANY_PREFIX = r"(?:.*\.)?"


def convert(entry: Entry, tensors: State) -> tuple[State, Config]:
    """Run an entry's `convert`, and add to what the file knows the input channels of its first convolution.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean.
    """
    state, facts = entry.convert(tensors)
    stem = next((state[name] for name in (entry.stem, *entry.side_stems) if name in state), None)
    axis = entry.stem_axis
    known: Config = {} if stem is None or stem.ndim < axis + 2 else {"in_channels": stem.shape[axis]}
    return state, known | facts


def left_out(stored: State, kept: State, unused: Mapping[str, str]) -> dict[str, str]:
    """Say why each tensor that `convert` did not keep was left out.

    Args:
        stored: Tensors of the file.
        kept: What `convert` returned for them.
        unused: The entry's patterns.
    """
    keeps = {id(each) for tensor in kept.values() for each in origins_of(tensor)}
    names = (name for name, tensor in stored.items() if id(tensor) not in keeps)
    return {name: reason_unused(name, unused, behind=_ANY_PREFIX) or "beside the network" for name in names}


def reason_unused(name: str, unused: Mapping[str, str], *, behind: str = "") -> str | None:
    """Why an entry leaves a tensor out; None where it does not, and the network must have the name.

    Args:
        name: As the network has it, or with `behind` as a file has it.
        unused: The entry's patterns -> reasons.
        behind: Pattern of what may stand in front.
    """
    return next((why for pattern, why in unused.items() if re.fullmatch(f"{behind}(?:{pattern})", name)), None)
