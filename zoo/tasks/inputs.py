"""Says in words what a network takes of images."""

from __future__ import annotations

from zoo.entry import Preprocessing
from zoo.messages import lengths
from zoo.transforms import CropTransform, ImageTransform, SliceTransform, build_transform


def input_in_words(contract: Preprocessing, *, is_cut: bool = True) -> str:
    """Return what a network takes of images, in a few words.

    Args:
        contract: Of the network.
        is_cut: Whether the centre of films is cut out where the contract says so; the whole is segmented.
    """
    transform, sides = build_transform(contract), lengths(contract.size)
    if isinstance(transform, ImageTransform):
        if contract.resize is None:
            return f"films resized to {sides} pixels"
        cut = f", of which the centre of {sides} is taken" if is_cut else ""
        return f"films resized to {contract.resize} pixels along the shorter side{cut}"
    spacing = lengths(contract.spacing or ())
    if isinstance(transform, SliceTransform):
        return f"slices of {sides} pixels of {spacing} mm"
    if isinstance(transform, CropTransform):
        return f"boxes of {sides} voxels{f' of {spacing} mm' if spacing else ''} around a {contract.crop}"
    if contract.size:
        return f"volumes brought to {sides} voxels{' of an atlas' if contract.affine is not None else ''}"
    return f"volumes brought to voxels of {spacing} mm" if spacing else "volumes with their voxels as they are"
