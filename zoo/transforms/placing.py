"""Brings a volume to the grid that a network knows, and labels back to the volume's own grid.

Of slices `SliceTransform.place` does the first, and `put_back` undoes their crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images import Grid, Volume, VolumeInput, check_grid, read_volume, voxel_sizes
from zoo.transforms.grid import reorient, resample, to_spacing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from zoo.transforms.volume import VolumeTransform


@dataclass(frozen=True, eq=False)
class Placed:
    """A volume as a network knows it, and where that lies."""

    image: NDArray[Any]
    """float32 `(D, H, W)`, scaled by the window, the box of foreground alone."""
    box: tuple[slice, slice, slice]
    """Where `image` lies in the whole volume on the network's grid."""
    whole: Grid
    """That grid."""
    home: Grid
    """The volume's own grid."""

    def at_home(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels `(D, H, W)` of `image` on the volume's own grid: the nearest one; 0 outside the box.

        Raises:
            InputContractError: The labels have another shape.
        """
        import numpy as np

        if labels.shape != self.image.shape:
            raise InputContractError(f"labels of shape {labels.shape} are not those of an image {self.image.shape}")
        values = np.zeros(self.whole.shape, labels.dtype)
        values[self.box] = labels
        return resample(values, self.whole.affine, self.home.shape, self.home.affine, mode="nearest", degree=0)


def place_volume(volume: VolumeInput, transform: VolumeTransform, *, margin: int = 0) -> Placed:
    """Bring a volume to a network's grid and values, without the air around it: the box of all above the window.

    Args:
        volume: One whose position is known: a path to NIfTI, a folder with a DICOM series, a nibabel image.
        transform: From `zoo.load_transform`, of an entry whose input lies in no atlas.
        margin: Voxels that are kept around the box, as far as there are any.

    Raises:
        InputContractError: The transform refuses it, or nothing in it lies above the window.
    """
    import numpy as np

    found, contract = read_volume(volume), transform.preprocessing
    values = transform(found)[0].numpy()
    box, home = foreground_box(values, contract.value_range[0], margin), found.grid
    if box is None:
        low = "the lowest value" if contract.window is None else f"{contract.window[0]:g} {contract.units}"
        raise InputContractError(f"{home.source} has nothing above {low}: it is empty for this network")
    whole = Grid(values.shape, _spaced(home, contract), home.source)
    return Placed(np.ascontiguousarray(values[box]), box, whole, home)


def place_labels(labels: Volume, placed: Placed, contract: Preprocessing) -> NDArray[Any]:
    """Return labels as uint8 on the grid of a placed image, the nearest one at each voxel.

    Raises:
        InputContractError: The labels are not on the grid of the image as it was read.
    """
    import numpy as np

    check_grid(labels.grid, placed.home)
    moved = to_spacing(labels, contract.orientation, contract.spacing, degree=0)
    found: NDArray[Any] = moved[placed.box].astype(np.uint8)
    return found


def foreground_box(values: NDArray[Any], least: float, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """Return the bounding box of the values `(D, H, W)` above `least`, with a margin; None where there are none."""
    import numpy as np

    inside = values > least
    sides = []
    for axis in range(3):
        found = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(found):
            return None
        sides.append(slice(max(0, int(found[0]) - margin), min(values.shape[axis], int(found[-1]) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _spaced(home: Grid, contract: Preprocessing) -> NDArray[Any]:
    """Voxel-to-world matrix `(4, 4)` of what `grid.to_spacing` makes of a volume, whose first voxel stays."""
    import numpy as np
    from nibabel import orientations

    affine = home.affine.copy()
    if contract.orientation is not None:
        no_values = np.broadcast_to(np.uint8(0), home.shape)
        _, affine = reorient(no_values, affine, orientations.axcodes2ornt(contract.orientation))
    if contract.spacing is not None:
        affine[:3, :3] *= np.asarray(contract.spacing) / voxel_sizes(affine)
    return affine


def put_back(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Undo `slices.crop_or_pad` of slices (N, C, S, S): (N, C, *shape), 0 where nothing is known."""
    from torch.nn import functional as F

    margins = []
    for side, wanted in zip(maps.shape[2:], shape, strict=True):
        before = -((side - wanted) // 2) if side > wanted else (wanted - side) // 2
        margins.append((before, wanted - side - before))
    (top, bottom), (left, right) = margins
    return F.pad(maps, (left, right, top, bottom))
