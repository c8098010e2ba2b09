"""MONAI's Swin UNETR, of either version, with the patch merging that its weights were trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_volumes, check_whole
from zoo.networks.swin import (
    checkpoint_blocks,
    norm_channels,
    patch_merging,
    swin_info,
    swin_maps,
    two_convolution_stem,
)
from zoo.networks.vocabulary import FeatureInfo, Vocabulary

SWIN_STEP = 32
"""What the sides of a Swin UNETR's input divide by: five halvings."""
DEPTHS, HEADS = (2, 2, 2, 2), (3, 6, 12, 24)
"""Blocks and attention heads of each stage: of every published Swin UNETR."""


class SegmentingSwin(Vocabulary, SwinUNETR):
    """MONAI's `SwinUNETR`, which says by a contract error what volumes it takes; `swin_unetr` makes it."""

    in_channels: int
    head_name = "out"
    pooled_by = None

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each of the transformer's five maps."""
        return swin_info(self.swinViT, "swinViT.")

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the transformer's five maps, before the norm.

        Raises:
            InputContractError: As `forward`.
        """
        self._check(x)
        yield from swin_maps(self, self.swinViT, x)

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a stage, normalised over its channels."""
        return norm_channels(self.swinViT, found)

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the five maps after the norm, and the volume itself."""
        h0, h1, h2, h3, h4 = map(self.normalised, maps)
        encoders = (self.encoder1, self.encoder2, self.encoder3, self.encoder4)
        skips = [self.recomputed(*pair) for pair in zip(encoders, (*inputs, h0, h1, h2), strict=True)]
        x: Tensor = self.recomputed(self.encoder10, h4)
        decoders = (self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1)
        for decoder, skip in zip(decoders, (h3, *reversed(skips)), strict=True):
            x = self.recomputed(decoder, x, skip)
        return x

    def make_head(self, num_classes: int) -> None:
        """Put a convolution of 1 x 1 x 1 in the place of the present one; 0 for none."""
        self.out = output_block(self.num_features, num_classes)  # type: ignore[assignment]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As for every network; the transformer's blocks do it themselves."""
        super().set_grad_checkpointing(enable)
        checkpoint_blocks(self, enable)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the decoder's maps, `(N, feature_size, D, H, W)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        if not x.shape[0]:  # MONAI's decoder takes no empty batch either
            return self.forward_features(x.new_zeros(1, *x.shape[1:]))[:0]
        return self.finish(list(self.stages(x)), x)

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 32, and one of them at least 64: of 32 voxels the last
                map is one voxel, which no norm can take.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        logits: Tensor = self.out(self.forward_features(x_in))
        return logits

    def _check(self, x: Tensor) -> None:
        check_volumes(x, self.in_channels, SWIN_STEP)
        if tuple(x.shape[2:]) == (SWIN_STEP,) * 3:
            raise InputContractError(
                f"the volumes have {SWIN_STEP} voxels on each axis, of which the last map would be one voxel, which no "
                f"norm can take: at least {2 * SWIN_STEP} on one axis are expected"
            )

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        """Nothing is left to check, and MONAI's check by numpy cannot be compiled in one graph."""


def swin_unetr(
    *,
    in_channels: int = 1,
    feature_size: int = 48,
    num_classes: int = 14,
    merging: str = "duplicated",
    two_convolutions: bool = False,
    use_v2: bool = False,
) -> SegmentingSwin:
    """Return a Swin UNETR, for volumes whose sides divide by 32.

    Args:
        in_channels: Channels of the volumes.
        feature_size: Channels of the first stage and of the decoder's last maps; a multiple of 12.
        num_classes: Outputs, background included; 0 for the decoder's maps.
        merging: How a stage ends, `duplicated` or `complete`; see `zoo.networks.swin`.
        two_convolutions: Whether it begins with two, as the network of "Disruptive Autoencoders", not with one.
        use_v2: Whether two convolutions come before each stage (Swin v2).

    Raises:
        OptionError: `feature_size` is no multiple of 12, or there is no such merging.
    """
    check_width(feature_size)
    network = SegmentingSwin(
        in_channels=in_channels,
        out_channels=num_classes or 1,
        feature_size=feature_size,
        downsample=patch_merging(merging),
        use_v2=use_v2,
    )
    network.in_channels, network.num_features, network.num_classes = in_channels, feature_size, num_classes
    if two_convolutions:
        network.swinViT.patch_embed.proj = two_convolution_stem(in_channels, feature_size)
    if not num_classes:
        network.make_head(0)
    return network


def output_block(width: int, num_classes: int) -> nn.Module:
    """Return the last convolution of MONAI's U-Nets with transformers, from `width` channels; for 0 classes nothing."""
    return UnetOutBlock(3, width, num_classes) if num_classes else nn.Identity()


def check_width(feature_size: int) -> None:
    """Raise `OptionError` where a width does not divide by the heads of the stages."""
    check_whole(feature_size=feature_size)
    if feature_size % 12:
        raise OptionError(f"feature_size={feature_size}: expected a multiple of 12, for 3 to 24 heads")
