"""Files of features, `.npz`, `.csv` or Parquet: their rows, what each is of, and what they were computed with."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

from zoo.errors import InputContractError, OptionError, PathNotFoundError
from zoo.files import write_atomically
from zoo.messages import csv_cell, install_hint, printable, reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    Column = Sequence[str] | NDArray[Any]

log = logging.getLogger("zoo")

SUFFIXES = (".npz", ".csv")
_FACTS = "zoo"
_ONE = {"paths": "path", "slices": "slice"}
_NUMBER = re.compile(r"f\d+")


@dataclass(frozen=True, eq=False)
class Features:
    """A row of features for each image, or for each slice where the network takes those of a volume."""

    values: NDArray[Any]
    """float32 `(N, D)`; maps `(N, C, *cells)` where they were asked for."""
    paths: tuple[str, ...]
    """The file or folder that each of the N rows is of."""
    slices: tuple[int, ...] | None
    """Which slice along the volume's third axis, or which part of it, from 0; None where a file gives one row."""
    failed: Mapping[str, str]
    """Files that gave no row, and why."""
    facts: Mapping[str, Any]
    """What they were computed with: model with its tag, weights, input, options, versions."""
    carried: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of the list of cases, a cell for each of the N rows."""


def check_out(out: Path) -> None:
    """Raise `OptionError` where features cannot be written: before hours are spent."""
    if out.suffix not in SUFFIXES or not out.absolute().parent.is_dir():
        raise OptionError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}, in a folder that exists")


def write_features(features: Features, out: Path) -> None:
    """Write features by `write_rows`; a file that is there is replaced.

    The columns before them are, in `.npz`, `paths`, for slices `slices`, and those that were carried; in `.csv` `path`,
    for slices `slice`, and those that were carried.

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
    write_rows(out, {**columns, **features.carried}, features.values, features.facts)


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


class FeatureTable(NamedTuple):
    """Features and what each row is of: `features, table = zoo.read_features(OUT)`."""

    features: NDArray[Any]
    """float32 `(N, D)`, or maps `(N, C, *cells)`."""
    table: DataFrame
    """N rows with the columns beside the features: path, id, slice or patch, and those of the list of cases.

    `table.attrs` has what they were computed with.
    """


def read_features(out: str | Path) -> FeatureTable:
    """Read what `zoo embed` wrote: a folder, `.npz` or `.csv`.

    The rows of a folder come sorted by id, or path where there is none, and slice or patch, whichever engine wrote them
    and in whatever order.

    Raises:
        InputContractError: It cannot be read, is damaged, or has a case twice.
        OptionError: There is nothing of this name, or pandas or pyarrow is not installed.
    """
    out = Path(out)
    if not out.exists():
        raise PathNotFoundError(f"there are no features at {out}: `zoo embed` writes them")
    read = _read_folder if out.is_dir() else {".npz": _read_whole_npz, ".csv": _read_whole_csv}.get(out.suffix)
    if read is None:
        raise OptionError(
            f"{out}: a folder that `zoo embed` wrote, or a name that ends in {' or '.join(SUFFIXES)}, is expected"
        )
    try:
        features, columns, facts = read(out)
        table = _import_pandas().DataFrame(columns)
    except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:  # pyarrow's own are among them
        raise InputContractError(f"cannot read {out} as features: {reason_of(error)}") from error
    table.attrs = facts
    return FeatureTable(features, table)


def _read_folder(out: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np

    arrow, parquet = import_pyarrow()
    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        raise InputContractError(f"{out} has no part-*.parquet: nothing was embedded there")
    if any(out.glob(".rank-*.lock")):
        log.warning("a run in %s is at work or was killed: rows may be missing; the same `zoo embed` goes on", out)
    table = arrow.concat_tables([parquet.read_table(part) for part in parts])
    facts = json.loads(table.schema.metadata[_FACTS.encode()])
    by = [name for name in (facts["key"], facts["rows"]) if name]
    table = table.sort_by([(name, "ascending") for name in by])
    flat = table.column("feature").combine_chunks()
    values = flat.values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), *facts["shape"])
    frame = table.drop_columns(["feature"]).to_pandas()
    if frame.duplicated(by).any():
        first = frame[frame.duplicated(by)].iloc[0][by[0]]
        raise InputContractError(f"{out} has rows of {printable(first)} twice: two runs with other cases wrote to it")
    return values, frame, facts


def _read_whole_npz(out: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np

    with np.load(out, allow_pickle=False) as arrays:
        columns = {_ONE.get(name, name): arrays[name] for name in arrays if name not in ("features", _FACTS)}
        return arrays["features"], columns, json.loads(str(arrays[_FACTS]))


def _read_whole_csv(out: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np

    frame = _import_pandas().read_csv(out, dtype={"path": str, "id": str}, keep_default_na=False)
    numbers = [name for name in frame.columns if _NUMBER.fullmatch(name)]
    return frame[numbers].to_numpy(np.float32), frame.drop(columns=numbers), {}


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise OptionError(f"a table of features needs pandas: {install_hint('pandas', 'train')}") from error
    return pandas


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
        writer.writerow([*map(csv_cell, columns), *(f"f{i}" for i in range(values[0].size))])
        for *cells, row in zip(*columns.values(), values.reshape(len(values), -1), strict=True):
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
