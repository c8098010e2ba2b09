"""y-Aware's 3D DenseNet-121: MONAI's, without the last norm unless it classifies, as in the authors' code."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.densenet import DenseNet121
from torch import Tensor, nn


class YAwareDenseNet121(nn.Module):
    """The parts of MONAI's `DenseNet121(spatial_dims=3)` that the authors' network has, under MONAI's names.

    As an encoder it returns pooled features `(N, 1024)`, the mean over space of the ReLU of the last map; with classes
    the logits of `features.norm5`, ReLU, mean and `class_layers.out`; with `projection` the output of a head of two
    layers on the pooled features, `(N, 128)`. Modes and widths: Duplums/yAwareContrastiveLearning, models/densenet.py.
    """

    num_features = 1024

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
        self.projection = projection
        if projection or not num_classes:
            del self.features.norm5, self.class_layers.out
        if projection:
            self.hidden_representation = nn.Linear(self.num_features, 512)
            self.head_projection = nn.Linear(512, 128)
            nn.init.zeros_(self.hidden_representation.bias)
            nn.init.zeros_(self.head_projection.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last dense block's map, `(N, 1024, *space)`, before any norm or activation.

        Args:
            x: Volumes `(N, C, D, H, W)` of at least 29 voxels a side; 121x145x121 gives a map of 3x4x3.
        """
        for name, block in self.features.named_children():
            if name != "norm5":
                x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 1024)`, logits `(N, num_classes)`, or the projection `(N, 128)`.

        Args:
            x: Volumes `(N, C, D, H, W)` of at least 29 voxels a side.
        """
        pooled: Tensor = self.class_layers(self.features(x))
        if not self.projection:
            return pooled
        projected: Tensor = self.head_projection(self.hidden_representation(pooled).relu())
        return projected


def least_batch(shape: Sequence[int]) -> int:
    """Least volumes of (D, H, W) voxels in a training batch: a single voxel of one volume has no batch statistics.

    The last map halves the sides five times, so it is a single voxel where no side exceeds 60.
    """
    return 2 if max(shape) <= 60 else 1
