"""y-Aware's DenseNet with two narrow layers in each block, for tests of what is done with a network.

It has the same parts under the same names, and a hundredth of the parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from monai.networks.nets.densenet import DenseNet
from yaware_files import NAME

from zoo.entries.yaware.model import YAwareDenseNet121
from zoo.registry import entries

_CHANNELS, _GROWTH, _BLOCKS = 16, 8, (2, 2, 2, 2)


@contextmanager
def short_yaware() -> Iterator[None]:
    """Have `yaware-densenet121` stand for the short network, in this process and those that it forks."""
    short = partial(DenseNet, init_features=_CHANNELS, growth_rate=_GROWTH, block_config=_BLOCKS)
    width = _CHANNELS
    for layers in _BLOCKS[:-1]:
        width = (width + layers * _GROWTH) // 2
    width += _BLOCKS[-1] * _GROWTH
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("zoo.entries.yaware.model.DenseNet121", short)
        patched.setattr(YAwareDenseNet121, "num_features", width)
        patched.setattr("zoo.entries.yaware._WIDTH", width)
        patched.setitem(entries(), NAME, replace(entries()[NAME], num_features=width))
        yield
