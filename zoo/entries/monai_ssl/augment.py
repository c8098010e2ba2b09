"""MONAI SSL's corruptions of a crop, by MONAI's transforms.

Kinds, numbers, sizes and probabilities from Project-MONAI/tutorials,
`self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms.intensity.array import RandCoarseDropout, RandCoarseShuffle
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from zoo.entries.monai_ssl.sizes import PUBLISHED_SIZE
from zoo.errors import OptionError

HOLES, DROPPED, KEPT = 6, (5, 32), (20, 64)
"""Boxes in crops of `PUBLISHED_SIZE`: their number, and the shortest and longest side of noisy and of kept ones."""
SHUFFLES, SHUFFLED, SHUFFLE_PROBABILITY = 10, 8, 0.8
"""Boxes whose voxels are permuted, their side, and how often."""


class Corrupt:
    """Corrupt crops as MONAI SSL's pre-training does.

    With equal probability either 6 boxes are filled with noise ("inner drop-out", 14 % of the voxels on average), or
    everything but 6 larger boxes is ("outer drop-out", 44 %); the noise is uniform between the least and the greatest
    value of the crop. Then with probability 0.8 the voxels inside each of 10 boxes of 8^3 are permuted.

    Args:
        size: Voxels along a side of the crops.
        scale_boxes: Scale the sides of the boxes by `size` / 96, rounded, at least 1. Without it they are the published
            ones for crops of any size; a box larger than the crop is the whole crop.

    Raises:
        OptionError: `size` is below 1.
    """

    def __init__(self, size: int = PUBLISHED_SIZE, *, scale_boxes: bool = False) -> None:
        if size < 1:
            raise OptionError(f"crops of {size} voxels a side: at least 1 is expected")
        factor = size / PUBLISHED_SIZE if scale_boxes else 1.0
        dropped, kept, shuffled = (
            [max(1, round(side * factor)) for side in sides] for sides in (DROPPED, KEPT, (SHUFFLED,))
        )
        self.inner = RandCoarseDropout(
            holes=HOLES, spatial_size=dropped[0], max_spatial_size=dropped[1], dropout_holes=True, prob=1.0
        )
        self.outer = RandCoarseDropout(
            holes=HOLES, spatial_size=kept[0], max_spatial_size=kept[1], dropout_holes=False, prob=1.0
        )
        self.shuffle = RandCoarseShuffle(holes=SHUFFLES, spatial_size=shuffled[0], prob=SHUFFLE_PROBABILITY)

    def __call__(self, crop: Tensor, state: np.random.RandomState) -> Tensor:
        """Return a corrupted copy.

        Args:
            crop: (1, D, H, W) float32.
            state: Source of all draws; it moves on.
        """
        changed: Any = crop.clone()  # MONAI's transforms write into their input
        for transform in (self.inner if state.random_sample() < 0.5 else self.outer, self.shuffle):
            transform.set_random_state(state=state)
            changed = transform(changed)
        corrupted: Tensor = convert_to_tensor(changed, track_meta=False)
        return corrupted
