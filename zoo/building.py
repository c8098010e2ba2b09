"""How a network comes to be: on the meta device, where nothing is computed, and its fresh parts on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterable
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
            with torch.device("meta"):
                model = entry.build(config)
        except RuntimeError as error:
            log.debug("%s cannot be built on the meta device: %s", entry.name, error)
        else:
            if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
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
