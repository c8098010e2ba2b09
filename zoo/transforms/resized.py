"""Transforms volumes for networks that take a whole one, resized to their input without regard to its proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.entry import AREA, MIN_MAX, NONZERO, TRILINEAR, Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import VolumeInput, read_volume
from zoo.messages import in_steps
from zoo.oddities import warn_of
from zoo.transforms.brain import BRAIN, WAY, admit_brain

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATIONS = (TRILINEAR, AREA)
CORNER = 16
"""Voxels a side of the patch at the first voxel, which is background in a brain without its skull."""
_STRAY = ("resize", "mean", "std", "affine", "spline", "window", "thickness")


def build_resized_transform(contract: Preprocessing) -> ResizedTransform:
    """Return the transform that executes a contract on volumes; printing it shows its steps.

    Raises:
        OptionError: The contract contradicts itself, or describes an input that no transform exists for.
    """
    if stray := [name for name in _STRAY if getattr(contract, name) is not None]:
        raise OptionError(
            f"{', '.join(stray)} with interpolation={contract.interpolation!r}: these fields have no meaning for "
            "volumes that are resized"
        )
    if contract.interpolation not in INTERPOLATIONS or contract.normalise not in (NONZERO, MIN_MAX):
        raise OptionError(
            f"interpolation {contract.interpolation!r} with normalise={contract.normalise!r}: of volumes that are "
            f"resized {' or '.join(INTERPOLATIONS)} is expected, and {NONZERO!r} or {MIN_MAX!r}"
        )
    if contract.units != BRAIN or len(contract.channels) != 1 or len(contract.size) != 3 or min(contract.size) < 1:
        raise OptionError(
            f"size {contract.size}, channels {contract.channels}, units {contract.units!r}: volumes that are resized "
            f"have three sides and one channel, in {BRAIN!r}"
        )
    if contract.spacing is not None and (len(contract.spacing) != 3 or min(contract.spacing) <= 0):
        raise OptionError(f"spacing {contract.spacing}: three lengths in mm are expected")
    return ResizedTransform(contract)


@dataclass(frozen=True, repr=False)
class ResizedTransform:
    """Makes one volume the input of a network; stateless, picklable, safe in data loader workers."""

    preprocessing: Preprocessing

    def __call__(self, volume: VolumeInput) -> Tensor:
        """Return `volume` as a float32 tensor `(1, *size)`: resized as a whole, and only then normalised.

        Axes stay in the order and direction of the file, which must be those of the contract's `orientation`: another
        is warned of, never turned, as the authors' code turns nothing.

        Args:
            volume: A path to NIfTI or `.npy`, a folder with a DICOM series, a nibabel image, an array or a tensor; see
                `volumes.read_volume`. Of an array or a tensor nothing tells how its axes run. A tensor's result is on
                its device.

        Raises:
            InputContractError: The volume cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: The path does not exist.
        """
        import torch

        contract = self.preprocessing
        found = read_volume(volume)
        odd = admit_brain(found, contract)
        resized = resize(torch.from_numpy(found.values), contract.size, str(contract.interpolation))
        if resized.min() == resized.max():
            raise InputContractError(f"{found.source} is constant once it is resized: an image is expected")
        if contract.normalise == NONZERO:
            output = z_score_nonzero(resized)
            odd += _odd_corner(output, found.source)
        else:
            output = (resized - resized.min()) / (resized.max() - resized.min())
        for line in odd:  # only now that nothing refused the volume
            warn_of(found.source, line)
        return output[None].to(volume.device) if isinstance(volume, torch.Tensor) else output[None]

    def __repr__(self) -> str:
        contract = self.preprocessing
        kept = f"not turned: {contract.orientation} is expected" if contract.orientation else "as they are"
        scale = "z-score of all that is not 0; 0 stays" if contract.normalise == NONZERO else "least to 0, largest to 1"
        steps = {
            "read": "NIfTI, DICOM series, nibabel image, .npy, array or tensor",
            "check": f"{contract.units}, {contract.modality or 'any modality'}",
            "axes": kept,
            "resize": f"to {' x '.join(map(str, contract.size))}, {contract.interpolation}",
            "normalise": scale,
            "output": f"float32 {(1, *contract.size)}: {contract.channels[0]}",
        }
        return in_steps("ResizedTransform", steps)


def resize(values: Tensor, size: tuple[int, ...], interpolation: str) -> Tensor:
    """Return `(D, H, W)` with other sides, corners not aligned and nothing smoothed before.

    Args:
        values: float32.
        size: The sides to return.
        interpolation: `"trilinear"`, or `"area"` for the mean of the voxels that a new one covers.
    """
    from torch.nn.functional import interpolate

    corners = {"align_corners": False} if interpolation == TRILINEAR else {}
    return interpolate(values[None, None], size=size, mode=interpolation, **corners)[0, 0]


def z_score_nonzero(values: Tensor) -> Tensor:
    """Return (x - mean) / deviation over the values that are not 0, population deviation; 0 stays exactly 0."""
    import torch

    inside = values != 0
    kept = values[inside].double()
    mean, deviation = kept.mean(), kept.std(correction=0)
    scaled = torch.zeros_like(values)
    scaled[inside] = ((kept - mean) / (deviation if deviation > 0 else 1)).float()
    return scaled


def _odd_corner(output: Tensor, source: str) -> list[str]:
    """Say where the corner is not background, which the feature of a network without a class token is read from."""
    corner = output[:CORNER, :CORNER, :CORNER]
    if not (share := float((corner != 0).float().mean())):
        return []
    return [
        f"{source} is not 0 in {share:.0%} of its corner, the first {CORNER} voxels of each axis once it is resized, "
        f"where the network knows background alone and its feature is read: {WAY}"
    ]
