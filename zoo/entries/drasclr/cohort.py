"""Subjects of DrasCLR's recipes, from a table or a list."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import OptionError
from zoo.training.table import check_columns, read_table

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Subject:
    """One subject to preprocess."""

    sid: str
    image: Path
    mask: Path | None = None


def read_subjects(table: Path) -> list[Subject]:
    """Read the subjects to preprocess; rows without an image are logged and left out, as in the authors' code.

    Raises:
        OptionError: The table does not exist or lacks columns, a name is repeated or cannot name a file, or no subject
            is left.
    """
    rows = read_table(table)
    check_columns(rows, ("sid", "image"), table)
    there = [row for row in rows if row["image"].strip()]
    if len(there) < len(rows):
        log.warning("%s: %d of %d rows have no image and are left out", table, len(rows) - len(there), len(rows))
    subjects = []
    for row in there:
        mask = row.get("mask", "").strip()
        image = table.parent / row["image"].strip()
        subjects.append(Subject(row["sid"].strip(), image, table.parent / mask if mask else None))
    check_names([subject.sid for subject in subjects], str(table))
    return subjects


def read_sids(table: Path) -> list[str]:
    """Return the column `sid`: the subjects whose patches to take.

    Raises:
        OptionError: There is no such table, or it lacks the column.
    """
    rows = read_table(table)
    check_columns(rows, ("sid",), table)
    return [row["sid"].strip() for row in rows]


def check_names(names: Sequence[str], source: str) -> None:
    """Raise `OptionError` where there are no subjects, one is repeated, or a name cannot name a file."""
    if not names:
        raise OptionError(f"{source} names no subject with an image")
    if wrong := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise OptionError(
            f"{source}: {len(wrong)} subject(s) cannot name files (first: {', '.join(map(repr, wrong[:3]))}): letters, "
            "digits, '_', '.' and '-' are expected"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise OptionError(f"{source}: {len(twice)} subject(s) are in several rows (first: {', '.join(twice[:3])})")
