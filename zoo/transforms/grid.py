"""Brings a volume to the grid that a network knows: axes turned, whole voxels moved, resampled where it must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images import MNI152, MOST_VOXELS, SCANNER, Volume, check_count, voxel_sizes
from zoo.oddities import warn_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WHOLE = 1e-3  # voxels that a corner may be off and still be on the grid: float32 headers round to 1e-5
_RIGHT_ANGLES = 0.999  # of a box's volume is left after a shear of 2.5 degrees
COARSE = 2.0  # times as long or short as the voxels that a network knows: what a network says may then mean little
_TISSUE = 0.1  # density


def to_atlas(volume: Volume, shape: tuple[int, ...], target: NDArray[Any], way: str) -> NDArray[Any]:
    """Return the values of `volume` on the grid of `shape` and voxel-to-world matrix `target`, which lies in MNI152.

    A file whose voxels are those of the grid, in whatever order and direction its axes run, is turned to the last bit,
    whatever space its header names: no file matches by chance, and SPM and CAT12 write code 2 ("aligned"), not 4, into
    their normalised maps (spm/spm12, @nifti/subsasgn.m). Voxels of the grid in another box, as newer versions
    of CAT12 cut it (ChristianGaser/cat12, cat_defaults.m: extopts.bb), are cut or padded with 0 as exactly, where the
    header does not name a scanner. Any other file must say that it is in MNI152, and is interpolated linearly, which
    keeps the range of the values. An array must have the shape.

    Args:
        volume: With values whose background is 0 and which are densities: per mm3, so that another voxel size needs no
            factor. CAT12 scales modulated maps this way (ChristianGaser/cat12, cat_io_writenii.m).
        shape: Of the grid.
        target: `(4, 4)`.
        way: What the user must run to get such a file, for the message.

    Raises:
        InputContractError: The affine is unknown, in another space, or elsewhere.
    """
    import nibabel
    import numpy as np

    if volume.affine is None:
        if volume.values.shape != shape:
            raise InputContractError(
                f"{volume.source} comes without an affine, so its voxels must be those of the grid "
                f"{shape}. Pass the file, or nibabel.Nifti1Image(array, affine) with code 4 (MNI152). {way}"
            )
        return volume.values
    values, affine = reorient(volume.values, volume.affine, nibabel.io_orientation(target))
    offset = _whole_offset(affine, values.shape, target)
    is_grid = offset == (0, 0, 0) and values.shape == shape
    is_part = offset is not None and volume.space > SCANNER
    if not (is_grid or is_part or volume.space == MNI152):
        raise InputContractError(
            f"{volume.source} does not say that it is in MNI152 space, and its grid {volume.values.shape} of "
            f"{_sizes(volume.affine)} mm is not that of the atlas, {shape} of {_sizes(target)} mm. {way}. If it is in "
            "MNI152, say so: image.set_sform(image.affine, code='mni')"
        )
    _warn_of_cuts(values, np.linalg.inv(target) @ affine, shape, volume.source)
    if offset is None:
        warn_of_spacing(volume, voxel_sizes(target))
        placed = resample(values, affine, shape, target, mode="grid-constant")
    else:
        placed = _paste(values, offset, shape)
    if not placed.any():
        raise InputContractError(
            f"{volume.source} is empty where the atlas lies: the affine in its header is wrong. {way}"
        )
    return placed


def to_spacing(
    volume: Volume, orientation: str | None, spacing: Sequence[float] | None, degree: int = 1
) -> NDArray[Any]:
    """Return the values of `volume` with its axes turned to `orientation` and resampled to `spacing` in mm.

    The first voxel keeps its position, the last one moves by half a voxel at most, and edges are repeated, as in
    MONAI's Spacing. Splines of a degree above 1 (linear) overshoot the range of the values. With neither nothing is
    done, for which no affine is needed.

    Raises:
        InputContractError: The affine is unknown, or the axes are not at right angles.
    """
    import nibabel
    import numpy as np

    if orientation is None and spacing is None:
        return volume.values
    if volume.affine is None:
        raise InputContractError(
            f"{volume.source} comes without the size and direction of its voxels: pass the file, or "
            "nibabel.Nifti1Image(array, affine)"
        )
    values, affine = volume.values, volume.affine
    if orientation is not None:
        values, affine = reorient(values, affine, nibabel.orientations.axcodes2ornt(orientation))
    sizes = voxel_sizes(affine)
    if spacing is None or np.allclose(sizes, spacing, rtol=0, atol=_WHOLE):
        return values
    check_right_angles(affine, volume.source)
    warn_of_spacing(volume, spacing)
    target = affine.copy()
    target[:3, :3] *= np.asarray(spacing) / sizes
    shape = tuple(map(int, np.rint((np.array(values.shape) - 1) * sizes / spacing + 1)))
    check_count(shape, MOST_VOXELS, f"{volume.source}, resampled as the network needs it,", unit="voxels")
    return resample(values, affine, shape, target, mode="nearest", degree=degree)


def check_right_angles(affine: NDArray[Any], source: str) -> None:
    """Raise `InputContractError` where a grid is sheared."""
    import numpy as np

    if abs(np.linalg.det(affine[:3, :3] / voxel_sizes(affine))) < _RIGHT_ANGLES:
        raise InputContractError(
            f"{source} has axes that are not at right angles, as a CT with a tilted gantry: resample it to an upright "
            "grid first, for example with dcm2niix"
        )


def reorient(values: NDArray[Any], affine: NDArray[Any], wanted: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return values and matrix with the axes turned to the orientation `wanted`, an array of nibabel; none moves."""
    from nibabel import orientations

    turn = orientations.ornt_transform(orientations.io_orientation(affine), wanted)
    turned: NDArray[Any] = orientations.apply_orientation(values, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, values.shape)


def resample(
    values: NDArray[Any],
    affine: NDArray[Any],
    shape: tuple[int, ...],
    target: NDArray[Any],
    *,
    mode: str,
    degree: int = 1,
) -> NDArray[Any]:
    """Return values interpolated by splines at the voxels of another grid; `mode` says what is outside, as in SciPy."""
    import numpy as np
    from nibabel.nifti1 import Nifti1Image
    from nibabel.processing import resample_from_to

    image = resample_from_to(Nifti1Image(values, affine), (shape, target), order=degree, mode=mode)
    return np.asarray(image.dataobj)


def warn_of_spacing(volume: Volume, spacing: Sequence[float] | NDArray[Any]) -> None:
    """Log where a file's voxels are more than twice as long or short as those the network knows."""
    import numpy as np

    if volume.affine is not None:
        ratio = np.sort(voxel_sizes(volume.affine)) / np.sort(spacing)
        if ratio.max() > COARSE or ratio.min() < 1 / COARSE:
            known = " x ".join(f"{size:.3g}" for size in spacing)
            warn_of(
                volume.source,
                f"{volume.source} has voxels of {_sizes(volume.affine)} mm, far from the {known} mm that the network "
                "knows: its output may mean little",
            )


def _sizes(affine: NDArray[Any]) -> str:
    return " x ".join(f"{size:.3g}" for size in voxel_sizes(affine))


def _whole_offset(affine: NDArray[Any], shape: tuple[int, ...], target: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the voxel of the target grid that a turned file's first voxel is, if all are whole ones; else None."""
    import numpy as np

    to_target = np.linalg.inv(target) @ affine
    offset = np.rint(to_target[:3, 3])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    found = corners @ to_target[:3, :3].T + to_target[:3, 3]
    if np.abs(found - (corners + offset)).max() > _WHOLE:
        return None
    return tuple(int(voxel) for voxel in offset)


def _paste(values: NDArray[Any], offset: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return zeros of `shape` with `values` in it from voxel `offset` on, as far as they lie inside."""
    import numpy as np

    placed = np.zeros(shape, values.dtype)
    inside = tuple(slice(max(0, o), max(0, o + n)) for o, n in zip(offset, values.shape, strict=True))
    kept = tuple(slice(max(0, -o), max(0, s - o)) for o, s in zip(offset, shape, strict=True))
    placed[inside] = values[kept]
    return placed


def _warn_of_cuts(values: NDArray[Any], to_target: NDArray[Any], shape: tuple[int, ...], source: str) -> None:
    """Log where the file ends in tissue while the atlas goes on.

    A smaller box alone is no fault: CAT12's newer one leaves out 6 to 12 mm of background on every side.
    """
    import numpy as np

    first, last = to_target[:3, 3], to_target[:3, :3] @ (np.array(values.shape) - 1) + to_target[:3, 3]
    cuts = [
        f"{'start' if side == 0 else 'end'} of axis {axis}"
        for axis in range(3)
        for side, is_inside in ((0, first[axis] > 0.5), (-1, last[axis] < shape[axis] - 1.5))
        if is_inside and np.take(values, side, axis).max() > _TISSUE
    ]
    if cuts:
        where = ", ".join(cuts)
        warn_of(source, f"{source} ends inside the brain at the {where}: the field of view is too small")
