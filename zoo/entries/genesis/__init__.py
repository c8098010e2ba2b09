"""Models Genesis and TransVW: one 3D U-Net that learnt from chest CT by restoring distorted cubes of it.

Zhou et al., MICCAI 2019 and Medical Image Analysis 67 (2021); Haghighi et al., IEEE TMI 40 (2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entries.genesis.convert import (
    CLASSIFIER,
    DECODER,
    ENCODER,
    HEAD,
    STEM,
    UNUSED,
    UNUSED_BY_ENCODER,
    UNUSED_BY_UNET,
    convert_encoder,
    convert_unet,
)
from zoo.entry import Config, Entry, Parts, Preprocessing, Windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

PREPROCESSING = Preprocessing(
    channels=("CT",),
    size=(),
    units="HU",
    orientation="LPS",
    window=(-1000.0, 1000.0),
    thickness=(0.6, 2.5),
    modality="CT",
)
"""What both were trained on: LUNA16's voxels as they are, in the order (x, y, z) of its files, x to the patient's left,
y to the back, z to the head (MrGiovanni/ModelsGenesis, infinite_generator_3D.py)."""

WINDOWS = Windows((64, 64, 32), overlap=0.5, gaussian=True)
"""The cubes of the training; their overlap, and how it is averaged, is the zoo's choice."""


def build_encoder(config: Config) -> nn.Module:
    """The contracting half of the U-Net: features `(N, 512)`, or logits `(N, num_classes)`."""
    from zoo.entries.genesis.model import GenesisEncoder

    layers = config.get("head_layers", 2)
    return GenesisEncoder(config["in_channels"], config["num_classes"], norm=config["norm"], head_layers=layers)


def build_unet(config: Config) -> nn.Module:
    """The U-Net `(N, C, x, y, z)`: without `num_classes` the restored volume, with it C logits, with 0 64 maps."""
    from zoo.entries.genesis.model import GenesisUNet3D

    return GenesisUNet3D(config["in_channels"], config["num_classes"], norm=config["norm"])


def parts(model: nn.Module, transform: Any, stride: int | None, _: str | Path | None) -> Callable[[Any], Parts]:
    """Cubes of 64 x 64 x 32 voxels of a whole CT, whose features are averaged: `(1, 512)`."""
    from zoo.entries.genesis.cubes import CubeReader

    return CubeReader(transform, alone=getattr(model, "norm", "") == "batch")


ENTRIES = (
    Entry(
        name="genesis-encoder",
        summary="3D U-Net's encoder for chest CT: pooled features (N, 512)",
        family="genesis",
        modalities=("ct",),
        anatomy="chest",
        dimension=3,
        parameters=7_027_776,
        num_features=512,
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 1, "norm": "volume"},
        required=ENCODER,
        head=(CLASSIFIER,),
        stem=STEM,
        stages=tuple((prefix,) for prefix in ENCODER),
        preprocessing=PREPROCESSING,
        settled=("norm",),
        free=("norm",),
        unused=UNUSED | UNUSED_BY_ENCODER,
        parts=parts,
        batch_size=8,
    ),
    Entry(
        name="genesis-unet3d",
        summary="3D U-Net for chest CT: restores the volume, or segments (N, num_classes, x, y, z)",
        family="genesis",
        modalities=("ct",),
        anatomy="chest",
        dimension=3,
        parameters=19_073_665,
        num_features=None,
        build=build_unet,
        convert=convert_unet,
        config={"num_classes": None, "in_channels": 1, "norm": "volume"},
        required=(*ENCODER, *DECODER),
        head=(HEAD,),
        stem=STEM,
        stages=tuple((prefix,) for prefix in (*ENCODER, *DECODER)),
        preprocessing=PREPROCESSING,
        settled=("norm", "num_classes"),
        free=("norm",),
        unused=UNUSED | UNUSED_BY_UNET,
        restores=True,
        windows=WINDOWS,
    ),
)
