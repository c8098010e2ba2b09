"""Scales volumes of any modality by their least and greatest value, and says where a few values squeeze the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images import AIR, Volume
from zoo.transforms.hounsfield import looks_like_ct
from zoo.transforms.kinds import check_labels, refuse_mask
from zoo.transforms.sampling import sample_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTENSITIES = "intensities of any scale"
"""Units of volumes of any modality, as `Preprocessing.units` names them: values compare within one volume alone."""

_NEARLY_ALL = (0.1, 99.9)  # percentiles
_SQUEEZED = 0.1  # of the whole range, in which nearly all values then lie
_PADDED = -1500.0  # HU that no noise of air reaches: what is below was written where nothing was measured


def check_intensities(volume: Volume) -> list[str]:
    """Check that finite values can be an image's, of whatever modality.

    Returns:
        What is odd about them, to be logged: padding or a few extreme values that take most of the range.

    Raises:
        InputContractError: They are those of a mask or a label map.
    """
    import numpy as np

    values = volume.values
    refuse_mask(values, volume.source)
    odd = check_labels(volume)
    least, most = float(values.min()), float(values.max())
    sample = sample_of(values)
    low, high = np.percentile(sample, _NEARLY_ALL)
    if least < _PADDED and looks_like_ct(volume):
        odd.append(
            f"{volume.source} has values from {least:g} to {most:g}, a CT with padding: scaled by them the body has "
            f"little contrast. Write air into the padding first, numpy.maximum(values, {AIR:g})"
        )
    elif high - low < _SQUEEZED * (most - least):
        odd.append(
            f"{volume.source} has values from {least:g} to {most:g}, nearly all of them from {low:.4g} to {high:.4g}: "
            "scaled by the extreme ones they have little contrast. Clip those first, numpy.clip"
        )
    return odd


def min_max(values: NDArray[Any]) -> NDArray[Any]:
    """Return (x - least) / (greatest - least) over the whole array as float32.

    Raises:
        InputContractError: All values are the same, or so far apart that float32 does not hold their range.
    """
    import numpy as np

    least, most = values.min(), values.max()
    if least == most:
        raise InputContractError(f"a volume {values.shape} is constant, {least:g} everywhere: it has no range")
    with np.errstate(over="ignore"):
        spread = most - least
    if not np.isfinite(spread):
        raise InputContractError(f"a volume {values.shape} has values from {least:g} to {most:g}: divide them first")
    scaled: NDArray[Any] = (values - least) / spread
    return scaled
