"""Parameter groups for fine-tuning: layer-wise learning rates, and no decay where it does harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.checkpoint import load_report, unwrap
from zoo.errors import OptionError
from zoo.registry import get_entry

if TYPE_CHECKING:
    from torch import nn


def param_groups(
    model: nn.Module, lr: float = 1e-3, *, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return parameter groups for any `torch.optim` optimiser.

    Pre-trained stages learn the more slowly the nearer they are to the input, fresh parts at the full rate. Norms and
    biases (one dimension) get no weight decay. Frozen parameters are left out.

    Args:
        model: A network from `load_model`, which may be inside DDP or `torch.compile`.
        lr: Learning rate of fresh parts, and of the last pre-trained stage.
        weight_decay: Decay of the parameters that get any.
        layer_decay: In (0, 1]: the rate of a stage is `lr * layer_decay ** d`, d its distance from the last one.

    Raises:
        OptionError: The network is not from the zoo, or a number is out of range.
    """
    if lr <= 0 or weight_decay < 0 or not 0 < layer_decay <= 1:
        raise OptionError(
            f"param_groups(lr={lr}, weight_decay={weight_decay}, layer_decay={layer_decay}): "
            "expected lr > 0, weight_decay >= 0 and layer_decay in (0, 1]"
        )
    report = load_report(model)
    stages = get_entry(report.model).stages
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in unwrap(model).named_parameters():
        if not parameter.requires_grad:
            continue
        is_fresh = name not in report.loaded and name not in report.adapted
        depth = next((i for i, prefixes in enumerate(stages) if name.startswith(prefixes)), len(stages))
        distance = 0 if is_fresh else max(0, len(stages) - 1 - depth)
        part = "fresh" if is_fresh else stages[depth][0].rstrip(".") if depth < len(stages) else "head"
        decayed = parameter.ndim > 1
        group = {
            "params": [],
            "lr": lr * layer_decay**distance,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": part if decayed else f"{part}, no decay",
        }
        groups.setdefault((part, decayed), group)["params"].append(parameter)
    return list(groups.values())
