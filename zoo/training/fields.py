"""Random fields for synthetic data: what varies smoothly from place to place in a phantom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def smooth_field(
    rng: np.random.Generator, shape: Sequence[int], spacing: float, length: float
) -> npt.NDArray[np.float64]:
    """Random field of unit variance.

    Args:
        rng: Draws it.
        shape: Of the field, in voxels.
        spacing: Millimetres of a voxel along each axis.
        length: Millimetres over which it varies.
    """
    field: npt.NDArray[np.float64] = rng.normal(size=[max(4, round(n * spacing / length) + 1) for n in shape])
    for side in shape:  # each pass stretches the first axis and moves it to the end; all at once take 4 times as long
        along = ndimage.zoom(np.eye(len(field)), (side / len(field), 1), order=3)
        field = np.tensordot(field, along, (0, 1))
    normalised: npt.NDArray[np.float64] = (field - field.mean()) / field.std()
    return normalised
