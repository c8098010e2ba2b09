"""Volumes prepared for MONAI SSL's pre-training, kept on disk: an epoch neither reads nor resamples the files.

Order and constants from Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`, whose
data set prepares each volume anew in each epoch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.entries.monai_ssl.placing import place
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.messages import with_path
from zoo.training.volume_store import digest_of, keep_array, map_array, prepare_all
from zoo.transforms import VolumeTransform, build_volume_transform

Voxels = npt.NDArray[Any]

DTYPES = {"float32": np.float32, "float16": np.float16}
FORMAT = 1
"""Of what is kept on disk: what was kept under another number is not read."""


def prepare_volume(file: Path, transform: VolumeTransform, size: int) -> npt.NDArray[np.float32]:
    """Return a CT as pre-training crops it: (D, H, W), float32 from 0 to 1.

    Axes as the file has them, resampled and windowed by the input contract, cut to the bounding box of what is above
    the window's lower end, and padded with 0 on both sides of an axis to at least `size` voxels.

    Raises:
        InputContractError: It cannot be read, is no CT in HU, or nothing lies above the window.
    """
    image = place(file, transform).image
    lack = [max(0, size - side) for side in image.shape]
    return np.pad(image, [(missing // 2, missing - missing // 2) for missing in lack])


class VolumeCache:
    """Prepared volumes on disk, one `.npy` each, as `zoo.training.volume_store` keeps them.

    Args:
        folder: Is made at the first volume; several runs may share it.
        contract: Grid, window and units of the volumes.
        size: Least voxels along each axis.
        dtype: Of the numbers kept, float32 or float16; half of the space for errors of up to 0.0003.

    Raises:
        OptionError: `dtype` is neither.
    """

    def __init__(self, folder: str | Path, contract: Preprocessing, size: int, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise OptionError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        self.folder, self.size, self.dtype = Path(folder), size, DTYPES[dtype]
        self.transform = build_volume_transform(contract)
        self.settings = (FORMAT, asdict(contract), size, dtype)
        self.known: dict[Path, Path] = {}

    def path(self, file: Path) -> Path:
        """Where the prepared volume of a file is, or will be; the file is looked at once, the first time."""
        if file not in self.known:
            stem = re.sub(r"(\.nii)?(\.gz)?$", "", file.name)
            self.known[file] = self.folder / f"{stem}-{digest_of([file], *self.settings)}.npy"
        return self.known[file]

    def add(self, file: Path) -> Path:
        """Prepare the volume of a file if it is not there, and return where it is.

        Raises:
            InputContractError: As `prepare_volume`; the message names the file.
        """
        path = self.path(file)
        if path.exists():
            return path
        try:
            volume = prepare_volume(file, self.transform, self.size).astype(self.dtype, copy=False)
        except InputContractError as error:
            raise InputContractError(with_path(file, error)) from error
        keep_array(path, volume)
        return path

    def open(self, file: Path) -> Voxels:
        """Map the prepared volume of a file, so that only the voxels that are asked for are read; see `add`."""
        return map_array(self.add(file))

    def fill(self, files: Sequence[Path], workers: int = 0) -> None:
        """Prepare all volumes that are not there, each process its share, in `workers` loader processes.

        Raises:
            InputContractError: Volumes cannot be prepared; all are named, and those that can are kept.
        """
        prepare_all(self.folder, list(dict.fromkeys(files)), self.add, workers=workers)
