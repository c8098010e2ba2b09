"""A network whose parts get drawn values just before they run, so that no more than one part is in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.checkpoint import build_network, convert, load_into
from zoo.entry import Config, Entry
from zoo.messages import first_names
from zoo.selftest.drawing import draw_tensor

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_streamed(entry: Entry, config: Config, device: torch.device) -> nn.Module:
    """Return an entry's network in eval mode, which draws the values of each part when that part runs.

    The names of its tensors go through the entry's `convert` and the strict coverage check first, as a file's do.

    Args:
        entry: The entry.
        config: Of the network, complete.
        device: Where it computes.

    Raises:
        CheckpointMismatchError: The entry does not take its own network's names.
        ValueError: A part would not be filled.
    """
    network = build_network(entry, config).to("meta").eval()
    state, _ = convert(entry, network.state_dict())
    report = load_into(network, state, entry, read=lambda tensors: tensors)
    if report.fresh or report.adapted or report.dropped:
        odd = [*report.fresh, *report.adapted, *report.dropped]
        raise ValueError(f"{entry.name} does not take its own tensors as they are: {first_names(odd)}")
    own = set(network.state_dict())
    for prefix, module in network.named_modules():
        names = [name for name, _ in _direct(module)]
        if names:
            _stream(module, {name: f"{prefix}.{name}".lstrip(".") for name in names}, own, device)
    return network


def _direct(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a module itself, without those of its parts."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _stream(module: nn.Module, full_names: dict[str, str], known: set[str], device: torch.device) -> None:
    """Have a module draw its tensors before it runs, and forget them after."""
    from torch import nn

    empty: dict[str, torch.Tensor] = dict(_direct(module))
    if unknown := [name for name in full_names.values() if name not in known]:
        raise ValueError(f"no file has values for {first_names(unknown)}")

    def put(name: str, tensor: torch.Tensor) -> None:
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[name] = tensor

    def fill(_: nn.Module, inputs: Any) -> None:
        for name, full_name in full_names.items():
            put(name, draw_tensor(full_name, empty[name]).to(device))

    def forget(_: nn.Module, inputs: Any, outputs: Any) -> None:
        for name in full_names:
            put(name, empty[name])

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(forget, always_call=True)
