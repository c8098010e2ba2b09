"""Reads volumes into arrays with their affine: NIfTI, DICOM series, NumPy files, nibabel images, arrays, tensors.

It decodes, checks what a header says about position, and computes z-scores; `zoo.transforms.volume` decides what a
network accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.errors import InputContractError
from zoo.images.affines import SCANNER, affine_in, checked_affine
from zoo.images.arrays import map_npy, read_values
from zoo.images.dicom_files import starts_as_dicom
from zoo.images.grids import Grid
from zoo.images.nifti import read_header, read_voxels
from zoo.images.reading import MOST_VOXELS, check_count, refused, start_of
from zoo.images.real_numbers import check_array, describe_array, plain_tensor, refuse_gradient

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray
    from torch import Tensor

VolumeInput: TypeAlias = "str | PathLike[str] | SpatialImage | NDArray[Any] | Tensor | Volume"

SMALLEST_SIDES = (8, 8, 8)
_EPSILON = 1e-8  # as y-Aware's authors have it (Duplums/yAwareContrastiveLearning, augmentations.py)


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume of real numbers, and where it lies as far as that is known."""

    values: NDArray[Any]
    """float32 `(i, j, k)`, C order, in the order in which nibabel has the axes; nobody else's memory."""
    affine: NDArray[Any] | None
    """`(4, 4)`, from voxel `(i, j, k, 1)` to mm; x to the patient's right, y to the front, z to the top.

    None for arrays and tensors, whose position is not known.
    """
    space: int
    """The space of `affine`, by NIfTI's codes: 0 not said, 1 a scanner, 2 another file, 3 Talairach, 4 MNI152."""
    source: str
    """Its name in messages."""
    modality: str = ""
    """DICOM's Modality, for example `"CT"` or `"MR"`; empty where the file does not say."""
    intent: int = 0
    """Meaning of the values by NIfTI's intent codes: 0 for an image, 1002 for labels, 2 to 24 for statistics."""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie.

        Raises:
            InputContractError: The volume does not say.
        """
        if self.affine is None:
            raise InputContractError(
                f"{self.source} comes without the size and direction of its voxels: NIfTI or a DICOM series is expected"
            )
        return Grid(self.values.shape, self.affine, self.source)


def read_volume(volume: VolumeInput, *, least: tuple[int, int, int] = SMALLEST_SIDES) -> Volume:
    """Return the values of one volume, scaled as its header says, and its affine.

    Args:
        volume: One of these.
            A path to NIfTI (`.nii`, `.nii.gz`, `.hdr` with `.img`; slope and intercept applied), or `.npy`, of
            at most `reading.MOST_VOXELS` voxels.
            A folder with one DICOM series of CT or MR, or one multi-frame file of them, see `dicom_series`.
            A nibabel image of NIfTI.
            An array or tensor `(i, j, k)` or `(1, i, j, k)`; a MONAI MetaTensor brings its affine along, if it has
            one, see `meta_tensors.affine_of`.
            A `Volume`, read before, which is returned as it is.
            A NIfTI in the MNI152 atlas says so by code 4 of its sform or else of its qform, which is then the matrix
            taken; otherwise the sform is, or else the qform.
        least: Voxels that it must have along each axis.

    Raises:
        InputContractError: It cannot be read, is not one volume of real numbers with as many voxels as it must have,
            requires a gradient, or its header has no affine, a meaningless one, or two that mirror each other.
        FileNotFoundError: The path does not exist.
    """
    found = _read(volume)
    _check_sides(found.values.shape, least, found.source)
    return found


def _read(volume: VolumeInput) -> Volume:
    import numpy as np
    import torch
    from nibabel.spatialimages import SpatialImage

    from zoo.images.meta_tensors import affine_of

    if isinstance(volume, Volume):
        return volume
    if isinstance(volume, (str, PathLike)):
        return _read_path(Path(volume))
    if isinstance(volume, SpatialImage):
        return _from_image(volume, volume.get_filename() or f"{type(volume).__name__} {volume.shape}")
    if isinstance(volume, torch.Tensor):
        source = describe_array(volume)
        refuse_gradient(volume, source, "a volume that is made a network's input")
        found = _from_array(plain_tensor(volume, source).cpu().float().numpy(), source)
        is_placed = hasattr(volume, "affine") and hasattr(volume, "meta")
        return replace(found, affine=checked_affine(affine_of(volume, source), source)) if is_placed else found
    if isinstance(volume, np.ndarray):
        return _from_array(volume, describe_array(volume))
    raise InputContractError(
        f"cannot take {type(volume).__name__} as a volume: a path, nibabel image, array or tensor is expected"
    )


def z_score(volume: NDArray[Any]) -> NDArray[Any]:
    """Return (x - mean) / (deviation + 1e-8) over the whole array as float32, the background included.

    The deviation is that of the population, as y-Aware's authors have it (Duplums/yAwareContrastiveLearning,
    augmentations.py: Normalize); mean and deviation are summed in float64, in C order, so that the layout in memory has
    no effect.

    Raises:
        InputContractError: A value is NaN or infinite, or all are the same.
    """
    import numpy as np

    values = np.ascontiguousarray(volume, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        mean = values.mean(dtype=np.float64)
    if not np.isfinite(mean):
        raise InputContractError(f"a volume {values.shape} has NaN or infinite values: finite ones are expected")
    if values.min() == values.max():
        raise InputContractError(f"a volume {values.shape} is constant, {values.min():g} everywhere: it has no z-score")
    scaled: NDArray[Any] = (values - np.float32(mean)) / np.float32(values.std(dtype=np.float64) + _EPSILON)
    return scaled


def _read_path(path: Path) -> Volume:
    start = b"" if path.is_dir() else start_of(path, "volume")
    if path.is_dir() or (path.suffix != ".npy" and starts_as_dicom(start)):
        from zoo.images.dicom_series import read_series

        series = read_series(path)
        _check_shape(series.values.shape, str(path))
        return Volume(series.values, checked_affine(series.affine, str(path)), SCANNER, str(path), series.modality)
    if path.suffix == ".npy":
        return _read_npy(path)
    header = read_header(path)
    return _from_header(header, str(path), lambda: read_voxels(path, header))


def _read_npy(path: Path) -> Volume:
    mapped = map_npy(path)
    shape = _planes(mapped, str(path)).shape
    return Volume(read_values(path, mapped, shape), None, 0, str(path))


def _from_image(image: Any, source: str) -> Volume:
    import numpy as np
    from nibabel import is_proxy
    from nibabel.nifti1 import Nifti1Pair

    if not isinstance(image, Nifti1Pair):
        raise InputContractError(
            f"{source} is a {type(image).__name__}: NIfTI is expected, whose header says left from right and names the "
            "atlas. If its affine is right, pass nibabel.Nifti1Image(image.dataobj, image.affine)"
        )

    def read() -> NDArray[Any]:
        if is_proxy(image.dataobj):
            check_count(image.shape, MOST_VOXELS, source, unit="voxels")
        with refused(f"cannot read {source} as a volume"):
            return np.array(np.asarray(image.dataobj, dtype=np.float32), order="C")

    return _from_header(image.header, source, read)


def _from_header(header: Nifti1Header, source: str, read: Callable[[], NDArray[Any]]) -> Volume:
    """Check what the header of a NIfTI says before its voxels are read."""
    affine, space = affine_in(header, source)
    dtype = header.get_data_dtype()
    if dtype.kind not in "buif":
        raise InputContractError(f"{source} holds {'colours' if dtype.fields else dtype}: real numbers are expected")
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    _check_shape(shape, source)
    return Volume(read().reshape(shape), affine, space, source, intent=int(header["intent_code"]))


def _from_array(array: NDArray[Any], source: str) -> Volume:
    import numpy as np

    with np.errstate(over="ignore"):  # infinite, which is judged later
        return Volume(np.array(_planes(array, source), dtype=np.float32, order="C"), None, 0, source)


def _planes(array: NDArray[Any], source: str) -> NDArray[Any]:
    """Return an array `(i, j, k)` or `(1, i, j, k)` of real numbers without its first axis of 1."""
    check_array(array, source)
    planes = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    _check_shape(planes.shape, source)
    return planes


def _check_shape(shape: tuple[int, ...], source: str) -> None:
    if len(shape) != 3 or min(shape) < 1:
        way = "pass one at a time, for example array[i]; of a NIfTI, nibabel.four_to_three(image)[i]"
        raise InputContractError(
            f"{source} has shape {shape}: one volume (i, j, k) or (1, i, j, k) is expected; "
            f"{way if len(shape) > 3 else 'an image or a few slices are not a volume'}"
        )


def _check_sides(shape: tuple[int, ...], least: tuple[int, ...], source: str) -> None:
    if any(side < few for side, few in zip(shape, least, strict=True)):
        fewest = f"{least[0]} voxels a side" if len(set(least)) == 1 else f"{' x '.join(map(str, least))} voxels"
        raise InputContractError(
            f"{source} has shape {shape}: one volume (i, j, k) or (1, i, j, k) with at least {fewest} is expected; an "
            "image or a few slices are not a volume"
        )
