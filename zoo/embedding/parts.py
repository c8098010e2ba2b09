"""The files of rows in a folder of features, `part-*.parquet`: writing one, and finding the cases that have rows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded
from zoo.features import import_pyarrow
from zoo.files import write_atomically
from zoo.messages import first_names, reason_of
from zoo.tables import ArrowColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("zoo")

_NUMBER = re.compile(r"part-\d+-(\d+)\.parquet")


def next_part(out: Path, rank: int) -> int:
    """Number of the next file of a process; those that were put aside keep theirs."""
    numbers = (_NUMBER.match(path.name) for path in out.glob(f"part-{rank:05d}-*"))
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def ids_in(out: Path, key: str) -> set[str]:
    """Ids of the cases that have rows; a part that a crash cut short is put aside, and its cases done again."""
    arrow, parquet = import_pyarrow()
    done: set[str] = set()
    for part in sorted(out.glob("part-*.parquet")):
        try:
            with part.open("rb") as file:
                done.update(parquet.ParquetFile(file).read([key]).column(key).unique().to_pylist())
        except FileNotFoundError:
            continue  # another process of this run has put it aside
        except (arrow.ArrowException, KeyError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system cannot read it: it may be whole
            _put_aside(part, reason_of(error))
    return done


def warn_of_other_values(out: Path, key: str, cases: Cases) -> None:
    """Log which carried columns have other values in the rows than the list has now, as labels that were corrected."""
    _, parquet = import_pyarrow()
    position = {id: i for i, id in enumerate(cases.ids)}
    others: dict[str, list[str]] = {name: [] for name in cases.carried}
    for part in sorted(out.glob("part-*.parquet")) if others else ():
        table = parquet.ParquetFile(part).read([key, *others])
        ids = table.column(key).to_pylist()
        for name, unlike in others.items():
            now = cases.carried[name]
            pairs = (
                (id, cell, now[position[id]])
                for id, cell in zip(ids, table.column(name).to_pylist(), strict=True)
                if id in position
            )
            unlike += [id for id, then, cell in pairs if then != cell and not (then != then and cell != cell)]
    for name, unlike in others.items():
        if unlike:
            log.warning(
                "%d rows in %s have another %r than the list has now, as those of %s: they stay as they were. Take that "
                "column from the list, or give another folder",
                len(unlike),
                out,
                name,
                first_names(dict.fromkeys(unlike)),
            )


def _put_aside(part: Path, why: str) -> None:
    aside = part.with_name(f"{part.name}.damaged")
    with suppress(FileNotFoundError):
        part.replace(aside)
    log.warning("%s is damaged (%s): it is called %s now, its cases are done again", part, why, aside.name)


def write_part(
    out: Path, rank: int, number: int, rows: Sequence[tuple[Cases, Embedded]], facts: Mapping[str, Any]
) -> None:
    """Write the rows of some cases, whole or not at all, with checksums by which a reader finds what a disk spoilt.

    Args:
        out: The folder.
        rank: Number of this process.
        number: That of the file among those of this process; one that is there is replaced.
        rows: Cases and what became of them, all with features of one shape.
        facts: Those of the folder, which the file's schema holds too.

    Raises:
        OSError: The file cannot be written.
    """
    _, parquet = import_pyarrow()
    table, name = _table(rows, facts), out / f"part-{rank:05d}-{number:06d}.parquet"
    try:
        write_atomically(name, lambda path: parquet.write_table(table, path, write_page_checksum=True))
    except OSError as error:  # Arrow's own names no file
        said = f"cannot write {name} ({reason_of(error)}); what was written before stays, and the same command goes on"
        raise OSError(error.errno, said) from error


def _table(rows: Sequence[tuple[Cases, Embedded]], facts: Mapping[str, Any]) -> Any:
    import numpy as np

    arrow, _ = import_pyarrow()
    features = [each.features for _, each in rows if each.features is not None]
    counts = [len(each) for each in features]
    repeats = np.repeat(np.arange(len(rows)), counts)
    arrays = {name: column.take(repeats) for name, column in _columns(rows, facts).items()}
    if facts["rows"]:
        arrays[facts["rows"]] = arrow.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts]))
    values: NDArray[Any] = np.concatenate(features)
    flat = arrow.array(values.astype(facts["type"]).ravel())
    arrays["feature"] = arrow.FixedSizeListArray.from_arrays(flat, values[0].size)
    return arrow.table(arrays).replace_schema_metadata({"zoo": json.dumps({**facts, "shape": values.shape[1:]})})


def _columns(rows: Sequence[tuple[Cases, Embedded]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The columns beside the features, a cell for each case; those of a Parquet table as they are there."""
    arrow, _ = import_pyarrow()
    found: dict[str, list[Any]] = {}
    for _, group in groupby(rows, lambda row: id(row[0])):
        cases, each = zip(*group, strict=True)
        taken = cases[0].take([one.case for one in each])
        columns = {"id": taken.ids} if facts["key"] == "id" else {}
        for name, column in {**columns, "path": taken.paths, **taken.carried}.items():
            array = column.array if isinstance(column, ArrowColumn) else arrow.array(column, arrow.string())
            found.setdefault(name, []).append(array)
    return {name: _chunked(arrays) for name, arrays in found.items()}


def _chunked(arrays: Sequence[Any]) -> Any:
    arrow, _ = import_pyarrow()
    chunks = [chunk for array in arrays for chunk in getattr(array, "chunks", [array])]
    return arrow.chunked_array(chunks, arrays[0].type)


def is_utf8(text: str) -> bool:
    """Whether a text, as a name of a file, can be a cell of Parquet."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
