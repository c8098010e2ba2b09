"""From the tensor names of BrainIAC's files, of both versions, to those of MONAI's networks. Pure.

What the files hold: AIM-KannLab/BrainIAC, src/model.py and src/segmentation_model.py (version 2);
DivyanshuTak/BrainIAC, src/BrainIAC, and the model code on PyPI, brainiac-model 0.1.1 (version 1).
"""

from __future__ import annotations

import re

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.networks.naming import classes_of, without
from zoo.networks.vit_names import ANCHORS, DEAD, STEM, TABLE, is_brainiac, is_monai_ssl, refuse_class_token
from zoo.networks.vit_names import VIT as VIT
from zoo.networks.vit_names import complete_vit as complete_vit
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix

VERSIONS = (
    "BrainIAC has two: version 1, a ResNet-50 (files until July 2025, and those on the hub), and version 2, a ViT-B/16 "
    "(since 2025-07-15). The authors' file is called BrainIAC.ckpt in both"
)
UNUSED = DEAD | {
    r"projection_head\..+": "projection head of the pre-training",
    r"model\.(backbone|classifier)\..+": "second copy of the fine-tuned network",
    r"model\.vit\..+": "encoder that the fine-tuning began with, which its forward pass does not use",
    r"unetr\.(?!vit\.).+": "decoder of a UNETR",
}
"""What published files hold beside the network: pattern -> what it is."""

_SHORTCUTS = tuple(f"layer{i}.0.downsample.0.bias" for i in (1, 2, 3, 4))
_RESNET = (*_SHORTCUTS, "layer4.2.bn3.weight")
_WIDTH = 64
_TIMM = ("pos_embed", "patch_embed.proj.bias", "blocks.0.attn.qkv.weight", "norm.weight")
_SECOND = "model."
_TUNED = "fine-tuned, {}: its features are not those of the published pre-training"
_UNNAMED_VIT = (
    "names and shapes are those of any ViT-B/16 of MONAI for 96 voxels a side, of monai-ssl-vitb16 too: they do not "
    "tell whose weights these are"
)
_UNNAMED_RESNET = (
    "names and shapes are those of any 3D ResNet-50 of MONAI, whatever the stride of its first convolution (here 2): "
    "they do not tell whose weights these are"
)
_RENAMED = "a port to names like timm's, taken to be MONAI's tensors in MONAI's order: such a file was not seen by us"


def convert_vit(state: State) -> tuple[State, Config]:
    """Keep the ViT of a file of version 2: of the pre-training, of a fine-tuned network, or bare.

    Raises:
        CheckpointMismatchError: The file holds version 1, another network with a ViT, or several that it could mean.
    """
    _refuse_version_1(state)
    wanted = _one_copy(_without_start(state))
    prefix = find_prefix(wanted, ANCHORS)
    if prefix is None:
        return _convert_port(state)
    network = strip_prefix(wanted, prefix)
    refuse_class_token(network, prefix)
    is_segmenting = prefix.endswith("unetr.vit.")
    if is_monai_ssl(wanted, prefix) and not is_segmenting:
        raise CheckpointMismatchError(
            f"the file holds a ViT behind {prefix!r} in an auto-encoder or a UNETR, as MONAI SSL's files do, which "
            "learnt from CT: expected BrainIAC's, which learnt from brain MRI. Load it as 'monai-ssl-vitb16'"
        )
    remark = "" if is_brainiac(wanted, prefix) else _UNNAMED_VIT
    remark = _TUNED.format("by segmenting in a UNETR") if is_segmenting else remark
    return _with_head(wanted, without(network, DEAD), prefix, "classification_head", remark)


def convert_resnet(state: State) -> tuple[State, Config]:
    """Keep the ResNet-50 of a file of version 1, whatever stands in front of it.

    Raises:
        CheckpointMismatchError: The file holds version 2, a network for images, or several that it could mean.
    """
    if any(name.endswith(STEM) for name in state):
        raise CheckpointMismatchError(
            "the file holds a ViT, as version 2 of BrainIAC is: expected the ResNet-50 of version 1. "
            f"{VERSIONS}. Load it as 'brainiac-vitb16'"
        )
    wanted = _one_copy(state)
    prefix = find_prefix(wanted, _RESNET)
    if prefix is None:
        _refuse_flat(state)
        return dict(state), {}
    return _with_head(wanted, strip_prefix(wanted, prefix), prefix, "fc", "" if prefix else _UNNAMED_RESNET)


def _with_head(state: State, network: State, prefix: str, head: str, remark: str) -> tuple[State, Config]:
    """Add the classifier beside a fine-tuned backbone under our head's name, and say that it is fine-tuned."""
    owner = re.sub(r"backbone\.(\w+\.)?$", "", prefix)
    if owner != prefix and f"{owner}classifier.fc.weight" in state:
        theirs = strip_prefix(state, f"{owner}classifier.fc.")
        network = network | {f"{head}.{name}": tensor for name, tensor in theirs.items()}
        remark = _TUNED.format("with a classifier")
    return network, classes_of(network, f"{head}.weight") | ({"remark": remark} if remark else {})


def _one_copy(state: State) -> State:
    """Leave out what stands once more below `model.`: Lightning writes a module that has two names twice.

    Raises:
        CheckpointMismatchError: The two differ; vectors are compared, which every step of training changes.
    """
    twins = {name: f"{_SECOND}{name}" for name in state if f"{_SECOND}{name}" in state}
    differing = [n for n, twin in twins.items() if state[n].ndim <= 1 and not state[n].equal(state[twin])]
    if differing:
        raise CheckpointMismatchError(
            f"the file holds two networks that differ, one below {_SECOND!r} ({len(differing)} of their {len(twins)} "
            f"tensors, {differing[0]} first): expected one. Save the names of the right one as a separate file"
        )
    return {name: tensor for name, tensor in state.items() if name not in set(twins.values())}


def _without_start(state: State) -> State:
    """Leave out the ViT beside a UNETR that holds one itself: training began with it, and has not changed it."""
    owners = [name.removesuffix(f"unetr.vit.{TABLE}") for name in state if name.endswith(f"unetr.vit.{TABLE}")]
    begun = tuple(f"{owner}vit." for owner in owners if f"{owner}vit.{TABLE}" in state)
    return {name: tensor for name, tensor in state.items() if not begun or not name.startswith(begun)}


def _convert_port(state: State) -> tuple[State, Config]:
    """Rename a port of the ViT to names like timm's (nidl's); any other file is returned as it is."""
    prefix = find_prefix(state, _TIMM)
    weight = state.get(f"{prefix}patch_embed.proj.weight")
    if prefix is None or weight is None or weight.ndim != 5:
        return dict(state), {}
    table = {"pos_embed": TABLE, "patch_embed.proj": STEM.removesuffix(".weight")}
    for i in range(12):
        block = f"blocks.{i}"
        table |= {f"{block}.attn.proj": f"{block}.attn.out_proj"}
        table |= {f"{block}.mlp.fc{j}": f"{block}.mlp.linear{j}" for j in (1, 2)}
    return rename_keys(strip_prefix(state, prefix), table), {"remark": _RENAMED}


def _refuse_version_1(state: State) -> None:
    """Refuse BrainIAC's ResNet-50; one of another width is somebody else's, of which the strict check says more."""
    prefix = find_prefix(_one_copy(state), _RESNET)
    stem = state.get(f"{prefix}conv1.weight")
    if prefix is not None and stem is not None and stem.ndim == 5 and len(stem) == _WIDTH:
        where = f" behind {prefix!r}" if prefix else ""
        raise CheckpointMismatchError(
            f"the file holds a 3D ResNet-50{where}, as version 1 of BrainIAC is: expected the ViT-B/16 of version 2. "
            f"{VERSIONS}. Load it as 'brainiac-resnet50'"
        )


def _refuse_flat(state: State) -> None:
    for name, tensor in state.items():
        if re.search(r"(^|\.)layer1\.0\.conv1\.weight$", name) and tensor.ndim == 4:
            raise CheckpointMismatchError(
                f"the file holds a ResNet for images ({name} has two axes in space): expected BrainIAC's, for volumes"
            )
