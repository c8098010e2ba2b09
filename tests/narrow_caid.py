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

BY = 8
ENCODER, UNET = "caid-resnet50", "caid-resnet50-unet"
LAST = "layer4.0.conv3.weight"
"""A tensor of the encoder that a file is told by, in place of that of the third block."""


@contextmanager
def narrow_caid() -> Iterator[None]:
    """Have the names stand for the narrow networks, and the method train them, in this process and those it forks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(caid, "_RESNET", ("conv1.weight", "layer1.0.conv1.weight", LAST))
        patched.setattr(method, "CAiDNetwork", _Trained)
        for name in (ENCODER, UNET):
            patched.setitem(entries(), name, _narrowed(entries()[name]))
        yield


class _Trained(method.CAiDNetwork):
    """The method's network, whose projection keeps its length."""

    def __init__(self, dim: int, **options: Any) -> None:
        with without_values():
            super().__init__(BY * dim, **options)
        one_bottleneck(self.backbone.encoder)
        narrow(self, BY)
        start(self)


def _narrowed(whole: Entry) -> Entry:
    def build(config: Config) -> nn.Module:
        with without_values():
            network = whole.build(config)
            one_bottleneck(getattr(network, "encoder", network))
            narrow(network, BY)
            if config.get("projection"):
                network.fc[-1] = nn.Linear(2048 // BY, 128)  # which keeps its length
        if not torch.empty(0).is_meta:
            start(network)
        return network

    width = whole.num_features // BY if whole.num_features else None
    return replace(whole, build=build, num_features=width)
