"""Brings floating-point tensors to float32, and looks for values that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.errors import CheckpointFormatError
from zoo.messages import printable

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.entry import State


def viewed(tensor: Tensor) -> Tensor:
    """The tensor that a view is of; any other tensor itself."""
    return tensor if tensor._base is None else tensor._base


def as_float32(state: State) -> State:
    """Return the tensors with floating point as float32; `state` is emptied on the way.

    Raises:
        CheckpointFormatError: A value is beyond the range of float32.
    """
    return {name: widened(name, state.pop(name)) for name in list(state)}


def other_float(tensor: Tensor) -> str:
    """The type of a floating-point tensor that is not float32, for example `"float16"`; empty for any other tensor."""
    dtype = tensor.dtype
    if not dtype.is_floating_point or dtype.itemsize == 4:  # no other has four bytes
        return ""
    return str(dtype).removeprefix("torch.")


def widened(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as float32 where it is of floating point; any other as it is.

    Raises:
        CheckpointFormatError: A value is beyond the range of float32.
    """
    kind = other_float(tensor)
    if not kind:
        return tensor
    values = tensor.float()
    if kind == "float64" and is_finite(tensor) and not is_finite(values):
        raise CheckpointFormatError(
            f"{printable(name)} has values beyond the range of float32, in which the networks of the zoo compute: the "
            f"largest is {tensor.abs().max().item():.3g}. Such weights come from a run that diverged"
        )
    return values


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, found in one pass and without memory for a mask."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.itemsize == 1 else tensor  # types of eight bits have no order of their own
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(values))
