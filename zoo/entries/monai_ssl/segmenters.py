"""Segmentation networks of the MONAI SSL family: MONAI's UNETR without dead parameters, and its Swin UNETR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monai.networks.nets.unetr import UNETR
from torch import Tensor

from zoo.entries.monai_ssl.sizes import check_widths
from zoo.networks.sizes import check_whole
from zoo.networks.swin_unetr import output_block, swin_unetr
from zoo.networks.vit import as_map, block_info, block_tokens, norm_map, trim
from zoo.networks.vocabulary import FeatureInfo, Vocabulary

__all__ = ["SegmentingViT", "swin_unetr", "unetr"]

UNETR_LAYERS = 12
"""Transformer blocks of a UNETR (monai/networks/nets/unetr.py)."""
SKIPS = (3, 6, 9)
"""Blocks, counted from 0, whose outputs a UNETR decodes beside the last (monai/networks/nets/unetr.py)."""


class SegmentingViT(Vocabulary, UNETR):
    """MONAI's `UNETR` for inputs of any size in multiples of 16; `unetr` makes it."""

    head_name = "out"
    pooled_by = None

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each block of the ViT."""
        return block_info(self.vit, "vit.")

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after each block of the ViT as a map, before the norm."""
        return (as_map(tokens, x) for tokens in block_tokens(self, self.vit, x))

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a block after the ViT's final norm."""
        return norm_map(self.vit, found)

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the maps of three blocks and of the last one after the norm, and the volume itself."""
        encoders = (self.encoder2, self.encoder3, self.encoder4)
        decoders = (self.decoder5, self.decoder4, self.decoder3)
        skips = [self.recomputed(encoder, maps[i]) for encoder, i in zip(encoders, SKIPS, strict=True)]
        x = self.normalised(maps[-1])
        for decoder, skip in zip(decoders, reversed(skips), strict=True):
            x = self.recomputed(decoder, x, skip)
        decoded: Tensor = self.recomputed(self.decoder2, x, self.recomputed(self.encoder1, *inputs))
        return decoded

    def make_head(self, num_classes: int) -> None:
        """Put a convolution of 1 x 1 x 1 in the place of the present one; 0 for none."""
        self.out = output_block(self.num_features, num_classes)  # type: ignore[assignment]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the decoder's maps, `(N, feature_size, D, H, W)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        return self.finish(list(self.stages(x)), x)

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is not a multiple of 16, or the network takes another number of channels.
        """
        logits: Tensor = self.out(self.forward_features(x_in))
        return logits


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
    network.num_features, network.num_classes = feature_size, num_classes
    if not num_classes:
        network.make_head(0)
    return network
