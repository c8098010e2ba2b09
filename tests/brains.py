"""Density maps of synthetic brains, and their places."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np

from zoo.entry import Preprocessing

PUBLISHED = Preprocessing(
    channels=("grey-matter density",),
    size=(121, 145, 121),
    units="modulated grey-matter density",
    value_range=(0.0, 3.0),
    affine=((-1.5, 0, 0, 90), (0, 1.5, 0, -126), (0, 0, 1.5, -72), (0, 0, 0, 1)),
    normalise="z-score",
)
# The same box, left-handed too, in voxels of 7.5 mm: quick, and no side is as long as another.
SIZE = (24, 29, 25)
GRID = np.array([[-7.5, 0, 0, 87.0], [0, 7.5, 0, -123.0], [0, 0, 7.5, -69.0], [0, 0, 0, 1]])
SMALL = replace(PUBLISHED, size=SIZE, affine=tuple(map(tuple, GRID.tolist())))
MARKER = (42.0, -18.0, 21.0)  # mm: right, behind and above the origin, which is a voxel of GRID


def world(shape, affine):
    """Return the coordinates in mm of every voxel, `(3, *shape)`."""
    voxels = np.stack([*np.indices(shape), np.ones(shape)])
    return np.tensordot(affine, voxels, 1)[:3]


def brain(shape=SIZE, affine=GRID):
    """Return a density map without any symmetry that adds up to about 700 ml, with its peak within 1.5 mm of MARKER."""
    x, y, z = world(shape, affine)
    head = (x / 60) ** 2 + ((y + 15) / 75) ** 2 + ((z - 10) / 60) ** 2 < 1
    peak = np.exp(-(sum((a - m) ** 2 for a, m in zip((x, y, z), MARKER, strict=True)) / (2 * 9.0**2)))
    folds = 0.6 + 0.2 * np.sin(x / 11) * np.cos(y / 13 + z / 17)
    return (head * (folds + 1.5 * peak)).astype(np.float32)


def image(values, affine=GRID, code="aligned"):
    """Return a NIfTI image whose sform has a code, and no qform."""
    made = nibabel.Nifti1Image(values, None)
    made.set_sform(affine, code=code)
    return made
