"""Volumes on the grid of the network, kept on disk as arrays that are mapped: a slice costs what it reads.

Order and constants from krishnabits001/domain_specific_cl, dataloaders.py and scripts/create_cropped_imgs.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from zoo.entries.glcl.layouts import Case, DataSet
from zoo.entries.glcl.volumes import Array, Grid, correct_bias, read_image, read_mask
from zoo.errors import InputContractError
from zoo.processes import this_process
from zoo.slices import crop_or_pad, normalise_percentiles, resample_in_plane
from zoo.training import distributed

FORMAT = 1
"""Of what is kept on disk: what was kept under another number is not read."""


def place_image(
    image: Array, grid: Grid, source: str, size: int, spacing: float, *, n4: bool = False
) -> tuple[Array, tuple[int, int]]:
    """Correct the bias field if asked to, normalise, resample in the plane, crop or pad, in this order.

    Args:
        image: (X, Y, Z).
        grid: Its voxels.
        source: What messages call it.
        size: Side S of the slices in pixels.
        spacing: Side of a pixel in mm.
        n4: Whether to correct the bias field.

    Returns:
        Slices (Z, S, S) float32, the 1st and 99th percentiles of the whole volume at 0 and 1, not clipped; and the
        pixels of the slices before they were cropped or padded.

    Raises:
        InputContractError: Values are not finite, or nearly all are the same.
    """
    image = correct_bias(image, grid.spacing) if n4 else image
    values = resample_in_plane(normalise_percentiles(image, source), _factors(grid, spacing))
    return _slices_first(values, size), (values.shape[0], values.shape[1])


def place_mask(mask: Array, grid: Grid, size: int, spacing: float) -> Array:
    """Bring labels (X, Y, Z) to the same pixels, (Z, S, S): each takes the label of the nearest voxel."""
    return _slices_first(resample_in_plane(mask, _factors(grid, spacing), order=0), size)


def _factors(grid: Grid, spacing: float) -> tuple[float, float]:
    return grid.spacing[0] / spacing, grid.spacing[1] / spacing


def _slices_first(volume: Array, size: int) -> Array:
    return np.ascontiguousarray(np.moveaxis(crop_or_pad(volume, (size, size)), 2, 0))


class CaseStore:
    """Volumes on the network's grid, kept as arrays in a folder that several runs may share.

    Names follow from the files (path, size, time of change) and all settings, so nothing outdated is ever read. Each
    array gets its name when it is whole; processes that make the same one at once write the same.

    Args:
        folder: Where the arrays are kept.
        dataset: What the labels mean, which channel to take.
        size: Side S of the slices in pixels.
        spacing: Side of a pixel in mm.
        n4: Correct the bias field of each volume first.
    """

    def __init__(self, folder: str | Path, dataset: DataSet, size: int, spacing: float, *, n4: bool = False) -> None:
        self.folder, self.dataset, self.size, self.spacing, self.n4 = Path(folder), dataset, size, spacing, n4

    def prepare(self, cases: Sequence[Case], workers: int = 0) -> list[StoredCase]:
        """Make what is not there yet, each process its share in `workers` loader processes, and return all.

        Raises:
            InputContractError: Volumes cannot be used. All are named.
        """
        mine = cases[distributed.rank() :: distributed.world()]
        count = workers if self.n4 else 0  # the rest takes less time than to start a process
        loader = DataLoader(_Preparation(self, mine), batch_size=None, num_workers=count, generator=torch.Generator())
        list(tqdm(loader, desc="volumes", disable=None if distributed.rank() == 0 else True, leave=False))
        distributed.barrier()
        everything = _Preparation(self, cases)  # again what failed, so that every process says so
        if problems := [problem for problem in map(everything.__getitem__, range(len(cases))) if problem]:
            raise InputContractError(
                f"{len(problems)} of {len(cases)} volumes cannot be used:\n  " + "\n  ".join(problems)
            )
        distributed.barrier()
        return [self.open(case) for case in cases]

    def open(self, case: Case) -> StoredCase:
        """Return the arrays of a volume, which are made if they are not there.

        Raises:
            InputContractError: It cannot be used.
        """
        key = _key(FORMAT, self.dataset.channel, self.size, self.spacing, self.n4, *_stamp(case.image))
        file = self.folder / f"{key}.json"
        if not file.is_file():
            self._add_image(case, key)
        facts = json.loads(file.read_text())
        grid = Grid(*(_frozen(facts[name]) for name in ("shape", "spacing", "affine")))
        label_key = ""
        if case.mask is not None:
            label_key = _key(key, self.dataset.num_classes, self.dataset.values, *_stamp(case.mask))
            if not (self.folder / f"{label_key}.label.npy").is_file():
                self._add_mask(case, grid, label_key)
        return StoredCase(case.name, self.folder, key, label_key, grid, _frozen(facts["resampled"]))

    def _add_image(self, case: Case, key: str) -> None:
        image, grid = read_image(case, self.dataset)
        source = f"{case.name} ({case.image})"
        slices, resampled = place_image(image, grid, source, self.size, self.spacing, n4=self.n4)
        facts = {"image": str(case.image), **asdict(grid), "resampled": resampled}
        _write(self.folder / f"{key}.image.npy", partial(_save, slices))
        _write(self.folder / f"{key}.json", lambda path: path.write_text(json.dumps(facts)))  # last: says it is whole

    def _add_mask(self, case: Case, grid: Grid, key: str) -> None:
        mask = read_mask(case, self.dataset, grid)
        _write(self.folder / f"{key}.truth.npy", partial(_save, mask))
        _write(self.folder / f"{key}.label.npy", partial(_save, place_mask(mask, grid, self.size, self.spacing)))


@dataclass(frozen=True)
class StoredCase:
    """Arrays of one volume, mapped when they are first used, in each process anew."""

    name: str
    folder: Path
    key: str
    label_key: str
    """Empty for a volume without a mask."""
    grid: Grid
    """Of the volume as it was scanned."""
    resampled: tuple[int, int]
    """Pixels of the slices at the network's spacing, before they were cropped or padded to S x S."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}  # maps would be copied

    @cached_property
    def image(self) -> Array:
        """(Z, S, S) float32."""
        return _map(self.folder / f"{self.key}.image.npy")

    @cached_property
    def label(self) -> Array:
        """(Z, S, S) uint8."""
        return _map(self.folder / f"{self.label_key}.label.npy")

    @cached_property
    def truth(self) -> Array:
        """(X, Y, Z) uint8, as it was drawn."""
        return _map(self.folder / f"{self.label_key}.truth.npy")

    @property
    def slices(self) -> int:
        """Z."""
        return self.grid.shape[2]

    @property
    def is_labelled(self) -> bool:
        """Whether it has a mask."""
        return bool(self.label_key)


class _Preparation(Dataset[str]):
    """Item i makes volume i and says what was wrong with it, so that all that is wrong can be said at once."""

    def __init__(self, store: CaseStore, cases: Sequence[Case]) -> None:
        self.store, self.cases = store, cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> str:
        try:
            self.store.open(self.cases[index])
        except InputContractError as error:
            return str(error)
        return ""


def _key(*words: Any) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def _stamp(file: Path) -> tuple[str, int, int]:
    """Place, size and time of change of a file."""
    return str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _map(file: Path) -> Array:
    mapped: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped


def _save(array: Array, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """As `runlog.write_atomically`, under a temporary name of this process: several runs may share the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{this_process()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
