"""The input of FMCIB's network: 50 mm around the seed point of a lesion, in HU."""

from __future__ import annotations

from zoo.entry import SEED_POINT, Preprocessing

PREPROCESSING = Preprocessing(
    channels=("CT",),
    size=(50, 50, 50),
    units="HU",
    value_range=(-1024.0, 2048.0),
    mean=(-1024.0,),
    std=(3072.0,),
    orientation="SPL",
    spacing=(1.0, 1.0, 1.0),
    thickness=(0.0, 5.0),
    crop=SEED_POINT,
    modality="CT",
)
"""What the authors' `get_features` runs: arrays (z, y, x) of an LPS volume, HU -1024 to 2048 as 0 to 1, not clipped
(fmcib/preprocessing); slices thinner than 5 mm, as in the pre-training."""
