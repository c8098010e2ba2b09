"""Tells whether a volume can be a brain in MRI without its skull, on the template that a network knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images import Volume, voxel_sizes
from zoo.transforms.hounsfield import looks_like_ct
from zoo.transforms.kinds import check_finite, check_kind, check_labels, refuse_mask
from zoo.transforms.unsaid import doubt_modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

BRAIN = "intensity of a brain in MRI without its skull, background 0"
"""Units of such a volume, as `Preprocessing.units` names them."""
WAY = "register the head to the template first, then strip the skull, and set the background to exactly 0"
"""How to get such a volume, for messages."""

_AIR = -700.0  # no MRI has much below it, z-scored or not, and every CT of a whole head has
_MUCH = 0.01
_FEW_ZEROS = 0.6  # a brain fills a quarter of a head's field of view, the largest a third; a head with its skull half
_PLANES = 16  # enough to find the most frequent value
_OTHER_SIZE = 0.1  # from which on a field of view is not the template's


def admit_brain(volume: Volume, contract: Preprocessing) -> list[str]:
    """Check that a volume can be what its contract says, as far as its header and its values tell.

    Returns:
        What is merely odd about it, to be logged.

    Raises:
        InputContractError: It is of another modality, no image, not finite or all the same.
    """
    check_kind(volume, contract)
    values = volume.values
    check_finite(values, volume.source)
    odd = _check_modality(volume, contract)
    refuse_mask(values, volume.source)
    return [*odd, *check_labels(volume), *_odd_background(volume), *_odd_grid(volume, contract)]


def _check_modality(volume: Volume, contract: Preprocessing) -> list[str]:
    """Refuse a CT that does not say so: a header of MR speaks for values like HU."""
    if volume.modality:
        return []
    air = float((volume.values < _AIR).mean())
    if air > _MUCH or looks_like_ct(volume):
        found = f"{air:.0%} of its values below {_AIR:g}" if air > _MUCH else "air at -1000 and soft tissue near 0"
        raise InputContractError(
            f"{volume.source} has values like HU, {found}, as a CT: {contract.channels[0]} is expected, the network "
            "knows nothing else"
        )
    return doubt_modality(volume, contract)


def _odd_background(volume: Volume) -> list[str]:
    """Say where the background is not exactly 0, as around a brain without its skull."""
    import numpy as np

    zeros = float((volume.values == 0).mean())
    if zeros >= _FEW_ZEROS:
        return []
    found, counts = np.unique(volume.values[:: max(1, len(volume.values) // _PLANES)], return_counts=True)
    value, share = float(found[counts.argmax()]), float(counts.max() / counts.sum())
    is_shifted = value != 0 and share > max(zeros, _FEW_ZEROS / 2)
    rest = f"{share:.0%} of them are {value:g}" if is_shifted else "as in a head with its skull, or a cut-out brain"
    return [f"{volume.source} is exactly 0 in {zeros:.0%} of its voxels, {rest}: {BRAIN}, is expected: {WAY}"]


def _odd_grid(volume: Volume, contract: Preprocessing) -> list[str]:
    """Say where axes run otherwise, or reach farther or less far, than the template's; an array does not say."""
    import nibabel
    import numpy as np

    if volume.affine is None:
        return []
    odd, axes = [], "".join(nibabel.aff2axcodes(volume.affine))
    if contract.orientation is not None and axes != contract.orientation:
        odd.append(
            f"{volume.source} has its axes to {axes}, where the template's point to {contract.orientation}: nothing is "
            "turned, as in the published code, so the network sees the brain mirrored or on its side. Register it to "
            "the template"
        )
    if contract.spacing is not None and axes == contract.orientation:
        covered = np.array(volume.values.shape) * voxel_sizes(volume.affine)
        known = np.array(contract.size) * np.array(contract.spacing)
        if np.abs(covered / known - 1).max() > _OTHER_SIZE:
            odd.append(
                f"{volume.source} covers {_mm(covered)} mm, the template {_mm(known)} mm: resized to the same voxels, "
                "the brain gets another size and form. Register it to the template"
            )
    return odd


def _mm(sides: NDArray[Any]) -> str:
    return " x ".join(f"{side:.0f}" for side in sides)
