"""Tells a modulated grey-matter density map from other brain files, and its order of axes from SimpleITK's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.entry import Preprocessing
from zoo.errors import InputContractError
from zoo.images import Volume
from zoo.messages import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY_MATTER = "modulated grey-matter density"
CAT12 = (
    "Run CAT12 (or SPM12) on the T1 first: segmentation, with modulated normalised grey matter at 1.5 mm written out, "
    "and pass that file (mwp1*.nii of CAT12, mwc1*.nii of SPM12)"
)
"""The way to get such a map, for messages."""

_ROUNDING = 0.01
_MOST_DENSITY = 10.0  # no registration shrinks tissue tenfold in volume; percentages and scans lie above
_LEAST_DENSITY = 0.3  # below it a map was scaled, or holds no brain
_UNMODULATED = (0.99, 1.001)  # the largest value of a probability map; volume changes move that of a modulated one
_USUAL_ML = (300.0, 1100.0)  # adults have 450 to 900 ml of grey matter; nilearn's ICBM152 map adds up to 1008
_MOST_ML = 2000.0  # no human skull holds more, of everything
_MIRRORED, _CLEARLY = 0.72, 0.1
"""Correlation with the own mirror image from which on a map is one, and by how much more than along the other axis.

nilearn's ICBM152 map, in blocks of 6 mm and about its own centre, has 0.98 from left to right and 0.65 from top to
bottom; 0.85 and 0.65 if its head is tilted by 5 degrees. With a hemisphere missing, 0.62 and 0.70: none of the two.
"""
_BLOCKS = 30  # along the first axis, coarse enough for folds to be alike on both sides


def check_density(volume: Volume, contract: Preprocessing) -> list[str]:
    """Check that values can be densities; returns what is merely odd about them.

    Raises:
        InputContractError: They are those of a raw scan, a label map or percentages, or are scaled already.
    """
    import numpy as np

    if volume.modality:
        raise InputContractError(
            f"{volume.source} is DICOM of modality {printable(volume.modality)}, as raw scans come: one file of "
            f"{contract.units} is expected. {CAT12}"
        )
    values, (low, high) = volume.values, contract.value_range
    least, most = float(values.min()), float(values.max())
    are_whole = bool((values == np.rint(values)).all())
    said = f"{volume.source} has {'whole numbers' if are_whole else 'values'} from {least:g} to {most:g}"
    if least < low - _ROUNDING:
        raise InputContractError(
            f"{said}: {contract.units} has no negative values. If the volume is z-scored already and on the grid, "
            f"pass it to the network as it is, without this transform. {CAT12}"
        )
    if most > _MOST_DENSITY or (are_whole and most > 1):
        raise InputContractError(
            f"{said}, as raw scans, label maps and percentages have; {contract.units} is expected, fractions whose "
            f"largest lie between 1 and 3. {CAT12}"
        )
    if are_whole:
        return [f"{said}, a mask: a {contract.units} is expected, and features of a mask may mean little"]
    if most > high:
        return [f"{said}, where a {contract.units} has {low:g} to {high:g}: is the registration right?"]
    if _UNMODULATED[0] <= most <= _UNMODULATED[1]:
        return [f"{said}, as a map that is not modulated (wp1): a {contract.units} (mwp1) is expected"]
    if most < _LEAST_DENSITY and contract.affine is None:  # elsewhere the amount of grey matter tells
        return [f"{said}: of a {contract.units} the largest lie between 1 and 3, were these scaled, or no brain?"]
    return []


def check_placed(placed: NDArray[Any], contract: Preprocessing, source: str) -> list[str]:
    """Check a map on its grid: the order of its axes, and the amount of grey matter; returns what is odd.

    Raises:
        InputContractError: It is more than a skull holds, or the axes are in the order of SimpleITK.
    """
    return _check_order(placed, source) + _check_amount(placed, contract, source)


def _check_order(values: NDArray[Any], source: str) -> list[str]:
    """Refuse a map whose left and right lie along its third axis, where the grid's shape cannot tell.

    A brain is its own mirror image from left to right alone, which has to be the first axis. Files are looked at as
    well: an array of SimpleITK gets into one with the grid's matrix.

    Returns:
        That the order cannot be told, for a map that is no mirror image along the first axis.
    """
    if values.shape[0] != values.shape[2]:
        return []
    coarse = _in_blocks(values, max(1, values.shape[0] // _BLOCKS))
    pairs = [(_mirrored(coarse, 0, own_centre=own), _mirrored(coarse, 2, own_centre=own)) for own in (False, True)]
    is_first = any(_is_clearly(first, third) for first, third in pairs)
    is_third = any(_is_clearly(third, first) for first, third in pairs)
    if is_first and not is_third:
        return []
    first, third = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    found = (
        f"{source} has correlation {first:.2f} with its mirror image along the first axis, {third:.2f} along the third"
    )
    if is_third and not is_first:
        raise InputContractError(
            f"{found}: left and right lie along the third, so its axes are (z, y, x), as SimpleITK has them. (x, y, z) "
            "are expected, as nibabel has them. Pass the file that the segmentation wrote, or array.transpose(2, 1, 0)"
        )
    return [
        f"{found}: whether its axes are (x, y, z), as expected, or (z, y, x), as SimpleITK has them, cannot be told. "
        "Is it a whole brain, upright and normalised?"
    ]


def _in_blocks(values: NDArray[Any], side: int) -> NDArray[Any]:
    """Means of cubes of `side` voxels."""
    i, j, k = (n // side for n in values.shape)
    whole = values[: i * side, : j * side, : k * side]
    means: NDArray[Any] = whole.reshape(i, side, j, side, k, side).mean(axis=(1, 3, 5))
    return means


def _is_clearly(mirrored: float, other: float) -> bool:
    return mirrored >= _MIRRORED and mirrored > other + _CLEARLY


def _mirrored(values: NDArray[Any], axis: int, *, own_centre: bool) -> float:
    """Correlation with the mirror image along an axis: at the middle of the grid, or near the centre of mass the best.

    At the middle, where a normalised map has its left and right, the head's outline does not help along other axes;
    the own centre is for maps that lie elsewhere.
    """
    import numpy as np

    lines = np.moveaxis(values, axis, 0)
    positions = np.arange(len(lines))
    if not own_centre:
        return _correlation(lines, positions[::-1])
    mass = lines.reshape(len(lines), -1).sum(axis=1)
    twice = round(2 * float(mass @ positions) / float(mass.sum()))
    return max(_correlation(lines, total - positions) for total in range(twice - 2, twice + 3))


def _correlation(lines: NDArray[Any], mirrored: NDArray[Any]) -> float:
    """Correlation of planes with those at the positions `mirrored`; beyond the grid there is nothing."""
    import numpy as np

    inside = (mirrored >= 0) & (mirrored < len(lines))
    image = np.zeros_like(lines)
    image[inside] = lines[mirrored[inside]]
    with np.errstate(invalid="ignore"):  # NaN of what is constant, which is neither
        return float(np.nan_to_num(np.corrcoef(lines.ravel(), image.ravel())[0, 1]))


def _check_amount(placed: NDArray[Any], contract: Preprocessing, source: str) -> list[str]:
    """Check how much grey matter a map adds up to, density times the volume of a voxel."""
    import numpy as np

    amount = float(placed.sum(dtype=np.float64) * abs(np.linalg.det(np.array(contract.affine)[:3, :3])) / 1000)
    if amount > _MOST_ML:
        raise InputContractError(
            f"{source} adds up to {amount:.0f} ml of grey matter, more than a skull holds: a {contract.units} is "
            f"expected. {CAT12}"
        )
    least, most = _USUAL_ML
    if least <= amount <= most:
        return []
    return [
        f"{source} adds up to {amount:.0f} ml of grey matter, where brains have {least:.0f} to {most:.0f}: is it a "
        f"{contract.units} of a whole brain?"
    ]
