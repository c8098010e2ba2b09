"""y-Aware checkpoints in every form they are found in, filled so that the authors' outputs are known."""

import json
import re
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

NAME = "yaware-densenet121"
NORM = {f"features.norm5.{leaf}": (1024,) for leaf in ("weight", "bias", "running_mean", "running_var")} | {
    "features.norm5.num_batches_tracked": ()
}
WIDTHS = (1, 16, 32, 64, 128, 256)
"""Channels of the authors' U-Net, input first."""


def filled_encoder(seed=0):
    """The authors' network in encoder mode, features and projection head: tensors that nobody changes."""
    return dict(_encoder(seed))


@cache
def _encoder(seed):
    return filled(json.loads((PARITY / "yaware_keys.json").read_text("utf-8")), seed)


def features(state):
    return {name: tensor for name, tensor in state.items() if name.startswith("features.")}


def filled_classifier(classes=2, seed=0):
    """The same features in classifier mode."""
    head = {"classifier.weight": (classes, 1024), "classifier.bias": (classes,)}
    return features(filled_encoder(seed)) | filled(NORM | head, seed)


def monai(state):
    """Under the names of MONAI since 0.4."""
    layered = ((re.sub(r"(denselayer\d+)\.", r"\1.layers.", name), tensor) for name, tensor in state.items())
    return {name.replace("classifier.", "class_layers.out."): tensor for name, tensor in layered}


def early_monai(state):
    """Under the names of MONAI before 0.4."""
    return {name.replace("classifier.", "class_layers.class."): tensor for name, tensor in state.items()}


def training_checkpoint(state):
    """What the authors' training code writes."""
    adam = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"epoch": 99, "model": state, "optimizer": adam}


FORMS = {
    "training checkpoint": lambda state: training_checkpoint(behind("module.", state)),
    "training checkpoint without module.": lambda state: training_checkpoint(state),
    "bare": lambda state: state,
    "bare behind module.": lambda state: behind("module.", state),
    "state_dict": lambda state: {"state_dict": state},
    "compiled": lambda state: behind("_orig_mod.", state),
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", state)},
    "a Lightning attribute": lambda state: {"state_dict": behind("encoder.", state) | {"loss.sigma": torch.ones(1)}},
    "beside a key network": lambda state: behind("encoder_q.", state) | behind("encoder_k.", state),
    "MONAI": monai,
    "MONAI before 0.4": early_monai,
    "the zoo's pre-training": lambda state: {"model": behind("network.", monai(state)), "epoch": 1},
}
"""From the authors' names to what a file holds; for either mode."""


def unet(mode="simCLR"):
    """Names and shapes of the authors' 3D U-Net (models/unet.py), which no entry has."""
    shapes = {}
    for level, (before, after) in enumerate(pairwise(WIDTHS)):
        for i, width in ((1, before), (2, after)):
            place = f"down.{level}.doubleconv"
            shapes |= {f"{place}.conv{i}.weight": (after, width, 3, 3, 3), f"{place}.conv{i}.bias": (after,)}
            shapes |= {f"{place}.norm{i}.{leaf.rpartition('.')[2]}": (after,) for leaf in list(NORM)[:4]}
            shapes |= {f"{place}.norm{i}.num_batches_tracked": ()}
    heads = {
        "simCLR": {"hidden_representation.weight": (512, 256), "head_projection.weight": (128, 512)},
        "classif": {"classifier.fc1.weight": (1024, 256), "classifier.fc2.weight": (2, 1024)},
        "encoder": {},
    }
    return {name: torch.zeros(shape) for name, shape in (shapes | heads[mode]).items()}


def reference():
    """Outputs of the authors' code in encoder mode: map, pooled, projection."""
    with np.load(PARITY / "yaware_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The volumes that `reference` was computed from, `(2, 1, 64, 64, 64)`."""
    return torch.from_numpy(image("x", (2, 1, 64, 64, 64), 0))
