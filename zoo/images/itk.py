"""Voxels for SimpleITK and back: its arrays are `(k, j, i)`, and its x and y run to the left and the back."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError
from zoo.images.grids import voxel_sizes
from zoo.messages import install_hint

if TYPE_CHECKING:
    import SimpleITK
    from numpy.typing import NDArray

_AXES = (-1.0, -1.0, 1.0)
"""Of nibabel's x, y and z, which run to the right, the front and the top, in ITK's."""


def import_itk(purpose: str, extra: str) -> Any:
    """Import SimpleITK.

    Args:
        purpose: What needs it, for the message.
        extra: The zoo's extra that has it.

    Raises:
        OptionError: It is not installed.
    """
    if find_spec("SimpleITK") is None:
        raise OptionError(f"{purpose} needs the package SimpleITK: {install_hint('SimpleITK', extra)}")
    import SimpleITK

    return SimpleITK


def to_itk(values: NDArray[Any], affine: NDArray[Any]) -> SimpleITK.Image:
    """Return voxels `(i, j, k)` with their affine, as nibabel has it, as an image of ITK, without changing either."""
    import numpy as np
    import SimpleITK

    sizes, matrix = voxel_sizes(affine), np.diag((*_AXES, 1.0)) @ affine
    image: SimpleITK.Image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / sizes).ravel().tolist())
    return image


def from_itk(image: SimpleITK.Image) -> NDArray[Any]:
    """Return the voxels `(i, j, k)` of an image of ITK."""
    import SimpleITK

    values: NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    return values.transpose(2, 1, 0)
