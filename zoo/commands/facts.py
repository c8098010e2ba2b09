"""Finds what an image is, for `zoo doctor FILE`: sizes, axes, values, beside what a model's input contract expects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import MIN_MAX, PERCENTILES, Preprocessing
from zoo.images import MNI152, PIL_FORMATS, Volume, is_dicom, read_dicom, read_picture, voxel_sizes
from zoo.messages import lengths, printable
from zoo.transforms import HOUNSFIELD, SMALLEST_SIDE, intent_name, read_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPACES = {0: "not said", 1: "a scanner", 2: "aligned to another file", 3: "Talairach", MNI152: "MNI152"}
_MOST_SAMPLED = 1_000_000
"""Values that quantiles are taken of: their error is then below a thousandth of the distribution."""
_ANY_SIDES = (1, 1, 1)


@dataclass(frozen=True)
class Fact:
    """One line of what was found."""

    what: str
    found: str
    expected: str


def look_at_picture(path: Path, contract: Preprocessing) -> tuple[Path, tuple[Fact, ...]]:
    """Return the path, which the transform is given, and what was found.

    Raises:
        InputContractError: The file cannot be read; `FileNotFoundError` too.
    """
    low, high = contract.value_range
    windowed = contract.normalise != MIN_MAX
    pixels = read_dicom(path, window=windowed) if is_dicom(path) else read_picture(path)
    resized = f"; shorter side to {contract.resize}, centre" if contract.resize else "; resized to"
    dicom = "DICOM, in its window" if windowed else "DICOM, without its window"
    kind = dicom if is_dicom(path) else str(_format(path))
    is_grey = pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())
    scale = f"{low:g} to {high:g} of {contract.units}"
    return path, (
        Fact("format", kind, f"{', '.join(PIL_FORMATS)} or DICOM"),
        Fact("pixels", lengths(pixels.shape[:2]), f"at least {SMALLEST_SIDE} a side{resized} {lengths(contract.size)}"),
        Fact("channels", "grey" if is_grey else "colours", "grey; colours become luminance"),
        Fact("values", _values(pixels, str(pixels.dtype)), scale),
    )


def _format(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        return image.format


def look_at_volume(given: Path | Volume, contract: Preprocessing) -> tuple[Volume, tuple[Fact, ...]]:
    """Return the volume, read once for facts and transform, and what was found.

    Raises:
        InputContractError: The file cannot be read; `FileNotFoundError` too.
    """
    import nibabel
    import numpy as np

    volume = read_input(given, contract, least=_ANY_SIDES)
    affine, unknown = volume.affine, "not known: an array"
    slices = len(contract.size) == 2
    sides = f"slices of {lengths(contract.size)}, cut or padded" if slices else lengths(contract.size) or "any"
    sides = f"any, {sides} around a {contract.crop}" if contract.crop else sides
    grid = None if contract.affine is None else np.array(contract.affine)
    spacing = contract.spacing if grid is None else tuple(voxel_sizes(grid))
    axes = contract.orientation if grid is None else "".join(nibabel.aff2axcodes(grid))
    facts = [
        Fact("voxels", lengths(volume.values.shape), sides),
        Fact(
            "size of a voxel in mm",
            unknown if affine is None else lengths(voxel_sizes(affine)),
            _spacing(spacing, contract),
        ),
        Fact("axes to", unknown if affine is None else "".join(nibabel.aff2axcodes(affine)), _axes(axes, contract)),
        Fact("values", _values(volume.values), _range(contract)),
    ]
    if contract.modality is not None:
        facts.append(Fact("modality", printable(volume.modality) or "not said", contract.modality))
    if volume.intent:
        facts.append(Fact("intent", f"{intent_name(volume.intent)} ({volume.intent})", "none, an image"))
    if grid is not None:
        facts.append(Fact("space", _SPACES.get(volume.space, str(volume.space)), "MNI152, or the same grid"))
    if contract.window is not None:
        low, high = contract.window
        inside = float(((volume.values >= low) & (volume.values <= high)).mean())
        facts.append(Fact("inside the window", f"{inside:.1%} of the voxels", f"{low:g} to {high:g} {contract.units}"))
    return volume, tuple(facts)


def _axes(wanted: str | None, contract: Preprocessing) -> str:
    if wanted is None:
        return "as they are"
    if contract.interpolation is not None:
        return f"{wanted}, never turned"
    return f"{wanted}{' in axial slices, others alike' if len(wanted) == 2 else ''}, turned from any"


def _range(contract: Preprocessing) -> str:
    low, high = contract.value_range
    if contract.window is not None:
        return f"{contract.units}, air at -1000 and water at 0" if contract.units == HOUNSFIELD else contract.units
    is_scaled = contract.normalise in (PERCENTILES, MIN_MAX) or contract.interpolation is not None
    return contract.units if is_scaled else f"{contract.units}, {low:g} to {high:g}"


def _spacing(sizes: tuple[float, ...] | None, contract: Preprocessing) -> str:
    if sizes is None:
        return "as they are"
    if contract.interpolation is not None:
        return f"{lengths(sizes)} once it is resized to {lengths(contract.size)}"
    return f"{lengths(sizes)}{' in the plane' if len(sizes) == 2 else ''}, resampled from any"


def _values(values: NDArray[Any], stored: str = "") -> str:
    """Range and quantiles, and what such values usually are."""
    import numpy as np

    flat = values.ravel()
    sample = flat[:: max(1, flat.size // _MOST_SAMPLED)]
    if not np.isfinite(flat).all():
        return "some are NaN or infinite"
    least, most = float(flat.min()), float(flat.max())
    low, middle, high = np.percentile(sample, (1, 50, 99))
    said = f"{least:g} to {most:g}, 98 % in {low:.4g} to {high:.4g}, median {middle:.4g}"
    looks = _looks_like(least, most, bool((sample == np.rint(sample)).all()))
    return f"{f'{stored}, ' if stored else ''}{said}{looks and f': look like {looks}'}"


def _looks_like(least: float, most: float, are_whole: bool) -> str:
    """Name what values of a range usually are; empty where that is open."""
    if least >= 0 and are_whole:
        scales = ((1, "a mask"), (255, "8 bit, 0-255"), (4095, "12 bit, 0-4095"), (65535, "16 bit, 0-65535"))
        return next((name for top, name in scales if most <= top), "")
    if least >= 0:
        return "fractions, 0-1" if most <= 1 else ""
    if least <= -900 and most >= 100:
        return HOUNSFIELD
    return "z-scores" if least > -20 and most < 20 and not are_whole else ""
