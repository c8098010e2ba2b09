"""Volumes that are prepared once and kept on disk, in a folder that several runs and processes may share.

Each kept file is named by a digest of its source files and all settings, so that nothing outdated is ever read. It gets
its name when it is whole, so that a killed process leaves nothing broken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.errors import InputContractError
from zoo.files import remove_leftovers, write_text
from zoo.messages import listed
from zoo.progress import follow
from zoo.stopping import end_cleanly
from zoo.training import distributed
from zoo.training.arrays import map_array, save_array

Item = TypeVar("Item")
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Facts: TypeAlias = dict[str, Any]


def digest_of(files: Sequence[Path], *settings: object) -> str:
    """Return a digest (32 hexadecimal digits) of files in their present state and of settings.

    Args:
        files: Their paths, sizes and times of change count; for a folder, those of all files in it.
        settings: Values that JSON can hold.

    Raises:
        OSError: A file does not exist.
    """
    parts = [sorted(part for part in f.rglob("*") if part.is_file()) if f.is_dir() else [f] for f in files]
    facts = [[(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in part] for part in parts]
    return hashlib.sha256(json.dumps([facts, settings], sort_keys=True).encode()).hexdigest()[:32]


def keep(folder: Path, key: str, make: Callable[[], tuple[Arrays, Facts]]) -> Facts:
    """Return the facts that are kept under a key; make arrays and facts once, where they are not there.

    Args:
        folder: Where things are kept.
        key: From `digest_of`.
        make: Returns the arrays by name and the facts, which JSON can hold. `map_part` maps the arrays. May raise what
            `prepare_all` collects.
    """
    file = folder / f"{key}.json"
    if not file.is_file():
        arrays, facts = make()
        _save(folder, key, arrays)
        write_text(file, json.dumps(facts))  # last: all is there
    kept: Facts = json.loads(file.read_text("utf-8"))
    return kept


def keep_arrays(folder: Path, key: str, parts: Sequence[str], make: Callable[[], Arrays]) -> None:
    """Make and keep arrays that have no facts, as `keep` does, where one of `parts` is not there."""
    if not all(_part(folder, key, part).is_file() for part in parts):
        _save(folder, key, make())


def map_part(folder: Path, key: str, part: str) -> npt.NDArray[Any]:
    """Map one of the arrays of `keep`, so that only the part that is used is read."""
    return map_array(_part(folder, key, part))


def _save(folder: Path, key: str, arrays: Arrays) -> None:
    for part, array in arrays.items():
        save_array(_part(folder, key, part), array)


def _part(folder: Path, key: str, part: str) -> Path:
    return folder / f"{key}.{part}.npy"


def prepare_all(
    folder: Path, items: Sequence[Item], make: Callable[[Item], object], *, workers: int = 0, what: str = "volumes"
) -> None:
    """Make what is not there yet, each process its share, and remove what killed processes left half written.

    Args:
        folder: Where things are kept.
        items: Sources of the volumes.
        make: Makes and keeps the volume of an item, where it is not there.
        workers: Loader processes of each process that make them; 0 for none.
        what: What they are, for messages.

    Raises:
        InputContractError: `make` raised it for some; the message names them all, in every process.
    """
    if distributed.rank() == 0:
        remove_leftovers(folder)
    share = _Preparation(items[distributed.rank() :: distributed.world()], make)
    loader = DataLoader(
        share, batch_size=None, num_workers=workers, generator=torch.Generator(), worker_init_fn=end_cleanly
    )
    for _ in follow(loader, f"{what} prepared", len(share), is_shown=distributed.rank() == 0):
        pass
    distributed.barrier()
    everything = _Preparation(items, make)  # what failed is tried again, so that every process says so
    problems = [problem for problem in map(everything.__getitem__, range(len(items))) if problem]
    distributed.barrier()
    if problems:
        raise InputContractError(f"{len(problems)} of {len(items)} {what} cannot be used:{listed(problems)}")


class _Preparation(Dataset[str], Generic[Item]):
    """Data set that makes item i when it is read and returns its error message, empty for none."""

    def __init__(self, items: Sequence[Item], make: Callable[[Item], object]) -> None:
        self.items, self.make = items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        try:
            self.make(self.items[index])
        except InputContractError as error:
            return str(error)
        return ""
