"""Features of a whole CT: the mean over cubes of the size that the network was trained on.

The authors publish features of cubes alone; how those of a scan are made is the zoo's choice. Its whole volume at once
would be normalised by statistics of body, table and air together, of which the network has seen nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.transforms import place_volume

CUBE = (64, 64, 32)
"""Voxels of a cube along x, y and z (MrGiovanni/ModelsGenesis, pytorch/config.py)."""
CUBES_AT_ONCE = 8
AIR = -950.0
"""HU: the mean of a cube of lung is between -900 and -600, that of air around the patient near -1000."""


def features_of(model: nn.Module, transform: Any, path: Path, batch_size: int | None = None) -> Tensor:
    """Return the features of a CT, `(512,)`, on the network's device.

    Its voxels above the window's lower end are in a box. As few cubes as cover that box, evenly apart, are taken, a
    side shorter than a cube is filled up with air on both ends alike, and cubes of air alone are left out.

    Args:
        model: The encoder, in eval mode.
        transform: From `zoo.load_transform`, of its weights.
        path: NIfTI, or a folder with a DICOM series.
        batch_size: Cubes at once; with `norm="batch"` it is always one, for nothing ties a cube to the next.

    Raises:
        InputContractError: The CT cannot be read, cannot be what the network was trained on, or is air alone.
    """
    contract = transform.preprocessing
    image = torch.from_numpy(place_volume(path, transform).image)
    at_once = 1 if getattr(model, "norm", "") == "batch" else batch_size or CUBES_AT_ONCE
    device = next(model.parameters()).device
    cubes, rows = _cubes(image, contract), []
    while part := list(islice(cubes, at_once)):
        rows.append(model(torch.stack(part)[:, None].to(device)))
    if not rows:
        raise InputContractError(f"{path} holds nothing but air, below {AIR:g} HU: a CT of the chest is expected")
    return torch.cat(rows).mean(dim=0)


def _cubes(image: Tensor, contract: Preprocessing) -> Iterator[Tensor]:
    """Yield the cubes of a volume `(x, y, z)` that hold more than air; what fills them up does not count."""
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
            yield cube


def _starts(side: int, whole: int) -> list[int]:
    """First voxels of as few parts as cover a side, evenly apart."""
    gaps = -(-side // whole) - 1
    return [round(i * (side - whole) / gaps) for i in range(gaps)] + [side - whole]


def _scaled(value: float, contract: Preprocessing) -> float:
    """What the transform makes of a value; of one below the window its lower end."""
    (low, high), (least, most) = contract.window or contract.value_range, contract.value_range
    return least + max(0.0, value - low) * (most - least) / (high - low)
