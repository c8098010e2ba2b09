"""How one of GLCL's volumes is read: image, mask, the size of the voxels; and the correction of its bias field.

Constants as krishnabits001/domain_specific_cl has them (dataloaders.py, scripts/N4_bias_correction.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from zoo.entries.glcl.cohort import Case, DataSet
from zoo.entries.glcl.contract import PREPROCESSING
from zoo.errors import InputContractError
from zoo.images import Volume, affine_in, from_itk, import_itk, read_header, read_voxels, to_itk
from zoo.transforms import check_labels, check_stack, turn_of

log = logging.getLogger("zoo")

Array = npt.NDArray[Any]

N4_LEVELS, N4_ITERATIONS, N4_THRESHOLD = 4, 50, 0.001


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume."""

    shape: tuple[int, ...]
    """(X, Y, Z), slices along the last axis."""
    spacing: tuple[float, ...]
    """Between voxels in mm, three numbers."""
    affine: tuple[tuple[float, ...], ...]
    """Rows (4, 4) of the header's matrix."""
    is_placed: bool = True
    """Whether the header says where the axes point to; without, the matrix has the sizes of the voxels alone."""
    intent: int = 0
    """What the header says the values are, by NIfTI's intent codes."""

    def turn(self, orientation: str) -> Array | None:
        """The turn to how a network knows slices, see `transforms.stacks.turn_of`; None for axes that are not known."""
        return turn_of(np.array(self.affine), orientation) if self.is_placed else None

    def turned(self, orientation: str) -> Grid:
        """The voxels once a volume was turned."""
        turn = self.turn(orientation)
        if turn is None:
            return self
        order = np.argsort(turn[:, 0])
        affine = np.array(self.affine) @ orientations.inv_ornt_aff(turn, self.shape)
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in order),
            spacing=tuple(self.spacing[axis] for axis in order),
            affine=tuple(tuple(map(float, row)) for row in affine),
        )


def turn_values(values: Array, grid: Grid, orientation: str) -> Array:
    """Return voxels (X, Y, Z) of a grid, an image's or its mask's, turned to how a network knows slices."""
    turn = grid.turn(orientation)
    return values if turn is None else np.ascontiguousarray(orientations.apply_orientation(values, turn))


def as_volume(image: Array, grid: Grid, source: str, orientation: str | None) -> Volume:
    """Return an image with its place, for its checks; of unknown axes with that of a stack that needs no turn."""
    if grid.is_placed:
        affine = np.array(grid.affine)
    else:
        across, down = (1 if letter in "RA" else -1 for letter in orientation or "RA")
        affine = np.diag([*np.array(grid.spacing) * (across, down, 1), 1.0])
    return Volume(image, affine, 0, source, intent=grid.intent)


def read_image(
    path: Path, channel: int | None = None, *, anywhere: bool = False
) -> tuple[npt.NDArray[np.float32], Grid]:
    """Read a volume (X, Y, Z), an image or a mask, as the file has it. Pixel sizes are the header's.

    A header may be without a place, which `zoo.images.read_volume` refuses: slices in their plane need none.

    Args:
        path: NIfTI.
        channel: Which to take of a file with a fourth axis; None where there should be none.
        anywhere: Whether a place without meaning is taken as it is, as of a mask, which lies where its image does.

    Raises:
        InputContractError: It cannot be read, is no volume of several slices, or its place has no meaning, as where two
            are mirror images; the message names it.
    """
    header = read_header(path)
    if header.get_data_dtype().kind not in "buif":
        raise InputContractError(f"cannot read {path} as a volume: real numbers are expected")
    values = read_voxels(path, header)
    shape = values.shape
    if values.ndim == 4 and channel is not None and shape[3] > channel:
        values = values[..., channel]
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or min(values.shape) < 2:
        raise InputContractError(
            f"{path} has shape {shape}: one volume (X, Y, slices) of several slices is expected. Leave it out"
        )
    spacing = tuple(float(size) for size in header.get_zooms()[:3])
    if not all(0 < size < np.inf for size in spacing):
        raise InputContractError(f"{path} has voxels of {spacing} mm in its header: set their sizes")
    is_placed = bool(header["sform_code"] or header["qform_code"])
    matrix = affine_in(header, str(path))[0] if is_placed and not anywhere else header.get_best_affine()
    affine = tuple(tuple(map(float, row)) for row in matrix)
    return values, Grid(values.shape, spacing, affine, is_placed, int(header["intent_code"]))


def check_image(image: Array, grid: Grid, source: str) -> None:
    """Hold an image to train on against the input contract; what is odd about it is logged.

    Raises:
        InputContractError: It is a CT, a label map or a statistic map, or its third axis is not that of the slices.
    """
    facts = replace(PREPROCESSING, thickness=None)  # what a network is trained on is for its user to choose
    volume = as_volume(image, grid, source, facts.orientation)
    for line in (*check_stack(volume, facts), *check_labels(volume)):
        log.warning("%s", line)


def read_mask(case: Case, dataset: DataSet, grid: Grid) -> npt.NDArray[np.uint8]:
    """Read the mask of a volume as labels (X, Y, Z): 0 and the ranks of the structures.

    A mask whose header has another place than the image's is logged, for the place plays no part.

    Args:
        case: The volume.
        dataset: Its structures, and what stands for them in files.
        grid: Of the image.

    Raises:
        InputContractError: There is none, it cannot be read, has another shape than the image, or labels that the data
            set does not; the message names the volume.
    """
    if case.mask is None:
        raise InputContractError(f"{case.name} has no mask: put it beside {case.image}, or name another volume")
    values, own = read_image(case.mask, anywhere=True)
    if own.shape != grid.shape:
        raise InputContractError(
            f"{case.name}: the image {case.image} has shape {grid.shape}, its mask {case.mask} {own.shape}: one label "
            "for each voxel is expected"
        )
    if not np.allclose(own.affine, grid.affine, rtol=0, atol=max(grid.spacing)):
        log.warning("%s: the header of the mask %s places it elsewhere than the image's", case.name, case.mask)
    return _labels(values, case, dataset)


def _labels(mask: Array, case: Case, dataset: DataSet) -> npt.NDArray[np.uint8]:
    """Labels 0, 1, 2, ...; those of a file are these, or the data set's own values."""
    values = np.unique(mask)
    ranks = tuple(range(1, dataset.num_classes))
    known = dataset.values if dataset.values and not set(values.tolist()) <= {0, *ranks} else ranks
    if wrong := [f"{value:g}" for value in values if value not in (0, *known)]:
        raise InputContractError(
            f"{case.name}: the mask {case.mask} has labels {', '.join(wrong[:10])}, where 0 and "
            f"{', '.join(f'{label} ({name})' for label, name in zip(known, dataset.structures, strict=True))} are "
            "expected. Correct the mask; for structures of your own, labelled 1, 2, ..., give --classes"
        )
    labels: npt.NDArray[np.uint8] = np.searchsorted((0, *known), mask).astype(np.uint8)
    return labels


def correct_bias(image: Array, spacing: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return an image (X, Y, Z) without its bias field, by N4 without a mask (Tustison et al., TMI 2010).

    Takes 10 s and more for a volume. 4 levels of 50 iterations, as published.

    Raises:
        OptionError: SimpleITK is not installed.
    """
    sitk = import_itk("--n4", "train")
    along = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # ITK's own axes: N4 knows lengths, no directions
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([N4_ITERATIONS] * N4_LEVELS)
    n4.SetConvergenceThreshold(N4_THRESHOLD)
    return from_itk(n4.Execute(to_itk(image.astype(np.float32, copy=False), along)))
