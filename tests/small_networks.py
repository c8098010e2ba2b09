"""Every network of the registry, small enough to be exported by fewer or narrower layers of a kind, and its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zoo.checkpoint import build_network
from zoo.entry import Config, Entry
from zoo.registry import entries, get_entry

_VIT = {"img_size": (48, 32, 32), "hidden_size": 64, "mlp_dim": 128}
_NARROW = 12


@dataclass(frozen=True)
class Small:
    """How a network is made small, and what it takes."""

    shape: tuple[int, ...]
    """Of one image, `(C, *space)`: of few voxels, but of enough for the norms of the last map."""
    step: int
    """What the sides divide by."""
    least: int = 33
    """Where any side will do, of those whose last map has two voxels."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the entry."""
    width: int | None = None
    """Of the entries that are made for several."""
    shorten: Callable[[nn.Module], None] = lambda network: None
    """Takes layers out of a network that has several of a kind in a row."""
    narrow: int = 1
    """What the channels are divided by, of entries that are made for one width; `cheap` alone."""
    cheap: bool = False
    """Whether values are given to the layers that are left alone, each of which can start by itself."""


def _two_blocks(network: nn.Module) -> None:
    network.blocks = network.blocks[:2]


def _two_of_timms_blocks(network: nn.Module) -> None:
    _two_blocks(network)
    network.feature_info = network.feature_info[:2]


def one_bottleneck(network: nn.Module) -> None:
    for i in (1, 2, 3, 4):
        setattr(network, f"layer{i}", getattr(network, f"layer{i}")[:1])


def _one_residual_block(network: nn.Module) -> None:
    for level in getattr(network, "encoder", network).layers:
        level["blocks"] = level["blocks"][:1]


class _Widen(nn.Module):
    """Has the channels that dense layers would add, as copies of those that there are."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        copies = x.repeat(1, -(-self.added // x.shape[1]), *(1,) * (x.ndim - 2))
        return torch.cat([x, copies[:, : self.added]], 1)


def _two_of_twelve_blocks(network: nn.Module) -> None:
    """Keep the first and the last block of a UNETR's ViT, whose decoder counts twelve."""
    for i in range(1, len(network.vit.blocks) - 1):
        network.vit.blocks[i] = nn.Identity()


def _two_dense_layers(network: nn.Module) -> None:
    """Keep two of the 6 to 24 layers of each block: graphs are made of a network layer by layer."""
    for block in (module for name, module in network.features.named_children() if name.startswith("denseblock")):
        kept, dropped = list(block.named_children())[:2], list(block.children())[2:]
        growth = kept[0][1].layers.conv2.out_channels
        for name, _ in list(block.named_children())[2:]:
            delattr(block, name)
        block.add_module("widen", _Widen(growth * len(dropped)))


def _small_windows(network: nn.Module) -> None:
    """Have a Swin transformer attend to 3 voxels a side instead of 7: masks of 343 x 343 take its export half a minute.

    The maps of 16 voxels a side are padded and shifted all the same.
    """
    from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformerBlock, WindowAttention

    for module in list(network.modules()):
        if isinstance(module, BasicLayer | SwinTransformerBlock):
            module.window_size = (3, 3, 3)
            module.shift_size = tuple(min(side, 1) for side in module.shift_size)
        if isinstance(module, SwinTransformerBlock):
            old = module.attn
            module.attn = WindowAttention(old.dim, old.num_heads, module.window_size, qkv_bias=old.qkv.bias is not None)


class _Merge(nn.Module):
    """What is left of a stage of a Swin transformer without its blocks: half the sides, twice the channels."""

    def __init__(self, merging: nn.Module) -> None:
        super().__init__()
        self.merging = merging

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.merging(x.movedim(1, -1)).movedim(-1, 1)


def _small_swin(network: nn.Module) -> None:
    """Keep the blocks of the first stage, which pads and shifts its windows, and of the last, which is one window.

    Masks are laid part by part, in hundreds of operations for each stage. Of convolutions one of a kind is kept: those
    before the first stage, and those of a U-Net's input and of its way up.
    """
    transformer = getattr(network, "swinViT", network)
    for stage in (2, 3):
        blocks = getattr(transformer, f"layers{stage}")
        blocks[0] = _Merge(blocks[0].downsample)
    for stage in (2, 3, 4):
        getattr(transformer, f"layers{stage}c")[0] = nn.Identity()
    transformer.layers4[0].blocks = transformer.layers4[0].blocks[:1]
    for encoder in ("encoder2", "encoder3", "encoder4", "encoder10"):
        if hasattr(network, encoder):
            setattr(network, encoder, nn.Identity())
    _small_windows(network)


def _one_bottleneck_in_encoder(network: nn.Module) -> None:
    one_bottleneck(network.encoder)


SMALL = {
    "anatomix-unet": Small((1, 32, 32, 48), 4, options={"width": 4, "depth": 2}),
    "brainiac-vitb16": Small((1, 96, 96, 96), 16, shorten=_two_blocks),
    "brainiac-resnet50": Small((1, 64, 40, 33), 1, shorten=one_bottleneck, narrow=4, cheap=True),
    "caid-resnet50": Small((3, 64, 40), 1, shorten=one_bottleneck, narrow=4, cheap=True),
    "caid-resnet50-unet": Small((3, 64, 96), 32, shorten=_one_bottleneck_in_encoder, narrow=4, cheap=True),
    "ct-fm-segresenc": Small((1, 32, 24, 17), 1, least=17, shorten=_one_residual_block, narrow=4, cheap=True),
    "ct-fm-segresnet": Small(
        (1, 32, 48, 32), 16, options={"num_classes": 2}, shorten=_one_residual_block, narrow=4, cheap=True
    ),
    "drasclr-cnn3d": Small((1, 32, 32, 32), 32, options={"experts": 2}),
    "fmcib-resnet50": Small((1, 64, 40, 33), 1, shorten=one_bottleneck, narrow=8, cheap=True),
    "genesis-encoder": Small((1, 16, 24, 16), 8, narrow=4, cheap=True),
    "genesis-unet3d": Small((1, 16, 24, 16), 8, narrow=4, cheap=True),
    "glcl-encoder": Small((1, 64, 96), 32),
    "glcl-unet": Small((1, 64, 96), 32),
    "monai-ssl-vitb16": Small((1, 48, 32, 32), 16, options=_VIT | {"num_layers": 2}),
    "monai-ssl-vitautoenc": Small((1, 48, 32, 32), 16, options=_VIT | {"num_layers": 2}),
    "monai-ssl-unetr": Small((1, 48, 32, 32), 16, options=_VIT | {"feature_size": 4}, shorten=_two_of_twelve_blocks),
    "rad-dino-vitb14": Small((3, 28, 42), 14, shorten=_two_of_timms_blocks),
    "voco-swinvit-b": Small((1, 32, 32, 32), 32, width=_NARROW, shorten=_small_swin),
    "voco-swinunetr-b": Small((1, 64, 32, 32), 32, width=_NARROW, shorten=_small_swin),
    "yaware-densenet121": Small((1, 64, 64, 64), 1, least=61, shorten=_two_dense_layers, narrow=4, cheap=True),
}
ALIKE = {
    f"{name}-swin{part}{size}": f"voco-swin{part}-b"
    for part in ("vit", "unetr")
    for name, size in (("voco", "-l"), ("voco", "-h"), ("monai-ssl", ""))
}
"""Networks that differ from another one in width, and MONAI SSL's in convolutions that they lack, alone."""


def build_small(name: str, **options: Any) -> nn.Module:
    """A small network with random values, in eval mode."""
    entry = get_entry(name)
    torch.manual_seed(0)
    return make_small(entry, {**entry.config, **SMALL[name].options, **options}).eval()


def make_small(entry: Entry, config: Config) -> nn.Module:
    """The small network of an entry with some options; without values where torch makes none."""
    small = SMALL[entry.name]
    if small.cheap:
        network = build_network(entry, config)
        narrow(network, small.narrow)
        small.shorten(network)
        if not torch.empty(0).is_meta:
            start(network)
    else:
        network = entry.build.func(config, width=small.width) if small.width else entry.build(config)
        small.shorten(network)
    return network


def narrow(network: nn.Module, by: int) -> None:
    """Divide all channels of a network without values, but those of images and of outputs, which are fewer than 16."""
    for module in network.modules():
        for count in ("in_channels", "out_channels", "in_features", "out_features", "num_features"):
            if isinstance(found := getattr(module, count, None), int):
                setattr(module, count, _fewer(found, by))
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_corner(parameter, by)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _corner(buffer, by))


def _fewer(channels: int, by: int) -> int:
    return channels // by if channels >= 16 else channels


def _corner(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """Of layers, whose first two axes are channels."""
    return tensor.detach()[tuple(slice(_fewer(side, by)) for side in tensor.shape[:2])]


def start(network: nn.Module) -> None:
    """Give the layers that are left values, as they start by themselves: those of whole networks take seconds."""
    for module in network.modules():
        if any(tensor.is_meta for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            module.to_empty(device="cpu", recurse=False).reset_parameters()


def inputs_of(name: str, count: int = 2, shape: tuple[int, ...] | None = None) -> tuple[torch.Tensor, ...]:
    """A batch for a network; DrasCLR's patches come with their locations."""
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(count, *(shape or SMALL[ALIKE.get(name, name)].shape), generator=draws)
    return (x, torch.rand(count, 3, generator=draws) * 2 - 1) if name == "drasclr-cnn3d" else (x,)


def on_meta(name: str, **options: Any) -> nn.Module:
    """A whole network without values, which costs no memory."""
    entry: Entry = entries()[name]
    return build_network(entry, {**entry.config, **options}).to("meta")
