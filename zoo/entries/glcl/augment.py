"""GLCL's random changes of slices: views for pre-training, and images with their labels for fine-tuning.

Families and ranges of krishnabits001/domain_specific_cl (utils.py, train_model/). Lengths in pixels are those of the
published slices and grow with the side S. All draws come from the generator that is passed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

PUBLISHED_SIZE = 192
"""Side of the slices for which the box of a view is given."""
BOX, FIRST, LAST = 100, 10, 69
"""Side of a view's box, and the bounds of its first row and column."""
BRIGHTNESS, CONTRAST = 0.3, 0.3
"""Largest change of a view: x + d, then (x - mean) (1 + c) + mean."""
RANGE = (0.0, 1.5)
"""Values that a view is clipped to."""
TURN, SCALE, FLIP, EIGHTHS = 15.0, 0.05, 0.5, 8
"""Largest turn in degrees; largest relative scaling; probability of a flip in its option; turns by 45 degrees."""
FEW = 1e-3
"""A slice without values above this one is left alone."""
BEND = 5.0
"""Deviation in pixels of the shifts that bend a slice, at 3 x 3 places."""
NUDGE, STRETCH = 0.1, 0.2
"""Largest changes of brightness and contrast in fine-tuning."""


def crop_views(images: Tensor, rng: np.random.Generator, box: int = 0) -> Tensor:
    """Return a random box of each slice (N, 1, S, S), enlarged to S x S.

    Args:
        images: Slices.
        rng: Source of the draws.
        box: Side of the box in pixels, 0 for 100 of 192. Its first row and column are independent, uniform between 10
            and 69 of 192, as far as the box then lies inside.
    """
    side = images.shape[-1]
    box = box or round(BOX * side / PUBLISHED_SIZE)
    first, last = (min(round(place * side / PUBLISHED_SIZE), side - box) for place in (FIRST, LAST))
    corners = rng.integers(first, last, size=(len(images), 2), endpoint=True)
    boxes = [image[:, r : r + box, c : c + box] for image, (r, c) in zip(images, corners, strict=True)]
    return F.interpolate(torch.stack(boxes), size=(side, side), mode="bilinear", align_corners=False)


def change_views(images: Tensor, rng: np.random.Generator, calls: Tensor | None = None) -> Tensor:
    """Change brightness, then contrast of slices (N, 1, S, S), and clip them to 0 to 1.5.

    Args:
        images: Slices.
        rng: Source of the draws.
        calls: (N,) whole numbers, for the behaviour of the authors' code in TensorFlow: slices of one number share one
            draw, and contrast changes by as much as brightness, because both operations have the same seed. By default
            every slice has two draws of its own.
    """
    count = len(images) if calls is None else int(calls.max()) + 1
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS, count)
    contrast = rng.uniform(-CONTRAST, CONTRAST, count) if calls is None else brightness
    shift, stretch = (torch.from_numpy(d).to(images)[:, None, None, None] for d in (brightness, contrast))
    if calls is not None:
        shift, stretch = shift[calls], stretch[calls]
    changed = images + shift
    mean = changed.mean((1, 2, 3), keepdim=True)
    return ((changed - mean) * (1 + stretch) + mean).clamp(*RANGE)


def change_pose(image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turn, scale, flip or leave a slice and its labels, in one of five ways that are equally likely.

    Turns by up to 15 degrees, or by a multiple of 45; scales by 0.95 to 1.05; a flip along the second axis, with
    probability 0.5. Pixels from outside are 0.

    Args:
        image: (1, S, S); left alone where nothing is above 0.001.
        label: (S, S) whole numbers, as in the result.
        rng: Source of the draws.
    """
    option = int(rng.integers(5))
    angle, scale, flip = rng.uniform(-TURN, TURN), rng.uniform(1 - SCALE, 1 + SCALE), rng.random() < FLIP
    eighth = int(rng.integers(EIGHTHS))
    if option == 4 or image.max() <= FEW:
        return image, label
    if option == 2:
        return (image.flip(2), label.flip(1)) if flip else (image, label)
    side = image.shape[-1]
    if option == 1:
        matrix = np.eye(2) * side / round(side * round(scale, 2))
    else:
        radians = np.deg2rad(angle if option == 0 else 45 * eighth)
        matrix = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    places = torch.from_numpy(matrix.astype(np.float32)) @ _places(side)
    places = places.view(2, side, side)
    moved = _sample(image, places, "bilinear", "zeros")
    return moved, _sample(label[None].float(), places, "nearest", "zeros")[0].to(label.dtype)


def bend(image: Tensor, label: Tensor, rng: np.random.Generator, deviation: float = BEND) -> tuple[Tensor, Tensor]:
    """Shift the pixels of a slice by two smooth random fields, bilinearly; beyond the border the last pixel goes on.

    Args:
        image: (1, S, S).
        label: (C, S, S), one channel for each class; the result is soft.
        rng: Source of the draws.
        deviation: Of the shifts at 3 x 3 places, in pixels; between them they follow cubic splines.
    """
    side = image.shape[-1]
    spread = _spread(side)
    coarse = rng.normal(0, deviation, (2, 3, 3)).astype(np.float32)
    places = _places(side).view(2, side, side) - spread @ torch.from_numpy(coarse) @ spread.T
    both = _sample(torch.cat([image, label]), places, "bilinear", "border")
    return both[:1], both[1:]


def change_intensity(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change contrast by a factor of 0.8 to 1.2 about the mean, and brightness by up to 0.1; (1, S, S)."""
    stretch, shift = rng.uniform(1 - STRETCH, 1 + STRETCH), rng.uniform(-NUDGE, NUDGE)
    mean = image.mean()
    return (image - mean) * stretch + mean + shift


@lru_cache(maxsize=4)
def _places(side: int) -> Tensor:
    """Rows and columns (2, S S) of the pixels, counted from the centre of the slice."""
    line = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)


@lru_cache(maxsize=4)
def _spread(side: int) -> Tensor:
    """Weights (S, 3) of 3 values in S, when cubic splines enlarge a line as scikit-image's resize does."""
    columns = ndimage.zoom(np.eye(3), (side / 3, 1), order=3, mode="mirror", grid_mode=True)
    return torch.from_numpy(columns.astype(np.float32))


def _sample(image: Tensor, places: Tensor, mode: str, outside: str) -> Tensor:
    """Sample an image (C, S, S) at rows and columns (2, S, S), counted from its centre."""
    grid = (places * (2 / (image.shape[-1] - 1))).flip(0).permute(1, 2, 0)  # grid_sample has the column first
    return F.grid_sample(image[None], grid[None], mode=mode, padding_mode=outside, align_corners=True)[0]
