"""The Swin transformer of a Swin UNETR as an encoder: pooled features, maps, and logits if it has classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_volumes, check_whole, times
from zoo.networks.swin import (
    checkpoint_blocks,
    norm_channels,
    patch_merging,
    swin_info,
    swin_maps,
    two_convolution_stem,
)
from zoo.networks.swin_names import WINDOW
from zoo.networks.swin_unetr import DEPTHS, HEADS, SWIN_STEP, check_width
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, last_of

EMBEDDINGS = ("pooled", "authors")
"""`pooled`: the mean of the last map. `authors`: VoCo's own, means of five convolved maps side by side."""

_CONVOLVED = (1, 1, 2, 4, 16)
"""Channels of VoCo's five maps, in widths of the first stage."""


class SwinEncoder(Vocabulary, SwinTransformer):
    """MONAI's `SwinTransformer` that returns features instead of five maps; `swin_encoder` makes it."""

    head_name = "classification_head"
    stride = SWIN_STEP
    """Voxels along a side of a cell of the last map."""
    in_channels: int
    embedding: str
    classification_head: nn.Module
    encoder1: nn.Module
    encoder2: nn.Module
    encoder3: nn.Module
    encoder4: nn.Module
    encoder10: nn.Module

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each of the five maps."""
        return swin_info(self)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the five maps, before the norm.

        Raises:
            InputContractError: As `forward_features`.
        """
        self._check(x)
        yield from swin_maps(self, self, x)

    def normalised(self, found: Tensor) -> Tensor:
        """Return the map of a stage, normalised over its channels."""
        return norm_channels(self, found)

    def make_head(self, num_classes: int) -> None:
        """Put a linear layer in the place of the present head; 0 for none."""
        self.classification_head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As for every network; the blocks do it themselves."""
        super().set_grad_checkpointing(enable)
        checkpoint_blocks(self, enable)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, normalised over its channels, `(N, 16 C, D/32, H/32, W/32)`, sides rounded up.

        Args:
            x: Volumes `(N, C, D, H, W)` of at least 32 voxels a side; sides that are no multiples of 32 are filled up
                on the way with zeros, as MONAI does.

        Raises:
            InputContractError: They are smaller, or have other channels than the network takes.
        """
        return self.normalised(last_of(self.stages(x)))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return pooled features `(N, num_features)`, or logits `(N, num_classes)`.

        Args:
            x: As `forward_features` takes it.

        Raises:
            InputContractError: As `forward_features`; and with VoCo's own embedding where all sides are 32, of which
                the last map is one voxel.
        """
        logits: Tensor = self.classification_head(self._embed(x))
        return logits

    def _check(self, x: Tensor) -> None:
        check_volumes(x, self.in_channels, 1)
        if min(x.shape[2:]) < SWIN_STEP:
            raise InputContractError(
                f"the volumes have {times(x.shape[2:])} voxels; at least {SWIN_STEP} on each axis are "
                "expected. Pad them"
            )

    def _embed(self, x: Tensor) -> Tensor:
        if self.embedding == "pooled":
            return self.forward_features(x).mean(dim=(2, 3, 4))
        if max(x.shape[2:]) <= SWIN_STEP:
            raise InputContractError(
                f"the volumes have {SWIN_STEP} voxels on each axis, of which the last map would be one voxel, which no "
                f"norm can take: with embedding='authors' more than {SWIN_STEP} on one axis are expected"
            )
        h0, h1, h2, _, h4 = map(self.normalised, self.stages(x))
        convolved = (
            (self.encoder1, x),
            (self.encoder2, h0),
            (self.encoder3, h1),
            (self.encoder4, h2),
            (self.encoder10, h4),
        )
        means = [self.recomputed(encoder, found).mean(dim=(2, 3, 4)) for encoder, found in convolved]
        return torch.cat(means, dim=1)


def swin_encoder(
    *,
    in_channels: int = 1,
    feature_size: int = 48,
    num_classes: int = 0,
    merging: str = "duplicated",
    two_convolutions: bool = False,
    use_v2: bool = False,
    embedding: str = "pooled",
) -> SwinEncoder:
    """Return the transformer of a Swin UNETR, under the names of MONAI's `SwinTransformer`.

    Args:
        in_channels: Channels of the volumes.
        feature_size: Channels of the first stage; a multiple of 12.
        num_classes: Outputs of the classifier on the embedding, 0 for none.
        merging: How a stage ends, `duplicated` or `complete`; see `zoo.networks.swin`.
        two_convolutions: Whether it begins with two, as the network of "Disruptive Autoencoders", not with one.
        use_v2: Whether two convolutions come before each stage (Swin v2).
        embedding: `pooled` for the mean of the last map, 16 times `feature_size` numbers. `authors` for VoCo's own, 24
            times: the means of encoder1(x), encoder2(h0), encoder3(h1), encoder4(h2) and encoder10(h4), convolutions of
            its U-Net (Luffy03/Large-Scale-Medical, voco_head.py).

    Raises:
        OptionError: `feature_size` is no multiple of 12, or there is no such merging or embedding.
    """
    check_whole(in_channels=in_channels)
    check_width(feature_size)
    if embedding not in EMBEDDINGS:
        raise OptionError(f"embedding={embedding!r}: expected {' or '.join(map(repr, EMBEDDINGS))}")
    network = SwinEncoder(
        in_chans=in_channels,
        embed_dim=feature_size,
        window_size=(WINDOW,) * 3,
        patch_size=(2,) * 3,
        depths=DEPTHS,
        num_heads=HEADS,
        downsample=patch_merging(merging),
        use_v2=use_v2,
    )
    network.in_channels, network.embedding = in_channels, embedding
    network.num_features = 16 * feature_size
    if two_convolutions:
        network.patch_embed.proj = two_convolution_stem(in_channels, feature_size)
    if embedding == "authors":
        _add_convolutions(network, in_channels, feature_size)
    network.num_classes = num_classes
    network.make_head(num_classes)
    return network


def _add_convolutions(network: SwinEncoder, in_channels: int, width: int) -> None:
    """Give an encoder the convolutions of the U-Net that VoCo's own embedding is the mean of."""
    names = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
    for name, factor in zip(names, _CONVOLVED, strict=True):
        taken = in_channels if name == "encoder1" else factor * width
        block = UnetrBasicBlock(3, taken, factor * width, kernel_size=3, stride=1, norm_name="instance", res_block=True)
        setattr(network, name, block)
    network.num_features = sum(_CONVOLVED) * width
