"""Whole volumes through MONAI SSL's networks, window by window: classes, logits, features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zoo.entries.monai_ssl.contract import WINDOWS
from zoo.entry import Windows
from zoo.errors import OptionError
from zoo.networks.swin_encoder import SwinEncoder
from zoo.networks.vit import PatchEmbedding, ViTEncoder
from zoo.networks.vit_names import PATCH
from zoo.networks.windows import WindowReader, check_axes_of, pool_over
from zoo.tasks.sliding import find_classes, find_logits
from zoo.training.evaluate import judging
from zoo.transforms import VolumeTransform

ENCODERS = ("monai-ssl-vitb16", "monai-ssl-swinvit")
Shape: TypeAlias = tuple[int, ...]
WINDOWS_AT_ONCE, OVERLAP = WINDOWS.at_once, WINDOWS.overlap


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
    found = partial(find_classes, device=next(model.parameters()).device)
    return _of_each(found, model, volume, _windows(model, window, batch_size, overlap))


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
    found = partial(find_logits, device=next(model.parameters()).device)
    return _of_each(found, model, volume, _windows(model, window, batch_size, overlap))


def _of_each(found: Callable[..., Tensor], model: nn.Module, volume: Tensor, windows: Windows) -> Tensor:
    """Return what is found in a volume `(1, D, H, W)`, or in each of a batch."""
    check_axes_of(volume)
    with judging(model):
        if volume.ndim == 4:
            return found(model, volume, windows)
        return torch.stack([found(model, each, windows) for each in volume])


def _windows(model: nn.Module, window: int | Shape | None, batch_size: int, overlap: float) -> Windows:
    return replace(WINDOWS, size=_sides(model, window), at_once=batch_size, overlap=overlap)


def extract_features(
    model: nn.Module, volume: Tensor, *, batch_size: int = WINDOWS_AT_ONCE, overlap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the features of a whole volume: the map `(768, D/16, H/16, W/16)`, and their mean `(768,)`.

    How the windows are laid and put together: `zoo.networks.windows.pool_over`. Of a Swin transformer the map has
    cells of 32 voxels.

    Args:
        model: Encoder, on any device. It is in eval mode meanwhile.
        volume: `(1, D, H, W)` or `(N, 1, D, H, W)` as `zoo.load_transform` makes it, on any device; the features are
            put there too, with a first axis N for a batch.
        batch_size: Windows at once.
        overlap: Share of a window that the next one covers too, which must be whole tokens: 0, for example.

    Raises:
        InputContractError: The volume has another number of axes.
        OptionError: `overlap` or `batch_size` is out of its range, or the network is no encoder.
    """
    if not isinstance(model, (ViTEncoder, SwinEncoder)):
        raise OptionError(f"{type(model).__name__} is no encoder: expected one, {' or '.join(ENCODERS)}")
    with judging(model):
        return pool_over(
            model.forward_features,
            volume,
            window_of(model),
            step_of(model),
            batch_size=batch_size,
            overlap=overlap,
            device=next(model.parameters()).device,
        )


def window_reader(model: nn.Module, transform: VolumeTransform, stride: int | None) -> WindowReader:
    """Return what cuts CTs into the windows of a network, for `Entry.parts`."""
    return WindowReader(transform, window_of(model), step_of(model), stride)


def window_of(model: nn.Module) -> Shape:
    """Return the voxels of a window along each axis: those that a ViT was built for or given, else the published 96."""
    windows = [module.window for module in model.modules() if isinstance(module, PatchEmbedding)]
    return windows[0] if windows else WINDOWS.size


def _sides(model: nn.Module, window: int | Shape | None) -> Shape:
    if window is None:
        return window_of(model)
    return (window,) * 3 if isinstance(window, int) else tuple(window)


def step_of(model: nn.Module) -> int:
    """Voxels along a side of a cell of an encoder's map: 16 of a ViT's, 32 of a Swin transformer's."""
    return model.stride if isinstance(model, SwinEncoder) else PATCH
