"""Changes an image at random, and its label map in the same way, as the entry's `Augment` allows.

Every draw is from PyTorch's generator, so what `zoo.training.data.seeded` seeds decides what comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.entry import Augment


@dataclass(frozen=True)
class Change:
    """One draw: what is done to an image and, but for the values, to its labels."""

    mirrored: tuple[int, ...]
    """Axes of space."""
    matrix: Tensor
    """(d, d + 1), float32, in pixels around the middle: where the value of a pixel is taken from."""
    gain: float
    offset: float
    """In standard deviations of the image."""

    def of_image(self, image: Tensor) -> Tensor:
        """Return an image `(C, *space)` changed, by linear interpolation; beyond its border its last values go on."""
        moved = _moved(image.flip([axis + 1 for axis in self.mirrored]), self.matrix, "bilinear")
        return moved * self.gain + self.offset * image.std()

    def of_labels(self, labels: Tensor) -> Tensor:
        """Return a label map `(*space)` or `(C, *space)` changed by the same geometry, each pixel the nearest one's."""
        first = labels.ndim - len(self.matrix)
        maps = labels.flip([axis + first for axis in self.mirrored]).reshape(-1, *labels.shape[first:])
        return _moved(maps.float(), self.matrix, "nearest").to(labels.dtype).view(labels.shape)


def draw(augment: Augment, size: tuple[int, ...]) -> Change:
    """Draw a change for images of a size `(*space)`."""
    dims = len(size)
    mirrored = tuple(axis for axis in augment.mirrors if torch.rand(()) < 0.5)
    angle, zoom = math.radians(augment.degrees) * _even(), 1 + augment.zoom * _even()
    shifts = [augment.shift * side * _even() for side in size]
    gain, offset = 1 + augment.gain * _even(), augment.offset * _even()
    matrix = torch.eye(dims)
    i, j = augment.plane
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    matrix = torch.cat([matrix / zoom, torch.tensor(shifts)[:, None]], dim=1)
    return Change(mirrored, matrix, gain, offset)


def augmented(augment: Augment, image: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return an image and its labels, both changed by one draw.

    Args:
        augment: What the entry allows.
        image: float32 `(C, *space)`, as the transform gives it.
        labels: `(*space)` or `(C, *space)`; None for none.
    """
    change = draw(augment, tuple(image.shape[1:]))
    return change.of_image(image), None if labels is None else change.of_labels(labels)


def _even() -> float:
    """A draw between -1 and 1."""
    return float(torch.rand(()) * 2 - 1)


def _moved(maps: Tensor, matrix: Tensor, mode: str) -> Tensor:
    """Take the values of maps `(C, *space)` where the matrix says."""
    dims = len(matrix)
    # PyTorch counts from -1 to 1 along each side, the last axis first.
    half = torch.tensor(maps.shape[1:], dtype=torch.float32) / 2
    scaled = torch.cat([matrix[:, :dims] * half, matrix[:, dims:]], dim=1) / half[:, None]
    order = list(reversed(range(dims)))
    theta = scaled[order][:, [*order, dims]]
    grid = F.affine_grid(theta[None], [1, len(maps), *maps.shape[1:]], align_corners=False)
    return F.grid_sample(maps[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
