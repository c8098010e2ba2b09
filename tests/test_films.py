"""Which DICOM objects are films of the chest: what is known to be one passes, what is not an image of one does not."""

import logging

import numpy as np
import pytest
from pydicom.dataset import Dataset
from test_preprocessing import write_dicom

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images.pictures import read_dicom
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


def test_a_header_cannot_forge_a_line(tmp_path, caplog):
    """Control characters of a header reach the terminal."""
    (line,) = read(tmp_path, caplog, BodyPartExamined="AB\x1b[2JC")
    assert "\x1b" not in line


def test_films_are_the_one_modality_of_pictures():
    """A record that asks for another, which nothing would check."""
    with pytest.raises(OptionError, match="modality 'MR'"):
        build_transform(Preprocessing(("grey",), (64, 64), modality="MR"))
