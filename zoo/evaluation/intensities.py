"""Plain intensities of images, the baseline that needs no network: means of a coarse grid, and a histogram."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.features import Features, FeatureTable, read_features, write_features
from zoo.images import holds_series, is_dicom, read_dicom, read_picture, read_volume
from zoo.messages import problem_of, with_path
from zoo.progress import follow

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("zoo")

NAME = "plain intensities"
SIDE_2D, SIDE_3D = 16, 8
"""Cells along each side of the grid of means, of films and of volumes."""
BINS = 16
_EDGES = (0.5, 99.5)
"""Percentiles of a volume between which its histogram lies; they are features, too: volumes have no common range."""
_VERSION = 1
_MIXED = "films and volumes cannot be compared"
_ANY_SIDES = (1, 1, 1)
"""A stack of few slices is a volume to networks that take slices: a grid finer than it has equal neighbours."""
_VOLUMES = (".nii", ".nii.gz", ".hdr", ".npy")


def film_intensities(path: str | Path) -> NDArray[np.float32]:
    """Return 16 x 16 means of a film as fractions of its type's largest value, and the shares of 16 equal bins.

    Raises:
        InputContractError: It cannot be read.
    """
    path = Path(path)
    pixels = read_dicom(path) if is_dicom(path) else _fractions(read_picture(path))
    if pixels.ndim == 3:
        pixels = pixels[..., :3].mean(-1)
    counts = np.histogram(pixels.clip(0, 1), BINS, (0, 1))[0]
    return _joined(pixels, SIDE_2D, counts)


def volume_intensities(path: str | Path) -> NDArray[np.float32]:
    """Return 8 x 8 x 8 means of a volume, two percentiles, and the shares of 16 equal bins between these.

    The axes are those of the file.

    Raises:
        InputContractError: It cannot be read.
    """
    values = read_volume(path, least=_ANY_SIDES).values
    low, high = np.percentile(values, _EDGES)
    counts = np.histogram(values.clip(low, high), BINS, (low, max(high, low + 1e-6)))[0]
    return np.concatenate([_joined(values, SIDE_3D, counts), np.array([low, high], np.float32)])


def is_volume(path: str | Path) -> bool:
    """Whether an image is a volume, by its name; a folder is, if it has DICOM directly in it."""
    path = Path(path)
    return holds_series(path) if path.is_dir() else path.name.lower().endswith(_VOLUMES)


def intensities_of(paths: Sequence[str], ids: Sequence[str], file: Path | None) -> FeatureTable:
    """Return the intensities of images; those that are in the file already are taken from it.

    What cannot be read has no row, and a warning says so.

    Args:
        paths: Images.
        ids: What each is called.
        file: `.npz` in which they are kept; None to keep them in memory alone.
    """
    kept = _kept(file)
    rows, good, failed = [], [], dict[str, str]()
    for path, id in follow(list(zip(paths, ids, strict=True)), NAME, len(paths)):
        stamp = _stamp(path)
        known = kept.get((id, path, stamp))
        if known is None:
            try:
                known = volume_intensities(path) if is_volume(path) else film_intensities(path)
            except Exception as error:  # of whatever kind: one image never ends the run
                failed[id] = with_path(path, problem_of(error))
                continue
        rows.append(known)
        good.append((id, path, stamp))
    for why in list(failed.values())[:3]:
        log.warning("no plain intensities: %s", why)
    return _table(rows, good, file, failed)


def _table(
    rows: Sequence[NDArray[Any]], good: Sequence[tuple[str, str, str]], file: Path | None, failed: dict[str, str]
) -> FeatureTable:
    import pandas

    width = max((len(row) for row in rows), default=1)
    same = [i for i, row in enumerate(rows) if len(row) == width]
    problems = list(failed.values())
    if others := len(rows) - len(same):
        log.warning("no plain intensities of %d images: %s", others, _MIXED)
        problems.append(_MIXED)
    values = np.stack([rows[i] for i in same]) if same else np.empty((0, width), np.float32)
    ids, paths, stamps = ([good[i][k] for i in same] for k in range(3))
    facts = {"model": NAME, "version": _VERSION}
    if file is not None and len(same):
        carried = {"id": ids, "stamp": stamps}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_features(Features(values, tuple(paths), None, failed, facts, carried), file)
    frame = pandas.DataFrame({"id": ids, "path": paths})
    frame.attrs = {**facts, "failed": problems[:1]}
    return FeatureTable(values, frame)


def _kept(file: Path | None) -> dict[tuple[str, str, str], NDArray[Any]]:
    if file is None or not file.is_file():
        return {}
    found = read_features(file)
    if found.table.attrs.get("version") != _VERSION or "stamp" not in found.table:
        return {}
    keys = zip(*(found.table[name].astype(str) for name in ("id", "path", "stamp")), strict=True)
    return dict(zip(keys, found.features, strict=True))


def _stamp(path: str) -> str:
    """Size and time of a file, so that one that was changed is read anew."""
    try:
        state = Path(path).stat()
    except OSError:
        return ""
    return json.dumps([state.st_size, state.st_mtime_ns])


def _fractions(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype.kind in "ui":
        return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return pixels.astype(np.float32)


def _joined(values: NDArray[Any], side: int, counts: NDArray[Any]) -> NDArray[np.float32]:
    """Means of a grid, and the shares of a histogram."""
    import torch
    from torch.nn import functional

    image = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    pool: Any = functional.adaptive_avg_pool2d if image.ndim == 4 else functional.adaptive_avg_pool3d
    means: Tensor = pool(image, side)
    return np.concatenate([means.flatten().numpy(), (counts / counts.sum()).astype(np.float32)])
