"""Reads a folder with one DICOM series of CT into HU and a voxel-to-world matrix."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.dicom_files import decode_pixels, read_dataset
from zoo.errors import InputContractError
from zoo.images import is_dicom
from zoo.reading import MOST_VOXELS, check_count, refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("zoo")

_UNEVEN = 0.05  # of the distance between slices; positions are often rounded to 0.1 mm, a lost slice gives 1


def read_series(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the HU of a series as float32 `(columns, rows, slices)`, and its `(4, 4)` voxel-to-world matrix in mm.

    Slices are put in order by ImagePositionPatient along the normal of ImageOrientationPatient (DICOM PS3.3 C.7.6.2),
    stored values become HU by RescaleSlope and RescaleIntercept, and DICOM's axes (left, posterior, superior) nibabel's
    (right, anterior, superior). Files that are no DICOM, or hold no image, are left out, which is logged.

    Raises:
        InputContractError: there is no CT slice, a slice cannot be decoded, or the slices are not one stack: several
            series, another modality, several orientations or sizes, a slice missing or twice.
    """
    with refused(f"cannot read the series in {folder}"):
        return _stack(_slices(folder), folder)


def _stack(slices: list[Any], folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    _check_same(slices, folder)
    across, normal = _directions(slices[0])
    slices.sort(key=lambda dataset: float(normal @ _position(dataset)))
    step = _step(slices, normal, folder)
    return _hounsfield(slices, folder), _to_world(across, slices[0], step)


def _slices(folder: Path) -> list[Any]:
    slices: list[Any] = []
    left_out: list[str] = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        dataset: Any = read_dataset(path) if is_dicom(path) else {}
        if "PixelData" in dataset:
            slices.append(dataset)
        else:
            left_out.append(path.name)
    if left_out:
        log.info("%s: %d file(s) without a DICOM image left out, %s", folder, len(left_out), ", ".join(left_out[:3]))
    if len(slices) < 2:
        raise InputContractError(
            f"{folder} holds {len(slices)} DICOM slice(s): the files of one series are expected, directly in the folder"
        )
    return slices


def _check_same(slices: list[Any], folder: Path) -> None:
    """Check that all slices can be of one stack."""
    import numpy as np

    if others := sorted({str(dataset.get("Modality")) for dataset in slices} - {"CT"}):
        raise InputContractError(f"{folder} holds modality {', '.join(others)}: a CT series is expected")
    wanted = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    for dataset in slices:
        if missing := [name for name in wanted if dataset.get(name) is None]:
            raise InputContractError(
                f"{Path(dataset.filename)} lacks {', '.join(missing)}, so its place or its HU are unknown. Plain CT "
                "slices are expected, one a file; convert others, for example with dcm2niix"
            )
    for name in ("SeriesInstanceUID", "Rows", "Columns"):
        if len(found := {dataset.get(name) for dataset in slices}) > 1:
            raise InputContractError(
                f"{folder} holds slices with {len(found)} values of {name}: one series is expected, each in a folder"
            )
    for name in ("ImageOrientationPatient", "PixelSpacing"):
        values = np.array([dataset[name].value for dataset in slices], dtype=np.float64)
        if np.ptp(values, axis=0).max() > 1e-3:
            raise InputContractError(
                f"{folder} holds slices that differ in {name}: a stack of parallel slices is expected. Leave out "
                "scout views"
            )


def _position(dataset: Any) -> NDArray[Any]:
    import numpy as np

    return np.array(dataset.ImagePositionPatient, dtype=np.float64)


def _directions(dataset: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the steps in mm to the next column and to the next row, `(3, 2)`, and the unit normal of the slice."""
    import numpy as np

    along_row, along_column = np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(distance) for distance in dataset.PixelSpacing)
    normal: NDArray[Any] = np.cross(along_row, along_column)
    return np.stack([along_row * between_columns, along_column * between_rows], axis=1), normal


def _step(slices: list[Any], normal: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Return the step in mm from a slice to the next, `(3,)`, checked to be the same between all."""
    import numpy as np

    positions = np.array([_position(dataset) for dataset in slices])
    distances = np.diff(positions @ normal)
    usual = float(np.median(distances))
    if usual <= 0 or np.abs(distances - usual).max() > _UNEVEN * usual:
        raise InputContractError(
            f"{folder}: its {len(slices)} slices lie {distances.min():.3g} to {distances.max():.3g} mm apart: even "
            "steps are expected. Slices are missing or there twice"
        )
    step: NDArray[Any] = (positions[-1] - positions[0]) / (len(slices) - 1)
    return step


def _hounsfield(slices: list[Any], folder: Path) -> NDArray[Any]:
    import numpy as np

    first = slices[0]
    check_count((first.Columns, first.Rows, len(slices)), MOST_VOXELS, folder, unit="voxels")
    values = np.empty((first.Columns, first.Rows, len(slices)), np.float32)
    for index, dataset in enumerate(slices):
        with refused(f"cannot read the pixels of {dataset.filename}"):
            stored = decode_pixels(dataset, dataset.filename)
        if stored.shape != (first.Rows, first.Columns):
            raise InputContractError(f"{dataset.filename} holds pixels {stored.shape}: one grey slice is expected")
        values[:, :, index] = stored.T * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return values


def _to_world(across: NDArray[Any], first: Any, step: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = across, step, _position(first)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
