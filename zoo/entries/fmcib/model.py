"""FMCIB's network: MONAI's `ResNet` with bottlenecks, twice as wide, as an encoder of pooled features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn

from zoo.errors import InputContractError, OptionError
from zoo.networks.resnet import resnet_info, resnet_maps
from zoo.networks.vocabulary import Vocabulary, last_of

STRIDES = (1, 2)
"""Of the first convolution: 2 in the pre-training, 1 where the authors' files of settings leave it out."""
_BLOCKS, _PLANES = [3, 4, 6, 3], [64, 128, 256, 512]


class FMCIBResNet(Vocabulary, ResNet):
    """MONAI's `ResNet`, which returns pooled features; with classes logits of a head on them.

    It is built from the class and not by `resnet50`, which MONAI 1.1 and 1.2 cannot call with these arguments.
    """

    num_features = 4096
    head_name = "fc"

    def __init__(
        self, in_channels: int = 1, num_classes: int = 0, *, stride: int = 2, hidden: Sequence[int] = ()
    ) -> None:
        """Start as MONAI's class does.

        Args:
            in_channels: Channels of the volumes.
            num_classes: Outputs of the head, 0 for none.
            stride: Of the first convolution, one of `STRIDES`.
            hidden: Widths of the layers between features and outputs, a ReLU behind each, as the authors fine-tune.

        Raises:
            OptionError: There is no such stride.
        """
        if stride not in STRIDES or isinstance(stride, bool):
            raise OptionError(f"stride={stride!r}: expected {' or '.join(map(str, STRIDES))}, of the first convolution")
        super().__init__(
            ResNetBottleneck,
            _BLOCKS,
            _PLANES,
            n_input_channels=in_channels,
            conv1_t_stride=stride,
            widen_factor=2,
            feed_forward=False,
            bias_downsample=True,
        )
        self.in_channels, self.stride, self.hidden = in_channels, stride, tuple(hidden)
        self.num_classes = num_classes
        self.make_head(num_classes)

    feature_info = property(resnet_info)

    def make_head(self, num_classes: int) -> None:
        """Put a head of the same hidden layers in the place of the present one; 0 for none."""
        head: Any = _head((self.num_features, *self.hidden, num_classes)) if num_classes else nn.Identity()
        self.fc = head

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the maps of the stem and of the four layers, each after its ReLU.

        Raises:
            InputContractError: As `forward_features`.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputContractError(
                f"the input has the shape {tuple(x.shape)}: volumes (N, {self.in_channels}, D, H, W) are expected. "
                "Of one volume (C, D, H, W) x[None] is a batch; in_channels= adapts the network to other channels"
            )
        yield from resnet_maps(self, self, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map after its ReLU, `(N, 4096, D/32, H/32, W/32)`, sides rounded up.

        Args:
            x: Volumes `(N, C, D, H, W)`, axes to superior, posterior and left, HU -1024 to 2048 as 0 to 1.

        Raises:
            InputContractError: There are other axes or channels than the network takes.
        """
        return last_of(self.stages(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 4096)`, none negative, or logits `(N, num_classes)`.

        Args:
            x: As for `forward_features`.

        Raises:
            InputContractError: As for `forward_features`.
        """
        pooled = self.forward_features(x).mean(dim=(2, 3, 4))
        logits: Tensor = self.fc(pooled)  # type: ignore[misc]
        return logits


def _head(widths: Sequence[int]) -> nn.Module:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
