"""Whether a DICOM object is a radiograph of the chest, by what its header says it is."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from zoo.errors import InputContractError
from zoo.messages import printable

FILM = "CR"
"""What `Preprocessing.modality` calls films of the chest, however they were taken."""

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
_STANDARD = "1.2.840.10008."
_CHEST = re.compile(r".*(CHEST|THORA|TORAX|TORAC|LUNG|HEART|CLAVIC|STERN)|RIB|CXR|THX|BRUSTKORB|POUMON|PECHO")
_ELSEWHERE = """
    ABDOMEN ABDOMENPELVIS ACETABULUM ANKLE ARM BACK BLADDER BRAIN BREAST BUTTOCK CALCANEUS CALF CAROTID CERVICALSPINE
    COCCYX COLON CORONARY CORONARYARTERY CSPINE CTSPINE DENTAL EAR ELBOW EXTREMITY EYE FACE FACIALBONES FEET FEMUR
    FIBULA FINGER FOOT FOREARM FOREFOOT HAND HEAD HEADNECK HEEL HIP HUMERUS JAW KIDNEY KNEE KUB LARYNX LEG LIVER
    LOWEREXTREMITY LOWERLEG LOWERLIMB LSPINE LSSPINE LUMBAR LUMBARSPINE MANDIBLE MAXILLA NASALBONE NECK NOSE ORBIT
    PANCREAS PATELLA PELVIS PENIS PROSTATE RADIUS SACRUM SCAPULA SHOULDER SIJOINT SINUS SINUSES SKIN SKULL SPINE
    SPLEEN SSPINE STOMACH TEETH TESTIS THIGH THORACICSPINE THUMB TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TSPINE
    ULNA UPPERARM UPPEREXTREMITY UPPERLIMB UTERUS WRIST ZYGOMA
"""  # defined terms of PS3.16 annex L, and what is written in their place
_SIDE = re.compile(r"LEFT|RIGHT|BILAT(ERAL)?|BOTH|LT|RT|L|R")
_LATERAL = frozenset({"LATERAL", "LL", "RL", "LLD", "RLD"})


def check_film(path: Path, dataset: Any) -> list[str]:
    """Check that the header of a DICOM object is that of a chest film.

    Allowed is what is known to be one: modality CR, DX, DR or RG in an object for radiographs or secondary captures.

    Args:
        path: What messages call it.
        dataset: Of pydicom.

    Returns:
        What is merely odd, to be logged: a modality that may be anything, a part of the body that is not known, a
        lateral view.

    Raises:
        InputContractError: It is of another modality, another kind of object (which counts where the modality says
            otherwise), or of another part of the body.
    """
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in _OTHERS.split():
        raise InputContractError(f"{path} is of modality {modality}; a radiograph (CR, DX) is expected")
    _check_class(path, str(dataset.get("SOPClassUID") or ""))
    odd = [] if modality in _FILMS else [f"{path} {_doubt(modality)}: is it a radiograph of the chest?"]
    return odd + _check_part(path, _part(dataset)) + _check_view(path, str(dataset.get("ViewPosition") or ""))


def _doubt(modality: str) -> str:
    if not modality:
        return "does not say its modality"
    return f"is of modality {printable(modality)}, {'which may be anything' if modality in _COPIES else 'unknown'}"


def _check_class(path: Path, uid: str) -> None:
    from pydicom.uid import UID

    if uid.startswith(_STANDARD) and uid not in _FILM_CLASSES:
        raise InputContractError(
            f"{path} is an object of the kind {printable(UID(uid).name)!r}, whatever its modality says; a radiograph "
            "(Computed Radiography, Digital X-Ray or Secondary Capture) is expected"
        )


def _part(dataset: Any) -> str:
    """What the header says was examined; DX objects may say it by a code instead."""
    if part := str(dataset.get("BodyPartExamined") or ""):
        return part
    regions = dataset.get("AnatomicRegionSequence") or []
    return str(regions[0].get("CodeMeaning") or "") if len(regions) else ""


def _check_part(path: Path, part: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", part).encode("ascii", "ignore").decode("ascii").upper()
    words = [word for word in re.findall("[A-Z]+", plain) if not _SIDE.fullmatch(word)]
    joined = "".join(words)
    is_chest = "SPINE" not in joined and any(map(_CHEST.match, (*words, joined)))
    if not joined or (is_chest and not set(words).intersection(_ELSEWHERE.split())):
        return []
    said = f"{path} is of the body part {printable(part.strip())}"
    singular = [word.removesuffix("S") for word in (*words, joined)]
    if not is_chest and set(_ELSEWHERE.split()).intersection(
        (*words, joined, *singular, *(word[1:] for word in singular if word[0] in "LR"))
    ):
        raise InputContractError(f"{said}, as its header says; a radiograph of the chest is expected")
    return [f"{said}, which is not known: is it a radiograph of the chest?"]


def _check_view(path: Path, view: str) -> list[str]:
    if not any(word in _LATERAL or word.startswith(("LAT", "SEIT")) for word in re.findall("[A-Z]+", view.upper())):
        return []
    return [f"{path} is a lateral view ({printable(view)}); the networks know frontal ones"]
