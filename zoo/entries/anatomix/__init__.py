"""anatomix: a 3D U-Net that gives features of every voxel of any volume, learnt from synthetic contrasts.

Dey et al., ICLR 2025, arXiv 2411.02372.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.entries.anatomix.convert import HEAD, STEM, convert
from zoo.entry import MIN_MAX, Config, Entry, Preprocessing, Windows

if TYPE_CHECKING:
    from torch import nn

PREPROCESSING = Preprocessing(channels=("CT or MRI",), size=(), units="intensities of any scale", normalise=MIN_MAX)
"""One channel, scaled to [0, 1] by the least and greatest value of the whole volume; axes and voxels stay as they are
(neel-dey/anatomix, `convex_adam_utils.minmax`, and `ScaleIntensity` in fine-tuning)."""
WINDOWS = Windows((128, 128, 128), overlap=0.5, at_once=1, gaussian=True)
"""The cubes of the training. The authors' windows overlap by 0.7, all voxels alike, which takes five times as long."""

OPTIONS = {
    "width": 16,
    "depth": 4,
    "outputs": 16,
    "norm_layer": "batch",
    "bias": False,
    "eps": 1e-5,
    "pooling": "max",
    "upsampling": "nearest",
    "normalise": None,
}
"""Those of `anatomix.pth`; of the first five any file tells its own."""

_LEVELS = ((0, 1), *((i, i + 1, i + 3, i + 4) for i in range(3, 59, 7)))
"""Convolutions and norms by their numbers in the sequence: the first, then two a level, down and up again."""


def build_unet(config: Config) -> nn.Module:
    """The U-Net `(N, C, x, y, z)`: features of every voxel, or with `num_classes` logits."""
    from zoo.entries.anatomix.model import AnatomixUNet

    options = {name: config[name] for name in OPTIONS}
    return AnatomixUNet(config["in_channels"], config["num_classes"], **options)


ENTRIES = (
    Entry(
        name="anatomix-unet",
        summary="3D U-Net for any CT or MRI: features of every voxel (N, 16, ...), or segments",
        family="anatomix",
        modalities=("ct", "mri"),
        anatomy="any",
        dimension=3,
        parameters=5_899_344,
        num_features=None,
        build=build_unet,
        convert=convert,
        config={"num_classes": None, "in_channels": 1, **OPTIONS},
        required=("model.",),
        head=(HEAD,),
        stem=STEM,
        stages=(*(tuple(f"model.{i}." for i in level) for level in _LEVELS), ("model.",)),  # what is behind: the last
        preprocessing=PREPROCESSING,
        settled=("eps", "pooling", "upsampling"),
        windows=WINDOWS,
    ),
)
