"""Cuts whole CTs into windows for VoCo's encoders."""

from __future__ import annotations

from torch import nn

from zoo.errors import OptionError
from zoo.networks.swin_unetr import SWIN_STEP
from zoo.networks.windows import WindowReader
from zoo.transforms import VolumeTransform

CROP = (64,) * 3
"""Voxels of the crops of the pre-training."""


def window_reader(model: nn.Module, transform: VolumeTransform, stride: int | None) -> WindowReader:
    """Return what cuts CTs into windows of the size of the pre-training's crops, for `Entry.parts`.

    Raises:
        OptionError: The network gives VoCo's own embedding, which is of one crop.
    """
    if getattr(model, "embedding", "pooled") != "pooled":
        raise OptionError(
            "embedding='authors' is VoCo's embedding of one crop and no map that windows of a whole CT are put "
            "together from: embed crops in a program, or whole volumes with embedding='pooled'"
        )
    return WindowReader(transform, CROP, SWIN_STEP, stride)
