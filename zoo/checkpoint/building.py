"""Builds networks on the meta device and initialises what a file lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from zoo.checkpoint.skeleton import without_values

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
            with without_values():
                model = entry.build(config)
        except RuntimeError as error:
            log.debug("%s cannot be built on the meta device: %s", entry.name, error)
        else:
            if not any(module._non_persistent_buffers_set for module in model.modules()):
                return model
            log.debug("%s computes buffers that no file holds", entry.name)
    with torch.device("cpu"):
        return entry.build(config)


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
