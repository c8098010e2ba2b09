"""A volume as cells: small adjacent cubes, each of which has the feature of a patch around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from zoo.errors import InputContractError, OptionError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def lay_cells(shape: Sequence[int], side: int, mask: npt.NDArray[Any] | None = None) -> Indices:
    """Return the cells `(P, 3)` of a volume (D, H, W), (z, y, x) counted in cells; the last of an axis may be shorter.

    Args:
        shape: Of the volume.
        side: Of a cell, in voxels.
        mask: (D, H, W); cells without any voxel of it are left out. None for all cells.

    Raises:
        OptionError: The side is not positive.
        InputContractError: The mask has another shape, or is empty.
    """
    if side < 1:
        raise OptionError(f"cells of {side} voxels a side: at least 1 is expected")
    if mask is None:
        return np.argwhere(np.ones([-(-length // side) for length in shape], dtype=bool))
    if mask.shape != tuple(shape) or not mask.any():
        what = "is empty" if mask.shape == tuple(shape) else f"has the shape {mask.shape}, the volume {tuple(shape)}"
        raise InputContractError(f"the mask of the map {what}")
    return np.argwhere(_sums(mask > 0, side) > 0)


def shares(
    truth: npt.NDArray[Any], cells: Indices, side: int, mask: npt.NDArray[Any] | None = None
) -> tuple[Floats, Floats]:
    """Share of each cell's voxels in the mask that the truth marks, `(P,)`, and the number of these voxels, `(P,)`.

    Args:
        truth: (D, H, W), not 0 in marked voxels.
        cells: `(P, 3)` of `lay_cells`.
        side: Of a cell, in voxels.
        mask: (D, H, W), as for `lay_cells`.

    Raises:
        InputContractError: The truth has another shape than the mask.
    """
    inside = np.ones(truth.shape, dtype=bool) if mask is None else mask > 0
    if inside.shape != truth.shape:
        raise InputContractError(f"the truth has the shape {truth.shape}, its mask {inside.shape}")
    index = tuple(cells.T)
    counts = _sums(inside, side)[index]
    return _sums((truth > 0) & inside, side)[index] / counts, counts


def spread(
    values: npt.NDArray[Any],
    cells: Indices,
    shape: Sequence[int],
    side: int,
    mask: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.float32]:
    """Return values `(P,)` of cells as a volume (D, H, W): linear between the centres of those cells, 0 elsewhere.

    Args:
        values: `(P,)`.
        cells: `(P, 3)` of `lay_cells`.
        shape: Of the volume.
        side: Of a cell, in voxels.
        mask: (D, H, W), as for `lay_cells`; the map is 0 outside.
    """
    grid = torch.zeros(2, *(-(-length // side) for length in shape))
    index = tuple(torch.from_numpy(cells).T)
    grid[0][index] = torch.as_tensor(values, dtype=torch.float32)
    grid[1][index] = 1.0  # the share of a voxel's surroundings that has a value
    fine = F.interpolate(grid[None], scale_factor=side, mode="trilinear", align_corners=False)[0]
    fine = fine[:, : shape[0], : shape[1], : shape[2]]
    found = (fine[0] / fine[1].clamp(min=1e-6)).numpy()
    if mask is None:
        mask = np.repeat(np.repeat(np.repeat((grid[1] > 0).numpy(), side, 0), side, 1), side, 2)
        mask = mask[: shape[0], : shape[1], : shape[2]]
    return np.where(mask > 0, found, np.float32(0.0))


def _sums(volume: Bools, side: int) -> Floats:
    """How many voxels of each cell are set."""
    found: npt.NDArray[Any] = volume
    for axis, length in enumerate(volume.shape):
        found = np.add.reduceat(found, np.arange(0, length, side), axis=axis, dtype=np.int64)
    return found.astype(np.float64)
