"""Checks of what a 3D network is built for and what it is given, before it is built or run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from zoo.errors import InputContractError, OptionError

if TYPE_CHECKING:
    from torch import Tensor


def check_volumes(x: Tensor, channels: int, step: int) -> Tensor:
    """Return volumes as they came if a network takes them.

    Args:
        x: Volumes `(N, C, D, H, W)`.
        channels: C of the network.
        step: What D, H and W must divide by: the rest would be cut off by a convolution with that stride.

    Raises:
        InputContractError: They have other axes, channels or sides.
    """
    check_axes(x, channels)
    sides = tuple(x.shape[2:])
    if wrong := [f"axis {name} has {side}" for name, side in zip("DHW", sides, strict=True) if not side or side % step]:
        raise InputContractError(
            f"the volumes have {times(sides)} voxels; multiples of {step} are expected, and "
            f"{', '.join(wrong)}. Pad them, or slide a window over them (zoo.networks.windows)"
        )
    return x


def check_axes(x: Tensor, channels: int, space: str = "D, H, W") -> None:
    """Check that a network is given a batch of volumes with its channels.

    Args:
        x: Volumes `(N, C, *space)`.
        channels: C of the network.
        space: The axes in space by their names, for messages.

    Raises:
        InputContractError: They have other axes or channels.
    """
    if x.ndim != 5:
        forgotten = f". x[None] makes a batch of one volume (C, {space})" if x.ndim == 4 else ""
        raise InputContractError(
            f"the input has the shape {tuple(x.shape)}; volumes (N, C, {space}) are expected{forgotten}"
        )
    if x.shape[1] != channels:
        raise InputContractError(
            f"the volumes {tuple(x.shape)} have {x.shape[1]} channel(s), the network takes {channels}: choose the "
            f"channels, or load the network with in_channels={x.shape[1]}, which adapts its first convolution"
        )


def times(sides: Iterable[int]) -> str:
    """Return sides as messages name them: `96 x 96 x 32`."""
    return " x ".join(map(str, sides))


def check_fixed(sides: Iterable[int], reason: str) -> None:
    """Check that a network which must know the sides of its input gets them.

    Args:
        sides: Pixels or voxels, or cells of a map, along each axis.
        reason: Why it must.

    Raises:
        InputContractError: They are open, as in a graph that is exported for any of them.
    """
    import torch

    if any(isinstance(side, torch.SymInt) for side in sides):
        raise InputContractError(
            f"the sides of the input are open in this graph, and fixed ones are expected: {reason}. Export a graph for "
            "each size, with the size of the batch alone as a dynamic shape"
        )


def check_windows(overlap: float, batch_size: int) -> None:
    """Raise `OptionError` where windows cannot overlap so, or not so many be taken at once."""
    if not 0 <= overlap < 1 or batch_size < 1:
        raise OptionError(
            f"overlap={overlap}, batch_size={batch_size}: from 0 to below 1, and at least 1, are expected"
        )


def check_whole(**numbers: int) -> None:
    """Check numbers that count something.

    Raises:
        OptionError: One is not a whole number, or below 1.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}={value!r}: expected a whole number, 1 or more")
