"""The ViT of the MONAI SSL family and its auto-encoder: MONAI's classes without dead parameters, for several sizes.

A file tells all widths but the number of heads, which is one for 64 channels in MONAI's tutorials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.monai_ssl.convert import PATCH
from zoo.entries.monai_ssl.sizes import check_volumes, check_whole, check_widths, tokens_of

if TYPE_CHECKING:
    from monai.networks.blocks.patchembedding import PatchEmbeddingBlock

Network = TypeVar("Network", bound=nn.Module)


class PatchEmbedding(nn.Module):
    """MONAI's patch embedding, with its table of positions interpolated for inputs of other sizes.

    At the size that it was built for, the table is added unchanged.
    """

    def __init__(self, plain: PatchEmbeddingBlock, grid: tuple[int, int, int]) -> None:
        """Take over the parameters of MONAI's block, under their names.

        Args:
            plain: MONAI's block, with a convolution as projection.
            grid: Tokens per axis that its table is for.
        """
        super().__init__()
        self.patch_embeddings = cast("nn.Conv3d", plain.patch_embeddings)
        self.position_embeddings = plain.position_embeddings
        self.grid = grid
        self.window: tuple[int, ...] = tuple(side * PATCH for side in grid)
        """Size in voxels of the windows of whole volumes; `for_windows` may set another than the table's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `(N, D/16 * H/16 * W/16, hidden)` in row-major order.

        Args:
            x: Volumes `(N, C, D, H, W)`.

        Raises:
            InputContractError: A side is not a multiple of 16, or the network takes another number of channels.
        """
        maps = self.patch_embeddings(check_volumes(x, self.patch_embeddings.in_channels, PATCH))
        table = resample_positions(self.position_embeddings, self.grid, tuple(maps.shape[2:]))
        tokens: Tensor = maps.flatten(2).transpose(1, 2) + table
        return tokens


class ViTEncoder(ViT):
    """MONAI's `ViT` as an encoder: the mean of its tokens after the final norm, without a class token.

    With classes, `classification_head` is a linear layer on that mean. `vit_encoder` makes it.
    """

    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens after the final norm as a map, `(N, 768, D/16, H/16, W/16)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: As `PatchEmbedding`.
        """
        return as_map(self._tokens(x), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 768)`, or logits `(N, num_classes)`.

        Args:
            x: Volumes `(N, C, D, H, W)`, sides multiples of 16.

        Raises:
            InputContractError: As `PatchEmbedding`.
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
            InputContractError: As `PatchEmbedding`.
        """
        reconstruction: Tensor = super().forward(x)[0]  # type: ignore[no-untyped-call]
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
    network = ViTEncoder(in_channels, sides, PATCH, hidden_size, mlp_dim, num_layers, heads)
    trim(network, sides)
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
    return network


def as_map(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens `(N, P, hidden)` as a map `(N, hidden, D/16, H/16, W/16)`.

    Args:
        tokens: In row-major order.
        x: The volumes `(N, C, D, H, W)` that the tokens belong to.
    """
    depth, height, width = (side // PATCH for side in x.shape[2:])
    return tokens.transpose(1, 2).reshape(x.shape[0], -1, depth, height, width)


def resample_positions(table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Return a table of positions for another number of tokens per axis, by trilinear interpolation.

    Args:
        table: `(1, P, hidden)`, P the product of `grid`, in row-major order.
        grid: Tokens per axis that the table is for.
        wanted: Tokens per axis. Where they are those of the grid, the table itself is returned.
    """
    if wanted == grid:
        return table
    maps = table.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(maps, size=wanted, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


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


def trim(network: ViT | ViTAutoEnc, sides: tuple[int, int, int]) -> None:
    """Remove the parts of a ViT that its forward pass never uses: MONAI 1.4 and later build norms for cross attention.

    MONAI 1.4 and 1.5 build the cross attention itself, too. Such parameters get no gradient, which
    DistributedDataParallel refuses.
    """
    network.patch_embedding = PatchEmbedding(network.patch_embedding, tokens_of(sides))  # type: ignore[assignment]
    for block in network.blocks:
        block.norm_cross_attn = nn.Identity()
        block.cross_attn = nn.Identity()
