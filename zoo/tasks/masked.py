"""Images with their masks on the grid of a network that segments, made once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from zoo.entry import Transform
from zoo.errors import InputContractError
from zoo.images import check_grid, read_label_picture, read_labels, read_volume, voxel_sizes
from zoo.tasks.masks import BACKGROUND, Classes
from zoo.training.prepared import Arrays, Facts, digest_of, keep, map_part
from zoo.transforms import (
    ImageTransform,
    SliceTransform,
    crop_or_pad,
    place_labels,
    place_volume,
    resample_in_plane,
    turn_slices,
)

FORMAT = 1
"""Version of the files on disk; files of another version are not read."""
_MOST_CENTRES = 1 << 16
"""Voxels of each kind that are kept as centres of crops, evenly apart among all: of a CT a crop moves by little."""


class Stored(NamedTuple):
    """A case on the network's grid."""

    image: NDArray[Any]
    """float32 `(C, *space)`; of a network for slices `(slices, 1, H, W)`."""
    label: NDArray[Any]
    """Values of the mask, uint8 `(*space)`, or `(slices, H, W)`."""
    on: NDArray[Any]
    """Where a crop may have its middle on a structure: positions in the flattened label; or numbers of slices."""
    beside: NDArray[Any]
    """The same beside all structures."""


@dataclass(frozen=True)
class MaskedImages:
    """The cases of a run with their masks, on the network's grid; it can be sent to other processes."""

    images: Sequence[Path]
    masks: Sequence[Path]
    transform: Any
    classes: Classes
    margin: int = 0
    """Of `Windows`."""
    folder: Path | None = None
    """Where they are kept; None to make them anew each time."""

    @property
    def of_slices(self) -> bool:
        """Whether the network takes slices of volumes whole."""
        return isinstance(self.transform, SliceTransform)

    def size(self) -> int:
        """Return the bytes of all cases, were they all as large as the first one."""
        try:
            arrays, _ = self._packed(0)
        except InputContractError:  # it is named with the others that cannot be used
            return 0
        return sum(array.nbytes for array in arrays.values()) * len(self.images)

    def keep(self, index: int) -> None:
        """Make a case, where it is not kept yet.

        Raises:
            InputContractError: The image cannot be what the network takes, or its mask is not on its grid.
        """
        if self.folder is not None:
            keep(self.folder, self._key(index), lambda: self._packed(index))

    def open(self, index: int) -> Stored:
        """Return a case, mapped where it is kept, so that a crop reads its own part alone."""
        if self.folder is None:
            arrays, facts = self._packed(index)
            return _stored(arrays, facts)
        key = self._key(index)
        facts = keep(self.folder, key, lambda: self._packed(index))
        return _stored({name: map_part(self.folder, key, name) for name in Stored._fields}, facts)

    def numbers(self, label: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the numbers of the classes of a piece of a label."""
        return self.classes.numbers_of(np.array(label))

    def _key(self, index: int) -> str:
        files = [self.images[index], self.masks[index]]
        return digest_of(files, FORMAT, asdict(self.transform.preprocessing), self.margin)

    def _packed(self, index: int) -> tuple[Arrays, Facts]:
        image, label = place_pair(self.transform, self.images[index], self.masks[index], self.margin)
        on, beside = _slices_by_kind(label) if self.of_slices else _centres(image, label)
        is_grey = bool((image == image[:1]).all()) and not self.of_slices
        arrays: dict[str, NDArray[Any]] = {
            "image": image[:1] if is_grey else image,
            "label": label,
            "on": on,
            "beside": beside,
        }
        return arrays, {"channels": 0 if self.of_slices else len(image)}


def _stored(arrays: Arrays, facts: Facts) -> Stored:
    image = arrays["image"]
    if facts["channels"]:
        image = np.broadcast_to(image, (facts["channels"], *image.shape[1:]))
    return Stored(image, arrays["label"], arrays["on"], arrays["beside"])


def place_pair(
    transform: Transform, image: Path, mask: Path, margin: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image as its network takes it, and the values of its mask there, as `Stored` has them.

    Args:
        transform: Of the network.
        image: Its file, or the folder of a DICOM series.
        mask: The label map, of as many pixels or voxels, in the same place.
        margin: Of `Windows`.

    Raises:
        InputContractError: The image cannot be what the network takes, or its mask is not on its grid.
    """
    if isinstance(transform, ImageTransform):
        return _film(transform, image, mask)
    if isinstance(transform, SliceTransform):
        return _slices(transform, image, mask)
    placed = place_volume(image, transform, margin=margin)  # type: ignore[arg-type]
    return placed.image[None], place_labels(read_labels(mask), placed, transform.preprocessing)


def check_sizes(image: Path, shape: tuple[int, ...], mask: Path, labels: NDArray[Any]) -> None:
    """Raise `InputContractError` where the mask of a film has other pixels."""
    if labels.shape != shape:
        own, others = (" x ".join(map(str, sides)) for sides in (labels.shape, shape))
        raise InputContractError(
            f"the mask {mask} has {own} pixels, its image {image} {others}: one label for each pixel is expected"
        )


def _film(transform: ImageTransform, path: Path, mask: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    image, shape = transform.place(path)
    labels = read_label_picture(mask)
    check_sizes(path, shape, mask, labels)
    # "nearest-exact" takes pixels as areas, as the resizing of images does.
    resized = F.interpolate(torch.from_numpy(labels.copy())[None, None], size=image.shape[1:], mode="nearest-exact")
    return image.numpy(), resized[0, 0].numpy()


def _slices(transform: SliceTransform, path: Path, mask: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    volume, labels = read_volume(path, least=(1, 1, 1)), read_labels(mask)
    check_grid(labels.grid, volume.grid)
    placed = transform.place(volume)
    turned, _ = turn_slices(replace(labels, affine=volume.affine), transform.preprocessing.orientation)
    across, down = transform.preprocessing.spacing or ()
    sizes = voxel_sizes(turned.grid.affine)
    resampled = resample_in_plane(turned.values, (sizes[0] / across, sizes[1] / down), order=0)
    fitted = np.moveaxis(crop_or_pad(resampled, transform.preprocessing.size), 2, 0)
    return placed.tensor.numpy(), np.ascontiguousarray(fitted.astype(np.uint8))


def _slices_by_kind(label: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    has_structure = (label != BACKGROUND).any((1, 2))
    return np.flatnonzero(has_structure), np.flatnonzero(~has_structure)


def _centres(image: NDArray[Any], label: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions of voxels on structures, and of others that are not of the least value, such as air."""
    is_structure = label != BACKGROUND
    return _thinned(is_structure), _thinned(~is_structure & (image[0] > image[0].min()))


def _thinned(mask: NDArray[Any]) -> NDArray[np.uint32]:
    positions = np.flatnonzero(mask)
    return positions[:: max(1, len(positions) // _MOST_CENTRES)].astype(np.uint32)
