"""Checks that the values of a checkpoint are finite, and repairs counters of batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint.coverage import is_counter
from zoo.entry import State
from zoo.errors import CheckpointFormatError
from zoo.formats import is_finite, other_float
from zoo.messages import first_names

if TYPE_CHECKING:
    from torch import Tensor

NOT_FINITE = "NaN or infinite values"

_MOST_COUNT = float(1 << 53)  # beyond which float64 has no whole numbers to count with


def faults(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Name the tensors with values that no network computes with, and say what they are.

    Counters of batches are passed over: no output in eval mode depends on them.

    Args:
        tensors: Names, and tensors with their values, of any type.
    """
    found = {}
    for name, tensor in tensors:
        if is_counter(name):
            continue
        if not is_finite(tensor):
            found[name] = NOT_FINITE
        elif other_float(tensor) == "float64" and not is_finite(tensor.float()):
            found[name] = "values beyond the range of float32"
    return found


def check_values(values: State, path: Path) -> None:
    """Check that weights are finite.

    Args:
        values: Tensors with their values, in float32.
        path: Their file.

    Raises:
        CheckpointFormatError: They are not; the message names the tensors.
    """
    if bad := faults(values.items()):
        raise CheckpointFormatError(
            f"{path} has {NOT_FINITE} in {first_names(bad)}: every output computed with them is meaningless. The run "
            "diverged, or the file is damaged: take an earlier checkpoint, or fetch it again"
        )


def as_counts(values: State) -> None:
    """Make whole numbers again of counters of batches that were cast or averaged with the weights, in place.

    What can be no count, as where float16 ended at 65 504 and became infinite, becomes 0.
    """
    import torch

    for name in filter(is_counter, values):
        if values[name].is_floating_point():
            count = values[name].double().nan_to_num(nan=0, posinf=0, neginf=0).round()
            values[name] = torch.where(count.abs() < _MOST_COUNT, count, 0).to(torch.int64)
