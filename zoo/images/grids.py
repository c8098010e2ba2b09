"""Says where the voxels of a volume lie, apart from their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME_POSITION = 0.1
"""Voxels that the corners of a label's grid may be off its image's."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie."""

    shape: tuple[int, ...]
    affine: NDArray[Any]
    """`(4, 4)`, from voxel `(i, j, k, 1)` to mm."""
    source: str
    """Name of the volume in messages."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distances in mm between neighbours along each axis."""
        return tuple(voxel_sizes(self.affine).tolist())


def voxel_sizes(affine: NDArray[Any]) -> NDArray[Any]:
    """Return the distances in mm between neighbours along each axis, `(3,)`."""
    import numpy as np

    sizes: NDArray[Any] = np.linalg.norm(affine[:3, :3], axis=0)
    return sizes


def check_grid(labels: Grid, image: Grid) -> None:
    """Raise `InputContractError` where labels have another shape than their image, or lie elsewhere."""
    import numpy as np

    way = "labels on the image's own grid are expected; resample them to it, by nearest neighbour"
    if labels.shape != image.shape:
        raise InputContractError(
            f"{labels.source} has {labels.shape} voxels, its image {image.source} {image.shape}: {way}"
        )
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*np.array(image.shape) - 1, 1)
    apart = np.linalg.norm(corners @ (labels.affine - image.affine).T, axis=1).max()
    if apart > _SAME_POSITION * min(image.spacing):
        raise InputContractError(f"{labels.source} lies up to {apart:.3g} mm beside its image {image.source}: {way}")
