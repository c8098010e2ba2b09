"""y-Aware's cohorts: brain volumes, and a table with one row for each.

Two layouts. The authors' (Duplums/yAwareContrastiveLearning, `dataset.py`): one `.npy` array of all volumes, and a CSV
in the same order. Or a folder of NIfTI files, and a CSV or TSV that names them. Those of the columns `participant_id`,
`session` and `run` that exist identify a row, uniquely; cells of the last two may be empty. Where a text file
`<array>.ids.txt` lies beside the array (`maps.ids.txt` for `maps.npy`), one identifier a line (`sub-01`, or
`sub-01_ses-2`), the table must have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.entries.yaware import PREPROCESSING
from zoo.entries.yaware.files import (
    Row,
    affine_in_words,
    build_transform,
    check_array,
    check_order,
    conditions,
    find_files,
    identify,
    is_same_place,
    open_array,
)
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import read_volume, z_score
from zoo.tables import EMPTY
from zoo.training.table import check_columns, read_table
from zoo.transforms import VolumeTransform, build_volume_transform

Voxels = npt.NDArray[np.float32]

GRIDS = ("published", "any")
SMALLEST_SIDE = 29
"""In voxels: the network halves a side twice, rounding up, then three times, rounding down."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Volumes of one shape with their rows of the table. A volume is read when it is used, and not kept."""

    source: Path
    """The array or the folder."""
    table: Path
    origins: tuple[int | Path, ...]
    """Position in the array, or file, of each volume."""
    names: tuple[str, ...]
    """Name of each volume in messages and results."""
    rows: tuple[Row, ...]
    labels: npt.NDArray[np.float64]
    """(n, k): a column for each label of `read_cohort`."""
    shape: tuple[int, ...]
    """Voxels of every volume, (D, H, W)."""
    affine: npt.NDArray[np.float64] | None = None
    """Voxel-to-world matrix (4, 4) in mm, shared by NIfTI files that are read in their own grid; else None."""
    transform: VolumeTransform | None = None
    """Checks volumes against the contract and brings them to its grid; None for volumes that are taken unchanged."""
    told: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    """(rows of the table,): whether oddities of a volume were logged; all passes and loader processes share it."""
    table_rows: tuple[int, ...] = ()
    """Row of the table of each volume."""

    def __len__(self) -> int:
        return len(self.rows)

    def volume(self, index: int) -> Voxels:
        """Return a volume as the network takes it: (1, D, H, W), minus its mean, over its standard deviation.

        Raises:
            InputContractError: The volume has NaN or infinite values, is constant, has another shape, or breaks the
                input contract. The message names it.
        """
        origin = self.origins[index]
        try:
            values = (
                np.array(open_array(self.source)[origin]).reshape(self.shape) if isinstance(origin, int) else origin
            )
            if self.transform is not None:
                row = self.table_rows[index]
                transform = replace(self.transform, quiet=bool(self.told[row]))
                self.told[row] = 1
                placed: Voxels = transform(values).numpy()
                return placed
            if isinstance(origin, int):
                return z_score(np.asarray(values)[None])
            found = read_volume(origin)
            if found.values.shape != self.shape or not is_same_place(found.affine, self.affine):
                raise InputContractError(
                    f"{origin.name} has {found.values.shape} voxels, {affine_in_words(found.affine)}: {self.shape}, "
                    f"{affine_in_words(self.affine)} are expected, as the first volume of the cohort has"
                )
            return z_score(found.values[None])
        except InputContractError as error:
            raise InputContractError(f"{self.names[index]} in {self.source}: {error}") from error

    def differences(self, contract: Preprocessing = PREPROCESSING) -> dict[str, Any]:
        """Fields of `Preprocessing` that differ from a contract's where the volumes have another grid: size and affine.

        The position of an array of another size is unknown: its affine is None, and `load_transform` takes arrays
        alone.
        """
        if self.shape == contract.size and self.affine is None:
            return {}
        return {"size": list(self.shape), "affine": None if self.affine is None else self.affine.tolist()}

    def column(self, name: str) -> list[str]:
        """Cells of a column of the table.

        Raises:
            OptionError: There is no such column, or cells are empty.
        """
        check_columns(self.rows, (name,), self.table)
        cells = [row[name].strip() for row in self.rows]
        self._refuse([cell.lower() in EMPTY for cell in cells], name, "no value")
        return cells

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """Cells of a column of the table as numbers (n,).

        Raises:
            OptionError: There is no such column, or cells are empty or not finite numbers.
        """
        check_columns(self.rows, (name,), self.table)
        values = [_number(row[name]) for row in self.rows]
        self._refuse([not math.isfinite(value) for value in values], name, "no finite number")
        return np.array(values)

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Cohort:
        """Part of the cohort, in the order of `indices`."""
        return replace(
            self,
            origins=tuple(self.origins[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            rows=tuple(self.rows[i] for i in indices),
            labels=self.labels[list(indices)],
            table_rows=tuple(self.table_rows[i] for i in indices),
        )

    def _refuse(self, wrong: Sequence[bool], column: str, what: str) -> None:
        found = [f"{self.names[i]} {self.rows[i][column]!r}" for i, is_wrong in enumerate(wrong) if is_wrong]
        if found:
            raise OptionError(
                f"{self.table}: {len(found)} of {len(self)} rows have {what} in column {column!r} (first: "
                f"{', '.join(found[:5])}). Fill them in, or choose the rows to use by another column"
            )


def read_cohort(
    data: str,
    table: str,
    *,
    labels: Sequence[str] = (),
    rows: str = "",
    grid: str = "published",
    contract: Preprocessing = PREPROCESSING,
) -> Cohort:
    """Read the volumes of a cohort and their rows of the table.

    Args:
        data: `.npy` array (n, 1, D, H, W) or (n, D, H, W) of any grid and any real dtype, or a folder of NIfTI files.
        table: CSV or TSV. For an array, as long as it and in its order; for a folder, with a column `file`, or with
            identifiers that each occur in one file's name.
        labels: Columns of the table that are labels, numbers.
        rows: Which rows to use, `column=value` or several of these with commas between; empty for all.
        grid: "published": the input contract holds; files are brought to its grid, an array of its shape is taken to be
            on it, and for an array of another shape only the values are checked. "any": volumes are taken unchanged;
            files must share shape and affine.
        contract: Input contract of the weights, `model_info(...).input`; default the published one.

    Raises:
        OptionError: A file, column or row does not exist; identifiers are missing, not unique, or differ from the
            array's; a label is missing or not a number; the contract has no grid for files.
        InputContractError: The array does not hold volumes, or volumes are missing.
    """
    if grid not in GRIDS:
        raise OptionError(f"grid must be one of {', '.join(GRIDS)}, not {grid!r}")
    source, path = Path(data), Path(table)
    everyone, wanted = read_table(path), conditions(rows)
    check_columns(everyone, (*labels, *wanted), path)
    names = identify(everyone, path)
    kept = [i for i, row in enumerate(everyone) if all(row[c].strip() == value for c, value in wanted.items())]
    if not kept:
        raise OptionError(f"{path}: none of {len(everyone)} rows has {rows}")
    chosen, called = tuple(everyone[i] for i in kept), tuple(names[i] for i in kept)
    origins: Sequence[int | Path]
    affine, transform = None, None
    if not source.is_dir():
        origins, shape = kept, check_array(source, len(everyone), path)
        check_order(source, everyone, names, path)
        if grid == "published":
            elsewhere = contract.override({"size": shape, "affine": None})
            transform = build_volume_transform(contract if shape == contract.size else elsewhere)
    else:
        origins = files = find_files(source, chosen, called, path)
        if grid == "any":
            first = read_volume(files[0])
            shape, affine = first.values.shape, first.affine
        else:
            shape, transform = contract.size, build_transform(contract, source)
    if min(shape) < SMALLEST_SIDE:
        raise InputContractError(
            f"{source}: volumes of {shape} voxels; at least {SMALLEST_SIDE} a side are expected, or the network's last "
            f"map is empty"
        )
    no_labels = np.empty((len(kept), 0))
    told = torch.zeros(len(everyone), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    cohort = Cohort(
        source, path, tuple(origins), called, chosen, no_labels, shape, affine, transform, told, tuple(kept)
    )
    columns = [cohort.numbers(name) for name in labels]
    return replace(cohort, labels=np.array(columns).reshape(len(labels), len(kept)).T)


def check_apart(train: Cohort, val: Cohort) -> None:
    """Raise `OptionError` where two cohorts share a volume, or a subject (`participant_id`)."""
    volumes = set(_keys(train)) & set(_keys(val))
    subjects = _subjects(train) & _subjects(val)
    if volumes or subjects:
        first = sorted(subjects) or [name for name, key in zip(val.names, _keys(val), strict=True) if key in volumes]
        raise OptionError(
            f"training and validation share {len(volumes)} volumes and {len(subjects)} subjects (first: "
            f"{', '.join(first[:5])}), of {train.table} and {val.table}: choose rows without common subjects. If "
            f"different people share a participant_id, give them different ones"
        )


def _keys(cohort: Cohort) -> list[tuple[Path, int]]:
    """File, or array and position in it, of each volume."""
    source = cohort.source.resolve()
    return [(source, origin) if isinstance(origin, int) else (origin.resolve(), 0) for origin in cohort.origins]


def _subjects(cohort: Cohort) -> set[str]:
    return {row["participant_id"].strip() for row in cohort.rows if "participant_id" in row}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
