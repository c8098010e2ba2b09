"""The files of rows in a folder of features, `part-*.parquet`: writing one, and finding the cases that have rows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
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
_GROUP_BYTES, _PAGE_BYTES = 2**20, 2**17
"""Bytes of features after which a row group and a page in it end: Arrow holds a few times as much while it writes."""


def next_part(out: Path, rank: int) -> int:
    """Number of the next file of a process; those that were put aside keep theirs."""
    numbers = (_NUMBER.match(path.name) for path in out.glob(f"part-{rank:05d}-*"))
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def done_in(out: Path, key: str, cases: Cases) -> bytearray:
    """Which of some cases have rows, 1 or 0 by position; a part that a crash cut short is put aside, and done again.

    Rows are compared with the list: an id that means another file now would keep the old features. Where a file lies in
    another folder, or a carried column has another value, as a corrected label, that is logged.

    Raises:
        OptionError: Rows are of files of other names.
    """
    now = dict(cases.carried) if key == "path" else {"path": cases.paths, **cases.carried}
    position = {id: i for i, id in enumerate(cases.ids)} if any(out.glob("part-*.parquet")) else {}
    others: dict[str, dict[str, tuple[Any, Any]]] = {name: {} for name in now}
    done = bytearray(len(cases))
    for ids, columns in _stored(out, key, list(now)):
        listed = [position.get(id) for id in ids]
        for at in listed:
            if at is not None:
                done[at] = 1
        for name, cells in columns.items():
            for id, at, cell in zip(ids, listed, cells, strict=True):
                if at is not None and _differ(cell, now[name][at]):
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


def ids_in(out: Path, key: str) -> Iterator[str]:
    """Yield the ids of the cases that have rows, of whatever list they are; those of several rows may come again."""
    for ids, _ in _stored(out, key, []):
        yield from ids


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
    out: Path, rank: int, number: int, cases: Cases, rows: Sequence[Embedded], facts: Mapping[str, Any]
) -> None:
    """Write the rows of some cases, whole or not at all, with checksums by which a reader finds what a disk spoilt.

    Args:
        out: The folder.
        rank: Number of this process.
        number: That of the file among those of this process; one that is there is replaced.
        cases: Those of the folder's list.
        rows: What became of some of them, all with features of one shape, in the folder's type.
        facts: Those of the folder, which the file's schema holds too.

    Raises:
        OSError: The file cannot be written.
    """
    name = out / f"part-{rank:05d}-{number:06d}.parquet"
    try:
        write_atomically(name, lambda path: _write(path, cases, rows, facts))
    except OSError as error:  # Arrow's own names no file
        said = f"cannot write {name} ({reason_of(error)}); what was written before stays, and the same command goes on"
        raise OSError(error.errno, said) from error


def _write(path: Path, cases: Cases, rows: Sequence[Embedded], facts: Mapping[str, Any]) -> None:
    _, parquet = import_pyarrow()
    columns = _columns(cases.take([each.case for each in rows]), facts)
    tables = (_table(columns, rows, group, facts) for group in _groups(rows))
    first = next(tables)
    options = {"use_dictionary": list(columns), "data_page_size": _PAGE_BYTES, "write_page_checksum": True}
    with parquet.ParquetWriter(path, first.schema, **options) as file:
        for table in chain([first], tables):
            file.write_table(table)


def _groups(rows: Sequence[Embedded]) -> Iterator[range]:
    """Divide rows into row groups, each of one case at least."""
    first, size = 0, 0
    for i, each in enumerate(rows):
        size += 0 if each.features is None else each.features.nbytes
        if size >= _GROUP_BYTES or i == len(rows) - 1:
            yield range(first, i + 1)
            first, size = i + 1, 0


def _table(columns: Mapping[str, Any], rows: Sequence[Embedded], group: range, facts: Mapping[str, Any]) -> Any:
    import numpy as np

    arrow, _ = import_pyarrow()
    features = [each.features for i in group if (each := rows[i]).features is not None]
    counts = [len(each) for each in features]
    repeats = np.repeat(np.array(group), counts)
    arrays = {name: column.take(repeats) for name, column in columns.items()}
    if facts["rows"]:
        arrays[facts["rows"]] = arrow.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts]))
    values: NDArray[Any] = np.concatenate(features)
    arrays["feature"] = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values[0].size)
    return arrow.table(arrays).replace_schema_metadata({"zoo": json.dumps({**facts, "shape": values.shape[1:]})})


def _columns(cases: Cases, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The columns beside the features, a cell for each case; those of a Parquet table as they are there."""
    arrow, _ = import_pyarrow()
    columns = {"id": cases.ids} if facts["key"] == "id" else {}
    return {
        name: column.array if isinstance(column, ArrowColumn) else arrow.array(column, arrow.string())
        for name, column in {**columns, "path": cases.paths, **cases.carried}.items()
    }


def is_utf8(text: str) -> bool:
    """Whether a text, as a name of a file, can be a cell of Parquet."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
