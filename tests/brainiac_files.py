"""BrainIAC's checkpoints of both versions in every form they are found in, and the reference inputs."""

import json

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

VIT, RESNET = "brainiac-vitb16", "brainiac-resnet50"
VIT_KEYS, RESNET_KEYS = (
    json.loads((PARITY / f"brainiac{part}_keys.json").read_text("utf-8")) for part in ("", "_resnet50")
)
HEAD = {"projection_head.0.weight": (2048, 768), "projection_head.3.weight": (128, 2048)}
HEAD |= {f"projection_head.{i}.{leaf}": (n,) for i, n in ((1, 2048), (4, 128)) for leaf in ("weight", "bias")}
HEAD |= {f"projection_head.{i}.running_{leaf}": (n,) for i, n in ((1, 2048), (4, 128)) for leaf in ("mean", "var")}
HEAD |= {f"projection_head.{i}.num_batches_tracked": () for i in (1, 4)}


def pretraining(state):
    """What Lightning writes of the pre-training: 149 tensors."""
    return {"epoch": 18, "state_dict": behind("backbone.", state) | filled(HEAD), "optimizer_states": []}


def classifier(width, classes=1):
    return filled({"classifier.fc.weight": (classes, width), "classifier.fc.bias": (classes,)})


def downstream(state, width=768, classes=1, inner="backbone."):
    """What Lightning writes of a fine-tuned network, which has each part under two names: 278 tensors."""
    once = behind(f"backbone.{inner}", state) | classifier(width, classes)
    return {"state_dict": once | behind("model.", once), "epoch": 3}


def segmenter(state, begun):
    """The fine-tuned UNETR beside the ViT that it began with."""
    beside = filled({"encoder1.layer.conv1.conv.weight": (16, 1, 3, 3, 3), "out.conv.conv.weight": (1, 16, 1, 1, 1)})
    unetr = behind("unetr.", behind("vit.", state) | beside)
    return {"state_dict": behind("model.", behind("vit.", begun) | unetr)}


def port(state):
    """The ViT under names like timm's."""
    table = {
        "patch_embedding.position_embeddings": "pos_embed",
        "patch_embedding.patch_embeddings": "patch_embed.proj",
        "out_proj": "proj",
        "linear1": "fc1",
        "linear2": "fc2",
    }
    renamed = {}
    for name, tensor in state.items():
        for old, new in table.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


VIT_FORMS = {
    "the pre-training": pretraining,
    "the pre-training in DDP": lambda state: {"state_dict": behind("module.", pretraining(state)["state_dict"])},
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "compiled": lambda state: behind("_orig_mod.", state),
    "a port like timm's": port,
}
RESNET_FORMS = {
    "the pre-training": lambda state: {"state_dict": behind("backbone.", state) | {"fc1.weight": torch.ones(2, 2)}},
    "the hub": lambda state: behind("resnet.", state),
    "a wrapper's": lambda state: {"state_dict": behind("backbone.resnet.", state)},
    "bare": lambda state: state,
}
"""From a network's tensors to what a file without a classifier holds."""


def reference(name):
    with np.load(PARITY / f"{name}_0.npz") as stored:
        return dict(stored)


def brain_input(count=2):
    """Noise in an ellipsoid, z-scored there, exactly 0 around it, `(N, 1, 96, 96, 96)`."""
    values = image("x", (2, 1, 96, 96, 96), 0)[:count]
    axes = np.indices((96, 96, 96))
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, (47.5, 50, 45), (34, 42, 36), strict=True)) <= 1
    made = np.zeros_like(values)
    for volume, noise in zip(made, values, strict=True):
        kept = noise[0][inside].astype(np.float64)
        volume[0][inside] = (kept - kept.mean()) / kept.std()
    return torch.from_numpy(made)


def resnet_input():
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (2, 1, 64, 48, 80), 0), 0, 1).astype(np.float32))
