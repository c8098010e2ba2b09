"""Files of features, `.npz`, `.csv` or Parquet: their rows, what each is of, and what they were computed with."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from zoo.errors import InputContractError, OptionError
from zoo.files import write_atomically
from zoo.messages import csv_cell, install_hint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Column = Sequence[str] | NDArray[Any]

SUFFIXES = (".npz", ".csv")
_FACTS = "zoo"


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
    """Write features by `write_rows`; a file that is there is replaced.

    The columns before them are, in `.npz`, `paths` and for slices `slices`; in `.csv` `path` and for slices `slice`.

    Raises:
        OptionError: The name ends otherwise, or its folder does not exist.
        OSError: The file cannot be written.
    """
    import numpy as np

    check_out(out)
    columns: dict[str, Column] = {"path": features.paths}
    if features.slices is not None:
        columns["slice"] = np.array(features.slices, dtype=np.int64)
    if out.suffix == ".npz":
        columns = {f"{name}s": cells for name, cells in columns.items()}
    write_rows(out, columns, features.values, features.facts)


def write_rows(out: Path, columns: Mapping[str, Column], values: NDArray[Any], facts: Mapping[str, Any]) -> None:
    """Write rows of features, whole or not at all; the folder of OUT is made.

    `.npz`: an array (N,) for each column, `features` float32 (N, D), and `zoo`, the facts as JSON. `.csv`: the columns,
    then f0, f1, ..., with as many digits as float32 has; texts as `csv_cell` writes them, with an apostrophe where a
    spreadsheet would take them for a formula. `.parquet`: the columns, then f000, f001, ..., and the facts as JSON in
    the schema's metadata.

    Args:
        out: File, whose name ends in one of the three.
        columns: Name -> what each of the N rows is of, texts or an array of numbers.
        values: `(N, D)`.
        facts: What they were computed with, for JSON.

    Raises:
        OptionError: pyarrow is not installed.
        OSError: The file cannot be written.
    """
    write = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}[out.suffix]
    write_atomically(out, lambda path: write(path, columns, values, json.dumps(dict(facts), sort_keys=True)))


def read_rows(path: Path, name: str) -> tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]:
    """Read what `write_rows` wrote as `.npz` or `.parquet`; of other files, a column and the numbers beside it.

    Returns:
        The column `name`, a cell for each of the N rows; features `(N, D)`, unchecked; the facts, empty where there are
        none.

    Raises:
        InputContractError: The file cannot be read so.
        OptionError: pyarrow is not installed.
    """
    try:
        return (_read_npz if path.suffix == ".npz" else _read_parquet)(path, name)
    except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:  # pyarrow's own are among them
        raise InputContractError(f"cannot read {path} as features: {error}") from error


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet.

    Raises:
        OptionError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(
            f"Parquet needs pyarrow: take a file of another format, or {install_hint('pyarrow', 'train')}"
        ) from error
    return pyarrow, pyarrow.parquet


def _write_npz(path: Path, columns: Mapping[str, Column], values: NDArray[Any], facts: str) -> None:
    import numpy as np

    arrays: dict[str, Any] = {name: np.asarray(cells, getattr(cells, "dtype", str)) for name, cells in columns.items()}
    arrays |= {"features": values, _FACTS: np.array(facts)}
    with path.open("wb") as file:  # given a name, numpy adds a suffix to it
        np.savez(file, **arrays)


def _write_csv(path: Path, columns: Mapping[str, Column], values: NDArray[Any], _: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"f{i}" for i in range(values.shape[1]))])
        for *cells, row in zip(*columns.values(), values, strict=True):
            texts = [csv_cell(cell) if isinstance(cell, str) else cell for cell in cells]
            writer.writerow([*texts, *(f"{value:.9g}" for value in row)])


def _write_parquet(path: Path, columns: Mapping[str, Column], values: NDArray[Any], facts: str) -> None:
    arrow, parquet = import_pyarrow()
    cells: dict[str, Any] = {name: list(column) for name, column in columns.items()}
    cells |= {f"f{i:03d}": column for i, column in enumerate(values.T)}
    parquet.write_table(arrow.table(cells).replace_schema_metadata({_FACTS: facts}), path)


def _read_npz(path: Path, name: str) -> tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays[_FACTS])) if _FACTS in arrays else {}
        return tuple(arrays[name].astype(str).tolist()), arrays["features"], facts


def _read_parquet(path: Path, name: str) -> tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]:
    import numpy as np

    _, parquet = import_pyarrow()
    table = parquet.read_table(path)
    stored = (table.schema.metadata or {}).get(_FACTS.encode())
    rows = tuple(str(cell) for cell in table.column(name).to_pylist())
    columns = [table.column(other).to_numpy() for other in table.column_names if other != name]
    return rows, np.stack(columns, axis=1), json.loads(stored) if stored else {}
