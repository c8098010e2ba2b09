"""Comparison of state dicts."""

from __future__ import annotations

import torch


def same(ours, theirs):
    """Whether two state dicts have the same names and the same bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
