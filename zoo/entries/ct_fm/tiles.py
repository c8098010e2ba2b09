"""Cuts whole CTs into tiles for CT-FM's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.entry import Parts
from zoo.transforms import VolumeTransform

TILE = (24, 128, 128)
"""Voxels of a tile, 72 x 128 x 128 mm, as the paper's features were taken (CT-FM, scripts/feature_extractor.py)."""


@dataclass(frozen=True)
class TileReader:
    """Cuts whole CTs into tiles, for `Entry.parts`."""

    transform: VolumeTransform

    def __call__(self, image: Any) -> Parts:
        """Return the tiles of a CT in a file, or a folder with a DICOM series, filled up with air."""
        return cut_tiles(self.transform(image), fill=self.transform.preprocessing.value_range[0])


def cut_tiles(volume: Tensor, *, fill: float = 0.0) -> Parts:
    """Return the tiles `(n, C, *TILE)` of a volume, each weighted by the voxels of the volume in it.

    Tiles lie side by side from the first voxel on; the last ones are filled up, as the authors' are, who keep a vector
    for each tile. Their mean is the zoo's.

    Args:
        volume: `(C, D, H, W)` as `zoo.load_transform` makes it.
        fill: What the last tiles are filled up with: air.
    """
    starts = tuple(product(*(range(0, side, step) for side, step in zip(volume.shape[1:], TILE, strict=True))))
    cuts = [_cut(volume, corner) for corner in starts]
    voxels = torch.tensor([cut[0].numel() for cut in cuts], dtype=torch.float64)
    tiles = torch.stack([_filled_up(cut, fill) for cut in cuts])
    return Parts((tiles,), voxels / volume[0].numel(), corners=starts)


def _cut(volume: Tensor, corner: tuple[int, ...]) -> Tensor:
    top, left, front = (slice(start, start + step) for start, step in zip(corner, TILE, strict=True))
    return volume[:, top, left, front]


def _filled_up(cut: Tensor, fill: float) -> Tensor:
    """Return a tile of full size, with `fill` behind the end of each axis."""
    lacking = [n for side, step in zip(cut.shape[:0:-1], TILE[::-1], strict=True) for n in (0, step - side)]
    return F.pad(cut, lacking, value=fill)
