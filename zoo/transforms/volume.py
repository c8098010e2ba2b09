"""Transforms volumes: grid, units and range are checked, then values are windowed, z-scored or scaled by their range.

What cannot be right raises `InputContractError`, what is merely odd is logged as a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entry import MIN_MAX, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import SMALLEST_SIDES, Volume, VolumeInput, is_dicom, read_volume, voxel_sizes, z_score
from zoo.messages import in_steps
from zoo.oddities import warn_of
from zoo.transforms.grey_matter import CAT12, GREY_MATTER, check_density, check_placed
from zoo.transforms.grid import to_atlas, to_spacing
from zoo.transforms.hounsfield import HOUNSFIELD, check_hounsfield, fill_padding
from zoo.transforms.intensities import INTENSITIES, check_intensities, min_max
from zoo.transforms.kinds import check_finite, check_kind, check_labels, refuse_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_UNITS = (GREY_MATTER, HOUNSFIELD, INTENSITIES)


def build_volume_transform(contract: Preprocessing) -> VolumeTransform:
    """Return the transform that executes a contract on volumes; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    if contract.units not in _UNITS or len(contract.channels) != 1:
        raise OptionError(
            f"no transform makes an input of size {contract.size} with channels {contract.channels} in "
            f"{contract.units!r}: 2D grey images are known, and volumes of one channel in "
            f"{' or '.join(map(repr, _UNITS))}"
        )
    if len(contract.size) not in (0, 3) or (contract.affine is not None and not contract.size):
        raise OptionError(
            f"size {contract.size} with affine {contract.affine}: an affine is that of a grid of three sizes"
        )
    if contract.size and contract.affine is None and (contract.spacing or contract.orientation):
        raise OptionError(
            f"size {contract.size} with spacing or orientation: a volume brought to these has its own size"
        )
    if contract.affine is not None:
        _check_grid(contract, contract.affine)
    if contract.units == GREY_MATTER and not contract.size:
        raise OptionError(f"{GREY_MATTER} without a grid: its size is expected, and its affine where it is known")
    stray = [name for name in ("resize", "interpolation", "mean", "std") if getattr(contract, name) is not None]
    known = (MIN_MAX,) if contract.units == INTENSITIES else (None, "z-score")
    if stray or contract.normalise not in known:
        raise OptionError(
            f"{stray or contract.normalise!r} mean nothing for a volume in {contract.units!r}: window does, and "
            f"normalise={' or '.join(map(repr, known))}"
        )
    if contract.normalise == MIN_MAX and contract.value_range != (0, 1):
        raise OptionError(f"value_range {contract.value_range} with normalise={MIN_MAX!r}: it is always 0 and 1")
    if contract.window is not None and not contract.window[0] < contract.window[1]:
        raise OptionError(f"window {contract.window}: the smaller value is expected first")
    if contract.spacing is not None and (len(contract.spacing) != 3 or min(contract.spacing) <= 0):
        raise OptionError(f"spacing {contract.spacing}: three lengths in mm are expected")
    if contract.spline is not None and (contract.spacing is None or contract.spline not in (1, 3)):
        raise OptionError(
            f"spline {contract.spline} with spacing {contract.spacing}: 1 or 3 is expected, with a spacing"
        )
    if contract.thickness is not None and not 0 < contract.thickness[0] <= contract.thickness[1]:
        raise OptionError(f"thickness {contract.thickness}: two lengths in mm are expected, the smaller first")
    if contract.orientation is not None and not are_axes(contract.orientation):
        raise OptionError(
            f"orientation {contract.orientation!r}: one letter of each of LR, AP and IS is expected, as RAS"
        )
    return VolumeTransform(contract)


def _check_grid(contract: Preprocessing, affine: tuple[tuple[float, ...], ...]) -> None:
    import numpy as np

    if [len(row) for row in affine] != [4] * 4 or affine[3] != (0, 0, 0, 1) or np.linalg.det(np.array(affine)) == 0:
        raise OptionError(f"affine {affine}: four rows of four are expected, the last 0, 0, 0, 1, and not singular")
    if contract.spacing is not None or contract.orientation is not None:
        raise OptionError("the affine already fixes spacing and orientation; leave them out")


def are_axes(codes: str) -> bool:
    """Whether letters say where the three axes of a volume point to, as `"RAS"`."""
    return len(codes) == 3 and all(len(set(codes) & set(pair)) == 1 for pair in ("LR", "AP", "IS"))


@dataclass(frozen=True, repr=False)
class VolumeTransform:
    """Makes one volume the input of a network; stateless, picklable, safe in data loader workers."""

    preprocessing: Preprocessing
    quiet: bool = False
    """Whether what is merely odd goes unsaid, as where it was said before."""

    def __call__(self, volume: VolumeInput) -> Tensor:
        """Return `volume` as a float32 tensor `(1, i, j, k)`, axes in nibabel's order, as the network knows it.

        With an `affine` in the contract, a file is brought to that grid of MNI152 by `grid.to_atlas`: bit by bit
        where its voxels are voxels of the grid, in any order and direction of its axes, else by linear interpolation
        where its header names the atlas. Without one its axes are turned to `orientation` and it is resampled to
        `spacing`, by splines of the contract's degree; before that all of a CT below -1024 HU, padding, becomes air.

        Args:
            volume: A path to NIfTI or `.npy`, a nibabel image of NIfTI, an array or a tensor; where no density map is
                due also a folder with a DICOM series of the network's modality; see `volumes.read_volume`. An array or
                a tensor has no affine: where there is a grid it must have its shape, and its voxels are taken to be in
                the grid's order; of a brain's only the order of SimpleITK, (z, y, x), is noticed. Where axes are turned
                or resampled it is refused. A tensor's result is on its device.

        Raises:
            InputContractError: The volume cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: The path does not exist.
        """
        import numpy as np
        import torch

        contract = self.preprocessing
        found, odd = admit(read_input(volume, contract), contract)
        if contract.affine is None and contract.size:
            placed = _as_it_is(found, contract)
        elif contract.affine is None:
            placed = to_spacing(found, contract.orientation, contract.spacing, contract.spline or 1)
        else:
            placed = to_atlas(found, contract.size, np.array(contract.affine), CAT12)
            odd += check_placed(placed, contract, found.source) if contract.units == GREY_MATTER else []
        if not self.quiet:  # only now that nothing refused the volume
            for line in [*odd, *odd_slices(found.source, found.affine, contract)]:
                warn_of(found.source, line)
        output = torch.from_numpy(np.ascontiguousarray(_scale(placed, contract)))[None]
        return output.to(volume.device) if isinstance(volume, torch.Tensor) else output

    def __repr__(self) -> str:
        contract = self.preprocessing
        low, high = contract.value_range
        is_relative = contract.window is not None or contract.normalise == MIN_MAX
        scale = "none" if contract.window is None else "clip to [{:g}, {:g}], ".format(*contract.window)
        steps = {
            "read": f"NIfTI, {'' if contract.units == GREY_MATTER else 'DICOM, '}nibabel image, .npy, array or tensor",
            "check": f"{contract.units}{'' if is_relative else f', {low:g} to {high:g}'}",
            "grid": _grid_in_words(contract),
            "window": scale if contract.window is None else f"{scale}scale to [{low:g}, {high:g}]",
            "normalise": "none" if contract.normalise is None else f"{contract.normalise} over the whole volume",
            "output": f"float32 {(1, *contract.size) if contract.size else '(1, any size)'}: {contract.channels[0]}",
        }
        return in_steps("VolumeTransform", steps)


def _grid_in_words(contract: Preprocessing) -> str:
    if contract.affine is None:
        turned = f"axes to {contract.orientation}" if contract.orientation else "axes as they are"
        spacing = (
            " x ".join(f"{size:g}" for size in contract.spacing) + " mm" if contract.spacing else "voxels as they are"
        )
        spacing += ", cubic splines" if contract.spline == 3 else ""
        spacing += "" if contract.thickness is None else ", slices {:g} to {:g} mm apart".format(*contract.thickness)
        return f"{turned}, {spacing}"
    import nibabel
    import numpy as np

    matrix = np.array(contract.affine)
    voxels = " x ".join(map(str, contract.size))
    sizes = " x ".join(f"{size:g}" for size in voxel_sizes(matrix))
    return f"on the grid of {voxels} voxels of {sizes} mm in MNI152, axes {''.join(nibabel.aff2axcodes(matrix))}"


def read_input(volume: VolumeInput, contract: Preprocessing, *, least: tuple[int, int, int] = SMALLEST_SIDES) -> Volume:
    """Read a volume as `volumes.read_volume` does, but for DICOM where a density map is due, which is refused unread.

    Raises:
        InputContractError: As `read_volume`; `FileNotFoundError` too.
    """
    if contract.units == GREY_MATTER and isinstance(volume, (str, PathLike)):
        path = Path(volume)
        if path.is_dir() or (path.suffix != ".npy" and path.exists() and is_dicom(path)):
            raise InputContractError(
                f"{path} is {'a folder' if path.is_dir() else 'DICOM'}, as raw scans come; one file of "
                f"{contract.units} is expected. {CAT12}"
            )
    return read_volume(volume, least=least)


def odd_slices(source: str, affine: NDArray[Any] | None, contract: Preprocessing) -> list[str]:
    """Say where the slices of a volume, along its longest voxels, are not as far apart as the network knows them."""
    if contract.thickness is None or affine is None:
        return []
    sizes, (least, most) = voxel_sizes(affine), contract.thickness
    if least <= round(float(sizes.max()), 3) <= most:
        return []
    said = " x ".join(f"{size:.3g}" for size in sizes)
    known = f"{least:g} to {most:g} mm apart" if least else f"at most {most:g} mm apart"
    return [f"{source} has voxels of {said} mm, where the network knows slices {known}: its output may mean little"]


def _as_it_is(volume: Volume, contract: Preprocessing) -> NDArray[Any]:
    """Where the grid of the weights lies is not on record: an array of its shape is taken, a file cannot be placed."""
    if volume.affine is not None or volume.values.shape != contract.size:
        kind = "an array" if volume.affine is None else "a file with an affine"
        raise InputContractError(
            f"{volume.source} is {kind} of {volume.values.shape} voxels: these weights were trained on arrays of "
            f"{contract.size} whose affine is not on record. Bring the volume to their grid and pass the array"
        )
    return volume.values


def admit(volume: Volume, contract: Preprocessing) -> tuple[Volume, list[str]]:
    """Check that a volume can meet its contract, as far as its header and its values tell.

    Returns:
        The volume, that of a CT with its padding as air, and what is merely odd about it, to be logged.

    Raises:
        InputContractError: It is of another modality, no image, not finite, all the same, or cannot be in these units.
    """
    check_kind(volume, contract, estimates=contract.units == GREY_MATTER)
    values = volume.values
    check_finite(values, volume.source)
    if contract.units == GREY_MATTER:
        return volume, check_density(volume, contract)
    if contract.units == INTENSITIES:
        return volume, check_intensities(volume)
    try:
        return fill_padding(volume), check_hounsfield(volume, contract.window)
    except InputContractError:
        refuse_mask(values, volume.source)  # which has no HU either, and no rescale gives it any
        check_labels(volume)
        raise


def _scale(values: NDArray[Any], contract: Preprocessing) -> NDArray[Any]:
    """Clip to the window, bring it to the declared range, take the z-score or the range: what the contract asks for."""
    if contract.window is not None:
        (low, high), (least, most) = contract.window, contract.value_range
        values = least + (values.clip(low, high) - low) * ((most - least) / (high - low))
    if contract.normalise == MIN_MAX:
        return min_max(values)
    return z_score(values) if contract.normalise == "z-score" else values
