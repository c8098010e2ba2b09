"""Decodes a 2D image in any form to grey fractions, and refuses what cannot be one."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.entry import MIN_MAX, Preprocessing
from zoo.errors import InputContractError
from zoo.images import FILM, check_array, describe_array, is_dicom, pil_pixels, plain_tensor, read_dicom, read_picture
from zoo.oddities import warn_of
from zoo.transforms.levels import stretch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

ImageInput: TypeAlias = "str | PathLike[str] | Image.Image | NDArray[Any] | Tensor"

SMALLEST_SIDE = 32
_COLOUR_TOLERANCE = 2.5 / 255  # what JPEG compression adds to a grey film that was stored as colour


def describe(image: ImageInput) -> str:
    """Name the image for messages."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(image, (str, PathLike)):
        return str(image)
    kind = type(image).__name__
    if isinstance(image, Image.Image):
        return f"{kind} (mode {image.mode}, {image.width} x {image.height})"
    return describe_array(image) if isinstance(image, (np.ndarray, np.generic, torch.Tensor)) else kind


def grey_fractions(image: ImageInput, source: str, contract: Preprocessing) -> Tensor:
    """Return an image as float32 `(1, H, W)`, each value a fraction of what its type or the contract allows.

    Args:
        image: As `ImageTransform` takes it.
        source: What messages call it.
        contract: Says what range floats have, and whether films of more than 8 bits are scaled by their own.

    Raises:
        InputContractError: It cannot be read, has another shape or kind, or values that cannot be intensities.
        FileNotFoundError: The path does not exist.
    """
    values, limits, is_deep = _decode(image, source, contract)
    grey = _to_grey(_to_fraction(_channels_first(values, source, contract), limits, source), source)
    return stretch(grey) if is_deep and contract.normalise == MIN_MAX else grey


def _decode(image: ImageInput, source: str, contract: Preprocessing) -> tuple[Tensor, tuple[float, float], bool]:
    """Return the stored values, the limits that floats among them must keep, and whether they have more than 8 bits."""
    import numpy as np
    import torch
    from PIL import Image

    limits = contract.value_range
    if isinstance(image, torch.Tensor):
        values = plain_tensor(image, source)
        return values, limits, _is_deep(values)
    if isinstance(image, (str, PathLike)):
        path = Path(image)
        if is_dicom(path):
            return torch.from_numpy(read_dicom(path, window=contract.normalise != MIN_MAX)), (0.0, 1.0), True
        array = read_picture(path)
    elif isinstance(image, Image.Image):
        array = pil_pixels(image, source)
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise InputContractError(f"cannot take {source} as an image: a path, PIL image, array or tensor is expected")
    check_array(array, source)
    native = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # infinite, which is refused
        values = torch.from_numpy(np.asarray(array).astype(native, order="C"))
    return values, limits, _is_deep(values)


def _is_deep(values: Tensor) -> bool:
    """Whether whole numbers are of more than 8 bits. Floats are fractions of a range that somebody chose."""
    return not values.dtype.is_floating_point and values.dtype.itemsize > 1


def _channels_first(values: Tensor, source: str, contract: Preprocessing) -> Tensor:
    """Return the image as `(1 or 3, H, W)`."""
    shape = tuple(values.shape)
    if len(shape) == 2:
        planes = values[None]
    elif len(shape) == 3 and shape[0] in (1, 3):
        planes = values
    elif len(shape) == 3 and shape[2] in (1, 3):
        planes = values.permute(2, 0, 1)
    else:
        raise InputContractError(
            f"{source} has shape {shape}; one image (H, W), (1 or 3, H, W) or (H, W, 1 or 3) is expected. "
            f"{_way(shape, of_films=contract.modality == FILM)}"
        )
    if min(planes.shape[1:]) < SMALLEST_SIDE:
        raise InputContractError(
            f"{source} is {planes.shape[1]} x {planes.shape[2]} pixels: at least {SMALLEST_SIDE} a side are expected"
        )
    return planes


def _way(shape: tuple[int, ...], *, of_films: bool) -> str:
    """Say how to get from an array of a wrong shape to an image."""
    if len(shape) == 4:
        return "For a batch, call the transform on each image: torch.stack([transform(image) for image in batch])"
    if len(shape) == 3 and 4 in (shape[0], shape[2]):
        return "Four channels: leave out the alpha channel, image[..., :3] or image[:3]"
    if len(shape) == 3 and of_films:
        return (
            f"A volume of {shape[0]} slices: this network is 2D and knows films alone, which slices of a volume are "
            "not. `zoo doctor FILE` says which models take volumes; of a batch of films pass one, batch[i]"
        )
    if len(shape) == 3:
        return f"A volume of {shape[0]} slices: this network is 2D, pass one slice, volume[i]"
    return "Index or reshape it to one image"


def _to_fraction(values: Tensor, limits: tuple[float, float], source: str) -> Tensor:
    """Scale to float32 fractions: integers by their type's maximum, floats by the limits they must keep."""
    import torch

    numbers = values.to(torch.float32)
    if values.dtype == torch.bool:
        return numbers
    if values.dtype.is_floating_point:
        return _floats_to_fraction(numbers, limits, source)
    type_info, (lowest, highest) = torch.iinfo(values.dtype), map(int, numbers.aminmax())
    if lowest < 0:
        raise InputContractError(
            f"{source} has integers down to {lowest}: intensities from 0 are expected. Window or shift the values to "
            "[0, 1] and pass floats"
        )
    if type_info.bits > 16 and highest <= 65535:
        raise InputContractError(
            f"{source} has {type_info.bits}-bit integers of at most {highest}, which leaves their full scale unknown: "
            "pass them in the type they were stored in, for example image.astype('uint8') or image.astype('uint16')"
        )
    return numbers.div_(type_info.max)


def _floats_to_fraction(numbers: Tensor, limits: tuple[float, float], source: str) -> Tensor:
    """Check that floats are finite and in range up to rounding, and scale them."""
    import torch

    low, high = limits
    if wrong := int((~torch.isfinite(numbers)).sum()):
        raise InputContractError(f"{source} has {wrong} NaN or infinite value(s): finite intensities are expected")
    fraction = (numbers - low) / (high - low)
    tolerance = 1e-3
    if fraction.min() < -tolerance or fraction.max() > 1 + tolerance:
        lowest, highest = float(numbers.min()), float(numbers.max())
        if lowest < low:
            way = "Pass the image before any mean and deviation are taken off, or window it to that range first"
        elif highest <= 255:
            way = "Values reach 255 on an 8-bit scale: divide by 255, or pass uint8"
        else:
            way = "Divide by the largest value the detector can give (4095 for 12 bit, 65535 for 16), or pass uint16"
        raise InputContractError(
            f"{source} has values from {lowest:g} to {highest:g}; floats from {low:g} to {high:g} are expected. {way}"
        )
    return fraction


def _to_grey(fraction: Tensor, source: str) -> Tensor:
    """Return `(1, H, W)`: the image itself where its channels are equal, else its luminance."""
    if fraction.shape[0] == 1:
        return fraction
    spread = float((fraction.amax(0) - fraction.amin(0)).max())
    if spread == 0:
        return fraction[:1]
    if spread > _COLOUR_TOLERANCE:
        warn_of(source, f"{source} is a colour image (channels differ by up to {spread:.2f}): its luminance is taken")
    red, green, blue = fraction
    luminance: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return luminance[None]
