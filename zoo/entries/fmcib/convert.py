"""From the tensor names of any of FMCIB's files to those of MONAI's class. Pure.

Published is the trunk under MONAI's names. The authors' fine-tuning by lighter writes it as `model.trunk.` beside the
layers of a head, `model.heads.{i}.0.`.
"""

from __future__ import annotations

import re

from zoo.entry import Config, State
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.tensor_names import find_prefix, strip_prefix

STEM = "conv1.weight"
HEAD = "fc."

_ANCHORS = (STEM, "layer1.0.conv3.weight", "layer2.3.conv2.weight", "layer3.5.conv2.weight", "layer4.2.bn3.running_var")
"""Names that any ResNet-50 has."""
_SHORTCUT_BIASES = tuple(f"layer{i}.0.downsample.0.bias" for i in range(1, 5))
_WIDTH = 128
"""Channels of the first convolution."""
_BEHIND_TRUNK = re.compile(r"(^|(?<=\.))trunk\.$")
_AUTHORS_LAYER = re.compile(r"heads\.(\d+)\.0\.(weight|bias)")
_OWN_LAYER = re.compile(r"fc(?:\.(\d+))?\.weight")
_STRIDE = (
    "2 is taken, as in the pre-training; with another the same tensors compute something else. The authors' settings "
    "for fine-tuning and for extract_features leave it out, which builds 1: of a file that was trained so, stride=1 "
    "gives its function"
)


def convert_resnet(state: State) -> tuple[State, Config]:
    """Keep the network of any of the family's files, and the head that fine-tuning gave it.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or another ResNet-50.
    """
    prefix = find_prefix(state, _ANCHORS)
    if prefix is None:
        return dict(state), {}
    network = strip_prefix(state, prefix)
    _refuse_others(network, prefix)
    if _BEHIND_TRUNK.search(prefix):
        network |= _own_names(strip_prefix(state, _BEHIND_TRUNK.sub("", prefix)))
    return network, _head_facts(network) | {"unclear": {"stride": _STRIDE}}


def _refuse_others(network: State, prefix: str) -> None:
    """Raise `CheckpointMismatchError` where the stem or the shortcuts are those of another ResNet-50."""
    stem = network.get(STEM)
    where = f" behind {prefix!r}" if prefix else ""
    if stem is None:
        return
    if stem.ndim != 5:
        raise CheckpointMismatchError(
            f"the file holds a 2D ResNet-50{where}, its {STEM} with {stem.ndim} axes; a 3D one of twice the width is "
            "expected. `zoo inspect FILE` says which models it fits"
        )
    if stem.shape[0] != _WIDTH:
        raise CheckpointMismatchError(
            f"the file holds a 3D ResNet-50{where} whose first convolution has {stem.shape[0]} channels, as that of "
            f"Med3D; one of twice the width is expected, with {_WIDTH}. `zoo inspect FILE` says which models it fits"
        )
    if not any(name in network for name in _SHORTCUT_BIASES):
        raise CheckpointMismatchError(
            f"the ResNet-50 in the file{where} has no biases in its shortcuts (bias_downsample=False); FMCIB's has "
            f"four, such as {_SHORTCUT_BIASES[0]}. It was saved by another network: load the file with MONAI"
        )


def _own_names(beside: State) -> State:
    """Return the layers of the authors' head among what stands beside the trunk, as `fc` or `fc.0`, `fc.2`, ..."""
    layers = {name: match for name in beside if (match := _AUTHORS_LAYER.fullmatch(name))}
    is_one = all(int(match[1]) == 0 for match in layers.values())
    return {
        f"fc.{match[2]}" if is_one else f"fc.{2 * int(match[1])}.{match[2]}": beside[name]
        for name, match in layers.items()
    }


def _head_facts(network: State) -> Config:
    """Classes of a head, and the widths of the layers before its last one."""
    found = {int(match[1] or 0): network[name] for name in network if (match := _OWN_LAYER.fullmatch(name))}
    widths = [tensor.shape[0] for _, tensor in sorted(found.items()) if tensor.ndim == 2]
    if not widths or len(widths) != len(found):
        return {}
    return {"num_classes": widths[-1], "hidden": tuple(widths[:-1])}


def complete_resnet(state: State) -> State:
    """Add nothing: MONAI's class has all tensors, with `feed_forward=True` those of one linear layer, too.

    Raises:
        OptionError: The head has several layers, which that class has not.
    """
    if f"{HEAD}0.weight" in state:
        raise OptionError(
            "MONAI's ResNet has a head of one linear layer, this network one of several: no values make that class "
            "compute the same. Without --full its tensors are exported as they are"
        )
    return state
