"""Checks strictly that a state dict fills a network, before any of its tensors is assigned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from zoo.errors import CheckpointMismatchError
from zoo.messages import first_names

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import Entry

Tensors: TypeAlias = "Mapping[str, Tensor]"

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Coverage:
    """The result of comparing a state dict with a network."""

    required: tuple[str, ...]
    """Names of the network that every file must fill."""
    needed: tuple[str, ...]
    """Names that this file must fill: the required ones, and those of other groups that it has a part of."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """Names with another shape or kind of number than the network's."""

    def matched(self, names: tuple[str, ...]) -> int:
        """Number of names among `required` or `needed` that are filled."""
        return len(set(names) - {*self.missing, *self.misshapen})

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, left over or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)


def compare(own: Tensors, state: Tensors, entry: Entry, *, head_required: bool = False) -> Coverage:
    """Compare a file with a network.

    Args:
        own: Tensors of the network.
        state: Tensors of the file, in the network's names.
        entry: Says which groups are required.
        head_required: Whether the head is, too.
    """
    required = (*entry.required, *entry.head) if head_required else entry.required
    present = {group_of(name, entry) for name in state}
    needed = tuple(n for n in own if n in state or not _may_lack(n, state, present, required, entry))
    return Coverage(
        required=tuple(name for name in own if name.startswith(required)),
        needed=needed,
        missing=tuple(name for name in needed if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        misshapen=tuple(n for n, target in own.items() if n in state and not _fits(n, state[n], target, entry)),
    )


def check_coverage(own: Tensors, state: Tensors, entry: Entry, *, head_required: bool = False) -> None:
    """Check that a state dict fills a network: nothing missing that is required, nothing left over, right shapes.

    Args:
        own: Tensors of the network.
        state: Tensors of the file, in the network's names.
        entry: Says which groups are required.
        head_required: Whether the head is, too.

    Raises:
        CheckpointMismatchError: With the counts, and the first names of each kind.
    """
    found = compare(own, state, entry, head_required=head_required)
    if found.complete:
        return
    shapes = [f"{n} is {shape_text(state[n])} in the file, {shape_text(own[n])} expected" for n in found.misshapen]
    raise CheckpointMismatchError(
        f"{found.matched(found.required)} of the {len(found.required)} required tensors of {entry.name!r} match; "
        "nothing was loaded.\n"
        f"  missing ({len(found.missing)}): {first_names(found.missing)}\n"
        f"  unexpected ({len(found.unexpected)}): {first_names(found.unexpected)}\n"
        f"  shapes that differ ({len(shapes)}): {first_names(shapes)}"
    )


def group_of(name: str, entry: Entry) -> str:
    """The part of the head that a tensor belongs to, else its module group."""
    return next((part for part in entry.head if name.startswith(part)), name.partition(".")[0])


def _may_lack(name: str, state: Tensors, present: set[str], required: tuple[str, ...], entry: Entry) -> bool:
    if is_counter(name) and f"{name.removesuffix(_COUNTER)}running_mean" in state:
        return True  # files from before PyTorch 0.4.1 have no counters
    return not name.startswith(required) and group_of(name, entry) not in present


def is_counter(name: str) -> bool:
    """Whether a tensor counts batches, which no output in eval mode depends on."""
    return name.endswith(_COUNTER)


def _fits(name: str, stored: Tensor, target: Tensor, entry: Entry) -> bool:
    """Whether a tensor can take its place, as it is or, where it reads the input, after a change of channels."""
    if is_counter(name) and stored.is_floating_point():  # cast or averaged with the weights; see `values.as_counts`
        return stored.shape == target.shape
    if _kind(stored) != _kind(target):
        return False
    axis = entry.stem_axis
    if name in (entry.stem, *entry.side_stems) and stored.ndim == target.ndim > axis:
        return stored.shape[:axis] + stored.shape[axis + 1 :] == target.shape[:axis] + target.shape[axis + 1 :]
    return stored.shape == target.shape


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    """The kind of numbers in a tensor; their width may differ between file and network."""
    return tensor.is_floating_point(), tensor.is_complex(), "bool" in str(tensor.dtype)


def shape_text(tensor: Tensor) -> str:
    """A tensor's shape for a message, `64x3x7x7`, with its type where that is not a floating-point one."""
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return ("x".join(map(str, tensor.shape)) or "scalar") + kind
