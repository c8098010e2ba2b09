"""Puts the planes of a DICOM volume in order and checks that they are one stack with even steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.dicom_frames import Plane
from zoo.messages import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNEVEN = 0.05  # of the step between slices; a lost slice gives 1
_MOST_ROUNDING = 0.4  # of the smallest step: what rounded positions may add; a lost one of four slices has 0.425
_SAME = 1e-3  # mm: planes closer than this lie at one position
_NOISE = 1e-4  # mm: positions pass through float32 on some scanners, which is no further digit
_DECIMALS = (0, 1, 2)
_SIGNIFICANT = (3, 4, 5)
_APART = {
    "TemporalPositionIndex": "temporal position",
    "TemporalPositionIdentifier": "temporal position",
    "EffectiveEchoTime": "echo time",
    "EchoTime": "echo time",
    "DiffusionBValue": "b-value",
    "DiffusionGradientOrientation": "gradient direction",
    "InversionTime": "inversion time",
    "InversionTimes": "inversion time",
    "NominalPercentageOfCardiacPhase": "cardiac phase",
    "NominalCardiacTriggerDelayTime": "cardiac phase",
    "TriggerTime": "cardiac phase",
    "FlipAngle": "flip angle",
    "ComplexImageComponent": "part of complex values",
    "FrameType": "frame type",
    "ImageType": "image type",
    "ConvolutionKernel": "kernel",
    "KVP": "tube voltage",
    "AcquisitionNumber": "acquisition",
    "StackID": "stack",
    "DimensionIndexValues": "dimension index",
}
"""Elements that differ between planes at one position, most telling first, with their names in words."""
_SEPARATE = "Take the volumes apart, for example with dcm2niix, and pass one"


def ordered(planes: Sequence[Plane]) -> list[Plane]:
    """Return parallel planes sorted along their normal."""
    normal = planes[0].normal
    return sorted(planes, key=lambda plane: float(normal @ plane.position))


def check_single_volume(planes: Sequence[Plane], source: str) -> None:
    """Check that sorted planes are one volume: one stack, and no two planes at one position.

    Raises:
        InputContractError: They are several; how many, two planes at one position, and what tells them apart.
    """
    import numpy as np

    stacks = {str(plane.get("StackID")) for plane in planes}
    if len(stacks) > 1:
        raise InputContractError(f"{source} holds {len(stacks)} volumes (stacks): one is expected. {_SEPARATE}")
    steps = _along(planes)
    same = np.flatnonzero(steps <= _SAME)
    positions = len(planes) - len(same)
    if not len(same) or positions == 1:
        return
    one, other = planes[same[0]], planes[same[0] + 1]
    differ = list(dict.fromkeys(word for keyword, word in _APART.items() if one.get(keyword) != other.get(keyword)))
    words = ", ".join(differ[:3])
    runs = np.bincount(np.cumsum(np.concatenate([[True], steps > _SAME])))[1:]
    if len(set(runs.tolist())) == 1:
        raise InputContractError(
            f"{source} holds {runs[0]} volumes{words and f' ({words})'}: its {len(planes)} slices lie at {positions} "
            f"positions, {one.name} and {other.name} at one. One volume is expected. {_SEPARATE}"
        )
    raise InputContractError(
        f"{source}: {one.name} and {other.name} lie at one position{words and f' and differ in {words}'}. One volume "
        "is expected: take out what does not belong to it"
    )


def step_of(planes: Sequence[Plane], source: str) -> NDArray[Any]:
    """Return the step in mm from a plane to the next, `(3,)`, from the first and last of the sorted planes.

    Steps may be off by 5 %, and by what rounding of the positions to 1, 0.1 or 0.01 mm or to a few significant digits
    gives, which the positions themselves tell; each plane must lie within half a voxel of its position in the stack.

    Raises:
        InputContractError: The steps are not even, as after the loss of a slice, or planes are shifted aside.
    """
    import numpy as np

    positions, distances = np.array([plane.position for plane in planes]), _along(planes)
    mean, least = float(distances.mean()), float(distances.min())
    rounding = _rounding(positions, planes[0].normal, least) * (1 + 1 / len(distances))
    if least <= 0 or np.abs(distances - mean).max() > _UNEVEN * mean + min(rounding, _MOST_ROUNDING * least):
        widest = int(distances.argmax())
        raise InputContractError(
            f"{source}: its {len(planes)} slices lie {least:.3g} to {distances.max():.3g} mm apart: even steps are "
            f"expected. Slices are missing or there twice; the widest step is from {planes[widest].name} to "
            f"{planes[widest + 1].name}. Copy the whole series again; if it was scanned so, resample it to even steps"
        )
    step: NDArray[Any] = (positions[-1] - positions[0]) / (len(planes) - 1)
    _check_straight(planes, positions - positions[0] - np.arange(len(planes))[:, None] * step, mean, source)
    return step


def _check_straight(planes: Sequence[Plane], off: NDArray[Any], mean: float, source: str) -> None:
    """Check that every plane is nearer to its own voxels' positions, `off` by so much `(n, 3)`, than to others'."""
    import numpy as np

    first = planes[0]
    axes = np.stack([first.directions[0] / first.spacing[1], first.directions[1] / first.spacing[0]])
    voxels = np.abs(off @ np.vstack([axes, first.normal / mean]).T).max(axis=1)
    if voxels.max() > 0.5:
        worst = int(voxels.argmax())
        raise InputContractError(
            f"{source}: its slices do not lie on a straight line: {planes[worst].name} is "
            f"{np.linalg.norm(off[worst]):.3g} mm off the line from the first to the last, as with another field of "
            "view or a moved table. One stack is expected: take out what does not belong to it, or resample it"
        )


def _along(planes: Sequence[Plane]) -> NDArray[Any]:
    import numpy as np

    return np.diff([float(planes[0].normal @ plane.position) for plane in planes])


def _rounding(positions: NDArray[Any], normal: NDArray[Any], least: float) -> float:
    """Return by how many mm the last digit of the positions `(n, 3)` may move a plane along the normal."""
    import numpy as np

    moving = np.ptp(positions, axis=0) > _NOISE
    return sum(
        float(abs(part)) * max((digit for digit in _last_digits(values) if digit <= least / 2), default=0.0)
        for part, values, is_moving in zip(normal, positions.T, moving, strict=True)
        if is_moving
    )


def _last_digits(values: NDArray[Any]) -> list[float]:
    """Return in mm what the last digit may be worth in coordinates `(n,)`, all rounded in one way."""
    import numpy as np

    def fit(digits: Any) -> bool:
        return bool((np.abs(values - np.rint(values / digits) * digits) <= _NOISE).all())

    decimals = [digit for digit in (10.0**-count for count in _DECIMALS) if fit(digit)][:1]
    size = np.floor(np.log10(np.maximum(np.abs(values), 1.0))) + 1
    significant = [digits for digits in (10.0 ** (size - count) for count in _SIGNIFICANT) if fit(digits)][:1]
    return decimals + [float(digits.max()) for digits in significant]


def describe(planes: Sequence[Plane]) -> str:
    """Say in words what a stack of planes is, for a list to choose from."""
    import numpy as np

    first = planes[0]
    way = ("sagittal", "coronal", "axial")[int(np.abs(first.normal).argmax())]
    name, number = first.get("SeriesDescription"), first.get("SeriesNumber")
    title = f"{printable(name)!r}" if name else "without description"
    series = f"{title}{'' if number is None else f' (series {printable(number)})'}"
    return f"{series}: {len(planes)} {way} of {first.get('Columns')} x {first.get('Rows')} pixels, {first.name} and on"
