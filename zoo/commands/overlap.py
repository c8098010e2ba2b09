"""What `zoo overlap` does: reads the ids that a command names, and prints which of them weights were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import OptionError, PathNotFoundError
from zoo.evaluation.overlap import Overlap
from zoo.files import read_text
from zoo.images import find_images
from zoo.messages import first_names, printable, reason_of
from zoo.registry import get_entry
from zoo.tables import SUFFIXES, column_names, read_columns
from zoo.training.table import write_table

COLUMNS = ("path", "image_path", "file", "id")
"""Names under which the column of ids is looked for, the first ones first."""
_TEXTS = (".txt", ".lst")
_NAMED = 10


def read_ids(given: Sequence[Path], name: str, column: str | None) -> list[str]:
    """Return the ids that a command names.

    Args:
        given: A table, a text file of one id a line, or images and folders of them.
        name: The model, which says whether volumes or films are looked for in folders.
        column: Of the table, with the ids or the paths of images; None for the first of `COLUMNS`.

    Raises:
        PathNotFoundError: A path does not exist.
        OptionError: There are no ids, or they cannot be read.
    """
    lists = [path for path in given if path.suffix.lower() in (*SUFFIXES, *_TEXTS)]
    if lists and len(given) > 1:
        raise OptionError(
            f"{printable(lists[0])} is a list of ids, beside other paths: one list is expected, or images"
        )
    if lists and lists[0].suffix.lower() in SUFFIXES:
        return _of_table(lists[0], column)
    if column is not None:
        raise OptionError(f"--column {column} without a table: a file that ends in {', '.join(SUFFIXES)} is expected")
    if lists:
        return _of_lines(lists[0])
    return list(map(str, find_images(given, volumes=get_entry(name).dimension == 3)))


def _of_table(path: Path, column: str | None) -> list[str]:
    names = column_names(path)
    found = next((name for name in ((column,) if column is not None else COLUMNS) if name in names), None)
    if found is None:
        wanted = repr(column) if column is not None else " or ".join(map(repr, COLUMNS))
        raise OptionError(
            f"{printable(path)} has no column {printable(wanted)} with the ids; its columns are "
            f"{first_names(map(repr, names), 2 * _NAMED)}: name one of them by --column"
        )
    table = read_columns(path)
    ids = ["" if cell is None else str(cell) for cell in table.columns[found]]
    if blank := [table.at(row) for row, id in enumerate(ids) if not id.strip()]:
        raise OptionError(
            f"{printable(path)} has {len(blank)} rows without an id in column {printable(repr(found))}: "
            f"{first_names(blank, _NAMED)}. Fill them in, or drop these rows"
        )
    return _some(ids, path)


def _of_lines(path: Path) -> list[str]:
    if not path.exists():
        raise PathNotFoundError(f"the list {printable(path)} does not exist")
    try:
        lines = read_text(path).removeprefix("\ufeff").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {printable(path)} as ids, one a line in UTF-8: {reason_of(error)}") from error
    return _some([line.strip() for line in lines if line.strip()], path)


def _some(ids: list[str], path: Path) -> list[str]:
    if not ids:
        raise OptionError(f"{printable(path)} has no ids: one in each row or line is expected")
    return ids


def check_out(out: Path | None) -> None:
    """Raise `OptionError` where the rows cannot be written: before a list is fetched."""
    if out is not None and out.suffix.lower() != ".csv":
        raise OptionError(f"-o {out}: a name that ends in .csv is expected, for a row for each id")


def write_rows(found: Overlap, out: Path) -> None:
    """Write a row for each id: what was read in it, and whether it was seen, empty where nothing tells.

    Raises:
        OSError: It cannot be written.
    """
    columns = ("id", "cohort", "image", "patient", "image_seen", "patient_seen")
    words = {True: "yes", False: "no", None: ""}
    rows = (
        (row.id, row.cohort, row.image or "", row.patient or "", words[row.image_seen], words[row.patient_seen])
        for row in found.rows
    )
    write_table(out, columns, rows)


def facts_of(found: Overlap) -> dict[str, Any]:
    """What was found, for programs; of each kind of id ten."""
    return {
        "name": found.name,
        "verdict": found.verdict,
        "ids": len(found.rows),
        "looked_up": found.readable,
        "seen_by_image": found.seen_images,
        "seen_by_patient": found.seen_by_patient,
        "seen": len(found.seen),
        "patients": found.patients_given,
        "patients_seen": found.patients_seen,
        "examples": [row.id for row in found.seen[:_NAMED]],
        "not_read": len(found.unread),
        "not_read_examples": list(found.unread[:_NAMED]),
        "list": {
            "source": found.source,
            "sha256": found.sha256,
            "images": found.images,
            "patients": found.patients,
            "cohorts": list(found.cohorts),
            "note": found.note,
        },
        "warnings": list(found.warnings),
    }


def page_of(found: Overlap) -> list[str]:
    """What was found, for a reader."""
    facts = {
        "patients": f"{found.patients_seen} of {found.patients_given} seen" if found.patients_given else "",
        "seen": _some_of(row.id for row in found.seen),
        "not read": _some_of(found.unread),
        "trained on": ", ".join(found.cohorts),
        "list": f"{found.source} (sha256 {found.sha256 or 'not known'})" if found.source else "",
        "note": found.note,
    }
    shown = [f"{key:<10}  {value}" for key, value in facts.items() if value]
    return [found.verdict, *shown, *(f"careful: {warning}" for warning in found.warnings)]


def _some_of(ids: Iterable[str]) -> str:
    return first_names(given, _NAMED) if (given := list(ids)) else ""
