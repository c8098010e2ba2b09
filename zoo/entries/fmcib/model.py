"""FMCIB's network: MONAI's `ResNet` with bottlenecks, twice as wide, as an encoder of pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputContractError, OptionError

STRIDES = (1, 2)
"""Of the first convolution: 2 in the pre-training, 1 where the authors' files of settings leave it out."""
_BLOCKS, _PLANES = [3, 4, 6, 3], [64, 128, 256, 512]


class FMCIBResNet(ResNet):
    """MONAI's `ResNet`, which returns pooled features; with classes logits of a head on them.

    It is built from the class and not by `resnet50`, which MONAI 1.1 and 1.2 cannot call with these arguments.
    """

    num_features = 4096

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
        self.in_channels, self.stride = in_channels, stride
        head: Any = _head((self.num_features, *hidden, num_classes)) if num_classes else None
        self.fc = head

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map after its ReLU, `(N, 4096, D/32, H/32, W/32)`, sides rounded up.

        Args:
            x: Volumes `(N, C, D, H, W)`, axes to superior, posterior and left, HU -1024 to 2048 as 0 to 1.

        Raises:
            InputContractError: There are other axes or channels than the network takes.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputContractError(
                f"the input has the shape {tuple(x.shape)}: volumes (N, {self.in_channels}, D, H, W) are expected. "
                "Of one volume (C, D, H, W) x[None] is a batch; in_channels= adapts the network to other channels"
            )
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return last

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features `(N, 4096)`, none negative, or logits `(N, num_classes)`.

        Args:
            x: As for `forward_features`.

        Raises:
            InputContractError: As for `forward_features`.
        """
        pooled = self.forward_features(x).mean(dim=(2, 3, 4))
        if self.fc is None:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits


def _head(widths: Sequence[int]) -> nn.Module:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
