"""Convolutions whose kernel depends on a location, and the arrangement of a batch in which they are fast.

Gates that follow from the location mix several experts: batmanlab/DrasCLR, models/condconv3d.py, from which the tensors
have their names. That code runs one patch after the other; `benchmarks/drasclr.py` compares it with this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Counts: TypeAlias = "list[int] | None"
"""Number of adjacent patches at each location; None where every patch has its own location."""

_ENOUGH = 4
"""Patches per location from which one ordinary convolution per location is faster than a grouped one for all."""
_FEW_VOXELS = 8
"""Voxels of a map up to which the experts' outputs are mixed instead of their kernels."""


def arrange(location: Tensor, count: int) -> tuple[Tensor, Counts, Tensor | None]:
    """Find patches that share a location.

    Args:
        location: One row, or `count` rows in any number of axes.
        count: Number of patches.

    Returns:
        The locations `(L, 3)`, the number of patches at each, and the order that makes these adjacent, None if they
        are. Counts are None where so few locations are shared that every patch is treated alone; then L is `count`.
    """
    if not count:
        return location.new_zeros(1, location.shape[-1]), [0], None
    while location.ndim > 1 and (location.shape[0] == 1 or location.stride(0) == 0):
        location = location[0]
    rows = location.reshape(-1, location.shape[-1])
    number = rows.shape[0]  # not len(rows), which would make it a constant of an exported graph
    if number == 1:
        return rows, [count], None
    if (times := count // number) >= _ENOUGH:  # seen from the shape: the patches take turns
        return rows, [times] * number, torch.arange(count, device=rows.device).view(times, -1).T.flatten()
    rows = rows.repeat(times, 1)
    if rows.device.type != "cpu" or rows.requires_grad or torch.compiler.is_compiling():
        return rows, None, None
    distinct, group, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(distinct) == 1:
        return rows[:1], [count], None
    if len(distinct) * _ENOUGH > count:
        return rows, None, None
    return distinct, counts.tolist(), group.argsort()


class Routing(nn.Module):
    """Gates from locations: independent sigmoids, which do not add up to 1."""

    def __init__(self, experts: int, coordinates: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * coordinates, experts)

    def forward(self, location: Tensor) -> Tensor:
        """Return gates `(L, experts)` in (0, 1) for locations `(L, 3 * coordinates)`."""
        return torch.sigmoid(self.fc(location))


class ConditionalConv3d(nn.Module):
    """A 3x3x3 convolution, zero padding 1, with a kernel for each location and one bias for all.

    The kernel is sum_e gate_e(location) * weight[e].
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, experts: int, coordinates: int, init: str = "upstream"
    ) -> None:
        """Start with uniform values within 1 / sqrt(fan-in).

        Args:
            inputs: Channels of the input.
            outputs: Channels of the output.
            stride: 1 or 2.
            experts: Kernels to mix.
            coordinates: Points in space that make a location.
            init: "upstream" includes the output channels in the fan-in, as the authors' code does, so every expert
                starts smaller by sqrt(outputs); "per-expert" starts each as PyTorch starts an ordinary kernel.
        """
        super().__init__()
        self.stride, self.init = stride, init
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs, 3, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self._routing_fn = Routing(experts, coordinates)
        self.remembered: Callable[[tuple[float, ...]], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        _, outputs, inputs, *kernel = self.weight.shape
        fan_in = math.prod(kernel) * inputs * (outputs if self.init == "upstream" else 1)
        nn.init.uniform_(self.weight, -(fan_in**-0.5), fan_in**-0.5)
        nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def mix(self, location: Tensor) -> Tensor:
        """Return the kernels `(L, O, I, 3, 3, 3)` of locations `(L, 3 * coordinates)`: one product of matrices."""
        gates = self._routing_fn(location)
        kernels: Tensor = gates @ self.weight.flatten(1)
        return kernels.view(-1, *self.weight.shape[1:])

    def forward(self, x: Tensor, location: Tensor, counts: Counts = None) -> Tensor:
        """Return `(N, O, *space)`, the space divided by the stride.

        Args:
            x: Maps `(N, I, *space)`, with those of one location adjacent.
            location: `(L, 3 * coordinates)`.
            counts: Number of maps at each location; None where L is N.
        """
        if counts is not None:
            parts = zip(torch.split(x, counts), self._kernels(location), strict=True)
            convolved = [F.conv3d(part, kernel, self.bias, self.stride, 1) for part, kernel in parts]
            return convolved[0] if len(convolved) == 1 else torch.cat(convolved)
        side = [(length - 1) // self.stride + 1 for length in x.shape[2:]]
        # Mixing outputs takes E times the multiplications but no kernel per location. It pays off where kernels are
        # large compared with the maps, and locations many compared with the cost of reading all experts; and in a graph
        # for any number of patches, since the groups of ONNX's convolution are a constant.
        if _is_exported() or math.prod(side) <= _few_voxels(x):
            return self._mix_outputs(x, location)
        kernels = self.mix(location).flatten(0, 1)
        together = x.reshape(1, -1, *x.shape[2:])
        y = F.conv3d(together, kernels, self.bias.repeat(x.shape[0]), self.stride, 1, groups=x.shape[0])
        return y.reshape(x.shape[0], -1, *side)

    def _kernels(self, location: Tensor) -> Sequence[Tensor] | Tensor:
        if self.remembered is None:
            return self.mix(location)
        return [self.remembered(tuple(row)) for row in location.tolist()]

    def _mix_outputs(self, x: Tensor, location: Tensor) -> Tensor:
        """Outputs of each expert for each map, summed by the gates: the same by linearity."""
        experts, outputs = self.weight.shape[:2]
        each = F.conv3d(x, self.weight.flatten(0, 1), None, self.stride, 1)
        each = each.reshape(x.shape[0], experts, outputs, *each.shape[2:])
        mixed = torch.einsum("ne,neo...->no...", self._routing_fn(location), each)
        return mixed + self.bias[:, None, None, None]


def _few_voxels(x: Tensor) -> int:
    """Voxels up to which outputs are mixed; a compiled graph does not look at the number of maps."""
    return _FEW_VOXELS if torch.compiler.is_compiling() else min(_FEW_VOXELS, x.shape[0] // 2)


def _is_exported() -> bool:
    """Whether a graph is made to be kept; torch before 2.7 tells no export from a compilation."""
    exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return exporting()
