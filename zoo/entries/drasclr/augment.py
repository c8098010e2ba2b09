"""DrasCLR's augmentations of a patch, or of several side by side, by MONAI's transforms.

Order, ranges and probabilities from batmanlab/DrasCLR, `data/copd_patch.py` and `define_augmentation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from monai.transforms.intensity.array import RandAdjustContrast, RandGaussianNoise
from monai.transforms.spatial.array import RandAffine
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from zoo.entries.drasclr.atlas import PATCH
from zoo.errors import OptionError

ANGLE, SHIFT, SCALE = math.pi / 18, 12.0, 0.1
"""Largest rotation in radians, shift in voxels and relative change of size, per axis."""
NOISE, GAMMA = 50.0, (0.5, 4.5)
"""Largest standard deviation of the noise in HU (each call draws one from 0 to it), and exponents of the contrast."""
PROBABILITY = 0.25
"""Probability of noise, and of contrast."""


def _affine() -> RandAffine:
    return RandAffine(
        prob=1.0,
        rotate_range=(ANGLE,) * 3,
        translate_range=(SHIFT,) * 3,
        scale_range=(SCALE,) * 3,
        spatial_size=(PATCH,) * 3,
        mode="bilinear",
        padding_mode="border",
        cache_grid=True,
    )


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "a": _affine,
    "g": lambda: RandGaussianNoise(prob=PROBABILITY, mean=0.0, std=NOISE),
    "c": lambda: RandAdjustContrast(prob=PROBABILITY, gamma=GAMMA),
}
"""The authors' letters: affine, Gaussian noise, contrast."""


class Augment:
    """Change patches as DrasCLR's pre-training does, one transform after the other.

    An affine map turns, shifts and scales the patch alone: voxels from outside, up to 12 of 32, repeat its border.
    Patches of one call are changed alike: one map, one standard deviation of the noise, one exponent, and for the
    contrast the least and greatest value of all of them.

    Args:
        recipe: Letters of `TRANSFORMS` in the order of their use; the published runs have "agc". Empty for no change.

    Raises:
        OptionError: A letter is not one of these.
    """

    def __init__(self, recipe: str = "agc") -> None:
        if unknown := sorted(set(recipe) - set(TRANSFORMS)):
            raise OptionError(
                f"augmentations {recipe!r} have {', '.join(unknown)}: {', '.join(TRANSFORMS)} are expected (affine, "
                "Gaussian noise, contrast)"
            )
        self.transforms = [TRANSFORMS[letter]() for letter in recipe]

    def __call__(self, patches: Tensor, state: np.random.RandomState) -> Tensor:
        """Return changed copies.

        Args:
            patches: (C, 32, 32, 32) float32, HU above the window's lower end: 0 to 1264.
            state: Source of all draws; it moves on.
        """
        for transform in self.transforms:
            transform.set_random_state(state=state)
            patches = transform(patches)
        changed: Tensor = convert_to_tensor(patches, track_meta=False)
        return changed
