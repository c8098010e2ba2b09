"""Files of features: one row per subject, in Parquet or `.npz`, with a description of their weights and locations.

While a cohort is embedded, finished rows lie beside the future file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.embedding import holding_finished, read_facts
from zoo.errors import InputContractError, OptionError
from zoo.features import import_pyarrow, read_parts, read_rows, write_rows
from zoo.files import write_atomically
from zoo.training.arrays import save_array

SUFFIXES = (".parquet", ".npz")
_SUBJECT = "sid"
_SAME = ("weights", "locations")
"""Facts that all features in one file or folder must share."""
_SAME_IF_KNOWN = ("registration",)
"""Those that they must share where both say them; patches from elsewhere come without."""


@dataclass(frozen=True, eq=False)
class SubjectFeatures:
    """Pooled features of some subjects."""

    sids: tuple[str, ...]
    values: npt.NDArray[np.float32]
    """(n, D), a row for each subject."""
    facts: dict[str, Any]
    """Digests of weights and locations, and, as far as known, the weights' origin and the patches' registration."""


def check_suffix(path: Path) -> None:
    """Raise `OptionError` for a name without a known suffix, or a format whose package is not installed."""
    if path.suffix not in SUFFIXES:
        raise OptionError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        import_pyarrow()


def write_subject_features(path: Path, features: SubjectFeatures) -> None:
    """Write features by `zoo.features.write_rows`, with the column `sid`.

    Raises:
        OptionError: The name does not end in .parquet or .npz, or pyarrow is not installed.
    """
    check_suffix(path)
    write_rows(path, {_SUBJECT: features.sids}, features.values, features.facts)


def read_subject_features(path: str | Path) -> SubjectFeatures:
    """Read a file of `write_subject_features`, or another with a column or array `sid` and numbers beside it.

    Raises:
        OptionError: The file does not exist, its name has another suffix, or pyarrow is not installed.
        InputContractError: The file cannot be read, has no subjects, repeats one, or has values that are not finite.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise OptionError(f"there are no features at {path}: python -m zoo.entries.drasclr.embed writes them")
    sids, values, facts = read_rows(path, _SUBJECT)
    if values.ndim != 2 or len(values) != len(sids) or not values.size or values.dtype.kind not in "iuf":
        raise InputContractError(
            f"{path} has features {values.dtype} {values.shape} of {len(sids)} subject(s): a row of numbers for each "
            "is expected"
        )
    if len(set(sids)) < len(sids):
        raise InputContractError(f"{path}: {len(sids) - len(set(sids))} of its {len(sids)} rows repeat a subject")
    if broken := [sid for sid, row in zip(sids, values, strict=True) if not np.isfinite(row).all()]:
        raise InputContractError(f"{path}: {len(broken)} row(s) are NaN or infinite, of {', '.join(broken[:5])}")
    return SubjectFeatures(sids, values.astype(np.float32), facts)


def merge(parts: Iterable[SubjectFeatures]) -> SubjectFeatures:
    """Join the rows of several files, sorted by subject; a later file's row replaces an earlier one's.

    Args:
        parts: At least one, all with the same facts, as far as each knows them.
    """
    rows: dict[str, npt.NDArray[np.float32]] = {}
    facts: dict[str, Any] = {}
    for part in parts:
        rows |= dict(zip(part.sids, part.values, strict=True))
        facts |= part.facts
    sids = tuple(sorted(rows))
    return SubjectFeatures(sids, np.stack([rows[sid] for sid in sids]), facts)


def finished(out: Path, facts: Mapping[str, Any], rows: Path | None = None) -> set[str]:
    """Subjects in OUT; if all rows are to be kept, those that are in their folder, too.

    Raises:
        OptionError: Those features, or what an earlier run left beside them, are of other weights, at other locations,
            or from another registration.
    """
    done: set[str] = set()
    if any(parts_of(out).glob("part-*")):
        _check_same(parts_of(out), read_facts(parts_of(out)), facts)
    if out.is_file():
        found = read_subject_features(out)
        _check_same(out, found.facts, facts)
        done.update(found.sids)
    if rows is None:
        return done
    if (note := rows / "facts.json").is_file():
        _check_same(rows, json.loads(note.read_text()), facts)
    return {sid for sid in done if rows_file(rows, sid).is_file()}


def parts_of(out: Path) -> Path:
    """Folder, beside OUT, of the rows at all landmarks of subjects that are not yet in it."""
    return out.with_name(f"{out.name}.parts")


def join_parts(out: Path, rows: Path | None, facts: Mapping[str, Any]) -> None:
    """Move what lies beside OUT into it, once all processes have come to their end.

    Args:
        out: The file.
        rows: Folder for all rows of each subject; None for none.
        facts: Those of the rows.
    """
    parts = parts_of(out)
    with holding_finished(parts) as is_ours:
        if not is_ours:
            return
        found = [read_subject_features(out)] if out.is_file() else []
        for values, table in read_parts(parts):
            sids = tuple(table.column("id").unique().to_pylist())
            of_each = values.reshape(len(sids), -1, values.shape[-1])
            if rows is not None:
                note_facts(rows, facts)
                for sid, own in zip(sids, of_each, strict=True):
                    save_rows(rows, sid, own)
            found.append(SubjectFeatures(sids, of_each.mean(1, dtype=np.float64).astype(np.float32), dict(facts)))
        if any(parts.glob("part-*.parquet")):
            write_subject_features(out, merge(found))
        shutil.rmtree(parts)


def rows_file(folder: Path, sid: str) -> Path:
    """File with all rows of one subject."""
    return folder / f"{sid}_features.npy"


def save_rows(folder: Path, sid: str, rows: npt.NDArray[np.float32]) -> None:
    """Write the features (L, D) of one subject."""
    save_array(rows_file(folder, sid), rows)


def note_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the description of the rows into their folder."""
    write_atomically(folder / "facts.json", lambda path: path.write_text(json.dumps(facts)))


def _check_same(path: Path, found: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    other = [name for name in _SAME if found.get(name) != facts[name]]
    other += [name for name in _SAME_IF_KNOWN if name in found and name in facts and found[name] != facts[name]]
    if other:
        raise OptionError(f"{path} has features of other {' and '.join(other)}: name another file or folder to write")
