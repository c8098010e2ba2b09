"""CT-FM: a foundation model for CT (Pai et al., 2025) that learnt by telling patches of one scan apart.

MONAI's SegResEncoder for features, and SegResNetDS on it, which segments 117 structures of the whole body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entries.ct_fm.contract import ENCODER_INPUT, SEGMENTER_INPUT, WINDOWS
from zoo.entries.ct_fm.convert import (
    HEADS,
    STEM,
    UNTRAINED_DECODER,
    UNUSED_BY_ENCODER,
    UNUSED_BY_SEGMENTER,
    complete_encoder,
    complete_segmenter,
    convert_encoder,
    convert_segmenter,
    note_untrained,
)
from zoo.entry import Augment, Config, Entry, Labels, Parts
from zoo.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

_STAGES = (("conv_init.", "layers.0."), *((f"layers.{level}.",) for level in range(1, 5)))


def build_encoder(config: Config) -> nn.Module:
    """The encoder: features `(N, 512)`, or logits `(N, num_classes)`."""
    from zoo.entries.ct_fm.model import CTFMEncoder

    return CTFMEncoder(config["in_channels"], config["num_classes"])


def build_segmenter(config: Config) -> nn.Module:
    """The segmenter: logits `(N, num_classes, D, H, W)`; with 0 classes the decoder's maps.

    Raises:
        OptionError: An option has a value that it cannot have.
    """
    from zoo.entries.ct_fm.model import CTFMSegmenter

    if config["decoder"] not in (None, UNTRAINED_DECODER):
        raise OptionError(
            f"decoder={config['decoder']!r}: expected {UNTRAINED_DECODER!r}, of weights whose decoder was never trained"
        )
    return CTFMSegmenter(config["in_channels"], config["num_classes"], config["dsdepth"])


def parts(model: nn.Module, transform: Any, stride: int | None, _: str | Path | None) -> Callable[[Any], Parts]:
    """Tiles of a whole CT, each weighted by how much of the CT is in it: features `(1, 512)`."""
    from zoo.entries.ct_fm.tiles import TileReader

    return TileReader(transform)


def segment_volume(
    model: nn.Module, transform: Any, path: Any, batch_size: int | None, overlap: float | None
) -> Labels:
    """Labels of a whole CT on its own grid, and its matrix: windows that overlap, weighted by a Gaussian."""
    from zoo.entries.ct_fm.segment import segment_volume as segment

    return segment(model, transform, path, batch_size, overlap)


ENTRIES = (
    Entry(
        name="ct-fm-segresenc",
        summary="3D SegResNet encoder for CT: features (N, 512), the mean of its last map",
        family="ct_fm",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=77_760_992,
        num_features=512,
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 1},
        required=("conv_init.", "layers."),
        head=("classifier.",),
        stem=STEM,
        stages=_STAGES,
        preprocessing=ENCODER_INPUT,
        augment=Augment(plane=(1, 2)),
        unused=UNUSED_BY_ENCODER,
        complete=complete_encoder,
        parts=parts,
    ),
    Entry(
        name="ct-fm-segresnet",
        summary="3D SegResNet for CT: segments the whole body (N, 118, D, H, W)",
        family="ct_fm",
        modalities=("ct",),
        anatomy="whole body",
        dimension=3,
        parameters=87_220_344,
        num_features=None,
        build=build_segmenter,
        convert=convert_segmenter,
        config={"num_classes": 118, "in_channels": 1, "dsdepth": 4, "decoder": None},
        required=("encoder.",),
        head=HEADS,
        stem=f"encoder.{STEM}",
        stages=(
            *(tuple(f"encoder.{prefix}" for prefix in stage) for stage in _STAGES),
            *((f"up_layers.{level}.",) for level in range(4)),
        ),
        preprocessing=SEGMENTER_INPUT,
        augment=Augment(plane=(1, 2)),
        unused=UNUSED_BY_SEGMENTER,
        correct=note_untrained,
        complete=complete_segmenter,
        windows=WINDOWS,
        segment=segment_volume,
    ),
)
