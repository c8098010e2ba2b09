"""MONAI's 3D ViT without dead parameters: an encoder, and the parts of it that other networks are built around."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from monai.networks.nets.vit import ViT
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError
from zoo.networks.sizes import check_volumes
from zoo.networks.vit_names import PATCH, POOLINGS
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe, last_of

if TYPE_CHECKING:
    from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
    from monai.networks.nets.vitautoenc import ViTAutoEnc


_ASKS = torch.__version__ >= "2.8"
"""Whether `torch.compile` can trace a question about all sizes; torch 2.6 cannot, and the answer is then no."""


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
        self.patch_embeddings = cast("nn.Conv3d", plain.patch_embeddings)
        self.position_embeddings = plain.position_embeddings
        self.grid = grid
        self.window: tuple[int, ...] = tuple(side * PATCH for side in grid)
        """Voxels that whole volumes are cut into; of another size than the table's after `for_windows`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens `(N, D/16 * H/16 * W/16, hidden)` in row-major order.

        Args:
            x: Volumes `(N, C, D, H, W)`.

        Raises:
            InputContractError: A side is no multiple of 16, or there are other channels than the network takes.
        """
        maps = self.patch_embeddings(check_volumes(x, self.patch_embeddings.in_channels, PATCH))
        table = resample_positions(self.position_embeddings, self.grid, tuple(maps.shape[2:]))
        tokens: Tensor = maps.flatten(2).transpose(1, 2) + table
        return tokens


class ViTEncoder(Vocabulary, ViT):
    """MONAI's `ViT` as an encoder: one of `POOLINGS` of its tokens after the final norm, and no class token.

    With classes, `classification_head` is a linear layer on what is pooled.
    """

    head_name = "classification_head"

    def __init__(
        self,
        in_channels: int,
        sides: tuple[int, int, int],
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        num_classes: int = 0,
        pooling: str = "mean",
    ) -> None:
        """Build MONAI's network and take out what its forward pass never uses.

        Args:
            in_channels: Channels of the volumes.
            sides: Voxels per axis that the table of positions is for; multiples of 16.
            hidden_size: Width of a token.
            mlp_dim: Width inside the perceptron of a block.
            num_layers: Blocks.
            num_heads: Attention heads.
            num_classes: Outputs of the classifier, 0 for none.
            pooling: One of `POOLINGS`.

        Raises:
            OptionError: There is no such pooling.
        """
        if pooling not in POOLINGS:
            raise OptionError(f"pooling={pooling!r}: {' or '.join(map(repr, POOLINGS))} is expected")
        super().__init__(in_channels, sides, PATCH, hidden_size, mlp_dim, num_layers, num_heads)
        trim(self, sides)
        self.num_features, self.num_classes = hidden_size, num_classes
        self.pooling, self.pooled_by = pooling, "token" if pooling == "first" else "avg"
        self.make_head(num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each block."""
        return block_info(self)

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of the present head; 0 for none."""
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.classification_head = head  # type: ignore[assignment]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after each block as a map, before the norm."""
        return (as_map(tokens, x) for tokens in self.block_tokens(x))

    def block_tokens(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens `(N, P, hidden)` after each block, before the norm.

        Raises:
            InputContractError: As `PatchEmbedding`.
        """
        return block_tokens(self, self, x)

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a block after the final norm."""
        return norm_map(self, found)

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
        tokens = self._tokens(x)
        logits: Tensor = self.classification_head(tokens[:, 0] if self.pooling == "first" else tokens.mean(dim=1))
        return logits

    def _tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(last_of(self.block_tokens(x)))
        return tokens


def block_tokens(owner: Vocabulary, vit: ViT | ViTAutoEnc, x: Tensor) -> Iterator[Tensor]:
    """Yield the tokens `(N, P, hidden)` after each block of a ViT, before the final norm.

    Args:
        owner: The network that it is, or is a part of, which says whether activations are kept.
        vit: The ViT.
        x: Volumes `(N, C, D, H, W)`.
    """
    x = vit.patch_embedding(x)
    for block in vit.blocks:
        x = owner.recomputed(block, x)
        yield x


def block_info(vit: ViT | ViTAutoEnc, prefix: str = "") -> FeatureInfo:
    """Channels, stride and module of each block of a ViT, which has this prefix in its network."""
    count, width = len(vit.blocks), vit.norm.normalized_shape[0]
    return describe([width] * count, [PATCH] * count, [f"{prefix}blocks.{i}" for i in range(count)])


def norm_map(vit: ViT | ViTAutoEnc, found: Tensor) -> Tensor:
    """Return a map `(N, hidden, *space)` of tokens after the final norm of a ViT."""
    normed: Tensor = vit.norm(found.movedim(1, -1)).movedim(-1, 1)
    return normed


def as_map(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens `(N, P, hidden)` as a map `(N, hidden, D/16, H/16, W/16)`.

    Args:
        tokens: In row-major order.
        x: The volumes `(N, C, D, H, W)` that they are of.
    """
    depth, height, width = (side // PATCH for side in x.shape[2:])
    return tokens.transpose(1, 2).reshape(x.shape[0], tokens.shape[2], depth, height, width)


def resample_positions(table: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Return a table of positions for another number of tokens per axis, by trilinear interpolation.

    Args:
        table: `(1, P, hidden)`, P the product of `grid`, in row-major order.
        grid: Tokens per axis that it is for.
        wanted: Tokens per axis. Where they are those of the grid, the table itself is returned. Where they are unknown,
            as in an exported graph, the table is interpolated, which changes no bit at the size of the grid.
    """
    if _are_equal(wanted, grid):
        return table
    maps = table.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(maps, size=wanted, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


def _are_equal(wanted: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether they are; in a graph, whether they are for all sizes, which no guard then makes a constant."""
    if not torch.compiler.is_compiling():
        return wanted == grid
    if torch.compiler.is_dynamo_compiling() and not _ASKS:
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes long, and is there in a graph

    return all(statically_known_true(after == before) for after, before in zip(wanted, grid, strict=True))


def trim(network: ViT | ViTAutoEnc, sides: tuple[int, int, int]) -> None:
    """Take out of a ViT what its forward pass never uses: MONAI 1.4 and later build norms for cross attention.

    MONAI 1.4 and 1.5 build the cross attention itself, too. Such parameters get no gradient, which
    DistributedDataParallel refuses.
    """
    depth, height, width = (side // PATCH for side in sides)
    network.patch_embedding = PatchEmbedding(network.patch_embedding, (depth, height, width))  # type: ignore[assignment]
    for block in network.blocks:
        block.norm_cross_attn = nn.Identity()
        block.cross_attn = nn.Identity()
