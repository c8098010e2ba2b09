"""Local regions of a feature map: their places, and the negatives of each.

Five rows and five columns of places, from the first to the last of a map; a code "rc" is the place in row r, column c.
Tables and spacing are those of krishnabits001/domain_specific_cl, models.py (`net_local_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zoo.errors import InputContractError, OptionError

PLACES = ("00", "02", "04", "20", "22", "24", "40", "42", "44", "11", "13", "31", "33")
"""The compared regions in order; layouts of nine have the first nine."""

_NINE = (
    "02 20 22 04 40",
    "00 04 20 22 24",
    "00 02 22 24 44",
    "00 02 22 40 42",
    "00 02 20 24 42",
    "02 04 22 42 44",
    "00 20 22 42 44",
    "20 22 24 40 44",
    "04 22 24 40 42",
)
_THIRTEEN_OF_1 = (
    "02 20 22 11 13",
    "00 04 22 11 13",
    "02 22 24 31 13",
    "00 22 40 11 31",
    "11 13 31 33 20",
    "04 22 44 13 33",
    "20 22 42 31 11",
    "22 40 44 31 33",
    "22 24 42 33 31",
    "00 02 20 22 13",
    "02 04 22 24 33",
    "20 22 40 02 11",
    "22 24 42 44 13",
)
_THIRTEEN_OF_3 = (
    "02 11 12 20 21",
    "00 04 11 13 22",
    "02 12 13 23 24",
    "00 11 22 40 31",
    "11 13 31 33 20",
    "04 22 44 13 33",
    "20 21 42 31 32",
    "22 40 44 31 33",
    "23 24 42 33 32",
    "00 02 20 22 13",
    "02 04 11 22 24",
    "20 22 40 42 33",
    "22 24 42 44 31",
)
NEGATIVES = {(1, 9): _NINE, (3, 9): _NINE, (1, 13): _THIRTEEN_OF_1, (3, 13): _THIRTEEN_OF_3}
"""By side and number of the regions: for each region the places of its negatives, in order."""
LISTED = 5


@dataclass(frozen=True)
class Layout:
    """Places that are compared, for maps of any size.

    Raises:
        OptionError: There is no such layout.
    """

    region_size: int
    n_regions: int
    n_negatives: int

    def __post_init__(self) -> None:
        if (self.region_size, self.n_regions) not in NEGATIVES:
            raise OptionError(
                f"region_size={self.region_size!r}, n_regions={self.n_regions!r}: regions of 1 or 3 pixels a side, "
                "9 or 13 of them, are expected"
            )
        if self.n_negatives not in range(1, LISTED + 1):
            raise OptionError(f"n_negatives={self.n_negatives!r}: 1 to {LISTED} are expected")

    @cached_property
    def lists(self) -> list[list[str]]:
        """Codes of each region's negatives."""
        return [line.split()[: self.n_negatives] for line in NEGATIVES[self.region_size, self.n_regions]]

    @cached_property
    def codes(self) -> list[str]:
        """All places in use: the compared regions first, then those that are only negatives."""
        compared = PLACES[: self.n_regions]
        return list(compared) + sorted({code for line in self.lists for code in line} - set(compared))

    def is_negative(self) -> Tensor:
        """Boolean (R, U): whether each of the U places in use is a negative of each of the R compared regions."""
        return torch.tensor([[code in line for code in self.codes] for line in self.lists])

    def pixels(self, height: int, width: int) -> Tensor:
        """Indices (U, region_size^2) into a flattened map: each place's pixels, row by row.

        Raises:
            InputContractError: The map is so small that places would coincide.
        """
        rows, columns = starts(height, self.region_size), starts(width, self.region_size)
        first = torch.tensor([rows[int(code[0])] * width + columns[int(code[1])] for code in self.codes])
        steps = torch.arange(self.region_size)
        return first[:, None] + (steps[:, None] * width + steps).flatten()


def starts(side: int, region_size: int) -> list[int]:
    """First pixels of the five rows (or columns) of regions along a side of a map.

    Regions of 3 x 3 never reach the last pixel: the last begins 4 before the end, not 3, as published.

    Raises:
        InputContractError: The side is too short for five of them.
    """
    last = side - 1 if region_size == 1 else side - region_size - 1
    if last < 4:
        raise InputContractError(
            f"a map of {side} pixels a side has no five places for regions of {region_size} x {region_size}: at least "
            f"{side - last + 4} pixels are expected. Take larger slices, or more blocks of the decoder"
        )
    return [last * k // 4 for k in range(5)]
