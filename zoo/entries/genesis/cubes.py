"""Features of a whole CT: the mean over cubes of the size that the network was trained on.

The authors publish features of cubes alone; how those of a scan are made is the zoo's choice. Its whole volume at once
would be normalised by statistics of body, table and air together, of which the network has seen nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.entry import Parts, Preprocessing
from zoo.errors import InputContractError
from zoo.transforms import VolumeTransform, place_volume

CUBE = (64, 64, 32)
"""Voxels of a cube along x, y and z (MrGiovanni/ModelsGenesis, pytorch/config.py)."""
AIR = -950.0
"""HU: the mean of a cube of lung is between -900 and -600, that of air around the patient near -1000."""


@dataclass(frozen=True)
class CubeReader:
    """Cuts whole CTs into cubes, for `Entry.parts`.

    Its voxels above the window's lower end are in a box. As few cubes as cover that box, evenly apart, are taken, a
    side shorter than a cube is filled up with air on both ends alike, and cubes of air alone are left out.
    """

    transform: VolumeTransform
    alone: bool = False
    """Whether cubes must not share a batch: with `norm="batch"`, for nothing ties a cube to the next."""

    def __call__(self, image: Any) -> Parts:
        """Return the cubes `(n, 1, *CUBE)` of a CT in a file, or a folder with a DICOM series, all counting alike.

        Raises:
            InputContractError: The CT cannot be read, cannot be what the network was trained on, or is air alone.
        """
        placed = torch.from_numpy(place_volume(image, self.transform).image)
        corners, cubes = [], []
        for corner, cube in _cubes(placed, self.transform.preprocessing):
            corners.append(corner)
            cubes.append(cube)
        if not cubes:
            raise InputContractError(f"{image} holds nothing but air, below {AIR:g} HU: a CT of the chest is expected")
        weights = torch.full((len(cubes),), 1 / len(cubes), dtype=torch.float64)
        return Parts((torch.stack(cubes)[:, None],), weights, self.alone, tuple(corners))


def _cubes(image: Tensor, contract: Preprocessing) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """Yield the cubes of a volume `(x, y, z)` that hold more than air, with their first voxels.

    What fills them up does not count.
    """
    least, _ = contract.value_range
    inside = prod(map(min, image.shape, CUBE))
    lacking = [max(0, whole - side) for side, whole in zip(image.shape, CUBE, strict=True)]
    margins = [n for short in reversed(lacking) for n in (short // 2, short - short // 2)]
    image = F.pad(image, margins, value=least)
    limit = (_scaled(AIR, contract) - least) * inside
    starts = [_starts(side, whole) for side, whole in zip(image.shape, CUBE, strict=True)]
    for x, y, z in product(*starts):
        cube = image[x : x + CUBE[0], y : y + CUBE[1], z : z + CUBE[2]]
        if float((cube - least).sum()) > limit:
            yield (x, y, z), cube


def _starts(side: int, whole: int) -> list[int]:
    """First voxels of as few parts as cover a side, evenly apart."""
    gaps = -(-side // whole) - 1
    return [round(i * (side - whole) / gaps) for i in range(gaps)] + [side - whole]


def _scaled(value: float, contract: Preprocessing) -> float:
    """What the transform makes of a value; of one below the window its lower end."""
    (low, high), (least, most) = contract.window or contract.value_range, contract.value_range
    return least + max(0.0, value - low) * (most - least) / (high - low)
