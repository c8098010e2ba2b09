"""The two networks of BrainIAC: MONAI's 3D ViT for whole brains of 96 voxels a side, and MONAI's 3D ResNet-50."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from zoo.errors import InputContractError
from zoo.networks.resnet import resnet_info, resnet_maps
from zoo.networks.sizes import check_axes, check_volumes, times
from zoo.networks.vit import ViTEncoder
from zoo.networks.vit_names import PATCH
from zoo.networks.vocabulary import Vocabulary, last_of

SIDE = 96
"""Voxels along each side of the ViT's input, which its table of positions is tied to."""


class BrainViT(ViTEncoder):
    """Version 2: features `(N, 768)`, by default the first token after the norm.

    There is no class token. The first token is that of the patch at voxel (0, 0, 0), where a brain without its skull
    has background alone; the authors trained on it, and so it stands for the volume
    (AIM-KannLab/BrainIAC, src/model.py: ViTBackboneNet).
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 0, *, pooling: str = "first") -> None:
        """Build MONAI's ViT-B/16 as the authors have it.

        Args:
            in_channels: Channels of the volume.
            num_classes: Outputs of a linear layer on the feature, 0 for none.
            pooling: `"first"` or `"mean"`, see `zoo.networks.vit_names.POOLINGS`.
        """
        sides = (SIDE, SIDE, SIDE)
        super().__init__(in_channels, sides, 768, 3072, 12, 12, num_classes=num_classes, pooling=pooling)

    def block_tokens(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens `(N, 216, 768)` after each block, of volumes of the one size that the authors trained on.

        Raises:
            InputContractError: They have another size, other axes or channels.
        """
        projection = cast("nn.Conv3d", self.patch_embedding.patch_embeddings)
        sides = tuple(check_volumes(x, projection.in_channels, PATCH).shape[2:])
        if sides != (SIDE,) * 3:
            raise InputContractError(
                f"the volumes have {times(sides)} voxels; {SIDE} x {SIDE} x {SIDE} are expected. "
                "BrainIAC knows whole heads resized to this size, and its positions are tied to it: "
                "zoo.load_transform('brainiac-vitb16') resizes a volume, a part of one or another size has no meaning"
            )
        return super().block_tokens(x)


class BrainResNet50(Vocabulary, ResNet):
    """Version 1: features `(N, 2048)`, the mean over space of the last map.

    MONAI's ResNet-50 with biased shortcuts and a first stride of 2 (DivyanshuTak/BrainIAC, src/BrainIAC/model.py).
    """

    num_features = 2048
    head_name = "fc"

    def __init__(self, in_channels: int = 1, num_classes: int = 0) -> None:
        """Build it for volumes of any size.

        Args:
            in_channels: Channels of the volume.
            num_classes: Outputs of a linear layer on the features, 0 for none.
        """
        super().__init__(
            "bottleneck",
            [3, 4, 6, 3],
            [64, 128, 256, 512],
            n_input_channels=in_channels,
            conv1_t_stride=2,
            feed_forward=False,
        )
        self.num_classes = num_classes
        self.make_head(num_classes)

    feature_info = property(resnet_info)

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of the present head; 0 for none."""
        head: Any = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.zeros_(head.bias)
        self.fc = head

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the maps of the stem and of the four layers, each after its ReLU.

        Raises:
            InputContractError: As `forward_features`.
        """
        check_axes(x, self.conv1.in_channels)
        yield from resnet_maps(self, self, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map `(N, 2048, D/32, H/32, W/32)`, after its ReLU.

        Args:
            x: Volumes `(N, C, D, H, W)`; the authors' have 128 voxels a side.

        Raises:
            InputContractError: They have other axes, or another number of channels.
        """
        return last_of(self.stages(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 2048)`, or logits `(N, num_classes)`.

        Args:
            x: Volumes `(N, C, D, H, W)`.
        """
        logits: Tensor = self.fc(self.forward_features(x).mean(dim=(2, 3, 4)))  # type: ignore[misc]
        return logits
