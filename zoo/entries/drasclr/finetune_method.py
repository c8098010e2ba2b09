"""DrasCLR's downstream method: linear probes of pooled features for numbers, classes and survival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from zoo.entries.drasclr.survival import concordance, fit_cox, partial_likelihood
from zoo.errors import OptionError
from zoo.training.evaluate import linear_probe
from zoo.training.metrics import Results, mean_auroc, summarise

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Fold = tuple[Indices, Indices]
"""Rows to fit on, rows to test on."""

TASKS = ("regression", "classification", "survival")
PENALTIES = tuple(10.0**k for k in range(-4, 3))
"""Weights of the squared coefficients, relative to the mean loss; one is chosen inside the training rows."""
_INNER = 5
_MOST_CLASSES = 20


@dataclass(frozen=True, eq=False)
class Target:
    """Values to predict, one for each subject."""

    task: str
    values: Floats
    """(n,): the number, the position of the class among `classes`, or the time until event or end of observation."""
    event: Bools | None = None
    """(n,), for survival: whether there was an event."""
    classes: tuple[str, ...] = ()

    def take(self, rows: Indices) -> Target:
        """The target of some rows."""
        return replace(self, values=self.values[rows], event=None if self.event is None else self.event[rows])

    @property
    def strata(self) -> Indices:
        """Strata that are divided evenly among folds, (n,): classes or events; all 0 for numbers."""
        if self.task == "regression":
            return np.zeros(len(self.values), dtype=np.int64)
        return (self.values if self.event is None else self.event).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Validation:
    """Results of a cross-validation."""

    folds: list[Results]
    """For each fold the number of test subjects, and the metrics."""
    of_fold: Indices
    """(n,): the fold that tested each row."""
    scores: Floats
    """(n,) or (n, C): predictions for each row, by the fold that tested it."""

    @property
    def summary(self) -> Results:
        """Mean and standard deviation (n - 1) of each metric over folds."""
        return summarise([{name: fold[name] for name in fold if name != "test"} for fold in self.folds])


def read_target(rows: Mapping[str, Mapping[str, str]], column: str, *, event: str = "", task: str = "auto") -> Target:
    """Read the values to predict from the rows of a table.

    Args:
        rows: Subject -> its cells; none of those needed here is empty.
        column: A number, a class, or with `event` a time.
        event: Column of 0 and 1; empty for other tasks than survival.
        task: One of `TASKS`, or "auto": survival where there is an event column, classes where cells are not numbers or
            have two values, else numbers.

    Raises:
        OptionError: Cells do not fit the task, or are all the same.
    """
    cells = {sid: row[column].strip() for sid, row in rows.items()}
    numbers = {sid: _number(cell) for sid, cell in cells.items()}
    if len(set(cells.values())) < 2:
        raise OptionError(
            f"{column} is {next(iter(cells.values()))!r} for all {len(cells)} subjects: there is nothing to predict"
        )
    if task == "auto":
        are_classes = None in numbers.values() or len(set(numbers.values())) == 2
        task = "survival" if event else "classification" if are_classes else "regression"
    if bool(event) != (task == "survival"):
        raise OptionError(
            f"--task {task} {'with' if event else 'without'} --event: survival needs it, and no other task has it"
        )
    if task == "classification":
        return _read_classes(list(cells.values()), column)
    if wrong := [f"{sid} {cells[sid]!r}" for sid, x in numbers.items() if x is None or (event and x < 0)]:
        raise OptionError(
            f"{column}: {'times from 0 on' if event else 'finite numbers'} are expected, not {', '.join(wrong[:5])}"
        )
    values = np.array(list(numbers.values()), dtype=float)
    if not event:
        return Target(task, values)
    events = {sid: _number(row[event].strip()) for sid, row in rows.items()}
    if wrong := [f"{sid} {rows[sid][event]!r}" for sid, x in events.items() if x not in (0.0, 1.0)]:
        raise OptionError(f"{event}: 1 for an event and 0 for none are expected, not {', '.join(wrong[:5])}")
    return Target(task, values, np.array(list(events.values()), dtype=bool))


def cross_validate(x: Floats, target: Target, groups: Sequence[str], *, folds: int = 5, seed: int = 0) -> Validation:
    """Fit a linear probe on all folds but one and test it there, each in turn.

    Args:
        x: Features `(n, D)`.
        target: Of n subjects.
        groups: `(n,)`: rows of one group are never in two folds.
        folds: Number of folds.
        seed: Of the folds.

    Raises:
        OptionError: There are too few groups, members of a class, or events for the folds.
    """
    names = np.asarray(groups)
    parts = make_folds(target, names, folds, seed)
    found, of_fold, scores = [], np.zeros(len(x), dtype=np.int64), []
    for i, (train, test) in enumerate(parts):
        scores.append(predict(x[train], target.take(train), x[test], names[train], seed=seed))
        found.append({"test": len(test), **metrics(target.take(test), scores[-1])})
        of_fold[test] = i
    order = np.concatenate([test for _, test in parts]).argsort()
    return Validation(found, of_fold, np.concatenate(scores)[order])


def make_folds(target: Target, groups: npt.NDArray[np.str_], folds: int, seed: int) -> list[Fold]:
    """Divide rows into folds, no group in two, each with classes or events in proportion.

    Raises:
        OptionError: There are too few groups, members of a class, or events for the folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    counted = (1,) if target.event is not None else np.unique(target.strata)
    rarest = min(len(set(groups[target.strata == code])) for code in counted)
    needed = folds * (2 if target.task == "regression" else 1)
    if rarest < needed:
        of = {"regression": "", "classification": " of each class", "survival": " with an event"}[target.task]
        raise OptionError(f"{folds} folds need {needed} subjects{of}, but there are {rarest}: give fewer --folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts: list[Fold] = list(splitter.split(groups, target.strata, groups))
    return parts


def predict(x: Floats, target: Target, points: Floats, groups: npt.NDArray[np.str_], *, seed: int = 0) -> Floats:
    """Fit a probe whose penalty is chosen by folds inside its own rows, and apply it.

    Args:
        x: `(n, D)`, features to fit on; they are standardised.
        target: Of n subjects.
        points: `(m, D)`.
        groups: `(n,)`, rows that are never on both sides of a fold (the inner folds of classes do not look at them).
        seed: Of the folds.

    Returns:
        `(m,)`: numbers, decisions for the second of two classes, or risks; of more classes decisions `(m, C)`.
    """
    if target.task == "classification":
        return linear_probe(x, target.strata, points, seed=seed)
    from sklearn.model_selection import GroupKFold

    deviation = x.std(0)
    deviation[deviation < 1e-12] = 1.0
    x, points = (x - x.mean(0)) / deviation, (points - x.mean(0)) / deviation
    inner = list(GroupKFold(min(_INNER, len(set(groups)))).split(x, groups=groups))
    if target.event is None:
        return _ridge(x, target.values, points, inner)
    return _cox(x, target.values, target.event, points, inner)


def metrics(target: Target, scores: Floats) -> Results:
    """Judge scores `(n,)` or `(n, C)`: `r2` and `mae` of numbers, `auroc` of classes, `c_index` of risks."""
    if target.task == "classification":
        return {"auroc": mean_auroc(target.strata, scores)}
    if target.event is not None:
        return {"c_index": concordance(target.values, target.event, scores)}
    from sklearn.metrics import r2_score

    return {"r2": float(r2_score(target.values, scores)), "mae": float(np.abs(target.values - scores).mean())}


def _ridge(x: Floats, values: Floats, points: Floats, inner: list[Fold]) -> Floats:
    from sklearn.linear_model import RidgeCV

    penalties = [penalty * len(x) for penalty in PENALTIES]
    model = RidgeCV(penalties, cv=inner, scoring="neg_mean_squared_error").fit(x, values)
    found: Floats = model.predict(points)
    return found


def _cox(x: Floats, time: Floats, event: Bools, points: Floats, inner: list[Fold]) -> Floats:
    """Risks with the penalty of the greatest cross-validated likelihood: that of all rows minus the fitted rows'."""

    def quality(penalty: float) -> float:
        total = 0.0
        for rest, _ in inner:
            b = fit_cox(x[rest], time[rest], event[rest], penalty)
            total += partial_likelihood(x, time, event, b)[0]
            total -= partial_likelihood(x[rest], time[rest], event[rest], b)[0]
        return total

    best = max(PENALTIES, key=quality)
    return points @ fit_cox(x, time, event, best)


def _read_classes(cells: list[str], column: str) -> Target:
    """Classes, in the order of their numbers if they are numbers, and the position of each cell among them."""
    names = sorted(set(cells), key=lambda cell: (_number(cell) is None, _number(cell) or 0.0, cell))
    if len(names) > _MOST_CLASSES:
        raise OptionError(
            f"{column} has {len(names)} classes, more than {_MOST_CLASSES}. If all cells are numbers, give --task "
            "regression"
        )
    return Target("classification", np.array([names.index(cell) for cell in cells], dtype=float), classes=tuple(names))


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
