"""Division of subjects into parts to train on, validate on and test on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.errors import OptionError
from zoo.training.data import seed_of
from zoo.training.evaluate import label_subsets

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one run. No subject is in two parts."""

    name: str
    train: Indices
    val: Indices
    """Empty where nothing is validated."""
    test: Indices


@dataclass(frozen=True, eq=False)
class Subjects:
    """Rows grouped by subject."""

    codes: Indices
    """Class of each row (n,)."""
    of_row: Indices
    """Subject of each row (n,), from 0."""
    classes: Indices
    """Class of each subject: that of its first row."""

    def rows(self, chosen: Indices) -> Indices:
        """Rows of some subjects, in order."""
        return np.flatnonzero(np.isin(self.of_row, chosen))


def class_codes(cells: Sequence[str]) -> tuple[tuple[str, ...], Indices]:
    """Classes of a column, sorted (by value where all are numbers), and each row's position among them.

    Raises:
        OptionError: All rows are of one class.
    """
    try:
        keys: list[float] | list[str] = [float(cell) for cell in cells]
    except ValueError:
        keys = list(cells)
    _, first, codes = np.unique(np.array(keys), return_index=True, return_inverse=True)
    if len(first) < 2:
        raise OptionError(f"all {len(cells)} rows have the label {cells[0]!r}: at least two classes are needed")
    return tuple(cells[i] for i in first), codes.astype(np.int64)


def group_by_subject(codes: Indices, names: Sequence[str]) -> Subjects:
    """Group rows (n,) by the names of their subjects (n,)."""
    _, first, of_row = np.unique(np.array(names), return_index=True, return_inverse=True)
    return Subjects(codes, of_row.astype(np.int64), codes[first])


def stratified_folds(subjects: Subjects, folds: int, classes: Sequence[str], seed: int) -> list[tuple[str, Indices]]:
    """Name and test rows of each of `folds` folds, with the classes in proportion.

    Raises:
        OptionError: A class has fewer subjects than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(subjects.classes, minlength=len(classes))
    if counts.min() < folds:
        raise OptionError(
            f"--folds {folds}: each class needs as many subjects, but there are "
            f"{', '.join(f'{n} of {name!r}' for name, n in zip(classes[:10], counts[:10], strict=True))}"
            f"{' ...' if len(classes) > 10 else ''}"
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(subjects.classes, subjects.classes)
    return [(f"fold{fold}", subjects.rows(held)) for fold, (_, held) in enumerate(parts)]


def site_folds(codes: Indices, sites: Sequence[str]) -> tuple[list[tuple[str, Indices]], dict[str, str]]:
    """Name and test rows of each site, and the reasons why some sites have no AUROC.

    Raises:
        OptionError: There is one site alone.
    """
    names = np.array(sites)
    rows = {site: np.flatnonzero(names == site) for site in sorted(set(sites))}
    if len(rows) < 2:
        raise OptionError(f"leave-site-out needs at least two sites, but there is only {', '.join(rows)}")
    skipped = {
        site: f"all {len(held)} volumes are of one class, so it has no AUROC; its predictions count in the pooled one"
        for site, held in rows.items()
        if len(set(codes[held])) < 2
    }
    return [(re.sub(r"[^\w.-]", "_", f"site{i}-{site}"), held) for i, (site, held) in enumerate(rows.items())], skipped


def make_splits(
    subjects: Subjects,
    folds: Sequence[tuple[str, Indices]],
    *,
    labelled: int = 0,
    repeats: int = 1,
    val_share: float = 0.0,
    seed: int = 0,
) -> list[Split]:
    """Choose training and validation subjects for the test rows of each fold.

    Args:
        subjects: All subjects.
        folds: Name and test rows. No row of a subject with a test row is in another part.
        labelled: Subjects to train and validate on, drawn with the classes in proportion; 0 for all.
        repeats: How often they are drawn.
        val_share: Share of them for validation, at least one of each class; 0 for none.
        seed: Draws follow from it and the fold's number.

    Returns:
        `repeats` splits of each fold, fold after fold.

    Raises:
        OptionError: A fold has fewer subjects than `labelled`, or too few of a class; or it has just as many, so
            several draws would be the same.
    """
    splits = []
    for fold, (name, test) in enumerate(folds):
        pool = np.setdiff1d(np.arange(len(subjects.classes)), subjects.of_row[test])
        if labelled > len(pool):
            raise OptionError(f"--labelled {labelled}: {name} has {len(pool)} subjects to train on")
        if labelled == len(pool) and repeats > 1:
            raise OptionError(f"--labelled {labelled} --repeats {repeats}: all draws of {name} would be the same")
        if missing := set(subjects.classes.tolist()) - set(subjects.classes[pool].tolist()):
            raise OptionError(f"{name}: without its test rows no subject of {len(missing)} class(es) is left")
        try:
            draws = label_subsets(subjects.classes[pool], labelled, repeats, seed_of(seed, fold))
        except OptionError as error:
            raise OptionError(f"--labelled {labelled}: {name}: {error}") from error
        for number, draw in enumerate(draws):
            chosen = pool[draw]
            rng = np.random.default_rng([seed, fold, number])
            held = _hold_out(subjects.classes[chosen], val_share, rng, name) if val_share else np.zeros(0, np.int64)
            train = np.delete(chosen, held)
            called = f"{name}-draw{number}" if labelled else name
            splits.append(Split(called, subjects.rows(train), subjects.rows(chosen[held]), test))
    return splits


def _hold_out(classes: Indices, share: float, rng: np.random.Generator, name: str) -> Indices:
    """Positions of a share of each class, at least one and not all."""
    held = []
    for code in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == code))
        count = max(1, math.floor(share * len(members) + 0.5))
        if count >= len(members):
            raise OptionError(f"--val-share {share}: {name} has {len(members)} subject(s) of a class to train on")
        held.append(members[:count])
    return np.sort(np.concatenate(held))
