"""Tells which part of the body a film shows, by the words and codes of its DICOM header."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any

from zoo.images.dicom_files import element

CHEST, ELSEWHERE, BOTH, UNKNOWN = "the chest", "another part", "the chest and another part", "not known"
_CHEST = re.compile(r".*(CHEST|THORA|TORAX|TORAC|LUNG|HEART|CLAVIC|STERN)|RIB|CXR|THX|BRUSTKORB|POUMON|PECHO")
_SPINE = re.compile(r"SPINE|WIRBEL|VERTEBRA|RACHIS")  # the thoracic spine does not count as the chest
_ELSEWHERE = """
    ABDOMEN ABDOMENPELVIS ACETABULUM ANKLE ARM BACK BLADDER BRAIN BREAST BUTTOCK CALCANEUS CALF CAROTID CERVICALSPINE
    COCCYX COLON CORONARY CORONARYARTERY CSPINE CTSPINE DENTAL EAR ELBOW EXTREMITY EYE FACE FACIALBONES FEET FEMUR
    FIBULA FINGER FOOT FOREARM FOREFOOT HAND HEAD HEADNECK HEEL HIP HUMERUS JAW KIDNEY KNEE KUB LARYNX LEG LIVER
    LOWEREXTREMITY LOWERLEG LOWERLIMB LSPINE LSSPINE LUMBAR LUMBARSPINE MANDIBLE MAXILLA NASALBONE NECK NOSE ORBIT
    PANCREAS PATELLA PELVIS PENIS PROSTATE RADIUS SACRUM SCAPULA SHOULDER SIJOINT SINUS SINUSES SKIN SKULL SPINE
    SPLEEN SSPINE STOMACH TEETH TESTIS THIGH THORACICSPINE THUMB TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TSPINE
    ULNA UPPERARM UPPEREXTREMITY UPPERLIMB UTERUS WRIST ZYGOMA

    ABDOMINAL PELVIC

    BECKEN BWS ELLBOGEN ELLENBOGEN FERSE FUSS HANDGELENK HUFTE HUEFTE HWS KIEFER KNIE KREUZBEIN LWS NASENBEIN
    OBERARM OBERSCHENKEL SCHADEL SCHAEDEL SCHULTER SPRUNGGELENK UNTERARM UNTERSCHENKEL VORFUSS ZEHE ZEHEN
    BASSIN CHEVILLE COUDE CRANE EPAULE GENOU HANCHE JAMBE PIED POIGNET
    CADERA CODO CRANEO HOMBRO MANO MUNECA PIERNA RODILLA TOBILLO
    ANCA BACINO CAVIGLIA CRANIO GINOCCHIO GOMITO PIEDE POLSO SPALLA
"""
"""Defined terms of PS3.16 annex L, what is written in their place, what SNOMED calls the regions; German, French,
Spanish and Italian words for what is filmed most."""
_SIDE = re.compile(r"LEFT|RIGHT|BILAT(ERAL)?|BOTH|LT|RT|L|R")
_SNOMED = {"SCT": "SCT", "SRT": "SRT", "SNM3": "SRT", "99SDM": "SRT"}
"""Schemes that DICOM has had for SNOMED, and those of them that pydicom knows."""


def words_of(text: str) -> list[str]:
    """Return the words of a text in capitals, without accents and digits."""
    return re.findall("[A-Z]+", unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").upper())


def part_in(text: str) -> str:
    """Return what a name of a part of the body names: `CHEST`, `ELSEWHERE`, `BOTH`, `UNKNOWN`, or empty for no word."""
    words = [word for word in words_of(text) if not _SIDE.fullmatch(word)]
    joined = "".join(words)
    if not joined:
        return ""
    if not _SPINE.search(joined) and any(map(_CHEST.match, (*words, joined))):
        return BOTH if set(_ELSEWHERE.split()).intersection(words) else CHEST
    return ELSEWHERE if _is_elsewhere((*words, joined)) else UNKNOWN


def part_told(text: str) -> str:
    """Return what a sentence tells of: as `part_in`, but empty where it has no word for a part, whatever else it has.

    The chest counts where both are told of, for a description is often that of a wider examination.
    """
    words = [word for word in words_of(text) if not _SIDE.fullmatch(word)]
    of_spine = bool(_SPINE.search("".join(words)))
    if any(_CHEST.match(word) and not (of_spine and word.startswith("THORA")) for word in words):
        return CHEST
    pairs = ("".join(pair) for pair in pairwise(words))
    return ELSEWHERE if _is_elsewhere((*words, *pairs)) else ""


def _is_elsewhere(words: Iterable[str]) -> bool:
    singular = [word.removesuffix("S") for word in words]
    without_side = (word[1:] for word in singular if word[0] in "LR")
    return any(map(_SPINE.search, words)) or bool(
        set(_ELSEWHERE.split()).intersection((*words, *singular, *without_side))
    )


def coded(dataset: Any, keyword: str) -> str:
    """Return the meanings of the codes in a sequence: of SNOMED's by pydicom's table, else as the header has them."""
    return ", ".join(filter(None, map(_meaning, element(dataset, keyword) or ())))


def _meaning(item: Any) -> str:
    code = item.get("CodeValue") or item.get("LongCodeValue") or ""
    scheme = _SNOMED.get(str(item.get("CodingSchemeDesignator") or ""))
    return (_snomed(str(code), scheme) if scheme else "") or str(item.get("CodeMeaning") or "")


@cache
def _snomed(value: str, scheme: str) -> str:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    wanted = Code(value, scheme, "")
    return next((code.meaning for code in codes.SCT.concepts.values() if wanted == code), "")
