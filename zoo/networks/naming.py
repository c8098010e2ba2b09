"""Rules by which families find the parts of a published file that are their network's. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoo.tensor_names import strip_prefix

if TYPE_CHECKING:
    from zoo.entry import Config, State


def without(network: State, unused: Mapping[str, str]) -> State:
    """All but what the patterns name: what the network does not have and they do not name is for the strict check."""
    named = re.compile("|".join(f"(?:{pattern})" for pattern in unused))
    return {name: tensor for name, tensor in network.items() if not named.fullmatch(name)}


def parts_beside(state: State, prefix: str, owner: str) -> State:
    """What stands behind `owner` and not behind `prefix`, which is longer: the other parts of the same network."""
    return {n: t for n, t in strip_prefix(state, owner).items() if not f"{owner}{n}".startswith(prefix)}


def classes_of(network: State, name: str) -> Config:
    """The outputs of the last layer, whose weight is `name`, as `num_classes`; empty where the network lacks it."""
    weight = network.get(name)
    return {} if weight is None or weight.ndim < 2 else {"num_classes": weight.shape[0]}


def keeping_head(state: State) -> State:
    """A last convolution that changes nothing, for a U-Net that returns its decoder's maps; empty where it has one."""
    import torch

    if "out.conv.conv.weight" in state:
        return {}
    width = state["encoder1.layer.conv1.conv.weight"].shape[0]
    return {"out.conv.conv.weight": torch.eye(width)[..., None, None, None], "out.conv.conv.bias": torch.zeros(width)}
