"""The cases of a folder of features that have no rows, and why: `failed.csv`, and one for each further process."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from zoo.embedding.shares import Share
from zoo.files import write_atomically
from zoo.messages import csv_cell, reason_of

log = logging.getLogger("zoo")

_STEM = "failed"


def file_of(out: Path, stem: str, rank: int, suffix: str) -> Path:
    """A file that each process writes for itself."""
    return out / (f"{stem}-{rank:05d}{suffix}" if rank else f"{stem}{suffix}")


def load_failures(out: Path, share: Share, key: str, done: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the cases that failed before: those that this process keeps, and those that others do.

    A process that is alone keeps them all. Cases that have rows by now are left out.

    Args:
        out: The folder.
        share: That of this process.
        key: The column that cases are called by.
        done: Ids of those that have rows; they are looked through only where some have failed.

    Raises:
        OSError: The folder cannot be read or written.
    """
    mine = file_of(out, _STEM, share.rank, ".csv")
    found = {file: _read(file) for file in sorted(out.glob(f"{_STEM}*.csv"))}
    if failed := set().union(*found.values()):
        cells = {cell for id in done if (cell := csv_cell(id)) in failed}
        found = {file: {cell: why for cell, why in each.items() if cell not in cells} for file, each in found.items()}
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    for file, each in found.items():
        (own if share.world == 1 or file == mine else others).update(each)
    if share.world == 1 and set(found) - {mine}:
        write_failures(out, share, key, own)  # before those files go
        for file in set(found) - {mine}:
            file.unlink()
    return own, others


def failures_in(out: Path, done: Iterable[str]) -> dict[str, str]:
    """Return the cases of all processes that failed before and have no rows by now; nothing is changed."""
    found: dict[str, str] = {}
    for file in sorted(out.glob(f"{_STEM}*.csv")):
        found |= _read(file, is_trial=True)
    cells = {cell for id in done if (cell := csv_cell(id)) in found} if found else set()
    return {cell: why for cell, why in found.items() if cell not in cells}


def write_failures(out: Path, share: Share, key: str, failed: Mapping[str, str]) -> None:
    """Write the cases that this process keeps, or remove the file if there are none any more.

    Args:
        out: The folder.
        share: That of this process.
        key: Name of the first column.
        failed: Ids as `csv_cell` writes them -> why.

    Raises:
        OSError: The file cannot be written.
    """

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([key, "reason"])
            writer.writerows((cell, csv_cell(why)) for cell, why in sorted(failed.items()))

    file = file_of(out, _STEM, share.rank, ".csv")
    if failed:
        write_atomically(file, write)
    else:
        file.unlink(missing_ok=True)


def _read(file: Path, *, is_trial: bool = False) -> dict[str, str]:
    """Cases as cells of a table, and why they failed; a file that is damaged is put aside, its cases tried again.

    Args:
        file: The table.
        is_trial: Whether a file that is damaged stays where it is.
    """
    try:
        with file.open(newline="", encoding="utf-8") as text:
            rows = list(csv.reader(text, strict=True))
        if not rows or any(len(row) != 2 for row in rows):
            raise ValueError("rows of two cells below a header are expected")
    except FileNotFoundError:  # its cases have succeeded meanwhile
        return {}
    except (csv.Error, ValueError) as error:
        if is_trial:
            log.warning("%s is damaged (%s): a run tries its cases again", file, reason_of(error))
            return {}
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        log.warning(
            "%s is damaged (%s): it is called %s now, its cases are tried again", file, reason_of(error), aside.name
        )
        return {}
    return {cell: why for cell, why in rows[1:]}
