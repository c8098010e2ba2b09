"""Writes DICOM: series of CT and MR, and Enhanced multi-frame files."""

from itertools import count

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from zoo.errors import InputContractError
from zoo.images.dicom_series import read_series

ORIGIN = (-50, 20, -400)
HU = (2 * np.arange(12 * 10 * 9).reshape(12, 10, 9) - 1000).astype(np.int16)
"""What a slope of 2 and an intercept of -3000 store exactly; `(columns, rows, slices)`."""


AFFINE = [[-0.7, 0, 0, 50], [0, -0.9, 0, -20], [0, 0, 2.5, -400], [0, 0, 0, 1]]
_NUMBERS = count(10**38)
POSITIONS = [(*ORIGIN[:2], ORIGIN[2] + 2.5 * index) for index in range(9)]


def new_uid():
    """Return another UID each time, always of 44 characters: some tests count the bytes of a file."""
    return UID(f"2.25.{next(_NUMBERS)}")


def write_series(folder, hu=None, step=(0.0, 0.0, 2.5), edit=None, **elements):
    """Write `hu` (columns, rows, slices) as CT slices of 0.7 x 0.9 mm in a shuffled order of file names.

    `elements` are set in all slices, and `edit(index, dataset)` is called on each.
    """
    hu = (np.arange(12 * 10 * 9).reshape(12, 10, 9) - 1000).astype(np.int16) if hu is None else hu
    folder.mkdir(exist_ok=True)
    series, order = new_uid(), np.random.default_rng(0).permutation(hu.shape[2])
    for place, index in enumerate(order):
        dataset = image(hu[:, :, index], CTImageStorage, series)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -3000
        dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.9, 0.7], [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [round(p + index * s, 3) for p, s in zip(ORIGIN, step, strict=True)]
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        if edit is not None:
            edit(int(index), dataset)
        dataset.save_as(folder / f"IM{place:04d}", enforce_file_format=True)
    return folder


def image(plane, sop_class, series):
    """Return a dataset with pixels (columns, rows[, frames]) of HU, stored for slope 2 and intercept -3000."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = new_uid()
    dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Columns, dataset.Rows = plane.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = ((plane.T.astype(int) + 3000) // 2).astype("<u2").tobytes()
    return dataset


def store(dataset, stored):
    """Put integers (rows, columns) into a dataset as they are, signed where their type is."""
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(f"<{stored.dtype.kind}2").tobytes()


def item(**elements):
    """Return a dataset to be an item of a sequence."""
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write_frames(path, hu, positions, *, own=(), shared=None, sop_class=EnhancedCTImageStorage, **elements):
    """Write frames `hu` (columns, rows, frames) into one Enhanced file, frame i at `positions[i]`.

    `own[i]` are further functional groups of frame i, `shared` those that replace the usual shared ones by name.
    """
    dataset = image(hu, sop_class, new_uid())
    dataset.NumberOfFrames = hu.shape[2]
    groups = {
        "PixelMeasuresSequence": [item(PixelSpacing=[0.9, 0.7], SliceThickness=2.5)],
        "PlaneOrientationSequence": [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        "PixelValueTransformationSequence": [item(RescaleSlope=2, RescaleIntercept=-3000, RescaleType="HU")],
    }
    dataset.SharedFunctionalGroupsSequence = [item(**{**groups, **(shared or {})})]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=list(position))], **(own[index] if own else {}))
        for index, position in enumerate(positions)
    ]
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_dicom(path, pixels, *, bits, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **elements):
    """Write a secondary capture with `pixels` stored in `bits` bits."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = new_uid()
    dataset.Modality = "DX"
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if photometric == "RGB" else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if photometric == "RGB" else 1
    if photometric == "RGB":
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pydicom.encaps.encapsulate([b"not a code stream"]) if syntax.is_compressed else pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def at(*positions):
    """Place slice `index` at z = positions[index]."""

    def edit(index, dataset):
        dataset.ImagePositionPatient = [*ORIGIN[:2], positions[index]]

    return edit


def refused(path):
    """Return the message with which a path is refused."""
    with pytest.raises(InputContractError) as caught:
        read_series(path)
    return str(caught.value)


def without_preamble(path):
    """Cut a file's preamble off, so that its group 0002 comes first."""
    path.write_bytes(path.read_bytes()[132:])
