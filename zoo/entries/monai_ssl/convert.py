"""Pure rules from the tensor names of any MONAI since 0.8 to those of its networks without dead parameters.

The versions differ in monai/networks/nets/{vit,vitautoenc,unetr}.py and the blocks that these use.
`zoo.entries.monai_ssl.convert_swin` has the rules of the Swin UNETR.
"""

from __future__ import annotations

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.networks.naming import classes_of, keeping_head, parts_beside, without
from zoo.networks.vit_names import (
    ANCHORS,
    DEAD,
    PATCH,
    TABLE,
    is_brainiac,
    neutral_norms,
    refuse_class_token,
)
from zoo.networks.vit_names import CLASSIFYING as CLASSIFYING
from zoo.networks.vit_names import RESTORING as RESTORING
from zoo.networks.vit_names import STEM as STEM
from zoo.networks.vit_names import VIT as VIT
from zoo.networks.vit_names import complete_vit as complete_vit
from zoo.tensor_names import find_prefix, rename_keys, segmenter_remark, strip_prefix

_PERCEPTRON = "patch_embedding.patch_embeddings.1"
_DECODER, _OUT = ("decoder2.",), "out.conv.conv.weight"
_PERCEPTRON_ANCHORS = (TABLE, f"{_PERCEPTRON}.weight", f"{_PERCEPTRON}.bias", "blocks.0.attn.qkv.weight")
UNUSED = DEAD | {
    r"encoder[23]\.blocks\.\d+\.1\.conv3\..+": "shortcut, which no forward pass used (MONAI 0.8)",
}
"""Dead parameters: pattern -> what they are."""
SEGMENTING = {r"(encoder[1-4]\.|decoder[2-5]\.|out\.conv\.conv\.).+": "decoder of a UNETR"}
WIDTHS = ("hidden_size", "mlp_dim", "num_layers", "feature_size")
"""Options that a file settles."""


def convert_encoder(state: State) -> tuple[State, Config]:
    """Keep the ViT of any of the family's files: of a ViT, an auto-encoder or a UNETR.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or a ViT with a class token.
    """
    found = _find_vit(state)
    if found is None:
        return dict(state), {}
    prefix, network, facts = found
    vit = without(network, RESTORING)
    facts |= segmenter_remark(_beside_vit(state, prefix), _DECODER, _OUT)
    return vit, with_widths(facts) | classes_of(vit, "classification_head.weight")


def convert_autoencoder(state: State) -> tuple[State, Config]:
    """Keep the auto-encoder of a file.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or a ViT with a class token.
    """
    found = _find_vit(state)
    if found is None:
        return dict(state), {}
    _, network, facts = found
    last = network.get("conv3d_transpose_1.weight")
    return network, with_widths(facts) | ({} if last is None or last.ndim != 5 else {"out_channels": last.shape[1]})


def convert_unetr(state: State) -> tuple[State, Config]:
    """Keep the UNETR of a file, or move a file's ViT to its place in a UNETR.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or a ViT with a class token.
    """
    found = _find_vit(state)
    if found is None:
        return dict(state), {}
    prefix, vit, facts = found
    network = {f"vit.{name}": tensor for name, tensor in without(vit, RESTORING | CLASSIFYING).items()}
    network |= without(_beside_vit(state, prefix), UNUSED)
    del facts["num_layers"]  # a UNETR has twelve
    first = network.get("encoder1.layer.conv1.conv.weight")
    facts |= {} if first is None else {"feature_size": first.shape[0]}
    return network, with_widths(facts) | classes_of(network, _OUT)


def complete_unetr(state: State) -> State:
    """Add the norms that MONAI's class has and never uses; without classes also a neutral last convolution.

    So `UNETR(channels, classes, size)` loads it strictly, without classes `UNETR(channels, feature_size, size)`.
    """
    return state | neutral_norms(state) | keeping_head(state)


def cube_side(positions: int) -> int | None:
    """Return the tokens along a side of a cube with so many in all; None where they do not make a cube."""
    side = round(positions ** (1 / 3))
    return side if side**3 == positions else None


def _find_vit(state: State) -> tuple[str, State, Config] | None:
    """Return the prefix of a file's ViT, the tensors behind it without dead parameters, and what their shapes say.

    The tensors are under present names. None where there is no ViT.
    """
    prefix = find_prefix(state, _PERCEPTRON_ANCHORS if _has_perceptron(state) else ANCHORS)
    if prefix is None:
        return None
    network = strip_prefix(state, prefix)
    refuse_class_token(network, prefix)
    if is_brainiac(state, prefix):
        raise CheckpointMismatchError(
            f"the file holds a ViT behind {prefix!r} beside a head as BrainIAC's files do, which learnt from brain "
            "MRI: expected one that learnt from CT. Names and shapes are the same, features are not: load it as "
            "'brainiac-vitb16'"
        )
    vit = without(network, UNUSED)
    projected = _as_convolution(vit)
    return prefix, projected, _facts(projected) | ({"was_perceptron": True} if projected is not vit else {})


def _beside_vit(state: State, prefix: str) -> State:
    """The other parts of the UNETR around a file's ViT; empty where that is not part of one."""
    owner = prefix.removesuffix("vit.") if prefix == "vit." or prefix.endswith(".vit.") else prefix
    return parts_beside(state, prefix, owner) if owner != prefix else {}


def _has_perceptron(state: State) -> bool:
    return any(name.endswith(f"{_PERCEPTRON}.weight") for name in state)


def _as_convolution(vit: State) -> State:
    """Turn a projection by a linear layer into its equivalent convolution; its inputs run z, y, x, channel."""
    weight = vit.get(f"{_PERCEPTRON}.weight")
    if weight is None or weight.ndim != 2 or weight.shape[1] % PATCH**3:
        return vit
    renamed = rename_keys(vit, {_PERCEPTRON: _PERCEPTRON.removesuffix(".1")})
    renamed[STEM] = weight.reshape(-1, PATCH, PATCH, PATCH, weight.shape[1] // PATCH**3).movedim(-1, 1)
    return renamed


def settle_stem(values: State, config: Config) -> dict[str, str]:
    """Lay out in memory, as a convolution's weight, a projection that was a linear layer; see `Entry.correct`."""
    if not config.get("was_perceptron"):
        return {}
    name = next(name for name in (STEM, f"vit.{STEM}") if name in values)
    values[name] = values[name].contiguous().clone()  # a copy, where it was mapped
    return {name: "a linear layer's weight as a convolution's"}


def _facts(vit: State) -> Config:
    """What the shapes of a ViT say: widths, blocks, positions."""
    table, hidden = vit.get(TABLE), vit.get("blocks.0.mlp.linear1.weight")
    facts: Config = {"num_layers": len({name.split(".")[1] for name in vit if name.startswith("blocks.")})}
    if table is not None and table.ndim == 3:
        facts |= {"positions": table.shape[1], "hidden_size": table.shape[2]}
    if hidden is not None and hidden.ndim == 2:
        facts["mlp_dim"] = hidden.shape[0]
    return facts


def with_widths(facts: Config) -> Config:
    """The facts, with those that no option can change repeated under `in_file`, to be compared with the options."""
    return facts | {"in_file": {name: facts[name] for name in WIDTHS if name in facts}}
