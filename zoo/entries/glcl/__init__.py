"""GLCL: contrastive learning of global and local features for MRI segmentation (Chaitanya et al., NeurIPS 2020).

A 2D U-Net: first its encoder learns to tell parts of a volume apart, then its decoder to tell regions of a slice apart.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

from zoo.entries.glcl.contract import PREPROCESSING
from zoo.entries.glcl.convert import (
    BLOCKS,
    ENCODER,
    HEAD,
    LEVELS,
    LOGITS,
    OPTIMISER,
    PROJECTION,
    REGION,
    correct_averages,
    from_tensorflow,
    trained_steps,
)
from zoo.entry import Config, Entry, Labels, State
from zoo.errors import CheckpointMismatchError
from zoo.tensor_names import find_prefix, segmenter_remark, strip_prefix

if TYPE_CHECKING:
    from torch import nn

_STRIDE = 32
_ANCHORS = (f"{ENCODER[0]}.weight", f"{ENCODER[-1]}.weight")
_LEVELS = tuple(ENCODER[i : i + 2] for i in range(0, len(ENCODER), 2))
_LEAF = (
    r"(/(W|b|kernel|\w+_bn/(beta|gamma|.+/ExponentialMovingAverage))"
    r"|\.(weight|bias|running_mean|running_var|num_batches_tracked))"
)
"""Suffixes of a layer's tensors, in a bundle and under PyTorch's names; other tensors are not parts of the layer."""
_OTHER_HEAD = "head, which was not asked for or is that of the local loss"


def prefixes_of(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Prefixes of the names of a stage's tensors."""
    return tuple(f"{layer}{norm}." for layer in layers for norm in ("", "_bn"))


def build_encoder(config: Config) -> nn.Module:
    """The encoder: features `(N, 128)`, logits `(N, num_classes)`, or with `projection` `(N, 128)`."""
    from zoo.entries.glcl.model import GLCLEncoder

    return GLCLEncoder(
        in_channels=config["in_channels"],
        size=config["size"],
        projection=config["projection"],
        num_classes=0 if config["projection"] else config["num_classes"],
    )


def build_unet(config: Config) -> nn.Module:
    """The U-Net: logits `(N, num_classes, H, W)`; without classes the map of the last block that the file has."""
    from zoo.entries.glcl.model import GLCLUNet

    classes = config["num_classes"]
    stored = 0 if classes else config.get("stored_blocks", 0)
    return GLCLUNet(classes, config["in_channels"], blocks=config["blocks"] or stored or len(BLOCKS))


def segment_volume(
    model: nn.Module, transform: Any, path: Any, batch_size: int | None, overlap: float | None
) -> Labels:
    """Labels of a whole volume on its own grid, and its matrix."""
    from zoo.entries.glcl.segment import label_volume

    return label_volume(model, transform, path, batch_size, overlap)


def convert_encoder(state: State) -> tuple[State, Config]:
    """Keep the encoder of any of the family's files, with the heads that it may have; its head tells the size.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean.
    """
    layers, facts = _layers(state)
    if not facts:
        return layers, {}
    others = prefixes_of((*chain(*BLOCKS), *HEAD, REGION, LOGITS))
    encoder = {name: tensor for name, tensor in layers.items() if not name.startswith(others)}
    hidden, classifier = encoder.get(f"{PROJECTION[0]}.weight"), encoder.get("classifier.weight")
    if hidden is not None and hidden.ndim == 2:
        facts["size"] = _STRIDE * math.isqrt(hidden.shape[1] // LEVELS[-1])
    if classifier is not None and classifier.ndim == 2:
        facts["num_classes"] = classifier.shape[0]
    # The local loss trains a decoder without labels; that of the stage after it alone has logits.
    return encoder, facts | segmenter_remark(layers, (f"{LOGITS}.",), f"{LOGITS}.weight")


def convert_unet(state: State) -> tuple[State, Config]:
    """Keep encoder and decoder of any of the family's files, and the head of a segmentation network.

    Raises:
        CheckpointMismatchError: The file holds several networks that it could mean, or parts of a decoder's block.
    """
    layers, facts = _layers(state)
    if not facts:
        return layers, {}
    first = layers.get(f"{HEAD[0]}.weight")
    is_local = first is not None and first.shape[2:] == (1, 1)
    heads = (*PROJECTION, REGION, *HEAD) if is_local else (*PROJECTION, REGION)
    others = (*prefixes_of(heads), "classifier.")
    unet = {name: tensor for name, tensor in layers.items() if not name.startswith(others)}
    facts["stored_blocks"] = _count_blocks(unet)
    logits = unet.get(f"{LOGITS}.weight")
    return unet, facts | ({} if logits is None else {"num_classes": logits.shape[0]})


def _layers(state: State) -> tuple[State, Config]:
    """Return the layers under the network's names, and facts of the file; no facts where it is not of the family."""
    tensorflow = from_tensorflow(state) if f"{ENCODER[0]}/W" in state else {}
    layers = tensorflow or state
    prefix = find_prefix(layers, _ANCHORS)
    if prefix is None:
        return dict(state), {}
    return strip_prefix(layers, prefix), {"steps": trained_steps(state) if tensorflow else None}


def _count_blocks(unet: State) -> int:
    """Number of the decoder's blocks that a file has: the first ones, each whole."""
    whole = [
        all(f"{name}.weight" in unet and f"{name}_bn.weight" in unet for name in block) for block in (*BLOCKS, HEAD)
    ]
    begun = [any(name.startswith(prefixes_of(block)) for name in unet) for block in (*BLOCKS, HEAD)]
    count = (*whole, False).index(False)
    if any(begun[count:]):
        parts = [part for part, is_begun in zip((*BLOCKS, HEAD), begun, strict=True) if is_begun][count:]
        raise CheckpointMismatchError(
            f"the decoder in the file is incomplete: of its blocks the first {min(count, len(BLOCKS))} are whole, but "
            f"there are tensors of {', '.join(name for part in parts for name in part)}. A decoder has the first "
            f"blocks in full: {', '.join('+'.join(block) for block in BLOCKS)}, and after all of them {'+'.join(HEAD)}"
        )
    return min(count, len(BLOCKS))


def reset(module: nn.Module) -> None:
    """Start a layer that the file lacks as the authors do."""
    from zoo.entries.glcl.model import reset as reset_layer

    reset_layer(module)


ENTRIES = (
    Entry(
        name="glcl-encoder",
        summary="2D encoder of MRI slices: pooled features (N, 128)",
        family="glcl",
        modalities=("mri",),
        anatomy="heart",
        dimension=2,
        parameters=885_552,
        num_features=128,
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 1, "projection": False, "size": 192},
        required=prefixes_of(ENCODER),
        head=("classifier.", "reg_"),
        stem=f"{ENCODER[0]}.weight",
        stages=tuple(map(prefixes_of, _LEVELS)),
        preprocessing=PREPROCESSING,
        unused=OPTIMISER
        | {
            r"(dec|seg)_\w+[./].*": "decoder: not part of the encoder",
            rf"reg_(nn1|pred){_LEAF}": "projection head",
        },
        correct=correct_averages,
        reset=reset,
    ),
    Entry(
        name="glcl-unet",
        summary="2D U-Net for MRI slices: segments (N, num_classes, H, W)",
        family="glcl",
        modalities=("mri",),
        anatomy="heart",
        dimension=2,
        parameters=2_095_760,
        num_features=None,
        build=build_unet,
        convert=convert_unet,
        config={"num_classes": 4, "in_channels": 1, "blocks": None},
        required=prefixes_of(ENCODER),
        head=(f"{LOGITS}.",),
        stem=f"{ENCODER[0]}.weight",
        stages=tuple(map(prefixes_of, (*_LEVELS, *BLOCKS, HEAD))),
        preprocessing=PREPROCESSING,
        unused=OPTIMISER
        | {
            rf"reg_(nn1|pred){_LEAF}": "projection head",
            rf"seg_(c1_[ab](_bn)?|pred|fin_layer){_LEAF}": _OTHER_HEAD,
            rf"dec_(dc[2-6]|c[1-5]_[ab])(_bn)?{_LEAF}": "block of the decoder that is not asked for",
            r"classifier\.(weight|bias)": "head of the encoder",
        },
        correct=correct_averages,
        reset=reset,
        segment=segment_volume,
    ),
)
