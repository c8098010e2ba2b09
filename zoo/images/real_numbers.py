"""Checks that an array or a tensor holds real numbers that can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.reading import refused

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_REAL = "buif"
"""Kinds of NumPy's types, see `numpy.dtype.kind`."""


def describe_array(values: Any) -> str:
    """Say for messages what an array or a tensor is: its class, shape and type."""
    kind = type(values).__name__
    return f"nested {kind}" if getattr(values, "is_nested", False) else f"{kind} {tuple(values.shape)} {values.dtype}"


def check_array(array: NDArray[Any], source: str) -> None:
    """Check that an array holds real numbers, all of them known.

    Raises:
        InputContractError: It holds others, objects or records, or some are masked.
    """
    import numpy as np

    if array.dtype.kind not in _REAL:
        raise _not_real(source, array.dtype)
    if np.ma.is_masked(array):
        raise InputContractError(
            f"{source} has masked values, and what stands behind the mask means nothing: fill them with what a scanner "
            "writes there (array.filled(value)), or pass array.data to ignore the mask"
        )


def plain_tensor(tensor: Tensor, source: str = "") -> Tensor:
    """Return a tensor of real numbers as a `torch.Tensor` of its own class, device and graph, without pending signs.

    Args:
        tensor: Of any class and kind.
        source: What messages call it; by default what it is.

    Raises:
        InputContractError: It is sparse, nested, quantised, without values (on the meta device), or holds no real
            numbers.
    """
    import torch

    source = source or describe_array(tensor)
    if kind := _kind_of(tensor):
        raise InputContractError(f"{source} is {kind}")
    if not (tensor.dtype.is_floating_point or tensor.dtype == torch.bool or _is_integer(tensor.dtype)):
        raise _not_real(source, str(tensor.dtype).removeprefix("torch."))
    with refused(f"cannot take {source}"):
        plain = tensor.as_subclass(torch.Tensor).resolve_neg()
        plain.reshape(-1)[:1].tolist()  # tracers and other classes have none
    return plain


def refuse_gradient(tensor: Tensor, source: str, what: str) -> None:
    """Refuse a tensor whose gradient would be lost in silence.

    Args:
        tensor: The image.
        source: What messages call it.
        what: What is made of it, which carries no gradient.

    Raises:
        InputContractError: It requires a gradient.
    """
    if tensor.requires_grad:
        raise InputContractError(f"{source} requires a gradient, and {what} has none. Pass it detached, image.detach()")


def _kind_of(tensor: Tensor) -> str:
    """Say what a tensor is that is not a plain one, and how it becomes one; else nothing."""
    import torch

    if tensor.is_nested:
        return "a nested tensor, of several: one is expected, pass each, tensor[i]"
    if tensor.is_meta:
        return "a tensor on the meta device, which has a shape and no values: pass one with values"
    if tensor.layout != torch.strided:
        return f"a tensor of the layout {str(tensor.layout).removeprefix('torch.')}: pass tensor.to_dense()"
    return "a quantised tensor: pass tensor.dequantize()" if tensor.is_quantized else ""


def _is_integer(dtype: Any) -> bool:
    import torch

    try:
        torch.iinfo(dtype)
    except TypeError:
        return False
    return True


def _not_real(source: str, dtype: object) -> InputContractError:
    return InputContractError(f"{source} holds {dtype} values: real numbers are expected")
