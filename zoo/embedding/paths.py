"""Checks that something lies at each of many paths, in seconds for a hundred thousand."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import OptionError, PathNotFoundError
from zoo.images import holds_series
from zoo.messages import first_names, printable, said_of_missing

NAMED = 10
"""Paths, ids or rows that a message names of many."""
_MOST_FILES = 10_000
"""Files among which a name is looked for, after which a message goes without."""
_MANY = 50
"""Paths in one folder from which on listing it is quicker than asking for each."""


def check_there(
    given: Sequence[str], paths: Sequence[str], root: Path | None, table: Path, *, volumes: bool, root_flag: str
) -> None:
    """Check that something is at each path, and that a folder is a series of DICOM."""
    kinds = _are_folders(paths)
    if missing := [given[i] for i, kind in enumerate(kinds) if kind is None]:
        raise PathNotFoundError(f"{said_of_missing(missing, len(paths))}. {_whence(missing, root, table, root_flag)}")
    folders = dict.fromkeys(path for path, kind in zip(paths, kinds, strict=True) if kind)
    wrong = [path for path in folders if not (volumes and holds_series(Path(path)))]
    if wrong:
        said = "folders without DICOM in them" if volumes else "folders"
        wanted = "a file or the folder of one DICOM series" if volumes else "a film's file"
        raise OptionError(
            f"{len(wrong)} of {len(paths)} paths of {printable(table)} are {said}: {first_names(wrong, NAMED)}. In "
            f"each row {wanted} is expected"
        )


def _whence(missing: Sequence[str], root: Path | None, table: Path, flag: str) -> str:
    """From where relative paths were looked for, and what to do where they lead from the working directory."""
    if root is not None:
        return f"Relative paths lead from the root {printable(root)}{_deeper(root, missing)}"
    relative = [path for path in missing if not os.path.isabs(path)]
    there = sum(kind is not None for kind in _are_folders(relative))
    chosen = f"{flag} . (root='.')" if flag == "--root" else f"{flag} ."
    advice = f": {there} of them exist from the working directory, which {chosen} chooses" if there else ""
    folder = printable(table.parent.absolute())
    advice = advice or _deeper(table.parent, missing)
    return f"Relative paths lead from the table's folder {folder}, or from {flag} where it is given{advice}"


def _deeper(base: Path, missing: Sequence[str]) -> str:
    """Where the first of some paths lies below a folder, in words: a table of names alone is no list of paths."""
    name, looked_at = os.path.basename(missing[0]), 0
    for folder, _, files in os.walk(base):
        looked_at += len(files)
        if name in files:
            found = os.path.relpath(os.path.join(folder, name), base)
            return f", where {printable(found)} has the name of the first: each row needs the path from there"
        if looked_at > _MOST_FILES:
            break
    return ""


def _are_folders(paths: Sequence[str]) -> list[bool | None]:
    """Whether there is a folder at each path, None where there is nothing.

    Where many paths lie in one folder it is listed: on a network's disk asking for each takes minutes.
    """
    by_folder: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        by_folder[os.path.dirname(path)].append(i)
    kinds: list[bool | None] = [None] * len(paths)
    for folder, inside in by_folder.items():
        listed = _listed(folder, {os.path.basename(paths[i]) for i in inside}) if len(inside) >= _MANY else {}
        for i in inside:
            found = listed.get(os.path.basename(paths[i]))
            kinds[i] = _is_folder(paths[i]) if found is None else found  # the disk may take a name in other letters
    return kinds


def _listed(folder: str, wanted: set[str]) -> dict[str, bool]:
    """Whether the wanted names that are in a folder are folders; a link that leads nowhere is none."""
    try:
        with os.scandir(folder or ".") as entries:
            return {e.name: e.is_dir() for e in entries if e.name in wanted}
    except (OSError, ValueError):  # it is not there, cannot be listed, or has a link that leads to itself
        return {}


def _is_folder(path: str) -> bool | None:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return False  # something may be there: reading it says what is wrong
    except (OSError, ValueError):
        return False if os.path.islink(path) else None  # a pointer of git-annex, or a broken link, fails by itself
