"""Which voxels of a CT are lung: a network's mask, a given one, or, where no network can be had, one by threshold."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from zoo.download import fetch
from zoo.entries.drasclr.registration import LUNGS
from zoo.entries.drasclr.scan import Scan, sides, to_itk
from zoo.errors import DownloadError, InputContractError, IntegrityError, OfflineError, OptionError
from zoo.manifest import RemoteFile
from zoo.volume_grid import reorient
from zoo.volumes import Volume, voxel_sizes

if TYPE_CHECKING:
    from lungmask import LMInferer

log = logging.getLogger("zoo")

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SEGMENTERS = ("auto", "lungmask", "threshold")
RIGHT, LEFT = 1, 2
"""The patient's right and left lung in every mask here, as lungmask's R231 has them (JoHof/lungmask, README.md)."""

_BETWEEN = -400  # HU: half-way from lung, about -850, to soft tissue, about 40
_GRID = 2.0  # mm: what the threshold looks at; finer voxels cost minutes, and an affine map cannot use them
_LEAST_ML = 100.0  # a lung of an adult holds litres; trachea and main bronchi hold about 50
_JOINED = 0.2  # of a piece on either side of the patient's middle: both lungs, that touch in front of the heart
_CUT = 100.0  # mm2 of lung in the outermost slice; where a lung ends inside the scan there is none
_AIRY = -200.0  # HU: half of a lung's voxels lie below it even where much of it is consolidated


def choose_segmenter(segmenter: str) -> str:
    """Return the segmenter that will be used.

    "auto" is lungmask where it is installed and its network is here or can be fetched, else the threshold, which is
    logged.

    Raises:
        OptionError: There is no such segmenter, or lungmask is not installed.
        OfflineError: lungmask is asked for, its network is not in the cache, and connections are forbidden;
            `DownloadError` if no source gave it, `IntegrityError` if it is another file.
    """
    if segmenter not in SEGMENTERS:
        raise OptionError(f"segmenter must be one of {', '.join(SEGMENTERS)}, not {segmenter!r}")
    if segmenter == "threshold":
        return segmenter
    has_lungmask = find_spec("lungmask") is not None
    if segmenter == "lungmask":
        if not has_lungmask:
            raise OptionError("segmenter 'lungmask' needs the package: pip install 'medssl-zoo[drasclr]'")
        network_file()
        return segmenter
    reason = "it is not installed: pip install 'medssl-zoo[drasclr]'"
    if has_lungmask:
        try:
            network_file()
        except (DownloadError, OfflineError) as error:
            reason = str(error)
        else:
            return "lungmask"
    log.warning(
        "lungs are segmented by threshold, which misses dense ones and is not what the authors used, instead of by "
        "lungmask: %s",
        reason,
    )
    return "threshold"


def network_file() -> Path:
    """Return lungmask's network R231, fetched once into the cache.

    Not by lungmask itself, which compares no digest and knows nothing of `ZOO_OFFLINE`. The file's name ends with the
    first digits of its sha256, as is the custom of `torch.hub`.

    Raises:
        OfflineError: It is not in the cache, and connections are forbidden; `DownloadError` if no source gave it.
        IntegrityError: It is another file.
    """
    from lungmask.mask import MODEL_URLS

    url = MODEL_URLS["R231"][0]
    found = fetch(RemoteFile((url,), None, None), request="lungmask's network R231")
    expected = Path(url).stem.rsplit("-", 1)[-1]
    if not found.sha256.startswith(expected):
        raise IntegrityError(
            f"{found.path} is not lungmask's network R231: its sha256 begins with {found.sha256[:8]}, expected is "
            f"{expected}. Remove it"
        )
    return found.path


def segment(scan: Scan, segmenter: str) -> Nifti1Image:
    """Return the lungs of a CT, on its grid: 1 in the right, 2 in the left.

    Args:
        scan: Whole lungs; the rest of the chest around them, for "threshold" up to the skin.
        segmenter: "lungmask" or "threshold", see `choose_segmenter`.
    """
    find = by_lungmask if segmenter == "lungmask" else by_threshold
    return Nifti1Image(find(scan), scan.affine)


def by_lungmask(scan: Scan, network: Path | None = None) -> Labels:
    """Return lungmask's labels `(i, j, k)`, by its network R231, or another of its kind with two lungs.

    Args:
        scan: Any orientation; lungmask turns it.
        network: A file of weights; None for R231, which is fetched.

    Raises:
        InputContractError: The network knows other labels than two lungs.
    """
    found: Labels = _inferer(network or network_file()).apply(to_itk(scan.values, scan.affine))
    if found.max(initial=0) > LEFT:
        raise InputContractError(f"{network} gives labels up to {found.max()}: two lungs are expected, 1 and 2")
    return np.ascontiguousarray(found.transpose(2, 1, 0))


@lru_cache(maxsize=1)
def _inferer(network: Path) -> LMInferer:
    from lungmask import LMInferer

    return LMInferer(modelpath=str(network), tqdm_disable=True)


def by_threshold(scan: Scan) -> Labels:
    """Return labels `(i, j, k)` by what the lungs are: the largest pieces of air inside the body, one on either side.

    Voxels below -400 HU that are not connected with the air at the sides of the scan; parted where they hang together
    by less than 4 mm, which leaves the windpipe alone; vessels filled in. Dense parts of a lung, as pneumonia, are
    missed.
    """
    ras = nibabel.orientations.axcodes2ornt("RAS")
    values, affine = reorient(scan.values, scan.affine, ras)
    strides = [max(1, round(_GRID / size)) for size in voxel_sizes(affine)]
    coarse = values[tuple(slice(stride // 2, None, stride) for stride in strides)]
    labels = _two_lungs(coarse < _BETWEEN, float(np.prod(voxel_sizes(affine) * strides)) / 1000)
    for axis, (stride, size) in enumerate(zip(strides, values.shape, strict=True)):
        rows = np.minimum(np.arange(size) // stride, labels.shape[axis] - 1)
        labels = np.take(labels, rows, axis)
    turned, _ = reorient(labels, affine, nibabel.io_orientation(scan.affine))
    return np.ascontiguousarray(turned)


def _two_lungs(air: Mask, voxel_ml: float) -> Labels:
    """Label both lungs among what is air, `(x, y, z)` to the right, front and top."""
    parts, _ = ndimage.label(air)
    outside = np.unique(np.concatenate([parts[[0, -1]].ravel(), parts[:, [0, -1]].ravel()]))
    inside = air & ~np.isin(parts, outside)
    middle = round(float(np.average(np.arange(len(air)), weights=1 + (~air).sum(axis=(1, 2)))))
    pieces, count = ndimage.label(ndimage.binary_erosion(inside))
    labels = np.zeros(air.shape, np.uint8)
    for piece in np.argsort(-np.bincount(pieces.ravel(), minlength=count + 1)[1:]) + 1:
        lung = ndimage.binary_dilation(pieces == piece) & inside & (labels == 0)
        if lung.sum() * voxel_ml < _LEAST_ML:
            break  # pieces come by size
        share = lung[middle:].sum() / lung.sum()
        cut = split_at(lung) if _JOINED < share < 1 - _JOINED else (0 if share > 0.5 else len(lung))
        for label, side in ((RIGHT, slice(cut, None)), (LEFT, slice(None, cut))):
            if lung[side].any() and not (labels == label).any():
                labels[side][lung[side]] = label
    for z in range(air.shape[2]):
        for label in (RIGHT, LEFT):
            filled = ndimage.binary_fill_holes(labels[:, :, z] == label)
            labels[:, :, z][filled & (labels[:, :, z] == 0)] = label
    return labels


def split_at(lungs: Mask) -> int:
    """Return the plane across the first axis where two lungs are one from the other: the emptiest near the middle."""
    filled = lungs.sum(axis=(1, 2))
    first, last = np.flatnonzero(filled)[[0, -1]]
    third = (last - first) // 3
    return int(first + third + np.argmin(filled[first + third : last - third + 1]))


def read_lungs(mask: Volume, volume: Volume) -> Nifti1Image:
    """Return a mask that someone made: 1 in the right lung, 2 in the left.

    Args:
        mask: 1 and 2, or 50 and 100, or one value in both lungs, which are then told by where they lie. On any grid;
            one without a place must have the voxels of the CT.
        volume: The CT.

    Raises:
        InputContractError: It has other values, or does not lie on the lungs of the CT.
    """
    affine = mask.affine
    if affine is None:
        if mask.values.shape != volume.values.shape or volume.affine is None:
            raise InputContractError(
                f"the lung mask {mask.source} comes without its place, so it must have the voxels of the CT, "
                f"{volume.values.shape}: pass a file, or nibabel.Nifti1Image(array, affine)"
            )
        affine = volume.affine
    found = tuple(float(value) for value in np.unique(mask.values) if value)
    if found not in ((RIGHT, LEFT), tuple(map(float, LUNGS))) and len(found) != 1:
        shown = ", ".join(f"{value:g}" for value in found[:6]) or "0 alone"
        raise InputContractError(
            f"the lung mask {mask.source} holds {shown}: 1 in the right lung and 2 in the left are expected (or 50 and "
            "100), or one value in both"
        )
    labels = np.searchsorted((0.0, *found), mask.values).astype(np.uint8)
    if len(found) == 1:
        labels = _told_by_side(labels, affine)
    lungs = Nifti1Image(labels, affine)
    _check_on_air(lungs, volume, mask.source)
    return lungs


def _told_by_side(mask: Labels, affine: Any) -> Labels:
    turned, turned_affine = reorient(mask, affine, nibabel.orientations.axcodes2ornt("RAS"))
    labels = turned.copy()
    labels[: split_at(turned > 0)] *= LEFT
    back, _ = reorient(labels, turned_affine, nibabel.io_orientation(affine))
    return np.ascontiguousarray(back)


def _check_on_air(lungs: Nifti1Image, volume: Volume, source: str) -> None:
    """Check that what a mask calls lung is air in the CT, looking at some thousand voxels."""
    if volume.affine is None:
        return
    voxels = np.argwhere(np.asarray(lungs.dataobj))
    voxels = voxels[:: max(1, len(voxels) // 5000)]
    to_volume = np.linalg.inv(volume.affine) @ lungs.affine
    there = np.rint(nibabel.affines.apply_affine(to_volume, voxels)).astype(np.int64)
    there = there[((there >= 0) & (there < volume.values.shape)).all(axis=1)]
    if 2 * len(there) < len(voxels):
        raise InputContractError(
            f"the lung mask {source} does not lie on {volume.source}: {len(there) / len(voxels):.0%} of it is inside. "
            "Is it of the same scan?"
        )
    middle = float(np.median(volume.values[tuple(there.T)]))
    if middle > _AIRY:
        raise InputContractError(
            f"the lung mask {source} does not lie on the lungs of {volume.source}: half of the CT in it is above "
            f"{middle:.0f} HU, lung lies near -800. Is it of the same scan, and not mirrored?"
        )


def check_lungs(lungs: Nifti1Image, source: str) -> dict[str, float]:
    """Return the volume of each lung in ml, after a check that both are there, and whole as far as that can be told.

    Raises:
        InputContractError: A lung is missing or holds less than 100 ml, or right and left are exchanged.
    """
    labels = np.asarray(lungs.dataobj)
    voxel_ml = abs(float(np.linalg.det(lungs.affine[:3, :3]))) / 1000
    volumes = {"right": float((labels == RIGHT).sum()) * voxel_ml, "left": float((labels == LEFT).sum()) * voxel_ml}
    if missing := [name for name, volume in volumes.items() if volume < _LEAST_ML]:
        sizes = ", ".join(f"{name} {volume:.0f} ml" for name, volume in volumes.items())
        raise InputContractError(
            f"{source} misses the {' and the '.join(missing)} lung ({sizes} were found): at least {_LEAST_ML:.0f} ml "
            "of each are expected, as the atlas has both. Look at the scan; if the lungs are there, pass a mask of them"
        )
    centres = np.array(ndimage.center_of_mass(labels, labels, (RIGHT, LEFT)))
    right, left = nibabel.affines.apply_affine(lungs.affine, centres)[:, 0]
    if right < left:
        raise InputContractError(
            f"{source}: what is called the right lung lies {left - right:.0f} mm to the left of the other. Exchange "
            "the labels of the mask, or find out which header has left and right exchanged"
        )
    _warn_of_cuts(labels, lungs.affine, source)
    return volumes


def _warn_of_cuts(labels: Labels, affine: Any, source: str) -> None:
    """Log where lung goes on to the last slice of the scan."""
    sizes, names = voxel_sizes(affine), sides(affine)
    cuts = [
        name
        for axis, pair in enumerate(names)
        for name, end in zip(pair, (0, -1), strict=True)
        if np.count_nonzero(np.take(labels, end, axis)) * np.delete(sizes, axis).prod() > _CUT
    ]
    if cuts:
        log.warning("%s ends inside a lung at the %s: patches there will show padding", source, " and the ".join(cuts))
