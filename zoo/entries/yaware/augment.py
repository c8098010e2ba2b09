"""y-Aware's augmentations, on the device that holds the volumes: flip, blur, noise, cut-out and crop.

Facts from Duplums/yAwareContrastiveLearning, `dataset.py` and `augmentations.py`, which change NumPy arrays one by one
with SciPy and scikit-image, and reseed NumPy from the operating system at every sample. Here the draws of a sample
follow from its own seed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputContractError, OptionError

TRANSFORMS = ("cutout", "all_tf", "crop", "none")
PROBABILITY = 0.5
"""Probability of each of the five changes in "all_tf"."""
BLUR = (0.1, 1.0)
"""Least and greatest sigma of the blur, in voxels."""
NOISE = (0.1, 1.0)
"""Least and greatest standard deviation of the noise, relative to that of the volume."""
CUTOUT_SHARE = 0.25
"""Side of the hidden box, as a share of the volume's; rounded up."""
CROP_SHARE = 0.75
"""Side of the kept box, as a share of the volume's; rounded up."""
TRUNCATE = 4.0
"""Where SciPy's `gaussian_filter` cuts its kernel off, in sigma."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Draw:
    """Changes of one volume, in this order; None for a change that is not made."""

    flip: int | None = None
    """Axis of (1, D, H, W); 0, the channel, changes nothing."""
    sigma: float | None = None
    """Sigma of the blur, in voxels."""
    noise: tuple[float, int] | None = None
    """Standard deviation of the noise, and the seed of its field."""
    cutout: Box | None = None
    """Box that is set to 0."""
    crop: Box | None = None
    """Box that is enlarged to the whole."""


class Augment:
    """Change each volume of a batch as y-Aware's pre-training does.

    "all_tf" flips, blurs, adds noise, cuts out and crops, each with probability 0.5; "cutout", which made the published
    weights, and "crop" always make that one change. The flipped axis is uniform over the four of (1, D, H, W), so each
    spatial axis is flipped with probability 0.125. In MNI space this exchanges left and right of the brain, which
    differ: "all_tf" hides laterality from the network.

    Each volume is changed by itself, not with others of its batch, so the result is the same to the last bit in any
    batch and process. This is also faster on a CPU, whose cache one volume fills.

    Args:
        tf: One of `TRANSFORMS`.

    Raises:
        OptionError: There is no such `tf`.
    """

    def __init__(self, tf: str = "cutout") -> None:
        if tf not in TRANSFORMS:
            raise OptionError(f"tf must be one of {', '.join(TRANSFORMS)}, not {tf!r}")
        self.tf = tf

    @torch.no_grad()
    def __call__(self, volumes: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Return changed copies.

        Args:
            volumes: (N, 1, D, H, W), float32, each of mean 0 and standard deviation 1: the hidden box is filled with 0,
                the mean, not with the background.
            seeds: One non-negative integer per volume, such as `seed_of(seed, pass, index, view)`. All draws follow
                from it alone; only the noise field differs between kinds of devices.

        Returns:
            New tensors of the shape, type and device of `volumes`.

        Raises:
            InputContractError: The volumes have another shape or type.
            OptionError: The seeds are not N non-negative integers.
        """
        if volumes.ndim != 5 or volumes.shape[1] != 1 or 0 in volumes.shape[2:] or volumes.dtype != torch.float32:
            raise InputContractError(
                f"volumes must be (N, 1, D, H, W), float32 and z-scored, not {tuple(volumes.shape)} of {volumes.dtype}"
            )
        out = volumes.clone(memory_format=torch.contiguous_format)
        depth, height, width = volumes.shape[2:]
        for volume, seed in zip(out[:, 0], _integers(seeds, len(volumes)), strict=True):
            volume.copy_(change(volume, self.draw((depth, height, width), seed)))
        return out

    def draw(self, size: tuple[int, int, int], seed: int) -> Draw:
        """Draw the changes of a volume of `size` (D, H, W) from its seed, alike on every device."""
        rng = np.random.default_rng(seed)
        if self.tf == "none":
            return Draw()
        if self.tf == "cutout":
            return Draw(cutout=_random_box(rng, size, CUTOUT_SHARE))
        if self.tf == "crop":
            return Draw(crop=_random_box(rng, size, CROP_SHARE))
        flips, blurs, is_noisy, hides, crops = rng.random(5) < PROBABILITY
        return Draw(
            flip=int(rng.integers(4)) if flips else None,
            sigma=rng.uniform(*BLUR) if blurs else None,
            noise=(rng.uniform(*NOISE), int(rng.integers(2**63))) if is_noisy else None,
            cutout=_random_box(rng, size, CUTOUT_SHARE) if hides else None,
            crop=_random_box(rng, size, CROP_SHARE) if crops else None,
        )


def change(volume: Tensor, drawn: Draw) -> Tensor:
    """Apply drawn changes to a volume (D, H, W), which may be overwritten."""
    if drawn.flip:
        volume = volume.flip(drawn.flip - 1)
    if drawn.sigma is not None:
        volume = blur(volume, drawn.sigma)
    if drawn.noise is not None:
        volume = add_noise(volume, *drawn.noise)
    if drawn.cutout is not None:
        volume[drawn.cutout] = 0
    if drawn.crop is not None:
        volume = resize(volume[drawn.crop], volume.shape)
    return volume


def blur(volume: Tensor, sigma: float) -> Tensor:
    """Convolve (D, H, W) with a Gaussian of `sigma` voxels, as SciPy's `gaussian_filter` does by default.

    The kernel ends at `TRUNCATE` sigma; at the border the volume is mirrored with its last voxel repeated. Shifted
    copies are added up, axis by axis: several times faster on a CPU than a convolution with one channel, and always in
    float32, as convolutions are not (autocast, TensorFloat-32).
    """
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(radius + 1)]
    kernel = [weight / (2 * sum(kernel) - kernel[0]) for weight in kernel]
    for axis, length in enumerate(volume.shape):
        outside = torch.cat([torch.arange(-radius, 0), torch.arange(length, length + radius)]) % (2 * length)
        inside = outside.minimum(2 * length - 1 - outside)
        edges = volume.index_select(axis, inside.to(volume.device, non_blocking=True))
        padded = torch.cat([edges.narrow(axis, 0, radius), volume, edges.narrow(axis, radius, radius)], axis)
        volume = volume * kernel[0]
        for step in range(1, radius + 1):
            for start in (radius - step, radius + step):
                volume.add_(padded.narrow(axis, start, length), alpha=kernel[step])
    return volume


def add_noise(volume: Tensor, std: float, seed: int) -> Tensor:
    """Add Gaussian noise, drawn on the volume's device."""
    generator = torch.Generator(volume.device).manual_seed(seed)
    return torch.randn(volume.shape, generator=generator, device=volume.device).mul_(std).add_(volume)


def resize(box: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (d, h, w) linearly to `size`, as scikit-image's `resize(order=1, mode="reflect")` enlarges.

    Voxels are cubes with equal shares of the extent, so the outermost centres of the result lie up to half a voxel
    outside those of the box; there the box is mirrored without repeating its last voxel.
    """
    for axis in (2, 1, 0):  # the last axis is the slowest to gather from, so it goes first, while the box is small
        old, new = box.shape[axis], size[axis]
        place = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
        low = place.floor()
        sources = torch.stack([_mirrored(low, old), _mirrored(low + 1, old)]).to(box.device, non_blocking=True)
        weight = (place - low).float().to(box.device, non_blocking=True).view(-1, *[1] * (2 - axis))
        box = torch.lerp(box.index_select(axis, sources[0]), box.index_select(axis, sources[1]), weight)
    return box


def _mirrored(places: Tensor, length: int) -> Tensor:
    last = length - 1
    return (last - (last - places.abs()).abs()).clamp(min=0).long()  # below 0 only where there is one voxel


def _random_box(rng: np.random.Generator, size: tuple[int, int, int], share: float) -> Box:
    """Box of a share of each side, rounded up, anywhere inside."""
    sides = [math.ceil(share * length) for length in size]
    starts = [int(rng.integers(length - side + 1)) for length, side in zip(size, sides, strict=True)]
    d, h, w = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return d, h, w


def _integers(seeds: Tensor | Sequence[int], number: int) -> list[int]:
    listed = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    try:
        integers = [operator.index(seed) for seed in listed]
    except TypeError as error:
        raise OptionError(f"seeds must be integers, one per volume: {error}") from error
    if len(integers) != number or min(integers, default=0) < 0:
        came = f"{len(integers)}, the least of them {min(integers, default=None)}"
        raise OptionError(f"seeds must be {number} non-negative integers, one per volume; got {came}")
    return integers
