"""Input contracts of MONAI SSL's networks, and their transforms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zoo.entry import Preprocessing, Windows
from zoo.errors import OptionError

if TYPE_CHECKING:
    from zoo.transforms import VolumeTransform

PRETRAINING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    spacing=(2.0, 2.0, 2.0),
    window=(-57.0, 164.0),
    modality="CT",
)
"""Input of the auto-encoder's training (vit_unetr_ssl/ssl_train.ipynb), with the axes of the file."""
FINE_TUNING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="RAS",
    spacing=(1.5, 1.5, 2.0),
    window=(-175.0, 250.0),
    modality="CT",
)
"""Input of the segmentation's training (vit_unetr_ssl/ssl_finetune.ipynb): another window, other voxels."""
SWIN_PRETRAINING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="RAS",
    window=(-1000.0, 1000.0),
    modality="CT",
)
"""What the Swin transformers were trained on (research-contributions, SwinUNETR/Pretrain and DAE): no resampling.

Nobody reads the spacing that their command lines take. DAE's MRI, z-scores of its nonzero voxels, has no transform.
"""
WINDOWS = Windows((96, 96, 96), overlap=0.25, at_once=4)
"""Those of the segmentation's validation (vit_unetr_ssl/ssl_finetune.ipynb); a UNETR that was built for others has its
own."""


def build_transform(facts: Preprocessing, spacing: str = "") -> VolumeTransform:
    """Return the transform to an input, at another spacing if one is given: one length in mm, or "x,y,z".

    Raises:
        OptionError: `spacing` is neither.
    """
    from zoo.transforms import build_volume_transform

    if not spacing:
        return build_volume_transform(facts)
    try:
        sizes = tuple(float(size) for size in spacing.split(","))
    except ValueError as error:
        raise OptionError(f"--spacing {spacing}: a length in mm is expected, or three, as 1.5,1.5,2") from error
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    return build_volume_transform(replace(facts, spacing=sizes))
