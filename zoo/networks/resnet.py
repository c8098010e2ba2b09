"""The stages of MONAI's 3D ResNets, which several families are encoders of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, cast

from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from zoo.networks.vocabulary import FeatureInfo, Vocabulary, describe

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def resnet_maps(owner: Vocabulary, network: ResNet, x: Tensor) -> Iterator[Tensor]:
    """Yield the maps of the stem and of the four layers, each after its ReLU.

    Args:
        owner: The network that it is, or is a part of, which says whether activations are kept.
        network: MONAI's ResNet.
        x: Volumes `(N, C, D, H, W)`.
    """
    x = network.act(network.bn1(network.conv1(x)))
    yield x
    x = network.maxpool(x)
    for name in LAYERS:
        x = owner.recomputed_each(getattr(network, name), x)
        yield x


def resnet_info(network: ResNet) -> FeatureInfo:
    """Channels, stride and module of the stem and of the four layers of a ResNet of bottlenecks."""
    first = cast("nn.Conv3d", network.conv1)
    blocks: Any = [getattr(network, name)[0] for name in LAYERS]
    widths = [first.out_channels, *(block.conv3.out_channels for block in blocks)]
    strides = [first.stride[0], 2, *(block.stride for block in blocks[1:])]
    return describe(widths, accumulate(strides, int.__mul__), ("act", *LAYERS))
