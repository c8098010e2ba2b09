"""Crops of images with their masks, around structures and beside them, changed at random; and whole images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from zoo.entry import Augment
from zoo.tasks.augment import augmented
from zoo.tasks.masked import MaskedImages, Stored
from zoo.training.data import Key, seeded

ON_STRUCTURE = 0.5
"""Share of crops, or slices, that are drawn around a structure; the others are drawn beside all structures."""


class Crops(Dataset[dict[str, Tensor]]):
    """Data set of training: item `(pass, index)` is `image` (K, C, *size) float32 and `label` (K, 1, *size) uint8.

    K crops of one image, or K slices of one volume, each changed at random. Half of the draws are around structures,
    the others beside them. An image smaller than a crop is filled up with 0 on both sides, which is background.

    Args:
        images: Of all cases.
        rows: Positions of the cases of this part of the data.
        size: Sides of a crop; empty for slices.
        count: K.
        augment: How they may be changed; None to leave them as they are.
        seed: Draws follow from (seed, pass, index).
    """

    def __init__(
        self,
        images: MaskedImages,
        rows: Sequence[int],
        *,
        size: tuple[int, ...],
        count: int,
        augment: Augment | None,
        seed: int,
    ) -> None:
        self.images, self.rows, self.size = images, rows, size
        self.count, self.augment, self.seed = count, augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        stored = self.images.open(self.rows[index])
        with seeded(self.seed, data_pass, index):
            drawn = [self._changed(*self._draw(stored)) for _ in range(self.count)]
        return {
            "image": torch.stack([image for image, _ in drawn]),
            "label": torch.stack([label for _, label in drawn])[:, None],
        }

    def _draw(self, stored: Stored) -> tuple[Tensor, Tensor]:
        first, other = (stored.on, stored.beside) if torch.rand(()) < ON_STRUCTURE else (stored.beside, stored.on)
        candidates = first if len(first) else other
        chosen = int(candidates[int(torch.randint(len(candidates), ()))]) if len(candidates) else 0
        if self.images.of_slices:
            image, label = stored.image[chosen], stored.label[chosen]
        else:
            box = box_around(np.unravel_index(chosen, stored.label.shape), stored.label.shape, self.size)
            image, label = stored.image[:, *box], stored.label[box]
        cut = torch.from_numpy(np.array(image, np.float32)), torch.from_numpy(self.images.numbers(label))
        return cut if self.images.of_slices else (filled_up(cut[0], self.size), filled_up(cut[1][None], self.size)[0])

    def _changed(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.augment is None:
            return image, label
        changed, labels = augmented(self.augment, image, label)
        assert labels is not None
        return changed, labels


def box_around(centre: Sequence[Any], shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the box of a size around a voxel, moved until it lies inside as far as there is room."""
    starts = [
        min(max(int(at) - side // 2, 0), max(whole - side, 0))
        for at, whole, side in zip(centre, shape, size, strict=True)
    ]
    return tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))


def filled_up(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps `(C, *size)`: those of smaller ones, with 0 on both sides."""
    lacking = [max(0, side - own) for side, own in zip(size, maps.shape[1:], strict=True)]
    around = [n for short in reversed(lacking) for n in (short // 2, short - short // 2)]
    return F.pad(maps, around) if any(around) else maps


class Whole(Dataset[dict[str, Tensor]]):
    """Data set of validation: item `(pass, index)` is `image` and `label`, as `Stored` has them, in class numbers."""

    def __init__(self, images: MaskedImages, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        stored = self.images.open(self.rows[key[1]])
        image = torch.from_numpy(np.array(stored.image, np.float32))
        return {"image": image, "label": torch.from_numpy(self.images.numbers(stored.label))}


class Positions(Dataset[dict[str, Tensor]]):
    """Data set of the test: item `(pass, index)` is `row`, the position of a case, which is read from its files."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {"row": torch.tensor(self.rows[key[1]])}
