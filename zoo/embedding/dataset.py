"""A folder of features that grows by whole Parquet files, and with which a run that was killed goes on.

`part-*.parquet` hold the rows, `zoo.json` what they were computed with, `failed.csv` the cases without rows and why,
`embed.log` the course of the runs. Each process writes files of its own; a file gets its name when it is whole.

The file is long because what makes a run refuse a folder stands beside what makes it one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded, reason
from zoo.embedding.failures import failures_in, load_failures, write_failures
from zoo.embedding.parts import done_in, ids_in, is_utf8, next_part, write_part
from zoo.embedding.reading import Units
from zoo.embedding.reserving import forget_finished, log_of, reserved
from zoo.embedding.shares import ALONE, Share
from zoo.errors import InputContractError, OptionError
from zoo.features import import_pyarrow
from zoo.files import read_text, remove_leftovers, write_text
from zoo.messages import csv_cell, printable, reason_of
from zoo.stopping import Stopped, deferring
from zoo.tables import arrow_type

log = logging.getLogger("zoo")

FACTS = "zoo.json"
MOST_SECONDS, MOST_BYTES, MOST_CASES = 60.0, 8 * 2**20, 8192
"""How long rows wait in memory, how many bytes of them, and of how many cases, before they are written."""
_WEIGHTS = ("network", "sha256", "values_sha256")
_SAME = (*_WEIGHTS, "input", "options", "precision", "layer", "tokens", "preparation", "key", "rows", "type", "columns")
"""Facts that all rows of a folder share."""
_ROUNDING = ("zoo", "torch", "batch_size", "directory")
"""Facts that may change between runs, which is said."""


@dataclass
class FeatureFolder:
    """The folder of a run, open for its rows; `opening` makes it."""

    out: Path
    facts: Mapping[str, Any]
    cases: Cases
    """The list that units and rows give positions in."""
    share: Share
    done: bytearray
    """By position: 1 for a case that has rows on disk, else 0."""
    failed: dict[str, str]
    """Id of a case without rows, as a cell of a table -> why; those of this process, and of runs before."""
    others: Mapping[str, str]
    """Further cases that failed, which other processes keep."""
    _part: int | None = None
    """Number of the file that what waits goes into, once it was tried."""
    _waiting: list[Embedded] = field(default_factory=list)
    _bytes: int = 0
    _since: float = field(default_factory=time.monotonic)
    _has_news: bool = False
    """Whether `failed` is not yet written as it is."""

    @property
    def log(self) -> Path:
        """Where this process records its course."""
        return log_of(self.out, self.share.rank)

    def left(self, unit: Sequence[int], *, retry_failed: bool) -> list[int]:
        """Return those of some cases that are left to do: those without rows; of those that failed, only on request."""
        return [i for i in unit if not self.done[i] and (retry_failed or not self._why(self.cases.ids[i]))]

    def _why(self, id: str) -> str:
        """Why a case without rows failed; empty if it was not tried."""
        if not self.failed and not self.others:
            return ""  # a cohort's ids are many, and a cell is made letter by letter
        cell = csv_cell(id)
        return self.failed.get(cell) or self.others.get(cell, "")

    def state(self, units: Units) -> str:
        """How many of some cases are done, in words."""
        done, failed, total = self.count(units), len(self.reasons(units)), sum(map(len, units))
        return f"{done} of {total} images have features in {self.out}" + (f", {failed} failed" if failed else "")

    def count(self, units: Units) -> int:
        """How many of some cases have rows on disk."""
        return sum(self.done[i] for unit in units for i in unit)

    def reasons(self, units: Units) -> dict[str, str]:
        """Return those of some cases that failed, and why."""
        ids = (self.cases.ids[i] for unit in units for i in unit if not self.done[i])
        return {id: why for id in ids if (why := self._why(id))}

    def add(self, found: Sequence[Embedded]) -> None:
        """Take what became of some cases; what has waited for a minute, or is large, is written.

        Raises:
            OSError: The folder cannot be written.
        """
        with deferring():
            fit = [self._fitting(each) for each in found]
            self._waiting += fit
            self._bytes += sum(each.features.nbytes for each in fit if each.features is not None)
            is_much = self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_CASES
            if is_much or time.monotonic() - self._since >= MOST_SECONDS:
                self.flush()

    def _fitting(self, found: Embedded) -> Embedded:
        """Return what became of a case in the folder's type, as a failure if Parquet of this folder cannot hold it."""
        import numpy as np

        if found.features is None:
            return found
        texts = self.cases.ids[found.case], self.cases.paths[found.case]
        if unlike := [text for text in texts if not is_utf8(text)]:
            problem = f"{printable(unlike[0])} is no text in UTF-8, which Parquet takes: rename it"
            return Embedded(found.case, None, problem)
        largest = float(np.abs(found.features).max(initial=0))
        if self.facts["type"] == "float16" and largest > float(np.finfo(np.float16).max):
            problem = f"its features reach {largest:.6g}, more than float16 holds: embed without --half"
            return Embedded(found.case, None, problem)
        return found._replace(features=found.features.astype(self.facts["type"]))  # a copy is smaller than a tensor

    def flush(self) -> None:
        """Write what waits. After an error it waits on, to be written under the same name: no row is there twice.

        Raises:
            OSError: The folder cannot be written.
        """
        with deferring():
            if good := [each for each in self._waiting if each.features is not None]:
                self._part = next_part(self.out, self.share.rank) if self._part is None else self._part
                write_part(self.out, self.share.rank, self._part, self.cases, good, self.facts)
            rows, self._waiting = self._waiting, []
            self._part, self._bytes, self._since = None, 0, time.monotonic()
            for each in rows:
                self._note(each)
            if self._has_news:
                write_failures(self.out, self.share, self.facts["key"], self.failed)
                self._has_news = False

    def _note(self, found: Embedded) -> None:
        """Note what became of a case, for the next run."""
        id = self.cases.ids[found.case]
        if found.features is not None:
            self.done[found.case] = 1
            if self.failed and self.failed.pop(csv_cell(id), ""):
                self._has_news = True
        elif self.failed.get(cell := csv_cell(id)) != (why := reason(self.cases, found)):
            self.failed[cell] = why
            self._has_news = True


@contextmanager
def opening(
    out: Path, facts: Mapping[str, Any], cases: Cases, share: Share = ALONE, *, redo_changed: bool = False
) -> Iterator[FeatureFolder]:
    """Open a folder for this process inside the block; it is made if it does not exist. What waits at the end is kept.

    Args:
        out: The folder.
        facts: From `describe`: what its rows are computed with.
        cases: The list whose rows are added; those that are there are compared with it.
        share: That of this process.
        redo_changed: Whether the rows go whose files were changed after them; for a process that is alone.

    Raises:
        OptionError: The folder is no folder of features, holds others, or rows of other files under the same ids; or
            another run writes to it.
        OSError: It cannot be written.
    """
    arrow, _ = import_pyarrow()
    arrow.array([""])  # the first list makes it import pandas: before there is work, not between two batches
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with reserved(out, share):
        remove_leftovers(out)
        _check_same(out, facts)
        key = str(facts["key"])
        done = done_in(out, key, cases, redo_changed=None if share.rank else redo_changed)
        forget_finished(out, share)
        failed, others = load_failures(out, share, key, ids_in(out, key))
        folder = FeatureFolder(out, facts, cases, share, done, failed, others)
        try:
            yield folder
        except Stopped:
            with suppress(Stopped):
                folder.flush()
            raise
        except BaseException:
            with suppress(OSError, Stopped):  # the first error counts
                folder.flush()
            raise
        folder.flush()


def look_into(out: Path, facts: Mapping[str, Any], cases: Cases) -> FeatureFolder:
    """Return what a run would find in a folder, and change nothing in it; the rest is as of `opening`."""
    _check_folder(out)
    if not out.is_dir() or not _is_begun(out):
        return FeatureFolder(out, facts, cases, ALONE, bytearray(len(cases)), {}, {})
    _refuse_others(out, facts)
    key = str(facts["key"])
    done, failed = done_in(out, key, cases, is_trial=True), failures_in(out, ids_in(out, key, is_trial=True))
    return FeatureFolder(out, facts, cases, ALONE, done, failed, {})


def describe(facts: Mapping[str, Any], cases: Cases, rows_of: str, *, half: bool) -> dict[str, Any]:
    """Return the facts of a folder: those of an embedder, and what its columns are."""
    key = "id" if cases.have_ids else "path"
    carried = {name: str(arrow_type(column)) for name, column in cases.carried.items()}
    columns = {"columns": carried, "key": key, "rows": rows_of, "type": "float16" if half else "float32"}
    is_relative = any(not Path(path).is_absolute() for path in cases.paths)
    return {"schema": 1, **facts, **columns} | ({"directory": str(Path.cwd())} if is_relative else {})


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds anything else: `-o .` in a folder of images is a slip."""
    if out.is_file():
        raise OptionError(f"{out} is a file: a folder is expected, or a name that ends in .npz or .csv")
    if not out.is_dir() or (out / FACTS).exists():
        return
    strange = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if strange and not (out / FACTS).exists():  # which another process of this run may have written meanwhile
        raise OptionError(
            f"{out} is no folder of features: it holds {printable(strange[0])} and no {FACTS}. Give a new folder"
        )


def _check_same(out: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts, or refuse a folder whose rows were computed with others."""
    if _is_begun(out):
        _refuse_others(out, facts)
    else:
        write_text(out / FACTS, json.dumps(dict(facts), indent=2) + "\n")


def _is_begun(out: Path) -> bool:
    """Whether something rests on the facts that a folder states."""
    return (out / FACTS).exists() and any([*out.glob("part-*"), *out.glob("failed*.csv")])


def _refuse_others(out: Path, facts: Mapping[str, Any]) -> None:
    known = read_facts(out)
    for name in _SAME:
        there, asked = known.get(name), facts.get(name)
        if there != asked:
            what = f"weights ({known.get('model')} there, {facts['model']} asked for)" if name in _WEIGHTS else name
            raise OptionError(
                f"{out} holds features that differ in {printable(what)}: {_short(there, asked)} there, "
                f"{_short(asked, there)} asked for. Give another folder, or ask for the same"
            )
    changed = [f"{name} {known.get(name)}" for name in _ROUNDING if name in known and known[name] != facts.get(name)]
    if changed:
        log.warning(
            "%s was begun with %s: rows from here on may differ by rounding; elsewhere relative paths lead to "
            "other files",
            out,
            ", ".join(changed),
        )


def _short(value: Any, other: Any) -> str:
    """A fact for a message; of several facts those that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: part for key, part in value.items() if other.get(key) != part}
    return f"{printable(json.dumps(value)):.200}"


def read_facts(out: Path) -> dict[str, Any]:
    """Return what the rows of a folder were computed with.

    Raises:
        InputContractError: The folder does not say.
    """
    try:
        facts = json.loads(read_text(out / FACTS))
    except (OSError, ValueError) as error:
        raise InputContractError(
            f"{out / FACTS} cannot be read ({reason_of(error)}): it says what the rows were computed with. Bring it "
            "back from a copy, or give another folder"
        ) from error
    if not isinstance(facts, dict) or facts.get("schema") != 1:
        raise InputContractError(
            f"{out / FACTS} is not as this version of the zoo writes it: go on with the version that wrote it, or give "
            "another folder"
        )
    return facts
