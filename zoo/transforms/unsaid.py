"""Warns where a volume whose file does not state its modality, as NIfTI never does, may be a CT though MRI is due.

A CT in HU is refused, see `hounsfield.looks_like_ct`. One that is not in HU any more could be an MRI by its values: it
is taken, with a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.images import Volume
from zoo.transforms.hounsfield import CT, is_like_ct
from zoo.transforms.sampling import sample_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 128
_ENDS = (0.1, 99.9)  # percentiles: a few voxels of metal, or of a vessel in MRI, are far from all others
_BACKGROUND = 1 / 3  # of the range, in which the air of a CT lies, however it was scaled
_APART = 8  # bins that tissue lies above air at least
# Shares and distances below are as in CT: from air at -1000 HU to soft tissue near 0, with fat at -100, is one step.
# They hold for heads, chests and abdomens, scaled from any range; of MRI (T1, T2, EPI, DWI, heart) at most 0.57 of
# the tissue lies so close together, and where it is more, as in EPI, there is no background or more lies between.
_CLOSE = 0.15
_MOSTLY = 0.65
_SOME_AIR = 0.05
_BETWEEN = (0.3, 0.7)
_LITTLE = 0.04
_BONE, _SOME_BONE = 0.3, 0.01  # beyond soft tissue, of which a phantom of MRI or a brain without its skull has none
_LEVELS = 255  # steps from the least to the greatest of 256 values
_FEW = 16  # as of a mask, which is refused elsewhere


def doubt_modality(volume: Volume, contract: Preprocessing) -> list[str]:
    """Say where values may be those of a CT that is not in HU, or where they do not tell it from MRI.

    Args:
        volume: Nothing is said of one with values that are not finite, which is refused elsewhere.
        contract: Of a network that knows another modality than CT.

    Returns:
        The sentences to log, at most one. Empty where the file says what it is, or where only MRI has such values.
    """
    import numpy as np

    sample = sample_of(volume.values)
    if volume.modality or contract.modality == CT or not np.isfinite(sample).all():
        return []
    expected = f"{contract.channels[0]} is expected"
    if likeness := is_like_ct(volume) or _spread_as_ct(sample):
        return [f"{volume.source} has values with {likeness}: {expected}, is it a CT?"]
    if scale := _own_scale(sample):
        return [f"{volume.source} has values {scale}, which do not tell MRI from a windowed CT: {expected}"]
    return []


def _spread_as_ct(sample: NDArray[Any]) -> str:
    """Say that values lie as those of a CT do, whatever they were scaled by; empty where they do not."""
    import numpy as np

    low, high = np.percentile(sample, _ENDS)
    if low == high:
        return ""
    counts, edges = np.histogram(sample.clip(low, high), _BINS, (low, high))
    first = int(counts[: round(_BINS * _BACKGROUND)].argmax())
    second = first + _APART + int(counts[first + _APART : -1].argmax())  # not the last, where clipped ones are
    air, soft = ((edges[bin] + edges[bin + 1]) / 2 for bin in (first, second))
    step = soft - air
    tissue = sample[sample > air + step / 2]
    if not len(tissue):
        return ""
    near_air = float((abs(sample - air) < _CLOSE * step).mean())
    close = float((abs(tissue - soft) < _CLOSE * step).mean())
    bone = float((tissue > soft + _BONE * step).mean())
    between = float(((sample > air + _BETWEEN[0] * step) & (sample < air + _BETWEEN[1] * step)).sum()) / len(tissue)
    if near_air < _SOME_AIR or close < _MOSTLY or bone < _SOME_BONE or between > _LITTLE:
        return ""
    said = f"{near_air:.0%} near {air:.3g} and {close:.0%} of the brighter ones near {soft:.3g}"
    return f"{said}, as air and tissue in CT"


def _own_scale(sample: NDArray[Any]) -> str:
    """Say that values were brought to 8 bits or to fractions, which no scanner writes; empty where they were not."""
    import numpy as np

    found = np.unique(sample)
    least, most = float(found[0]), float(found[-1])
    if least >= 0 and most <= 1:
        return f"from {least:g} to {most:g}, fractions"
    if _FEW < len(found) <= _LEVELS + 1 and found[-1] - found[0] <= (_LEVELS + 0.5) * np.diff(found).min():
        return f"from {least:g} to {most:g} in 8 bits"
    return ""
