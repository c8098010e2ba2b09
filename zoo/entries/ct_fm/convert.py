"""From the tensor names of any of CT-FM's files to those of MONAI's classes. Pure.

Published are an encoder under `SegResEncoder`'s names and two segmenters under those of `SegResNetDS`. The authors' own
training (project-lighter/CT-FM) writes the encoder as `model.backbone.` beside a projection head, segmenters as
`model.trunk.`, and the encoder of a segmenter alone as `encoder.`.
"""

from __future__ import annotations

import re

from zoo.entry import UNTRAINED, Config, State
from zoo.errors import CheckpointMismatchError
from zoo.networks.naming import classes_of
from zoo.tensor_names import find_prefix, segmenter_remark, strip_prefix

STEM = "conv_init.weight"
HEADS = tuple(f"up_layers.{level}.head." for level in range(4))
"""Prefixes of the heads, the finest last."""
UNTRAINED_DECODER = "untrained"
"""What the option `decoder` says of weights whose decoder was saved as it was initialised."""

_ANCHORS = (STEM, "layers.0.downsample.weight", "layers.3.downsample.weight", "layers.4.blocks.3.conv2.weight")
_OTHER_CLASS = ("convInit.conv.weight", "down_layers.0.1.conv1.conv.weight")
_DECODER, _CLASSIFIER = "up_layers.", "classifier."
_NEW_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_WIDTH = 32
"""Channels of the finest maps."""

UNUSED = {r"projection_head\.layers\.\d+\.(weight|bias)": "projection head of the pre-training"}
UNUSED_BY_ENCODER = UNUSED | {r"up_layers\..+": "decoder, which is no part of the encoder"}
UNUSED_BY_SEGMENTER = UNUSED | {r"(encoder\.)?classifier\.(weight|bias)": "head of the encoder, which classifies"}


def convert_encoder(state: State) -> tuple[State, Config]:
    """Keep the encoder of any of the family's files, and the classifier that fine-tuning gave it.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or another network.
    """
    prefix = _find_encoder(state)
    if prefix is None:
        return dict(state), {}
    encoder = strip_prefix(state, prefix)
    remark = segmenter_remark(strip_prefix(state, _owner(prefix)), (_DECODER,), f"{HEADS[-1]}weight")
    return encoder, remark | classes_of(encoder, f"{_CLASSIFIER}weight")


def convert_segmenter(state: State) -> tuple[State, Config]:
    """Keep the segmenter of any of the family's files; of an encoder's file the encoder, in its place.

    Classes and heads are read from the file.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or another network.
    """
    prefix = _find_encoder(state)
    if prefix is None:
        return dict(state), {}
    owner = _owner(prefix)
    if owner == prefix or not any(name.startswith(f"{owner}{_DECODER}") for name in state):
        return {f"encoder.{name}": tensor for name, tensor in strip_prefix(state, prefix).items()}, {}
    network = strip_prefix(state, owner)
    if second := [name for name in network if name.startswith("up_layers_auto.")]:
        raise CheckpointMismatchError(
            f"the file holds MONAI's SegResNetDS2, as VISTA3D has it, with a second decoder ({len(second)} tensors "
            f"such as {owner}{second[0]}); a SegResNetDS is expected, which has one. Load it with MONAI"
        )
    heads = [network[f"{head}weight"] for head in HEADS if f"{head}weight" in network]
    return network, {"num_classes": heads[-1].shape[0], "dsdepth": len(heads)} if heads else {}


def _owner(prefix: str) -> str:
    """What stands in front of a segmenter's names, of the encoder's prefix; the same where that is no segmenter's."""
    return re.sub(r"(^|(?<=\.))encoder\.$", "", prefix)


def _find_encoder(state: State) -> str | None:
    """Return what stands in front of an encoder's names; None where a file has none."""
    prefix = find_prefix(state, _ANCHORS)
    if prefix is None:
        if find_prefix(state, _OTHER_CLASS) is not None:
            raise CheckpointMismatchError(
                "the file holds MONAI's SegResNet (convInit, down_layers); CT-FM's are SegResEncoder and SegResNetDS, "
                "other networks with other names. lighter-zoo's SegResNet is a SegResNetDS. Load the file with MONAI"
            )
        return None
    names = [name for name in state if name.startswith(prefix)]
    if not any(name.endswith(".running_mean") for name in names):
        raise CheckpointMismatchError(
            f"the SegResEncoder in the file, behind {prefix!r}, has no running statistics, as one with instance norms "
            "has none; CT-FM's norms are batch norms, and without their statistics the same weights would compute "
            "something else. Load the file with MONAI"
        )
    return prefix


def note_untrained(state: State, config: Config) -> dict[str, str]:
    """Say of a decoder that it was saved as it was initialised: the record says so, or all of its norms are new.

    Args:
        state: In the segmenter's names, with values.
        config: With the option `decoder`.
    """
    decoder = [name for name in state if name.startswith(_DECODER)]
    norms = {name: _NEW_NORM.get(name.rpartition(".")[2]) for name in decoder if ".norm" in name}
    are_new = all(value is None or bool((state[name] == value).all()) for name, value in norms.items())
    is_untrained = config["decoder"] == UNTRAINED_DECODER or (norms and are_new)
    return dict.fromkeys(decoder, UNTRAINED) if is_untrained else {}


def complete_encoder(state: State) -> State:
    """Leave the classifier out, which MONAI's class has not, so that it loads the rest strictly."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}


def complete_segmenter(state: State) -> State:
    """Without classes, add a head that changes nothing: MONAI's class of 32 outputs returns the decoder's maps."""
    import torch

    if any(name.startswith(HEADS) for name in state):
        return state
    weight = torch.eye(_WIDTH).reshape(_WIDTH, _WIDTH, 1, 1, 1)
    return state | {f"{HEADS[-1]}weight": weight, f"{HEADS[-1]}bias": torch.zeros(_WIDTH)}
