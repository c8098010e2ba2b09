"""Tells by a DICOM header whether a film is not a frontal view."""

from __future__ import annotations

import re
from typing import Any

from zoo.images.dicom_files import element
from zoo.images.film_parts import coded, words_of

_LATERAL = re.compile(r"LL|RL|LLD|RLD|SAGITTAL|(LAT|SEIT|PROFIL).*")
_OBLIQUE = re.compile(r"[LR][AP]O|[LR]LO|(OBL|SCHRAG).*")  # defined terms of PS3.3 C.8.1.2 and C.8.11.5, and words
_LATERAL_WORD = re.compile(
    r"LAT|LATERAL|LATERALE|SEITL|SEITLICH|PROFIL"
)  # in sentences, where late and latex must not match
_FRONTAL_WORD = re.compile(r"AP|PA|VIEWS|FRONTAL")


def other_view(dataset: Any, told: dict[str, str]) -> str:
    """Return what view a film is where its header says that it is not frontal, in words; else empty.

    ViewPosition and ViewCodeSequence count, or else PatientOrientation, in which a frontal film has no anterior and no
    posterior direction, or else what is told of it.

    Args:
        dataset: Of pydicom.
        told: Free texts by their keyword, the one that is nearest to the single image first.
    """
    said = [str(element(dataset, "ViewPosition") or "").strip(), coded(dataset, "ViewCodeSequence")]
    if any(said):
        return next((f"{kind} ({text})" for text in said if (kind := _kind(text))), "")
    if orientation := element(dataset, "PatientOrientation"):
        ways = [str(way) for way in ([orientation] if isinstance(orientation, str) else orientation)]
        return f"a lateral view (PatientOrientation {'/'.join(ways)})" if any(map(_is_along, ways)) else ""
    for keyword, text in told.items():
        words = words_of(text)
        if any(map(_LATERAL_WORD.fullmatch, words)):
            is_both = any(map(_FRONTAL_WORD.fullmatch, words))
            return "" if is_both else f"a lateral view ({keyword} {text})"
        if any(map(_FRONTAL_WORD.fullmatch, words)):
            return ""
    return ""


def _kind(text: str) -> str:
    words = words_of(text)
    if any(map(_OBLIQUE.fullmatch, words)):
        return "an oblique view"
    return "a lateral view" if any(map(_LATERAL.fullmatch, words)) else ""


def _is_along(way: str) -> bool:
    """Whether a direction of rows or columns is along the one that a frontal film looks in."""
    return way.strip().upper().startswith(("A", "P")) and not {"A", "P"}.issubset(
        way.upper()
    )  # PA is not a direction, but is written
