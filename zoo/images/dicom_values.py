"""Rescales the stored values of DICOM planes to HU, or to an MR's values, and fills padding with background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.images.dicom_bounds import decode_pixels
from zoo.images.dicom_frames import Plane
from zoo.images.reading import MOST_VOXELS, check_count
from zoo.messages import printable
from zoo.oddities import warn_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

AIR = -1024.0
"""HU written where a CT is padded, and below which nothing is told apart: air is -1000, and 12 bits begin at -1024."""
_TISSUE = (-1000.0, 3071.0)  # HU above air that 12 bits hold: padding among them would take voxels of the body with it
_PADDING = "PixelPaddingValue"
_UNSAID = ("", "HU", "HOUNSFIELD")
_OPEN = ("US", "HU_MOD")  # PS3.3 C.11.1.1.2: "unspecified", which many write who mean HU, and "modified HU"


def check_scale(planes: Sequence[Plane], source: str) -> None:
    """Check that all planes are grey, fit the memory, and have one kind of values, which for CT is HU.

    Raises:
        InputContractError: They are not. A CT in other units (iodine, electron density, ...) names them; where the
            units are said to be unspecified a warning is logged, and what the values are like decides later.
    """
    sides = [planes[0].get(name) for name in ("Columns", "Rows")]
    pixels = sides[0] * sides[1] if all(isinstance(side, int) for side in sides) else 0
    if pixels <= 0:
        raise InputContractError(f"{source} declares slices of {' x '.join(map(printable, sides))} pixels")
    check_count((*sides, len(planes)), MOST_VOXELS, source, unit="voxels")
    if len({plane.get("RescaleSlope") is None for plane in planes}) > 1:
        raise InputContractError(f"{source}: some slices have a RescaleSlope, others have none. One series is expected")
    if planes[0].get("Modality") != "CT":
        return
    kinds = {str(plane.get("RescaleType") or "").strip().upper() for plane in planes}.difference(_UNSAID)
    if others := sorted(kinds.difference(_OPEN)):
        raise InputContractError(
            f"{source} is a CT in {', '.join(map(printable, others))} (RescaleType), not in HU: take the series of the "
            "same scan that is in HU"
        )
    if kinds:
        warn_of(source, f"{source} is a CT whose RescaleType is {', '.join(sorted(kinds))}, not HU")


def values_of(planes: Sequence[Plane], source: str) -> NDArray[Any]:
    """Return the values of sorted planes as float32 `(columns, rows, planes)`.

    Stored values are multiplied by RescaleSlope, and RescaleIntercept is added, plane by plane; of an MR they stay as
    stored where it has neither. Where a plane stores PixelPaddingValue, or a value from there to
    PixelPaddingRangeLimit, a CT becomes -1024 HU and an MR the lowest value of the rest.

    Raises:
        InputContractError: Pixels cannot be decoded.
    """
    import numpy as np

    first = planes[0]
    is_ct = first.get("Modality") == "CT"
    values = np.empty((first.get("Columns"), first.get("Rows"), len(planes)), np.float32)
    is_padding = np.zeros(values.shape, bool) if any(plane.get(_PADDING) is not None for plane in planes) else None
    ignored = False
    for index, plane in enumerate(planes):
        stored = stored_values(plane)
        slope, intercept = _rescale(plane)
        values[:, :, index] = (stored * slope + intercept).T
        padding = _padding(plane)
        if plane.frame is None:
            del plane.dataset.PixelData  # read, and as large as the values
        if is_padding is None or padding is None:
            continue
        if is_ct and not _is_beyond_tissue(padding, slope, intercept):
            ignored = True
            continue
        is_padding[:, :, index] = ((stored >= padding[0]) & (stored <= padding[1])).T
    if ignored:
        warn_of(source, f"{source}: its PixelPaddingValue lies among the HU of tissue and is not taken for padding")
    return values if is_padding is None else _filled(values, is_padding, is_ct)


def stored_values(plane: Plane) -> NDArray[Any]:
    """Return the pixels of one plane as stored, `(rows, columns)`.

    Raises:
        InputContractError: They cannot be decoded, or are no single grey image.
    """
    stored = decode_pixels(plane.dataset, plane.path, frame=plane.frame)
    if stored.shape != (plane.get("Rows"), plane.get("Columns")):
        raise InputContractError(f"{plane.path} holds pixels {stored.shape}: one grey slice is expected")
    return stored


def _rescale(plane: Plane) -> tuple[float, float]:
    slope, intercept = plane.get("RescaleSlope"), plane.get("RescaleIntercept")
    try:
        return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
    except (TypeError, ValueError) as error:
        raise InputContractError(f"{plane.path}: its rescale slope or intercept is not a number ({error})") from error


def _padding(plane: Plane) -> tuple[int, int] | None:
    """Return the least and the largest stored value that stand for padding (PS3.3 C.7.5.1.1.2)."""
    ends = [_as_stored(plane, plane.get(keyword)) for keyword in (_PADDING, "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    other = ends[0] if ends[1] is None else ends[1]
    return min(ends[0], other), max(ends[0], other)


def _as_stored(plane: Plane, value: Any) -> int | None:
    """Return an element in the sign of the pixels: its own (US or SS) often is another one."""
    values = 1 << int(plane.get("BitsAllocated"))
    if isinstance(value, bytes):  # written without a value representation
        value = int.from_bytes(value, "little")
    if not isinstance(value, int):
        return None
    wrapped = value % values
    return wrapped - values if plane.get("PixelRepresentation") == 1 and wrapped >= values // 2 else wrapped


def _is_beyond_tissue(padding: tuple[int, int], slope: float, intercept: float) -> bool:
    low, high = sorted(end * slope + intercept for end in padding)
    return high <= _TISSUE[0] or low > _TISSUE[1]


def _filled(values: NDArray[Any], is_padding: NDArray[Any], is_ct: bool) -> NDArray[Any]:
    """Write background where values stand for padding, unless they lie among those of the rest of an MR."""
    rest = values[~is_padding]
    if not rest.size or rest.size == values.size:
        return values
    if is_ct:
        values[is_padding] = AIR
        return values
    least, most = rest.min(), rest.max()
    beyond = is_padding & ((values < least) | (values > most))
    values[beyond] = least
    return values
