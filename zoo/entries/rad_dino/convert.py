"""From the tensor names of DINOv2's code, or of transformers 4 or 5, to timm's. Pure."""

from __future__ import annotations

import re

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.tensor_names import KEY_NETWORKS, find_prefix, rename_keys, strip_prefix

WIDTH, DEPTH, PATCH, SIDE = 768, 12, 14, 37
"""Width of a token, blocks, pixels of a patch, patches along each side of the films that it was trained on."""
STEM = "patch_embed.proj.weight"

_SIZES = {384: "ViT-S", 1024: "ViT-L", 1280: "ViT-H", 1536: "ViT-g"}
_ANCHORS = ("cls_token", "pos_embed", STEM, "norm.weight")
_TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "layernorm": "norm",
}
_TRANSFORMERS_ANCHORS = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
    "layernorm.weight",
)
_COPIES = KEY_NETWORKS - {"teacher"}
"""The teacher is the moving average, and what DINOv2 publishes (facebookresearch/dinov2, dinov2/train/train.py)."""
_IN_BLOCKS = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_ATTENTIONS = ("attention.attention.{}", "attention.{}_proj")
_HEADS = ("mlp.0.weight", "mlp.2.weight", "mlp.4.weight")

UNUSED = {
    r"mask_token": "token of masked patches, which training alone uses",
    r"(dino|ibot)_head\..+": "head of the pre-training",
    r"classifier\.(weight|bias)": "the head does not fit: transformers' classifier takes CLS beside the patches' mean",
}
"""What files hold beside the network: pattern -> what it is."""


def convert(state: State) -> tuple[State, Config]:
    """Keep the network of any of the family's files, under timm's names.

    DINOv2's names are timm's, beside the mask token and, from its own training, a number of a chunk before that of a
    block. Those of transformers differ in every block, where query, key and value are three tensors.

    Raises:
        CheckpointMismatchError: The file holds another ViT, a head of the pre-training alone, or several networks that
            it could mean.
    """
    state = _without_student(state)
    prefix = find_prefix(state, _ANCHORS, passed_over=_COPIES)
    if prefix is not None:
        network = _without_chunks(strip_prefix(state, prefix))
    else:
        prefix = find_prefix(state, _TRANSFORMERS_ANCHORS, passed_over=_COPIES)
        if prefix is None:
            _refuse_head(state)
            return dict(state), {}
        network = _from_transformers(strip_prefix(state, prefix))
    if "student" in prefix.split("."):
        raise CheckpointMismatchError(
            f"the file holds the network of DINOv2's training that was optimised, behind {prefix!r}, expected its "
            "teacher, the average that is published. Keep the names behind the teacher's prefix "
            "(`zoo.checkpoint.strip_prefix`) and save them as a separate file"
        )
    _check_is_ours(network)
    network.pop("mask_token", None)
    head = network.get("head.weight")
    return network, {} if head is None or head.ndim != 2 else {"num_classes": head.shape[0]}


def _without_student(state: State) -> State:
    """What a file holds beside the student, where its teacher is there, too."""
    if not any("teacher" in name.split(".") for name in state):
        return state
    return {name: tensor for name, tensor in state.items() if "student" not in name.split(".")}


def _without_chunks(network: State) -> State:
    return {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name): tensor for name, tensor in network.items()}


def _from_transformers(network: State) -> State:
    """Rename what transformers saved, and join query, key and value.

    The table of positions comes first, because `zoo inspect` tells the prefix of a file by the first name, and no other
    name of the file ends like that of the table.
    """
    numbers = {match[1] for name in network if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    blocks = {f"encoder.layer.{i}": f"blocks.{i}" for i in numbers}
    parts = {f"{old}.{part}": f"{new}.{ours}" for old, new in blocks.items() for part, ours in _IN_BLOCKS.items()}
    renamed = rename_keys(network, _TRANSFORMERS | blocks | parts)
    for i in numbers:
        for leaf in ("weight", "bias"):
            _join_attention(renamed, f"blocks.{i}", leaf)
    first = {"pos_embed": renamed["pos_embed"]} if "pos_embed" in renamed else {}
    return first | renamed


def _join_attention(network: State, block: str, leaf: str) -> None:
    """Put query, key and value of a block in one tensor, in this order, where all three are there and alike."""
    from zoo.formats import join  # opens no room while models are listed

    for pattern, names in zip(_ATTENTIONS, (("query", "key", "value"), ("q", "k", "v")), strict=True):
        stored = [f"{block}.{pattern.format(name)}.{leaf}" for name in names]
        parts = [network[name] for name in stored if name in network]
        alike = len({(part.shape, part.dtype) for part in parts}) == 1
        if len(parts) == len(stored) and alike and parts[0].ndim:
            network[f"{block}.attn.qkv.{leaf}"] = join(parts)
            for name in stored:
                del network[name]


def _refuse_head(state: State) -> None:
    prefix = find_prefix(state, _HEADS)
    if prefix is not None and any(name.startswith(f"{prefix}last_layer.") for name in state):
        behind = f" behind {prefix!r}" if prefix else ""
        raise CheckpointMismatchError(
            f"the file holds a head of DINOv2's pre-training{behind} and no network: a perceptron that gives scores "
            "for prototypes (RAD-DINO's dino_head.safetensors), which no feature needs. Expected RAD-DINO's "
            "model.safetensors or backbone_compatible.safetensors"
        )


def _check_is_ours(network: State) -> None:
    """Refuse a ViT of other sizes or another kind, by what it is.

    What one file could have by damage, as a missing tensor, is for the strict check.
    """
    token, table, stem = (network.get(name) for name in ("cls_token", "pos_embed", STEM))
    numbers = {int(match[1]) for name in network if (match := re.match(r"blocks\.(\d+)\.", name))}
    found = []
    if token is not None and token.ndim and token.shape[-1] != WIDTH:
        width = token.shape[-1]
        found.append(f"tokens of {width} numbers{f' ({_SIZES[width]})' if width in _SIZES else ''}, not {WIDTH}")
    if numbers and max(numbers) + 1 != DEPTH:
        found.append(f"{max(numbers) + 1} blocks, not {DEPTH}")
    if stem is not None and (stem.ndim != 4 or stem.shape[2:] != (PATCH, PATCH)):
        found.append(f"patches of {' x '.join(map(str, stem.shape[2:]))}, not {PATCH} x {PATCH}")
    if table is not None and table.ndim == 3 and table.shape[1] != 1 + SIDE**2:
        found.append(f"a table of {table.shape[1]} positions, not {1 + SIDE**2}: {_table_of(table.shape[1] - 1)}")
    if {"register_tokens", "reg_token"} & network.keys():
        found.append("register tokens")
    if numbers and not any(".ls1." in name for name in network):
        found.append("no LayerScale")
    if found:
        raise CheckpointMismatchError(
            f"the file holds another ViT than RAD-DINO's, which is DINOv2's ViT-B/{PATCH} for films of {SIDE * PATCH} "
            f"pixels: it has {'; '.join(found)}. Load it with the library that wrote it"
        )


def _table_of(patches: int) -> str:
    side = round(max(patches, 0) ** 0.5)
    return f"that of {side} x {side} patches" if side**2 == patches else "that of no square"
