"""The task regress: numbers of images, each standardised by the training part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.formats import Task as TaskName
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.labelled import Cohort, ImageTrial, read_cohort
from zoo.tasks.labels import numbers_in
from zoo.tasks.measures import (
    FEW,
    Measure,
    all_with_intervals,
    difference_of,
    mean_error_of,
    mean_of,
    mean_over,
    parts_of,
    r2_of,
    rank_correlation_of,
    where_known,
    with_interval,
)
from zoo.tasks.outputs import Outputs
from zoo.tasks.splits import Split
from zoo.tasks.task import Answers, Trial
from zoo.training.distributed import Processes
from zoo.training.metrics import Floats, Results, or_none
from zoo.training.runlog import Metrics

NUMBER = "number"
_STRATA = 4


class Regress:
    """The task, as `zoo.tasks.task.Task`. Answers are `number` `(N, K)`, in units of the table."""

    name: TaskName = "regress"

    def __init__(self, cohort: Cohort) -> None:
        self.cohort, self.cases = cohort, cohort.cases
        self.groups: Sequence[str] = cohort.groups
        self.names, self.contract, self.most = cohort.columns.names, cohort.contract, cohort.most
        self.scale: tuple[Floats, Floats] = (np.zeros(len(self.names)), np.ones(len(self.names)))
        """Mean and standard deviation of the training part of the present trial."""

    def labels(self) -> list[str]:
        """Return the cells of the label columns of each case."""
        return self.cohort.labels()

    def strata(self) -> list[str]:
        """Return the quarter of the values that each case's first number is in."""
        first = self.cohort.columns.values[:, 0]
        ends = np.nanquantile(first, np.linspace(0, 1, _STRATA + 1)[1:-1])
        return [str(int(np.searchsorted(ends, value))) for value in first]

    def count(self, rows: Sequence[int]) -> Results:
        """Return cases, groups, and the mean and deviation of each number."""
        values = self.cohort.truth(rows)
        said = {
            name: {
                "known": int(np.isfinite(own).sum()),
                "mean": or_none(np.nanmean(own)),
                "std": or_none(np.nanstd(own)),
            }
            for name, own in zip(self.names, values.T, strict=True)
            if np.isfinite(own).any()
        }
        return {**self.cohort.count(rows), "numbers": said}

    def check(self, split: Split) -> list[str]:
        """Return what to warn of; raises `OptionError` where a part has no numbers, or the training part one alone."""
        said = []
        for part, rows in split.items():
            for name, own in zip(self.names, self.cohort.truth(rows).T, strict=True):
                known = own[np.isfinite(own)]
                if len(np.unique(known)) < 2:
                    raise OptionError(
                        f"the {part} part has {len(np.unique(known))} different values of {name} in {len(rows)} cases: "
                        "at least two are needed to learn or judge from. Give more cases, or divide them by --split"
                    )
                if len(known) < FEW:
                    said.append(f"the {part} part has {len(known)} values of {name}: fewer than {FEW} tell little")
        return said

    def begin(self, network: nn.Module, args: FinetuneArgs, split: Split, processes: Processes) -> ImageTrial:
        """Make a trial of a network; its targets are standardised by the training part."""
        self.scale = self._scale(split)
        mean, deviation = self.scale
        labels = (self.cohort.columns.values - mean) / deviation
        return self.cohort.begin(network, args, split, processes, labels=labels)

    def metrics(self, rows: Sequence[int], found: Tensor) -> Metrics:
        """Return the mean squared error of the standardised numbers as `loss`, and the mean `r2`."""
        mean, deviation = self.scale
        truth = self.cohort.truth(rows)
        squares = ((truth - mean) / deviation - found.numpy()) ** 2
        r2 = self._mean_r2(truth, found.numpy() * deviation + mean)
        return {"loss": float(np.nanmean(squares)), "r2": r2(np.ones(len(rows)))}

    def outputs(self, split: Split, found: Tensor) -> Outputs:
        """Return the kind of outputs, with means and deviations of the training part."""
        mean, deviation = self._scale(split)
        return Outputs("numbers", means=tuple(mean.tolist()), deviations=tuple(deviation.tolist()))

    def answers(self, found: Tensor, outputs: Outputs) -> Answers:
        """Return `number`."""
        return {NUMBER: outputs.answers(found.numpy())}

    def judge(self, rows: Sequence[int], answers: Answers, folds: Sequence[int] = ()) -> Results:
        """Return mean R2, and R2, mean absolute error and rank correlation of each number, with intervals.

        Numbers of all folds have the table's unit: their errors are judged at once. The rank correlation, which sees
        the order alone, is the mean over folds.
        """
        return self.cohort.judge(self._judged, rows, answers, folds, means_of_folds=["rank_correlation"])

    def _judged(self, rows: Sequence[int], answers: Answers, folds: Sequence[int], rounds: int) -> Results:
        truth, groups, found = self.cohort.truth(rows), self.cohort.own_groups(rows), answers[NUMBER]
        parts, each = parts_of(folds, len(rows)), {}
        for k, name in enumerate(self.names):
            known = np.isfinite(truth[:, k])
            own = [group for group, is_known in zip(groups, known, strict=True) if is_known]
            is_true, is_said, own_parts = truth[known, k], found[known, k], [part[known] for part in parts]
            ranks = [rank_correlation_of(is_true[part], is_said[part]) for part in own_parts]
            measures = {
                "r2": r2_of(is_true, is_said),
                "mean_absolute_error": mean_error_of(is_true, is_said),
                "rank_correlation": mean_over(own_parts, ranks),
            }
            each[name] = {"known": int(known.sum()), **all_with_intervals(measures, own, rounds=rounds)}
        r2 = with_interval(self._mean_r2(truth, found), groups, rounds=rounds)
        return {"cases": len(rows), "r2": r2["value"], "r2_interval": [r2["low"], r2["high"]], "numbers": each}

    def compare(self, rows: Sequence[int], answers: Answers, twin: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the gain in mean R2 over the training from random weights, with its paired interval."""
        truth = self.cohort.truth(rows)
        own, other = (self._mean_r2(truth, each[NUMBER]) for each in (answers, twin))
        gain = with_interval(difference_of(own, other), self.cohort.own_groups(rows))
        return {"of": "R2", "gain": gain["value"], "low": gain["low"], "high": gain["high"]}

    def rarest(self, rows: Sequence[int]) -> None:
        """Return None: there are no classes of cases."""

    def write(self, rows: Sequence[int], answers: Answers, out: Path, *, folds: Sequence[int] = ()) -> None:
        """Write `predictions.csv`."""
        columns = [[f"{value:.6g}" for value in column] for column in answers[NUMBER].T]
        self.cohort.write(rows, Outputs("numbers"), columns, out, folds=folds)

    def draw(self, trial: Trial, rows: Sequence[int], answers: Answers, out: Path) -> None:
        """Draw what was found against the truth."""
        from zoo.tasks.pictures import draw_numbers

        draw_numbers(out / "numbers.png", self.cohort.truth(rows), answers[NUMBER], self.names)

    def _scale(self, split: Split) -> tuple[Floats, Floats]:
        values = self.cohort.truth(split["train"])
        return np.nanmean(values, 0), np.nanstd(values, 0)

    def _mean_r2(self, truth: Floats, found: NDArray[Any]) -> Measure:
        return mean_of([where_known(r2_of, *pair) for pair in zip(truth.T, found.T, strict=True)])


def regress(args: FinetuneArgs) -> Regress:
    """Read the task of a run."""
    return Regress(read_cohort(args, numbers_in))
