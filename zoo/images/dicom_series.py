"""Reads one DICOM volume of CT or MR, a folder of slices or a multi-frame file, into an array and its matrix in mm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import InputContractError
from zoo.images.dicom_files import INDEX, element, read_dataset
from zoo.images.dicom_frames import Plane, planes_of
from zoo.images.dicom_stack import check_single_volume, describe, ordered, step_of
from zoo.images.dicom_values import check_scale, stored_values, values_of
from zoo.images.pictures import is_dicom
from zoo.images.reading import refused
from zoo.messages import first_names, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("zoo")

_MODALITIES = ("CT", "MR")
_KINDS = {
    "CR": "a radiograph",
    "DX": "a radiograph",
    "ES": "endoscopy",
    "IVUS": "intravascular ultrasound",
    "MG": "mammography",
    "NM": "nuclear medicine",
    "OT": "another kind of image",
    "PT": "positron emission tomography",
    "PX": "a panoramic X-ray",
    "RF": "fluoroscopy",
    "RTDOSE": "a radiotherapy dose",
    "RTIMAGE": "a radiotherapy image",
    "SC": "a secondary capture",
    "SEG": "a segmentation",
    "SM": "microscopy",
    "US": "ultrasound",
    "XA": "X-ray angiography",
}
"""Modalities that viewers of a CD meet beside CT and MR, in words."""
_BESIDE = ("SEG", "RTDOSE", "SC", "OT")  # made from a series, and often kept in its folder
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and the multi-frame ones below it (PS3.4 B.5)
_UNPLACED = "a derived image without ImagePositionPatient"
_FEW = 3  # images that are no series: scout views, dose reports
_MOST_STACKS = 20
_PARALLEL = 0.99  # cosine of 8 degrees
_SAME = 1e-3  # of mm and of unit vectors, between slices of one stack


class Series(NamedTuple):
    """A volume of DICOM."""

    values: NDArray[Any]
    """float32 `(columns, rows, slices)`; HU of a CT."""
    affine: NDArray[Any]
    """`(4, 4)`, from voxel to mm, in nibabel's axes (right, anterior, superior)."""
    modality: str
    """`"CT"` or `"MR"`."""


def read_series(path: Path) -> Series:
    """Return the values of a DICOM volume, its voxel-to-world matrix in mm, and its modality.

    Slices, files or frames, are put in order by ImagePositionPatient along the normal of ImageOrientationPatient
    (DICOM PS3.3 C.7.6.2), and DICOM's axes (left, posterior, superior) become nibabel's (right, anterior, superior).
    Stored values are rescaled, and padding becomes background, see `dicom_values.values_of`. Left out of a folder,
    which is logged, are files that are no DICOM or hold no image; scout views, secondary captures, dose maps and
    segmentations beside the slices; and second copies of a slice.

    Args:
        path: A folder that has the files of one series directly in it, or one Enhanced or Legacy Converted Enhanced
            multi-frame file.

    Raises:
        InputContractError: There is no CT or MR volume, a slice cannot be decoded, or the slices are not one stack:
            several series, echoes or phases, another modality, a slice missing or twice, shifted or uneven slices.
    """
    with refused(f"cannot read the DICOM volume {path}"):
        return _series(path)


def _series(path: Path) -> Series:
    source = str(path)
    datasets = [read_dataset(path)] if path.is_file() else _images_in(path)
    planes = _main_stack(_slices(datasets, path), path)
    planes = _without_copies(ordered(planes), source)
    check_scale(planes, source)
    check_single_volume(planes, source)
    affine = _to_world(planes[0], step_of(planes, source))
    return Series(values_of(planes, source), affine, str(planes[0].get("Modality")))


def _images_in(folder: Path) -> list[Any]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    datasets = [read_dataset(path) for path in files if path.name.upper() != INDEX and is_dicom(path)]
    images = [dataset for dataset in datasets if "PixelData" in dataset]
    held = {Path(dataset.filename).name for dataset in images}
    if left_out := [path.name for path in files if path.name not in held]:
        log.info("%s: %d file(s) without a DICOM image left out, %s", folder, len(left_out), first_names(left_out, 3))
    return images


def _slices(datasets: Sequence[Any], path: Path) -> list[Plane]:
    """Return the planes of all CT and MR images, without what is known to lie beside a series."""
    beside = {dataset.filename: reason for dataset in datasets if (reason := _reason_beside(dataset))}
    if list(beside.values()).count(_UNPLACED) > _FEW:  # more than a dose report and the like: slices that lost theirs
        beside = {name: reason for name, reason in beside.items() if reason != _UNPLACED}
    images = [dataset for dataset in datasets if dataset.filename not in beside]
    if others := {str(element(dataset, "Modality") or "") for dataset in images}.difference(_MODALITIES):
        named = ", ".join(f"{printable(name) or 'not given'}{_in_words(name)}" for name in sorted(others))
        raise InputContractError(f"{path} holds modality {named}: a CT or MR series is expected")
    if not images and path.is_dir():
        what = f", but {first_names(dict.fromkeys(beside.values()))}" if beside else ""
        raise InputContractError(
            f"{path} holds 0 DICOM slice(s) of CT or MR{what}: the files of one series are expected, directly in the "
            "folder"
        )
    if not images:
        raise InputContractError(f"{path} is {', '.join(beside.values())}: a CT or MR volume is expected")
    _log_left_out(path, beside)
    return [plane for dataset in images for plane in planes_of(dataset)]


def _in_words(modality: str) -> str:
    return f", {_KINDS[modality]}" if modality in _KINDS else ""


def _reason_beside(dataset: Any) -> str:
    """Say what an image is that is no slice of a series, empty where it may be one."""
    modality, kinds = str(element(dataset, "Modality") or "not given"), element(dataset, "ImageType") or ()
    if "PixelData" not in dataset:
        return f"DICOM without an image (modality {printable(modality)})"
    if modality in _BESIDE:
        return f"{_KINDS[modality]} ({modality})"
    if str(element(dataset, "SOPClassUID")).startswith(_SECONDARY_CAPTURE):
        return "a secondary capture"
    if "LOCALIZER" in kinds:
        return "a scout view (LOCALIZER)"
    is_placed = any(name in dataset for name in ("ImagePositionPatient", "ImageOrientationPatient"))
    is_report = not is_placed and element(dataset, "NumberOfFrames") in (None, 1)
    return _UNPLACED if is_report and {"DERIVED", "SECONDARY"}.intersection(kinds) else ""


def _log_left_out(path: Path, names: dict[str, str]) -> None:
    if names:
        said = (f"{printable(Path(name).name)} ({reason})" for name, reason in names.items())
        log.info("%s: %d image(s) beside the series left out, %s", path, len(names), first_names(said, 3))


def _main_stack(planes: Sequence[Plane], path: Path) -> list[Plane]:
    """Return the one stack of parallel slices of one series, without a few scout views across it."""
    stacks: list[list[Plane]] = []
    for plane in planes:
        own = next((stack for stack in stacks if _are_of_one_stack(stack[0], plane)), None)
        if own is None and len(stacks) == _MOST_STACKS:
            raise InputContractError(
                f"{path} holds slices in more than {_MOST_STACKS} directions, sizes or series: one stack of parallel "
                "slices is expected"
            )
        if own is None:
            stacks.append([plane])
        else:
            own.append(plane)
    stacks.sort(key=len, reverse=True)
    main, others = stacks[0], stacks[1:]
    if len(main) > _FEW and all(_is_scout(stack, main) for stack in others):
        _log_left_out(path, {plane.name: "not parallel to the others" for stack in others for plane in stack})
        others = []
    if others:
        raise InputContractError(
            f"{path} holds {len(stacks)} series or stacks: {'; '.join(map(describe, stacks[:5]))}"
            f"{'; ...' if len(stacks) > 5 else ''}. One is expected: move each into its own folder"
            f"{', or pass one multi-frame file' if any(plane.frame is not None for plane in planes) else ''}"
        )
    if len(main) < 2:
        raise InputContractError(_single(main[0], path))
    return main


def _are_of_one_stack(one: Plane, other: Plane) -> bool:
    import numpy as np

    same = all(one.get(name) == other.get(name) for name in ("SeriesInstanceUID", "Modality", "Rows", "Columns"))
    if not same:
        return False
    far = np.abs(one.directions - other.directions).max(), np.abs(one.spacing - other.spacing).max()
    return bool(max(far) <= _SAME)


def _is_scout(stack: Sequence[Plane], main: Sequence[Plane]) -> bool:
    return len(stack) <= _FEW and abs(float(stack[0].normal @ main[0].normal)) < _PARALLEL


def _single(plane: Plane, path: Path) -> str:
    """Say what to do about one slice where a volume is expected."""
    if path.is_dir():
        return (
            f"{path} holds 1 DICOM slice(s), {plane.name}: the files of one series are expected, directly in the "
            "folder, and one slice is not a volume. Is the rest of the series elsewhere?"
        )
    beside = any(other.is_file() and other != path and is_dicom(other) for other in path.parent.iterdir())
    way = "pass the folder with its series" if beside else "its folder has no others, so find them first"
    return f"{path} is one DICOM file, a slice: a volume is expected, {way}"


def _without_copies(planes: Sequence[Plane], source: str) -> list[Plane]:
    """Return the planes without second copies of the same SOP instance."""
    import numpy as np

    seen: dict[tuple[Any, int | None], Plane] = {}
    copies: dict[str, str] = {}
    kept: list[Plane] = []
    for plane in planes:
        key = (plane.get("SOPInstanceUID") or plane.path, plane.frame)
        first = seen.setdefault(key, plane)
        if first is plane:
            kept.append(plane)
        elif np.array_equal(first.position, plane.position) and _have_same_pixels(first, plane):
            copies[plane.name] = f"a copy of {first.name}"
        else:
            raise InputContractError(
                f"{source}: {first.name} and {plane.name} have the same SOPInstanceUID and differ: one of them was "
                "changed. Take out the wrong one"
            )
    _log_left_out(Path(source), copies)
    if len(kept) < 2:
        raise InputContractError(_single(kept[0], Path(source)))
    return kept


def _have_same_pixels(one: Plane, other: Plane) -> bool:
    import numpy as np

    scales = ("RescaleSlope", "RescaleIntercept")
    return all(one.get(name) == other.get(name) for name in scales) and np.array_equal(
        stored_values(one), stored_values(other)
    )


def _to_world(first: Plane, step: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.directions[0] * first.spacing[1], first.directions[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
