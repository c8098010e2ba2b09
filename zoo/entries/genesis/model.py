"""The 3D U-Net of Models Genesis and TransVW, and its contracting half as an encoder, under the authors' names.

The authors' norm never reads the statistics that it stores: in eval mode, too, it takes those of the batch, so that
the features of a volume depend on the others in it. Here it takes those of each volume alone, which is the authors'
function for a batch of one.

The file is long because two networks are made of the same blocks, which no other family has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputContractError, OptionError
from zoo.networks.sizes import check_axes, times
from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe, last_of

STEP = 8
"""What the sides of a volume divide by: three poolings."""
NORMS = ("volume", "batch", "running")
"""Whose statistics the norms take in eval mode; see `StatelessNorm`."""
_EPSILON = 1e-5


class StatelessNorm(nn.Module):
    """A norm over space with weights, which changes nothing of itself in a forward pass.

    It is no subclass of torch's batch norms: what converts or fuses those would have it read the stored statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, norm: str) -> None:
        """Start as a batch norm does.

        Args:
            channels: Of the map.
            norm: Whose statistics it takes in eval mode. `"volume"`: those of each volume alone; in training those of
                the batch, as the authors do. `"batch"`: those of the batch, as the authors do. `"running"`: the stored
                ones, in training too, which nothing of the authors' ever does.
        """
        super().__init__()
        self.norm = norm
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps `(N, C, *space)`, normalised."""
        if self.norm == "running":
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=_EPSILON)
        if not x.shape[0]:
            return x  # no volume has no statistics, and torch takes none
        if self.training or self.norm == "batch":
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=_EPSILON)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=_EPSILON)

    def extra_repr(self) -> str:
        """Show what it normalises."""
        return f"{len(self.weight)}, norm={self.norm!r}"


class Layer(nn.Module):
    """A convolution of 3 x 3 x 3, the norm, and a ReLU."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, after, kernel_size=3, padding=1)
        self.bn1 = StatelessNorm(after, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps `(N, after, *space)`."""
        return F.relu(self.bn1(self.conv1(x)))


class Up(nn.Module):
    """A transposed convolution that doubles the sides, and two layers on its map beside the one of that size."""

    def __init__(self, below: int, beside: int, norm: str) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(below, below, kernel_size=2, stride=2)
        self.ops = _layers(below + beside, beside, beside, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return maps `(N, beside, *space)` of the size of `skip`."""
        layers: Tensor = self.ops(torch.cat([self.up_conv(x), skip], dim=1))
        return layers


class ContractingPath(Vocabulary):
    """What the encoder and the U-Net have in common: four stages of 64, 128, 256 and 512 channels."""

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        if norm not in NORMS:
            raise OptionError(f"norm={norm!r}: expected {', '.join(map(repr, NORMS))}")
        self.norm, self.in_channels = norm, in_channels
        self.down_tr64 = _named(ops=_layers(in_channels, 32, 64, norm))
        self.down_tr128 = _named(ops=_layers(64, 64, 128, norm))
        self.down_tr256 = _named(ops=_layers(128, 128, 256, norm))
        self.down_tr512 = _named(ops=_layers(256, 256, 512, norm))

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each stage of the contracting half."""
        widths = (64, 128, 256, 512)
        return describe(widths, (1, 2, 4, 8), (f"down_tr{width}" for width in widths))

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the maps of the four stages, each after its ReLU.

        Raises:
            InputContractError: As `check_volumes`.
        """
        self.check_volumes(x)
        for stage in (self.down_tr64, self.down_tr128, self.down_tr256, self.down_tr512):
            x = self.recomputed(stage, x)
            yield x
            if stage is not self.down_tr512:
                x = F.max_pool3d(x, 2)

    def check_volumes(self, x: Tensor) -> None:
        """Raise `InputContractError` where the network takes no such volumes; see `GenesisEncoder.forward`."""
        check_axes(x, self.in_channels, "x, y, z")
        sides = tuple(x.shape[2:])
        following = [max(1, -(-side // STEP)) * STEP for side in sides]
        if list(sides) != following:
            raise InputContractError(
                f"the volumes have {times(sides)} voxels; multiples of {STEP} are expected, next {times(following)}. "
                "Pad them to that with 0, which is air, or take cubes of 64 x 64 x 32, which the network was trained on"
            )
        of_batch = self.training or self.norm == "batch"
        if self.norm != "running" and prod(sides) * (x.shape[0] if of_batch else 1) == STEP**3:
            raise InputContractError(
                f"a volume of {times(sides)} voxels leaves one voxel at the last stage, which has no statistics: at "
                f"least {2 * STEP} voxels on one axis are expected"
            )


class GenesisEncoder(ContractingPath):
    """The contracting half: features `(N, 512)`, with classes logits of the authors' classifier on them."""

    num_features = 512
    dense_1: nn.Module
    dense_2: nn.Module

    def __init__(
        self, in_channels: int = 1, num_classes: int = 0, *, norm: str = "volume", head_layers: int = 2
    ) -> None:
        """Start with random weights.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Outputs of the classifier, 0 for none.
            norm: Whose statistics the norms take in eval mode, one of `NORMS`.
            head_layers: Layers of the classifier: 2 as Models Genesis has them, 1 as TransVW has it, without the ReLU
                behind it, which keeps that one's probabilities from going below a half.

        Raises:
            OptionError: There is no such norm.
        """
        super().__init__(in_channels, norm)
        self.num_classes, self.head_layers = num_classes, head_layers
        self.head_name = f"dense_{head_layers}"
        self.make_head(num_classes)

    def make_head(self, num_classes: int) -> None:
        """Put the authors' classifier, of as many layers, in the place of the present one; 0 for none."""
        widths = (self.num_features, *[1024] * (self.head_layers - 1), num_classes)
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            setattr(self, f"dense_{number}", nn.Linear(before, after) if num_classes else nn.Identity())

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map after its ReLU, `(N, 512, x/8, y/8, z/8)`.

        Args:
            x: Volumes as `forward` takes them.

        Raises:
            InputContractError: As `forward`.
        """
        return last_of(self.stages(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 512)`, or logits `(N, num_classes)`.

        Args:
            x: Volumes `(N, C, x, y, z)` in [0, 1]; sides are multiples of 8, and one of them at least 16.

        Raises:
            InputContractError: They are not, or there are other channels than the network takes.
        """
        pooled = self.forward_features(x).mean(dim=(2, 3, 4))
        if not self.num_classes:
            return pooled
        logits: Tensor = self.dense_1(pooled)
        return self.dense_2(F.relu(logits)) if self.head_layers == 2 else logits


class GenesisUNet3D(ContractingPath):
    """The whole U-Net: the restored volume behind a sigmoid, or logits."""

    num_features = 64
    head_name = "out_tr"
    pooled_by = None

    def __init__(self, in_channels: int = 1, num_classes: int | None = None, *, norm: str = "volume") -> None:
        """Start with random weights.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Channels of logits; None for one channel behind a sigmoid, as published, 0 for the decoder's
                maps.
            norm: Whose statistics the norms take in eval mode, one of `NORMS`.

        Raises:
            OptionError: There is no such norm.
        """
        super().__init__(in_channels, norm)
        self.num_classes = num_classes
        self.up_tr256 = Up(512, 256, norm)
        self.up_tr128 = Up(256, 128, norm)
        self.up_tr64 = Up(128, 64, norm)
        self.make_head(1 if num_classes is None else num_classes)

    def make_head(self, num_classes: int) -> None:
        """Put a convolution of 1 x 1 x 1 in the place of the present one; 0 for none."""
        last = nn.Conv3d(self.num_features, num_classes or 1, kernel_size=1)
        self.out_tr = _named(final_conv=last) if num_classes else nn.Identity()

    def finish(self, maps: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """Decode the maps of the four stages."""
        skip64, skip128, skip256, x = maps
        for up, skip in ((self.up_tr256, skip256), (self.up_tr128, skip128), (self.up_tr64, skip64)):
            x = self.recomputed(up, x, skip)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the decoder's maps, `(N, 64, x, y, z)`.

        Args:
            x: Volumes as `GenesisEncoder.forward` takes them.

        Raises:
            InputContractError: As `GenesisEncoder.forward`.
        """
        return self.finish(list(self.stages(x)), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored volume `(N, 1, x, y, z)` in (0, 1), logits `(N, num_classes, x, y, z)`, or 64 maps.

        Args:
            x: Volumes as `GenesisEncoder.forward` takes them.

        Raises:
            InputContractError: As `GenesisEncoder.forward`.
        """
        outputs: Tensor = self.out_tr(self.forward_features(x))
        return outputs.sigmoid() if self.num_classes is None else outputs


def _layers(before: int, between: int, after: int, norm: str) -> nn.Sequential:
    return nn.Sequential(Layer(before, between, norm), Layer(between, after, norm))


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
