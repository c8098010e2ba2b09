"""Joins tensors that are one in a network and several in a file, such as query, key and value of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.formats.floats import viewed

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import State

_ATTRIBUTE = "zoo_parts"


def join(parts: Sequence[Tensor]) -> Tensor:
    """Return what stands for several tensors of a file one after the other, along their first axis.

    It has their shape and type, and its values when the file is read: `StoredState.read` joins them then.

    Args:
        parts: Of one type, and of the same sides but for the first.
    """
    import torch

    rows = sum(part.shape[0] for part in parts)
    joined = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, device="meta")
    setattr(joined, _ATTRIBUTE, tuple(parts))
    return joined


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that `join` made this one of; empty for any other."""
    parts: tuple[Tensor, ...] = getattr(tensor, _ATTRIBUTE, ())
    return parts


def origins_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that one may be, in the file that `convert` took it from: itself, what it views, what it joins."""
    return tensor, viewed(tensor), *parts_of(tensor)


def take_apart(wanted: State) -> dict[str, list[str]]:
    """Replace each joined tensor by its parts, under separate names.

    Args:
        wanted: Changed in place.

    Returns:
        Names of the parts by that of the whole, for `put_together`.
    """
    joined = {name: parts for name, tensor in wanted.items() if (parts := parts_of(tensor))}
    names = {name: [f"{name} (part {i})" for i in range(len(parts))] for name, parts in joined.items()}
    for name, parts in joined.items():
        del wanted[name]
        wanted.update(zip(names[name], parts, strict=True))
    return names


def put_together(values: State, joined: dict[str, list[str]]) -> State:
    """Return the tensors with those in one that `take_apart` took apart, one after the other; `values` is changed."""
    import torch

    return {name: torch.cat([values.pop(part) for part in parts]) for name, parts in joined.items()} | values
