"""Files of anatomix in every form they are found in, filled so that outputs are known."""

import json

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

NAME = "anatomix-unet"
KEYS, DEV_KEYS = (json.loads((PARITY / f"{n}_keys.json").read_text("utf-8")) for n in ("anatomix", "anatomix_dev"))
CLASSES = 3


def old_dev_shapes():
    """Names and shapes of anatomix-dev.pth before 2026-07-20: the first level has 20 channels, and 16 come out."""
    narrow = {name: [size * 20 // 32 if size > 3 else size for size in shape] for name, shape in DEV_KEYS.items()}
    return narrow | {"model.79.weight": [16, 20, 3, 3, 3], "model.79.bias": [16]}


def on_meta(shapes):
    """Tensors without values."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def head(outputs=16, classes=CLASSES):
    """The head that fine-tuning puts behind the features."""
    return filled({"conv.conv.weight": (classes, outputs, 1, 1, 1), "conv.conv.bias": (classes,)})


def fine_tuned(state, outputs=16):
    """What the authors' script saves: the U-Net and its head, one after the other."""
    return behind("0.", state) | behind("1.", head(outputs))


def training(state):
    """What it saves to go on from."""
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    return {"epoch": 7, "state_dict": state, "optimizer": adam, "scheduler": {"T_max": 500, "last_epoch": 7}}


FORMS = {
    "anatomix.pth": lambda state: state,
    "compiled": lambda state: behind("_orig_mod.", state),
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", state)},
    "state_dict": training,
    "a Lightning attribute": lambda state: {"state_dict": behind("net.", state) | {"loss.weight": torch.ones(2)}},
    "an attribute called model": lambda state: behind("model.", state),
}
"""From the network's tensors to what a file holds."""
FINE_TUNED_FORMS = {
    "best_dict_epoch.pth": fine_tuned,
    "beside the optimiser": lambda state: training(fine_tuned(state)),
    "in DDP": lambda state: training(behind("module.", fine_tuned(state))),
    "compiled": lambda state: behind("_orig_mod.", fine_tuned(state)),
    "of a compiled network": lambda state: behind("0._orig_mod.", state) | behind("1.", head()),
    "in an attribute": lambda state: behind("model.", fine_tuned(state)),
}
"""The same with a head for three classes."""


def filled_network():
    """The 115 tensors of anatomix.pth under the authors' names."""
    return filled(KEYS)


def transformer():
    """Some names of the Primus transformer that the authors publish as anatomix-dev-vit."""
    shapes = {"mask_token": (1, 1, 8), "eva.blocks.0.norm1.weight": (8,), "up_projection.decode.0.0.weight": (8, 4, 2)}
    return filled(shapes | {"down_projection.proj.weight": (8, 1, 8, 8, 8)})


def reference(dev=False):
    """Outputs of the authors' code: features at every third (sixth) voxel, and the map below all poolings."""
    with np.load(PARITY / f"anatomix{'_dev' if dev else ''}_0.npz") as arrays:
        return dict(arrays)


def reference_input(dev=False):
    """The volumes that `reference` was computed from."""
    shape = (1, 1, 64, 64, 96) if dev else (2, 1, 32, 32, 48)
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", shape, 0), 0, 1).astype(np.float32))
