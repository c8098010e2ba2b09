"""Files of Models Genesis and TransVW in every form they are found in, filled so that outputs are known."""

import json

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

ENCODER, UNET = "genesis-encoder", "genesis-unet3d"
KEYS = json.loads((PARITY / "genesis_keys.json").read_text("utf-8"))
VISUAL_WORDS = {
    "clc_out.conv1.weight": (1024, 512, 3, 3, 3),
    "clc_out.conv1.bias": (1024,),
    **{f"clc_out.bn1.{leaf}": (1024,) for leaf in ("weight", "bias", "running_mean", "running_var")},
    "clc_out.bn1.num_batches_tracked": (),
    "clc_out.fc1.weight": (44, 1024),
    "clc_out.fc1.bias": (44,),
}
"""Names and shapes of the nine tensors that TransVW classifies words with."""
OTHERS = {"projection_head.0.weight": (8, 4), "projection_head.1.running_mean": (8,), "prototypes.weight": (3, 8)}
"""Some of what TransVW's own loader leaves out."""


def filled_network(seed=0):
    """The U-Net's 106 tensors under the authors' names."""
    return filled(KEYS, seed)


def encoder_part(state):
    return {name: tensor for name, tensor in state.items() if name.startswith("down_tr")}


def zeros(shapes):
    """Tensors whose values nobody looks at; the large ones take no memory in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def genesis(state):
    """What `Genesis_Chest_CT.pt` is: always inside DataParallel, with the state of SGD."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 1.0, "params": [0]}]}
    return {"epoch": 400, "state_dict": behind("module.", state), "optimizer_state_dict": momentum}


def transvw(state, prefix="", beside=VISUAL_WORDS):
    """What `train.py` of TransVW writes, with numbers of NumPy beside the tensors."""
    scores = {"num_epoch_no_improvement": 3, "best_loss": np.average([0.25, 0.5]), "best_acc": np.float64(0.75)}
    return genesis({}) | {"state_dict": behind(prefix, state | zeros(beside))} | scores


def wrapped(state):
    """The form that TransVW's own loader expects: the network inside another one, beside its heads."""
    return transvw(behind("classficationNet.", state), "module.", OTHERS)


FORMS = {
    "Genesis_Chest_CT.pt": genesis,
    "TransVW's train.py": transvw,
    "TransVW's train.py on several GPUs": lambda state: transvw(state, "module."),
    "TransVW_chest_ct.pt, as its loader reads it": wrapped,
    "heads beside the names": lambda state: state | zeros(OTHERS),
    "classficationNet. alone": lambda state: behind("classficationNet.", state),
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", state)},
    "a Lightning attribute": lambda state: {"state_dict": behind("net.", state) | {"loss.weight": torch.ones(2)}},
}
"""From the network's tensors to what a file holds."""
DROPPED = {
    "TransVW's train.py": 9,
    "TransVW's train.py on several GPUs": 9,
    "TransVW_chest_ct.pt, as its loader reads it": 3,
    "heads beside the names": 3,
    "a Lightning attribute": 1,
}
"""Tensors of each form that are no part of the U-Net."""


def target_net(state, classes, layers):
    """The authors' fine-tuned classifier (class TargetNet of both READMEs) in DataParallel: one layer is TransVW's."""
    widths = (512, 1024, classes) if layers == 2 else (512, classes)
    dense = {f"dense_{i + 1}.weight": (widths[i + 1], widths[i]) for i in range(layers)}
    dense |= {f"dense_{i + 1}.bias": (widths[i + 1],) for i in range(layers)}
    return behind("module.", behind("base_model.", state) | filled(dense))


def nnunet():
    """Some names of nnU-Net v1's Generic_UNet, in what it saves as `.model`."""
    shapes = {}
    for level in range(2):
        for block in range(2):
            place = f"conv_blocks_context.{level}.blocks.{block}"
            shapes |= {f"{place}.conv.weight": (4, 4, 3, 3, 3), f"{place}.instnorm.weight": (4,)}
            place = f"conv_blocks_localization.0.{level}.blocks.0"
            shapes |= {f"{place}.conv.weight": (4, 8, 3, 3, 3), f"{place}.instnorm.weight": (4,)}
    return {"epoch": 9, "state_dict": zeros(shapes | {"tu.0.weight": (4, 4, 2, 2, 2)}), "optimizer_state_dict": {}}


def reference():
    """Outputs of the authors' code: map, pooled and restored volume of each volume alone, and of both as one batch."""
    with np.load(PARITY / "genesis_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The two volumes of unequal brightness that `reference` was computed from, `(2, 1, 32, 48, 24)`."""
    volumes = np.clip(0.5 + 0.25 * image("x", (2, 1, 32, 48, 24), 0), 0, 1)
    volumes[1] *= 0.5
    return torch.from_numpy(volumes.astype(np.float32))
