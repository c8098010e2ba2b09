"""Checks that a volume is a stack of slices that a network knows, and turns its axes to the network's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images import Volume, voxel_sizes
from zoo.transforms.grid import COARSE, check_right_angles
from zoo.transforms.hounsfield import CT, looks_like_ct
from zoo.transforms.kinds import check_kind
from zoo.transforms.unsaid import doubt_modality

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_stack(volume: Volume, contract: Preprocessing) -> list[str]:
    """Check that a volume can be a stack of scanned slices, by its header, its voxels and its values.

    Returns:
        What is merely odd about it, to be logged.

    Raises:
        InputContractError: It is of another modality, or looks like a CT where MRI is due; its header says that
            it holds labels or statistics; or its third axis is not that of the slices.
    """
    check_kind(volume, contract)
    odd = []
    if contract.modality != CT and not volume.modality:
        if looks_like_ct(volume):
            raise InputContractError(
                f"{volume.source} has values like HU, air at -1000 and soft tissue near 0, as a CT: "
                f"{contract.channels[0]} is expected, the network knows nothing else"
            )
        odd = doubt_modality(volume, contract)
    if volume.affine is None:
        return odd
    check_right_angles(volume.affine, volume.source)
    sizes = voxel_sizes(volume.affine)
    said = f"{volume.source} has voxels of {' x '.join(f'{size:.3g}' for size in sizes)} mm"
    if sizes[2] * COARSE < sizes[:2].max():
        raise InputContractError(
            f"{said}: slices are expected along the third axis, whose voxels are the thick ones. Turn the volume "
            "(numpy.moveaxis, with its affine)"
        )
    least, most = contract.thickness or (sizes[2], sizes[2])
    if sizes[2] * COARSE >= least and sizes[2] <= most * COARSE:
        return odd
    return [
        *odd,
        f"{said}, where the network knows slices {least:g} to {most:g} mm apart: is it a stack of "
        f"{contract.channels[0]} slices like those of the training data?",
    ]


def turn_slices(volume: Volume, orientation: str | None) -> tuple[Volume, NDArray[Any] | None]:
    """Turn the axes of a stack to how a network knows slices; no voxel moves.

    Returns:
        The volume, and the turn back to its axes, an array of nibabel. A volume without an affine stays as it is, with
        None for the turn.
    """
    from nibabel import orientations

    if volume.affine is None or orientation is None:
        return volume, None
    turn = turn_of(volume.affine, orientation)
    affine = volume.affine @ orientations.inv_ornt_aff(turn, volume.values.shape)
    back = orientations.ornt_transform(orientations.io_orientation(affine), orientations.io_orientation(volume.affine))
    return replace(volume, values=orientations.apply_orientation(volume.values, turn), affine=affine), back


def turn_of(affine: NDArray[Any], orientation: str) -> NDArray[Any]:
    """Return the turn of a stack, an array of nibabel, to where its slices lie as a network knows them.

    Its slices stay slices, from feet to head (or back to front, left to right). In their plane the first axis is the
    one of left and right, the last that of feet and head, whichever of the three it has.

    Args:
        affine: Of the stack, slices along the third axis.
        orientation: Where first and second axis of an axial slice point to. `"LP"` as DICOM has them, columns to the
            left and rows to the back, in other planes to the feet; `"RA"` the opposite.
    """
    import numpy as np
    from nibabel import orientations

    found = orientations.io_orientation(affine)
    stack = int(found[2, 0])
    across, down = (1 if letter in "RA" else -1 for letter in orientation)
    signs = (across, down, down)
    plane = [[axis, signs[axis]] for axis in range(3) if axis != stack]
    turn: NDArray[Any] = orientations.ornt_transform(found, np.array([*plane, [stack, 1]], dtype=float))
    return turn
