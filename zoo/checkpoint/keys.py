"""Finds prefixes of tensor names, renames by tables, and says why a tensor is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zoo.errors import CheckpointMismatchError
from zoo.formats import origins_of

if TYPE_CHECKING:
    from zoo.entry import Config, Entry, State

KEY_NETWORKS = frozenset(
    {"encoder_k", "key_encoder", "momentum_encoder", "target_encoder", "teacher", "ema", "ema_model", "model_ema"}
)
"""Names of slowly moving copies that contrastive methods keep beside the network they train."""
_ANY_PREFIX = r"(?:.*\.)?"


def find_prefix(state: Mapping[str, object], anchors: Sequence[str]) -> str | None:
    """Find what stands in front of a network's names in a file, whatever wrappers it was saved in.

    Args:
        state: Names of a file.
        anchors: Names that the network surely has, best its first, its last and some between.

    Returns:
        The one prefix, empty or ending in a dot, behind which all anchors are found; else the one behind which most of
        several are, so that of a file that lacks a tensor the coverage check can say which. None where there is none.
        Key networks (`KEY_NETWORKS`) are passed over.

    Raises:
        CheckpointMismatchError: There are several, or key networks alone.
    """
    counts = Counter(name.removesuffix(anchor) for anchor in anchors for name in state if name.endswith(anchor))
    most = [p for p, count in counts.items() if (not p or p.endswith(".")) and 2 * count > len(anchors)]
    prefixes = [p for p in most if counts[p] == len(anchors)]
    found, partly = ([p for p in some if not KEY_NETWORKS.intersection(p.split("."))] for some in (prefixes, most))
    if len(found or partly) == 1:
        return (found or partly)[0]
    if not prefixes:
        return None
    which = "several copies of the network" if found else "a key network alone, not the one that was trained"
    raise CheckpointMismatchError(
        f"the file holds {which}, behind {' and '.join(repr(p) for p in found or prefixes)}; expected one. Keep the "
        f"names behind the right prefix (`zoo.checkpoint.strip_prefix`) and save them as a separate file"
    )


def strip_prefix(state: State, prefix: str) -> State:
    """Return what stands behind a prefix, without it. Pure.

    Args:
        state: Any state dict.
        prefix: Empty, or ending in a dot.
    """
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def rename_keys(state: State, table: Mapping[str, str]) -> State:
    """Return the state dict with leading parts of names replaced. Pure.

    Args:
        state: Any state dict.
        table: Leading part -> its replacement; of several that fit a name the longest counts. Parts are whole: `"fc"`
            fits `fc` and `fc.weight`, not `fc2.weight`.

    Raises:
        CheckpointMismatchError: Two names would become one.
    """
    longest_first = sorted(table, key=len, reverse=True)

    def renamed(name: str) -> str:
        old = next((part for part in longest_first if name == part or name.startswith(f"{part}.")), None)
        return name if old is None else table[old] + name.removeprefix(old)

    result = {renamed(name): tensor for name, tensor in state.items()}
    if len(result) != len(state):
        raise CheckpointMismatchError(f"renaming by {dict(table)} gives two tensors of the file the same name")
    return result


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
    """Why an entry leaves a tensor out; None where it does not, and the name must find its place.

    Args:
        name: As the network has it, or with `behind` as a file has it.
        unused: The entry's patterns -> reasons.
        behind: Pattern of what may stand in front.
    """
    return next((why for pattern, why in unused.items() if re.fullmatch(f"{behind}(?:{pattern})", name)), None)
