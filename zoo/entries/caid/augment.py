"""CAiD's random views of a radiograph: crop, jitter, blur and mirror, then cut-outs and patch swaps.

Steps and constants from MR-HosseinzadehTaher/CAiD, `transformation.py`. Lengths are given there for 224 pixels; for
another size they are scaled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

Pixels = npt.NDArray[np.uint8]
PUBLISHED_SIZE = 224
SMALLEST_CROP = 0.2
"""Share of the image's area that the smallest crop has."""
JITTER = 0.4
"""Brightness and contrast are multiplied by 1 - JITTER to 1 + JITTER."""


def random_crop(image: Image.Image, size: int, min_area: float = SMALLEST_CROP) -> Image.Image:
    """Crop of `min_area` to 1.0 of the area, aspect 3/4 to 4/3, resized to `size` (bilinear)."""
    box = RandomResizedCrop.get_params(image, scale=[min_area, 1.0], ratio=[3 / 4, 4 / 3])
    crop: Image.Image = resized_crop(image, *box, [size, size])
    return crop


def change(image: Image.Image, jitter: float = JITTER) -> tuple[Image.Image, bool]:
    """Jitter of brightness and contrast (p 0.8), blur (p 0.5), mirror (p 0.5); also whether it was mirrored.

    The authors' jitter of saturation and hue does nothing to a grey image and is left out.
    """
    if torch.rand(()) < 0.8:
        image = ColorJitter(brightness=jitter, contrast=jitter)(image)
    if torch.rand(()) < 0.5:
        radius = torch.empty(()).uniform_(0.1, 2.0).item() * image.width / PUBLISHED_SIZE
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if torch.rand(()) < 0.5:
        return hflip(image), True
    return image, False


def distort(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Inner cut-out (30 %), outer cut-out (5 %), patch swap (30 %) or nothing (35 %) on square pixels (S, S)."""
    draw = rng.random()
    if draw <= 0.30:
        return cut_inside(pixels, rng)
    if draw <= 0.35:
        return cut_outside(pixels, rng)
    return swap_patches(pixels, rng) if draw <= 0.65 else pixels


def cut_inside(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blacken up to 10 rectangles of side 10 to 70, at least 3 pixels from the border; after each stop with p 0.1."""
    out = pixels.copy()
    for _ in range(10):
        out[_window(pixels.shape[0], rng, 10, 70)] = 0
        if rng.random() < 0.1:
            break
    return out


def cut_outside(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Black but for up to 10 windows of side 154 to 174; after each stop with p 0.1."""
    out = np.zeros_like(pixels)
    for _ in range(10):
        window = _window(pixels.shape[0], rng, PUBLISHED_SIZE - 70, PUBLISHED_SIZE - 50)
        out[window] = pixels[window]
        if rng.random() < 0.1:
            break
    return out


def swap_patches(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Exchange 10 pairs of rectangles of side 10 to 15, each copied from the undistorted pixels."""
    out, size = pixels.copy(), pixels.shape[0]
    for _ in range(10):
        height, width = _side(size, rng, 10, 15), _side(size, rng, 10, 15)
        first, second = _place(size, rng, height, width), _place(size, rng, height, width)
        out[first], out[second] = pixels[second], pixels[first]
    return out


def _side(size: int, rng: np.random.Generator, low: int, high: int) -> int:
    return max(1, round(int(rng.integers(low, high + 1)) * size / PUBLISHED_SIZE))


def _place(size: int, rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
    margin = round(3 * size / PUBLISHED_SIZE)
    top = int(rng.integers(margin, size - height - margin + 1))
    left = int(rng.integers(margin, size - width - margin + 1))
    return slice(top, top + height), slice(left, left + width)


def _window(size: int, rng: np.random.Generator, low: int, high: int) -> tuple[slice, slice]:
    return _place(size, rng, _side(size, rng, low, high), _side(size, rng, low, high))
