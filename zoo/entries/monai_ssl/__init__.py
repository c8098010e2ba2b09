"""MONAI SSL: a 3D ViT pre-trained on CT by restoring corrupted crops, and networks that segment with it.

The tutorial vit_unetr_ssl of Project-MONAI/tutorials, on MONAI's networks; its Swin UNETR beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entries.monai_ssl.contract import FINE_TUNING, PRETRAINING, SWIN_PRETRAINING, WINDOWS
from zoo.entries.monai_ssl.convert import (
    CLASSIFYING,
    RESTORING,
    SEGMENTING,
    STEM,
    UNUSED,
    VIT,
    complete_unetr,
    complete_vit,
    convert_autoencoder,
    convert_encoder,
    convert_unetr,
    settle_stem,
)
from zoo.entries.monai_ssl.convert_swin import (
    UNUSED_BY_ENCODER,
    UNUSED_BY_SWIN,
    check_indices,
    complete_swin,
    complete_swin_encoder,
    convert_swin,
    convert_swin_encoder,
)
from zoo.entries.monai_ssl.sizes import WIDTHS, swin_options, vit_options
from zoo.entry import Config, Entry, Parts
from zoo.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

_BLOCKS = tuple((f"blocks.{i}.",) for i in range(11))
_VIT_STAGES = (("patch_embedding.",), *_BLOCKS, ("blocks.11.", "norm."))
_SETTLED = ("img_size", "num_heads")
"""No shape tells the number of heads; that of the table of positions does not tell the windows of the training."""


def build_encoder(config: Config) -> nn.Module:
    """The ViT: features `(N, 768)`, or logits `(N, num_classes)`."""
    from zoo.entries.monai_ssl.model import for_windows, vit_encoder

    options, window = vit_options(config)
    network = vit_encoder(**options, num_layers=config["num_layers"], num_classes=config["num_classes"])
    return for_windows(network, window)


def build_autoencoder(config: Config) -> nn.Module:
    """The network of the pre-training: the reconstruction `(N, 1, D, H, W)`.

    Raises:
        OptionError: Classes are asked for.
    """
    from zoo.entries.monai_ssl.model import for_windows, vit_autoencoder

    if config["num_classes"]:
        raise OptionError(
            f"num_classes={config['num_classes']} for 'monai-ssl-vitautoenc', which restores the volume and has no "
            "classes: 'monai-ssl-vitb16' classifies, 'monai-ssl-unetr' segments, both from the same file"
        )
    options, window = vit_options(config)
    channels = config.get("out_channels", 1)
    network = vit_autoencoder(**options, num_layers=config["num_layers"], out_channels=channels)
    return for_windows(network, window)


def build_unetr(config: Config) -> nn.Module:
    """The UNETR: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps."""
    from zoo.entries.monai_ssl.model import for_windows
    from zoo.entries.monai_ssl.segmenters import unetr

    options, window = vit_options(config)
    network = unetr(**options, feature_size=config["feature_size"], num_classes=config["num_classes"])
    return for_windows(network, window)


def build_swin(config: Config) -> nn.Module:
    """The Swin UNETR: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps."""
    from zoo.entries.monai_ssl.segmenters import swin_unetr

    return swin_unetr(**swin_options(config))


def build_swin_encoder(config: Config) -> nn.Module:
    """The transformer of a Swin UNETR: features `(N, 768)`, or logits `(N, num_classes)`."""
    from zoo.entries.monai_ssl.model import swin_encoder

    return swin_encoder(**swin_options(config))


def parts(model: nn.Module, transform: Any, stride: int | None, _: str | Path | None) -> Callable[[Any], Parts]:
    """Windows of a whole CT without the air around it, whose maps are averaged: features `(1, 768)`."""
    from zoo.entries.monai_ssl.windows import window_reader

    return window_reader(model, transform, stride)


ENTRIES = (
    Entry(
        name="monai-ssl-vitb16",
        summary="3D ViT-B/16 for CT: features (N, 768), the mean of its tokens",
        family="monai_ssl",
        modalities=("ct",),
        anatomy="chest",
        dimension=3,
        parameters=88_340_736,
        num_features=768,
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 1, "num_layers": 12, **WIDTHS},
        required=VIT,
        head=("classification_head.",),
        settled=_SETTLED,
        stem=STEM,
        stages=_VIT_STAGES,
        preprocessing=PRETRAINING,
        unused=UNUSED | RESTORING | SEGMENTING,
        correct=settle_stem,
        complete=complete_vit,
        parts=parts,
    ),
    Entry(
        name="monai-ssl-vitautoenc",
        summary="3D ViT-B/16 auto-encoder for CT: restores the volume",
        family="monai_ssl",
        modalities=("ct",),
        anatomy="chest",
        dimension=3,
        parameters=89_128_209,
        num_features=None,
        build=build_autoencoder,
        convert=convert_autoencoder,
        config={"num_classes": None, "in_channels": 1, "num_layers": 12, **WIDTHS},
        required=(*VIT, "conv3d_transpose.", "conv3d_transpose_1."),
        head=(),
        settled=_SETTLED,
        stem=STEM,
        stages=(*_VIT_STAGES, ("conv3d_transpose.", "conv3d_transpose_1.")),
        preprocessing=PRETRAINING,
        unused=UNUSED | SEGMENTING,
        correct=settle_stem,
        complete=complete_vit,
    ),
    Entry(
        name="monai-ssl-unetr",
        summary="3D UNETR on the ViT-B/16 for CT: once fine-tuned segments (N, 14, D, H, W)",
        family="monai_ssl",
        modalities=("ct",),
        anatomy="abdomen",
        dimension=3,
        parameters=92_784_046,
        num_features=None,
        build=build_unetr,
        convert=convert_unetr,
        config={"num_classes": 14, "in_channels": 1, "feature_size": 16, **WIDTHS},
        required=("vit.",),
        head=("out.",),
        settled=_SETTLED,
        stem=f"vit.{STEM}",
        side_stems=("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        stages=(
            ("vit.patch_embedding.", "encoder1."),
            *(tuple(f"vit.{prefix}" for prefix in stage) for stage in _VIT_STAGES[1:]),
            ("encoder2.", "encoder3.", "encoder4.", "decoder5."),
            *((f"decoder{i}.",) for i in (4, 3, 2)),
        ),
        preprocessing=FINE_TUNING,
        unused=UNUSED | RESTORING | CLASSIFYING,
        correct=settle_stem,
        complete=complete_unetr,
        windows=WINDOWS,
    ),
    Entry(
        name="monai-ssl-swinunetr",
        summary="3D Swin UNETR for CT: once fine-tuned segments (N, 14, D, H, W)",
        family="monai_ssl",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=62_187_296,
        num_features=None,
        build=build_swin,
        convert=convert_swin,
        config={"num_classes": 14, "in_channels": 1, "feature_size": 48, "merging": "duplicated"},
        required=("swinViT.",),
        head=("out.",),
        stem="swinViT.patch_embed.proj.weight",
        side_stems=(
            "swinViT.patch_embed.proj.conv1.conv.weight",
            "encoder1.layer.conv1.conv.weight",
            "encoder1.layer.conv3.conv.weight",
        ),
        stages=(
            ("swinViT.patch_embed.", "encoder1."),
            *((f"swinViT.layers{i}.", f"encoder{i + 1}.") for i in (1, 2, 3)),
            ("swinViT.layers4.", "encoder10."),
            *((f"decoder{i}.",) for i in (5, 4, 3, 2, 1)),
        ),
        preprocessing=FINE_TUNING,
        settled=("merging",),
        unused=UNUSED_BY_SWIN,
        correct=check_indices,
        complete=complete_swin,
        windows=WINDOWS,
    ),
    Entry(
        name="monai-ssl-swinvit",
        summary="3D Swin transformer for CT: features (N, 768), the mean of its last map",
        family="monai_ssl",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=8_062_002,
        num_features=768,
        build=build_swin_encoder,
        convert=convert_swin_encoder,
        config={"num_classes": 0, "in_channels": 1, "feature_size": 48, "merging": "duplicated"},
        required=("patch_embed.", *(f"layers{i}." for i in (1, 2, 3, 4))),
        head=("classification_head.",),
        stem="patch_embed.proj.weight",
        side_stems=("patch_embed.proj.conv1.conv.weight",),
        stages=(("patch_embed.",), *((f"layers{i}.",) for i in (1, 2, 3, 4))),
        preprocessing=SWIN_PRETRAINING,
        settled=("merging",),
        unused=UNUSED_BY_ENCODER,
        correct=check_indices,
        complete=complete_swin_encoder,
        parts=parts,
    ),
)
