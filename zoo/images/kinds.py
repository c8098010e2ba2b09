"""Tells by its header alone what kind of image a path is: a wrong folder is then seen before hours of reading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from zoo.errors import InputContractError
from zoo.images.dicom_files import element, read_dataset, starts_as_dicom
from zoo.images.films import check_film
from zoo.images.nifti import is_nifti
from zoo.images.pictures import PIL_FORMATS
from zoo.images.reading import refused, start_of
from zoo.messages import printable

NIFTI = "volume (NIfTI)"
"""Name of the kind of every NIfTI file."""
_NUMPY = b"\x93NUMPY"


class Kind(NamedTuple):
    """What a header says of an image."""

    name: str
    """In words, such as `"volume (NIfTI)"`; empty where nothing is known of it."""
    is_film: bool = False
    """Whether it may be a film: a picture, or DICOM of one."""
    is_volume: bool = False
    sides: tuple[int, ...] = ()
    """Height and width of a picture."""
    problem: str = ""
    """Why it cannot be read."""


def kind_of(path: Path) -> Kind:
    """Return what kind of image a path is; a file that cannot be read has the reason as its `problem`."""
    if path.is_dir():
        return Kind("DICOM series", is_volume=True)
    try:
        start = start_of(path, "image")
        if is_nifti(start):
            return Kind(NIFTI, is_volume=True)
        if start.startswith(_NUMPY):
            return Kind("array (NumPy)", is_volume=True)
        return _dicom(path) if starts_as_dicom(start) else _picture(path)
    except (InputContractError, FileNotFoundError) as error:
        return Kind("", problem=str(error))


def _dicom(path: Path) -> Kind:
    dataset = read_dataset(path)
    modality, frames = element(dataset, "Modality") or "not given", int(element(dataset, "NumberOfFrames") or 1)
    try:
        check_film(path, dataset)
    except InputContractError:
        return Kind(f"DICOM of modality {printable(modality)}, no film of the chest", is_volume=True)
    rows, columns = (int(element(dataset, name) or 0) for name in ("Rows", "Columns"))
    return Kind("film (DICOM)", is_film=True, is_volume=frames > 1, sides=(rows, columns))


def _picture(path: Path) -> Kind:
    from PIL import Image

    with refused(f"cannot read {path} as an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes and tags: they are judged where the image is read
        with Image.open(path, formats=PIL_FORMATS) as image:
            return Kind(f"picture ({image.format})", is_film=True, sides=(image.height, image.width))
