"""Files of features, `.npz` or `.csv`: a row for each image, and what it is of."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import OptionError
from zoo.files import replacing
from zoo.messages import csv_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".npz", ".csv")


@dataclass(frozen=True, eq=False)
class Features:
    """A row of features for each image, or for each slice where the network takes those of a volume."""

    values: NDArray[Any]
    """float32 `(N, D)`."""
    paths: tuple[str, ...]
    """The file or folder that each of the N rows is of."""
    slices: tuple[int, ...] | None
    """Which slice along the volume's third axis, from 0; None where a file gives one row."""
    failed: Mapping[str, str]
    """Files that gave no row, and why."""
    facts: Mapping[str, Any]
    """Which weights: model with its tag, source, sha256 where it is known, who trained them, version of the zoo."""


def check_out(out: Path) -> None:
    """Raise `OptionError` where features cannot be written: before hours are spent."""
    if out.suffix not in SUFFIXES or not out.absolute().parent.is_dir():
        raise OptionError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}, in a folder that exists")


def write_features(features: Features, out: Path) -> None:
    """Write features, whole or not at all; a file that is there is replaced.

    `.npz`: arrays `features` float32 (N, D), `paths` (N,), for slices `slices` (N,), and `zoo`, the facts as JSON.
    `.csv`: columns path, for slices slice, f0, f1, ..., with as many digits as float32 has; paths as `csv_cell` writes
    them, with an apostrophe where a spreadsheet would take them for a formula.

    Raises:
        OptionError: The name ends otherwise, or its folder does not exist.
        OSError: The file cannot be written.
    """
    check_out(out)
    with replacing(out) as temporary:
        (_write_npz if out.suffix == ".npz" else _write_csv)(features, temporary)


def _write_npz(features: Features, place: Path) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"features": features.values, "paths": np.array(features.paths, dtype=str)}
    if features.slices is not None:
        arrays["slices"] = np.array(features.slices, dtype=np.int64)
    with place.open("wb") as file:
        np.savez(file, zoo=np.array(json.dumps(dict(features.facts))), **arrays)


def _write_csv(features: Features, place: Path) -> None:
    columns: list[Sequence[Any]] = [[csv_cell(path) for path in features.paths]]
    columns += [] if features.slices is None else [features.slices]
    names = ["path", *(["slice"] if features.slices is not None else [])]
    with place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *(f"f{i}" for i in range(features.values.shape[1]))])
        for *labels, row in zip(*columns, features.values, strict=True):
            writer.writerow([*labels, *(f"{value:.9g}" for value in row)])
