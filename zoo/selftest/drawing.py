"""Numbers that are the same on every machine, for tensors of networks and for their inputs.

They are made by whole numbers and by one rounding of a product, never by a generator: the streams of numpy's and
torch's may change with a release.
"""

from __future__ import annotations

from functools import cache
from math import prod, sqrt
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_LENGTH = 1_048_573
"""Numbers that are drawn once: a prime, so that no row of a weight begins where another does."""
_INDEX = "relative_position_index"
_END_OF_BRANCH = "bn3.weight"
"""Of the norm that ends a bottleneck: small, or what the last of sixteen blocks adds would be lost in their sum."""


def draw_tensor(name: str, like: Tensor) -> Tensor:
    """Return values for a tensor of a network, on the CPU, which keep the signal alive from its input to its output.

    Args:
        name: In the state dict; another name has other values.
        like: Says shape and kind; its values, if it has any, are not read.

    Raises:
        ValueError: It holds whole numbers of no known meaning.
    """
    import torch

    shape, leaf = tuple(like.shape), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.ones(shape, dtype=like.dtype)
    if leaf == _INDEX:
        from zoo.networks.swin_names import relative_positions

        return relative_positions()
    if not like.is_floating_point():
        raise ValueError(f"{name} holds whole numbers, and what they count or point to is not known here")
    return torch.from_numpy(_values(name, shape, *_span(name, shape)))


def draw_input(number: int, shape: tuple[int, ...]) -> Tensor:
    """Return the input of a network with this number, in float32 from 0 to 1."""
    import torch

    return torch.from_numpy(_values(f"input {number}", shape, 0.0, 1.0))


def _span(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Least and largest value of a tensor."""
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return 0.5, 1.5
    if name.endswith(_END_OF_BRANCH):
        return 0.1, 0.3
    if leaf == "weight" and len(shape) == 1:  # of a norm
        return 0.75, 1.25
    if len(shape) < 2 or shape[0] == 1:  # biases, means, positions, class tokens
        return -0.2, 0.2
    inputs = shape[2:] if len(shape) == 6 else shape[1:]  # of kernels for several experts, those of one
    reach = sqrt(6 / prod(inputs))  # He's initialisation
    return -reach, reach


def _values(name: str, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
    import numpy as np

    count, start = prod(shape), crc32(name.encode()) % _LENGTH
    cycle, end = _fractions(), start + min(count, _LENGTH)
    drawn = cycle[start:end] if end <= _LENGTH else np.concatenate([cycle[start:], cycle[: end - _LENGTH]])
    return np.resize((low + (high - low) * drawn).astype(np.float32), shape)


@cache
def _fractions() -> NDArray[np.float64]:
    """Numbers from 0 to below 1, all alike: the upper 24 bits of the finaliser of splitmix64, counted up."""
    import numpy as np

    mixed = np.arange(1, _LENGTH + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24)
