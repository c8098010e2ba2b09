"""The files of rows in a folder of features, `part-*.parquet`: writing one, and finding the cases that have rows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded
from zoo.errors import OptionError
from zoo.features import import_pyarrow
from zoo.files import write_atomically
from zoo.messages import first_names, printable, reason_of
from zoo.tables import ArrowColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("zoo")

_NUMBER = re.compile(r"part-\d+-(\d+)\.parquet")


def next_part(out: Path, rank: int) -> int:
    """Number of the next file of a process; those that were put aside keep theirs."""
    numbers = (_NUMBER.match(path.name) for path in out.glob(f"part-{rank:05d}-*"))
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def ids_in(out: Path, key: str, cases: Cases | None = None) -> set[str]:
    """Ids of the cases that have rows; a part that a crash cut short is put aside, and its cases done again.

    Rows of cases on the list are compared with it: an id that means another file now would keep the old features. Where
    a file lies in another folder, or a carried column has another value, as a corrected label, that is logged.

    Raises:
        OptionError: Rows are of files of other names.
    """
    now: dict[str, Sequence[Any]] = {}
    if cases is not None:
        now = dict(cases.carried) if key == "path" else {"path": cases.paths, **cases.carried}
    position = {id: i for i, id in enumerate(cases.ids)} if now and cases else {}
    others: dict[str, dict[str, tuple[Any, Any]]] = {name: {} for name in now}
    done: set[str] = set()
    for ids, columns in _stored(out, key, list(now)):
        done.update(ids)
        for name, cells in columns.items():
            for id, cell in zip(ids, cells, strict=True):
                if (at := position.get(id)) is not None and _differ(cell, now[name][at]):
                    others[name][id] = cell, now[name][at]
    _refuse_renamed(out, others.get("path", {}))
    for name, unlike in others.items():
        if unlike:
            log.warning(
                "%d cases in %s have another %s than the list has now, as %s: their rows stay as they were. Of other "
                "images give another folder; else join the features with the list",
                len(unlike),
                out,
                name,
                first_names(unlike),
            )
    return done


def _stored(out: Path, key: str, names: list[str]) -> Iterator[tuple[list[str], dict[str, list[Any]]]]:
    """Yield the ids of each part, and its columns of these names."""
    arrow, parquet = import_pyarrow()
    for part in sorted(out.glob("part-*.parquet")):
        try:
            with part.open("rb") as file:
                table = parquet.ParquetFile(file).read([key, *names])
            ids = table.column(key)
            columns = {name: table.column(name).to_pylist() for name in names}
            yield (ids if names else ids.unique()).to_pylist(), columns
        except FileNotFoundError:
            continue  # another process of this run has put it aside
        except (arrow.ArrowException, KeyError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system cannot read it: it may be whole
            _put_aside(part, reason_of(error))


def _refuse_renamed(out: Path, paths: Mapping[str, tuple[str, str]]) -> None:
    renamed = [id for id, (then, path) in paths.items() if Path(then).name != Path(path).name]
    if renamed:
        then, path = map(printable, paths[renamed[0]])
        raise OptionError(
            f"{len(renamed)} cases in {out} have rows of other files than the list has, as {printable(renamed[0])}: "
            f"{then} there, {path} in the list. Give another folder, or other ids"
        )


def _differ(one: Any, other: Any) -> bool:
    """Whether two cells are unlike; NaN is like NaN."""
    return bool(one != other and (one == one or other == other))


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
