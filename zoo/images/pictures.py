"""Reads 2D image files into arrays: what PIL reads, and DICOM.

It decodes and applies the grey scale of a file's header; `zoo.transforms.greys` decides what a network accepts.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.dicom_bounds import decode_pixels
from zoo.images.dicom_files import element, read_dataset, starts_as_dicom
from zoo.images.films import check_film
from zoo.images.nifti import is_nifti, read_header
from zoo.images.reading import MOST_PIXELS, check_count, refused, start_of
from zoo.images.whole import check_file, check_jpeg, check_jpeg2000, check_png
from zoo.oddities import warn_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_MOST_FRAMES = 100
_TAGS_LOST = ("Tag data larger than file", "Truncated File Read")
"""PIL's warnings about tags that a TIFF lacks bytes for; it then uses defaults, under which black may be white."""
_COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 259, 262, 339
"""Tags of a TIFF."""
_SIGNED = {2, 3}
"""Sample formats: signed numbers, and floats."""
PIL_FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "PPM")  # closed, because PIL's EPS reader starts a program
_CHECKS = {"PNG": check_png, "JPEG": check_jpeg, "MPO": check_jpeg, "JPEG2000": check_jpeg2000}  # MPO: JPEG with more
_OTHERS = (
    f". Formats read are {', '.join(PIL_FORMATS)} and DICOM with its preamble; open anything else yourself and pass "
    "the array"
)


def is_dicom(path: Path) -> bool:
    """Tell DICOM by its content, whatever the file's name; see `dicom_files.starts_as_dicom`.

    Raises:
        FileNotFoundError: There is no such file.
        InputContractError: It is not a file that can be read, see `reading.start_of`.
    """
    return starts_as_dicom(start_of(path, "image", may_be_empty=True))


def read_picture(path: Path) -> NDArray[Any]:
    """Return the pixels of a PNG, JPEG, JPEG 2000, TIFF, BMP or PGM file, as `pil_pixels` does.

    Raises:
        InputContractError: The file cannot be read, holds more than one image, or a volume.
    """
    if is_nifti(start_of(path, "image")):
        sides = " x ".join(map(str, read_header(path).get_data_shape()))
        raise InputContractError(
            f"{path} is a volume, NIfTI of {sides} voxels: one picture, such as a film, is expected, and slices of a "
            f"volume are no films. `zoo doctor {path}` says which models take it"
        )
    with refused(f"cannot read {path} as an image", _OTHERS):
        return _picture(path)


def _picture(path: Path) -> NDArray[Any]:
    from PIL import Image

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        image = Image.open(path, formats=PIL_FORMATS)
    with image:
        lost = [said for warning in heard if (said := str(warning.message)).startswith(_TAGS_LOST)]
        if image.format == "TIFF" and lost:
            raise ValueError(lost[0])
        check_count((image.height, image.width), MOST_PIXELS, path, unit="pixels")
        if getattr(image, "is_animated", False):
            raise InputContractError(
                f"{path} holds {_frames(image)} frames; one is expected: open it with PIL, seek to it and pass that"
            )
        if check := _CHECKS.get(image.format or ""):
            check_file(path, check)
        _check_numbers(image)
        image.load()
    pixels = pil_pixels(image, str(path))
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    return 65535 - pixels if white_is_zero and image.mode == "I;16" else pixels  # PIL turns only up to 8 bits over


def _check_numbers(image: Image.Image) -> None:
    """Raise `ValueError` for TIFFs whose numbers PIL reads with their bytes swapped, or leaves turned over."""
    tags = getattr(image, "tag_v2", {})
    if (
        getattr(tags, "prefix", b"") == b"MM"
        and tags.get(_COMPRESSION, 1) != 1
        and {*tags.get(_SAMPLE_FORMAT, ())} & _SIGNED
    ):
        raise ValueError("compressed big-endian TIFFs of signed numbers or floats are not read: save it uncompressed")
    if image.mode == "F" and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError("in TIFFs of floats white is not expected to be zero: turn its values over, and say so in it")


def _frames(image: Image.Image) -> str:
    """The number of frames, up to a bound: counting all takes PIL a time that grows with its square."""
    for index in range(1, _MOST_FRAMES):
        try:
            image.seek(index)
        except EOFError:
            return str(index)
    return f"{_MOST_FRAMES} or more"


def pil_pixels(image: Image.Image, source: str) -> NDArray[Any]:
    """Return the pixels `(H, W)` or `(H, W, 3)` of a PIL image as integers, or floats in mode `F`.

    Mode `I` is taken as 16-bit, an opaque alpha channel is dropped, the EXIF orientation is applied.

    Raises:
        InputContractError: Transparent pixels, `I` beyond 16 bits, or a mode that stores no picture.
    """
    import numpy as np
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA") or (image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise InputContractError(
                f"{source} has transparent pixels, and what lies behind them is unknown: an opaque image is expected. "
                "Paste it on the background it belongs on, or pass image.convert('RGB') to ignore the transparency"
            )
    if image.mode in ("P", "RGBA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.asarray(image)
    if image.mode == "I":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise InputContractError(
                f"{source} stores 32-bit integers from {pixels.min()} to {pixels.max()}: 16-bit values, 0 to 65535, "
                "are expected. Scale it to [0, 1] yourself and pass the float array"
            )
        return pixels.astype(np.uint16)
    if image.mode not in ("L", "RGB", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        raise InputContractError(f"{source} has the PIL mode {image.mode}: convert it to L, I;16, F or RGB")
    return pixels


def read_dicom(path: Path, *, window: bool = True) -> NDArray[Any]:
    """Return a single-frame DICOM image as float32 fractions `(H, W)` or `(H, W, 3)`, black 0 and white 1.

    Rescale or modality LUT, then the VOI LUT or the first window, scaled by the end points of the result (of the stored
    bits where there is neither); MONOCHROME1 is inverted.

    Args:
        path: The file.
        window: Whether VOI LUT and window are applied; without them every value of the file counts.

    Raises:
        InputContractError: No film of the chest, see `films.check_film`; no pixels, several frames, no decoder for the
            compression, or a header without meaning.
    """
    with refused(f"cannot read {path} as DICOM"):
        return _film(read_dataset(path), path, window)


def _film(dataset: Any, path: Path, window: bool) -> NDArray[Any]:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if "PixelData" not in dataset:
        raise InputContractError(f"{path} is DICOM without an image: modality {dataset.get('Modality', 'not given')}")
    for line in check_film(path, dataset):
        warn_of(path, line)
    if frames > 1:
        raise InputContractError(
            f"{path} holds {frames} frames, one image is expected: choose a frame of "
            "pydicom.dcmread(path).pixel_array, scale it to [0, 1] and pass that"
        )
    stored = decode_pixels(dataset, path, most=MOST_PIXELS)
    if dataset.get("PresentationIntentType") == "FOR PROCESSING":
        warn_of(path, f"{path} is raw detector output (FOR PROCESSING): its contrast is not that of a film")
    with refused(f"{path}: the grey scale in its DICOM header has no meaning"):
        _drop_empty(dataset)
        return _dicom_fractions(stored, dataset) if window else _unwindowed(stored, dataset)


def _unwindowed(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Fractions without VOI LUT and window, white where the LUT has white: some LUTs turn a film over."""
    has_table = "VOILUTSequence" in dataset
    shown = _dicom_fractions(stored, dataset) if has_table else None
    for name in ("VOILUTSequence", "WindowCenter", "WindowWidth"):
        dataset.pop(name, None)
    fraction = _dicom_fractions(stored, dataset)
    if shown is not None and shown.flat[fraction.argmin()] > shown.flat[fraction.argmax()]:
        return 1 - fraction
    return fraction


def _drop_empty(dataset: Any) -> None:
    """Take out what a grey scale has no values for: empty tables, half a rescale or half a window count as absent."""
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        tables = [table for table in element(dataset, name) or () if _has_all(table, "LUTDescriptor", "LUTData")]
        if tables:
            setattr(dataset, name, tables)
        elif name in dataset:
            delattr(dataset, name)
    for names in (("RescaleSlope", "RescaleIntercept"), ("WindowCenter", "WindowWidth")):
        if not _has_all(dataset, *names):
            for name in names:
                dataset.pop(name, None)


def _has_all(dataset: Any, *names: str) -> bool:
    return all(element(dataset, name) is not None for name in names)


def _dicom_fractions(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Take stored values through the header's grey scale (or colour) to fractions."""
    import numpy as np
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    kind = dataset.PhotometricInterpretation
    fraction: NDArray[Any]
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        fraction = colours / np.iinfo(colours.dtype).max
    elif kind in ("MONOCHROME1", "MONOCHROME2"):
        low, high = _end_points(dataset)
        fraction = (apply_voi_lut(apply_modality_lut(stored, dataset), dataset) - low) / (high - low)
    else:
        fraction = stored / (2**dataset.BitsStored - 1)
    return (1 - fraction if kind == "MONOCHROME1" else fraction).astype(np.float32)


def _end_points(dataset: Any) -> tuple[float, float]:
    """Return what black and white of a MONOCHROME2 image are after the modality and VOI transformations."""
    if dataset.get("VOILUTSequence"):
        return 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    bits = dataset.BitsStored - (dataset.PixelRepresentation == 1)
    low, high = (-(2.0**bits) if dataset.PixelRepresentation == 1 else 0.0), 2.0**bits - 1
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        low, high = (end * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept) for end in (low, high))
    if dataset.get("WindowWidth") is None and low > high:
        return high, low  # a negative slope turned them over; a window does not, it maps its lower end to `low`
    return low, high
