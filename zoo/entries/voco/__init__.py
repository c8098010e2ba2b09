"""VoCo: Swin transformers for CT that learnt where a crop lies among others (Wu, Zhuang, Chen, TPAMI 2026).

Swin UNETR v2 of MONAI in three widths: its transformer as an encoder, and the whole network, which segments.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.entries.voco.contract import ABDOMEN, WINDOWS
from zoo.entries.voco.convert import (
    STAGES,
    UNUSED_BY_ENCODER,
    UNUSED_BY_SEGMENTER,
    WIDTHS,
    check_convolutions,
    check_indices,
    complete_encoder,
    complete_segmenter,
    convert_encoder,
    convert_segmenter,
)
from zoo.entry import Config, Entry, Parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

_PARAMETERS = {
    "b": (18_637_362, 72_762_656),
    "l": (73_894_914, 290_392_016),
    "h": (294_863_778, 1_160_844_080),
}
"""Of the encoder and of the network that segments, by size."""


def build_encoder(config: Config, *, width: int) -> nn.Module:
    """The transformer: features `(N, 16 width)`, VoCo's own embedding `(N, 24 width)`, or logits.

    Raises:
        CheckpointMismatchError: VoCo's own embedding is asked for, and the file has no convolutions for it.
    """
    from zoo.entries.voco.model import swin_encoder

    check_convolutions(config)
    options = {name: config[name] for name in ("in_channels", "num_classes", "merging", "embedding")}
    return swin_encoder(**options, feature_size=width, use_v2=True)


def build_segmenter(config: Config, *, width: int) -> nn.Module:
    """The Swin UNETR v2: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps."""
    from zoo.entries.voco.model import swin_unetr

    options = {name: config[name] for name in ("in_channels", "num_classes", "merging")}
    return swin_unetr(**options, feature_size=width, use_v2=True)


def parts(model: nn.Module, transform: Any, stride: int | None, _: str | Path | None) -> Callable[[Any], Parts]:
    """Windows of a whole CT without the air around it, whose maps are averaged: features `(1, D)`."""
    from zoo.entries.voco.windows import window_reader

    return window_reader(model, transform, stride)


def _encoder(size: str, width: int) -> Entry:
    return Entry(
        name=f"voco-swinvit-{size}",
        summary=f"3D Swin transformer v2 for CT, width {width}: features (N, {16 * width}), the mean of its last map",
        family="voco",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=_PARAMETERS[size][0],
        num_features=16 * width,
        build=partial(build_encoder, width=width),
        convert=partial(convert_encoder, width=width),
        config={"num_classes": 0, "in_channels": 1, "merging": "duplicated", "embedding": "pooled"},
        required=("patch_embed.", *(prefix for stage in STAGES for prefix in stage)),
        head=("classification_head.",),
        stem="patch_embed.proj.weight",
        side_stems=("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        stages=(("patch_embed.",), *STAGES),
        preprocessing=ABDOMEN,
        settled=("merging",),
        unused=UNUSED_BY_ENCODER,
        correct=check_indices,
        complete=complete_encoder,
        parts=parts,
    )


def _segmenter(size: str, width: int) -> Entry:
    return Entry(
        name=f"voco-swinunetr-{size}",
        summary=f"3D Swin UNETR v2 for CT, width {width}: once fine-tuned segments (N, 14, D, H, W)",
        family="voco",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=_PARAMETERS[size][1],
        num_features=None,
        build=partial(build_segmenter, width=width),
        convert=partial(convert_segmenter, width=width),
        config={"num_classes": 14, "in_channels": 1, "merging": "duplicated"},
        required=("swinViT.",),
        head=("out.",),
        stem="swinViT.patch_embed.proj.weight",
        side_stems=("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        stages=(
            ("swinViT.patch_embed.", "encoder1."),
            *((f"swinViT.layers{i}c.", f"swinViT.layers{i}.", f"encoder{i + 1}.") for i in (1, 2, 3)),
            ("swinViT.layers4c.", "swinViT.layers4.", "encoder10."),
            *((f"decoder{i}.",) for i in (5, 4, 3, 2, 1)),
        ),
        preprocessing=ABDOMEN,
        settled=("merging",),
        unused=UNUSED_BY_SEGMENTER,
        correct=check_indices,
        complete=complete_segmenter,
        windows=WINDOWS,
    )


ENTRIES = tuple(make(size, width) for make in (_encoder, _segmenter) for size, width in WIDTHS.items())
