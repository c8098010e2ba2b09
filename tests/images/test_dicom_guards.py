"""Headers that, read a little differently, would give another volume without a word: padding, copies, order, groups."""

import logging
import shutil
import struct

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AFFINE,
    HU,
    ORIGIN,
    POSITIONS,
    at,
    item,
    refused,
    store,
    without_preamble,
    write_frames,
    write_series,
)
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian, MRImageStorage

from zoo.images.dicom_series import read_series
from zoo.images.volumes import read_volume

PLAIN = {"RescaleSlope": 1, "RescaleIntercept": 0}
MR = {"Modality": "MR", "SOPClassUID": MRImageStorage, **PLAIN}


def stored_as(stored, *elements):
    """Store integers (columns, rows, slices), with elements of tag, representation and value in all slices."""

    def edit(index, dataset):
        store(dataset, stored[:, :, index].T)
        for element in elements:
            dataset.add_new(*element)

    return edit


# Padding


@pytest.mark.parametrize("value", [-32768, 32767, -1, -2000])
@pytest.mark.parametrize("kind", ["SS", "US", "UN", "implicit"])
def test_padding_at_the_ends_of_the_sign(value, kind, tmp_path):
    """Half of the range is where a sign turns over, whatever the element is written as."""
    stored = (np.arange(12 * 10 * 9).reshape(12, 10, 9) % 997 + 500).astype(np.int16)
    stored[:3] = value
    written = {"SS": value, "US": value % 65536, "UN": struct.pack("<h", value), "implicit": value}[kind]
    intercept = -4000 if value == -1 else 0  # beyond tissue

    def edit(index, dataset):
        stored_as(stored, (0x00280120, "SS" if kind == "implicit" else kind, written))(index, dataset)
        if kind == "implicit":
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    found = read_series(write_series(tmp_path / "ct", edit=edit, RescaleSlope=1, RescaleIntercept=intercept)).values
    assert (found[:3] == -1024).all()
    assert np.array_equal(found[3:], stored[3:].astype(np.float32) + intercept)


def test_padding_of_bytes_is_of_a_byte(tmp_path):
    """255 written as -1."""
    stored = (np.arange(12 * 10 * 9).reshape(12, 10, 9) % 200).astype(np.uint8)
    stored[:3] = 255

    def edit(index, dataset):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = stored[:, :, index].T.tobytes()
        dataset.add_new(0x00280120, "SS", -1)

    found = read_series(write_series(tmp_path / "mr", edit=edit, **MR)).values
    assert (found[:3] == 0).all()
    assert np.array_equal(found[3:], stored[3:])


@pytest.mark.parametrize(("value", "limit"), [(-2000, -2002), (-2002, -2000)])
def test_a_range_of_padding_runs_either_way(value, limit, tmp_path):
    """The limit is the other end, below or above."""
    stored = np.tile(np.arange(-2003, -1994, dtype=np.int16), (12, 10, 1))
    edit = stored_as(stored, (0x00280120, "SS", value), (0x00280121, "SS", limit))
    found = read_series(write_series(tmp_path / "ct", edit=edit, **PLAIN)).values
    assert found[0, 0].tolist() == [-2003, -1024, -1024, -1024, -1999, -1998, -1997, -1996, -1995]


@pytest.mark.parametrize(("ends", "is_padding"), [((-2000, 40), False), ((-2000, -1000), True), ((-999, -999), False)])
def test_a_range_of_padding_that_reaches_tissue_is_not_believed(ends, is_padding, tmp_path, caplog):
    """Air of the body taken as padding is -1024 HU, which it nearly was; lung and water would be holes."""
    stored = np.tile(np.array([-2000, -1500, -1000, -999, 0, 30, 40, 41, 500], np.int16), (12, 10, 1))
    edit = stored_as(stored, *((tag, "SS", end) for tag, end in zip((0x00280120, 0x00280121), ends, strict=True)))
    found = read_series(write_series(tmp_path / "ct", edit=edit, **PLAIN)).values[0, 0]
    expected = np.where((stored[0, 0] <= ends[1]) & is_padding, -1024, stored[0, 0])
    assert found.tolist() == expected.tolist()
    assert ("lies among the HU of tissue" in caplog.text) != is_padding


def test_each_slice_has_its_own_padding_and_scale(tmp_path):
    """Written by scanners that choose a scale for each slice; the first may have no padding at all."""
    stored = np.full((12, 10, 9), 100, np.int16)
    stored[0] = -2000 - np.arange(9)

    def edit(index, dataset):
        store(dataset, stored[:, :, index].T)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index, 10 * index
        if index:
            dataset.add_new(0x00280120, "SS", -2000 - index)

    found = read_series(write_series(tmp_path / "ct", edit=edit)).values
    assert found[0, 0].tolist() == [-2000] + [-1024] * 8
    assert found[1, 0].tolist() == [100 * (1 + index) + 10 * index for index in range(9)]


# Order and place


@pytest.mark.parametrize(
    ("directions", "step"),
    [((0, 1, 0, 0, 0, -1), (2.5, 0, 0)), ((1, 0, 0, 0, 0, -1), (0, 2.5, 0)), ((1, 0, 0, 0, 1, 0), (0, 0, 2.5))],
)
def test_slices_in_any_direction_are_in_order(directions, step, tmp_path):
    """Sagittal and coronal slices all have one height."""
    found = read_series(write_series(tmp_path / "ct", HU, step=step, ImageOrientationPatient=list(directions)))
    normal = np.cross(directions[:3], directions[3:])
    is_forward = float(normal @ step) > 0
    assert np.array_equal(found.values, HU if is_forward else HU[:, :, ::-1])
    first = np.array(ORIGIN, float) + (0 if is_forward else 8 * np.array(step))
    flip = np.array([-1, -1, 1])
    assert np.allclose(found.affine[:3, 3], flip * first)
    assert np.allclose(found.affine[:3, 2], flip * step * (1 if is_forward else -1))
    assert np.allclose(found.affine[:3, 0], flip * np.array(directions[:3]) * 0.7)
    assert np.allclose(found.affine[:3, 1], flip * np.array(directions[3:]) * 0.9)


@pytest.mark.parametrize("positions", [(0, 2, 6), (0, 4, 6), (0, 4, 12), (-200, -190, -170)])
def test_a_lost_one_of_four_slices_is_missed(positions, tmp_path):
    """Whole millimetres may be rounded ones, but not by as much as half of the step."""
    hu = np.zeros((4, 4, 3), np.int16)
    assert "even steps" in refused(write_series(tmp_path / "ct", hu, edit=at(*positions)))


def test_slices_at_one_place_have_no_step(tmp_path):
    """All at one: no volume, and no division by zero."""
    assert "even steps" in refused(write_series(tmp_path / "ct", HU[:, :, :4], step=(0, 0, 0)))


def test_slices_of_another_series_between_are_not_woven_in(tmp_path):
    """Two reconstructions, shifted by half of a step: 18 even slices."""
    folder = write_series(tmp_path / "ct", HU)

    def between(index, dataset):
        dataset.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + 1.25 + 2.5 * index]

    for path in write_series(tmp_path / "other", HU, edit=between).iterdir():
        shutil.copy(path, folder / f"b{path.name}")
    assert "holds 2 series" in refused(folder)


@pytest.mark.parametrize(
    "elements",
    [{"PixelSpacing": [0.91, 0.7]}, {"ImageOrientationPatient": [0.9998477, 0.0174524, 0, -0.0174524, 0.9998477, 0]}],
)
@pytest.mark.parametrize("count", [2, 5])
def test_slices_of_another_grid_are_no_part_and_no_scouts(elements, count, tmp_path):
    """Pixels of another size, slices turned by a degree: a stack that is sheared from there on, or shorter."""

    def edit(index, dataset):
        dataset.SeriesInstanceUID = "1.2.3"
        if index >= 9 - count:
            for keyword, value in elements.items():
                setattr(dataset, keyword, value)

    assert "holds 2 series or stacks" in refused(write_series(tmp_path / "ct", HU, edit=edit))


# Copies


def copied(folder, **elements):
    """Write a copy of the slice IM0003 with other elements."""
    dataset = pydicom.dcmread(folder / "IM0003")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / "copy", enforce_file_format=True)


@pytest.mark.parametrize(
    "elements",
    [{"RescaleIntercept": -1024}, {"RescaleSlope": 1}, {"ImagePositionPatient": [*ORIGIN[:2], ORIGIN[2] + 22.5]}],
)
def test_a_copy_with_another_scale_or_place_is_none(elements, tmp_path):
    """The one that is read first would win; one at the end would be a slice lost."""
    folder = write_series(tmp_path / "ct", HU)
    copied(folder, **elements)
    assert "IM0003 and copy have the same SOPInstanceUID and differ" in refused(folder).replace(
        "copy and IM0003", "IM0003 and copy"
    )


def test_slices_without_a_uid_are_no_copies(tmp_path):
    """Anonymisers take it out; slices of the same pixels would be taken for one."""
    hu = np.repeat(HU[:, :, :1], 9, axis=2)
    folder = write_series(tmp_path / "ct", hu)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.SOPInstanceUID
        dataset.save_as(path)
    assert read_series(folder).values.shape == hu.shape


def test_equal_frames_of_one_file_are_no_copies(tmp_path):
    """They share the file's UID."""
    hu = np.repeat(HU[:, :, :1], 9, axis=2)
    assert np.array_equal(read_series(write_frames(tmp_path / "ct.dcm", hu, POSITIONS)).values, hu)


# Functional groups


def test_a_frame_s_groups_come_before_the_file(tmp_path):
    """Elements of the file beside the groups, as converters leave them."""
    outer = {"RescaleSlope": 7, "RescaleIntercept": 3, "PixelSpacing": [5, 5], "ImageOrientationPatient": [0, 1, 0] * 2}
    found = read_series(write_frames(tmp_path / "ct.dcm", HU, POSITIONS, **outer))
    assert np.array_equal(found.values, HU)
    assert np.allclose(found.affine, AFFINE)


def test_files_of_one_frame_have_groups_too(tmp_path):
    """Enhanced slices in files of their own: the scale is in the groups, shared or not."""
    for index in range(9):
        scale = [item(RescaleSlope=2, RescaleIntercept=-3000)]
        shared = {"PixelValueTransformationSequence": [item(RescaleSlope=9, RescaleIntercept=9)]} if index % 2 else {}
        own = [{"PixelValueTransformationSequence": scale} if index % 2 else {}]
        elements = {"SeriesInstanceUID": "1.2.3", "shared": shared, "own": own}
        write_frames(tmp_path / f"{index}", HU[:, :, index : index + 1], POSITIONS[index : index + 1], **elements)
    found = read_series(tmp_path)
    assert np.array_equal(found.values, HU)
    assert np.allclose(found.affine, AFFINE)


def test_one_frame_with_shared_groups_alone_has_them(tmp_path):
    """No group of its own, its position in the file."""
    for index in range(9):
        path = write_frames(tmp_path / f"{index}", HU[:, :, index : index + 1], POSITIONS[index : index + 1])
        dataset = pydicom.dcmread(path)
        del dataset.PerFrameFunctionalGroupsSequence
        dataset.SeriesInstanceUID, dataset.ImagePositionPatient = "1.2.3", list(POSITIONS[index])
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).values, HU)


@pytest.mark.parametrize("groups", [8, 10])
def test_as_many_groups_as_frames(groups, tmp_path):
    """One too many, which shifts them, or one too few."""
    positions = [(*ORIGIN[:2], ORIGIN[2] + 2.5 * index) for index in range(groups)]
    elements = {"sop_class": EnhancedMRImageStorage, "Modality": "MR"}
    said = refused(write_frames(tmp_path / "mr.dcm", HU, positions, **elements))
    assert f"holds 9 frames in one file, and says of {groups} where they lie" in said


# Without a preamble or a transfer syntax


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_data_set_without_a_syntax_is_read_in_its_own(syntax, tmp_path):
    """Behind the preamble, without group 0002: bytes the other way round are other pixels."""

    def edit(index, dataset):
        dataset.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    folder = write_series(tmp_path / "ct", HU, edit=edit)
    for path in folder.iterdir():
        content = path.read_bytes()
        end = 144 + struct.unpack_from("<I", content, 140)[0]
        path.write_bytes(content[:132] + content[end:])
    assert np.array_equal(read_series(folder).values, HU)


def test_a_slice_whose_first_elements_are_long_is_dicom(tmp_path, caplog):
    """OB in group 0002 has its length in another place; one that is no DICOM would be left out as another file."""
    folder = write_series(tmp_path / "ct", HU)
    for path in folder.iterdir():
        without_preamble(path)
        content = path.read_bytes()
        assert content[12:20] == b"\x02\x00\x01\x00OB\x00\x00"
    (folder / "notes.txt").write_text("no slice")
    with caplog.at_level(logging.INFO, "zoo"):
        assert np.array_equal(read_volume(folder).values, HU)
    assert "1 file(s) without a DICOM image left out, notes.txt" in caplog.text
