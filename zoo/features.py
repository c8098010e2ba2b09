"""Files of features, `.npz`, `.csv` or Parquet: their rows, what each is of, and what they were computed with.

The file is long because each format is written and read here: the two change together.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile, ZipFile

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
_KINDS = {"slice": "int64", "patch": "int64"}
"""Columns of a `.csv` that are numbers; all others are texts, as `007` is."""
_ONE = {"paths": "path", "slices": "slice"}
_NUMBER = re.compile(r"f\d+")
FINISHED = ".done"
"""Suffix of the file that marks the share of one process in a folder as finished, `.rank-R-of-WORLD`."""
_MARK = re.compile(r"\.rank-(\d+)-of-(\d+)")


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
    try:
        write_atomically(out, lambda path: write(path, columns, values, json.dumps(dict(facts), sort_keys=True)))
    except OSError as error:  # it names no file where a disk is full, or a temporary one
        raise OSError(error.errno, f"cannot write {out} ({error.strerror or error}): nothing was written") from error


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

    A folder in which no run has come to its end is read with a warning. Of `.csv` the columns beside the features are
    texts, as `write_rows` wrote them.

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
    arrow, _ = import_pyarrow()
    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        raise InputContractError(f"{out} has no part-*.parquet: nothing was embedded there")
    if not is_finished(out):
        log.warning("no run in %s has come to its end: rows may be missing; the same `zoo embed` goes on", out)
    tables = [_read_part(part) for part in parts]
    metadata = tables[0].schema.metadata
    facts = json.loads(metadata[_FACTS.encode()])
    table = arrow.concat_tables(
        [part.select(tables[0].column_names).replace_schema_metadata(metadata) for part in tables]
    )
    by = [name for name in (facts["key"], facts["rows"]) if name]
    table = table.sort_by([(name, "ascending") for name in by])
    values = _values_of(table, facts)
    frame = table.drop_columns(["feature"]).to_pandas(integer_object_nulls=True)  # floats would round long ids
    if frame.duplicated(by).any():
        first = frame[frame.duplicated(by)].iloc[0][by[0]]
        raise InputContractError(
            f"{out} has rows of {printable(first)} more than once: two runs wrote to it, or a part was copied. Remove "
            "one of those part-*.parquet; the same `zoo embed` then does what is missing"
        )
    return values, frame, facts


def read_parts(out: Path) -> Iterator[tuple[NDArray[Any], Any]]:
    """Yield the rows of a folder file by file, for what is larger than memory: features, and the columns beside them.

    Features are float32 `(n, D)`, or maps `(n, C, *cells)`; the columns are an Arrow table.

    Raises:
        InputContractError: A file cannot be read.
        OptionError: pyarrow is not installed.
    """
    for part in sorted(out.glob("part-*.parquet")):
        table = _read_part(part)
        yield _values_of(table, json.loads(table.schema.metadata[_FACTS.encode()])), table.drop_columns(["feature"])


def _values_of(table: Any, facts: Mapping[str, Any]) -> NDArray[Any]:
    import numpy as np

    flat = table.column("feature").combine_chunks().flatten()
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return values.reshape(len(table), *facts["shape"])


def is_finished(out: Path) -> bool:
    """Whether all processes of some run have come to the end of their share."""
    found: dict[int, set[int]] = {}
    for mark in out.glob(f".rank-*{FINISHED}"):
        if match := _MARK.fullmatch(mark.stem):
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    return any(len(ranks) == world for world, ranks in found.items())


def _read_part(part: Path) -> Any:
    arrow, parquet = import_pyarrow()
    try:
        with part.open("rb") as file:
            return parquet.ParquetFile(file, page_checksum_verification=True).read()
    except (arrow.ArrowException, OSError) as error:
        raise InputContractError(
            f"{part} cannot be read ({reason_of(error)}). If it is damaged, remove it; the same `zoo embed` then does "
            "its images again"
        ) from error


def _read_whole_npz(out: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np

    with np.load(out, allow_pickle=False) as arrays:
        columns = {_ONE.get(name, name): arrays[name] for name in arrays if name not in ("features", _FACTS)}
        return arrays["features"], columns, json.loads(str(arrays[_FACTS]))


def _read_whole_csv(out: Path) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    import numpy as np

    pandas = _import_pandas()
    names = list(pandas.read_csv(out, nrows=0).columns)
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    if not numbers:
        raise InputContractError(f"{out} has no columns f0, f1, ...: a file that `zoo embed` wrote is expected")
    kinds = {name: np.float32 if name in numbers else _KINDS.get(name, str) for name in names}
    try:
        frame = pandas.read_csv(out, dtype=kinds, keep_default_na=False)
    except ValueError as error:
        raise ValueError(_no_number(out, numbers) or error) from error  # `read_features` says of which file
    return frame[numbers].to_numpy(np.float32), frame.drop(columns=numbers), {}


def _no_number(out: Path, numbers: Sequence[str]) -> str:
    """Say which cell of a `.csv` is no number; empty where all are."""
    pandas = _import_pandas()
    cells = pandas.read_csv(out, dtype=str, keep_default_na=False)[numbers]
    for name in numbers:
        if (bad := pandas.to_numeric(cells[name], errors="coerce").isna()).any():
            row = int(bad.to_numpy().argmax())
            return (
                f"{name} of row {row + 1} is {printable(repr(cells[name][row]))}, and {int(bad.sum())} cells of that "
                "column are no numbers. Embed these cases again, or drop their rows"
            )
    return ""


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

    arrays: dict[str, Any] = {name: _array(cells) for name, cells in columns.items()}
    arrays |= {"features": values, _FACTS: np.array(facts)}
    write: Any = np.lib.format.write_array  # some releases of numpy have no types for it
    with ZipFile(path, "w") as archive:  # numpy's own writer has arguments, whose names a column may have
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                write(file, array, allow_pickle=False)


def _array(cells: Column) -> NDArray[Any]:
    """A column as numbers, where all its cells are, else as texts, of which a null is empty."""
    import numpy as np

    if isinstance(cells, np.ndarray):
        return cells
    if cells and all(isinstance(cell, int | float) for cell in cells):
        numbers = np.asarray(cells)
        if numbers.dtype.kind in "biuf":  # not objects, of which whole numbers beyond 64 bits would be
            return numbers
    return np.array(["" if cell is None else str(cell) for cell in cells], str)


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
