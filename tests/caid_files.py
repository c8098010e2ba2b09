"""CAiD checkpoints in every form they are found in, filled so that the authors' outputs are known."""

import json
from argparse import Namespace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from parity.fill import fill, image

PARITY = Path(__file__).parent / "parity"
PROJECTION = {"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,), "fc.2.weight": (128, 2048), "fc.2.bias": (128,)}


def filled(shapes, seed=0):
    """Tensors with the reference values that follow from their names."""
    return {name: torch.from_numpy(np.asarray(fill(name, shape, seed))) for name, shape in shapes.items()}


@cache
def projection():
    """Tensors of a projection head, which nobody changes."""
    return filled(PROJECTION)


def filled_unet(seed=0):
    return filled(json.loads((PARITY / "caid_keys.json").read_text("utf-8")), seed)


def behind(prefix, state):
    """The same tensors with something in front of their names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def resnet(unet):
    """The encoder alone, under torchvision's names."""
    return {n.removeprefix("encoder."): tensor for n, tensor in unet.items() if n.startswith("encoder.")}


def training_state(unet, prefix="module."):
    """Names of the network in training: query and key network with their heads, the queue and its pointer."""
    query = behind("backbone.", unet) | projection()
    key = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in query.items()}
    queue = {"queue": torch.zeros(128, 64), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    return behind(prefix, behind("encoder_q.", query) | behind("encoder_k.", key) | queue)


def training_checkpoint(state):
    """What stands in current_checkpoint.pth around the names."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {
        "epoch": 7,
        "arch": "resnet50",
        "state_dict": state,
        "optimizer": momentum,
        "best_loss": np.float64(4.5),
        "args": Namespace(moco_t=0.2, mlp=True),
    }


UNET_FORMS = {
    "bare": lambda unet: unet,
    "state_dict": lambda unet: {"state_dict": unet},
    "model": lambda unet: {"model": unet, "epoch": 3},
    "current_checkpoint": lambda unet: training_checkpoint(training_state(unet)),
    "current_checkpoint without module.": lambda unet: training_checkpoint(training_state(unet, "")),
    "module.backbone.": lambda unet: {"state_dict": behind("module.backbone.", unet)},
    "backbone.": lambda unet: behind("backbone.", unet),
    "compiled": lambda unet: behind("_orig_mod.", unet),
    "compiled in DDP": lambda unet: behind("module._orig_mod.", unet),
    "a Lightning attribute": lambda unet: {"state_dict": behind("net.", unet) | {"loss.weight": torch.ones(2)}},
}
"""From the reference U-Net to what a file holds."""

RESNET_FORMS = {
    "bare torchvision": lambda unet: resnet(unet),
    "encoder only": lambda unet: behind("encoder.", resnet(unet)),
    "instance discrimination, best": lambda unet: resnet(unet) | projection(),
    "instance discrimination, current": lambda unet: training_checkpoint(
        behind("module.encoder_q.", resnet(unet) | projection())
        | behind("module.encoder_k.", {n: t + 1 for n, t in resnet(unet).items()})
        | {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    ),
}
"""Forms that hold the encoder and no decoder."""


def reference():
    """Outputs of the authors' code."""
    with np.load(PARITY / "caid_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The images that `reference` was computed from, `(2, 3, 64, 96)` in [0, 1]."""
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (2, 3, 64, 96), 0), 0, 1).astype(np.float32))


def relative_error(ours, theirs):
    """Largest difference over the largest reference value."""
    return float(np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max())
