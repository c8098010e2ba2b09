"""Cuts a box around a seed point out of a volume, for networks that look at one lesion.

What cannot be right raises `InputContractError`, what is merely odd is logged as a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.entry import SEED_POINT, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import AIR, Volume, VolumeInput
from zoo.messages import in_steps
from zoo.oddities import warn_of
from zoo.transforms.hounsfield import HOUNSFIELD, drop_padding
from zoo.transforms.points import Convention, PointInput, find_points
from zoo.transforms.upright import UprightGrid, sample, upright_grid
from zoo.transforms.volume import admit, are_axes, odd_slices, read_input

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

NEEDS = (
    "a seed point beside the file, the middle of the lesion in LPS mm: in Python transform((FILE, (x, y, z))), for "
    "`zoo embed` a .csv with the columns image_path, coordX, coordY and coordZ"
)
"""What a network that looks at one lesion is given, beyond a file."""
_STRAY = ("resize", "affine", "spline", "window", "normalise")


def build_crop_transform(contract: Preprocessing) -> CropTransform:
    """Return the transform that executes a contract with a crop; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    size, spacing, axes = contract.size, contract.spacing, contract.orientation
    if contract.crop != SEED_POINT or contract.units != HOUNSFIELD or len(contract.channels) != 1:
        raise OptionError(
            f"no transform crops to {contract.crop!r} in {contract.units!r} with channels {contract.channels}: "
            f"{SEED_POINT!r} in volumes of one channel in {HOUNSFIELD} is known"
        )
    if len(size) != 3 or spacing is None or len(spacing) != 3 or min(spacing) <= 0 or not are_axes(axes or ""):
        raise OptionError(
            f"size {size}, spacing {spacing} and orientation {axes!r}: of a crop three sizes in voxels, three lengths "
            "in mm, and one letter of each of LR, AP and IS are expected"
        )
    if stray := [name for name in _STRAY if getattr(contract, name) is not None]:
        raise OptionError(f"{', '.join(stray)} with crop {contract.crop!r}: a crop is scaled by mean and std alone")
    if contract.mean is not None and len(contract.mean) != 1:
        raise OptionError(f"mean {contract.mean}: one value is expected")
    if contract.std is not None and (len(contract.std) != 1 or contract.std[0] == 0):
        raise OptionError(f"std {contract.std}: one value is expected, which is not 0")
    return CropTransform(contract)


@dataclass(frozen=True, repr=False)
class CropTransform:
    """Makes a box around a seed point the input of a network; stateless, picklable, safe in data loader workers."""

    preprocessing: Preprocessing
    needs: ClassVar[str] = NEEDS

    def __call__(self, case: tuple[VolumeInput, PointInput], /, *, convention: Convention = "LPS") -> Tensor:
        """Return the box around a point as float32 `(1, D, H, W)`; around several, `(points, 1, D, H, W)`.

        The volume is resampled to the contract's spacing along the axes of the world, by linear interpolation with
        air outside. The point's voxel is the one behind the middle of the box. Where the box would go beyond the
        resampled volume it is cut and filled up on both sides alike, as the authors do: what was in the middle is not
        there then, and a warning says so. Padding below -1100 HU becomes air first; other values are not clipped.

        Args:
            case: A volume and a point.
                The volume is a path to NIfTI, a folder with a DICOM series, a nibabel image or a `Volume`; an array
                does not say where it lies.
                The point is `(x, y, z)` in mm, or several such, or a mask of the lesion in place of it, whose centre
                counts: a path, a nibabel image, or an array on the volume's grid.
            convention: `"LPS"` for points whose coordinates grow to the left, the back and the head, as in DICOM, ITK
                and the lists of most data sets; `"RAS"` for the right and the front, as nibabel has it.

        Raises:
            InputContractError: There is no point, it lies outside the volume, or the volume cannot be what the network
                was trained on, or cannot be read.
            FileNotFoundError: A path does not exist.
            OptionError: There is no such convention.
        """
        import numpy as np
        import torch

        if not isinstance(case, (tuple, list)) or len(case) != 2:
            raise InputContractError(_no_point(case))
        volume = self.check(case[0])
        points, are_several = find_points(case[1], volume, convention)
        for point in points:
            _check_inside(point, volume)
        made = torch.from_numpy(np.stack([self._around(point, volume) for point in points]))[:, None]
        return made if are_several else made[0]

    def trial(self, volume: VolumeInput) -> str:
        """Check a volume without its seed point, of which a file says nothing, and say what a call with one gives.

        Raises:
            InputContractError: As for a call; `FileNotFoundError` too.
        """
        self.check(volume)
        return f"float32 {(1, *self.preprocessing.size)} around the seed point"

    def check(self, volume: VolumeInput) -> Volume:
        """Return a volume as it is cropped, before that: read, checked, and its padding as air.

        Raises:
            InputContractError: As for a call; `FileNotFoundError` too.
        """
        read = read_input(volume, self.preprocessing)
        _, odd = admit(read, self.preprocessing)
        odd = [*odd, *odd_slices(read.source, read.grid.affine, self.preprocessing)]
        for line in odd:
            warn_of(read.source, line)
        return drop_padding(read)

    def _around(self, point: NDArray[Any], volume: Volume) -> NDArray[Any]:
        """Return the box around a point in RAS mm, float32 `(D, H, W)`."""
        import numpy as np

        contract = self.preprocessing
        spacing, codes = contract.spacing or (), contract.orientation or ""
        grid = upright_grid(volume.grid, spacing, codes)
        box = _box(grid, grid.index_of(point), contract.size)
        values, inside = sample(volume.values, volume.grid, grid.positions(box), AIR)
        lacking = [side - len(found) for side, found in zip(contract.size, box, strict=True)]
        margins = [(n // 2, n - n // 2) for n in lacking]
        _warn_of_border(point, volume, margins, inside)
        values = np.pad(values, margins, constant_values=AIR)
        mean, std = (contract.mean or (0.0,))[0], (contract.std or (1.0,))[0]
        scaled: NDArray[Any] = ((values - mean) / std).astype(np.float32)
        return scaled

    def __repr__(self) -> str:
        contract = self.preprocessing
        mean, std = (contract.mean or (0.0,))[0], (contract.std or (1.0,))[0]
        spacing = " x ".join(f"{size:g}" for size in contract.spacing or ())
        sides = " x ".join(map(str, contract.size))
        steps = {
            "read": "(volume, point): NIfTI, DICOM or nibabel image; (x, y, z) in mm, LPS, or a mask",
            "check": contract.units,
            "grid": f"axes to {contract.orientation}, {spacing} mm, along the axes of the world",
            "crop": f"{sides} voxels around the {contract.crop}, air outside",
            "scale": f"(x - {mean:g}) / {std:g}, not clipped",
            "output": f"float32 {(1, *contract.size)}: {contract.channels[0]}",
        }
        return in_steps("CropTransform", steps)


def _no_point(case: Any) -> str:
    given = repr(str(case)) if isinstance(case, (str, bytes)) or hasattr(case, "__fspath__") else type(case).__name__
    return (
        f"{given} comes without a seed point: this network looks at one lesion, and (volume, (x, y, z)) is expected, "
        "the point in LPS mm, or a mask of the lesion in its place. In Python transform((path, (x, y, z))); `zoo "
        "embed` takes a .csv with the columns image_path, coordX, coordY and coordZ"
    )


def _check_inside(point: NDArray[Any], volume: Volume) -> None:
    """Raise `InputContractError` where a point in RAS mm lies in no voxel of a volume."""
    if _is_inside(point, volume):
        return
    x, y, z = point.tolist()
    mirrored = _is_inside(point * (-1, -1, 1), volume)
    way = "are it and the volume of one patient, in mm, and not in voxels?"
    if mirrored:
        way = (
            "with x and y negated it lies inside, so it may be in the other convention: LPS is expected, "
            "convention='RAS' takes RAS"
        )
    raise InputContractError(
        f"the seed point lies outside {volume.source}, at ({-x:g}, {-y:g}, {z:g}) in LPS mm, voxel "
        f"({', '.join(f'{v:.4g}' for v in _voxel(point, volume))}) of {volume.values.shape}: {way}"
    )


def _voxel(point: NDArray[Any], volume: Volume) -> NDArray[Any]:
    import numpy as np

    inverse = np.linalg.inv(volume.grid.affine)
    voxel: NDArray[Any] = inverse[:3, :3] @ point + inverse[:3, 3]
    return voxel


def _is_inside(point: NDArray[Any], volume: Volume) -> bool:
    voxel = _voxel(point, volume)
    return bool(((voxel >= -0.5) & (voxel <= [side - 0.5 for side in volume.values.shape])).all())


def _box(grid: UprightGrid, index: Sequence[int], size: Sequence[int]) -> list[range]:
    """Return the box around a voxel, along the grid's own axes, as far as it lies in the grid."""
    starts = [at - side // 2 for at, side in zip(index, size, strict=True)]
    ends = [start + side for start, side in zip(starts, size, strict=True)]
    return [range(max(0, a), min(b, n)) for a, b, n in zip(starts, ends, grid.sides, strict=True)]


def _warn_of_border(point: NDArray[Any], volume: Volume, margins: Sequence[tuple[int, int]], inside: float) -> None:
    """Log where a box goes beyond the volume."""
    x, y, z = point.tolist()
    at = f"({-x:g}, {-y:g}, {z:g})"
    if lacking := [before + after for before, after in margins if before + after]:
        warn_of(
            volume.source,
            f"the seed point {at} in LPS mm lies near the border of {volume.source}: of the box's sides "
            f"{', '.join(map(str, lacking))} voxels are beyond it, and the point is not in the middle of what the "
            "network gets",
        )
    elif inside < 1:
        share = 100 * (1 - inside)
        said = f"{share:.1f} % of the box around the seed point {at} in LPS mm is outside {volume.source}"
        warn_of(volume.source, said)
