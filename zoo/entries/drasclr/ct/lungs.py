"""Segmentation of the lungs of a CT: by a network, or, where it cannot be had, by a threshold."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from zoo.entries.drasclr.ct.lung_masks import LEAST_ML, LEFT, RIGHT, Labels, Mask, split_at
from zoo.entries.drasclr.ct.scan import Scan
from zoo.errors import DownloadError, InputContractError, IntegrityError, OfflineError, OptionError
from zoo.fetching import fetch
from zoo.images import to_itk, voxel_sizes
from zoo.messages import install_hint
from zoo.record import RemoteFile
from zoo.transforms import reorient

if TYPE_CHECKING:
    from lungmask import LMInferer

log = logging.getLogger("zoo")

SEGMENTERS = ("auto", "lungmask", "threshold")
_BETWEEN = -400  # HU: half-way from lung, about -850, to soft tissue, about 40
_GRID = 2.0  # mm, grid of the threshold; finer voxels cost minutes, and an affine map cannot use them
_JOINED = 0.2  # share of a piece on either side of the middle that means both lungs, touching in front of the heart


def choose_segmenter(segmenter: str) -> str:
    """Return the segmenter that will be used.

    "auto" is lungmask where it is installed and its network is in the cache or can be fetched; else the threshold,
    which is logged.

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
            raise OptionError(f"segmenter 'lungmask' needs the package: {install_hint('lungmask', 'drasclr')}")
        network_file()
        return segmenter
    reason = f"it is not installed: {install_hint('lungmask', 'drasclr')}"
    if has_lungmask:
        try:
            network_file()
        except (DownloadError, OfflineError) as error:
            reason = str(error)
        else:
            return "lungmask"
    log.warning(
        "lungs are segmented by threshold, which misses dense ones, instead of by lungmask, which the authors used: %s",
        reason,
    )
    return "threshold"


def network_file() -> Path:
    """Return lungmask's network R231, fetched once into the cache.

    lungmask itself would compare no digest and ignore `ZOO_OFFLINE`. The file's name ends with the first digits of its
    sha256, by the custom of `torch.hub`.

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
            f"{found.path} is not lungmask's network R231: its sha256 begins with {found.sha256[:8]}, where "
            f"{expected} is expected. Remove it"
        )
    return found.path


def segment(scan: Scan, segmenter: str) -> Nifti1Image:
    """Return the lungs of a CT, on its grid: 1 in the right, 2 in the left.

    Args:
        scan: Whole lungs with the chest around them, for "threshold" up to the skin.
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
        InputContractError: The network has other labels than those of two lungs.
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
    """Return labels `(i, j, k)` by a threshold: the lungs are the largest pieces of air in the body, one on each side.

    Taken are voxels below -400 HU that are not connected with the air at the sides of the scan. They are parted where
    they touch by less than 4 mm, which separates the windpipe, and vessels are filled in. Dense parts of a lung, as in
    pneumonia, are missed.
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
    """Label both lungs in a mask of air, `(x, y, z)` to the right, front and top."""
    parts, _ = ndimage.label(air)
    outside = np.unique(np.concatenate([parts[[0, -1]].ravel(), parts[:, [0, -1]].ravel()]))
    inside = air & ~np.isin(parts, outside)
    middle = round(float(np.average(np.arange(len(air)), weights=1 + (~air).sum(axis=(1, 2)))))
    pieces, count = ndimage.label(ndimage.binary_erosion(inside))
    labels = np.zeros(air.shape, np.uint8)
    for piece in np.argsort(-np.bincount(pieces.ravel(), minlength=count + 1)[1:]) + 1:
        lung = ndimage.binary_dilation(pieces == piece) & inside & (labels == 0)
        if lung.sum() * voxel_ml < LEAST_ML:
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
