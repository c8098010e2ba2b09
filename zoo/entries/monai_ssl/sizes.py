"""Sizes of volumes and of networks, checked before they are built or run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.entries.monai_ssl.names import PATCH
from zoo.errors import InputContractError, OptionError

if TYPE_CHECKING:
    from torch import Tensor


def grid_of(img_size: int | Sequence[int]) -> tuple[int, int, int]:
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


def check_sides(x: Tensor, step: int) -> Tensor:
    """Return volumes as they came if their sides divide by `step`.

    Args:
        x: Volumes `(N, C, D, H, W)`.
        step: Voxels.

    Raises:
        InputContractError: They do not, which a convolution with that stride would cut off without a word.
    """
    if x.ndim != 5:
        raise InputContractError(f"the input has the shape {tuple(x.shape)}; volumes (N, C, D, H, W) are expected")
    check_divides(tuple(x.shape[2:]), step)
    return x


def check_divides(sides: tuple[int, ...], step: int) -> None:
    """Check the sides of a volume.

    Args:
        sides: Voxels `(D, H, W)`.
        step: What each must divide by.

    Raises:
        InputContractError: One does not, or there are not three.
    """
    if len(sides) != 3:
        raise InputContractError(f"the input has {len(sides)} axes of voxels; volumes (N, C, D, H, W) are expected")
    if wrong := [f"axis {name} has {side}" for name, side in zip("DHW", sides, strict=True) if not side or side % step]:
        raise InputContractError(
            f"the volumes have {' x '.join(map(str, sides))} voxels; multiples of {step} are expected, and "
            f"{', '.join(wrong)}. Pad them, or slide a window over them (zoo.entries.monai_ssl.sliding)"
        )


def check_whole(**numbers: int) -> None:
    """Check numbers that count something.

    Raises:
        OptionError: One is no whole number, or below 1.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}={value!r}: expected a whole number, 1 or more")
