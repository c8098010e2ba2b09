"""Checks of the sizes of volumes and networks, before a network is built or run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

from zoo.entries.monai_ssl.convert import cube_side
from zoo.entry import Config
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.networks.sizes import check_whole
from zoo.networks.vit_names import PATCH

ImgSize: TypeAlias = "int | Sequence[int]"

log = logging.getLogger("zoo")

PUBLISHED_SIZE = 96
"""Voxels along a side of the crops and windows of the published runs."""
HEAD_WIDTH = 64
"""Channels of one attention head: 768 over 12 in the published network."""
WIDTHS = {"img_size": None, "hidden_size": 768, "mlp_dim": 3072, "num_heads": None}
"""Options of a ViT, with their defaults."""


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


def vit_options(config: Config) -> tuple[dict[str, Any], ImgSize]:
    """Arguments of a ViT, `img_size` that of its table of positions; and the windows that the network is for.

    Raises:
        CheckpointMismatchError: The file contradicts an option, or its table is for no cube and nothing says what for.
    """
    check_options(config)
    table = _table_size(config["img_size"], config.get("positions"))
    options = {name: config[name] for name in ("in_channels", *WIDTHS)} | {"img_size": table}
    return options, config["img_size"] or table


def swin_options(config: Config) -> dict[str, Any]:
    """Arguments of a Swin UNETR, or of its transformer.

    Raises:
        CheckpointMismatchError: The file contradicts an option.
    """
    check_options(config)
    options = {name: config[name] for name in ("in_channels", "feature_size", "num_classes", "merging")}
    return options | {"two_convolutions": config.get("two_convolutions", False)}


def _table_size(asked: ImgSize | None, positions: int | None) -> ImgSize:
    """Voxels that a file's table is for: those that were asked for if they are as many positions, else a cube."""
    cube = PUBLISHED_SIZE if positions is None else PATCH * (cube_side(positions) or 0)
    if asked is not None:
        grid = tokens_of(asked)
        if positions in (None, prod(grid)):
            if positions and cube and len(set(grid)) > 1:
                log.warning(
                    "img_size=%s: the %d positions of the file are taken to be %s, though a cube of %d voxels has as "
                    "many. If the file is for that cube, leave img_size out: inputs of any size are interpolated",
                    asked,
                    positions,
                    " x ".join(map(str, grid)),
                    cube,
                )
            return asked
    if not cube:
        raise CheckpointMismatchError(
            f"img_size={asked}: the file has {positions} positions, which make no cube, so their size is unknown. "
            f"Give it in voxels, img_size=(D, H, W), so that D/{PATCH} x H/{PATCH} x W/{PATCH} is {positions}; the "
            "network takes inputs of other sizes, too"
        )
    return cube


def check_options(config: Config) -> None:
    """Raise `CheckpointMismatchError` where an option contradicts what a file says."""
    there = config.get("in_file", {})
    if wrong := [name for name, value in there.items() if config[name] != value]:
        asked = ", ".join(f"{name}={config[name]!r} (the file: {there[name]})" for name in wrong)
        raise CheckpointMismatchError(
            f"the file contradicts {asked}. A file settles its own widths: leave {' and '.join(wrong)} out, or take a "
            "file with these widths"
        )
