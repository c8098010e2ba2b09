"""From any file of Models Genesis or TransVW to the U-Net's own names, and what else is in such a file. Pure."""

from __future__ import annotations

import re

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError
from zoo.networks.naming import without
from zoo.tensor_names import find_prefix, segmenter_remark, strip_prefix

STEM = "down_tr64.ops.0.conv1.weight"
ENCODER = ("down_tr64.", "down_tr128.", "down_tr256.", "down_tr512.")
DECODER = ("up_tr256.", "up_tr128.", "up_tr64.")
HEAD = "out_tr."
CLASSIFIER = "dense_"
"""Start of the names of the authors' classifier on the encoder's features (class TargetNet of their README)."""

_ANCHORS = (STEM, "down_tr128.ops.1.bn1.weight", "down_tr256.ops.0.conv1.bias", "down_tr512.ops.1.conv1.weight")
_NNUNET = ("conv_blocks_context.0.blocks.0.conv.weight", "conv_blocks_localization.0.0.blocks.0.conv.weight")
_WITH_CLASSIFIER = re.compile(r"(^|(?<=\.))base_model\.$")
UNUSED = {
    r"clc_out\.(conv1|bn1|fc1)\..+": "classifier of visual words, from TransVW's pre-training",
    r"projection_head\..+": "projection head of another pre-training, which TransVW's own loader leaves out",
    r"prototypes\..+": "prototypes of another pre-training, which TransVW's own loader leaves out",
}
"""What published files hold beside the U-Net: pattern -> what it is."""
UNUSED_BY_ENCODER = {
    r"up_tr(256|128|64)\.(up_conv|ops\.[01]\.(conv1|bn1))\.\w+": "decoder: not part of the encoder",
    r"out_tr\.final_conv\.(weight|bias)": "last convolution of the decoder: not part of the encoder",
}
UNUSED_BY_UNET = {r"dense_[12]\.(weight|bias)": "classifier on the encoder's features: not part of the U-Net"}
_ONE_CHANNEL = (
    "its one output is taken for the restored volume's, behind a sigmoid; where it is that of a segmentation, "
    "num_classes=1 gives its logits"
)


def convert_encoder(state: State) -> tuple[State, Config]:
    """Keep the contracting half of any of the family's files, and the authors' classifier on it where there is one.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or nnU-Net's.
    """
    found = _find_network(state)
    if found is None:
        return dict(state), {}
    prefix, network = found
    owner = _WITH_CLASSIFIER.sub("", prefix)
    if owner != prefix:
        beside = strip_prefix(state, owner)
        network |= {name: tensor for name, tensor in beside.items() if name.startswith(CLASSIFIER)}
    remark = segmenter_remark(network, DECODER, f"{HEAD}final_conv.weight", restores=True)
    return without(network, UNUSED | UNUSED_BY_ENCODER), remark | _classifier_facts(network)


def convert_unet(state: State) -> tuple[State, Config]:
    """Keep the U-Net of any of the family's files.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or nnU-Net's.
    """
    found = _find_network(state)
    if found is None:
        return dict(state), {}
    network = without(found[1], UNUSED | UNUSED_BY_UNET)
    last = network.get(f"{HEAD}final_conv.weight")
    if last is None or last.ndim != 5:
        return network, {}
    return network, {"unclear": {"num_classes": _ONE_CHANNEL}} if last.shape[0] == 1 else {"num_classes": last.shape[0]}


def _find_network(state: State) -> tuple[str, State] | None:
    """Return what stands in front of the network of a file, and all that is behind it; None where there is none."""
    prefix = find_prefix(state, _ANCHORS)
    if prefix is not None:
        return prefix, strip_prefix(state, prefix)
    if (nnunet := find_prefix(state, _NNUNET)) is not None:
        raise CheckpointMismatchError(
            f"the file holds a U-Net of nnU-Net v1 (Generic_UNet{f' behind {nnunet!r}' if nnunet else ''}), as "
            "genesis_nnunet_luna16_006.model of the authors' does, expected the U-Net of Genesis_Chest_CT.pt. It is "
            "another network, which the zoo does not have: load the file with nnU-Net v1"
        )
    return None


def _classifier_facts(network: State) -> Config:
    """Classes and layers of the classifier on the features: two layers in Models Genesis, one in TransVW."""
    for layers in (2, 1):
        last = network.get(f"{CLASSIFIER}{layers}.weight")
        if last is not None:
            return {"num_classes": last.shape[0], "head_layers": layers} if last.ndim == 2 else {}
    return {}
