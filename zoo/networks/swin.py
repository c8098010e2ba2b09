"""What published Swin transformers have otherwise than the class of the MONAI that happens to be installed.

Between two stages MONAI's `PatchMerging` of 0.9 to 1.4 takes two of a cube's eight voxels twice and two not at all,
since 1.5 it takes each once (MONAI pull request 8285), with the same names and shapes. What weights compute depends on
the one that they were trained with, so both are built here, whatever MONAI is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError
from zoo.networks.sizes import check_fixed
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe

Offset = tuple[int, int, int]

_SHARED: tuple[Offset, ...] = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
MERGINGS: dict[str, tuple[Offset, ...]] = {
    "duplicated": (*_SHARED, (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "complete": (*_SHARED, (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}
"""Voxels (D, H, W) of each cube of 2 x 2 x 2 in the order in which their channels are laid side by side.

`duplicated`: MONAI 0.9 to 1.4 and the code that trained the published weights; `complete`: MONAI since 1.5.
"""


class PatchMerging(nn.Module):
    """Halves the sides of a map and doubles its channels: MONAI's `PatchMerging`, under its names, of any version.

    Args:
        dim: Channels of the map.
        norm_layer: Of the merged channels.
        spatial_dims: 3, which MONAI says to whatever it builds here.
        offsets: A value of `MERGINGS`.
    """

    def __init__(
        self, dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int = 3, *, offsets: tuple[Offset, ...]
    ) -> None:
        super().__init__()
        self.offsets = offsets
        self.reduction = nn.Linear(len(offsets) * dim, 2 * dim, bias=False)
        self.norm = norm_layer(len(offsets) * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D/2, H/2, W/2, 2 C), sides rounded up.

        Args:
            x: (N, D, H, W, C); odd sides are filled up with zeros.
        """
        depth, height, width = x.shape[1:4]
        if depth % 2 or height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        merged = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.offsets], -1)
        reduced: Tensor = self.reduction(self.norm(merged))
        return reduced


def patch_merging(merging: object) -> Any:
    """Return what MONAI's Swin networks take as `downsample`: a function that makes a `PatchMerging`.

    Args:
        merging: A name in `MERGINGS`.

    Raises:
        OptionError: It is not one of them.
    """
    if not isinstance(merging, str) or merging not in MERGINGS:
        raise OptionError(f"merging={merging!r}: expected {' or '.join(map(repr, MERGINGS))}")
    return partial(PatchMerging, offsets=MERGINGS[merging])


def two_convolution_stem(in_channels: int, features: int) -> UnetBasicBlock:
    """The first layer of the network of "Disruptive Autoencoders" in place of one convolution of 2 x 2 x 2.

    Two of 3 x 3 x 3, the first with stride 2, each before an instance norm with weights and a leaky ReLU
    (Project-MONAI/research-contributions, DAE/Pretrain_full_contrast/models/swin_transformer_3d.py).

    Args:
        in_channels: Channels of the volumes.
        features: Channels of the first stage.
    """
    norm = ("instance", {"affine": True})
    return UnetBasicBlock(3, in_channels, features, kernel_size=3, stride=2, norm_name=norm)


def swin_maps(owner: Vocabulary, transformer: SwinTransformer, x: Tensor) -> Iterator[Tensor]:
    """Yield the five maps of MONAI's transformer, strides 2 to 32, as the next stage takes them: before any norm.

    Args:
        owner: The network that it is, or is a part of, which says whether activations are kept.
        transformer: The transformer.
        x: Volumes `(N, C, D, H, W)`.

    Raises:
        InputContractError: Their sides are open, as in a graph that is exported for any of them.
    """
    if not x.shape[0]:  # MONAI cannot count the windows of no volume: the maps of one, without it
        yield from (found[:0] for found in swin_maps(owner, transformer, x.new_zeros(1, *x.shape[1:])))
        return
    check_fixed(x.shape[2:], "the windows of a Swin transformer are laid as the graph is made")
    x = transformer.pos_drop(transformer.patch_embed(x))
    yield x
    for stage in (1, 2, 3, 4):
        if transformer.use_v2:
            x = owner.recomputed(getattr(transformer, f"layers{stage}c")[0], x.contiguous())
        x = getattr(transformer, f"layers{stage}")[0](x.contiguous())
        yield x


def swin_info(transformer: SwinTransformer, prefix: str = "") -> FeatureInfo:
    """Channels, stride and module of the five maps of a transformer, which has this prefix in its network."""
    names = ("pos_drop", *(f"layers{stage}.0" for stage in (1, 2, 3, 4)))
    times = [2**i for i in range(len(names))]
    return describe([n * transformer.embed_dim for n in times], [2 * n for n in times], [f"{prefix}{n}" for n in names])


def norm_channels(transformer: SwinTransformer, found: Tensor) -> Tensor:
    """Return a map of a transformer, normalised over its channels without weights, as MONAI's forward pass does."""
    normed: Tensor = transformer.proj_out(found, True)  # type: ignore[no-untyped-call]
    return normed


def checkpoint_blocks(network: nn.Module, enable: bool) -> None:
    """Have the blocks of a Swin transformer compute their activations again in the backward pass, or keep them."""
    for module in network.modules():
        if isinstance(module, SwinTransformerBlock):
            module.use_checkpoint = enable
