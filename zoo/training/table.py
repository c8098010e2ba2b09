"""Tables of facts about images or people: CSV files, and TSV files as BIDS has them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.messages import csv_cell
from zoo.tables import read_text_table


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
    columns = read_text_table(path).columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_columns(rows: Sequence[dict[str, str]], wanted: Sequence[str], path: Path) -> None:
    """Raise `OptionError` where a table has no rows, or lacks wanted columns."""
    if not rows:
        raise OptionError(f"{path} has no rows")
    if absent := [column for column in wanted if column not in rows[0]]:
        raise OptionError(f"{path} lacks columns {', '.join(absent)}; it has {', '.join(map(str, rows[0]))}")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, or TSV where its name ends with .tsv, whole or not at all, and its folder.

    Each cell is as `messages.csv_cell` writes it; None is an empty one.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(map(csv_cell, columns))
            writer.writerows(["" if cell is None else csv_cell(cell) for cell in row] for row in rows)

    write_atomically(path, write)
