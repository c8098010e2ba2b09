"""Label maps: a whole number for each pixel or voxel of an image, 0 for the background."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.files import write_atomically
from zoo.images.pictures import PIL_FORMATS, read_picture
from zoo.images.reading import refused
from zoo.images.volumes import Volume, read_volume

if TYPE_CHECKING:
    import numpy as np
    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray
    from PIL import Image

MOST_CLASSES = 256
"""That labels of one byte tell apart."""


def read_labels(path: Path) -> Volume:
    """Read a label map `(i, j, k)` with its affine, in any form that `read_volume` reads; of few slices, too.

    Raises:
        InputContractError: It cannot be read, or has values that no class can have.
    """
    import numpy as np

    found = read_volume(path, least=(1, 1, 1))  # how large it must be, its image says
    values = np.unique(found.values)
    if wrong := [f"{value:g}" for value in values if not (0 <= value < MOST_CLASSES and value == round(value))]:
        raise InputContractError(f"{path} has values {', '.join(wrong[:10])}: whole numbers from 0 on are expected")
    return found


def read_label_picture(path: Path) -> NDArray[np.uint8]:
    """Read the labels of a film, `(H, W)`, from a picture of grey levels, or of colours by their number in a palette.

    Raises:
        InputContractError: It cannot be read, has other colours, or more than 8 bits, or grey levels that are brighter
            where their numbers are lower, so that nobody knows which of the two is meant.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with refused(f"cannot read {path} as labels"), Image.open(path, formats=PIL_FORMATS) as image:
        if image.mode == "P":
            _check_palette(image, path)
            return np.asarray(ImageOps.exif_transpose(image))  # as `read_picture` does with films
    pixels = read_picture(path)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.max() >= MOST_CLASSES:
        raise InputContractError(
            f"{path} is no label map: one whole number from 0 to {MOST_CLASSES - 1} for each pixel is expected, as a "
            "grey PNG has them"
        )
    return pixels.astype(np.uint8)


def _check_palette(image: Image.Image, path: Path) -> None:
    import numpy as np

    colours = np.array(image.getpalette("RGB") or ()).reshape(-1, 3)[np.unique(np.asarray(image))]
    if (colours == colours[:, :1]).all() and (np.diff(colours[:, 0]) < 0).any():
        raise InputContractError(
            f"{path} has a palette of grey levels {', '.join(map(str, colours[:, 0]))} for its numbers, brighter ones "
            "first: whether number or level is the label is not known. Save it as a grey PNG of the labels"
        )


def write_label_picture(labels: NDArray[np.uint8], file: Path) -> None:
    """Write the labels of a film `(H, W)` as a PNG whose grey levels they are, whole or not at all."""
    from PIL import Image

    write_atomically(file, lambda temporary: Image.fromarray(labels).save(temporary, format="PNG"))


def write_labels(
    labels: NDArray[Any], file: Path, affine: NDArray[Any] | None, header: Nifti1Header | None = None
) -> None:
    """Write labels as a NIfTI of uint8, compressed, whole or not at all; the same labels give the same bytes.

    Args:
        labels: `(i, j, k)`, from 0 to 255.
        file: `*.nii.gz`; its folder is made.
        affine: `(4, 4)`, from voxel `(i, j, k, 1)` to mm; None where nobody knows it.
        header: Of the image that they are of, whose codes and units are taken over; None where it is no NIfTI.
    """
    import numpy as np
    from nibabel.nifti1 import Nifti1Image

    found = Nifti1Image(labels, affine, header, dtype=np.uint8)
    found.header["cal_min"] = found.header["cal_max"] = 0  # grey levels, in which viewers would show no label
    write_atomically(file, lambda temporary: temporary.write_bytes(gzip.compress(found.to_bytes(), mtime=0)))
