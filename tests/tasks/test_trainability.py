"""Every encoder of the registry learns with a head: the loss falls, a planted signal is found, and DDP can train it."""

import pytest
import torch
from small_networks import ALIKE, SMALL, build_small, inputs_of

from zoo.checkpoint.report import ATTRIBUTE, LoadReport
from zoo.registry import entries
from zoo.tasks.method import Learner, head_bias

pytestmark = pytest.mark.slow

ENCODERS = [name for name in SMALL if entries()[name].is_encoder]
STEPS = 30
ENOUGH = 0.35
"""Half the loss of a coin."""
WINDOWED = ("monai_ssl", "voco")
"""Families whose cells of a map have weights."""
TRANSFORMERS = [name for name in ENCODERS if "vit" in name]
"""Larger rates throw these about before they learn."""


def test_every_encoder_is_among_them():
    """A new one would be fine-tuned by users before anybody has tried."""
    encoders = {name for name, entry in entries().items() if entry.is_encoder}
    assert encoders <= {*ENCODERS, *ALIKE}


def planted(name):
    """A batch of six cases of one part each: noise, far brighter in every second one."""
    inputs = inputs_of(name, count=6)
    labels = torch.tensor([0.0, 1.0] * 3)[:, None]
    image = inputs[0] + 2 * labels.view(-1, *[1] * (inputs[0].ndim - 1))
    return {
        "inputs": [x[:, None] for x in (image, *inputs[1:])],
        "weights": torch.ones(6, 1),
        "label": labels,
    }


def without_gradient(method, batch):
    """Parameters that learn and got no gradient from a step: DistributedDataParallel would wait for each of them."""
    method.zero_grad(set_to_none=True)
    method(batch)["loss"].backward()
    return [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns_a_planted_signal_and_all_of_it_learns(name):
    """A head on features that do not reach it, or a body without gradient, stays at the loss of a coin, 0.69."""
    batch = planted(name)
    torch.manual_seed(0)
    network = build_small(name, num_classes=2)
    setattr(network, ATTRIBUTE, LoadReport(name, source="random"))
    assert network.get_parameter(head_bias(network)).shape == (2,), "where balanced outputs begin"
    method = Learner(network, "classes", batch["label"], balanced=True, frozen=False).train()
    assert not without_gradient(method, batch)
    if entries()[name].family in WINDOWED:
        with torch.no_grad():
            maps = network.forward_features(*(x.flatten(0, 1) for x in batch["inputs"]))
        cells = torch.ones(6, 1, *maps.shape[2:])
        assert not without_gradient(method, batch | {"weights": cells / cells[0].numel()})
    optimizer = torch.optim.AdamW(method.parameters(), 1e-4 if name in TRANSFORMERS else 1e-3)
    losses = []
    while len(losses) < STEPS and (not losses or losses[-1] > ENOUGH):
        loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= ENOUGH, losses
