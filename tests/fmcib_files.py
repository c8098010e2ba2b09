"""Files of FMCIB in every form they are found in, and the volumes and points of the authors' reference crops."""

import json
from itertools import pairwise

import nibabel
import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

NAME = "fmcib-resnet50"
KEYS = json.loads((PARITY / "fmcib_keys.json").read_text("utf-8"))
IN_FULL = "layer3.0.downsample.0.weight"
HEADS = {"one": (4096, 3), "two": (4096, 2048, 8), "three": (4096, 2048, 512, 256, 1)}
"""Widths of heads: one linear layer, and those of the authors' fine-tuning."""


def numbered():
    """All tensors with a number of their own for a value, so that 738 MB take next to no memory and time.

    One is stored in full, for a file whose tensors repeat too few values is refused.
    """
    return {name: _numbered(i, name, shape) for i, (name, shape) in enumerate(KEYS.items(), 1)}


def _numbered(i, name, shape):
    if not shape:
        return torch.tensor(i)
    return torch.full(shape, i / 1024) if name == IN_FULL else torch.full((), i / 1024).expand(shape)


def is_numbered(state):
    """Whether these are the tensors of `numbered`, each in its place."""
    expected = numbered()
    return state.keys() == expected.keys() and all(
        tensor.shape == expected[n].shape and tensor.flatten()[0] == expected[n].flatten()[0]
        for n, tensor in state.items()
    )


def head(widths):
    """The layers of a head as the authors' `LoadModel` names them."""
    layers = enumerate(pairwise(widths))
    shapes = {
        f"heads.{i}.0.{leaf}": (b, a) if leaf == "weight" else (b,)
        for i, (a, b) in layers
        for leaf in ("weight", "bias")
    }
    return filled(shapes)


def lighter(state, widths=()):
    """What the authors' fine-tuning writes."""
    beside = behind("model.", head(widths)) if widths else {}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": behind("model.trunk.", state) | beside,
        "optimizer_states": [{"state": {0: {"step": 3}}}],
    }


FORMS = {
    "model_weights.torch": lambda state: {"trunk_state_dict": state},
    "with the head of the pre-training": lambda state: {
        "trunk_state_dict": state,
        "head_state_dict": {"0.weight": torch.ones(2, 2)},
    },
    "trained on several GPUs": lambda state: {"trunk_state_dict": behind("module.", state)},
    "fine-tuned by lighter, without a head": lighter,
    "the same in DDP": lambda state: {"state_dict": behind("module.model.trunk.", state)},
    "state_dict": lambda state: {"state_dict": state},
    "bare": lambda state: state,
    "behind module.": lambda state: behind("module.", state),
    "LoadModel": lambda state: behind("trunk.", state),
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", state)},
}
"""From the network's tensors to what a file holds."""


def reference():
    """The authors' outputs: `pooled`, and every 8th channel of `map`."""
    with np.load(PARITY / "fmcib_0.npz") as arrays:
        return dict(arrays)


def reference_input():
    """The two volumes that `reference` was computed from, `(2, 1, 50, 42, 36)`."""
    x = np.clip(0.3 + 0.2 * image("x", (2, 1, 50, 42, 36), 0), 0, 1.2).astype(np.float32)
    x[1] *= 0.5
    return torch.from_numpy(x)


def reference_crops():
    """The authors' crops, `crops` and `crops_monai14`, with `affine_a`, `affine_b` and `points`."""
    with np.load(PARITY / "fmcib_crop_0.npz") as arrays:
        return dict(arrays)


def volume(which):
    """The volume that reference crops were cut from: upright `"a"`, oblique `"b"`."""
    i, j, k = np.indices((70, 64, 26) if which == "a" else (84, 72, 40))
    hu = -900 + 10 * i + 8 * j + 25 * k
    hu = hu + np.round(60 * image("ctA", (70, 64, 26), 0)) if which == "a" else hu
    return nibabel.Nifti1Image(hu.astype(np.int16), reference_crops()[f"affine_{which}"])
