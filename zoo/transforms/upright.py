"""Samples a part of a volume on a grid along the axes of the world, however the volume's own axes lie.

The grid is that of MONAI's `Spacing(diagonal=True)`: its voxels begin at the corner of the box of voxel centres that is
smallest on all axes; in a tilted volume without such a corner they share the volume's centre. Where MONAI before 1.6
sampled up to half a voxel beside that grid (pull request 8690), the positions here are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.images import Grid

_UPRIGHT = 1e-3  # mm that a corner may be off: headers in float32 round to 1e-5
_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter -> axis of the world, and whether its coordinate grows in that direction."""


@dataclass(frozen=True, eq=False)
class UprightGrid:
    """A grid whose axes lie along those of the world."""

    start: NDArray[Any]
    """Position in RAS mm of the voxel that is smallest on all axes, `(3,)`."""
    count: NDArray[Any]
    """Voxels along x, y and z, `(3,)`."""
    spacing: NDArray[Any]
    """Distance in mm of neighbours along x, y and z, `(3,)`."""
    codes: str
    """Where the grid's own axes point to, in their order, for example `"SPL"`."""

    def index_of(self, point: NDArray[Any]) -> tuple[int, ...]:
        """Return the voxel of a point in RAS mm along the grid's own axes, the nearest of the grid for one outside.

        Fractions are cut off, as FMCIB's authors do (fmcib/preprocessing); those that are rounding alone, before that.
        """
        steps = (point - self.start) / self.spacing
        found = [steps[k] if grows > 0 else self.count[k] - 1 - steps[k] for k, grows in self._axes]
        return tuple(min(max(0, int(round(v, 4))), n - 1) for v, n in zip(found, self.sides, strict=True))

    @property
    def sides(self) -> tuple[int, ...]:
        """Voxels along the grid's own axes."""
        return tuple(int(self.count[k]) for k, _ in self._axes)

    def positions(self, box: Sequence[range]) -> NDArray[Any]:
        """Return where the voxels of a box lie, RAS mm, `(3, *sides)`; the box along the grid's own axes."""
        import numpy as np

        lines: list[Any] = [None] * 3
        for (k, grows), inside in zip(self._axes, box, strict=True):
            steps = np.arange(inside.start, inside.stop)
            lines[k] = self.start[k] + self.spacing[k] * (steps if grows > 0 else self.count[k] - 1 - steps)
        order = [k for k, _ in self._axes]
        world = np.meshgrid(*(lines[k] for k in order), indexing="ij")
        return np.stack([world[order.index(k)] for k in range(3)])

    @property
    def _axes(self) -> list[tuple[int, int]]:
        return [_WORLD[letter] for letter in self.codes]


def upright_grid(grid: Grid, spacing: Sequence[float], codes: str) -> UprightGrid:
    """Return the upright grid of a volume.

    Args:
        grid: Of the volume.
        spacing: In mm, along the axes that `codes` names.
        codes: Where the axes point to, as `UprightGrid.codes`.
    """
    import numpy as np

    turn, shift = grid.affine[:3, :3], grid.affine[:3, 3]
    steps = np.empty(3)
    for letter, step in zip(codes, spacing, strict=True):
        steps[_WORLD[letter][0]] = step
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1) @ turn.T + shift
    low = corners.min(axis=0)
    count = np.rint(np.ptp(corners, axis=0) / steps).astype(int) + 1
    if np.abs(corners - low).max(axis=1).min() < _UPRIGHT:
        return UprightGrid(low, count, steps, codes)
    return UprightGrid(turn @ (np.array(grid.shape) / 2) + shift - steps * count / 2, count, steps, codes)


def sample(values: NDArray[Any], grid: Grid, positions: NDArray[Any], outside: float) -> tuple[NDArray[Any], float]:
    """Return a volume's values at some positions, linearly between voxels, and the share of these in the volume.

    Args:
        values: Of the volume.
        grid: Its own.
        positions: In RAS mm, `(3, *sides)`.
        outside: Value of what lies beyond the outermost voxels.
    """
    import numpy as np
    from scipy import ndimage

    inverse = np.linalg.inv(grid.affine)
    voxels = np.tensordot(inverse[:3, :3], positions, axes=1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    found = ndimage.map_coordinates(values, voxels, np.float64, order=1, mode="grid-constant", cval=outside)
    last = (np.array(grid.shape) - 1).reshape(3, 1, 1, 1)
    is_inside = ((voxels >= -0.5) & (voxels <= last + 0.5)).all(axis=0)
    return found, float(is_inside.mean())
