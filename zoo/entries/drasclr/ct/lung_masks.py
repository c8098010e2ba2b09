"""Masks of both lungs from any source: their values, and whether they fit a CT."""

from __future__ import annotations

from itertools import product
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image

from zoo.entries.drasclr.ct.scan import Scan, sides
from zoo.errors import InputContractError
from zoo.images import Volume, voxel_sizes
from zoo.oddities import warn_of
from zoo.transforms import reorient, resample

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

RIGHT, LEFT = 1, 2
"""Values of the patient's right and left lung in every mask here, as in lungmask's R231 (JoHof/lungmask, README.md)."""
LUNGS = (50, 100)
"""Values of the right and the left lung in the atlas' mask, and in the authors' masks of patients."""
LEAST_ML = 100.0
"""A lung of an adult holds litres; windpipe and main bronchi hold about 50 ml."""

_CUT = 100.0  # mm2 of lung in the outermost slice; a lung that ends inside the scan has none there
_AIRY = -200.0  # HU: half of a lung's voxels lie below it even where much of it is consolidated


def read_lungs(mask: Volume, volume: Volume) -> Nifti1Image:
    """Return a given mask as 1 in the right lung and 2 in the left.

    Args:
        mask: 1 and 2, or 50 and 100, or one value in both lungs, which are then told apart by position. On any grid; a
            mask without an affine must have the voxels of the CT.
        volume: The CT.

    Raises:
        InputContractError: The mask has other values, or does not lie on the lungs of the CT.
    """
    affine = mask.affine
    if affine is None:
        if mask.values.shape != volume.values.shape or volume.affine is None:
            raise InputContractError(
                f"the lung mask {mask.source} has no affine, so it must have the voxels of the CT, "
                f"{volume.values.shape}: pass a file, or nibabel.Nifti1Image(array, affine)"
            )
        affine = volume.affine
    found = tuple(float(value) for value in np.unique(mask.values) if value)
    if found not in ((RIGHT, LEFT), tuple(map(float, LUNGS))) and len(found) != 1:
        shown = ", ".join(f"{value:g}" for value in found[:6]) or "0 alone"
        raise InputContractError(
            f"the lung mask {mask.source} holds {shown}: 1 in the right lung and 2 in the left are expected (or 50 and "
            "100), or one value in both"
        )
    labels = np.searchsorted((0.0, *found), mask.values).astype(np.uint8)
    if len(found) == 1:
        labels = _told_by_side(labels, affine)
    lungs = Nifti1Image(labels, affine)
    _check_on_air(lungs, volume, mask.source)
    return lungs


def _told_by_side(mask: Labels, affine: Any) -> Labels:
    turned, turned_affine = reorient(mask, affine, nibabel.orientations.axcodes2ornt("RAS"))
    labels = turned.copy()
    labels[: split_at(turned > 0)] *= LEFT
    back, _ = reorient(labels, turned_affine, nibabel.io_orientation(affine))
    return np.ascontiguousarray(back)


def _check_on_air(lungs: Nifti1Image, volume: Volume, source: str) -> None:
    """Check on some thousand voxels that the lungs of a mask are air in the CT."""
    if volume.affine is None:
        return
    voxels = np.argwhere(np.asarray(lungs.dataobj))
    voxels = voxels[:: max(1, len(voxels) // 5000)]
    to_volume = np.linalg.inv(volume.affine) @ lungs.affine
    there = np.rint(nibabel.affines.apply_affine(to_volume, voxels)).astype(np.int64)
    there = there[((there >= 0) & (there < volume.values.shape)).all(axis=1)]
    if 2 * len(there) < len(voxels):
        raise InputContractError(
            f"the lung mask {source} does not lie on {volume.source}: {len(there) / len(voxels):.0%} of it is inside. "
            "Give the mask of the same scan"
        )
    middle = float(np.median(volume.values[tuple(there.T)]))
    if middle > _AIRY:
        raise InputContractError(
            f"the lung mask {source} does not lie on the lungs of {volume.source}: half of the CT in it is above "
            f"{middle:.0f} HU, but lung lies near -800. Give a mask of the same scan that is not mirrored"
        )


def check_lungs(lungs: Nifti1Image, source: str) -> dict[str, float]:
    """Return the volume of each lung in ml, after a check that both exist and, as far as can be told, are whole.

    Raises:
        InputContractError: A lung is missing or holds less than 100 ml, or right and left are exchanged.
    """
    labels = np.asarray(lungs.dataobj)
    voxel_ml = abs(float(np.linalg.det(lungs.affine[:3, :3]))) / 1000
    volumes = {"right": float((labels == RIGHT).sum()) * voxel_ml, "left": float((labels == LEFT).sum()) * voxel_ml}
    if missing := [name for name, volume in volumes.items() if volume < LEAST_ML]:
        sizes = ", ".join(f"{name} {volume:.0f} ml" for name, volume in volumes.items())
        raise InputContractError(
            f"{source} misses the {' and the '.join(missing)} lung ({sizes} were found): at least {LEAST_ML:.0f} ml "
            "of each are expected, as the atlas has both. Look at the scan; if both lungs are there, give their mask"
        )
    centres = np.array([_centre(labels == lung) for lung in (RIGHT, LEFT)])
    right, left = nibabel.affines.apply_affine(lungs.affine, centres)[:, 0]
    if right < left:
        raise InputContractError(
            f"{source}: the lung labelled right lies {left - right:.0f} mm to the left of the other. Exchange the "
            "labels of the mask, or correct the header that exchanges left and right"
        )
    _warn_of_cuts(labels, lungs.affine, source)
    return volumes


def _centre(lung: Mask) -> npt.NDArray[np.float64]:
    """Mean position of a lung, `(3,)` in voxels: counts of whole planes tell it, without arrays of the CT's size."""
    counts = [lung.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([np.average(np.arange(len(count)), weights=count) for count in counts])


def _warn_of_cuts(labels: Labels, affine: Any, source: str) -> None:
    """Log where a lung reaches the last slice of the scan."""
    sizes, names = voxel_sizes(affine), sides(affine)
    cuts = [
        name
        for axis, pair in enumerate(names)
        for name, end in zip(pair, (0, -1), strict=True)
        if np.count_nonzero(np.take(labels, end, axis)) * np.delete(sizes, axis).prod() > _CUT
    ]
    if cuts:
        where = " and the ".join(cuts)
        warn_of(source, f"{source} ends inside a lung at the {where}: patches there will show padding")


def place_lungs(lungs: Nifti1Image, scan: Scan) -> Labels:
    """Return the lungs on the grid of a scan, `(i, j, k)`: the label of the mask's nearest voxel, 0 beyond the mask."""
    labels = np.asarray(lungs.dataobj, dtype=np.uint8)
    found = np.zeros(scan.values.shape, np.uint8)
    if not labels.any():
        return found
    box = _reach_of(labels, np.linalg.inv(scan.affine) @ lungs.affine, found.shape)
    corner = np.eye(4)
    corner[:3, 3] = [side.start for side in box]
    found[box] = resample(labels, lungs.affine, found[box].shape, scan.affine @ corner, mode="grid-constant", degree=0)
    return found


def _reach_of(labels: Labels, to_grid: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the part of a grid in which labels can lie: a fifth of a CT that has air and padding around its lungs."""
    ends = [np.flatnonzero(labels.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))]
    corners = np.array(list(product(*(end + np.array([-0.5, 0.5]) for end in ends))))
    there = nibabel.affines.apply_affine(to_grid, corners)
    lowest, highest = np.floor(there.min(axis=0)).astype(int), np.ceil(there.max(axis=0)).astype(int) + 1
    return tuple(
        slice(min(max(first, 0), side), max(min(last, side), 0))
        for first, last, side in zip(lowest, highest, shape, strict=True)
    )


def split_at(lungs: Mask) -> int:
    """Return the plane across the first axis that parts two lungs: the emptiest near the middle."""
    filled = lungs.sum(axis=(1, 2))
    first, last = np.flatnonzero(filled)[[0, -1]]
    third = (last - first) // 3
    return int(first + third + np.argmin(filled[first + third : last - third + 1]))
