"""Tables that say what is known of each image: CSV files, and TSV files as BIDS has them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import OptionError


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table; a cell that a row lacks is empty.

    Args:
        path: CSV with a header, or TSV where its name ends so.

    Raises:
        OptionError: There is no such file, or it is no text.
    """
    if not path.is_file():
        raise OptionError(f"the table {path} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, restval="", delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (csv.Error, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path} as a table (CSV in UTF-8 is expected): {error}") from error


def check_columns(rows: Sequence[dict[str, str]], wanted: Sequence[str], path: Path) -> None:
    """Raise `OptionError` where a table has no rows, or not the columns that are wanted."""
    if not rows:
        raise OptionError(f"{path} has no rows")
    if absent := [column for column in wanted if column not in rows[0]]:
        raise OptionError(f"{path} lacks columns {', '.join(absent)}; it has {', '.join(map(str, rows[0]))}")
