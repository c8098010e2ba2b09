"""Builds the transform of any input contract; that of 2D images refuses those that cannot meet it.

Every image becomes fractions of its largest possible intensity first and is resized in float32, so that 12- and 16-bit
detectors keep their grey levels; where a network knows films of 8 bits alone, see `levels`. What cannot be right raises
`InputContractError`, what is merely odd is logged as a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zoo.entry import BICUBIC, MIN_MAX, PERCENTILES, Preprocessing
from zoo.errors import OptionError
from zoo.images import FILM
from zoo.messages import in_steps
from zoo.oddities import warn_of
from zoo.transforms.crops import CropTransform, build_crop_transform
from zoo.transforms.greys import ImageInput, describe, grey_fractions
from zoo.transforms.levels import fit_levels
from zoo.transforms.resized import ResizedTransform, build_resized_transform
from zoo.transforms.slices import SliceTransform, build_slice_transform
from zoo.transforms.volume import VolumeTransform, build_volume_transform

if TYPE_CHECKING:
    from torch import Tensor

_FAINT = 0.1
_ELONGATED = 2.5
_OF_VOLUMES = ("affine", "orientation", "spacing", "spline", "window", "thickness", "crop")


def build_transform(
    contract: Preprocessing,
) -> ImageTransform | SliceTransform | ResizedTransform | VolumeTransform | CropTransform:
    """Return the transform that executes a contract; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    channels, size, resize = contract.channels, contract.size, contract.resize
    if contract.crop is not None:
        return build_crop_transform(contract)
    if contract.normalise == PERCENTILES:
        return build_slice_transform(contract)
    if len(size) != 2 and contract.interpolation is not None:
        return build_resized_transform(contract)
    if len(size) != 2:
        return build_volume_transform(contract)
    if len(set(channels)) != 1:
        raise OptionError(f"no transform makes an input of size {size} with channels {channels}: 2D and grey is known")
    if stray := [name for name in _OF_VOLUMES if getattr(contract, name) is not None]:
        raise OptionError(f"{', '.join(stray)} with size {size}: these fields describe volumes")
    if contract.normalise not in (None, MIN_MAX):
        raise OptionError(f"normalise {contract.normalise!r} with size {size}: of films {MIN_MAX!r} is known")
    if contract.interpolation not in (None, BICUBIC):
        raise OptionError(f"interpolation {contract.interpolation!r} with size {size}: of films {BICUBIC!r} is known")
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
                or first window, MONOCHROME1 inverted, then scaled by the window's or the stored range; where the
                contract says min-max, without VOI LUT and window, scaled by its own range.
                A PIL image; mode `I` is taken as 16-bit, an alpha channel must be opaque.
                An array or tensor `(H, W)`, `(1 or 3, H, W)` or `(H, W, 1 or 3)`; where two readings are possible, the
                first axis is the channels. Integers are divided by their type's maximum, or those of more than 8 bits
                scaled by their own range where the contract says min-max; floats must lie in the declared range. A
                tensor stays on its device and in its graph; where films are resized in 8 bits it may need no gradient.
                Colour is converted to luminance (ITU-R 601), with a warning where the channels really differ.

        Raises:
            InputContractError: The image cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: The path does not exist.
        """
        return self._finished(image, is_cut=True)[0]

    def place(self, image: ImageInput) -> tuple[Tensor, tuple[int, int]]:
        """Return an image as a call does but without the centre crop, `(C, H', W')`, and the pixels that it came with.

        Raises:
            InputContractError: As a call; `FileNotFoundError` too.
        """
        return self._finished(image, is_cut=False)

    def _finished(self, image: ImageInput, *, is_cut: bool) -> tuple[Tensor, tuple[int, int]]:
        source, contract = describe(image), self.preprocessing
        grey = grey_fractions(image, source, contract)
        _warn_if_odd(grey, contract, source, is_cut=is_cut)
        height, width = map(int, grey.shape[1:])
        fitted = _fit(grey, contract, source) if is_cut else _resize(grey, contract, source)
        return _finish(fitted, contract), (height, width)

    def finer(self, times: int) -> ImageTransform:
        """Return the same transform for an input that shows the same in so many times as many pixels a side."""
        facts = self.preprocessing
        resize = None if facts.resize is None else times * facts.resize
        return ImageTransform(replace(facts, size=tuple(times * side for side in facts.size), resize=resize))

    def __repr__(self) -> str:
        contract = self.preprocessing
        low, high = contract.value_range
        height, width = contract.size
        whole = "integers by their type's maximum"
        if contract.normalise == MIN_MAX:
            whole = "8 bits by 255, more bits, and DICOM without its window, by least and largest value"
        is_normalised = contract.mean is not None or contract.std is not None
        resized = f"to {height} x {width}" if contract.resize is None else f"shorter side to {contract.resize}"
        steps = {
            "read": "PNG, JPEG, TIFF, BMP, PGM, DICOM, PIL image, array or tensor",
            "scale": f"{whole}, floats must lie in [{low:g}, {high:g}] ({contract.units})",
            "grey": "colour to luminance",
            "resize": f"{resized}, bicubic in 8 bits" if contract.interpolation == BICUBIC else resized,
            "crop": "none" if contract.resize is None else f"centre {height} x {width}",
            "normalise": f"mean {contract.mean}, std {contract.std}" if is_normalised else "none",
            "output": f"float32 ({len(contract.channels)}, {height}, {width}): {', '.join(contract.channels)}",
        }
        return in_steps("ImageTransform", steps)


def _warn_if_odd(grey: Tensor, contract: Preprocessing, source: str, *, is_cut: bool) -> None:
    """Log what a network will accept and a radiologist would not."""
    lowest, highest = map(float, grey.detach().aminmax())
    if lowest == highest:
        warn_of(source, f"{source} is constant ({highest:.3g} everywhere): its features carry no information")
    elif highest - lowest < _FAINT:
        warn_of(
            source,
            f"{source} has hardly any contrast: it spans {lowest:.3g} to {highest:.3g} of the full scale. Unwindowed, "
            "12-bit data in a 16-bit type, or divided twice? Scale it by its true maximum or window and pass floats in "
            "the declared range",
        )
    height, width = grey.shape[1:]
    short, long = sorted((height, width))
    if is_cut and contract.resize is not None and long > _ELONGATED * short:
        warn_of(source, f"{source} is {height} x {width}: the centre crop discards more than half of it")


def _fit(grey: Tensor, contract: Preprocessing, source: str) -> Tensor:
    """Resize (bilinear, antialiased, unless the contract says bicubic) and cut the centre out of `(1, H, W)`."""
    height, width = contract.size
    if contract.interpolation == BICUBIC:
        return fit_levels(grey, (height, width), contract.resize, source)
    resized = _resize(grey, contract, source)
    top, left = round((resized.shape[1] - height) / 2), round((resized.shape[2] - width) / 2)
    return resized[:, top : top + height, left : left + width]


def _resize(grey: Tensor, contract: Preprocessing, source: str) -> Tensor:
    """Resize `(1, H, W)`: its shorter side to that of the contract, or all of it to the contract's size."""
    from torch.nn.functional import interpolate

    tall, wide = contract.size
    if contract.resize is not None:
        tall, wide = (contract.resize * side // min(grey.shape[1:]) for side in grey.shape[1:])
    if contract.interpolation == BICUBIC:
        return fit_levels(grey, (tall, wide), None, source)
    resized: Tensor = interpolate(grey[None], size=(tall, wide), mode="bilinear", antialias=True)[0]
    return resized


def _finish(fraction: Tensor, contract: Preprocessing) -> Tensor:
    """Clip fractions, bring them to the declared range, repeat them over the channels and normalise."""
    low, high = contract.value_range
    output = low + fraction.clamp(0, 1) * (high - low)
    if contract.mean is not None:
        output = output - output.new_tensor(contract.mean).view(-1, 1, 1)
    if contract.std is not None:
        output = output / output.new_tensor(contract.std).view(-1, 1, 1)
    return output if len(output) == len(contract.channels) else output.repeat(len(contract.channels), 1, 1)
