"""How one of GLCL's volumes is read: image, mask, the size of the voxels; and the correction of its bias field.

Constants as krishnabits001/domain_specific_cl has them (dataloaders.py, scripts/N4_bias_correction.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.entries.glcl.cohort import Case, DataSet
from zoo.entries.glcl.contract import PREPROCESSING
from zoo.errors import InputContractError
from zoo.images import Grid, Volume, affine_in, from_itk, import_itk, read_header, read_voxels, to_itk, voxel_sizes
from zoo.messages import lengths
from zoo.transforms import check_labels, check_stack

log = logging.getLogger("zoo")

Array = npt.NDArray[Any]

N4_LEVELS, N4_ITERATIONS, N4_THRESHOLD = 4, 50, 0.001

_SAME_SIZES = 0.01
"""Relative difference between the two voxel sizes of a header that is not worth a word."""


def read_image(path: Path, orientation: str, channel: int | None = None, *, anywhere: bool = False) -> Volume:
    """Read a volume (X, Y, Z), an image or a mask, with the axes of its file.

    A header may lack a position, which `zoo.images.read_volume` refuses: slices in their plane need none. Such a volume
    is taken as one whose axes the network knows, with voxels of the sizes in its header.

    Args:
        path: NIfTI.
        orientation: How the network knows slices, as in `Preprocessing.orientation`.
        channel: Which to take of a file with a fourth axis; None where there should be none.
        anywhere: Whether a position without meaning is taken too, as of a mask, which lies where its image does.

    Raises:
        InputContractError: It cannot be read, is no volume of several slices, or its position has no meaning, as where
            two are mirror images; the message names it.
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
    return Volume(values, _affine(header, path, orientation, anywhere), 0, str(path), intent=int(header["intent_code"]))


def _affine(header: Any, path: Path, orientation: str, anywhere: bool) -> Array:
    sizes = [float(size) for size in header.get_zooms()[:3]]
    if not all(0 < size < np.inf for size in sizes):
        raise InputContractError(f"{path} has voxels of {tuple(sizes)} mm in its header: set their sizes")
    if not header["sform_code"] and not header["qform_code"]:
        across, down = (1 if letter in "RA" else -1 for letter in orientation)
        return np.diag([across * sizes[0], down * sizes[1], sizes[2], 1.0])
    affine: Array = header.get_best_affine() if anywhere else affine_in(header, str(path))[0]
    if not anywhere and not np.allclose(voxel_sizes(affine), sizes, rtol=_SAME_SIZES):
        log.warning(
            "%s has voxels of %s mm by its affine and of %s mm by its pixdim: the affine is taken",
            path,
            lengths(voxel_sizes(affine)),
            lengths(sizes),
        )
    return affine


def check_image(image: Volume) -> None:
    """Hold an image to train on against the input contract; what is odd about it is logged.

    Raises:
        InputContractError: It is a CT, a label map or a statistic map, or its third axis is not that of the slices.
    """
    contract = replace(PREPROCESSING, thickness=None)  # what a network is trained on is for its user to choose
    for line in (*check_stack(image, contract), *check_labels(image)):
        log.warning("%s", line)


def read_mask(case: Case, dataset: DataSet, grid: Grid) -> Volume:
    """Read the mask of a volume as uint8 labels on the grid of its image: 0 and the ranks of the structures.

    A mask whose header has another position than the image's is logged, for its position plays no part.

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
    mask = read_image(case.mask, dataset.orientation, anywhere=True)
    if mask.values.shape != grid.shape:
        raise InputContractError(
            f"{case.name}: the image {case.image} has shape {grid.shape}, its mask {case.mask} {mask.values.shape}: "
            "one label for each voxel is expected"
        )
    if not np.allclose(mask.grid.affine, grid.affine, rtol=0, atol=max(grid.spacing)):
        log.warning("%s: the header of the mask %s gives another position than the image's", case.name, case.mask)
    return replace(mask, values=_labels(mask.values, case, dataset), affine=grid.affine)


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
