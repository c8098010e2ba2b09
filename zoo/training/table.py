"""Tables of facts about images or people: CSV files, and TSV files as BIDS has them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.errors import OptionError
from zoo.files import replacing
from zoo.messages import csv_cell

EMPTY = ("", "nan", "na", "n/a")
"""Cells without a value, in lower case; "none" is a class in many tables."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table; a cell that a row lacks is empty.

    Args:
        path: CSV with a header, or TSV where its name ends with .tsv.

    Raises:
        OptionError: The file does not exist or is not text, two columns have one name, or a row has more cells than the
            header has columns.
    """
    if not path.is_file():
        raise OptionError(f"the table {path} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            return _rows(csv.DictReader(file, restval="", delimiter=delimiter), path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path} as a table (CSV in UTF-8 is expected): {error}") from error


def _rows(reader: csv.DictReader[str], path: Path) -> list[dict[str, str]]:
    columns = reader.fieldnames or ()
    # Spreadsheets leave columns without a name behind, and cells without a value.
    if twice := [name for name, count in Counter(columns).items() if count > 1 and name.strip()]:
        raise OptionError(f"{path} has several columns called {', '.join(twice)}: each column needs its own name")
    rows = []
    for row in reader:
        cells = row.pop(None, [])  # the key under which csv keeps cells without a column
        if any(cell.strip() for cell in cells):
            raise OptionError(
                f"{path}, line {reader.line_num}: {len(columns) + len(cells)} cells for {len(columns)} columns "
                f"({', '.join(columns)}); put quotes around a cell that contains a delimiter"
            )
        rows.append(row)
    return rows


def check_columns(rows: Sequence[dict[str, str]], wanted: Sequence[str], path: Path) -> None:
    """Raise `OptionError` where a table has no rows, or lacks wanted columns."""
    if not rows:
        raise OptionError(f"{path} has no rows")
    if absent := [column for column in wanted if column not in rows[0]]:
        raise OptionError(f"{path} lacks columns {', '.join(absent)}; it has {', '.join(map(str, rows[0]))}")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, whole or not at all; each cell is as `messages.csv_cell` writes it."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in (columns, *rows))
