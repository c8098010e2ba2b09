"""MONAI SSL: a 3D ViT that learnt from CT by restoring corrupted crops, and networks that segment with it.

The tutorial vit_unetr_ssl of Project-MONAI/tutorials, on MONAI's networks; its Swin UNETR beside them.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from zoo.entries.monai_ssl.names import (
    PATCH,
    RESTORING,
    SEGMENTING,
    STEM,
    UNUSED,
    UNUSED_BY_SWIN,
    VIT,
    complete_swin,
    complete_unetr,
    complete_vit,
    convert_autoencoder,
    convert_encoder,
    convert_swin,
    convert_unetr,
    cube_side,
    settle_stem,
)
from zoo.entries.monai_ssl.sizes import grid_of
from zoo.entry import Config, Entry, Preprocessing
from zoo.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

PRETRAINING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    spacing=(2.0, 2.0, 2.0),
    window=(-57.0, 164.0),
)
"""What the auto-encoder was trained on (vit_unetr_ssl/ssl_train.ipynb): axes as the file has them."""
FINE_TUNING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="RAS",
    spacing=(1.5, 1.5, 2.0),
    window=(-175.0, 250.0),
)
"""What segmentation is trained on (vit_unetr_ssl/ssl_finetune.ipynb): another window, other voxels."""

_BLOCKS = tuple((f"blocks.{i}.",) for i in range(11))
_VIT_STAGES = (("patch_embedding.",), *_BLOCKS, ("blocks.11.", "norm."))
_WIDTHS = {"img_size": 96, "hidden_size": 768, "mlp_dim": 3072, "num_heads": None}


def build_encoder(config: Config) -> nn.Module:
    """The ViT: features `(N, 768)`, or logits `(N, num_classes)`."""
    from zoo.entries.monai_ssl.model import vit_encoder

    return vit_encoder(**_vit_options(config), num_layers=config["num_layers"], num_classes=config["num_classes"])


def build_autoencoder(config: Config) -> nn.Module:
    """The network of the pre-training: the reconstruction `(N, 1, D, H, W)`.

    Raises:
        OptionError: Classes are asked for.
    """
    from zoo.entries.monai_ssl.model import vit_autoencoder

    if config["num_classes"]:
        raise OptionError(
            f"num_classes={config['num_classes']} for 'monai-ssl-vitautoenc', which restores the volume and has no "
            "classes: 'monai-ssl-vitb16' classifies, 'monai-ssl-unetr' segments, both from the same file"
        )
    channels = config.get("out_channels", 1)
    return vit_autoencoder(**_vit_options(config), num_layers=config["num_layers"], out_channels=channels)


def build_unetr(config: Config) -> nn.Module:
    """The UNETR: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps."""
    from zoo.entries.monai_ssl.model import unetr

    sizes = {"feature_size": config["feature_size"], "num_classes": config["num_classes"]}
    return unetr(**_vit_options(config), **sizes)


def build_swin(config: Config) -> nn.Module:
    """The Swin UNETR: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps."""
    from zoo.entries.monai_ssl.model import swin_unetr

    return swin_unetr(**config)


def _vit_options(config: Config) -> dict[str, Any]:
    """Arguments of a ViT. Its table is the file's, which other sizes of input interpolate."""
    size, positions = config["img_size"], config.get("positions")
    if positions is not None and positions != prod(grid_of(size)):
        size = PATCH * (cube_side(positions) or 0) or size
    return {key: config[key] for key in ("in_channels", *_WIDTHS)} | {"img_size": size}


ENTRIES = (
    Entry(
        name="monai-ssl-vitb16",
        summary="3D ViT-B/16 for CT: features (N, 768), the mean of its tokens",
        family="monai_ssl",
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 1, "num_layers": 12, **_WIDTHS},
        required=VIT,
        head=("classification_head.",),
        stem=STEM,
        stages=_VIT_STAGES,
        preprocessing=PRETRAINING,
        unused=UNUSED | RESTORING | SEGMENTING,
        correct=settle_stem,
        complete=complete_vit,
    ),
    Entry(
        name="monai-ssl-vitautoenc",
        summary="3D ViT-B/16 auto-encoder for CT: restores the volume",
        family="monai_ssl",
        build=build_autoencoder,
        convert=convert_autoencoder,
        config={"num_classes": None, "in_channels": 1, "num_layers": 12, **_WIDTHS},
        required=(*VIT, "conv3d_transpose.", "conv3d_transpose_1."),
        head=(),
        stem=STEM,
        stages=(*_VIT_STAGES, ("conv3d_transpose.", "conv3d_transpose_1.")),
        preprocessing=PRETRAINING,
        unused=UNUSED | SEGMENTING,
        correct=settle_stem,
        complete=complete_vit,
    ),
    Entry(
        name="monai-ssl-unetr",
        summary="3D UNETR on the ViT-B/16 for CT: segments (N, 14, D, H, W)",
        family="monai_ssl",
        build=build_unetr,
        convert=convert_unetr,
        config={"num_classes": 14, "in_channels": 1, "feature_size": 16, **_WIDTHS},
        required=("vit.",),
        head=("out.",),
        stem=f"vit.{STEM}",
        side_stems=("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        stages=(
            ("vit.patch_embedding.", "encoder1."),
            *(tuple(f"vit.{prefix}" for prefix in stage) for stage in _VIT_STAGES[1:]),
            ("encoder2.", "encoder3.", "encoder4.", "decoder5."),
            *((f"decoder{i}.",) for i in (4, 3, 2)),
        ),
        preprocessing=FINE_TUNING,
        unused=UNUSED | RESTORING,
        correct=settle_stem,
        complete=complete_unetr,
    ),
    Entry(
        name="monai-ssl-swinunetr",
        summary="3D Swin UNETR for CT: segments (N, 14, D, H, W)",
        family="monai_ssl",
        build=build_swin,
        convert=convert_swin,
        config={"num_classes": 14, "in_channels": 1, "feature_size": 48},
        required=("swinViT.",),
        head=("out.",),
        stem="swinViT.patch_embed.proj.weight",
        side_stems=("encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight"),
        stages=(
            ("swinViT.patch_embed.", "encoder1."),
            *((f"swinViT.layers{i}.", f"encoder{i + 1}.") for i in (1, 2, 3)),
            ("swinViT.layers4.", "encoder10."),
            *((f"decoder{i}.",) for i in (5, 4, 3, 2, 1)),
        ),
        preprocessing=FINE_TUNING,
        unused=UNUSED_BY_SWIN,
        complete=complete_swin,
    ),
)
