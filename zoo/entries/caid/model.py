"""CAiD's U-Net: that of segmentation_models_pytorch on a ResNet-50, as timm's networks can be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe

_STAGES = ("relu", "layer1", "layer2", "layer3", "layer4")


class CAiDUNet(Vocabulary, smp.Unet):  # type: ignore[misc]
    """The U-Net: one sigmoid channel, the reconstruction; logits; or the decoder's maps."""

    encoder: Any
    check_input_shape: Any
    decoder: Any
    segmentation_head: nn.Module
    num_features = 16
    head_name = "segmentation_head"
    pooled_by = None

    def __init__(self, in_channels: int = 3, num_classes: int | None = None) -> None:
        """Start as smp's class does.

        Args:
            in_channels: Channels of the images.
            num_classes: Channels of logits; None for one channel behind a sigmoid, 0 for the decoder's maps.
        """
        super().__init__(
            "resnet50",
            encoder_weights=None,
            in_channels=in_channels,
            classes=num_classes or 1,
            activation="sigmoid" if num_classes is None else None,
        )
        self.num_classes = num_classes
        if num_classes == 0:
            self.make_head(0)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of the encoder's stem and four layers."""
        widths, names = self.encoder.out_channels[1:], (f"encoder.{name}" for name in _STAGES)
        return describe(widths, (2, 4, 8, 16, 32), names)

    def make_head(self, num_classes: int) -> None:
        """Put a convolution of 3 x 3, started as smp does, in the place of the present head; 0 for none."""
        self.segmentation_head = nn.Identity()
        if num_classes:
            self.segmentation_head = SegmentationHead(self.num_features, num_classes)
            initialize_head(self.segmentation_head)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the maps of the encoder's stem and of its four layers, each after its ReLU.

        Raises:
            RuntimeError: A side is no multiple of 32.
        """
        if not torch.compiler.is_compiling():
            self.check_input_shape(x)
        encoder = self.encoder
        x = encoder.relu(encoder.bn1(encoder.conv1(x)))
        yield x
        x = encoder.maxpool(x)
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = self.recomputed_each(layer, x)
            yield x

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the encoder's maps."""
        decoded: Tensor = self.recomputed(self.decoder, [*inputs, *maps])
        return decoded

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the decoder's maps, `(N, 16, H, W)`.

        Args:
            x: Images `(N, C, H, W)`, sides multiples of 32.

        Raises:
            RuntimeError: As `stages`.
        """
        return self.finish(list(self.stages(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction `(N, 1, H, W)` in (0, 1), logits `(N, num_classes, H, W)`, or the decoder's maps.

        Args:
            x: Images `(N, C, H, W)`, sides multiples of 32.

        Raises:
            RuntimeError: As `stages`.
        """
        outputs: Tensor = self.segmentation_head(self.forward_features(x))
        return outputs
