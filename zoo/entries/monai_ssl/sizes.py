"""Checks of the sizes of volumes and networks, before a network is built or run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.entries.monai_ssl.convert import PATCH
from zoo.errors import InputContractError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_SIZE = 96
"""Voxels along a side of the crops and windows of the published runs."""
HEAD_WIDTH = 64
"""Channels of one attention head: 768 over 12 in the published network."""


def tokens_of(img_size: int | Sequence[int]) -> tuple[int, int, int]:
    """Return the tokens per axis of volumes of this size.

    Args:
        img_size: Voxels, one number or one per axis.

    Raises:
        OptionError: `img_size` is neither, or not of multiples of 16.
    """
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size,) * 3
    if len(sides) != 3 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise OptionError(f"img_size={img_size!r}: expected a whole number of voxels, or three, one per axis")
    if wrong := [f"axis {i} has {side}" for i, side in enumerate(sides) if side < PATCH or side % PATCH]:
        raise OptionError(f"img_size={img_size!r}: expected multiples of {PATCH} voxels, {', '.join(wrong)}")
    depth, height, width = (side // PATCH for side in sides)
    return depth, height, width


def check_volumes(x: Tensor, channels: int, step: int) -> Tensor:
    """Return volumes unchanged if a network takes them.

    Args:
        x: Volumes `(N, C, D, H, W)`.
        channels: C of the network.
        step: Divisor of D, H and W; a convolution with that stride would cut off the rest.

    Raises:
        InputContractError: They have other axes, channels or sides.
    """
    if x.ndim != 5:
        forgotten = ". x[None] makes a batch of one volume (C, D, H, W)" if x.ndim == 4 else ""
        raise InputContractError(
            f"the input has the shape {tuple(x.shape)}; volumes (N, C, D, H, W) are expected{forgotten}"
        )
    if x.shape[1] != channels:
        raise InputContractError(
            f"the volumes {tuple(x.shape)} have {x.shape[1]} channel(s), the network takes {channels}: choose the "
            f"channels, or load the network with in_channels={x.shape[1]}, which adapts its first convolution"
        )
    sides = tuple(x.shape[2:])
    if wrong := [f"axis {name} has {side}" for name, side in zip("DHW", sides, strict=True) if not side or side % step]:
        raise InputContractError(
            f"the volumes have {' x '.join(map(str, sides))} voxels; multiples of {step} are expected, and "
            f"{', '.join(wrong)}. Pad them, or slide a window over them (zoo.entries.monai_ssl.windows)"
        )
    return x


def check_whole(**numbers: int) -> None:
    """Check numbers that count something.

    Raises:
        OptionError: One is not a whole number, or below 1.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}={value!r}: expected a whole number, 1 or more")


def check_widths(
    img_size: int | Sequence[int],
    in_channels: int,
    hidden_size: int,
    mlp_dim: int,
    num_layers: int,
    num_heads: int | None,
) -> tuple[tuple[int, int, int], int]:
    """Check the numbers that a ViT is built from; return the sides in voxels and the heads.

    Raises:
        OptionError: A number is out of range.
    """
    depth, height, width = tokens_of(img_size)
    check_whole(in_channels=in_channels, hidden_size=hidden_size, mlp_dim=mlp_dim, num_layers=num_layers)
    heads = hidden_size // HEAD_WIDTH if num_heads is None else num_heads
    if num_heads is None and hidden_size % HEAD_WIDTH:
        raise OptionError(
            f"hidden_size={hidden_size} is not a multiple of {HEAD_WIDTH}, the width of a head in the published "
            "network: give num_heads"
        )
    check_whole(num_heads=heads)
    if hidden_size % heads:
        raise OptionError(f"hidden_size={hidden_size} does not divide by num_heads={heads}")
    return (depth * PATCH, height * PATCH, width * PATCH), heads
