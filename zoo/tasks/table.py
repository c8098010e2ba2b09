"""The table of a fine-tuning run: its cases, their labels as numbers, and what they must stay together with."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.embedding import Cases, find_cases, read_list
from zoo.errors import OptionError
from zoo.messages import first_names, printable
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.cells import check_groups, text_of

log = logging.getLogger("zoo")

_SERIES = re.compile(r"(.+?)[_-]\d+$")
"""Names of files that number the images of one patient, as 00000013_004."""


def read_cases(args: FinetuneArgs, *, volumes: bool, lesions: bool) -> Cases:
    """Return the cases of the run's table.

    Raises:
        OptionError: The table cannot be read, or does not fit the folder.
    """
    if args.data and not Path(args.data).is_dir():
        raise OptionError(f"--data {args.data} is no folder that exists: give the one that holds the images")
    cases = read_list(
        args.table,
        volumes=volumes,
        lesions=lesions,
        path_column=args.path_column or None,
        root=args.data or None,
        root_flag="--data",
    )
    if args.data and not lesions:
        _say_unlisted(cases, Path(args.data), volumes=volumes)
    return cases


def _say_unlisted(cases: Cases, folder: Path, *, volumes: bool) -> None:
    """Warn of images in the folder that the table does not have."""
    listed = {Path(path).resolve() for path in cases.paths}
    try:
        there = find_cases([folder], volumes=volumes).paths
    except OptionError:  # none that this network takes: what the table lists is elsewhere, and exists
        return
    if spare := [path for path in there if Path(path).resolve() not in listed]:
        log.warning(
            "%s has %d images that the table does not list, which are left out: %s",
            folder,
            len(spare),
            first_names([str(Path(path).relative_to(folder)) for path in spare], 3),
        )


def column_of(cases: Cases, column: str, flag: str) -> Sequence[Any]:
    """Return a column of the table that a flag names.

    Raises:
        OptionError: There is no such column.
    """
    if column in cases.carried:
        return cases.carried[column]
    raise OptionError(
        f"{flag} {printable(column)}: the table has no such column; it has {first_names(cases.carried, 20)}, beside "
        "those of paths and ids"
    )


def groups_of(cases: Cases, args: FinetuneArgs) -> list[str]:
    """Return what each case must stay together with: the cell of `--group`, or the first case of the same file.

    Raises:
        OptionError: A case has no group, or a file is in two groups.
    """
    if not args.group:
        if not args.split and (series := series_in(cases.paths)):
            log.warning(
                "names of files look like several images of one patient (%s): give --group COLUMN, so that a patient's "
                "images stay together",
                first_names(series, 3),
            )
        first = dict[Path, str]()
        return [first.setdefault(Path(path).resolve(), id) for id, path in zip(cases.ids, cases.paths, strict=True)]
    cells = [text_of(cell) for cell in column_of(cases, args.group, "--group")]
    if blank := [id for id, cell in zip(cases.ids, cells, strict=True) if not cell]:
        raise OptionError(
            f"--group {args.group}: {len(blank)} cases have no group, {first_names(blank, 10)}. Fill them in, or drop "
            "these rows"
        )
    check_files(cases.paths, cells, args.group)
    check_groups(cells, f"--group {args.group}")
    return cells


def check_files(paths: Sequence[str], groups: Sequence[str], column: str) -> None:
    """Raise `OptionError` where a file of several cases is in two groups: both sides of a split would have it."""
    first = dict[Path, str]()
    files = [Path(path).resolve() for path in paths]
    if both := [
        f"{printable(path)} in {printable(first[file])} and {printable(group)}"
        for path, file, group in zip(paths, files, groups, strict=True)
        if first.setdefault(file, group) != group
    ]:
        raise OptionError(
            f"--group {column}: {len(both)} files are in more than one group: {first_names(both, 10)}. Give all rows "
            "of a file one group"
        )


def series_in(paths: Sequence[str]) -> list[str]:
    """Return files whose names share what is before the number at their end, where at least a tenth of them do."""
    stems = [Path(path).name.split(".")[0] for path in dict.fromkeys(paths)]
    before = [found[1] if (found := _SERIES.match(stem)) else stem for stem in stems]
    counts = Counter(before)
    shared = [stem for stem, own in zip(stems, before, strict=True) if counts[own] > 1]
    # All images of `film_1, film_2, ...` share their beginning: that says nothing of patients.
    return shared if len(counts) > 2 and 10 * len(shared) >= len(stems) else []
