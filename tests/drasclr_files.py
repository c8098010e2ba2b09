"""DrasCLR checkpoints in every form they are found in, filled so that the authors' outputs are known; their loop."""

import json

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image
from torch.nn import functional as F

NAME = "drasclr-cnn3d"
KEYS = json.loads((PARITY / "drasclr_keys.json").read_text("utf-8"))
LAYERS = (
    ("conv1", "bn1"),
    ("conv2", "bn2"),
    *((f"downsample{k}.conv{i}", f"downsample{k}.bn{i}") for k in (1, 2, 3) for i in (1, 2, 3)),
    ("conv3", "bn3"),
    ("conv4", "bn4"),
)


def filled_encoder(seed=0):
    """The authors' encoder with its projection head of two layers."""
    return filled(KEYS, seed)


def backbone(state):
    """What a network without a head has."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def one_layer(state):
    """The encoder of a run without `mlp`: the head is the second of the two layers."""
    return backbone(state) | {f"fc.{leaf}": state[f"fc.2.{leaf}"] for leaf in ("weight", "bias")}


def training_state(state, prefix="module.", queue=(128, 24, 5)):
    """Names of the network in training: both encoders, the queue of each location and its pointer."""
    key = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    rest = {"queue": torch.zeros(queue), "queue_ptr": torch.zeros(queue[-1], dtype=torch.int64)}
    return behind(prefix, behind("encoder_q.", state) | behind("encoder_k.", key) | rest)


def training_checkpoint(state):
    """What train.py writes around the names."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    return {"epoch": 20, "arch": "custom", "state_dict": state, "optimizer": momentum}


FORMS = {
    "training checkpoint": lambda state: training_checkpoint(training_state(state)),
    "training checkpoint without module.": lambda state: training_checkpoint(training_state(state, "")),
    "encoder_q. alone": lambda state: {"state_dict": behind("module.encoder_q.", state)},
    "bare": lambda state: state,
    "key network first": lambda state: dict(reversed(training_state(state).items())),
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", state)},
    "a Lightning attribute": lambda state: {"state_dict": behind("net.", state) | {"loss.weight": torch.ones(2)}},
    "the zoo's pre-training": lambda state: {"model": training_state(state, ""), "epoch": 1},
}
"""From the encoder to what a file holds."""


def reference():
    """Outputs of the authors' code: features, projection."""
    with np.load(PARITY / "drasclr_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The patches `(5, 1, 32, 32, 32)` and locations `(5, 3)` that `reference` was computed from."""
    patches = np.clip(0.5 * image("x", (5, 1, 32, 32, 32), 0), -1, 1)
    return torch.from_numpy(patches), torch.from_numpy(np.tanh(image("loc", (5, 3), 0)))


def plain_convolution(layer, x, location):
    """One patch after the other: its gates, its kernel, its convolution."""
    maps = []
    for patch, place in zip(x, location, strict=True):
        gates = torch.sigmoid(layer._routing_fn.fc.weight @ place + layer._routing_fn.fc.bias)
        kernel = sum(gate * expert for gate, expert in zip(gates, layer.weight, strict=True))
        maps.append(F.conv3d(patch[None], kernel, layer.bias, layer.stride, padding=1))
    return torch.cat(maps)


def plain_loop(model, x, location):
    """The features of a network as the authors compute them, `(N, features)` for as many locations as patches."""
    for convolution, norm in LAYERS:
        x = plain_convolution(model.get_submodule(convolution), x, location)
        x = F.elu(model.get_submodule(norm)(x))
    return x.flatten(1)
