"""Volumes prepared for MONAI SSL's pre-training, kept on disk: an epoch neither reads nor resamples the files.

Order and constants from Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`, whose
data set prepares each volume anew in each epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from zoo.entries.monai_ssl.placing import place
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError, ZooError
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.volume_transform import VolumeTransform, build_volume_transform

Voxels = npt.NDArray[Any]

DTYPES = {"float32": np.float32, "float16": np.float16}
_VERSION = 1  # of what `prepare_volume` does: a kept volume of another one is not taken
_ABANDONED = 24 * 3600  # seconds; no volume takes that long to write


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
    """Prepared volumes on disk, one `.npy` each.

    A volume's name holds a digest of its file (place, size, time of change) and of all settings, so that one folder can
    be used by many runs, and a changed file is prepared anew. A file gets its name when it is whole: processes that are
    killed, or prepare the same volume at the same time, leave no broken one.

    Args:
        folder: Is made at the first volume.
        contract: Grid, window and units of the volumes.
        size: Least voxels along each axis.
        dtype: Of the numbers kept, float32 or float16; half of the space for errors of up to 0.0003.
    """

    def __init__(self, folder: str | Path, contract: Preprocessing, size: int, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise OptionError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        self.folder, self.size, self.dtype = Path(folder), size, DTYPES[dtype]
        self.transform = build_volume_transform(contract)
        self.settings = json.dumps([_VERSION, asdict(contract), size, dtype], sort_keys=True)
        self.known: dict[Path, Path] = {}

    def path(self, file: Path) -> Path:
        """Where the prepared volume of a file is, or will be; the file is looked at once, the first time."""
        if file not in self.known:
            stem = re.sub(r"(\.nii)?(\.gz)?$", "", file.name)
            digest = hashlib.sha256(f"{_stamp(file)}\n{self.settings}".encode()).hexdigest()
            self.known[file] = self.folder / f"{stem}-{digest[:20]}.npy"
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
            raise InputContractError(f"{file}: {error}" if str(file) not in str(error) else str(error)) from error
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{path.name}.{uuid.uuid4().hex}.tmp"  # processes of several nodes may write at once
        try:
            with temporary.open("wb") as stream:
                np.save(stream, volume)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def open(self, file: Path) -> Voxels:
        """Map the prepared volume of a file, so that only the voxels that are asked for are read; see `add`."""
        volume: Voxels = np.load(self.add(file), mmap_mode="r", allow_pickle=False)
        return volume

    def fill(self, files: Sequence[Path], processes: Processes, workers: int = 0) -> None:
        """Prepare all volumes that are not there, each process its share, in `workers` loader processes.

        Raises:
            InputContractError: Volumes cannot be prepared; the message names all of this process's share. Those that
                can are kept.
        """
        todo = [file for file in dict.fromkeys(files) if not self.path(file).exists()]
        distributed.barrier()  # all look before one of them adds, so that the shares are of the same files
        if processes.is_main:
            self._remove_leftovers()
        mine = todo[processes.rank :: processes.world]
        loader = DataLoader(_Preparation(self, mine), batch_size=None, num_workers=workers, generator=torch.Generator())
        bar = tqdm(loader, desc="volumes", disable=None if processes.is_main else True, leave=False)
        problems = [problem for problem in bar if problem]
        everyone = int(distributed.gather(torch.tensor([len(problems)], device=processes.device)).sum())
        if everyone:
            raise InputContractError(
                f"{everyone} of {len(todo)} volumes cannot be used"
                + ("".join(f"; {problem}" for problem in problems) or "; other processes name them")
            )

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left half written."""
        for temporary in self.folder.glob(".*.npy.*.tmp"):
            if time.time() - temporary.stat().st_mtime > _ABANDONED:
                temporary.unlink(missing_ok=True)


class _Preparation(Dataset[str]):
    """Item i prepares file i and says what was wrong with it, so that all that is wrong can be said at once."""

    def __init__(self, cache: VolumeCache, files: Sequence[Path]) -> None:
        self.cache, self.files = cache, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        try:
            self.cache.add(self.files[index])
        except ZooError as error:
            return str(error)
        return ""


def _stamp(file: Path) -> str:
    """Place, size and time of change of a file, or of all files in a folder with a DICOM series."""
    parts = sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else [file]
    facts = [(str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return json.dumps(facts)
