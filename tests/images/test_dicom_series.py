"""What is read of DICOM: series of CT and MR in order and in their units, and what is left out or refused, and why."""

import logging
import shutil

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AFFINE,
    HU,
    ORIGIN,
    POSITIONS,
    at,
    image,
    item,
    new_uid,
    refused,
    store,
    without_preamble,
    write_frames,
    write_series,
)
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from zoo.images.dicom_files import starts_as_dicom
from zoo.images.dicom_series import read_series
from zoo.images.pictures import is_dicom
from zoo.images.volumes import read_volume

CORONAL = [1, 0, 0, 0, 0, -1]


# Modality and units


def test_a_ct_is_in_hu_and_says_so(tmp_path):
    """Whatever the slope, the sign and the slice; the modality comes with the values."""
    found = read_volume(write_series(tmp_path / "ct", HU))
    assert np.array_equal(found.values, HU)
    assert found.modality == "CT"

    def signed(index, dataset):
        store(dataset, HU[:, :, index].T)

    found = read_series(write_series(tmp_path / "signed", edit=signed, RescaleSlope=1, RescaleIntercept=0))
    assert np.array_equal(found.values, HU)


def test_an_mr_is_rescaled_slice_by_slice_or_as_stored(tmp_path):
    """Scanners choose a slope for each slice; an MR needs none."""
    stored = (np.arange(12 * 10 * 9).reshape(12, 10, 9) % 997).astype(np.uint16)

    def scaled(index, dataset):
        store(dataset, stored[:, :, index].T)
        dataset.Modality, dataset.SOPClassUID = "MR", MRImageStorage
        dataset.RescaleSlope, dataset.RescaleIntercept = index + 1, index

    def plain(index, dataset):
        scaled(index, dataset)
        del dataset.RescaleSlope, dataset.RescaleIntercept

    found = read_volume(write_series(tmp_path / "scaled", edit=scaled))
    assert np.array_equal(found.values, stored * np.arange(1, 10) + np.arange(9))
    assert found.modality == "MR"
    assert np.array_equal(read_volume(write_series(tmp_path / "plain", edit=plain)).values, stored)
    mixed = write_series(tmp_path / "mixed", edit=lambda index, dataset: (scaled if index else plain)(index, dataset))
    assert "some slices have a RescaleSlope, others have none" in refused(mixed)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Modality": "PT"}, "holds modality PT, positron emission tomography: a CT or MR series is expected"),
        ({"Modality": "US"}, "modality US, ultrasound"),
        ({"Modality": "NM"}, "modality NM, nuclear medicine"),
        ({"Modality": "XX\x1b[2J"}, r"modality XX\x1b[2J: a CT"),
        ({"Modality": None}, "modality not given"),
        ({"Modality": "SEG"}, "but a segmentation (SEG)"),
        ({"Modality": "RTDOSE"}, "but a radiotherapy dose (RTDOSE)"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "but a secondary capture"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "but a scout view (LOCALIZER)"),
        ({"RescaleIntercept": None}, "lacks RescaleIntercept, so its position or its HU are unknown"),
        ({"RescaleIntercept": None, "Modality": "MR", "PixelSpacing": None}, "lacks PixelSpacing, so its position is"),
        ({"RescaleType": "Z_EFF"}, "is a CT in Z_EFF (RescaleType), not in HU"),
        ({"PixelSpacing": [0, 1]}, "its position in the header has no meaning"),
        ({"PixelSpacing": [1]}, "its position in the header has no meaning"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "its position in the header has no meaning"),
        ({"Rows": 65535, "Columns": 65535}, "declares 65535 x 65535 x 9 voxels, 3.87e+10: at most"),
    ],
)
def test_what_is_no_ct_or_mr_in_its_units_is_refused_by_name(elements, said, tmp_path):
    """Other modalities, objects made from images, values that are not HU, places without meaning, made-up sizes."""
    assert said in refused(write_series(tmp_path / "series", **elements))


def test_units_that_are_not_said_are_warned_of(tmp_path, caplog):
    """Many write the RescaleType US, unspecified, who mean HU: what the values are like decides."""
    with caplog.at_level(logging.WARNING, "zoo"):
        read_series(write_series(tmp_path / "series", RescaleType="US"))
        read_series(write_series(tmp_path / "said", RescaleType="HU"))
    assert caplog.messages == [f"{tmp_path / 'series'} is a CT whose RescaleType is US, not HU"]


# Padding


@pytest.mark.parametrize(
    ("kind", "written", "element"),
    [("i2", -2000, ("SS", -2000)), ("i2", -2000, ("US", 63536)), ("u2", 63536, ("SS", -2000)), ("u2", 0, ("US", 0))],
)
def test_padding_of_a_ct_is_air(kind, written, element, tmp_path):
    """In the sign of the pixels, whatever the element's own: -1024 HU, or splines ring at the edge of the field."""
    stored = (np.arange(12 * 10 * 9).reshape(12, 10, 9) % 997 + 500).astype(kind)
    stored[:3] = written

    def edit(index, dataset):
        store(dataset, stored[:, :, index].T)
        dataset.add_new(0x00280120, *element)

    found = read_series(write_series(tmp_path / "ct", edit=edit, RescaleSlope=1, RescaleIntercept=-1024)).values
    assert (found[:3] == -1024).all()
    assert np.array_equal(found[3:], stored[3:].astype(np.float32) - 1024)


def test_padding_may_be_a_range(tmp_path):
    """From PixelPaddingValue to PixelPaddingRangeLimit, ends included; values beside it stay."""
    stored = np.tile(np.arange(-2003, -1994, dtype=np.int16), (12, 10, 1))
    stored[6:] = 40

    def edit(index, dataset):
        store(dataset, stored[:, :, index].T)
        dataset.add_new(0x00280120, "SS", -2002)
        dataset.add_new(0x00280121, "SS", -2000)

    found = read_series(write_series(tmp_path / "ct", edit=edit, RescaleSlope=1, RescaleIntercept=0)).values
    assert found[0, 0].tolist() == [-2003, -1024, -1024, -1024, -1999, -1998, -1997, -1996, -1995]


def test_padding_among_tissue_is_not_believed(tmp_path, caplog):
    """A header that calls water padding would cut holes into the body."""
    hu = np.where(HU > 0, 40, -1000).astype(np.int16)
    with caplog.at_level(logging.WARNING, "zoo"):
        found = read_series(write_series(tmp_path / "ct", hu, PixelPaddingValue=(40 + 3000) // 2))
    assert np.array_equal(found.values, hu)
    assert "lies among the HU of tissue" in caplog.text


@pytest.mark.parametrize(("padding", "expected"), [(60000, 7), (0, 7), (500, 500)])
def test_padding_of_an_mr_is_its_lowest_value(padding, expected, tmp_path):
    """An MR has no air of a known value; padding among its values is one of them."""
    stored = (np.arange(12 * 10 * 9).reshape(12, 10, 9) % 990 + 7).astype(np.uint16)
    stored[:2] = padding

    def edit(index, dataset):
        store(dataset, stored[:, :, index].T)

    elements = {"Modality": "MR", "RescaleSlope": 1, "RescaleIntercept": 0, "PixelPaddingValue": padding}
    found = read_series(write_series(tmp_path / "mr", edit=edit, **elements)).values
    assert (found[:2] == expected).all()
    assert np.array_equal(found[2:], stored[2:])


# Steps


def three_digits(z):
    """Round to three significant digits, as "%.3g" prints."""
    return float(f"{z:.3g}")


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, -60.25, -120.3])
@pytest.mark.parametrize(
    ("step", "rounded", "digit"),
    [
        *((step, lambda z: round(z, 2), 0.01) for step in (0.5, 0.625, 0.75, 1.25, 1.5, 2.5)),
        *((step, lambda z: round(z, 1), 0.1) for step in (0.5, 0.625, 0.75, 1.25, 1.5, 2.5)),
        *((step, lambda z: float(round(z)), 1) for step in (2.5, 3.3, 5.0, 7.5)),
        *((step, three_digits, 1) for step in (2.5, 3.3, 5.0, 7.5)),
        *((step, float, 0) for step in (0.5, 1.0, 2.0, 2.5, 10.0)),
    ],
)
def test_rounded_positions_are_even_and_a_lost_slice_is_not(step, rounded, digit, start, tmp_path):
    """Rounded to 0.01 or 0.1 mm, to 1 mm from 2.5 mm on, or to three digits; whichever slice is lost, it is missed."""
    positions = [rounded(start + step * index) for index in range(12)]
    hu = np.zeros((2, 2, 12), np.int16)
    found = read_series(write_series(tmp_path / "whole", hu, edit=at(*positions))).affine
    assert np.allclose(found[2, 2], step, atol=digit / 11 + 1e-9)
    for lost in (1, 6, 10):
        rest = positions[:lost] + positions[lost + 1 :]
        assert "even steps" in refused(write_series(tmp_path / f"{lost}", hu[:, :, 1:], edit=at(*rest)))


@pytest.mark.parametrize("shift", [0.0399, 0.08])
def test_four_percent_of_jitter_is_allowed(shift, tmp_path):
    """Of the step, in turns; 8 % are too much, for positions of which more digits are known."""
    folder = write_series(tmp_path / "jitter", edit=at(*(2.50003 * i + shift * 2.50003 * (i % 2) for i in range(9))))
    if shift < 0.05:
        assert read_series(folder).values.shape == (12, 10, 9)
    else:
        assert "lie 2.3 to 2.7 mm apart: even steps" in refused(folder)


def test_the_gap_is_named(tmp_path):
    """With the files beside it."""
    folder = write_series(tmp_path / "gap")
    files = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    files[4].unlink()
    assert f"the widest step is from {files[3].name} to {files[5].name}" in refused(folder)


def test_slices_that_are_shifted_aside_are_no_stack(tmp_path):
    """Even steps along the normal are not enough: another field of view; a slow drift is one too."""

    def aside(index, dataset):
        if 4 <= index < 7:
            dataset.ImagePositionPatient = [ORIGIN[0] + 40, ORIGIN[1], ORIGIN[2] + 2.5 * index]

    assert "do not lie on a straight line" in refused(write_series(tmp_path / "aside", edit=aside))
    positions = np.cumsum([0, *[2.45] * 20, *[2.65] * 20]).round(2)  # each step is within 5 % of the mean
    drift = write_series(tmp_path / "drift", np.zeros((4, 3, 41), np.int16), edit=at(*map(float, positions)))
    assert "do not lie on a straight line" in refused(drift)


def test_a_tilted_gantry_and_overlapping_slices_are_a_stack(tmp_path):
    """The same shift from each slice to the next, and slices thicker than their distance."""
    found = read_series(write_series(tmp_path / "tilted", HU, step=(0, -0.8, 2.5), SliceThickness=10))
    assert np.array_equal(found.values, HU)
    assert np.allclose(found.affine[:3, 2], (0, 0.8, 2.5))


# What lies beside a series


def beside(folder, name, **elements):
    """Write one more image into a folder, of another series unless elements say otherwise."""
    dataset = image(HU[:, :, 0], CTImageStorage, new_uid())
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / name, enforce_file_format=True)


def test_scouts_captures_and_reports_are_left_out_with_a_word(tmp_path, caplog):
    """Of other series, and of this one: what viewers leave out too."""
    folder = write_series(tmp_path / "ct", HU)
    (folder / "DICOMDIR").write_bytes((folder / "IM0000").read_bytes())
    (folder / "._IM0000").write_bytes((folder / "IM0000").read_bytes())
    place = {"PixelSpacing": [1, 1], "ImagePositionPatient": [0, 0, 0], "RescaleSlope": 1, "RescaleIntercept": 0}
    beside(folder, "scout", ImageOrientationPatient=CORONAL, **place)
    beside(folder, "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    beside(folder, "report", ImageType=["DERIVED", "SECONDARY", "PATIENT_INFO"])
    beside(folder, "capture", SOPClassUID=SecondaryCaptureImageStorage)
    beside(folder, "dose", Modality="RTDOSE")
    beside(folder, "labels", Modality="SEG")
    with caplog.at_level(logging.INFO, "zoo"):
        assert np.array_equal(read_series(folder).values, HU)
    for said in ("not parallel to the others", "5 image(s) beside the series left out"):
        assert said in caplog.text


def test_slices_that_lost_their_place_are_no_reports(tmp_path):
    """Many derived images without a place are the series itself, and one that is no derived image is a slice."""

    def lost(index, dataset):
        if index > 4:
            del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]

    assert "lacks ImageOrientationPatient, ImagePositionPatient" in refused(write_series(tmp_path / "lost", edit=lost))
    folder = write_series(tmp_path / "one")
    beside(folder, "slice", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    assert "one: slice lacks ImageOrientationPatient" in refused(folder)


def test_two_series_are_refused_and_listed(tmp_path):
    """By what a viewer shows of them, so that one can be chosen."""
    folder = write_series(tmp_path / "both", SeriesDescription="Chest 1.0\x1b", SeriesNumber=4)
    for path in write_series(tmp_path / "other", HU[:, :, :5], SeriesDescription="Chest 5.0").iterdir():
        shutil.copy(path, folder / f"b{path.name}")
    said = refused(folder)
    assert r"2 series or stacks: 'Chest 1.0\\x1b' (series 4): 9 axial of 12 x 10 pixels, IM" in said
    assert "'Chest 5.0': 5 axial of 12 x 10 pixels" in said
    assert "move each into its own folder" in said


def test_a_slice_in_the_place_of_a_volume(tmp_path):
    """The message sends to the folder where that helps, and says so where it does not."""
    folder = write_series(tmp_path / "series")
    assert "one DICOM file, a slice: a volume is expected, pass the folder" in refused(folder / "IM0001")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "IM0001", alone / "IM0001")
    assert "has no other" in refused(alone / "IM0001")
    assert "holds 1 DICOM slice(s), IM0001" in refused(alone)


def test_a_copy_of_a_slice_is_taken_once(tmp_path, caplog):
    """As "0003 (1).dcm" of a download; a changed one is an error, and so are two slices at one place."""
    folder = write_series(tmp_path / "series", HU)
    shutil.copy(folder / "IM0003", folder / "IM0003 (1)")
    with caplog.at_level(logging.INFO, "zoo"):
        assert np.array_equal(read_series(folder).values, HU)
    assert "IM0003 (1) (a copy of IM0003)" in caplog.text
    data = bytearray((folder / "IM0003").read_bytes())
    data[-2] ^= 1
    (folder / "IM0003 (1)").write_bytes(data)
    assert "IM0003 and IM0003 (1) have the same SOPInstanceUID and differ" in refused(folder)


def test_two_slices_at_one_place_are_named_with_what_tells_them_apart(tmp_path):
    """One more, and two echoes of all."""

    def echo(time):
        def edit(index, dataset):
            dataset.SeriesInstanceUID, dataset.EchoTime = "1.2.3", time

        return edit

    folder = write_series(tmp_path / "echoes", edit=echo(4.5))
    more = write_series(tmp_path / "second", edit=echo(9))
    shutil.copy(more / "IM0002", folder / "extra")
    assert "IM0002 and extra lie at one position and differ in echo time" in refused(folder)
    for path in more.iterdir():
        shutil.copy(path, folder / f"b{path.name}")
    (folder / "extra").unlink()
    assert "holds 2 volumes (echo time): its 18 slices lie at 9 positions" in refused(folder)


# Without a preamble


@pytest.mark.parametrize("count", [1, 9])
def test_files_without_preamble_are_slices(count, tmp_path):
    """All, or one among others, which must not pass for a file that is no DICOM."""
    folder = write_series(tmp_path / "series", HU)
    for path in sorted(folder.iterdir())[:count]:
        without_preamble(path)
        assert is_dicom(path)
    assert np.array_equal(read_series(folder).values, HU)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_is_dicom(implicit, tmp_path):
    """Neither preamble nor group 0002: the transfer syntax is told by what is there."""
    dataset = image(HU[:, :, 0], CTImageStorage, new_uid())
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.save_as(tmp_path / "slice", enforce_file_format=True)
    bare = tmp_path / "bare"
    data = (tmp_path / "slice").read_bytes()
    bare.write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    assert is_dicom(bare)
    assert "lacks ImageOrientationPatient" in refused(bare)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\x08\x00",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\xff\xd8\xff\xe0" + bytes(200),
        b"\x08\x00\x05\x00 and then text that goes on for a while, as text does",
        bytes(2000),
        np.arange(8, 600, dtype="<u2").tobytes(),
        np.full(600, 8, "<u2").tobytes(),
        (348).to_bytes(4, "little") + bytes(600),
    ],
)
def test_what_is_no_dicom_is_not_taken_for_it(start):
    """Pictures, text, raw pixels and NIfTI, whatever their first bytes look like."""
    assert not starts_as_dicom(start)


def test_a_header_that_cannot_be_read_is_named(tmp_path):
    """A number that is none: the element and the file, and no traceback."""
    folder = write_series(tmp_path / "series", PixelSpacing=[0.9, 0.7])
    data = (folder / "IM0002").read_bytes()
    (folder / "IM0002").write_bytes(data.replace(b"0.9\\0.7", b"0.9\\0,7"))
    assert "IM0002" in refused(folder)


# Multi-frame files


@pytest.mark.parametrize("is_folder", [True, False])
def test_an_enhanced_ct_is_what_its_slices_are(is_folder, tmp_path):
    """In one file, as itself or alone in a folder: frames in the order of their positions, whatever theirs is."""
    order = np.random.default_rng(1).permutation(9)
    path = write_frames(tmp_path / "ct.dcm", HU[:, :, order], [POSITIONS[index] for index in order])
    found = read_volume(tmp_path if is_folder else path)
    assert np.array_equal(found.values, HU)
    assert np.allclose(found.affine, AFFINE)
    assert found.modality == "CT"


def test_functional_groups_of_a_frame_come_before_the_shared_ones(tmp_path):
    """An MR with a slope for each frame, and padding in stored values."""
    own = [{"PixelValueTransformationSequence": [item(RescaleSlope=i + 1, RescaleIntercept=-3000)]} for i in range(9)]
    elements = {"sop_class": EnhancedMRImageStorage, "Modality": "MR"}
    path = write_frames(tmp_path / "mr.dcm", HU, POSITIONS, own=own, **elements)
    stored = (HU.astype(np.float32) + 3000) / 2
    found = read_volume(path)
    assert np.array_equal(found.values, stored * np.arange(1, 10, dtype=np.float32) - 3000)
    assert found.modality == "MR"


def test_compressed_frames_are_decoded_one_by_one(tmp_path):
    """Run-length coded, as some archives store Enhanced files."""
    path = write_frames(tmp_path / "plain", HU, POSITIONS)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle", enforce_file_format=True)
    assert np.array_equal(read_series(tmp_path / "rle").values, HU)


def of(keyword, sequence, values):
    """Return functional groups of frames, one value of an element each."""
    return [{sequence: [item(**{keyword: value})]} for value in values]


@pytest.mark.parametrize(
    ("own", "positions", "said"),
    [
        (
            of("TemporalPositionIndex", "FrameContentSequence", [1, 2, 3] * 3),
            [POSITIONS[index // 3] for index in range(9)],
            "holds 3 volumes (temporal position): its 9 slices lie at 3 positions, frame 1 of mr.dcm and frame 2",
        ),
        (
            of("DiffusionBValue", "MRDiffusionSequence", [0.0, 800.0, 1200.0] * 3),
            [POSITIONS[index // 3] for index in range(9)],
            "holds 3 volumes (b-value)",
        ),
        (
            of("EffectiveEchoTime", "MREchoSequence", [4.0, 8.0, 12.0] * 3),
            [POSITIONS[index // 3] for index in range(9)],
            "holds 3 volumes (echo time)",
        ),
        (of("StackID", "FrameContentSequence", "111112222"), POSITIONS, "holds 2 volumes (stacks)"),
        ((), POSITIONS[:4] + [(0, 0, 9000 + i) for i in range(5)], "even steps are expected"),
        (
            [{"PlaneOrientationSequence": [item(ImageOrientationPatient=CORONAL)]} if i > 4 else {} for i in range(9)],
            POSITIONS,
            "holds 2 series or stacks",
        ),
        ((), POSITIONS[:7], "holds 9 frames in one file, and says of 7 where they lie"),
    ],
)
def test_a_file_with_several_volumes_is_refused_with_their_number(own, positions, said, tmp_path):
    """Temporal positions, b-values, echoes, stacks: as many as there are, and what they are by."""
    elements = {"sop_class": EnhancedMRImageStorage, "Modality": "MR"}
    assert said in refused(write_frames(tmp_path / "mr.dcm", HU, positions, own=own, **elements))


def test_multi_frame_files_of_other_kinds_are_refused_by_name(tmp_path):
    """Cine ultrasound, angiography, captures, and frames without functional groups."""
    for elements, said in (
        ({"Modality": "US"}, "modality US, ultrasound"),
        ({"Modality": "XA"}, "modality XA, X-ray angiography"),
        ({"sop_class": MultiFrameGrayscaleWordSecondaryCaptureImageStorage}, "is a secondary capture: a CT or MR"),
        (
            {"PerFrameFunctionalGroupsSequence": None, "ImageType": ["DERIVED", "SECONDARY"]},
            "holds 9 frames in one file, and says of 0 where they lie",
        ),
    ):
        assert said in refused(write_frames(tmp_path / "frames", HU, POSITIONS, **elements))
