"""Sizes of volumes and of networks, checked before they are built or run."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.entries.monai_ssl.convert import PATCH
from zoo.errors import OptionError
from zoo.networks.sizes import check_whole

PUBLISHED_SIZE = 96
"""Voxels along a side of the crops and windows of the published runs."""
HEAD_WIDTH = 64
"""Channels of one attention head: 768 over 12 in the published network."""


def tokens_of(img_size: int | Sequence[int]) -> tuple[int, int, int]:
    """Return the tokens per axis of volumes of this size.

    Args:
        img_size: Voxels, one number or one per axis.

    Raises:
        OptionError: It is neither, or no multiple of 16.
    """
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size,) * 3
    if len(sides) != 3 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise OptionError(f"img_size={img_size!r}: expected a whole number of voxels, or three, one per axis")
    if wrong := [f"axis {i} has {side}" for i, side in enumerate(sides) if side < PATCH or side % PATCH]:
        raise OptionError(f"img_size={img_size!r}: expected multiples of {PATCH} voxels, {', '.join(wrong)}")
    depth, height, width = (side // PATCH for side in sides)
    return depth, height, width


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
            f"hidden_size={hidden_size} is no multiple of {HEAD_WIDTH}, which one head has in the published network: "
            "say how many there are by num_heads"
        )
    check_whole(num_heads=heads)
    if hidden_size % heads:
        raise OptionError(f"hidden_size={hidden_size} does not divide by num_heads={heads}")
    return (depth * PATCH, height * PATCH, width * PATCH), heads
