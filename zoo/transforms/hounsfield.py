"""Tells whether the values of a volume can be the HU of a CT, and which of them are padding.

Real files decide the limits: scanners and converters write -2000, -2048, -3024 or -32768 where nothing was measured,
so that the smallest value alone says little. What is left without such padding must look like air and tissue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images import AIR, Volume
from zoo.transforms.sampling import sample_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CT = "CT"
"""DICOM's Modality of what is measured in HU."""
HOUNSFIELD = "HU"
"""Units of a CT, as `Preprocessing.units` names them."""

_NO_AIR = -200.0  # HU; lung lies near -800 and the air around the patient at -1000, in every CT
_PADDING = -1100.0  # below it lies no air, but for the noise of sharp kernels; what is frequent there was written in
_AIR = (_PADDING, -700.0)  # lung included
_LUNG = (_PADDING, -600.0)  # lung and air
_SOFT = (-200.0, 200.0)  # fat -100, water 0, muscle and organs 20 to 80, with noise
_STORED = (824.0, 1224.0)  # where soft tissue lies as long as the usual intercept of -1024 was not added
_DENSEST = 3100.0  # 12 bits end at 3071; metal is beyond
_BRIGHT = 2000.0  # bone ends about here
_AIRLESS = 1e-4  # share of a volume below which there is hardly any air
_EIGHT_BITS = 255.0
_FLAT = 10.0  # HU that anything measured spreads over, by noise alone
_CUT_LOW, _CUT_HIGH = 0.05, 0.002  # shares of values at the ends of a window, in air and in bone
_DEEP = -1500.0  # no noise of air reaches it
_TWICE = "as if the rescale intercept had been added twice"

_WAY = (
    "HU are expected, where air is -1000 and water 0. Apply the rescale slope and intercept of the DICOM header, and "
    "neither window nor scale the volume before"
)


def fill_padding(volume: Volume) -> Volume:
    """Return a CT in HU with all that lies below -1024 at -1024, as air.

    What is there is padding, or noise of air. It has to go before a volume is resampled: splines ring at a jump from
    -3024 into the body, and linear interpolation makes fat of padding and bone.
    """
    import numpy as np

    if volume.values.min() >= AIR:
        return volume
    return replace(volume, values=np.maximum(volume.values, np.float32(AIR)))


def drop_padding(volume: Volume) -> Volume:
    """Return a CT in HU with what was written in where nothing was measured as air; noise of air stays as it is."""
    import numpy as np

    if volume.values.min() >= _PADDING:
        return volume
    return replace(volume, values=np.where(volume.values < _PADDING, np.float32(AIR), volume.values))


def check_hounsfield(volume: Volume, window: tuple[float, float] | None) -> list[str]:
    """Check that values can be HU.

    Args:
        volume: With finite values. Where its header says CT, its scaled values are HU by definition: that they look
            otherwise is odd then, unless it is plain that the header's intercept is wrong.
        window: HU that the network tells apart.

    Returns:
        What is merely odd about them, to be logged.

    Raises:
        InputContractError: They cannot be HU: stored values before the rescale, scaled or windowed ones, MRI, PET.
    """
    import numpy as np

    sample = sample_of(volume.values)
    kept = sample[sample >= _PADDING]
    least = float(volume.values.min())
    if least < _PADDING:
        least = float(np.min(volume.values, where=volume.values >= _PADDING, initial=np.inf))
    said = _range(volume, least)
    if not kept.size:
        raise InputContractError(f"{said}: hardly anything but padding. {_WAY}")
    if volume.modality == CT and _NO_AIR < least < 0 and not _stored_values(kept):
        return [f"{said}: no air, which only crops inside the body lack"]
    if least > _NO_AIR:
        raise InputContractError(f"{said}: {_stored_values(kept) or _like_mri(volume, kept) or _WAY}")
    if (stored := _stored_values(kept)) and _has_air_at_zero(kept):
        raise InputContractError(f"{said}: {stored}")
    if written := _written_air(kept):
        rest = kept[kept > least]
        if np.ptp(rest) > _FLAT and (stored := _stored_values(rest)):
            raise InputContractError(f"{said}: {stored}")
        if rest.min() == 0 and rest.max() <= _EIGHT_BITS and float((rest == 0).mean()) > 0.01:
            windowed = f"{said}, {written} and the rest from 0 to {rest.max():g}, as of a window"
            if volume.modality != CT:
                raise InputContractError(f"{windowed}: {_WAY}")
            return [f"{windowed}: HU are expected, is the rescale of its header right?"]
    lowest = float((kept == least).mean())
    is_cut = least > _AIR[1] and lowest > 0.01 and lowest > 0.5 * _share(kept, least, least + 50)
    problem = _problem(sample, kept)
    if is_cut and not problem:
        if window is not None and least <= window[0]:
            return [f"{said}, cut off at {least:g}: this network does not tell lower HU apart, others do"]
        problem = f"cut off at {least:g}"
    if problem:
        if volume.modality != CT:
            raise InputContractError(f"{said}, {problem}: {_WAY}")
        return [f"{said}, {problem}: HU are expected, is the rescale of its header right?"]
    return [f"{said}, {odd}: is it a CT in HU?" for odd in _oddities(sample, kept)]


def looks_like_ct(volume: Volume) -> bool:
    """Whether a volume holds what in nature only a CT in HU does: much near -1000, much near 0, little elsewhere."""
    sample = sample_of(volume.values)
    kept = sample[sample >= _PADDING]
    if not len(kept) or kept.min() > _AIR[1] or _problem(sample, kept) or _between(kept) > 2:
        return False
    return _share(kept, *_AIR) >= 0.01 and _share(kept, *_SOFT) >= 0.01


def is_like_ct(volume: Volume) -> str:
    """Say in what a volume is like a CT that is not in HU, which MRI may be as well: stored values, a window.

    Empty where it is in neither: values as they are stored have air near 0 and soft tissue near 1024, those of a window
    are cut off at both ends, inside air and inside bone.
    """
    sample = sample_of(volume.values)
    kept = sample[sample >= _PADDING]
    if len(kept) and _stored_values(kept) and _share(kept, -900.0, -30.0) < 0.02 < _share(kept, -30.0, 300.0):
        return "much near 0 and near 1024 and little between, as a CT before its rescale"
    least, most = float(sample.min()), float(sample.max())
    low, high = float((sample == least).mean()), float((sample == most).mean())
    if low > _CUT_LOW and high > _CUT_HIGH:
        return f"{low:.0%} of them {least:g} and {high:.1%} of them {most:g}, cut off at both ends as a windowed CT"
    return ""


def _share(values: NDArray[Any], low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).mean())


def _between(values: NDArray[Any]) -> float:
    """Ratio of values between air and tissue to values near air: below 1 in a CT, except in diseased lungs."""
    return _share(values, -650.0, -300.0) / max(_share(values, _PADDING, -800.0), _AIRLESS)


def _range(volume: Volume, least: float) -> str:
    lowest, most = float(volume.values.min()), float(volume.values.max())
    said = f"{volume.source} has values from {lowest:g} to {most:g}"
    return said if least == lowest else f"{said}, above the padding from {least:g} on"


def _stored_values(kept: NDArray[Any]) -> str:
    """Say that soft tissue lies where it is stored, if much does: in a CT that is dense bone, with more of other."""
    stored = _share(kept, *_STORED) if len(kept) else 0.0
    if stored < 0.1 or stored < 4 * _share(kept, 300.0, 700.0):
        return ""
    return (
        "tissue lies near 1024 and no air at -1000, as in stored values before the rescale. Apply the rescale slope "
        "and intercept of the DICOM header, mostly slope 1 and RescaleIntercept -1024: image - 1024. HU are expected"
    )


def _like_mri(volume: Volume, kept: NDArray[Any]) -> str:
    """Say that a volume looks like MRI, with neither negative values nor tissue near 1024; empty if it may be a CT."""
    if volume.modality == CT or volume.values.min() < 0 or kept.max() <= _EIGHT_BITS:  # those of a window too
        return ""
    return (
        "no value is negative, and no tissue lies near 1024 as in a CT before its rescale: this looks like MRI. "
        "HU are expected, the network knows CT alone. If it is a CT, convert it again from its DICOM series"
    )


def _has_air_at_zero(kept: NDArray[Any]) -> bool:
    """Whether what would be soft tissue is air: nothing lies below it, where lung and fat are, but padding."""
    soft, stored = _share(kept, *_SOFT), _share(kept, *_STORED)
    return soft >= 0.01 and stored >= 0.5 * soft and _share(kept, -900.0, -30.0) < 0.02


def _written_air(kept: NDArray[Any]) -> str:
    """Say that all that seems air has one value, as what is written around a mask or a round field of view has.

    Air that was measured has noise, and lung and fat lie between it and water.
    """
    least = kept.min()
    rest = kept[kept > least]
    share = 1 - rest.size / kept.size
    if least > _AIR[1] or share < 0.005 or not rest.size or rest.min() <= _NO_AIR:
        return ""
    return f"{share:.0%} of them {least:g}, where air is"


def _problem(sample: NDArray[Any], kept: NDArray[Any]) -> str:
    """Say why values, whose smallest lie where air does, are no HU all the same; empty if they may be."""
    import numpy as np

    low, counts = np.unique(sample[sample < _PADDING], return_counts=True)
    spread = np.argsort(counts)[:-2]  # the most frequent two are padding
    below = float(counts[spread].sum()) / len(sample)
    deep = float(counts[spread][low[spread] < _DEEP].sum()) / len(sample)
    if deep > 0.05 and _share(sample, _SOFT[0], np.inf) < 0.2:
        return _TWICE
    if deep > 0.1 or (below > 0.1 and float((sample > -_PADDING).mean()) > 0.05):
        return f"{below:.0%} of them spread below {_PADDING:g}, as in phase images"
    if (beyond := _share(kept, _DENSEST, np.inf)) > 0.1:
        return f"{beyond:.0%} of them above {_DENSEST:g}, where only metal is, as in MRI and PET"
    if (usual := _share(kept, _PADDING, 300.0)) < 0.2:
        return f"{usual:.0%} of them air, fat, water or soft tissue"
    if _share(kept, *_AIR) >= _AIRLESS:
        return ""
    if (bright := float((kept > _BRIGHT).mean())) > 1e-3:
        return f"hardly any of them near -1000, but {bright:.1%} above {_BRIGHT:g}, as in resampled MRI and PET"
    if (dense := float((kept > 300).mean())) > 0.3:
        return f"hardly any of them near -1000, and {dense:.0%} above 300, where bone is, as in resampled MRI"
    return ""


def _oddities(sample: NDArray[Any], kept: NDArray[Any]) -> list[str]:
    is_padded, tissue = len(kept) < 0.9 * len(sample), _share(kept, _PADDING, -900.0)
    if is_padded and tissue > 0.5 and float((kept > _SOFT[0]).mean()) < 0.05:
        return [_TWICE]
    if (most := float(kept.max())) > _BRIGHT and (top := float((kept == most).mean())) > 0.02:
        return [f"{top:.0%} of them at the largest value, {most:g}, as where padding is written so"]
    if _share(kept, *_AIR) < _AIRLESS:
        return ["hardly any of them near -1000, where air is"]
    if _between(kept) > 5 and _share(kept, -650.0, -300.0) > 0.05:
        return ["more of them near -500 than near -1000, as in phase-sensitive MRI or diseased lungs"]
    if _share(kept, *_SOFT) < 0.01 and _share(kept, *_LUNG) < 0.8:
        return ["hardly any of them near 0, where soft tissue is, as in cone-beam CT that is not calibrated"]
    return []
