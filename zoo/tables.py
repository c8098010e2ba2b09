"""Reads tables of facts about images or people by their columns: CSV, TSV as BIDS has them, and Parquet."""

from __future__ import annotations

import csv
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import OptionError, PathNotFoundError
from zoo.features import import_pyarrow
from zoo.messages import first_names, printable, reason_of

log = logging.getLogger("zoo")

SUFFIXES = (".csv", ".tsv", ".parquet")
EMPTY = ("", "na", "n/a", "nan", "null", "unknown")
"""Cells without a value, in lower case and without blanks around them; "none" is a class in many tables."""


@dataclass(frozen=True)
class Table:
    """The rows of a table by column; columns without a name are left out."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    """Texts of CSV and TSV, a cell that a row lacks empty; `ArrowColumn`s of Parquet."""
    lines: Sequence[int] | None
    """The line of a text file that each row ends on, from 1; None of Parquet."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def at(self, row: int) -> str:
        """Where a row is, for messages: its line of a text file, else its number from 1."""
        return f"line {self.lines[row]}" if self.lines is not None else f"row {row + 1}"


@dataclass(frozen=True)
class ArrowColumn(Sequence[Any]):
    """A column of a Parquet file as Python values, which keeps its type and takes no more memory than the file's."""

    array: Any
    """`pyarrow.ChunkedArray`."""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index].to_pylist() if isinstance(index, slice) else self.array[index].as_py()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array.to_pylist())

    def take(self, indices: Sequence[int]) -> ArrowColumn:
        """The cells of some rows."""
        return ArrowColumn(self.array.take(list(indices)))


@dataclass(frozen=True, repr=False)
class TextColumn(Sequence[str]):
    """Texts in one block of bytes, half of what they take one by one; `of` makes it.

    A `str` is written to, its count of references, when it is only read. The block is not, so that forked processes go
    on sharing it.
    """

    block: bytearray
    ends: array[int]
    """Where each text ends, behind a 0 for the first one's start."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextColumn:
        """Return the column of some texts, of any characters that names of files have."""
        column = cls(bytearray(), array("Q", [0]))
        for text in texts:
            column.block.extend(text.encode("utf-8", "surrogatepass"))
            column.ends.append(len(column.block))
        return column

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        at = range(len(self))[index]
        return self._text(at) if isinstance(at, int) else [self._text(i) for i in at]

    def _text(self, i: int) -> str:
        return self.block[self.ends[i] : self.ends[i + 1]].decode("utf-8", "surrogatepass")


def arrow_type(column: Sequence[Any]) -> Any:
    """Return the type that a table's column has in Parquet: its own, or text."""
    arrow, _ = import_pyarrow()
    return column.array.type if isinstance(column, ArrowColumn) else arrow.string()


def arrow_array(column: Sequence[Any]) -> Any:
    """Return a table's column as Parquet takes it, of the type of `arrow_type`."""
    arrow, _ = import_pyarrow()
    return column.array if isinstance(column, ArrowColumn) else arrow.array(column, arrow.string())


def column_names(path: Path) -> list[str]:
    """Return the names of a table's columns without reading the rows.

    Raises:
        OptionError: There are none; what else `read_columns` raises.
    """
    _check_table(path)
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            names = file.schema_arrow.names
    else:
        with _rows_of_text(path) as (names, _):
            pass
    if found := [name for name in names if name.strip()]:
        return found
    raise OptionError(f"{printable(path)} has no columns with a name: a header in its first line is expected")


def separator_hint(names: Sequence[str]) -> str:
    """Say what to do of a text table all of whose columns were read as one; empty where there is more than one."""
    other = next((mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]), "")
    return f"it is separated by {other!r}; save it with commas, or with tabs as .tsv" if other else ""


def read_columns(path: Path) -> Table:
    """Read a table.

    Args:
        path: File whose name ends in one of the `SUFFIXES`, text in UTF-8 with a header.

    Raises:
        PathNotFoundError: There is no such file.
        OptionError: It is no table or cannot be read, two columns have one name, or a row has more cells than there are
            columns; pyarrow is not installed.
    """
    _check_table(path)
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else read_text_table(path)


def read_text_table(path: Path) -> Table:
    """Read a CSV, or TSV where its name ends so, whatever else it ends in; see `read_columns`."""
    lines, same = array("Q"), dict[str, str]()
    with _rows_of_text(path) as (header, reader):
        columns: list[list[str]] = [[] for _ in header]
        for row in reader:
            if not row:
                continue
            if any(cell.strip() for cell in row[len(header) :]):
                raise OptionError(
                    f"{printable(path)}, line {reader.line_num}: {len(row)} cells for {len(header)} columns "
                    f"({printable(', '.join(header))}); put quotes around a cell that contains a delimiter"
                )
            lines.append(reader.line_num)
            row += [""] * (len(header) - len(row))
            for number, column in enumerate(columns):
                column.append(same.setdefault(row[number], row[number]))  # labels repeat: each text is in memory once
    return Table(path, _named(path, header, columns), lines)


def _check_table(path: Path) -> None:
    if not path.exists():
        raise PathNotFoundError(f"the table {printable(path)} does not exist")
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{printable(path)} is no table: a file is expected whose name ends in {', '.join(SUFFIXES)}")


@contextmanager
def _rows_of_text(path: Path) -> Iterator[tuple[list[str], Any]]:
    """The names of the columns and a reader for the rows below them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.reader(file, delimiter=delimiter, strict=True)  # a quote that does not end would eat rows
            header = next((row for row in reader if row), [])
            _check_names(path, header)
            yield header, reader
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        said = f"cannot read {printable(path)} as a table (CSV in UTF-8 is expected): {reason_of(error)}"
        raise OptionError(said) from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    # Spreadsheets leave columns without a name behind.
    if twice := [name for name, count in Counter(names).items() if count > 1 and name.strip()]:
        raise OptionError(
            f"{printable(path)} has several columns called {first_names(twice)}: each column needs its own name"
        )


def _named(path: Path, names: Sequence[str], columns: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The columns by name. Those without one are left out, with a warning where they hold something."""
    found: dict[str, Sequence[Any]] = {}
    for name, column in zip(names, columns, strict=True):
        if name.strip():
            found[name] = column
        elif any(cell is not None and str(cell).strip() for cell in column):
            log.warning("%s has a column without a name, which is left out: name it to keep it", printable(path))
    return found


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    arrow, parquet = import_pyarrow()
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as opened:
            _check_names(path, opened.schema_arrow.names)
            yield opened
    except OptionError:
        raise
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise OptionError(f"cannot read {printable(path)} as Parquet: {reason_of(error)}") from error


def _read_parquet(path: Path) -> Table:
    with _parquet(path) as file:
        table = file.read()
    return Table(path, _named(path, table.column_names, map(ArrowColumn, table.columns)), None)
