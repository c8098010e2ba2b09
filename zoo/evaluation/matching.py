"""Brings features and the cases of a table together: by id, by path, or by the name of the file."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import InputContractError, OptionError
from zoo.evaluation.labelled import Labelled
from zoo.evaluation.report import Role
from zoo.messages import first_names, printable

if TYPE_CHECKING:
    from zoo.features import FeatureTable

log = logging.getLogger("zoo")

_NAMED = 10


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of some cases, in their order."""

    name: str
    role: Role
    values: NDArray[Any]
    """`(cases, D)`, float32."""
    facts: Mapping[str, Any]
    spare: int
    """Cases among the features that the table does not have."""
    images: Sequence[str | None]
    """Where the features' own table says that the image of each case is."""
    twin: str | None = None
    """Name of the random weights that it is compared with."""

    def take(self, kept: Sequence[int]) -> FeatureSet:
        """Return the features of some cases."""
        return replace(self, values=self.values[list(kept)], images=[self.images[i] for i in kept])

    @property
    def digest(self) -> str:
        """The sha256 of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.values, np.float32).tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Matched:
    """Features of the cases of a table, before those are left out that lack some."""

    features: FeatureSet
    """NaN for cases without."""
    has: NDArray[np.bool_]


def align(values: Any, labelled: Labelled, name: str, role: Role = "encoder") -> Matched:
    """Return features that are in the order of the table's rows, all of them.

    Raises:
        OptionError: There are not as many as rows.
        InputContractError: They are no numbers `(N, D)`.
    """
    array = _checked(np.asarray(values), name)
    if len(array) != labelled.table_rows:
        raise OptionError(
            f"{name}: {len(array)} rows of features for {labelled.table_rows} rows of the table. As many are expected, "
            "in the same order; or give what `zoo.read_features` reads, whose paths or ids are matched"
        )
    own = array[list(labelled.rows)]
    return Matched(FeatureSet(name, role, own, {}, 0, [None] * len(own)), np.ones(len(own), bool))


def match(found: FeatureTable, labelled: Labelled, name: str, role: Role = "encoder") -> Matched:
    """Return the features of the cases of a table.

    They are matched by id, by path as it is written, by the path that is opened, by the name of the file, or by that
    name without its suffix and the id: whichever finds most, the first of those that find as many. Where a case has
    several rows, as of slices, it has their mean.

    Raises:
        OptionError: None matches, or a name of a file stands for several.
        InputContractError: They are no numbers `(N, D)`, or a case is there twice.
    """
    values = _checked(found.features, name)
    best = max(_ways(found, labelled), key=_Way.count, default=None)
    if best is None or not best.count():
        raise OptionError(
            f"none of the {len(labelled)} cases of the table is among the features {name}: the table has "
            f"{first_names(labelled.ids, 3)}, the features {first_names(_theirs(found), 3)}. Give the table that was "
            "embedded, or a column of paths or ids that both have"
        )
    best.check(name)
    position = {key: i for i, key in enumerate(best.ours)}
    of = np.array([position.get(key, -1) for key in best.theirs])
    _check_rows(found, best, of, name)
    counts = np.bincount(of[of >= 0], minlength=len(labelled))
    total = np.zeros((len(labelled), values.shape[1]))
    np.add.at(total, of[of >= 0], values[of >= 0])
    has = counts > 0
    with np.errstate(invalid="ignore"):
        means = (total / np.where(has, counts, np.nan)[:, None]).astype(np.float32)
    known = {*best.all_ours}
    spare = len({key for key in best.theirs if key not in known})
    _say_differences(name, [id for id, own in zip(labelled.ids, has, strict=True) if not own], len(labelled), spare)
    images: list[str | None] = [None] * len(labelled)
    if "path" in found.table:
        opened = _opened(found)
        for row, case in enumerate(of.tolist()):
            if case >= 0:
                images[case] = opened[row]
    return Matched(FeatureSet(name, role, means, dict(found.table.attrs), spare, images), has)


def in_common(sets: Sequence[Matched], labelled: Labelled) -> list[int]:
    """Return the cases of which all sets have features: each is judged on the same ones.

    Raises:
        OptionError: There are none.
    """
    kept: list[int] = np.flatnonzero(np.logical_and.reduce([each.has for each in sets])).tolist()
    if not kept:
        raise OptionError(
            f"no case has features of all of {first_names(each.features.name for each in sets)}: give features of the "
            "same images"
        )
    if spare := len(labelled) - len(kept):
        lost = [labelled.ids[i] for i in sorted(set(range(len(labelled))) - set(kept))]
        log.warning(
            "%d of %d cases lack features of some encoder or baseline and are left out: %s",
            spare,
            len(labelled),
            first_names(lost),
        )
    return kept


def _checked(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.ndim != 2 or values.shape[1] == 0:
        shape = " x ".join(map(str, values.shape))
        way = "embed without --tokens" if values.ndim > 2 else "one row of numbers for each case"
        raise InputContractError(f"{name}: features of shape {shape}; pooled ones (N, D) are expected: {way}")
    if values.dtype.kind not in "fiu":
        raise InputContractError(f"{name}: features of type {values.dtype}: numbers are expected")
    if bad := int((~np.isfinite(values)).any(1).sum()):
        raise InputContractError(f"{name}: {bad} of {len(values)} rows have NaN or infinite features: embed them anew")
    return values


@dataclass(frozen=True)
class _Way:
    """One way to call cases and rows of features."""

    ours: Sequence[str]
    theirs: Sequence[str]
    all_ours: Sequence[str]
    """Of all rows of the table, those without a label too."""
    by_name: bool = False

    def count(self) -> int:
        """Cases that it finds."""
        return len({*self.ours} & {*self.theirs})

    def check(self, name: str) -> None:
        """Raise `OptionError` where it calls two cases alike."""
        seen = set[str]()
        twice = [key for key in self.ours if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        if twice:
            raise OptionError(
                f"{name}: {len(twice)} files of the table are called like another one, in another folder, "
                f"{first_names(twice, _NAMED)}, and the features have them under other paths. Give --data FOLDER, from "
                "which the table's paths lead"
            )


def _ways(found: FeatureTable, labelled: Labelled) -> list[_Way]:
    table, ways = found.table, list[_Way]()
    if "id" in table:
        ways.append(_Way(labelled.ids, _texts(table["id"]), labelled.all_names))
    if "path" not in table:
        return ways
    given, paths = labelled.paths, _texts(table["path"])
    if given is not None:
        ways.append(_Way(given, paths, _all(labelled, given)))
        ways.append(_mapped(labelled, given, _opened(found), lambda path: os.path.abspath(labelled.root / path)))
        ways.append(_mapped(labelled, given, [_name(path) for path in paths], _name, by_name=True))
    ways.append(_Way(labelled.ids, paths, labelled.all_names))
    ways.append(_mapped(labelled, labelled.ids, [_stem(path) for path in paths], _stem, by_name=True))
    return ways


def _mapped(
    labelled: Labelled,
    given: Sequence[str],
    theirs: Sequence[str],
    change: Callable[[str], str],
    *,
    by_name: bool = False,
) -> _Way:
    return _Way([*map(change, given)], theirs, [*map(change, _all(labelled, given))], by_name)


def _all(labelled: Labelled, given: Sequence[str]) -> Sequence[str]:
    """Paths, or ids, of all rows of the table, those without a label too."""
    return labelled.all_paths if given is labelled.paths and labelled.all_paths is not None else labelled.all_names


def _texts(column: Any) -> list[str]:
    return [str(cell) for cell in column]


def _theirs(found: FeatureTable) -> list[str]:
    column = next((name for name in ("id", "path") if name in found.table), None)
    return [] if column is None else _texts(found.table[column])


def _opened(found: FeatureTable) -> list[str]:
    """Paths as they were opened, relative ones from the folder in which the run was started."""
    start = str(found.table.attrs.get("directory") or "")
    return [os.path.abspath(os.path.join(start, path)) for path in _texts(found.table["path"])]


def _name(path: str) -> str:
    return Path(path).name


def _stem(path: str) -> str:
    """A name without its suffixes, that of `.nii.gz` too."""
    return Path(path).name.split(".")[0]


def _check_rows(found: FeatureTable, way: _Way, of: NDArray[Any], name: str) -> None:
    """Raise an error where several files, or a file twice, are taken for one case."""
    if any(column in found.table for column in ("slice", "patch")):
        paths = _texts(found.table["path"]) if way.by_name and "path" in found.table else way.theirs
        rows = list(zip(of.tolist(), paths, strict=True))
        several = [(case, path) for case, path in dict.fromkeys(rows) if case >= 0]
    else:
        several = [(case, key) for case, key in zip(of.tolist(), way.theirs, strict=True) if case >= 0]
    seen = set[int]()
    twice = [key for case, key in several if case in seen or seen.add(case)]  # type: ignore[func-returns-value]
    if twice:
        raise InputContractError(
            f"{name}: {len(twice)} rows of features stand for a case that has one already: "
            f"{first_names(map(printable, twice), _NAMED)}. Several files have one name, or were embedded twice; embed "
            "the table itself, by `zoo embed NAME --list TABLE`"
        )


def _say_differences(name: str, without: Sequence[str], cases: int, spare: int) -> None:
    if without:
        log.warning(
            "%s: %d of %d cases of the table have no features: %s", name, len(without), cases, first_names(without)
        )
    if spare:
        log.warning("%s: %d cases among the features are not in the table", name, spare)
