"""Builds the transform of a 2D input contract, which refuses images that cannot meet it.

Every image is decoded to fractions of its largest possible intensity first and resized in float32, so that 12- and
16-bit detectors keep their grey levels. What cannot be right raises `InputContractError`, what is merely odd is logged
as a warning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.entry import PERCENTILES, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import FILM, check_array, describe_array, is_dicom, pil_pixels, plain_tensor, read_dicom, read_picture
from zoo.transforms.slices import SliceTransform, build_slice_transform
from zoo.transforms.volume import VolumeTransform, build_volume_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

ImageInput: TypeAlias = "str | PathLike[str] | Image.Image | NDArray[Any] | Tensor"

log = logging.getLogger("zoo")

SMALLEST_SIDE = 32
_COLOUR_TOLERANCE = 2.5 / 255  # what JPEG compression adds to a grey film that was stored as colour
_FAINT = 0.1
_ELONGATED = 2.5
_OF_VOLUMES = ("affine", "orientation", "spacing", "spline", "window", "normalise", "thickness")


def build_transform(contract: Preprocessing) -> ImageTransform | SliceTransform | VolumeTransform:
    """Return the transform that executes a contract; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    channels, size, resize = contract.channels, contract.size, contract.resize
    if contract.normalise == PERCENTILES:
        return build_slice_transform(contract)
    if len(size) != 2:
        return build_volume_transform(contract)
    if len(set(channels)) != 1:
        raise OptionError(f"no transform makes an input of size {size} with channels {channels}: 2D and grey is known")
    if stray := [name for name in _OF_VOLUMES if getattr(contract, name) is not None]:
        raise OptionError(f"{', '.join(stray)} with size {size}: these fields describe volumes")
    if resize is not None and resize < max(size):
        raise OptionError(f"the shorter side is resized to {resize}, too little for a centre crop of {size}")
    if contract.modality not in (None, FILM):
        raise OptionError(f"modality {contract.modality!r} with size {size}: of DICOM, films are read ({FILM!r})")
    for name, values in (("mean", contract.mean), ("std", contract.std)):
        if values is not None and len(values) != len(channels):
            raise OptionError(f"{name} has {len(values)} value(s) for {len(channels)} channel(s)")
    return ImageTransform(contract)


@dataclass(frozen=True, repr=False)
class ImageTransform:
    """Makes one 2D grey image the input of a network; stateless, picklable, safe in data loader workers.

    A grey image is repeated over the channels of the entry. For a network built with `in_channels=1` take
    `transform(image)[:1]`.
    """

    preprocessing: Preprocessing

    def __call__(self, image: ImageInput) -> Tensor:
        """Return `image` as a float32 tensor `(C, H, W)` in the range the network was trained on.

        Args:
            image: One of these, holding one image of at least 32 pixels a side.
                A path to PNG, JPEG, TIFF, BMP, PGM or DICOM (told by content, not by suffix). DICOM: rescale, VOI LUT
                or first window, MONOCHROME1 inverted, then scaled by the window's or the stored range.
                A PIL image; mode `I` is taken as 16-bit, an alpha channel must be opaque.
                An array or tensor `(H, W)`, `(1 or 3, H, W)` or `(H, W, 1 or 3)`; where two readings are possible, the
                first axis is the channels. Integers are divided by their type's maximum, floats must lie in the
                declared range. A tensor stays on its device and in its graph.
                Colour is converted to luminance (ITU-R 601), with a warning where the channels really differ.

        Raises:
            InputContractError: the image cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: the path does not exist.
        """
        source = _describe(image)
        values, limits = _decode(image, source, self.preprocessing.value_range)
        grey = _to_grey(_to_fraction(_channels_first(values, source), limits, source), source)
        _warn_if_odd(grey, self.preprocessing, source)
        return _finish(_fit(grey, self.preprocessing), self.preprocessing)

    def __repr__(self) -> str:
        contract = self.preprocessing
        low, high = contract.value_range
        height, width = contract.size
        steps = {
            "read": "PNG, JPEG, TIFF, BMP, PGM, DICOM, PIL image, array or tensor",
            "scale": f"integers by their type's maximum, floats must lie in [{low:g}, {high:g}] ({contract.units})",
            "grey": "colour to luminance",
            "resize": f"to {height} x {width}" if contract.resize is None else f"shorter side to {contract.resize}",
            "crop": "none" if contract.resize is None else f"centre {height} x {width}",
            "normalise": "none"
            if contract.mean is None and contract.std is None
            else f"mean {contract.mean}, std {contract.std}",
            "output": f"float32 ({len(contract.channels)}, {height}, {width}): {', '.join(contract.channels)}",
        }
        return "ImageTransform(\n" + "".join(f"    {name:<10}{text}\n" for name, text in steps.items()) + ")"


def _describe(image: ImageInput) -> str:
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


def _decode(image: ImageInput, source: str, limits: tuple[float, float]) -> tuple[Tensor, tuple[float, float]]:
    """Return the stored values and the limits that floats among them must keep."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(image, torch.Tensor):
        return plain_tensor(image, source), limits
    if isinstance(image, (str, PathLike)):
        path = Path(image)
        if is_dicom(path):
            return torch.from_numpy(read_dicom(path)), (0.0, 1.0)
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
        return torch.from_numpy(np.asarray(array).astype(native, order="C")), limits


def _channels_first(values: Tensor, source: str) -> Tensor:
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
            f"{source} has shape {shape}; one image (H, W), (1 or 3, H, W) or (H, W, 1 or 3) is expected. {_way(shape)}"
        )
    if min(planes.shape[1:]) < SMALLEST_SIDE:
        raise InputContractError(
            f"{source} is {planes.shape[1]} x {planes.shape[2]} pixels: at least {SMALLEST_SIDE} a side are expected"
        )
    return planes


def _way(shape: tuple[int, ...]) -> str:
    """Say how to get from an array of a wrong shape to an image."""
    if len(shape) == 4:
        return "For a batch, call the transform on each image: torch.stack([transform(image) for image in batch])"
    if len(shape) == 3 and 4 in (shape[0], shape[2]):
        return "Four channels: leave out the alpha channel, image[..., :3] or image[:3]"
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
    type_info, lowest, highest = torch.iinfo(values.dtype), int(numbers.min()), int(numbers.max())
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
    return numbers / type_info.max


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
        log.warning("%s is a colour image (channels differ by up to %.2f): its luminance is taken", source, spread)
    red, green, blue = fraction
    luminance: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return luminance[None]


def _warn_if_odd(grey: Tensor, contract: Preprocessing, source: str) -> None:
    """Log what a network will accept and a radiologist would not."""
    lowest, highest = float(grey.min()), float(grey.max())
    if lowest == highest:
        log.warning("%s is constant (%.3g everywhere): its features carry no information", source, highest)
    elif highest - lowest < _FAINT:
        log.warning(
            "%s has hardly any contrast: it spans %.3g to %.3g of the full scale. Unwindowed, 12-bit data in a 16-bit "
            "type, or divided twice? Scale it by its true maximum or window and pass floats in the declared range",
            source,
            lowest,
            highest,
        )
    height, width = grey.shape[1:]
    short, long = sorted((height, width))
    if contract.resize is not None and long > _ELONGATED * short:
        log.warning("%s is %d x %d: the centre crop discards more than half of it", source, height, width)


def _fit(grey: Tensor, contract: Preprocessing) -> Tensor:
    """Resize (bilinear, antialiased) and cut the centre out of `(1, H, W)`."""
    from torch.nn.functional import interpolate

    height, width = contract.size
    target = (height, width)
    if contract.resize is not None:
        tall, wide = (contract.resize * side // min(grey.shape[1:]) for side in grey.shape[1:])
        target = (tall, wide)
    resized: Tensor = interpolate(grey[None], size=target, mode="bilinear", antialias=True)[0]
    top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)
    return resized[:, top : top + height, left : left + width]


def _finish(fraction: Tensor, contract: Preprocessing) -> Tensor:
    """Clip fractions, bring them to the declared range, repeat them over the channels and normalise."""
    low, high = contract.value_range
    output = (low + fraction.clamp(0, 1) * (high - low)).repeat(len(contract.channels), 1, 1)
    if contract.mean is not None:
        output = output - output.new_tensor(contract.mean).view(-1, 1, 1)
    if contract.std is not None:
        output = output / output.new_tensor(contract.std).view(-1, 1, 1)
    return output
