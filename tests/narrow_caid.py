"""CAiD's networks with one block a stage and an eighth of the channels, for tests of what a run does with them.

The U-Net has 0.27 million parameters where the published one has 32.5, and a run saves a hundredth of the bytes. The
file that ships does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import narrow, one_bottleneck, start
from torch import nn

from zoo.checkpoint.skeleton import without_values
from zoo.entries import caid
from zoo.entries.caid import method
from zoo.entry import Config, Entry
from zoo.registry import entries

NARROWER = 8
"""What the channels are divided by."""
_TOLD_BY = ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv3.weight")
"""Tensors that an encoder's file is told by, the last one of the only block that its stage has here."""


@contextmanager
def narrow_caid() -> Iterator[None]:
    """Have the names stand for the narrow networks, and the method train them, in this process and those it forks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(caid, "_RESNET", _TOLD_BY)
        patched.setattr(method, "CAiDNetwork", _Trained)
        for name in ("caid-resnet50", "caid-resnet50-unet"):
            patched.setitem(entries(), name, _narrowed(entries()[name]))
        yield


class _Trained(method.CAiDNetwork):
    """The method's network, whose projection keeps its length."""

    def __init__(self, dim: int, **options: Any) -> None:
        with without_values():
            super().__init__(NARROWER * dim, **options)
        _cut(self, self.backbone.encoder)
        start(self)


def _narrowed(whole: Entry) -> Entry:
    def build(config: Config) -> nn.Module:
        with without_values():
            network = whole.build(config)
            length = network.fc[-1].out_features if config.get("projection") else None
            _cut(network, getattr(network, "encoder", network))
            if length:
                network.fc[-1] = nn.Linear(method.FEATURES // NARROWER, length)
        if not torch.empty(0).is_meta:
            start(network)
        return network

    width = whole.num_features // NARROWER if whole.num_features else None
    return replace(whole, build=build, num_features=width)


def _cut(network: nn.Module, encoder: nn.Module) -> None:
    one_bottleneck(encoder)
    narrow(network, NARROWER)
