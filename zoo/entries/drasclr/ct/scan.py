"""A CT ready for cutting DrasCLR's patches: HU in int16, axes turned to those of the atlas, then voxels of 1 mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from zoo import images
from zoo.entries.drasclr.contract import PREPROCESSING, WINDOW
from zoo.errors import InputContractError
from zoo.images import Volume, from_itk, to_itk, voxel_sizes
from zoo.oddities import warn_of
from zoo.transforms import admit, check_right_angles, reorient, warn_of_spacing

Matrix = npt.NDArray[np.float64]

SPACING = (1.0, 1.0, 1.0)
"""In mm. This and the next constant: batmanlab/DrasCLR, preprocess/4_patchify_images.py."""
PAD = 60
"""Voxels of the least HU that are added around a CT, so that patches may reach beyond it."""
_THICKEST = 5.0  # mm: only six slices in a patch, for a network that was trained on 1 mm
_HEADER = 1e-3  # mm: headers are float32, whose rounding must not cost a voxel


@dataclass(frozen=True, eq=False)
class Scan:
    """Voxels of a CT and where they lie."""

    values: npt.NDArray[np.int16]
    """HU `(i, j, k)`, axes in the order and direction of the atlas' (x, y, z)."""
    affine: Matrix
    """`(4, 4)`, from voxel `(i, j, k, 1)` to mm in nibabel's convention."""
    source: str
    """Its name in messages."""


def place_scan(volume: Volume, atlas_affine: Matrix) -> Scan:
    """Check a CT as the transform does, and turn its axes to those of the atlas; voxels keep their positions.

    Patches are cut along the axes of the voxels, so a CT with other axes than the atlas would give mirrored or turned
    patches that begin at another corner. The authors' scans all had one order.

    Raises:
        InputContractError: The values are not HU or do not fit int16, the position is unknown, or the slices lie more
            than 5 mm apart.
    """
    volume, odd = admit(volume, PREPROCESSING)
    if volume.affine is None:
        raise InputContractError(
            f"{volume.source} comes without the size and direction of its voxels, so left and right are unknown: pass "
            "the file, or nibabel.Nifti1Image(array, affine)"
        )
    check_right_angles(volume.affine, volume.source)
    sizes = voxel_sizes(volume.affine)
    if sizes.max() > _THICKEST + _HEADER:
        raise InputContractError(
            f"{volume.source} has voxels of {' x '.join(f'{size:.3g}' for size in sizes)} mm: at most {_THICKEST:g} mm "
            "are expected, for a network trained on 1 mm. Take the thin slices of the same examination"
        )
    warn_of_spacing(volume, SPACING)
    whole, limits = np.rint(volume.values), np.iinfo(np.int16)
    if whole.min() < limits.min or whole.max() > limits.max:
        raise InputContractError(
            f"{volume.source} has values from {volume.values.min():g} to {volume.values.max():g}, which do not fit "
            "int16: HU are expected. Look at the rescale slope and intercept of its header"
        )
    for line in odd:  # only now that the scan has passed all checks
        warn_of(volume.source, line)
    values, affine = reorient(whole.astype(np.int16), volume.affine, nibabel.io_orientation(atlas_affine))
    return Scan(np.ascontiguousarray(values), affine, volume.source)


def to_millimetres(scan: Scan) -> Scan:
    """Resample to voxels of 1 mm by cubic B-splines, clip to the window, and add `PAD` voxels of -1024 around.

    As in the authors' code (batmanlab/DrasCLR, preprocess/4_patchify_images.py): clipping comes after the splines,
    which exceed the range of the values; ITK truncates to int16; and the third axis has int((n - 1) * spacing) voxels
    where the first two have int(n * spacing).
    """
    sitk = import_itk()
    sizes = voxel_sizes(scan.affine)
    counts = np.array(scan.values.shape) - (0, 0, 1)
    image = to_itk(scan.values, scan.affine)
    resampled = sitk.Resample(
        image,
        [int(length) for length in counts * sizes + _HEADER],
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkBSpline,
        image.GetOrigin(),
        SPACING,
        image.GetDirection(),
        WINDOW[0],
        sitk.sitkInt16,
    )
    values = from_itk(resampled)
    affine = scan.affine @ np.diag([*(1 / sizes), 1.0])
    affine[:3, 3] -= PAD * affine[:3, :3].sum(axis=1)
    return Scan(np.pad(values.clip(*WINDOW), PAD, constant_values=WINDOW[0]), affine, scan.source)


def sides(affine: Matrix) -> list[tuple[str, str]]:
    """Return the sides of the body at the start and the end of each axis of voxels, in words, for messages."""
    words = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "top", "I": "bottom"}
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))
    return [(words[opposite[code]], words[code]) for code in nibabel.aff2axcodes(affine)]


def import_itk() -> Any:
    """Import SimpleITK, or raise an error that names the extra with it."""
    return images.import_itk("preprocessing", "drasclr")
