"""Brings a volume to the slices that the network knows.

Order and constants from krishnabits001/domain_specific_cl (dataloaders.py, scripts/create_cropped_imgs.py, validation).
"""

from __future__ import annotations

import numpy as np

from zoo.entries.glcl.volumes import Array, correct_bias
from zoo.images import Volume
from zoo.transforms import crop_or_pad, normalise_percentiles, resample_in_plane


def place_image(image: Volume, size: int, spacing: float, *, n4: bool = False) -> tuple[Array, tuple[int, int]]:
    """Correct the bias field if asked to, normalise, resample in the plane, crop or pad, in this order.

    Args:
        image: (X, Y, Z), turned to how the network knows slices.
        size: Side S of the slices in pixels.
        spacing: Side of a pixel in mm.
        n4: Whether to correct the bias field.

    Returns:
        Slices (Z, S, S) float32, the 1st and 99th percentiles of the whole volume at 0 and 1, not clipped; and the
        pixels of the slices before they were cropped or padded.

    Raises:
        InputContractError: Values are not finite, or nearly all are the same.
    """
    values = correct_bias(image.values, image.grid.spacing) if n4 else image.values
    values = resample_in_plane(normalise_percentiles(values, image.source), _factors(image, spacing))
    return _slices_first(values, size), (values.shape[0], values.shape[1])


def place_mask(mask: Volume, size: int, spacing: float) -> Array:
    """Bring labels (X, Y, Z) to the same pixels, (Z, S, S): each takes the label of the nearest voxel."""
    return _slices_first(resample_in_plane(mask.values, _factors(mask, spacing), order=0), size)


def _factors(volume: Volume, spacing: float) -> tuple[float, float]:
    across, down, _ = volume.grid.spacing
    return across / spacing, down / spacing


def _slices_first(volume: Array, size: int) -> Array:
    return np.ascontiguousarray(np.moveaxis(crop_or_pad(volume, (size, size)), 2, 0))
