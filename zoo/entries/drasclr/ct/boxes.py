"""Boxes of an atlas' landmarks in a CT, and their contents."""

from __future__ import annotations

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image

from zoo.entries.drasclr.atlas import PATCH
from zoo.entries.drasclr.ct.lung_masks import LUNGS
from zoo.entries.drasclr.ct.registration import Affine
from zoo.entries.drasclr.ct.scan import PAD, Matrix, Scan, sides
from zoo.errors import InputContractError

ANCHORS = ("corner", "centre")


def check_atlas(landmarks: npt.NDArray[np.int64], mask: Nifti1Image) -> None:
    """Raise `InputContractError` where the mask of an atlas has other values, or landmarks lie beyond its grid."""
    found = np.unique(np.asarray(mask.dataobj)).tolist()
    if found != [0, *LUNGS]:
        raise InputContractError(f"the atlas' lung mask holds {found[:6]}: 0, 50 (right) and 100 (left) are expected")
    if (landmarks.min(axis=0) < 0).any() or (landmarks.max(axis=0) + PATCH > mask.shape).any():
        raise InputContractError(
            f"landmarks from {landmarks.min(axis=0).tolist()} to {landmarks.max(axis=0).tolist()} with boxes of "
            f"{PATCH} voxels do not lie in the atlas' grid {mask.shape}: give landmarks and mask of one atlas"
        )


def locate(
    landmarks: npt.NDArray[np.int64], atlas_affine: Matrix, affine: Affine, grid: Scan, anchor: str = "corner"
) -> npt.NDArray[np.int64]:
    """Return the first voxels of the landmarks' boxes in a grid of 1 mm, `(L, 3)`, those nearest to the mapped points.

    Boxes have the size of the atlas' and the grid's axes, however the map scales and turns.

    Raises:
        InputContractError: A box does not lie in the grid.
    """
    offset = (PATCH - 1) / 2 if anchor == "centre" else 0.0
    points = affine(nibabel.affines.apply_affine(atlas_affine, landmarks + offset))
    exact = nibabel.affines.apply_affine(np.linalg.inv(grid.affine), points) - offset
    indices: npt.NDArray[np.int64] = np.floor(exact + 0.5).astype(np.int64)  # ITK rounds halves up
    is_before, is_beyond = indices < 0, indices + PATCH > grid.values.shape
    if is_out := int((is_before | is_beyond).any(axis=1).sum()):
        counts = {
            name: int(there[:, axis].sum())
            for axis, names in enumerate(sides(grid.affine))
            for name, there in zip(names, (is_before, is_beyond), strict=True)
        }
        raise InputContractError(
            f"{is_out} of {len(landmarks)} patches do not lie in {grid.source}, even with {PAD} mm around it: "
            f"{', '.join(f'{count} beyond the {name}' for name, count in counts.items() if count)}. A scan of both "
            "whole lungs is expected"
        )
    return indices


def cut(grid: Scan, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Return the boxes that begin at `indices` (L, 3), as patches `(L, 32, 32, 32)` with axes (z, y, x)."""
    boxes = [grid.values[i : i + PATCH, j : j + PATCH, k : k + PATCH].T for i, j, k in indices]
    return np.stack(boxes)
