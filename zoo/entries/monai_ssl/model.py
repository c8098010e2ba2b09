"""The ViT of the MONAI SSL family and its auto-encoder: MONAI's classes without dead parameters, for several sizes.

A file tells all widths but the number of heads, which is one for 64 channels in MONAI's tutorials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn

from zoo.entries.monai_ssl.sizes import check_widths, tokens_of
from zoo.errors import OptionError
from zoo.networks.sizes import check_whole
from zoo.networks.swin_encoder import swin_encoder as swin_encoder
from zoo.networks.vit import PatchEmbedding, ViTEncoder, as_map, block_info, block_tokens, norm_map, trim
from zoo.networks.vit_names import PATCH
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, last_of

Network = TypeVar("Network", bound=nn.Module)


class ViTAutoEncoder(Vocabulary, ViTAutoEnc):
    """MONAI's `ViTAutoEnc`, which returns the reconstruction alone; `vit_autoencoder` makes it."""

    head_name = "conv3d_transpose_1"
    pooled_by = None
    num_classes = None

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each block."""
        return block_info(self)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after each block as a map, before the norm."""
        return (as_map(tokens, x) for tokens in block_tokens(self, self, x))

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a block after the final norm."""
        return norm_map(self, found)

    def make_head(self, num_classes: int) -> None:
        """Refuse to: what the network makes is the volume.

        Raises:
            OptionError: Always.
        """
        raise OptionError(
            f"reset_classifier({num_classes}) for 'monai-ssl-vitautoenc', which restores the volume and has no "
            "classes: 'monai-ssl-vitb16' classifies, 'monai-ssl-unetr' segments, both from the same file"
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the final norm as a map, `(N, 768, D/16, H/16, W/16)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        return as_map(self.norm(last_of(block_tokens(self, self, x))), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction `(N, out_channels, D, H, W)`: each cube of 16 voxels an affine map of its token.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: As `PatchEmbedding`.
        """
        drawn = self.recomputed(self.conv3d_transpose, self.forward_features(x))
        reconstruction: Tensor = self.conv3d_transpose_1(drawn)
        return reconstruction


def vit_encoder(
    *,
    img_size: int | Sequence[int] = 96,
    in_channels: int = 1,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_layers: int = 12,
    num_heads: int | None = None,
    num_classes: int = 0,
) -> ViTEncoder:
    """Return a ViT that gives pooled features, maps, and logits if it has classes.

    Args:
        img_size: Voxels, one number or one per axis, that the table of positions is for; multiples of 16.
        in_channels: Channels of the volumes.
        hidden_size: Width of a token.
        mlp_dim: Width inside the perceptron of a block.
        num_layers: Blocks.
        num_heads: Attention heads; None for one for each 64 of `hidden_size`.
        num_classes: Outputs of the classifier, 0 for none.

    Raises:
        OptionError: A number is out of range.
    """
    sides, heads = check_widths(img_size, in_channels, hidden_size, mlp_dim, num_layers, num_heads)
    return ViTEncoder(in_channels, sides, hidden_size, mlp_dim, num_layers, heads, num_classes=num_classes)


def vit_autoencoder(
    *,
    img_size: int | Sequence[int] = 96,
    in_channels: int = 1,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_layers: int = 12,
    num_heads: int | None = None,
    out_channels: int = 1,
) -> ViTAutoEncoder:
    """Return the network of the pre-training: a ViT and two transposed convolutions that draw each token's cube.

    Args:
        img_size: Voxels, one number or one per axis, that the table of positions is for; multiples of 16.
        in_channels: Channels of the volumes.
        hidden_size: Width of a token.
        mlp_dim: Width inside the perceptron of a block.
        num_layers: Blocks.
        num_heads: Attention heads; None for one for each 64 of `hidden_size`.
        out_channels: Channels of the reconstruction.

    Raises:
        OptionError: A number is out of range.
    """
    sides, heads = check_widths(img_size, in_channels, hidden_size, mlp_dim, num_layers, num_heads)
    check_whole(out_channels=out_channels)
    network = ViTAutoEncoder(
        in_channels,
        sides,
        PATCH,
        out_channels=out_channels,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=heads,
    )
    trim(network, sides)
    network.num_features = hidden_size
    return network


def for_windows(network: Network, img_size: int | Sequence[int]) -> Network:
    """Set the windows of a network to this size, whatever size its table of positions is for, and return it.

    Args:
        network: A network with a `PatchEmbedding`, which interpolates its table for the windows.
        img_size: Voxels, one number or one per axis.
    """
    for module in network.modules():
        if isinstance(module, PatchEmbedding):
            module.window = tuple(side * PATCH for side in tokens_of(img_size))
    return network
