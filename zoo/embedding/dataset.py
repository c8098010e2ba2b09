"""A folder of features that grows by whole Parquet files, and with which a run that was killed goes on.

`part-*.parquet` hold the rows, `zoo.json` what they were computed with, `failed.csv` the cases without rows and why,
`embed.log` the course of the runs. Each process writes files of its own; a file gets its name when it is whole.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.embedding.cases import Cases
from zoo.embedding.embedder import Embedded, reason
from zoo.embedding.part import Part
from zoo.embedding.shares import ALONE, Share
from zoo.errors import InputContractError, OptionError
from zoo.features import import_pyarrow
from zoo.files import read_text, remove_leftovers, write_atomically, write_text
from zoo.locks import acquire, holder_of, release
from zoo.messages import csv_cell, printable
from zoo.stopping import deferring
from zoo.tables import arrow_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("zoo")

FACTS, FAILED, LOG = "zoo.json", "failed", "embed"
MOST_SECONDS, MOST_BYTES = 60.0, 256 * 2**20
"""After how long, and after how many bytes of rows, a part is whole."""
_GROUP_BYTES = 2**22
"""Of rows that wait in memory before they go into the part that is being made."""
_CASE_BYTES = 256
"""What a case that waits takes beside its numbers, about."""
_WEIGHTS = ("network", "sha256", "values_sha256")
_SAME = (*_WEIGHTS, "input", "options", "precision", "layer", "tokens", "key", "rows", "type", "columns")
"""Facts that all rows of a folder share."""
_VERSIONS = ("zoo", "torch")


@dataclass
class FeatureFolder:
    """The folder of a run, open for its rows; `opening` makes it."""

    out: Path
    facts: Mapping[str, Any]
    share: Share = ALONE
    done: set[str] = field(default_factory=set)
    """Ids of the cases that have rows on disk."""
    failed: dict[str, str] = field(default_factory=dict)
    """Id of a case without rows, as a cell of a table -> why; those of this process, and of runs before."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Further cases that failed, which other processes keep."""
    _waiting: list[tuple[Cases, list[Embedded]]] = field(default_factory=list)
    _bytes: int = 0
    """Of what waits, and of what is in the part already."""
    _written: int = 0
    _part: Part | None = None
    """The file that is being made."""
    _found: dict[str, str] = field(default_factory=dict)
    """Id of each case that waits for it -> why it has no rows, empty where it has."""
    _since: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """Where this process records its course; that it is written shows that the process lives."""
        return _of_rank(self.out, LOG, self.share.rank, ".log")

    def left(self, cases: Cases, unit: Sequence[int], *, retry_failed: bool) -> list[int]:
        """Return those of some cases that have no rows yet, nor, unless it is to be tried again, a reason for that."""
        return [i for i in unit if not self._is_done(cases.ids[i], retry_failed)]

    def _is_done(self, id: str, retry_failed: bool) -> bool:
        return id in self.done or (not retry_failed and (csv_cell(id) in self.failed or csv_cell(id) in self.others))

    def state(self, cases: Cases, units: Sequence[Sequence[int]]) -> str:
        """How many of some cases are done, in words."""
        done, failed, total = self.count(cases, units), len(self.reasons(cases, units)), sum(map(len, units))
        return f"{done} of {total} images have features in {self.out}" + (f", {failed} failed" if failed else "")

    def count(self, cases: Cases, units: Sequence[Sequence[int]]) -> int:
        """How many of some cases have rows on disk."""
        return sum(cases.ids[i] in self.done for unit in units for i in unit)

    def reasons(self, cases: Cases, units: Sequence[Sequence[int]]) -> dict[str, str]:
        """Return those of some cases that failed, and why."""
        known = {**self.others, **self.failed}
        ids = (cases.ids[i] for unit in units for i in unit)
        return {id: known[csv_cell(id)] for id in ids if csv_cell(id) in known and id not in self.done}

    def add(self, cases: Cases, found: Sequence[Embedded]) -> None:
        """Take what became of some cases; what has waited for a minute, or is large, is made a part.

        Raises:
            OSError: The folder cannot be written.
        """
        with deferring():
            self._waiting.append((cases, _packed(found, self.facts["type"])))
            self._bytes += sum(map(_size, found))
            if self._bytes >= _GROUP_BYTES:
                self._write_group()
            if self._written >= MOST_BYTES or time.monotonic() - self._since >= MOST_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Make what waits a part.

        Raises:
            OSError: The folder cannot be written.
        """
        with deferring():
            self._write_group()
            part, found = self._part, self._found
            self._part, self._found, self._written, self._since = None, {}, 0, time.monotonic()
            if part is not None:
                part.close()
            before = dict(self.failed)
            for id, why in found.items():
                self.failed.pop(csv_cell(id), None)
                if why:
                    self.failed[csv_cell(id)] = why
                else:
                    self.done.add(id)
            if self.failed != before:
                self._write_failed()

    def _write_group(self) -> None:
        """Write what waits into the part that is being made; where that fails, its cases count as not done."""
        waiting, self._waiting, self._written, self._bytes = self._waiting, [], self._written + self._bytes, 0
        rows = [(cases, each) for cases, found in waiting for each in found]
        good = [(cases, each) for cases, each in rows if each.features is not None]
        table = _table(good, self.facts) if good else None
        part, found = self._part, self._found
        self._part, self._found = None, {}
        if table is not None:
            part = part or Part(self._next_part())
            part.write(table)
        found.update((cases.ids[each.case], _problem(cases, each)) for cases, each in rows)
        self._part, self._found = part, found

    def _next_part(self) -> Path:
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.out.glob(f"part-{self.share.rank:05d}-*.parquet")]
        return self.out / f"part-{self.share.rank:05d}-{max(numbers, default=-1) + 1:06d}.parquet"

    def _write_failed(self) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([self.facts["key"], "reason"])
                writer.writerows((cell, csv_cell(why)) for cell, why in sorted(self.failed.items()))

        write_atomically(_of_rank(self.out, FAILED, self.share.rank, ".csv"), write)


@contextmanager
def opening(out: Path, facts: Mapping[str, Any], share: Share = ALONE) -> Iterator[FeatureFolder]:
    """Open a folder for this process inside the block; it is made if it does not exist. What waits at the end is kept.

    Args:
        out: The folder.
        facts: From `describe`: what its rows are computed with.
        share: That of this process.

    Raises:
        OptionError: The folder is no folder of features, holds others, or another run writes to it.
        OSError: It cannot be written.
    """
    arrow, _ = import_pyarrow()
    arrow.array([""])  # the first list makes it import pandas: before there is work, not between two batches
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with _reserved(out, share):
        remove_leftovers(out)
        _check_same(out, facts)
        done = _ids_in(out, str(facts["key"]))
        failed, others = _failures(out, share)
        folder = FeatureFolder(out, facts, share, done, failed, others)
        try:
            yield folder
        finally:
            folder.flush()


def describe(facts: Mapping[str, Any], cases: Cases, rows_of: str, *, half: bool) -> dict[str, Any]:
    """Return the facts of a folder: those of an embedder, and what its columns are."""
    key = "path" if tuple(cases.ids) == tuple(cases.paths) else "id"
    columns = {"columns": list(cases.carried), "key": key, "rows": rows_of, "type": "float16" if half else "float32"}
    return {"schema": 1, **facts, **columns}


def _of_rank(out: Path, stem: str, rank: int, suffix: str) -> Path:
    """A file that each process writes for itself."""
    return out / (f"{stem}-{rank:05d}{suffix}" if rank else f"{stem}{suffix}")


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds anything else: `-o .` in a folder of images is a slip."""
    if out.is_file():
        raise OptionError(f"{out} is a file: a folder is expected, or a name that ends in .npz or .csv")
    if not out.is_dir() or (out / FACTS).exists():
        return
    if strange := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise OptionError(
            f"{out} is no folder of features: it holds {printable(strange[0])} and no {FACTS}. Give a new folder"
        )


@contextmanager
def _reserved(out: Path, share: Share) -> Iterator[None]:
    """Hold the folder for this process; the other processes of one run may hold it too."""
    lock = out / f".rank-{share.rank}-of-{share.world}.lock"
    for other in out.glob(".rank-*.lock"):
        if other.name != lock.name and not other.name.endswith(f"-of-{share.world}.lock"):
            _take(other, out)
            release(other)
    _take(lock, out)
    try:
        yield
    finally:
        release(lock)


def _take(lock: Path, out: Path) -> None:
    rank = lock.name.split("-")[1]
    signs = [_of_rank(out, LOG, int(rank), ".log")] if rank.isdigit() else []
    if not acquire(lock, signs=signs):
        raise OptionError(
            f"another run writes to {out} ({printable(holder_of(lock)) or 'a process that has only begun'}): wait for "
            f"its end, or give another OUT. If that machine is gone, remove {lock}"
        )


def _check_same(out: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts, or refuse a folder whose rows were computed with others."""
    file = out / FACTS
    if not file.exists():
        write_text(file, json.dumps(dict(facts), indent=2) + "\n")
        return
    known = read_facts(out)
    for name in _SAME:
        there, asked = known.get(name), facts.get(name)
        if there != asked:
            what = f"weights ({known['model']} there, {facts['model']} asked for)" if name in _WEIGHTS else name
            raise OptionError(
                f"{out} holds features with another {what}: {_short(there, asked)} there, {_short(asked, there)} asked "
                "for. Give another folder, or ask for the same"
            )
    if changed := [f"{name} {known.get(name)}" for name in _VERSIONS if known.get(name) != facts.get(name)]:
        log.warning("%s was begun with %s: rows from here on may differ by rounding", out, ", ".join(changed))


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
            f"{out / FACTS} cannot be read ({error}): a folder that `zoo embed` wrote has one"
        ) from error
    if not isinstance(facts, dict) or facts.get("schema") != 1:
        raise InputContractError(f"{out / FACTS} is not as this version of the zoo writes it")
    return facts


def parts_in(out: Path) -> list[Path]:
    """The files of rows in a folder, sorted."""
    return sorted(out.glob("part-*.parquet"))


def _ids_in(out: Path, key: str) -> set[str]:
    """Ids of the cases that have rows; a part that a crash cut short is put aside, and its cases done again."""
    pyarrow, parquet = import_pyarrow()
    done: set[str] = set()
    for part in parts_in(out):
        try:
            done.update(parquet.read_table(part, columns=[key]).column(key).to_pylist())
        except (pyarrow.ArrowException, OSError) as error:
            aside = part.with_name(f"{part.name}.damaged")
            part.replace(aside)
            log.warning("%s is damaged (%s): it is called %s now, its cases are done again", part, error, aside.name)
    return done


def _failures(out: Path, share: Share) -> tuple[dict[str, str], dict[str, str]]:
    """The cases that failed before: those whose file this process keeps, and the others. One process keeps them all."""
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    mine = _of_rank(out, FAILED, share.rank, ".csv")
    for file in sorted(out.glob(f"{FAILED}*.csv")):
        found = read_failed(file)
        if share.world == 1 or file == mine:
            own |= found
        else:
            others |= found
    if share.world == 1:
        for file in out.glob(f"{FAILED}-*.csv"):
            file.unlink()
    return own, others


def read_failed(file: Path) -> dict[str, str]:
    """Cases that failed, as cells of a table, and why."""
    with file.open(newline="", encoding="utf-8") as text:
        return {row[0]: row[1] for row in list(csv.reader(text))[1:] if len(row) == 2}


def _packed(found: Sequence[Embedded], kind: str) -> list[Embedded]:
    """The same with features in the folder's type, in one array: many small ones take more than their numbers."""
    import numpy as np

    parts = [each.features for each in found if each.features is not None]
    if not parts:
        return list(found)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    packed = iter(np.split(np.concatenate(parts).astype(kind, copy=False), ends))
    return [each if each.features is None else each._replace(features=next(packed)) for each in found]


def _problem(cases: Cases, each: Embedded) -> str:
    return reason(cases, each) if each.features is None else ""


def _size(each: Embedded) -> int:
    return _CASE_BYTES + (0 if each.features is None else each.features.nbytes)


def _table(rows: Sequence[tuple[Cases, Embedded]], facts: Mapping[str, Any]) -> Any:
    import numpy as np

    arrow, _ = import_pyarrow()
    counts = [len(each.features) for _, each in rows if each.features is not None]
    repeats = np.repeat(np.arange(len(rows)), counts)
    columns = {} if facts["key"] == "path" else {"id": [cases.ids[each.case] for cases, each in rows]}
    columns["path"] = [cases.paths[each.case] for cases, each in rows]
    arrays = {name: arrow.array(cells, arrow.string()).take(repeats) for name, cells in columns.items()}
    for name in facts["columns"]:
        kind = arrow_type(rows[0][0].carried[name])
        arrays[name] = arrow.array([cases.carried[name][each.case] for cases, each in rows], kind).take(repeats)
    if facts["rows"]:
        arrays[facts["rows"]] = arrow.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts]))
    values: NDArray[Any] = np.concatenate([each.features for _, each in rows if each.features is not None])
    flat = arrow.array(values.ravel())
    arrays["feature"] = arrow.FixedSizeListArray.from_arrays(flat, values[0].size)
    return arrow.table(arrays).replace_schema_metadata({"zoo": json.dumps({**facts, "shape": values.shape[1:]})})
