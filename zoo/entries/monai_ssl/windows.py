"""Whole volumes through MONAI SSL's networks, window by window: classes, logits, features."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.monai_ssl.convert import PATCH
from zoo.entries.monai_ssl.model import PatchEmbedding
from zoo.entries.monai_ssl.sizes import PUBLISHED_SIZE
from zoo.errors import InputContractError, OptionError
from zoo.training.evaluate import judging

ENCODER = "monai-ssl-vitb16"
Shape: TypeAlias = tuple[int, ...]
WINDOWS_AT_ONCE, OVERLAP = 4, 0.25
"""Of segmentation, as published (Project-MONAI/tutorials, vit_unetr_ssl, ssl_finetune.ipynb)."""


def segment(
    model: nn.Module,
    volume: Tensor,
    *,
    window: int | Shape | None = None,
    batch_size: int = WINDOWS_AT_ONCE,
    overlap: float = OVERLAP,
) -> Tensor:
    """Return the class of each voxel of a volume, uint8 `(D, H, W)`, or `(N, D, H, W)` of a batch.

    The arguments are those of `slide`.
    """
    logits = slide(model, volume, window=window, batch_size=batch_size, overlap=overlap)
    return logits.argmax(dim=-4).to(torch.uint8)


def slide(
    model: nn.Module,
    volume: Tensor,
    *,
    window: int | Shape | None = None,
    batch_size: int = WINDOWS_AT_ONCE,
    overlap: float = OVERLAP,
) -> Tensor:
    """Return the logits of a whole volume, `(C, D, H, W)`, or `(N, C, D, H, W)` of a batch.

    Windows overlap, and where they do their logits are averaged; a volume smaller than a window is padded with 0. The
    defaults are the published ones (Project-MONAI/tutorials, vit_unetr_ssl, ssl_finetune.ipynb).

    Args:
        model: UNETR or Swin UNETR, on any device. It is in eval mode meanwhile.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)` as `zoo.load_transform` makes it, on any device, to which
            the logits are moved.
        window: Voxels of a window along each axis; None for `window_of` the network.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, from 0 to below 1.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range.
    """
    return _slide(model, model, volume, _sides(model, window), batch_size, overlap)


def extract_features(
    model: nn.Module, volume: Tensor, *, batch_size: int = WINDOWS_AT_ONCE, overlap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the features of a whole volume: the map `(768, D/16, H/16, W/16)`, and their mean `(768,)`.

    The volume is padded with 0, on both sides alike, to whole tokens of 16 voxels and to at least one window; the map
    is that of the padded volume. The mean is over the tokens that hold a part of the volume. Where windows overlap, as
    the last one of an axis does, features are averaged. For one window both are the encoder's own.

    Args:
        model: ViT encoder, on any device. It is in eval mode meanwhile.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)` as `zoo.load_transform` makes it, on any device, to which
            the features are moved; for a batch they have a first axis N.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, in whole tokens: 0 or 0.5, for example.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range, or the encoder has no `forward_features`.
    """
    _check_axes(volume)
    features = getattr(model, "forward_features", None)
    if features is None:
        raise OptionError(f"{type(model).__name__} has no forward_features: expected the encoder, {ENCODER}")
    window = window_of(model)
    if uneven := [side for side in window if int(side * (1 - overlap)) % PATCH]:
        raise OptionError(
            f"overlap={overlap}: windows of {uneven[0]} voxels would begin inside a token of {PATCH}; 0 or 0.5 are "
            "expected, for example"
        )
    sides = tuple(volume.shape[-3:])
    before, after = margins(sides, window)
    padding = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    found = _slide(model, features, F.pad(volume, padding), window, batch_size, overlap)
    d, h, w = (slice(low // PATCH, -(-(low + side) // PATCH)) for low, side in zip(before, sides, strict=True))
    return found, found[..., d, h, w].mean(dim=(-3, -2, -1))


def window_of(model: nn.Module) -> Shape:
    """Return the voxels of a window along each axis: those that a ViT was built for or given, else the published 96."""
    windows = [module.window for module in model.modules() if isinstance(module, PatchEmbedding)]
    return windows[0] if windows else (PUBLISHED_SIZE,) * 3


def _sides(model: nn.Module, window: int | Shape | None) -> Shape:
    if window is None:
        return window_of(model)
    return (window,) * 3 if isinstance(window, int) else tuple(window)


def margins(sides: Shape, window: Shape) -> tuple[Shape, Shape]:
    """Voxels of padding before and after each axis that fill a volume up to whole tokens and to at least one window."""
    lacking = [max(whole, -(-side // PATCH) * PATCH) - side for side, whole in zip(sides, window, strict=True)]
    before = tuple(n // 2 for n in lacking)
    return before, tuple(n - low for n, low in zip(lacking, before, strict=True))


def _slide(model: nn.Module, predict: Any, volume: Tensor, window: Shape, batch_size: int, overlap: float) -> Tensor:
    """Outputs of `predict` for the windows of a volume, stitched together; overlapping parts are averaged."""
    _check_axes(volume)
    if not 0 <= overlap < 1 or batch_size < 1:
        raise OptionError(
            f"overlap={overlap}, batch_size={batch_size}: from 0 to below 1, and at least 1, are expected"
        )
    batch = volume if volume.ndim == 5 else volume[None]
    with judging(model):
        found: Any = sliding_window_inference(
            batch,
            window,
            batch_size,
            predict,
            overlap=overlap,
            sw_device=next(model.parameters()).device,
            device=batch.device,
        )
    stitched: Tensor = found if volume.ndim == 5 else found[0]
    return stitched


def _check_axes(volume: Tensor) -> None:
    if volume.ndim not in (4, 5):
        raise InputContractError(
            f"the volume has shape {tuple(volume.shape)}: (1, D, H, W) or a batch (N, 1, D, H, W) is expected"
        )
