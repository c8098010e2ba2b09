"""Comparison of state dicts and networks."""

from __future__ import annotations

import torch
from torch import nn


def same(ours, theirs):
    """Whether two state dicts have the same names and the same bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def same_network(ours: nn.Module, theirs: nn.Module):
    """Whether two networks have the same layers, modes and bits, so that what one computes the other does."""
    modes = [[module.training for module in network.modules()] for network in (ours, theirs)]
    return repr(ours) == repr(theirs) and modes[0] == modes[1] and same(ours.state_dict(), theirs.state_dict())
