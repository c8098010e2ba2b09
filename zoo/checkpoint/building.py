"""Builds networks on the meta device and initialises what a file lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import nn

    from zoo.entry import Config, Entry

log = logging.getLogger("zoo")


def build_network(entry: Entry, config: Config, *, meta: bool = True) -> nn.Module:
    """Build an entry's network for a configuration.

    Args:
        entry: The entry.
        config: Its defaults, what the file says, the user's options, in this order.
        meta: Whether to build on the meta device, to be filled by `load_into`. Where the constructor refuses, or
            computes buffers that no file holds, the network is built on the CPU with its first values all the same.
    """
    import torch

    if meta:
        try:
            with torch.device("meta"), _no_values():
                model = entry.build(config)
        except RuntimeError as error:
            log.debug("%s cannot be built on the meta device: %s", entry.name, error)
        else:
            buffers = [name for name, _ in model.named_buffers()]
            if not buffers or model.state_dict().keys() >= set(buffers):
                return model
            log.debug("%s computes buffers that no file holds", entry.name)
    with torch.device("cpu"):
        return entry.build(config)


def _no_values() -> AbstractContextManager[object]:
    """Skip what constructors do to values that meta tensors do not have: nearly half of the time of a build."""
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    names = ("normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "clamp_", "erfinv_")
    skipped = {getattr(torch.Tensor, name) for name in names}
    skipped |= {init.kaiming_uniform_, init.kaiming_normal_, init.uniform_, init.normal_, init.constant_}

    class NoValues(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in skipped:
                tensor = args[0] if args else kwargs["tensor"]
                if tensor.is_meta:
                    return tensor
            return func(*args, **kwargs)

    return NoValues()


def make_fresh(model: nn.Module, names: Iterable[str], entry: Entry) -> None:
    """Give the modules that own these tensors real ones, with the values a new network starts from.

    Args:
        model: The network, built on the meta device. Modules that are real already stay as they are.
        names: Names in its state dict.
        entry: Says how its fresh parts start, beyond what `reset_parameters` of each module does.
    """
    for prefix in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(prefix)
        if any(tensor.is_meta for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            module.to_empty(device="cpu", recurse=False)
            cast("Any", module).reset_parameters()
            if entry.reset:
                entry.reset(module)
