"""y-Aware: contrastive learning on brain MRI in which close ages attract (Dufumier et al., MICCAI 2021).

A 3D DenseNet-121 for grey-matter density maps: an encoder, and the classifier that fine-tuning makes of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zoo.entry import Augment, Config, Entry, Preprocessing, State
from zoo.errors import CheckpointMismatchError
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix

if TYPE_CHECKING:
    from torch import nn

MODEL = "yaware-densenet121"

PREPROCESSING = Preprocessing(
    channels=("grey-matter density",),
    size=(121, 145, 121),
    units="modulated grey-matter density",
    value_range=(0.0, 3.0),
    affine=((-1.5, 0.0, 0.0, 90.0), (0.0, 1.5, 0.0, -126.0), (0.0, 0.0, 1.5, -72.0), (0.0, 0.0, 0.0, 1.0)),
    normalise="z-score",
)
"""CAT12's `mwp1` map on the grid of its template (SPM12, CAT12): x from 90 to -90 mm, as it runs to the left, y from
-126 to 90, z from -72 to 108. Densities pass 1 where a region is larger than the template's; 3 leaves room."""

_DENSENET = ("features.conv0.weight", "features.transition1.conv.weight", "features.transition3.conv.weight")
_UNET = ("down.0.doubleconv.conv1.weight", "down.1.doubleconv.conv2.weight")
_BARE_LAYER = re.compile(r"(features\.denseblock\d+\.denselayer\d+)\.(?!layers\.)")
_HEAD_NAMES = {"classifier": "class_layers.out", "class_layers.class": "class_layers.out"}
_NORM, _HEAD = "features.norm5.", "class_layers."
_WIDTH = 1024
_NEUTRAL_VARIANCE = 1 - 1e-5
"""The norm adds 1e-5, so that with mean 0, weight 1 and bias 0 it changes no bit."""
_STAGES = (
    ("features.conv0.", "features.norm0."),
    ("features.denseblock1.", "features.transition1."),
    ("features.denseblock2.", "features.transition2."),
    ("features.denseblock3.", "features.transition3."),
    ("features.denseblock4.",),
)


def build(config: Config) -> nn.Module:
    """DenseNet-121 of MONAI: pooled features `(N, 1024)`, logits, or with `projection` `(N, 128)`."""
    from zoo.entries.yaware.model import YAwareDenseNet121

    return YAwareDenseNet121(config["in_channels"], config["num_classes"], projection=config["projection"])


def convert(state: State) -> tuple[State, Config]:
    """Keep the DenseNet of any of the family's files, under MONAI's names; the contents of the file tell the mode.

    The authors, and MONAI before 0.4, have no `layers` below a dense layer; MONAI before 0.4 called the classifier
    `class_layers.class`. Parts that `complete` added are removed again.

    Raises:
        CheckpointMismatchError: The file holds the authors' U-Net, or several networks that it could mean.
    """
    prefix = find_prefix(state, _DENSENET)
    if prefix is None:
        _refuse_unet(state)
        return dict(state), {}
    network = strip_prefix(state, prefix)
    bare = dict.fromkeys(match[1] for name in network if (match := _BARE_LAYER.match(name)))
    network = rename_keys(network, _HEAD_NAMES | {layer: f"{layer}.layers" for layer in bare})
    if _is_completed(network):
        network = {name: tensor for name, tensor in network.items() if not name.startswith((_NORM, _HEAD))}
    head = network.get(f"{_HEAD}out.weight")
    return network, {} if head is None or head.ndim != 2 else {"num_classes": head.shape[0]}


def _refuse_unet(state: State) -> None:
    prefix = find_prefix(state, _UNET)
    if prefix is not None:
        behind = f" behind {prefix!r}" if prefix else ""
        raise CheckpointMismatchError(
            f"the file holds the 3D U-Net of y-Aware's authors (models/unet.py){behind}; their DenseNet-121 is "
            "expected. The zoo does not have that U-Net: load the file with the authors' code"
        )


def _is_completed(network: State) -> bool:
    """Whether the last norm and the head are the neutral ones of `complete`; values are read only if both fit."""
    head, variance = network.get(f"{_HEAD}out.weight"), network.get(f"{_NORM}running_var")
    if head is None or variance is None or head.shape != (_WIDTH, _WIDTH):
        return False
    return bool((variance == _NEUTRAL_VARIANCE).all())


def complete(state: State) -> State:
    """Add a norm and a classifier that change nothing, so that MONAI's `DenseNet121(3, 1, 1024)` returns the features.

    Equal in eval mode only: in training the norm uses the statistics of the batch. The projection head, which that
    class does not have, is left out. A network with classes is already whole.
    """
    import torch

    plain = {name: tensor for name, tensor in state.items() if name.startswith(("features.", _HEAD))}
    if f"{_NORM}weight" in plain:
        return plain
    neutral = {
        f"{_NORM}weight": torch.ones(_WIDTH),
        f"{_NORM}bias": torch.zeros(_WIDTH),
        f"{_NORM}running_mean": torch.zeros(_WIDTH),
        f"{_NORM}running_var": torch.full((_WIDTH,), _NEUTRAL_VARIANCE),
        f"{_NORM}num_batches_tracked": torch.zeros((), dtype=torch.int64),
        f"{_HEAD}out.weight": torch.eye(_WIDTH),
        f"{_HEAD}out.bias": torch.zeros(_WIDTH),
    }
    return plain | neutral


def reset_head(module: nn.Module) -> None:
    """Start a linear layer as the authors and MONAI do, with its bias at zero."""
    from torch import nn

    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


ENTRIES = (
    Entry(
        name=MODEL,
        summary="3D DenseNet-121 for grey-matter density maps of the brain: pooled features (N, 1024)",
        family="yaware",
        modalities=("mri",),
        anatomy="brain",
        dimension=3,
        parameters=11_240_576,
        num_features=1024,
        build=build,
        convert=convert,
        config={"num_classes": 0, "in_channels": 1, "projection": False},
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        head=(_NORM, _HEAD, "hidden_representation.", "head_projection."),
        stem="features.conv0.weight",
        stages=_STAGES,
        preprocessing=PREPROCESSING,
        augment=Augment(mirrors=(0,)),
        unused={r"(hidden_representation|head_projection)\.(weight|bias)": "projection head"},
        reset=reset_head,
        complete=complete,
    ),
)
