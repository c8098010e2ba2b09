"""Checks by a DICOM header that an object is a radiograph of the chest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import InputContractError
from zoo.images.dicom_files import element
from zoo.images.film_parts import CHEST, ELSEWHERE, coded, part_in, part_told
from zoo.images.film_views import other_view
from zoo.messages import printable

FILM = "CR"
"""Value of `Preprocessing.modality` for films of the chest, however they were taken."""

_FILMS = frozenset({"CR", "DX", "DR", "RG"})  # RG: scanned film; DR is no defined term, but is written
_COPIES = frozenset({"OT", "SC"})  # OT: anything, as converters write it
_OTHERS = """
    AR AS ASMT AU BDUS BI BMD CD CF CFM CP CS CT CTPROTOCOL DD DF DG DM DMS DOC DS EC ECG EEG EMG EOG EPS ES FA FID FS
    GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS PA PLAN
    POS PR PT PX REG RESP RF RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST
    STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC
"""  # defined terms of PS3.3 C.7.3.1.1.1 that are no films, retired ones too
_FILM_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.1",  # and its multi-frame forms: one bit, grey, grey words, colour
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
)
_LONGEST = 100
_STANDARD = "1.2.840.10008."
_TOLD = (
    "AcquisitionDeviceProcessingDescription",
    "SeriesDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
    "RequestedProcedureDescription",
    "StudyDescription",
)
"""Free texts, the one that is nearest to the image first: a study of the abdomen may have a film of the chest."""


def check_film(path: Path, dataset: Any) -> list[str]:
    """Check that the header of a DICOM object is that of a chest film.

    Allowed is what is known to be one: modality CR, DX, DR or RG in an object for radiographs or secondary captures.

    Args:
        path: What messages call it.
        dataset: Of pydicom.

    Returns:
        What is merely odd, to be logged: a modality that may be anything, a part of the body that is not known, a free
        text that tells of another part, a view that is not frontal, a contradiction on what is black and what is white.

    Raises:
        InputContractError: It is of another modality, another kind of object (which counts where the modality says
            otherwise), or of another part of the body, by BodyPartExamined or by the code of the region.
    """
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in _OTHERS.split():
        raise InputContractError(f"{path} is of modality {modality}; a radiograph (CR, DX) is expected")
    _check_class(path, str(dataset.get("SOPClassUID") or ""))
    odd = [] if modality in _FILMS else [f"{path} {_doubt(modality)}: is it a radiograph of the chest?"]
    told = {keyword: text for keyword in _TOLD if (text := str(element(dataset, keyword) or "").strip())}
    return odd + _check_parts(path, dataset, told) + _check_view(path, dataset, told) + _check_polarity(path, dataset)


def _short(text: object) -> str:
    """A text of the header for a message: what fits a line of it."""
    return printable(text if len(str(text)) <= _LONGEST else f"{str(text)[:_LONGEST]}...")


def _doubt(modality: str) -> str:
    if not modality:
        return "does not say its modality"
    return f"is of modality {_short(modality)}, {'which may be anything' if modality in _COPIES else 'unknown'}"


def _check_class(path: Path, uid: str) -> None:
    from pydicom.uid import UID

    if uid.startswith(_STANDARD) and uid not in _FILM_CLASSES:
        raise InputContractError(
            f"{path} is an object of the kind {_short(UID(uid).name)!r}, whatever its modality says; a radiograph "
            "(Computed Radiography, Digital X-Ray or Secondary Capture) is expected"
        )


def _check_parts(path: Path, dataset: Any, told: dict[str, str]) -> list[str]:
    """Check what BodyPartExamined, a code, and free texts say of the part of the body, each where it says one."""
    part = str(element(dataset, "BodyPartExamined") or "").strip()
    region = coded(dataset, "AnatomicRegionSequence") or coded(dataset, "PrimaryAnatomicStructureSequence")
    odd = _check_part(path, part or region)
    if part and part_in(region) == ELSEWHERE:
        raise InputContractError(
            f"{path} is of the body part {_short(part)} by its BodyPartExamined, but {_short(region)} by its "
            "AnatomicRegionSequence; a radiograph of the chest is expected"
        )
    return odd or _doubt_of(path, told)


def _check_part(path: Path, part: str) -> list[str]:
    named = part_in(part)
    if named in ("", CHEST):
        return []
    said = f"{path} is of the body part {_short(part)}"
    if named == ELSEWHERE:
        raise InputContractError(f"{said}, as its header says; a radiograph of the chest is expected")
    return [f"{said}, which is not known: is it a radiograph of the chest?"]


def _doubt_of(path: Path, told: dict[str, str]) -> list[str]:
    """Doubt a film whose free text tells of another part; the first that tells of any counts."""
    keyword, text, part = next(
        ((keyword, text, part) for keyword, text in told.items() if (part := part_told(text))), ("", "", "")
    )
    if part != ELSEWHERE:
        return []
    return [f"{path} may be of another body part ({keyword} {_short(text)}): is it a radiograph of the chest?"]


def _check_view(path: Path, dataset: Any, told: dict[str, str]) -> list[str]:
    if not (view := other_view(dataset, told)):
        return []
    return [f"{path} is {_short(view)}; the networks know frontal ones"]


def _check_polarity(path: Path, dataset: Any) -> list[str]:
    """Compare the two elements that tell black from white (PS3.3 C.8.11.3.1.2)."""
    kind, shape = dataset.get("PhotometricInterpretation"), str(element(dataset, "PresentationLUTShape") or "")
    if (kind, shape.strip().upper()) not in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        return []
    shown = "highest" if kind == "MONOCHROME2" else "lowest"
    return [
        f"{path} is {kind} with the PresentationLUTShape {_short(shape)}, which contradict each other: it is read as "
        f"{kind}, with its {shown} values white; look whether bone is white"
    ]
