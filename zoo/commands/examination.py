"""Compares an image with a model's input contract, for `zoo doctor FILE --for NAME`.

The verdict is that of the model's own transform, which is run; beside it stands what was found, and what is expected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import MIN_MAX, PERCENTILES, Preprocessing
from zoo.errors import InputContractError
from zoo.images import MNI152, PIL_FORMATS, Volume, is_dicom, read_dicom, read_picture, voxel_sizes
from zoo.loading import input_of
from zoo.messages import printable
from zoo.registry import resolve
from zoo.transforms import (
    HOUNSFIELD,
    SMALLEST_SIDE,
    CropTransform,
    ImageTransform,
    build_transform,
    intent_name,
    read_input,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

log = logging.getLogger("zoo")

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


@dataclass(frozen=True)
class Examination:
    """The result of holding one image against one model's input."""

    path: str
    model: str
    """With the tag of the weights whose input is meant."""
    fits: bool
    """Whether `load_transform` takes the image. What is merely odd is in `warnings`."""
    facts: tuple[Fact, ...]
    """Empty where the file cannot be read at all."""
    warnings: tuple[str, ...]
    problem: str
    """Why it does not fit, and what to do; empty if it fits."""
    gives: str
    """Shape and range of what the network would get; empty if it does not fit."""


def examine(
    path: str | Path, name: str, *, checkpoint: str | Path | None = None, cache_dir: str | Path | None = None
) -> Examination:
    """Read an image and hold it against the input of a model.

    Args:
        path: File or folder, as `load_transform` takes it.
        name: `MODEL` or `MODEL.TAG`.
        checkpoint: Your own file, whose header may state another input; as for `load_transform`.
        cache_dir: Cache folder, where imported weights are on record; default `$ZOO_HOME`.

    Raises:
        UnknownModelError: No such model or tag.
        FileNotFoundError: There is nothing at `path`.
        CheckpointFormatError: The checkpoint cannot be read.
    """
    wanted = resolve(name, cache_dir)
    model = f"{wanted.entry.name}.{wanted.record.tag}" if wanted.record and checkpoint is None else name
    return hold_against(Path(path), input_of(name, checkpoint, cache_dir), model)


def hold_against(path: Path, contract: Preprocessing, model: str, read: Volume | None = None) -> Examination:
    """Hold an image against an input, as `examine` does.

    Args:
        path: File or folder.
        contract: The input.
        model: Whose it is, for the result.
        read: The volume in the file, where it was read before.

    Raises:
        FileNotFoundError: There is nothing at `path`.
    """
    transform: Any = build_transform(contract)
    look = _look_at_picture if isinstance(transform, ImageTransform) else _look_at_volume
    image: Any = read or path
    facts: tuple[Fact, ...] = ()
    problem = gives = ""
    with _heard() as warnings:
        try:
            image, facts = look(image, contract)
        except InputContractError as error:  # the transform may know better what was given
            problem = str(error)
        try:
            gives = transform.trial(image) if isinstance(transform, CropTransform) else _in_words(transform(image))
            problem = ""
        except InputContractError as error:
            problem = str(error)
    return Examination(str(path), model, not problem, facts, tuple(dict.fromkeys(warnings)), problem, gives)


def _look_at_picture(path: Path, contract: Preprocessing) -> tuple[Path, tuple[Fact, ...]]:
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
        Fact("pixels", _times(pixels.shape[:2]), f"at least {SMALLEST_SIDE} a side{resized} {_times(contract.size)}"),
        Fact("channels", "grey" if is_grey else "colours", "grey; colours become luminance"),
        Fact("values", _values(pixels, str(pixels.dtype)), scale),
    )


def _format(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        return image.format


def _look_at_volume(given: Path | Volume, contract: Preprocessing) -> tuple[Volume, tuple[Fact, ...]]:
    import nibabel
    import numpy as np

    volume = read_input(given, contract, least=_ANY_SIDES)
    affine, unknown = volume.affine, "not known: an array"
    slices = len(contract.size) == 2
    sides = f"slices of {_times(contract.size)}, cut or padded" if slices else _times(contract.size) or "any"
    sides = f"any, {sides} around a {contract.crop}" if contract.crop else sides
    grid = None if contract.affine is None else np.array(contract.affine)
    spacing = contract.spacing if grid is None else tuple(voxel_sizes(grid))
    axes = contract.orientation if grid is None else "".join(nibabel.aff2axcodes(grid))
    facts = [
        Fact("voxels", _times(volume.values.shape), sides),
        Fact(
            "size of a voxel in mm",
            unknown if affine is None else _times(voxel_sizes(affine)),
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
        return f"{_times(sizes)} once it is resized to {_times(contract.size)}"
    return f"{_times(sizes)}{' in the plane' if len(sizes) == 2 else ''}, resampled from any"


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


def _in_words(made: Tensor) -> str:
    kind = str(made.dtype).removeprefix("torch.")
    return f"{kind} {tuple(made.shape)}, {float(made.min()):.3g} to {float(made.max()):.3g}"


def _times(sizes: Any) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what the zoo warns of, which nobody else hears meanwhile."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, propagates = Ear(logging.WARNING), log.propagate
    log.addHandler(ear)
    log.propagate = False
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.propagate = propagates
