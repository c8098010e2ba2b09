"""Segmentation networks of the MONAI SSL family: MONAI's UNETR without dead parameters, and its Swin UNETR."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn

from zoo.entries.monai_ssl.model import as_map, trim
from zoo.entries.monai_ssl.sizes import check_volumes, check_whole, check_widths
from zoo.errors import InputContractError, OptionError
from zoo.networks.swin import patch_merging, two_convolution_stem

UNETR_LAYERS = 12
"""Transformer blocks of a UNETR (monai/networks/nets/unetr.py)."""
SKIPS = (3, 6, 9)
"""Blocks, counted from 0, whose outputs a UNETR decodes beside the last (monai/networks/nets/unetr.py)."""
SWIN_STEP = 32
"""Divisor of the sides of a Swin UNETR's input: five halvings."""


class SegmentingViT(UNETR):
    """MONAI's `UNETR` for inputs of any size in multiples of 16; `unetr` makes it."""

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is not a multiple of 16, or the network takes another number of channels.
        """
        tokens, hidden = self.vit(x_in)
        encoders, decoders = (
            (self.encoder2, self.encoder3, self.encoder4),
            (self.decoder5, self.decoder4, self.decoder3),
        )
        skips = [encoder(as_map(hidden[i], x_in)) for encoder, i in zip(encoders, SKIPS, strict=True)]
        x = as_map(tokens, x_in)
        for decoder, skip in zip(decoders, reversed(skips), strict=True):
            x = decoder(x, skip)
        logits: Tensor = self.out(self.decoder2(x, self.encoder1(x_in)))
        return logits


class SegmentingSwin(SwinUNETR):
    """MONAI's `SwinUNETR` with a check of its volumes; `swin_unetr` makes it."""

    in_channels: int

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 32, and one of them at least 64: of 32 voxels the last
                map would be one voxel, which instance norm cannot take.

        Raises:
            InputContractError: The sides are others, or the network takes another number of channels.
        """
        check_volumes(x_in, self.in_channels, SWIN_STEP)
        if tuple(x_in.shape[2:]) == (SWIN_STEP,) * 3:
            raise InputContractError(
                f"the volumes have {SWIN_STEP} voxels on each axis, so the last map would be one voxel, which instance "
                f"norm cannot take: at least {2 * SWIN_STEP} on one axis are expected. Pad them"
            )
        logits: Tensor = super().forward(x_in)  # type: ignore[no-untyped-call]
        return logits

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        """Check nothing: `forward` has done it, and MONAI's check by NumPy cannot be compiled in one graph."""


def unetr(
    *,
    img_size: int | Sequence[int] = 96,
    in_channels: int = 1,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_heads: int | None = None,
    feature_size: int = 16,
    num_classes: int = 14,
) -> SegmentingViT:
    """Return a UNETR: a ViT of 12 blocks, and convolutions that decode four of its maps and the volume itself.

    Args:
        img_size: Voxels, one number or one per axis, that the table of positions is for; multiples of 16.
        in_channels: Channels of the volumes.
        hidden_size: Width of a token.
        mlp_dim: Width inside the perceptron of a block.
        num_heads: Attention heads; None for one for each 64 of `hidden_size`.
        feature_size: Channels of the decoder's last maps.
        num_classes: Outputs, background included; 0 for the decoder's maps.

    Raises:
        OptionError: A number is out of range.
    """
    sides, heads = check_widths(img_size, in_channels, hidden_size, mlp_dim, UNETR_LAYERS, num_heads)
    check_whole(feature_size=feature_size)
    network = SegmentingViT(in_channels, num_classes or 1, sides, feature_size, hidden_size, mlp_dim, heads)
    trim(network.vit, sides)
    if not num_classes:
        network.out = nn.Identity()  # type: ignore[assignment]
    return network


def swin_unetr(
    *,
    in_channels: int = 1,
    feature_size: int = 48,
    num_classes: int = 14,
    merging: str = "duplicated",
    two_convolutions: bool = False,
) -> SegmentingSwin:
    """Return a Swin UNETR, for volumes whose sides divide by 32.

    Args:
        in_channels: Channels of the volumes.
        feature_size: Channels of the first stage and of the decoder's last maps; a multiple of 12.
        num_classes: Outputs, background included; 0 for the decoder's maps.
        merging: How a stage ends, `duplicated` or `complete`; see `zoo.networks.swin`.
        two_convolutions: Whether it begins with two convolutions, as the network of "Disruptive Autoencoders" does.

    Raises:
        OptionError: `feature_size` is not a multiple of 12, or there is no such merging.
    """
    check_whole(feature_size=feature_size)
    if feature_size % 12:
        raise OptionError(f"feature_size={feature_size}: expected a multiple of 12, for 3 to 24 heads")
    network = SegmentingSwin(
        in_channels=in_channels,
        out_channels=num_classes or 1,
        feature_size=feature_size,
        downsample=patch_merging(merging),
    )
    network.in_channels = in_channels
    if two_convolutions:
        network.swinViT.patch_embed.proj = two_convolution_stem(in_channels, feature_size)
    if not num_classes:
        network.out = nn.Identity()  # type: ignore[assignment]
    return network
