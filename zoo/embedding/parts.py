"""The files of rows in a folder of features, `part-*.parquet`: writing one, and finding the cases that have rows."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded
from zoo.errors import OptionError
from zoo.features import import_pyarrow
from zoo.files import write_atomically
from zoo.messages import first_names, printable, reason_of
from zoo.tables import arrow_array

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


def done_in(
    out: Path, key: str, cases: Cases, *, is_trial: bool = False, redo_changed: bool | None = False
) -> bytearray:
    """Which of some cases have rows, 1 or 0 by position; a part that a crash cut short is put aside, and done again.

    Rows are compared with the list: an id that means another file now would keep the old features. Where a file lies in
    another folder, or a carried column has another value, as a corrected label, that is logged. So is that a file was
    changed after its row was written: an image in its place has other features.

    Args:
        out: The folder.
        key: The column that cases are called by.
        cases: The list.
        is_trial: Whether nothing in the folder is changed.
        redo_changed: Whether the rows of files that were changed go, so that these cases are done again; None for not
            looking at the files, as another process of the run does.

    Raises:
        OptionError: Rows are of files of other names.
    """
    now = dict(cases.carried) if key == "path" else {"path": cases.paths, **cases.carried}
    position = {id: i for i, id in enumerate(cases.ids)} if any(out.glob("part-*.parquet")) else {}
    others: dict[str, dict[str, tuple[Any, Any]]] = {name: {} for name in now}
    done = bytearray(len(cases))
    changed: dict[str, int] = {}
    for part, ids, columns in _stored(out, key, list(now), is_trial=is_trial):
        listed = [position.get(id) for id in ids]
        for at in listed:
            if at is not None:
                done[at] = 1
        if redo_changed is not None:
            changed |= _changed(part, ids, position, cases.paths)
        for name, cells in columns.items():
            for id, at, cell in zip(ids, listed, cells, strict=True):
                if at is not None and _differ(cell, now[name][at]):
                    others[name][id] = cell, now[name][at]
    _refuse_renamed(out, others.get("path", {}))
    _warn_of_others(out, others)
    if changed and redo_changed and not is_trial:
        _remove(out, key, changed)
        for at in changed.values():
            done[at] = 0
        return done
    if changed:
        log.warning(
            "%d cases in %s have files that were changed after their rows were written, as %s: the rows stay as they "
            "were; --redo-changed does such cases again",
            len(changed),
            out,
            first_names(changed),
        )
    return done


def _warn_of_others(out: Path, others: Mapping[str, Mapping[str, Any]]) -> None:
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


def ids_in(out: Path, key: str, *, is_trial: bool = False) -> Iterator[str]:
    """Yield the ids of the cases that have rows, of whatever list they are; those of several rows may come again."""
    for _, ids, _ in _stored(out, key, [], is_trial=is_trial):
        yield from ids


def _changed(part: Path, ids: Sequence[str], position: Mapping[str, int], paths: Sequence[str]) -> dict[str, int]:
    """Those of some cases whose file is younger than the part with their rows, and their positions."""
    written = _time_of(part)
    listed = {id: position[id] for id in ids if id in position}
    return {id: at for id, at in listed.items() if _time_of(paths[at]) > written}


def _time_of(path: str | Path) -> float:
    """When it was changed; of what is not there, never."""
    try:
        return os.stat(path).st_mtime
    except (OSError, ValueError):
        return 0.0


def _remove(out: Path, key: str, ids: Collection[str]) -> None:
    """Take the rows of some cases out of their parts, which stay whole at any moment."""
    arrow, parquet = import_pyarrow()
    import pyarrow.compute

    gone = arrow.array(list(ids), arrow.string())
    for part in sorted(out.glob("part-*.parquet")):
        with part.open("rb") as file:
            table = parquet.ParquetFile(file).read()
        kept = table.filter(pyarrow.compute.invert(pyarrow.compute.is_in(table.column(key), gone)))
        if not len(kept):
            part.unlink()
        elif len(kept) < len(table):
            write_atomically(part, partial(_write_again, kept))


def _write_again(table: Any, path: Path) -> None:
    """Write what is left of a part, in row groups as small as those that it had."""
    _, parquet = import_pyarrow()
    options = {"use_dictionary": [name for name in table.column_names if name != "feature"]}
    rows = max(1, _GROUP_BYTES * len(table) // max(1, table.nbytes))
    parquet.write_table(
        table, path, row_group_size=rows, data_page_size=_PAGE_BYTES, write_page_checksum=True, **options
    )


def _stored(
    out: Path, key: str, names: list[str], *, is_trial: bool
) -> Iterator[tuple[Path, list[str], dict[str, list[Any]]]]:
    """Yield each part, its ids, and its columns of these names."""
    arrow, parquet = import_pyarrow()
    for part in sorted(out.glob("part-*.parquet")):
        try:
            with part.open("rb") as file:
                table = parquet.ParquetFile(file).read([key, *names])
            ids = table.column(key)
            columns = {name: table.column(name).to_pylist() for name in names}
            yield part, (ids if names else ids.unique()).to_pylist(), columns
        except FileNotFoundError:
            continue  # another process of this run has put it aside
        except (arrow.ArrowException, KeyError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the system cannot read it: it may be whole
            if is_trial:
                log.warning("%s is damaged (%s): a run does its cases again", part, reason_of(error))
            else:
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
    columns = {"id": cases.ids} if facts["key"] == "id" else {}
    return {name: arrow_array(column) for name, column in {**columns, "path": cases.paths, **cases.carried}.items()}


def is_utf8(text: str) -> bool:
    """Whether a text, as a name of a file, can be a cell of Parquet."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
