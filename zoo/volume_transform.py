"""The transform of volumes: place, units and range are checked, then windowed or z-scored.

What cannot be right raises `InputContractError`, what is merely odd is logged as a warning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import is_dicom
from zoo.volume_grid import to_atlas, to_spacing
from zoo.volumes import Volume, VolumeInput, read_volume, voxel_sizes, z_score

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

log = logging.getLogger("zoo")

GREY_MATTER = "modulated grey-matter density"
HOUNSFIELD = "HU"
_UNITS = (GREY_MATTER, HOUNSFIELD)

_CAT12 = (
    "Run CAT12 (or SPM12) on the T1 first: segmentation, with modulated normalised grey matter at 1.5 mm written out, "
    "and pass that file (mwp1*.nii of CAT12, mwc1*.nii of SPM12)"
)
_ROUNDING = 0.01
_MOST_DENSITY = 10.0  # no registration shrinks a place tenfold in volume; percentages and scans lie above
_LEAST_DENSITY = 0.3  # below it a map was scaled, or holds no brain
_UNMODULATED = (0.99, 1.001)  # the largest value of a probability map; volume changes move that of a modulated one
_USUAL_ML = (300.0, 1100.0)  # adults have 450 to 900 ml of grey matter; nilearn's ICBM152 map adds up to 1008
_MOST_ML = 2000.0  # no human skull holds more, of everything
_NO_AIR = -200.0  # HU; lung lies near -800 and the air around the patient at -1000, in every CT


def build_volume_transform(preprocessing: Preprocessing) -> VolumeTransform:
    """Return the transform that executes `preprocessing` on volumes; printing it shows its steps.

    Raises:
        OptionError: the facts contradict each other, or describe an input that no transform exists for.
    """
    facts = preprocessing
    if facts.units not in _UNITS or len(facts.channels) != 1:
        raise OptionError(
            f"no transform makes an input of size {facts.size} with channels {facts.channels} in {facts.units!r}: 2D "
            f"and grey is known, and volumes of one channel in {' or '.join(map(repr, _UNITS))}"
        )
    if len(facts.size) not in (0, 3) or (facts.affine is not None and not facts.size):
        raise OptionError(f"size {facts.size} with affine {facts.affine}: an affine is that of a grid of three sizes")
    if facts.size and facts.affine is None and (facts.spacing or facts.orientation):
        raise OptionError(f"size {facts.size} with spacing or orientation: a volume brought to these has its own size")
    if facts.affine is not None:
        _check_grid(facts, facts.affine)
    if facts.units == GREY_MATTER and not facts.size:
        raise OptionError(f"{GREY_MATTER} without a grid: its size is expected, and its affine where it is known")
    stray = [name for name in ("resize", "mean", "std") if getattr(facts, name) is not None]
    if stray or facts.normalise not in (None, "z-score"):
        raise OptionError(f"{stray or facts.normalise!r} mean nothing for a volume: window and normalise='z-score' do")
    if facts.window is not None and not facts.window[0] < facts.window[1]:
        raise OptionError(f"window {facts.window}: the smaller value is expected first")
    if facts.spacing is not None and (len(facts.spacing) != 3 or min(facts.spacing) <= 0):
        raise OptionError(f"spacing {facts.spacing}: three lengths in mm are expected")
    if facts.spline is not None and (facts.spacing is None or facts.spline not in (1, 3)):
        raise OptionError(f"spline {facts.spline} with spacing {facts.spacing}: 1 or 3 is expected, with a spacing")
    if facts.orientation is not None and not _is_orientation(facts.orientation):
        raise OptionError(f"orientation {facts.orientation!r}: one letter of each of LR, AP and IS is expected, as RAS")
    return VolumeTransform(facts)


def _check_grid(facts: Preprocessing, affine: tuple[tuple[float, ...], ...]) -> None:
    import numpy as np

    if [len(row) for row in affine] != [4] * 4 or affine[3] != (0, 0, 0, 1) or np.linalg.det(np.array(affine)) == 0:
        raise OptionError(f"affine {affine}: four rows of four are expected, the last 0, 0, 0, 1, and not singular")
    if facts.spacing is not None or facts.orientation is not None:
        raise OptionError("spacing and orientation say again, or otherwise, what the affine says: leave them out")


def _is_orientation(codes: str) -> bool:
    return len(codes) == 3 and all(len(set(codes) & set(pair)) == 1 for pair in ("LR", "AP", "IS"))


@dataclass(frozen=True, repr=False)
class VolumeTransform:
    """Makes one volume the input of a network; stateless, picklable, safe in data loader workers."""

    preprocessing: Preprocessing
    quiet: bool = False
    """Whether what is merely odd goes unsaid, as where it was said before."""

    def __call__(self, volume: VolumeInput) -> Tensor:
        """Return `volume` as a float32 tensor `(1, i, j, k)`, axes in nibabel's order, as the network knows it.

        With an `affine` in the facts, a file is brought to that grid of MNI152 by `volume_grid.to_atlas`: bit by bit
        where its voxels are voxels of the grid, in any order and direction of its axes, else by linear interpolation
        where its header names the atlas. Without one its axes are turned to `orientation` and it is resampled to
        `spacing`, by splines of the degree that the facts say.

        Args:
            volume: A path to NIfTI or `.npy`, a nibabel image of NIfTI, an array or a tensor; for HU also a folder with
                a DICOM series of CT; see `volumes.read_volume`. An array or a tensor has no place in the world: it must
                have the shape of the grid, and its voxels are taken to be in the grid's order, which cannot be checked.
                A tensor's result is on its device.

        Raises:
            InputContractError: the volume cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: the path does not exist.
        """
        import numpy as np
        import torch

        facts = self.preprocessing
        found = _read(volume, facts)
        odd = check_values(found, facts)
        if facts.affine is None and facts.size:
            placed = _as_it_is(found, facts)
        elif facts.affine is None:
            placed = to_spacing(found, facts.orientation, facts.spacing, facts.spline or 1)
        else:
            placed = to_atlas(found, facts.size, np.array(facts.affine), _CAT12)
            odd += _check_amount(placed, facts, found.source)
        for line in () if self.quiet else odd:  # only now that nothing refused the volume
            log.warning("%s", line)
        output = torch.from_numpy(np.ascontiguousarray(_scale(placed, facts)))[None]
        return output.to(volume.device) if isinstance(volume, torch.Tensor) else output

    def __repr__(self) -> str:
        facts = self.preprocessing
        low, high = facts.value_range
        scale = "none" if facts.window is None else "clip to [{:g}, {:g}], ".format(*facts.window)
        steps = {
            "read": f"NIfTI, {'DICOM, ' if facts.units == HOUNSFIELD else ''}nibabel image, .npy, array or tensor",
            "check": f"{facts.units}{'' if facts.window else f', {low:g} to {high:g}'}",
            "place": _place_in_words(facts),
            "window": scale if facts.window is None else f"{scale}scale to [{low:g}, {high:g}]",
            "normalise": "none" if facts.normalise is None else f"{facts.normalise} over the whole volume",
            "output": f"float32 {(1, *facts.size) if facts.size else '(1, any size)'}: {facts.channels[0]}",
        }
        return "VolumeTransform(\n" + "".join(f"    {name:<10}{text}\n" for name, text in steps.items()) + ")"


def _place_in_words(facts: Preprocessing) -> str:
    if facts.affine is None:
        turned = f"axes to {facts.orientation}" if facts.orientation else "axes as they are"
        spacing = " x ".join(f"{size:g}" for size in facts.spacing) + " mm" if facts.spacing else "voxels as they are"
        spacing += ", cubic splines" if facts.spline == 3 else ""
        return f"{turned}, {spacing}"
    import nibabel
    import numpy as np

    matrix = np.array(facts.affine)
    voxels = " x ".join(map(str, facts.size))
    sizes = " x ".join(f"{size:g}" for size in voxel_sizes(matrix))
    return f"on the grid of {voxels} voxels of {sizes} mm in MNI152, axes {''.join(nibabel.aff2axcodes(matrix))}"


def _read(volume: VolumeInput, facts: Preprocessing) -> Volume:
    if facts.units == GREY_MATTER and isinstance(volume, (str, PathLike)):
        path = Path(volume)
        if path.is_dir() or (path.suffix != ".npy" and path.exists() and is_dicom(path)):
            raise InputContractError(
                f"{path} is {'a folder' if path.is_dir() else 'DICOM'}, as raw scans come: one file of {facts.units} "
                f"is expected. {_CAT12}"
            )
    return read_volume(volume)


def _as_it_is(volume: Volume, facts: Preprocessing) -> NDArray[Any]:
    """Where the grid of the weights lies is not on record: an array of its shape is taken, a file cannot be placed."""
    if volume.affine is not None or volume.values.shape != facts.size:
        place = "an array" if volume.affine is None else "a file with a place in the world"
        raise InputContractError(
            f"{volume.source} is {place} of {volume.values.shape} voxels: these weights were trained on arrays of "
            f"{facts.size} whose place is not on record. Bring the volume to their grid and pass the array"
        )
    return volume.values


def check_values(volume: Volume, facts: Preprocessing) -> list[str]:
    """Check that the values can be in the units of the facts, as far as they tell.

    Returns:
        What is merely odd about them, to be logged.

    Raises:
        InputContractError: They are not finite, all the same, or cannot be in these units.
    """
    import numpy as np

    values = volume.values
    if wrong := int((~np.isfinite(values)).sum()):
        raise InputContractError(
            f"{volume.source} has {wrong} NaN or infinite value(s): finite ones are expected. Where they stand for the "
            "background, write it in: numpy.nan_to_num"
        )
    if values.min() == values.max():
        raise InputContractError(f"{volume.source} is constant ({values.min():g} everywhere): an image is expected")
    check = _check_grey_matter if facts.units == GREY_MATTER else _check_hounsfield
    return check(volume, facts)


def _check_grey_matter(volume: Volume, facts: Preprocessing) -> list[str]:
    """Tell a modulated density map from what else a brain's file may hold, by its values alone."""
    import numpy as np

    values, (low, high) = volume.values, facts.value_range
    least, most = float(values.min()), float(values.max())
    are_whole = bool((values == np.rint(values)).all())
    said = f"{volume.source} has {'whole numbers' if are_whole else 'values'} from {least:g} to {most:g}"
    if least < low - _ROUNDING:
        raise InputContractError(
            f"{said}: a {facts.units} has no negative values. If the volume is z-scored already and on the grid, pass "
            f"it to the network as it is, without this transform. {_CAT12}"
        )
    if most > _MOST_DENSITY or (are_whole and most > 1):
        raise InputContractError(
            f"{said}, as raw scans, label maps and percentages have: a {facts.units} is expected, fractions of which "
            f"the largest lie between 1 and 3. {_CAT12}"
        )
    if are_whole:
        return [f"{said}, a mask: a {facts.units} is expected, and features of a mask may mean little"]
    if most > high:
        return [f"{said}, where a {facts.units} has {low:g} to {high:g}: is the registration right?"]
    if _UNMODULATED[0] <= most <= _UNMODULATED[1]:
        return [f"{said}, as a map that is not modulated (wp1): a {facts.units} (mwp1) is expected"]
    if most < _LEAST_DENSITY and facts.affine is None:  # elsewhere the amount of grey matter tells
        return [f"{said}: of a {facts.units} the largest lie between 1 and 3, were these scaled, or no brain?"]
    return []


def _check_hounsfield(volume: Volume, facts: Preprocessing) -> list[str]:
    least, most = float(volume.values.min()), float(volume.values.max())
    if least > _NO_AIR:
        raise InputContractError(
            f"{volume.source} has values from {least:g} to {most:g}: HU are expected, where air is -1000 and water 0. "
            "Apply the rescale slope and intercept of the DICOM header, and neither window nor scale the volume before"
        )
    return []


def _check_amount(placed: NDArray[Any], facts: Preprocessing, source: str) -> list[str]:
    """Check how much grey matter a map adds up to, density times the volume of a voxel; returns what is odd."""
    import numpy as np

    if facts.units != GREY_MATTER:
        return []
    amount = float(placed.sum(dtype=np.float64) * abs(np.linalg.det(np.array(facts.affine)[:3, :3])) / 1000)
    if amount > _MOST_ML:
        raise InputContractError(
            f"{source} adds up to {amount:.0f} ml of grey matter, more than a skull holds: a {facts.units} is "
            f"expected. {_CAT12}"
        )
    least, most = _USUAL_ML
    if least <= amount <= most:
        return []
    return [
        f"{source} adds up to {amount:.0f} ml of grey matter, where brains have {least:.0f} to {most:.0f}: is it a "
        f"{facts.units} of a whole brain?"
    ]


def _scale(values: NDArray[Any], facts: Preprocessing) -> NDArray[Any]:
    """Clip to the window, bring it to the declared range, take the z-score: what the facts ask for."""
    if facts.window is not None:
        (low, high), (least, most) = facts.window, facts.value_range
        values = least + (values.clip(low, high) - low) * ((most - least) / (high - low))
    return z_score(values) if facts.normalise == "z-score" else values
