"""MONAI's Swin UNETR, of either version, with the patch merging that its weights were trained with."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_volumes, check_whole
from zoo.networks.swin import patch_merging, two_convolution_stem

SWIN_STEP = 32
"""What the sides of a Swin UNETR's input divide by: five halvings."""
DEPTHS, HEADS = (2, 2, 2, 2), (3, 6, 12, 24)
"""Blocks and attention heads of each stage: of every published Swin UNETR."""


class SegmentingSwin(SwinUNETR):
    """MONAI's `SwinUNETR`, which says by a contract error what volumes it takes; `swin_unetr` makes it."""

    in_channels: int

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 32, and one of them at least 64: of 32 voxels the last
                map is one voxel, which no norm can take.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        check_volumes(x_in, self.in_channels, SWIN_STEP)
        if tuple(x_in.shape[2:]) == (SWIN_STEP,) * 3:
            raise InputContractError(
                f"the volumes have {SWIN_STEP} voxels on each axis, of which the last map would be one voxel, which no "
                f"norm can take: at least {2 * SWIN_STEP} on one axis are expected"
            )
        logits: Tensor = super().forward(x_in)  # type: ignore[no-untyped-call]
        return logits

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
    network.in_channels = in_channels
    if two_convolutions:
        network.swinViT.patch_embed.proj = two_convolution_stem(in_channels, feature_size)
    if not num_classes:
        network.out = nn.Identity()  # type: ignore[assignment]
    return network


def check_width(feature_size: int) -> None:
    """Raise `OptionError` where a width does not divide by the heads of the stages."""
    check_whole(feature_size=feature_size)
    if feature_size % 12:
        raise OptionError(f"feature_size={feature_size}: expected a multiple of 12, for 3 to 24 heads")
