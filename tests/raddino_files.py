"""RAD-DINO's files in every form they are found in, filled so that the authors' outputs are known."""

import json
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from caid_files import behind
from parity.fill import fill, image

from zoo.registry import entries

PARITY = Path(__file__).parent / "parity"
MODEL = "rad-dino-vitb14"
FILMS = {"small": (224, 308), "full": (518, 518)}
"""Films of the reference outputs, by their size in pixels."""
NARROW = 24
"""Numbers of a token of `narrow_rad_dino`: two for each head, a thousandth of the parameters in a block."""
_WIDTHS = (768, 3 * 768, 4 * 768)
_TRANSFORMERS = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("layernorm.", "norm."),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_TRANSFORMERS_5 = {"attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v"}


def keys(name="raddino_keys.json"):
    """Names and shapes in one of the two published files."""
    return json.loads((PARITY / name).read_text("utf-8"))


def filled(seed=0, width=768):
    """The reference values under DINOv2's names; the table of positions larger, so that its interpolation shows.

    Args:
        seed: Of the values.
        width: Numbers of a token; the other sides shrink with it.
    """
    shapes = {n: [side * width // 768 if side in _WIDTHS else side for side in s] for n, s in keys().items()}
    return {
        n: torch.from_numpy(fill(n, s, seed) * np.float32(400 if n == "pos_embed" else 1)) for n, s in shapes.items()
    }


@contextmanager
def narrow_rad_dino():
    """Have `rad-dino-vitb14` stand for a network of the same parts whose tokens have `NARROW` numbers."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("convert", "model"):
            patched.setattr(import_module(f"zoo.entries.rad_dino.{module}"), "WIDTH", NARROW)
        patched.setitem(entries(), MODEL, replace(entries()[MODEL], num_features=NARROW))
        yield


def as_transformers_4(state):
    """The same values under the names of the published `model.safetensors`."""
    return {name: _value(name, state) for name in keys("raddino_hf_keys.json")}


def _value(name, state):
    """Query, key and value are the thirds of `qkv`, in this order."""
    ours = name
    for theirs, instead in _TRANSFORMERS:
        ours = ours.replace(theirs, instead)
    for third, part in enumerate(("query", "key", "value")):
        if f".{part}." in ours:
            return state[ours.replace(f"attention.attention.{part}", "attn.qkv")].chunk(3)[third].clone()
    return state[ours]


def as_transformers_5(state):
    """What transformers 5 saves of it."""
    renamed = {}
    for name, tensor in as_transformers_4(state).items():
        new = name.replace("attention.output.dense", "attention.o_proj")
        for old, letter in _TRANSFORMERS_5.items():
            new = new.replace(old, f"attention.{letter}_proj")
        renamed[new] = tensor
    return renamed


def as_timm(state):
    """Without the mask token, which timm's class has not."""
    return {name: tensor for name, tensor in state.items() if name != "mask_token"}


def in_chunks(state):
    """As DINOv2's training saves the blocks: three to a chunk, which keep their numbers."""
    return {
        f"blocks.{int(name.split('.')[1]) // 3}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else name: t
        for name, t in state.items()
    }


def dino_head(width=768, hidden=2048, bottleneck=256, prototypes=512):
    """Names of `dino_head.safetensors`, whose last layer has more prototypes."""
    sizes = {0: (hidden, width), 2: (hidden, hidden), 4: (bottleneck, hidden)}
    layers = {f"mlp.{i}.weight": torch.zeros(shape) for i, shape in sizes.items()}
    biases = {f"mlp.{i}.bias": torch.zeros(shape[0]) for i, shape in sizes.items()}
    last = {
        "last_layer.weight_g": torch.ones(prototypes, 1),
        "last_layer.weight_v": torch.zeros(prototypes, bottleneck),
    }
    return layers | biases | last


FORMS = {
    "DINOv2": lambda state: state,
    "timm": as_timm,
    "transformers 4": as_transformers_4,
    "transformers 5": as_transformers_5,
    "a transformers classifier's": lambda state: behind("dinov2.", as_transformers_4(state)),
    "DINOv2's training": lambda state: (
        behind("backbone.", in_chunks(state)) | behind("dino_head.", dino_head()) | behind("ibot_head.", dino_head())
    ),
    "a Lightning attribute": lambda state: {"state_dict": behind("model.encoder.", as_transformers_5(state))},
    "compiled in DDP": lambda state: {"model": behind("module._orig_mod.", as_timm(state)), "epoch": 3},
}
"""From the reference network to what a file holds."""


def vit(width=384, depth=12, patch=14, positions=1370, scale=True, **more):
    """Names and shapes of another ViT as DINOv2's or timm's code saves it, on the meta device."""
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        **({"ls1.gamma": (width,), "ls2.gamma": (width,)} if scale else {}),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        **more,
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def reference():
    """Outputs of DINOv2's own code."""
    with np.load(PARITY / "raddino_0.npz") as arrays:
        return dict(arrays)


def reference_film(name):
    """The film that the outputs of this name were computed from, `(1, 3, H, W)`, normalised."""
    grey = np.clip(0.5 + 0.25 * image(name, (1, 1, *FILMS[name]), 0), 0, 1)
    return torch.from_numpy(((grey - 0.5307) / 0.2583).astype(np.float32)).expand(-1, 3, -1, -1)
