"""The atlas of DrasCLR: its 581 landmarks, their locations as the network takes them, and their neighbours.

Everything is in voxels of the atlas at 1 mm, in the order (x, y, z); arrays of voxels have the reverse order.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.entries.drasclr.contract import NAME
from zoo.errors import InputContractError, OptionError
from zoo.fetching import fetch
from zoo.manifest import find_asset

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image
    from numpy.typing import NDArray

PATCH = 32
"""Side of a patch in voxels of 1 mm (batmanlab/DrasCLR, preprocess/1_patchify_atlas.py)."""
STEP = 26
"""Distance of neighbouring landmarks in voxels, so that patches overlap by 6 (the same file)."""


def load_landmarks(path: str | Path | None = None, cache_dir: str | Path | None = None) -> NDArray[Any]:
    """Return the lower corners of the atlas' patches.

    They are always read, never computed: the released lung mask gives only 575 of the released 581. Rows of features,
    and queues in training, have their order.

    Args:
        path: A `.npy` file; None for the authors', which is fetched once into the cache.
        cache_dir: Cache folder, for the authors'; default `$ZOO_HOME`.

    Returns:
        `(L, 3)` int64, rows (x, y, z), the smallest index of each patch.

    Raises:
        InputContractError: There is no such file, or it does not hold landmarks.
        OfflineError: The authors' file is not in the cache, and connections are forbidden; `DownloadError` if no source
            gave it.
    """
    import numpy as np

    from zoo.training.arrays import read_array

    file = _asset("landmarks", cache_dir) if path is None else Path(path)
    found = read_array(file, "landmarks")
    if found.ndim != 2 or found.shape[1] != 3 or not len(found) or found.dtype.kind not in "iu" or found.min() < 0:
        raise InputContractError(
            f"{file} holds {found.dtype} {found.shape}; landmarks are expected, whole numbers (L, 3), voxels "
            "(x, y, z) counted from 0"
        )
    return np.ascontiguousarray(found, dtype=np.int64)


def normalise(landmarks: NDArray[Any]) -> NDArray[Any]:
    """Return the location of each landmark as the network takes it: `(L, 3)` float32, (x, y, z) up to 1.

    2 p / max(p) - 1 per axis, the largest coordinate taken over all landmarks, as in batmanlab/DrasCLR,
    data/copd_patch.py. The smallest plays no part: the authors' landmarks begin at (-0.83, -0.45, -1). So a subset must
    be taken after this, not before. The location is that in the atlas for every patient, not that in a scan.

    Args:
        landmarks: `(L, 3)`, all landmarks of the atlas.

    Raises:
        OptionError: An axis has no coordinate above 0, which leaves its scale unknown.
    """
    import numpy as np

    largest = landmarks.max(axis=0)
    if (largest <= 0).any():
        raise OptionError(f"landmarks reach up to {largest.tolist()}: a coordinate above 0 is expected on each axis")
    return np.asarray(2.0 * landmarks / largest - 1.0, dtype=np.float32)


def neighbours(landmarks: NDArray[Any], k: int = 2) -> NDArray[Any]:
    """Return the `k` landmarks nearest to each, itself left out: `(L, k)` int64, nearest first.

    Among landmarks at one distance the smaller index comes first. Ties are common on a grid, and the choice of the
    authors' unstable sort is not known.

    Args:
        landmarks: `(L, 3)`.
        k: At least 1, less than L.

    Raises:
        OptionError: `k` is out of range.
    """
    import numpy as np

    if not 1 <= k < len(landmarks):
        raise OptionError(f"{k} neighbours among {len(landmarks)} landmarks: expected from 1 to {len(landmarks) - 1}")
    squared = ((landmarks[:, None] - landmarks[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(squared, -1)
    return np.argsort(squared, axis=1, kind="stable")[:, 1 : k + 1].astype(np.int64)


def atlas_mask(path: str | Path | None = None, cache_dir: str | Path | None = None) -> Nifti1Image:
    """Return the lungs of the atlas: 0 outside, 50 and 100 for the two lungs, voxels of 1 mm, with their place.

    Args:
        path: A NIfTI file; None for the authors', which is fetched once into the cache.
        cache_dir: Cache folder, for the authors'; default `$ZOO_HOME`.

    Raises:
        OfflineError: The authors' file is not in the cache, and connections are forbidden; `DownloadError` if no source
            gave it.
        InputContractError: There is no file at `path`, or it is not NIfTI.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.nifti1 import Nifti1Image

    if path is not None:
        try:
            return Nifti1Image.from_filename(path)
        except (EOFError, OSError, ImageFileError) as error:
            raise InputContractError(f"cannot read the lung mask of the atlas from {path}: {error}") from error
    content = _asset("lung_mask", cache_dir).read_bytes()
    return Nifti1Image.from_bytes(gzip.decompress(content))  # by its name, a digest, nibabel would not open it


def _asset(name: str, cache_dir: str | Path | None) -> Path:
    """Fetch a file that the manifest lists beside the weights; a user's record may list none."""
    asset = find_asset(NAME, name, cache_dir)
    return fetch(asset, request=f"the {name.replace('_', ' ')} of {NAME}", cache_dir=cache_dir).path
