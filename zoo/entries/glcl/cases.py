"""Volumes on the grid of the network, kept on disk as arrays that are mapped: a slice costs what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.entries.glcl.cohort import Case, DataSet
from zoo.entries.glcl.placing import place_image, place_mask
from zoo.entries.glcl.volumes import Array, check_image, read_image, read_mask
from zoo.images import Grid
from zoo.training.prepared import Arrays, Facts, digest_of, keep, keep_arrays, map_part, prepare_all
from zoo.transforms import turn_slices

FORMAT = 3
"""Of what is kept on disk: what was kept under another number is not read."""


class CaseStore:
    """Volumes on the network's grid, kept as arrays as `zoo.training.prepared` keeps them.

    Args:
        folder: Where the arrays are kept; several runs may share it.
        dataset: What the labels mean, which channel to take, where axes point to.
        size: Side S of the slices in pixels.
        spacing: Side of a pixel in mm.
        n4: Correct the bias field of each volume first.
    """

    def __init__(self, folder: str | Path, dataset: DataSet, size: int, spacing: float, *, n4: bool = False) -> None:
        self.folder, self.dataset, self.size, self.spacing, self.n4 = Path(folder), dataset, size, spacing, n4

    def prepare(self, cases: Sequence[Case], workers: int = 0) -> list[StoredCase]:
        """Make what is not there yet, each process its share, in `workers` loader processes, and return all.

        Raises:
            InputContractError: Volumes cannot be used. All are named.
        """
        count = workers if self.n4 else 0  # the rest takes less time than to start a process
        prepare_all(self.folder, cases, self.open, workers=count)
        return [self.open(case) for case in cases]

    def open(self, case: Case) -> StoredCase:
        """Return the arrays of a volume, which are made if they are not there.

        Raises:
            InputContractError: It cannot be used.
        """
        orientation = self.dataset.orientation
        key = digest_of([case.image], FORMAT, self.dataset.channel, self.size, self.spacing, self.n4, orientation)
        facts = keep(self.folder, key, partial(self._make_image, case))
        grid, turned = (_as_grid(facts[name], str(case.image)) for name in ("scanned", "turned"))
        label_key = ""
        if case.mask is not None:
            label_key = digest_of([case.mask], key, self.dataset.num_classes, self.dataset.values)
            keep_arrays(self.folder, label_key, ("truth", "label"), partial(self._make_mask, case, grid))
        height, width = facts["resampled"]
        return StoredCase(case.name, self.folder, key, label_key, turned, (height, width))

    def _make_image(self, case: Case) -> tuple[Arrays, Facts]:
        image = read_image(case.image, self.dataset.orientation, self.dataset.channel)
        image = replace(image, source=f"{case.name} ({case.image})")
        check_image(image)
        turned, _ = turn_slices(image, self.dataset.orientation)
        slices, resampled = place_image(turned, self.size, self.spacing, n4=self.n4)
        grids = {"scanned": _as_facts(image.grid), "turned": _as_facts(turned.grid)}
        return {"image": slices}, {"image": str(case.image), **grids, "resampled": resampled}

    def _make_mask(self, case: Case, grid: Grid) -> Arrays:
        mask, _ = turn_slices(read_mask(case, self.dataset, grid), self.dataset.orientation)
        return {"truth": mask.values, "label": place_mask(mask, self.size, self.spacing)}


def _as_facts(grid: Grid) -> Facts:
    return {"shape": grid.shape, "affine": grid.affine.tolist()}


def _as_grid(facts: Facts, source: str) -> Grid:
    return Grid(tuple(facts["shape"]), np.array(facts["affine"]), source)


@dataclass(frozen=True)
class StoredCase:
    """Arrays of one volume, mapped when they are first used, in each process anew."""

    name: str
    folder: Path
    key: str
    label_key: str
    """Empty for a volume without a mask."""
    grid: Grid
    """Of the volume as it was scanned, turned to how the network knows slices."""
    resampled: tuple[int, int]
    """Pixels of the slices at the network's spacing, before they were cropped or padded to S x S."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}  # maps would be copied

    @cached_property
    def image(self) -> Array:
        """(Z, S, S) float32."""
        return map_part(self.folder, self.key, "image")

    @cached_property
    def label(self) -> Array:
        """(Z, S, S) uint8."""
        return map_part(self.folder, self.label_key, "label")

    @cached_property
    def truth(self) -> Array:
        """(X, Y, Z) uint8, as it was drawn, but for its axes, which are the grid's."""
        return map_part(self.folder, self.label_key, "truth")

    @property
    def slices(self) -> int:
        """Z."""
        return self.grid.shape[2]

    @property
    def is_labelled(self) -> bool:
        """Whether it has a mask."""
        return bool(self.label_key)
