"""Random changes of an image and its mask for CAiD's segmentation task: grey levels, three warps and a crop.

Facts from MR-HosseinzadehTaher/BenchmarkTransferLearning, Version1, `dataloader.py`, and from albumentations 0.4.3,
whose defaults it relies on. Lengths are given there for 224 pixels; for another size they are scaled. Every geometric
change is a displacement field (H, W, 2): for each pixel of the result the distance in pixels (x, y) at which its value
is read; `warp` applies it. All draws are PyTorch's, from the global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

PUBLISHED_SIZE = 224

C = TypeVar("C", bound=Callable[..., Tensor])


def augment(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Change a training pair as published: grey levels (p 0.3), one of three warps (p 0.3), a crop (p 0.25).

    Args:
        image: (C, S, S) in [0, 1].
        mask: (1, S, S), 0 or 1.

    Returns:
        Both in the same shapes and ranges.
    """
    if _happens(0.3):
        image = _one_of((brightness_contrast, gamma))(image)
    if _happens(0.3):
        image, mask = move(image, mask, _one_of((elastic, grid, optical))(image.shape[-1]))
    if _happens(0.25):
        image, mask = move(image, mask, crop(image.shape[-1]))
    return image, mask


def move(image: Tensor, mask: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one displacement to both; the mask stays 0 or 1 and in register with the image."""
    return warp(image, displacement), warp(mask, displacement, nearest=True)


def warp(pixels: Tensor, displacement: Tensor, *, nearest: bool = False) -> Tensor:
    """Read each pixel of the result from where its displacement points; beyond the border the image is mirrored.

    Args:
        pixels: (C, H, W).
        displacement: (H, W, 2), in pixels, x first. Zero is the identity.
        nearest: Take the nearest pixel instead of interpolating linearly.
    """
    extent = torch.tensor([pixels.shape[-1] - 1, pixels.shape[-2] - 1])
    target = (_coordinates(pixels.shape[-2], pixels.shape[-1]) + displacement) * 2 / extent - 1
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(pixels[None], target[None], mode=mode, padding_mode="reflection", align_corners=True)[0]


def brightness_contrast(image: Tensor) -> Tensor:
    """Scale grey levels by 0.8 to 1.2 and shift them by up to 0.2."""
    return (image * _uniform(0.8, 1.2) + _uniform(-0.2, 0.2)).clamp(0, 1)


def gamma(image: Tensor) -> Tensor:
    """Raise grey levels to a power of 0.8 to 1.2."""
    return image ** _uniform(0.8, 1.2)


def elastic(size: int, alpha: float = 120.0, sigma: float = 6.0, affine: float = 3.6) -> Tensor:
    """Smooth noise plus an affine map that moves three points by up to `affine` pixels per axis.

    Args:
        size: Side S of the image.
        alpha: Factor on noise in [-1, 1] after smoothing by `sigma`; it leaves displacements of about 3 pixels.
        sigma: Of the Gaussian, in pixels.
        affine: In pixels.

    Returns:
        Displacement (S, S, 2).
    """
    scale = size / PUBLISHED_SIZE
    # Smoothing divides the noise by sigma, which grows with the size: hence the square.
    noise = smooth(torch.rand(2, size, size) * 2 - 1, sigma * scale) * alpha * scale**2
    reach, centre = size // 3, size // 2
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * reach + centre
    shifts = (torch.rand(3, 2) * 2 - 1) * affine * scale
    coefficients: Tensor = torch.linalg.solve(F.pad(corners, (0, 1), value=1.0), shifts)
    return F.pad(_coordinates(size, size), (0, 1), value=1.0) @ coefficients + noise.permute(1, 2, 0)


def smooth(fields: Tensor, sigma: float) -> Tensor:
    """Convolve each of (N, H, W) with a Gaussian of `sigma` pixels, cut off at four sigma, mirrored at the border."""
    radius = max(1, round(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(fields[:, None], [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def grid(size: int, steps: int = 5, limit: float = 0.3) -> Tensor:
    """Stretch or squeeze each of `steps` columns and rows by up to `limit`; returns a displacement (S, S, 2)."""
    x, y = _stretched(size, steps, limit), _stretched(size, steps, limit)
    return torch.stack([x[None, :].expand(size, size), y[:, None].expand(size, size)], dim=-1)


def _stretched(size: int, steps: int, limit: float) -> Tensor:
    # albumentations squeezes the remainder of its rounding into the last columns; here all columns are alike.
    factors = 1 + (torch.rand(steps) * 2 - 1) * limit
    knots = torch.cat([torch.zeros(1), factors.cumsum(0)]) * size / steps
    position = torch.arange(size) * steps / size
    left = position.long()
    return knots[left] + (knots[left + 1] - knots[left]) * (position - left) - torch.arange(size)


def optical(size: int, limit: float = 2.0) -> Tensor:
    """Radial lens distortion, barrel or pincushion, of coefficient up to `limit`; returns a displacement (S, S, 2)."""
    strength = _uniform(-limit, limit)
    offset = (_coordinates(size, size) - size / 2) / size
    square = offset.square().sum(-1, keepdim=True)
    return offset * strength * (square + square.square()) * size


def crop(size: int, smallest: int = 156) -> Tensor:
    """Enlarge a random square of side `smallest` (of 224) to the whole; returns a displacement (S, S, 2)."""
    low = round(smallest * size / PUBLISHED_SIZE)
    side = int(torch.randint(low, size + 1, ()))
    corner = torch.randint(0, size - side + 1, (2,))
    here = _coordinates(size, size)
    return (here + 0.5) * side / size - 0.5 + corner - here


def _coordinates(height: int, width: int) -> Tensor:
    """Column and row (x, y) of each pixel, (H, W, 2)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1).float()


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def _one_of(choices: Sequence[C]) -> C:
    return choices[int(torch.randint(len(choices), ()))]
