"""Features of whole CTs by CT-FM's encoder, tile by tile."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import OptionError
from zoo.training.evaluate import judging

TILE = (24, 128, 128)
"""Voxels of a tile, 72 x 128 x 128 mm, as the paper's features were taken (CT-FM, scripts/feature_extractor.py)."""
TILES_AT_ONCE = 4


def embed_volume(model: nn.Module, transform: Any, path: Path, batch_size: int | None = None) -> Tensor:
    """Return the features of a CT, `(1, 512)`; what `Entry.embed` is.

    Args:
        model: The encoder, on any device.
        transform: From `zoo.load_transform`, of the weights.
        path: NIfTI, or a folder with a DICOM series.
        batch_size: Tiles at once.

    Raises:
        InputContractError: The CT cannot be read, or cannot be what the network was trained on.
        OptionError: `batch_size` is below 1.
    """
    volume = transform(path)
    fill = transform.preprocessing.value_range[0]
    return mean_over_tiles(model, volume, fill=fill, batch_size=TILES_AT_ONCE if batch_size is None else batch_size)


def mean_over_tiles(model: nn.Module, volume: Tensor, *, fill: float = 0.0, batch_size: int = TILES_AT_ONCE) -> Tensor:
    """Return the mean `(1, D)` of the features of a volume's tiles, weighted by their voxels of the volume.

    Tiles lie side by side from the first voxel on; the last ones are filled up, as the authors' are, who keep a vector
    for each tile. Their mean is the zoo's.

    Args:
        model: The encoder, on any device. It is in eval mode meanwhile.
        volume: `(C, D, H, W)` as `zoo.load_transform` makes it.
        fill: What the last tiles are filled up with: air.
        batch_size: Tiles at once.

    Raises:
        OptionError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least 1 is expected")
    device = next(model.parameters()).device
    starts = list(product(*(range(0, side, step) for side, step in zip(volume.shape[1:], TILE, strict=True))))
    total = torch.zeros((), dtype=torch.float64)
    with judging(model):
        for first in range(0, len(starts), batch_size):
            cuts = [_cut(volume, corner) for corner in starts[first : first + batch_size]]
            weights = torch.tensor([cut[0].numel() for cut in cuts], dtype=torch.float64)
            found = model(torch.stack([_filled_up(cut, fill) for cut in cuts]).to(device))
            total = total + weights @ found.double().cpu()
    return (total / volume[0].numel()).float()[None]


def _cut(volume: Tensor, corner: tuple[int, ...]) -> Tensor:
    top, left, front = (slice(start, start + step) for start, step in zip(corner, TILE, strict=True))
    return volume[:, top, left, front]


def _filled_up(cut: Tensor, fill: float) -> Tensor:
    """Return a tile of full size, with `fill` behind the end of each axis."""
    lacking = [n for side, step in zip(cut.shape[:0:-1], TILE[::-1], strict=True) for n in (0, step - side)]
    return F.pad(cut, lacking, value=fill)
