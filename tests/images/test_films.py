"""Which DICOM objects are films of the chest: what is known to be one passes, what is not an image of one does not."""

import gzip
import logging

import nibabel
import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom.dataset import Dataset

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images.pictures import read_dicom, read_picture
from zoo.transforms.image import build_transform

PIXELS = (np.random.default_rng(0).random((64, 64)) * 4095).astype(np.uint16)
CLASSES = "1.2.840.10008.5.1.4.1.1."


def read(tmp_path, caplog, **elements):
    """Write a film with these elements, read it, return what was logged."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "zoo"):
        read_dicom(write_dicom(tmp_path / "film.dcm", PIXELS, bits=12, **elements))
    return [record.getMessage() for record in caplog.records if record.name == "zoo"]


@pytest.mark.parametrize(
    "elements",
    [
        *({"Modality": modality} for modality in ("CR", "DX", "DR", "RG", "dx")),
        *({"SOPClassUID": CLASSES + kind} for kind in ("1", "1.1", "1.1.1", "7", "7.2")),
        *({"BodyPartExamined": part} for part in ("CHEST", "Thorax", "CHEST PA", "LUNG", "RIBS", "TORAX AP", "", None)),
        *({"BodyPartExamined": part} for part in ("PORT CHEST", "CXR", "T\xd3RAX", "THX", "PORTCHEST")),
    ],
)
def test_a_film_of_the_chest_passes_without_a_word(tmp_path, caplog, elements):
    """Doubting what clinics write."""
    assert read(tmp_path, caplog, **elements) == []


@pytest.mark.parametrize(
    "modality",
    [
        *("CT", "MR", "PT", "NM", "US", "XA", "RF", "MG", "IO", "PX", "XC"),
        *("SEG", "RTDOSE", "RTIMAGE", "PR", "SM", "SR"),
    ],
)
def test_other_modalities_are_refused_by_name(tmp_path, caplog, modality):
    """Masks, doses, angiograms, mammograms, photographs as films."""
    with pytest.raises(InputContractError, match=f"of modality {modality}; a radiograph"):
        read(tmp_path, caplog, Modality=modality)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("66.4", "Segmentation"), ("481.2", "RT Dose"), ("481.1", "RT Image"), ("12.1", "X-Ray Angio"), ("2", "CT Image"),
     ("1.2", "Mammography"), ("77.1.4", "Photographic"), ("6.1", "Ultrasound"), ("30", "Parametric Map")],
)  # fmt: skip
def test_the_kind_of_object_counts_where_the_modality_lies(tmp_path, caplog, kind, name):
    """A segmentation that says CR, or nothing."""
    for modality in ("CR", ""):
        with pytest.raises(InputContractError, match=name):
            read(tmp_path, caplog, Modality=modality, SOPClassUID=CLASSES + kind)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Modality": "OT"}, "OT, which may be anything"),
        ({"Modality": "SC"}, "SC, which may be anything"),
        ({"Modality": ""}, "does not say its modality"),
        ({"Modality": "XRAY"}, "XRAY, unknown"),
        ({"BodyPartExamined": "ZZZ"}, "body part ZZZ, which is not known"),
        ({"ViewPosition": "LL"}, "lateral view"),
    ],
)
def test_what_may_be_one_is_taken_with_a_word(tmp_path, caplog, elements, said):
    """Silence where the header leaves it open, or refusing it."""
    warnings = read(tmp_path, caplog, **elements)
    assert len(warnings) == 1
    assert said in warnings[0]


@pytest.mark.parametrize(
    "part",
    ["HAND", "HIP", "EXTREMITY", "BREAST", "Left Knee", "LHAND", "HANDS", "FOOT_R", "L SPINE", "TSPINE", "SKULL",
     "THORACIC SPINE", "ABDOMEN", "PELVIS", "UPPER EXTREMITY", "C-SPINE"],
)  # fmt: skip
def test_films_of_other_parts_are_refused(tmp_path, caplog, part):
    """A hand as a chest."""
    with pytest.raises(InputContractError, match="a radiograph of the chest is expected"):
        read(tmp_path, caplog, BodyPartExamined=part)


def test_the_part_may_stand_in_a_code(tmp_path, caplog):
    """DX objects name the region in a sequence."""
    region = Dataset()
    region.CodeMeaning = "Hand"
    with pytest.raises(InputContractError, match="of the body part Hand"):
        read(tmp_path, caplog, AnatomicRegionSequence=[region])


def code(value, scheme="SCT", meaning=None):
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, scheme
    if meaning is not None:
        item.CodeMeaning = meaning
    return item


@pytest.mark.parametrize(
    ("value", "scheme", "meaning", "said"),
    [("85562004", "SCT", None, "Hand"), ("T-D8700", "SRT", None, "Hand"), ("T-D8700", "SNM3", "", "Hand"),
     ("72696002", "SCT", "Genou", "Knee"), ("T-D4000", "SRT", None, "Abdominal"),
     ("122495006", "SCT", None, "Thoracic s"), ("1", "99LOCAL", "Hand", "Hand"), ("0", "SCT", "Hand", "Hand")],
)  # fmt: skip
def test_a_code_says_the_part_without_words(tmp_path, caplog, value, scheme, meaning, said):
    """A hand whose CodeMeaning is left out, or in another language; codes of a clinic have only words."""
    for keyword in ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence"):
        with pytest.raises(InputContractError, match=f"of the body part {said}"):
            read(tmp_path, caplog, **{keyword: [code(value, scheme, meaning)]})


@pytest.mark.parametrize("item", [code("51185008"), code("816094009"), code("T-D3000", "SRT"), code("T-28000", "SRT")])
def test_a_code_of_the_chest_passes(tmp_path, caplog, item):
    """Old and new codes of the chest as unknown."""
    assert read(tmp_path, caplog, AnatomicRegionSequence=[item]) == []
    assert read(tmp_path, caplog, AnatomicRegionSequence=[item], BodyPartExamined="CHEST") == []


@pytest.mark.parametrize("part", ["CHEST", "ZZZ"])
def test_a_code_against_the_name_of_the_part_is_refused(tmp_path, caplog, part):
    """BodyPartExamined is often left at the default of the machine."""
    with pytest.raises(InputContractError, match=f"{part} by its BodyPartExamined, but Hand by its AnatomicRegionSeq"):
        read(tmp_path, caplog, BodyPartExamined=part, AnatomicRegionSequence=[code("85562004")])


TOLD = (
    "StudyDescription",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "ProtocolName",
    "SeriesDescription",
    "AcquisitionDeviceProcessingDescription",
)
"""From the widest to the one nearest to the image."""


@pytest.mark.parametrize("keyword", TOLD)
@pytest.mark.parametrize(
    "text",
    ["HAND PA", "Knie ap", "R KNEE 2 VIEWS", "XR C-SPINE", "H\xfcfte bds.", "LFOOT", "THORACIC SPINE AP", "SI JOINTS",
     "RADIOGRAFIA DE RODILLA", "Brustwirbels\xe4ule"],
)  # fmt: skip
def test_free_text_of_another_part_is_warned_of(tmp_path, caplog, keyword, text):
    """A hand as a chest, where nobody filled in the part or the machine filled in its default; words may err."""
    for part in ("", "CHEST"):
        (line,) = read(tmp_path, caplog, SpecificCharacterSet="ISO_IR 100", BodyPartExamined=part, **{keyword: text})
        assert f"may be of another body part ({keyword} {text}): is it" in line


@pytest.mark.parametrize("keyword", TOLD)
@pytest.mark.parametrize(
    "text", ["CHEST AND ABDOMEN", "Thorax ap liegend", "CHEST, T SPINE", "bedside", "portable", "XR RIBS LEFT", "W034"]
)
def test_free_text_of_the_chest_or_of_nothing_passes(tmp_path, caplog, keyword, text):
    """Doubting what clinics write."""
    assert read(tmp_path, caplog, **{keyword: text}) == []


def test_the_text_nearest_to_the_image_counts(tmp_path, caplog):
    """A film of the chest in a study of the abdomen, and the other way round."""
    for i, wide in enumerate(TOLD[:-1]):
        for near in TOLD[i + 1 :]:
            assert read(tmp_path, caplog, **{wide: "ABDOMEN SERIES", near: "CHEST PA"}) == []
            (line,) = read(tmp_path, caplog, **{wide: "CHEST AND ABDOMEN", near: "ABDOMEN"})
            assert f"({near} ABDOMEN)" in line


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        *(({"ViewPosition": view}, f"an oblique view ({view})") for view in ("LLO", "RLO", "LAO", "RAO", "LPO", "RPO")),
        *(({"ViewPosition": view}, f"a lateral view ({view})") for view in ("LL", "RL", "LATERAL", "XTABLE LAT")),
        ({"ViewCodeSequence": [code("399067008")]}, "a lateral view (lateral)"),
        ({"ViewCodeSequence": [code("R-10236", "SRT")]}, "a lateral view (left lateral)"),
        ({"ViewCodeSequence": [code("399182000")], "ViewPosition": "PA"}, "an oblique view (oblique)"),
        ({"ViewCodeSequence": [code("1", "99X", "Lateral")]}, "a lateral view (Lateral)"),
        ({"PatientOrientation": ["A", "F"]}, "a lateral view (PatientOrientation A/F)"),
        ({"PatientOrientation": ["P", "F"]}, "a lateral view (PatientOrientation P/F)"),
        ({"PatientOrientation": ["F", "A"]}, "a lateral view (PatientOrientation F/A)"),
        ({"SeriesDescription": "CHEST LAT", "StudyDescription": "CHEST PA"}, "view (SeriesDescription CHEST LAT)"),
    ],
)
def test_views_that_are_not_frontal_are_warned_of(tmp_path, caplog, elements, said):
    """A lateral film in silence, wherever its header says so."""
    (line,) = read(tmp_path, caplog, **elements)
    assert said in line
    assert line.endswith("; the networks know frontal ones")


@pytest.mark.parametrize(
    "elements",
    [
        *({"ViewPosition": view} for view in ("PA", "AP", "ap supine")),
        *({"ViewCodeSequence": [code(value)]} for value in ("272479007", "399348003", "399033003")),
        {"ViewPosition": "PA", "PatientOrientation": ["P", "F"]},
        {"ViewCodeSequence": [code("399348003")], "PatientOrientation": ["P", "F"]},
        *({"PatientOrientation": way} for way in (["L", "F"], ["R", "F"], ["F", "L"], ["PA", "F"], ["LA", "F"])),
        {"PatientOrientation": ["L", "F"], "SeriesDescription": "CHEST LAT"},
        *({"StudyDescription": text} for text in ("CHEST PA AND LATERAL", "CHEST LATE PORTABLE", "CHEST BILATERAL")),
        {"SeriesDescription": "CHEST PA", "StudyDescription": "CHEST LATERAL"},
    ],
)
def test_frontal_views_pass_without_a_word(tmp_path, caplog, elements):
    """Doubting a film for what is said further away than its view."""
    assert read(tmp_path, caplog, **elements) == []


def test_a_header_cannot_forge_a_line(tmp_path, caplog):
    """Control characters of a header reach the terminal."""
    for elements in (
        {"BodyPartExamined": "AB\x1b[2JC"},
        {"StudyDescription": "HAND\x1b[2J"},
        {"ViewPosition": "LL\x1b[2J"},
        {"PatientOrientation": ["A\x1b", "F"]},
    ):
        (line,) = read(tmp_path, caplog, **elements)
        assert "\x1b" not in line
    with pytest.raises(InputContractError) as caught:
        read(tmp_path, caplog, BodyPartExamined="CHEST", AnatomicRegionSequence=[code("1", "99X", "HAND\x1b")])
    assert "\x1b" not in str(caught.value)


def test_a_header_cannot_fill_the_screen(tmp_path, caplog):
    """A free text may have any length."""
    (line,) = read(tmp_path, caplog, PerformedProcedureStepDescription="HAND " * 400)
    assert len(line) < 400 + len(str(tmp_path))


def test_films_are_the_one_modality_of_pictures():
    """A record that asks for another, which nothing would check."""
    with pytest.raises(OptionError, match="modality 'MR'"):
        build_transform(Preprocessing(("grey",), (64, 64), modality="MR"))


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.hdr", "renamed.png"])
def test_a_volume_is_called_one_and_its_slices_are_not_offered(tmp_path, name):
    """As a file "cannot identify image file", as an array "pass one slice": a CT's slices as films."""
    values = np.random.default_rng(0).integers(-1000, 400, (40, 41, 42)).astype(np.int16)
    kind = nibabel.Nifti1Pair if name.endswith(".hdr") else nibabel.Nifti1Image
    nibabel.save(kind(values, np.eye(4)), tmp_path / name.replace(".png", ".nii"))
    if name.endswith(".png"):
        (tmp_path / "renamed.nii").rename(tmp_path / name)
    transform = build_transform(Preprocessing(("grey",), (32, 32), modality="CR"))
    with pytest.raises(InputContractError, match=r"is a volume, NIfTI of 40 x 41 x 42 voxels: one picture.*zoo doctor"):
        transform(tmp_path / name)
    with pytest.raises(InputContractError, match=r"knows films alone, which slices of a volume are not"):
        transform(np.zeros((40, 41, 42), np.uint8))


def test_what_is_packed_otherwise_is_not_called_a_volume(tmp_path):
    """A compressed text, a damaged archive."""
    (tmp_path / "film.png").write_bytes(gzip.compress(b"any text " * 100))
    (tmp_path / "half.png").write_bytes(b"\x1f\x8b\x08" + bytes(40))
    for name in ("film.png", "half.png"):
        with pytest.raises(InputContractError, match="cannot identify image file"):
            read_picture(tmp_path / name)
