"""The mode in which constructors make a network's names and shapes and compute no values.

It does what `with torch.device("meta")` does, and skips what constructors do to values, which meta tensors do not
have. It holds for the thread that enters it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.overrides import TorchFunctionMode

_MAKERS = (
    *("as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "ones", "rand", "randint", "randn", "randperm"),
    *("scalar_tensor", "tensor", "zeros"),
)
"""Not `arange` and `linspace`: they make few numbers, which constructors read, as the rates of dropped paths."""
_FILLERS = ("normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "clamp_", "erfinv_")
_INITIALISERS = ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "constant_")
_TABLE = 1 << 16
"""Numbers from which on a difference is not computed: Swin transformers make such tables, which their files hold."""


def without_values() -> AbstractContextManager[object]:
    """Make tensors on the meta device where no device is named, and leave meta tensors as they were made."""
    return _mode()()


@cache
def _mode() -> type[TorchFunctionMode]:
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    if torch.__version__ < "2.8":  # what these compute as they are imported, by MONAI in a constructor, fails in a mode
        import_module("torch._dynamo")
        import_module("einops.layers.torch")

    meta = torch.device("meta")
    makers = {getattr(torch, name) for name in _MAKERS}
    skipped = {getattr(torch.Tensor, name) for name in _FILLERS} | {getattr(init, name) for name in _INITIALISERS}
    differences = {torch.Tensor.sub, torch.Tensor.__sub__}

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in skipped:
                tensor = args[0] if args else kwargs["tensor"]
                if tensor.is_meta:
                    return tensor
            elif func in makers:
                if kwargs.get("device") is None and kwargs.get("out") is None:
                    # on the meta device zeros and ones need not be either, in a third of the time
                    func = torch.empty if func in (torch.zeros, torch.ones) else func
                    kwargs = kwargs | {"device": meta}
            elif func in differences and not kwargs and all(isinstance(arg, torch.Tensor) for arg in args):
                shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
                if shape.numel() > _TABLE:
                    return torch.empty(shape, dtype=torch.result_type(*args), device=meta)
            return func(*args, **kwargs)

    return WithoutValues
