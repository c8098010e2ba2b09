"""Whole CTs through VoCo's networks, window by window: parts to embed, and labels on the CT's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.entry import Labels
from zoo.errors import OptionError
from zoo.networks.swin_unetr import SWIN_STEP
from zoo.networks.windows import WindowReader, slide_over
from zoo.transforms import VolumeTransform, place_volume

CROP = (64,) * 3
"""Voxels of the crops of the pre-training."""
WINDOW = (96,) * 3
"""Voxels of the windows of fine-tuning on BTCV."""
WINDOWS_AT_ONCE, OVERLAP = 4, 0.25


def window_reader(model: nn.Module, transform: VolumeTransform, stride: int | None) -> WindowReader:
    """Return what cuts CTs into windows of the size of the pre-training's crops, for `Entry.parts`.

    Raises:
        OptionError: The network gives VoCo's own embedding, which is of one crop.
    """
    if getattr(model, "embedding", "pooled") != "pooled":
        raise OptionError(
            "embedding='authors' is VoCo's embedding of one crop and no map that windows of a whole CT are put "
            "together from: embed crops in a program, or whole volumes with embedding='pooled'"
        )
    return WindowReader(transform, CROP, SWIN_STEP, stride)


def segment_volume(
    model: nn.Module, transform: Any, path: Path, batch_size: int | None = None, overlap: float | None = None
) -> Labels:
    """Labels of a CT on its own grid, and its matrix; what `Entry.segment` is.

    Args:
        model: The Swin UNETR, in eval mode.
        transform: From `zoo.load_transform`, of the weights.
        path: NIfTI, or a folder with a DICOM series.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too.

    Raises:
        InputContractError: The CT cannot be read, or cannot be what the network was trained on.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    placed = place_volume(path, transform)
    image = torch.from_numpy(placed.image)[None]
    logits = slide_over(model, image, WINDOW, **_settings(model, batch_size, OVERLAP if overlap is None else overlap))
    labels = logits.argmax(dim=-4).to(torch.uint8)
    return placed.at_home(labels.numpy()), placed.home.affine


def _settings(model: nn.Module, batch_size: int | None, overlap: float) -> dict[str, Any]:
    at_once = WINDOWS_AT_ONCE if batch_size is None else batch_size
    return {"batch_size": at_once, "overlap": overlap, "device": next(model.parameters()).device}
