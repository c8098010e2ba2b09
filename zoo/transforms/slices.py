"""Transforms volumes for networks that take slices: percentiles of the volume, resampling in the plane, crop or pad.

Its three steps are functions of their own, for those who prepare training data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zoo.entry import PERCENTILES, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import MOST_VOXELS, Volume, VolumeInput, check_count, plain_tensor, read_volume, voxel_sizes
from zoo.messages import in_steps
from zoo.oddities import warn_of
from zoo.transforms.grid import COARSE
from zoo.transforms.kinds import check_labels, refuse_mask
from zoo.transforms.stacks import check_stack, turn_slices

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LOW, HIGH = 1, 99
"""Percentiles of the volume that come to lie at 0 and 1."""
_LEAST = (32, 32, 1)


def build_slice_transform(contract: Preprocessing) -> SliceTransform:
    """Return the transform that executes a contract on volumes; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    names = ("resize", "interpolation", "mean", "std", "affine", "spline", "window")
    if stray := [name for name in names if getattr(contract, name) is not None]:
        raise OptionError(f"{', '.join(stray)} with normalise={PERCENTILES!r}: these fields have no meaning for slices")
    if contract.value_range != (0, 1):
        raise OptionError(f"value_range {contract.value_range} with normalise={PERCENTILES!r}: it is always 0 and 1")
    if len(contract.channels) != 1 or len(contract.size) != 2 or min(contract.size) < 1:
        raise OptionError(f"size {contract.size}, channels {contract.channels}: slices have one channel and two sides")
    if contract.spacing is None or len(contract.spacing) != 2 or min(contract.spacing) <= 0:
        raise OptionError(f"spacing {contract.spacing}: two lengths in mm are expected, those of a pixel")
    if contract.orientation not in (None, "LP", "LA", "RP", "RA"):
        raise OptionError(f"orientation {contract.orientation!r}: two letters are expected, L or R and P or A, as LP")
    if contract.thickness is not None and not 0 < contract.thickness[0] <= contract.thickness[1]:
        raise OptionError(f"thickness {contract.thickness}: two lengths in mm are expected, the smaller first")
    return SliceTransform(contract)


@dataclass(frozen=True, eq=False)
class PlacedSlices:
    """The slices of one volume as a network knows them, and the way back to the volume."""

    tensor: Tensor
    """float32 `(slices, 1, H, W)`."""
    shape: tuple[int, int, int]
    """Voxels of the volume once its axes were turned: the slices are those of the third."""
    resampled: tuple[int, int]
    """Pixels that the slices had before crop and padding."""
    back: NDArray[Any] | None
    """The turn to the file's axes, an array of nibabel; None where nothing was turned."""

    def at_home(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return `labels` of `shape` with their axes as the file has them."""
        import numpy as np
        from nibabel import orientations

        if self.back is None:
            return labels
        return np.ascontiguousarray(orientations.apply_orientation(labels, self.back))


@dataclass(frozen=True, repr=False)
class SliceTransform:
    """Makes the slices of one volume the input of a 2D network; stateless, picklable, safe in data loader workers."""

    preprocessing: Preprocessing

    def __call__(self, volume: VolumeInput) -> Tensor:
        """Return a volume's slices as a float32 batch `(slices, 1, H, W)`, which the network takes as it is.

        Slices lie along the volume's third axis, whatever plane that is. They are turned to lie as the network knows
        them and put in order from feet to head, see `stacks.turn_of`, so that one scan gives one batch however
        its file has the axes. Most values lie in [0, 1], a few below and above, for nothing is clipped.

        Args:
            volume: A path to NIfTI, a folder with a DICOM series of the network's modality, a nibabel image, an array
                or a tensor `(i, j, slices)`. A slice `(i, j)` gives `(1, H, W)`, normalised by itself, which differs
                from what the volume would give. An array or a tensor has no pixel size and no direction: it must have
                the network's, and so `(H, W)` pixels a slice, which is all that can be checked, and is not turned. A
                tensor's result is on its device.

        Raises:
            InputContractError: The volume cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: The path does not exist.
        """
        import torch

        given: Any = volume
        if isinstance(given, torch.Tensor):
            plain_tensor(given)  # others cannot be indexed
        is_slice = getattr(given, "ndim", 0) == 2
        slices = self.place(given[..., None] if is_slice else given).tensor
        output = slices[:, 0] if is_slice else slices
        return output.to(volume.device) if isinstance(volume, torch.Tensor) else output

    def place(self, volume: VolumeInput) -> PlacedSlices:
        """Return a volume's slices as a call does, on the CPU, and how to bring what is found in them back to it.

        Raises:
            InputContractError: As a call; `FileNotFoundError` too.
        """
        import numpy as np
        import torch

        found = read_volume(volume, least=_LEAST)
        odd = check_stack(found, self.preprocessing)
        normalised = replace(found, values=normalise_percentiles(found.values, found.source))
        odd += check_labels(found)
        turned, back = turn_slices(normalised, self.preprocessing.orientation)
        values = self._resampled(turned)
        fitted = crop_or_pad(values, self.preprocessing.size)
        for line in odd:  # only now that nothing refused the volume
            warn_of(found.source, line)
        slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(fitted, 2, 0), np.float32))[:, None]
        return PlacedSlices(slices, _sides(turned.values), _sides(values)[:2], back)

    def _resampled(self, found: Volume) -> NDArray[Any]:
        height, width = self.preprocessing.size
        target = self.preprocessing.spacing or ()
        if found.affine is None:
            if found.values.shape[:2] != (height, width):
                raise InputContractError(
                    f"{found.source} comes without the size of its pixels, so its slices must have the network's, "
                    f"{height} x {width} of {target[0]:g} x {target[1]:g} mm. Pass the file, or "
                    "nibabel.Nifti1Image(array, affine)"
                )
            return found.values
        sizes = voxel_sizes(found.affine)
        factors = (sizes[0] / target[0], sizes[1] / target[1])
        slices = found.values
        resampled = (round(slices.shape[0] * factors[0]), round(slices.shape[1] * factors[1]), slices.shape[2])
        check_count(resampled, MOST_VOXELS, f"{found.source}, resampled as the network needs it,", unit="voxels")
        if max(*factors, *(1 / factor for factor in factors)) > COARSE:
            warn_of(
                found.source,
                f"{found.source} has pixels of {sizes[0]:.3g} x {sizes[1]:.3g} mm, far from the {target[0]:.3g} x "
                f"{target[1]:.3g} mm that the network knows",
            )
        return resample_in_plane(slices, factors)

    def __repr__(self) -> str:
        contract = self.preprocessing
        height, width = contract.size
        spacing = " x ".join(f"{size:g}" for size in contract.spacing or ())
        steps = {
            "read": f"NIfTI, {contract.modality or 'no'} series of DICOM, nibabel image, array, tensor (i, j, slices)",
            "normalise": f"percentiles {LOW} and {HIGH} of the volume to 0 and 1, not clipped",
            "turn": f"axial slices to {contract.orientation}, others alike" if contract.orientation else "nothing",
            "resample": f"in the plane to {spacing} mm, linear",
            "fit": f"centre crop or zero pad to {height} x {width}",
            "output": f"float32 (slices, 1, {height}, {width}): {contract.channels[0]}",
        }
        return in_steps("SliceTransform", steps)


def _sides(values: NDArray[Any]) -> tuple[int, int, int]:
    first, second, third = values.shape
    return first, second, third


def normalise_percentiles(volume: NDArray[Any], source: str = "the volume") -> NDArray[Any]:
    """Return (x - p1) / (p99 - p1) as float32, by the 1st and the 99th percentile of the whole array; not clipped.

    As krishnabits001/domain_specific_cl, dataloaders.py: normalize_minmax_data.

    Raises:
        InputContractError: A value is NaN or infinite, the percentiles are the same, or there are as few values as in a
            mask.
    """
    import numpy as np

    if wrong := int((~np.isfinite(volume)).sum()):
        raise InputContractError(f"{source} has {wrong} NaN or infinite value(s): finite ones are expected")
    if volume.min() == volume.max():
        low = high = float(volume.min())  # at once: percentiles of a large one take three times its memory
    else:
        low, high = np.percentile(volume.astype(np.float64), (LOW, HIGH), overwrite_input=True)
    if low == high:
        raise InputContractError(
            f"{source} has the same value, {low:g}, at 98 of 100 voxels or more: an image is expected, not a mask"
        )
    refuse_mask(volume, source)
    scaled: NDArray[Any] = ((volume - low) / (high - low)).astype(np.float32)
    return scaled


def resample_in_plane(
    volume: NDArray[Any], factors: tuple[float, float], *, order: int = 1, anti_alias: bool = True
) -> NDArray[Any]:
    """Return `(i, j, slices)` with the first two axes longer by these factors, slice by slice; outside is 0.

    Pixels are areas: their edges, not their centres, coincide at the ends. This is what scikit-image's `rescale` does
    from 0.19 on with mode "constant"; lengths are rounded to whole pixels.

    Args:
        volume: An image, or with `order=0` a mask, whose labels stay as they are.
        factors: Pixels of the result to one of the volume's, along each axis.
        order: Degree of the splines: 1 for images, 0 for masks.
        anti_alias: Whether an axis that gets shorter is smoothed before, by a Gaussian of (1 / factor - 1) / 2 pixels.
            Never done to masks.
    """
    import numpy as np
    from scipy import ndimage

    lengths = [max(1, round(n * f)) for n, f in zip(volume.shape[:2], factors, strict=True)]
    if lengths == list(volume.shape[:2]):
        return volume
    if order and anti_alias:
        widths = [max(0.0, (n / new - 1) / 2) for n, new in zip(volume.shape[:2], lengths, strict=True)]
        volume = ndimage.gaussian_filter(volume, (*widths, 0), mode="constant") if any(widths) else volume
    zoom = [new / n for n, new in zip(volume.shape[:2], lengths, strict=True)]
    resampled: NDArray[Any] = ndimage.zoom(volume, (*zoom, 1), order=order, mode="grid-constant", grid_mode=True)
    return np.asarray(resampled, volume.dtype)


def crop_or_pad(volume: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Return `(H, W, slices)`: the centre of the first two axes, with zeros around it where it is smaller.

    What is cut off begins at (n - S) // 2, what is added at (S - n) // 2, for each axis by itself.
    """
    import numpy as np

    fitted = np.zeros((*size, *volume.shape[2:]), volume.dtype)
    pairs = list(zip(volume.shape[:2], size, strict=True))
    kept = tuple(slice(max(0, (n - s) // 2), max(0, (n - s) // 2) + min(n, s)) for n, s in pairs)
    inside = tuple(slice(max(0, (s - n) // 2), max(0, (s - n) // 2) + min(n, s)) for n, s in pairs)
    fitted[inside] = volume[kept]
    return fitted
