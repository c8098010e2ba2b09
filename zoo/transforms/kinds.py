"""Checks what kind of volume a file holds, by its header and its look: modality, labels, statistics.

Whoever hands a network a volume asks `check_kind` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images import Volume
from zoo.messages import printable
from zoo.transforms.sampling import sample_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ESTIMATE = 1001
"""NIfTI's intent of a parameter that was estimated: a density map may say so, a scan does not."""
_STATISTICS = range(2, 25)  # intent codes of nifti1.h: correlation to -log10 of p
_NO_IMAGES = (*_STATISTICS, *range(1001, 1011), 2002, 2003, 2004, *range(2006, 2019))  # 2006 on: FSL's fields
_MOST_SAMPLED, _MOST_COMPARED = 200_000, 2_000_000
_FEW = 16  # values that an image has more of, and a mask of organs has not
_SAME, _MAYBE = 0.85, 0.65
"""Shares of neighbours with one value: regions of ten pixels have 0.85; pixels doubled in the plane only 0.5."""


def check_finite(values: NDArray[Any], source: str) -> None:
    """Raise `InputContractError` where a volume has a value that is not finite, or one value alone."""
    import numpy as np

    if wrong := int((~np.isfinite(values)).sum()):
        raise InputContractError(
            f"{source} has {wrong} NaN or infinite value(s): finite ones are expected. Where they stand for the "
            "background, write its value in: numpy.nan_to_num"
        )
    if values.min() == values.max():
        raise InputContractError(f"{source} is constant ({values.min():g} everywhere): an image is expected")


def check_kind(volume: Volume, contract: Preprocessing, *, estimates: bool = False) -> None:
    """Check what a volume is by what its file says; `estimates` as in `check_intent`.

    Raises:
        InputContractError: It is of another modality than the network knows, or holds labels, statistics or vectors.
    """
    if contract.modality is not None and volume.modality not in ("", contract.modality):
        raise InputContractError(
            f"{volume.source} is of modality {printable(volume.modality)}: {contract.modality} is expected, since the "
            "network knows nothing else. Pass a series of that modality"
        )
    check_intent(volume.intent, volume.source, estimates=estimates)


def check_intent(intent: int, source: str, *, estimates: bool = False) -> None:
    """Raise `InputContractError` where a header says by NIfTI's intent that values are no image's.

    Args:
        intent: Of the header, 0 where it says nothing.
        source: What the message calls the file.
        estimates: Whether the network takes estimated parameters, as densities are.
    """
    if intent not in _NO_IMAGES or (estimates and intent == ESTIMATE):
        return
    kind = "a statistic map" if intent in _STATISTICS else "a label map" if intent in (1002, 1003) else "not an image"
    raise InputContractError(
        f"{source} is {kind}: its NIfTI header has the intent {intent_name(intent)} ({intent}). An image "
        "is expected: pass the scan itself; if it is one and the header is wrong, image.header.set_intent('none')"
    )


def intent_name(intent: int) -> str:
    """NIfTI's name of an intent code."""
    from nibabel.nifti1 import intent_codes

    return str(intent_codes.label[intent]) if intent in intent_codes.label else "not in the standard"


def check_labels(volume: Volume) -> list[str]:
    """Tell a label map without an intent by its look: nearly all neighbours are the same.

    Looked at are pairs along the first two axes that are neither background, 0 or the most frequent value, nor both at
    the largest value, which clipping makes alike. In an image noise parts neighbours, or they differ by one step where
    it is smooth.

    Returns:
        What is odd, to be logged: it may be one.

    Raises:
        InputContractError: It is one.
    """
    import numpy as np

    values = volume.values
    sample = sample_of(values, _MOST_SAMPLED)
    found, counts = np.unique(sample, return_counts=True)
    are_whole = bool((found == np.rint(found)).all())
    background = float(found[counts.argmax()])
    steps = np.concatenate([_steps(values, axis, background) for axis in (0, 1)])
    if not len(steps):
        return []
    same = float((steps == 0).mean())
    changes = np.abs(steps[steps != 0])
    jumps = float((changes > 1).mean()) if len(changes) and are_whole else 1.0
    if same < _MAYBE or jumps < 0.5:
        return []
    kind = "whole numbers" if are_whole else "values"
    said = f"{volume.source} has {kind} of which {same:.0%} equal their neighbours, as in a label map"
    if same >= _SAME:
        raise InputContractError(f"{said}: an image is expected, not a mask or an atlas")
    return [f"{said}: an image is expected"]


def refuse_mask(values: NDArray[Any], source: str) -> None:
    """Raise `InputContractError` where an array has as few values as a mask of organs."""
    import numpy as np

    sample = values.reshape(-1)[:: max(1, values.size // 10_000)]  # enough for an image, and soon sorted
    if len(np.unique(sample)) <= _FEW and (count := len(np.unique(values))) <= _FEW:
        raise InputContractError(f"{source} has {count} different values: an image is expected, not a mask")


def _steps(values: NDArray[Any], axis: int, background: float) -> NDArray[Any]:
    """Differences of neighbours along an axis, of a sample of slices."""
    import numpy as np

    slices = np.moveaxis(values[:, :, :: max(1, values.size // _MOST_COMPARED)], axis, 0)
    first, second = slices[:-1], slices[1:]
    told = (first != 0) & (second != 0) & (first != background) & (second != background)
    told &= ~((first == second) & (first == slices.max()))
    steps: NDArray[Any] = (second - first)[told]
    return steps
