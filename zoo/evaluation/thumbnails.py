"""Small pictures of images for a page: a film whole, of a volume its middle axial slice."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images import is_dicom, read_dicom, read_picture, read_volume, voxel_sizes
from zoo.tasks.panels import planes_at, shades

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 112
"""Pixels of the longer side: sharp at the 64 CSS pixels that a telephone has for one of five in a row."""
_QUALITY = 80
_ANY_SIDES = (1, 1, 1)


def thumbnail(path: Path) -> str:
    """Return a small JPEG of an image as a `data:` address; the darkest and brightest hundredth are cut off.

    Args:
        path: A film or a volume, whatever the zoo reads.

    Raises:
        InputContractError: It is neither.
        OSError: It cannot be read.
    """
    import numpy as np
    from PIL import Image

    pixels = _pixels(path)
    image = Image.fromarray(np.rint(255 * shades(np.nan_to_num(pixels))).astype(np.uint8))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _pixels(path: Path) -> NDArray[Any]:
    """The pixels `(H, W)` or `(H, W, 3)` of a film, or else of a volume's slice."""
    try:
        return read_dicom(path) if is_dicom(path) else read_picture(path)
    except InputContractError as refusal:
        try:
            return _slice(path)
        except InputContractError:
            raise refusal from None


def _slice(path: Path) -> NDArray[Any]:
    from nibabel import aff2axcodes

    volume = read_volume(path, least=_ANY_SIDES)
    centre = [side // 2 for side in volume.values.shape]
    if volume.affine is None:
        return planes_at(volume.values, centre, None, None)[2][1]
    axes, spacing = aff2axcodes(volume.affine), voxel_sizes(volume.affine).tolist()
    return planes_at(volume.values, centre, axes, spacing)[2][1]
