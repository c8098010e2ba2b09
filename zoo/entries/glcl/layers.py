"""The layers of GLCL's networks by name: how encoder and decoder are built of them and run through."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.glcl.convert import BLOCKS, ENCODER, LEVELS, WIDTHS
from zoo.errors import InputContractError

FEATURES = LEVELS[-1]
STRIDE = 32
"""Pixels of the image to one of the encoder's last map."""
EPSILON, MOMENTUM = 1e-3, 0.01
"""Epsilon and momentum of the norms: TensorFlow's averages decay by 0.99."""


def add_layer(network: nn.Module, name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
    """Add a convolution and its norm; `layer` pads one of 2 x 2."""
    network.add_module(name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 if kernel % 2 else 0, bias=bias))
    network.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM))


def add_encoder(network: nn.Module, in_channels: int) -> None:
    """Add the six levels of the encoder."""
    for level, (inputs, outputs) in enumerate(zip((in_channels, *LEVELS[:-1]), LEVELS, strict=True), start=1):
        add_layer(network, f"enc_c{level}_a", inputs, outputs, 3)
        add_layer(network, f"enc_c{level}_b", outputs, outputs, 3)


def add_decoder(network: nn.Module, blocks: int) -> None:
    """Add the first blocks of the decoder, so many."""
    inputs = FEATURES
    for (up, merge, *rest), skip, width in list(zip(BLOCKS, LEVELS[-2::-1], WIDTHS, strict=True))[:blocks]:
        add_layer(network, up, inputs, width, 2)
        add_layer(network, merge, width + skip, width, 3)
        for name in rest:
            add_layer(network, name, width, width, 3)
        inputs = width


def layer(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """Convolution, norm, ReLU. TensorFlow pads an even kernel by one more pixel at the end than at the beginning."""
    convolution = getattr(network, name)
    if convolution.kernel_size == (2, 2):
        x = F.pad(x, (0, 1, 0, 1))
    return F.relu(getattr(network, f"{name}_bn")(convolution(x)), inplace=True)


def encode(network: nn.Module, x: Tensor, run: Callable[..., Tensor] = operator.call) -> Iterator[Tensor]:
    """Yield the maps of the six levels, the largest first.

    Args:
        network: What the layers are parts of.
        x: Slices `(N, C, H, W)`.
        run: Calls each level with its input, see `Vocabulary.recomputed`.

    Raises:
        InputContractError: The slices are of another shape, or their sides do not divide by 32.
    """
    _check_input(x, getattr(network, ENCODER[0]).in_channels)
    for level in range(1, len(LEVELS) + 1):
        x = run(partial(_level, network, level), F.max_pool2d(x, 2) if level > 1 else x)
        yield x


def decode(
    network: nn.Module, maps: Sequence[Tensor], blocks: int, run: Callable[..., Tensor] = operator.call
) -> Tensor:
    """Return the map of the last of so many blocks, which are given the maps of all levels, the largest first."""
    *skips, x = maps
    for names, skip in list(zip(BLOCKS, reversed(skips), strict=True))[:blocks]:
        x = run(partial(_block, network, names), x, skip)
    return x


def _level(network: nn.Module, level: int, x: Tensor) -> Tensor:
    return layer(network, f"enc_c{level}_b", layer(network, f"enc_c{level}_a", x))


def _block(network: nn.Module, names: Sequence[str], x: Tensor, skip: Tensor) -> Tensor:
    """Double the sides of a map and put it beside that of a level."""
    up, merge, *rest = names
    x = layer(network, up, F.interpolate(x, scale_factor=2.0, mode="nearest"))
    x = layer(network, merge, torch.cat((x, skip), 1))
    for name in rest:
        x = layer(network, name, x)
    return x


def _check_input(x: Tensor, channels: int) -> None:
    if x.ndim == 4 and x.shape[1] == channels and all(side and side % STRIDE == 0 for side in x.shape[2:]):
        return
    raise InputContractError(
        f"slices have the shape {tuple(x.shape)}; (N, {channels}, H, W) is expected, with H and W multiples of "
        f"{STRIDE} (192, or 160 for MM-WHS): crop or pad them"
    )
