"""y-Aware's 3D DenseNet-121: MONAI's, without the last norm unless it classifies, as in the authors' code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.networks.nets.densenet import DenseNet121
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe, last_of

_MAPS = ("relu0", "denseblock1", "denseblock2", "denseblock3", "denseblock4")
"""Parts of `features` behind which a stage ends, each of twice the stride of the one before."""


class MeanPool(nn.Module):
    """The mean over space, as an adaptive pooling to one voxel, which torch does not have in bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C, 1, 1, 1)`."""
        return x.mean(dim=(2, 3, 4), keepdim=True)


class HalvingPool(nn.Module):
    """The mean of cubes of 2 x 2 x 2, which torch has in bfloat16 on a CPU only by way of float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C, D/2, H/2, W/2)`, sides rounded down."""
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return F.avg_pool3d(x.float(), 2).to(x.dtype)
        return F.avg_pool3d(x, 2)


class YAwareDenseNet121(Vocabulary):
    """The parts of MONAI's `DenseNet121(spatial_dims=3)` that the authors' network has, under MONAI's names.

    As an encoder it returns pooled features `(N, 1024)`, the mean over space of the ReLU of the last map; with classes
    the logits of `features.norm5`, ReLU, mean and `class_layers.out`; with `projection` the output of a head of two
    layers on the pooled features, `(N, 128)`. Modes and widths: Duplums/yAwareContrastiveLearning, models/densenet.py.
    """

    num_features = 1024
    head_name = "class_layers.out"

    def __init__(self, in_channels: int = 1, num_classes: int = 0, *, projection: bool = False) -> None:
        """Start as the authors' network does: Kaiming normal convolutions, biases of linear layers at zero.

        Args:
            in_channels: Channels of the volume.
            num_classes: Outputs of the classifier, 0 for none.
            projection: Whether to build the projection head, in place of any classifier.
        """
        super().__init__()
        plain = DenseNet121(spatial_dims=3, in_channels=in_channels, out_channels=num_classes or 1)
        self.features = plain.features
        self.class_layers = plain.class_layers
        self.class_layers.relu = nn.ReLU()  # MONAI's works in place, on the map that forward_features returns
        self.class_layers.pool = MeanPool()
        for name, block in self.features.named_children():
            if name.startswith("transition"):
                block.pool = HalvingPool()
        self.num_classes = 0 if projection else num_classes
        self.make_head(self.num_classes)
        self.projection = projection
        if projection:
            self.hidden_representation = nn.Linear(self.num_features, 512)
            self.head_projection = nn.Linear(512, 128)
            nn.init.zeros_(self.hidden_representation.bias)
            nn.init.zeros_(self.head_projection.bias)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of the stem and the dense blocks."""
        return describe((64, 256, 512, 1024, 1024), (2, 4, 8, 16, 32), (f"features.{name}" for name in _MAPS))

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of any head, and a norm of the last map before it, or the one that is there.

        0 for neither: features are those of the published encoder, which has no such norm.
        """
        for name in ("hidden_representation", "head_projection"):
            if hasattr(self, name):
                delattr(self, name)
        self.projection = False
        if num_classes and not hasattr(self.features, "norm5"):
            self.features.norm5 = nn.BatchNorm3d(self.num_features)
        elif not num_classes and hasattr(self.features, "norm5"):
            del self.features.norm5
        out = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(out, nn.Linear):
            nn.init.zeros_(out.bias)
        self.class_layers.out = out

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the maps of the stem and of each dense block, before any norm that follows."""
        for name, block in self.features.named_children():
            if name == "norm5":
                return
            x = self.recomputed_each(block, x) if isinstance(block, nn.Sequential) else block(x)
            if name in _MAPS:
                yield x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last dense block's map, `(N, 1024, *space)`, before any norm or activation.

        Args:
            x: Volumes `(N, C, D, H, W)` of at least 29 voxels a side; 121x145x121 gives a map of 3x4x3.
        """
        return last_of(self.stages(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 1024)`, logits `(N, num_classes)`, or the projection `(N, 128)`.

        Args:
            x: Volumes `(N, C, D, H, W)` of at least 29 voxels a side.
        """
        last = self.forward_features(x)
        if self.num_classes:
            norm: Any = self.features.norm5
            last = norm(last)
        pooled: Tensor = self.class_layers(last)
        if not self.projection:
            return pooled
        projected: Tensor = self.head_projection(self.hidden_representation(pooled).relu())
        return projected


def least_batch(shape: Sequence[int]) -> int:
    """Least volumes of (D, H, W) voxels in a training batch: a single voxel of one volume has no batch statistics.

    The last map halves the sides five times, so it is a single voxel where no side exceeds 60.
    """
    return 2 if max(shape) <= 60 else 1
