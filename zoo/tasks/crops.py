"""Images with their masks as a network that segments is given them: kept on disk, cut into crops, changed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from zoo.entry import Augment, Transform
from zoo.errors import InputContractError
from zoo.images import check_grid, read_label_picture, read_labels, read_volume, voxel_sizes
from zoo.tasks.augment import augmented
from zoo.tasks.masks import BACKGROUND, Classes
from zoo.training.data import Key, seeded
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
ON_STRUCTURE = 0.5
"""Share of crops, or slices, that are drawn around a structure; the others are drawn beside all structures."""
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


class Crops(Dataset[dict[str, Tensor]]):
    """Data set of training: item `(pass, index)` is `image` (K, C, *size) float32 and `label` (K, 1, *size) uint8.

    K crops of one image, or K slices of one volume, each changed at random. Half of the draws are around structures,
    the others beside them. An image smaller than a crop is filled up with 0 on both sides, which is background.

    Args:
        images: Of all cases.
        rows: Positions of the cases of this part of the data.
        size: Sides of a crop; empty for slices.
        count: K.
        augment: How they may be changed; None to leave them as they are.
        seed: Draws follow from (seed, pass, index).
    """

    def __init__(
        self,
        images: MaskedImages,
        rows: Sequence[int],
        *,
        size: tuple[int, ...],
        count: int,
        augment: Augment | None,
        seed: int,
    ) -> None:
        self.images, self.rows, self.size = images, rows, size
        self.count, self.augment, self.seed = count, augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        stored = self.images.open(self.rows[index])
        with seeded(self.seed, data_pass, index):
            drawn = [self._changed(*self._draw(stored)) for _ in range(self.count)]
        return {
            "image": torch.stack([image for image, _ in drawn]),
            "label": torch.stack([label for _, label in drawn])[:, None],
        }

    def _draw(self, stored: Stored) -> tuple[Tensor, Tensor]:
        first, other = (stored.on, stored.beside) if torch.rand(()) < ON_STRUCTURE else (stored.beside, stored.on)
        candidates = first if len(first) else other
        chosen = int(candidates[int(torch.randint(len(candidates), ()))]) if len(candidates) else 0
        if self.images.of_slices:
            image, label = stored.image[chosen], stored.label[chosen]
        else:
            box = box_around(np.unravel_index(chosen, stored.label.shape), stored.label.shape, self.size)
            image, label = stored.image[:, *box], stored.label[box]
        cut = torch.from_numpy(np.array(image, np.float32)), torch.from_numpy(self.images.numbers(label))
        return cut if self.images.of_slices else (filled_up(cut[0], self.size), filled_up(cut[1][None], self.size)[0])

    def _changed(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.augment is None:
            return image, label
        changed, labels = augmented(self.augment, image, label)
        assert labels is not None
        return changed, labels


def box_around(centre: Sequence[Any], shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the box of a size around a voxel, moved until it lies inside as far as there is room."""
    starts = [
        min(max(int(at) - side // 2, 0), max(whole - side, 0))
        for at, whole, side in zip(centre, shape, size, strict=True)
    ]
    return tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))


def filled_up(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps `(C, *size)`: those of smaller ones, with 0 on both sides."""
    lacking = [max(0, side - own) for side, own in zip(size, maps.shape[1:], strict=True)]
    around = [n for short in reversed(lacking) for n in (short // 2, short - short // 2)]
    return F.pad(maps, around) if any(around) else maps


class Whole(Dataset[dict[str, Tensor]]):
    """Data set of validation: item `(pass, index)` is `image` and `label`, as `Stored` has them, in class numbers."""

    def __init__(self, images: MaskedImages, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        stored = self.images.open(self.rows[key[1]])
        image = torch.from_numpy(np.array(stored.image, np.float32))
        return {"image": image, "label": torch.from_numpy(self.images.numbers(stored.label))}


class Positions(Dataset[dict[str, Tensor]]):
    """Data set of the test: item `(pass, index)` is `row`, the position of a case, which is read from its files."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {"row": torch.tensor(self.rows[key[1]])}
