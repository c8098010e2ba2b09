"""The networks of the MONAI SSL family: MONAI's own classes without dead parameters, for inputs of several sizes.

A file says all widths but the number of heads, which MONAI's tutorials keep at one for 64 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.monai_ssl.names import PATCH
from zoo.entries.monai_ssl.sizes import check_divides, check_sides, check_whole, grid_of
from zoo.errors import InputContractError, OptionError

if TYPE_CHECKING:
    from monai.networks.blocks.patchembedding import PatchEmbeddingBlock

HEAD_WIDTH = 64
"""Channels of one attention head: 768 over 12 in the published network."""
UNETR_LAYERS = 12
"""Transformer blocks of a UNETR (monai/networks/nets/unetr.py)."""
SKIPS = (3, 6, 9)
"""Blocks, counted from 0, whose outputs a UNETR decodes beside the last (monai/networks/nets/unetr.py)."""
SWIN_STEP = 32
"""What the sides of a Swin UNETR's input divide by: five halvings."""


class PatchEmbedding(nn.Module):
    """MONAI's patch embedding, whose table of positions is interpolated for inputs of other sizes.

    At the size that it was built for, the table is added as it is.
    """

    def __init__(self, plain: PatchEmbeddingBlock, grid: tuple[int, int, int]) -> None:
        """Take over the parameters of MONAI's block, under their names.

        Args:
            plain: With a convolution as projection.
            grid: Tokens per axis that its table is for.
        """
        super().__init__()
        self.patch_embeddings = plain.patch_embeddings
        self.position_embeddings = plain.position_embeddings
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `(N, D/16 * H/16 * W/16, hidden)` in row-major order.

        Args:
            x: Volumes `(N, C, D, H, W)`.

        Raises:
            InputContractError: A side is no multiple of 16.
        """
        maps = self.patch_embeddings(check_sides(x, PATCH))
        table = resample_positions(self.position_embeddings, self.grid, tuple(maps.shape[2:]))
        tokens: Tensor = maps.flatten(2).transpose(1, 2) + table
        return tokens


class ViTEncoder(ViT):
    """MONAI's `ViT` as an encoder: the mean of its tokens after the final norm, and no class token.

    With classes, `classification_head` is a linear layer on that mean. `vit_encoder` makes it.
    """

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the final norm as a map, `(N, 768, D/16, H/16, W/16)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is no multiple of 16.
        """
        return as_map(self._tokens(x), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 768)`, or logits `(N, num_classes)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is no multiple of 16.
        """
        logits: Tensor = self.classification_head(self._tokens(x).mean(dim=1))
        return logits

    def _tokens(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x)
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens


class ViTAutoEncoder(ViTAutoEnc):
    """MONAI's `ViTAutoEnc`, which returns the reconstruction alone; `vit_autoencoder` makes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction `(N, out_channels, D, H, W)`: each cube of 16 voxels an affine map of its token.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is no multiple of 16.
        """
        reconstruction: Tensor = super().forward(x)[0]  # type: ignore[no-untyped-call]
        return reconstruction


class SegmentingViT(UNETR):
    """MONAI's `UNETR` for inputs of any size in multiples of 16; `unetr` makes it."""

    def forward(self, x_in: Tensor) -> Tensor:
        """Return logits `(N, num_classes, D, H, W)`, without classes the decoder's maps `(N, feature_size, D, H, W)`.

        Args:
            x_in: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: A side is no multiple of 16.
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
    """MONAI's `SwinUNETR`, which says by a contract error what sides it takes; `swin_unetr` makes it."""

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        sides = tuple(spatial_shape)
        check_divides(sides, SWIN_STEP)
        if max(sides) == SWIN_STEP:
            raise InputContractError(
                f"the volumes have {SWIN_STEP} voxels on each axis, of which the last map would be one voxel, which no "
                f"norm can take: at least {2 * SWIN_STEP} on one axis are expected"
            )


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
    sides, heads = _checked(img_size, in_channels, hidden_size, mlp_dim, num_layers, num_heads)
    network = ViTEncoder(in_channels, sides, PATCH, hidden_size, mlp_dim, num_layers, heads)
    _trim(network, sides)
    network.num_features = hidden_size
    head = nn.Linear(hidden_size, num_classes) if num_classes else nn.Identity()
    network.classification_head = head  # type: ignore[assignment]
    return network


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
    sides, heads = _checked(img_size, in_channels, hidden_size, mlp_dim, num_layers, num_heads)
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
    _trim(network, sides)
    return network


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
    sides, heads = _checked(img_size, in_channels, hidden_size, mlp_dim, UNETR_LAYERS, num_heads)
    check_whole(feature_size=feature_size)
    network = SegmentingViT(in_channels, num_classes or 1, sides, feature_size, hidden_size, mlp_dim, heads)
    _trim(network.vit, sides)
    if not num_classes:
        network.out = nn.Identity()  # type: ignore[assignment]
    return network


def swin_unetr(*, in_channels: int = 1, feature_size: int = 48, num_classes: int = 14) -> SegmentingSwin:
    """Return a Swin UNETR, for volumes whose sides divide by 32.

    Args:
        in_channels: Channels of the volumes.
        feature_size: Channels of the first stage and of the decoder's last maps; a multiple of 12.
        num_classes: Outputs, background included; 0 for the decoder's maps.

    Raises:
        OptionError: `feature_size` is no multiple of 12.
    """
    check_whole(feature_size=feature_size)
    if feature_size % 12:
        raise OptionError(f"feature_size={feature_size}: expected a multiple of 12, for 3 to 24 heads")
    network = SegmentingSwin(in_channels=in_channels, out_channels=num_classes or 1, feature_size=feature_size)
    if not num_classes:
        network.out = nn.Identity()  # type: ignore[assignment]
    return network


def as_map(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens `(N, P, hidden)` as a map `(N, hidden, D/16, H/16, W/16)`.

    Args:
        tokens: In row-major order.
        x: The volumes `(N, C, D, H, W)` that they are of.
    """
    depth, height, width = (side // PATCH for side in x.shape[2:])
    return tokens.transpose(1, 2).reshape(x.shape[0], -1, depth, height, width)


def resample_positions(table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Return a table of positions for another number of tokens per axis, by trilinear interpolation.

    Args:
        table: `(1, P, hidden)`, P the product of `grid`, in row-major order.
        grid: Tokens per axis that it is for.
        wanted: Tokens per axis. Where they are those of the grid, the table itself is returned.
    """
    if wanted == grid:
        return table
    maps = table.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(maps, size=wanted, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


def _trim(network: ViT | ViTAutoEnc, sides: tuple[int, int, int]) -> None:
    """Take out of a ViT what its forward pass never uses: MONAI 1.4 and later build norms for cross attention.

    MONAI 1.4 and 1.5 build the cross attention itself, too. Such parameters get no gradient, which
    DistributedDataParallel refuses.
    """
    network.patch_embedding = PatchEmbedding(network.patch_embedding, grid_of(sides))  # type: ignore[assignment]
    for block in network.blocks:
        block.norm_cross_attn = nn.Identity()
        block.cross_attn = nn.Identity()


def _checked(
    img_size: int | Sequence[int],
    in_channels: int,
    hidden_size: int,
    mlp_dim: int,
    num_layers: int,
    num_heads: int | None,
) -> tuple[tuple[int, int, int], int]:
    """Check the numbers that a ViT is built from; return the sides in voxels and the heads."""
    depth, height, width = grid_of(img_size)
    check_whole(in_channels=in_channels, hidden_size=hidden_size, mlp_dim=mlp_dim, num_layers=num_layers)
    heads = hidden_size // HEAD_WIDTH if num_heads is None else num_heads
    if num_heads is None and hidden_size % HEAD_WIDTH:
        raise OptionError(
            f"hidden_size={hidden_size} is no multiple of {HEAD_WIDTH}, which one head has in the published network: "
            "say how many there are by num_heads"
        )
    check_whole(num_heads=heads)
    if hidden_size % heads:
        raise OptionError(f"hidden_size={hidden_size} does not divide by num_heads={heads}")
    return (depth * PATCH, height * PATCH, width * PATCH), heads
