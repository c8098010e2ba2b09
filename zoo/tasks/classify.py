"""The task classify: labels, each with a probability of its own, or classes of which one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.formats import Task as TaskName
from zoo.messages import first_names
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.labelled import Cohort, ImageTrial, read_cohort
from zoo.tasks.labels import classes_or_labels
from zoo.tasks.measures import (
    FEW,
    Measure,
    all_with_intervals,
    auroc_of,
    average_precision_of,
    calibration_error_of,
    difference_of,
    mean_of,
    mean_over,
    of_folds,
    parts_of,
    share_of,
    where_known,
    with_interval,
)
from zoo.tasks.outputs import Outputs
from zoo.tasks.pictures import draw_cases, draw_reliability
from zoo.tasks.splits import Split
from zoo.tasks.task import Answers, Trial
from zoo.tasks.telling import Rarest, rarest_of
from zoo.training.distributed import Processes
from zoo.training.metrics import Array, Floats, Results
from zoo.training.runlog import Metrics

_MANY_CLASSES = 10
"""Of more whole numbers than that in a column it is likely that they were measured."""
PROBABILITY, DECIDED, THRESHOLD = "probability", "decided", "threshold"


class Classify:
    """The task, as `zoo.tasks.task.Task`.

    Answers are, of each output, `probability` `(N, K)`, `decided`, 0 or 1, and `threshold`, as `Outputs.limits` has it.
    """

    name: TaskName = "classify"

    def __init__(self, cohort: Cohort) -> None:
        self.cohort, self.cases = cohort, cohort.cases
        self.groups: Sequence[str] = cohort.groups
        self.names, self.contract, self.most = cohort.columns.names, cohort.contract, cohort.most
        self.kind = cohort.columns.kind

    def truth(self, rows: Sequence[int]) -> Floats:
        """Return of each output whether it holds, `(cases, K)`: 0, 1, or NaN where that is not known."""
        values = self.cohort.truth(rows)
        if self.kind == "labels":
            return values
        found: Floats = (values == np.arange(len(self.names))).astype(float)
        return found

    def labels(self) -> list[str]:
        """Return the cells of the label columns of each case."""
        return self.cohort.labels()

    def strata(self) -> list[str]:
        """Return the class of each case; of several labels the rarest one that it has."""
        truth = self.truth(range(len(self.cases)))
        if self.kind == "classes":
            return [self.names[i] for i in truth.argmax(1)]
        by_rarity = np.argsort(np.nansum(truth, 0), kind="stable")
        return [next((self.names[k] for k in by_rarity if row[k] == 1), "") for row in truth]

    def count(self, rows: Sequence[int]) -> Results:
        """Return cases, groups, and how many have each label or class."""
        found = np.nansum(self.truth(rows), 0)
        counts = {name: int(n) for name, n in zip(self.names, found, strict=True)}
        return {**self.cohort.count(rows), "positives" if self.kind == "labels" else "classes": counts}

    def check(self, split: Split) -> list[str]:
        """Return what to warn of; raises `OptionError` where a part lacks what is to be told apart."""
        said = []
        for part, rows in split.items():
            counts = self._counts(rows)
            lacking = {name: n for name, n in counts.items() if not min(n)}
            if lacking and (part == "train" or self.kind == "classes" or len(lacking) == len(counts)):
                measured = "; for measured numbers give --task regress" if len(counts) > _MANY_CLASSES else ""
                raise OptionError(
                    f"the {part} part, {len(rows)} cases, lacks what is to be told apart: {_in_words(lacking)}. Give "
                    f"more cases, join rare classes, or divide the cases otherwise by --split or --seed{measured}"
                )
            if lacking:
                said.append(f"the {part} part says nothing of {_in_words(lacking)}")
            if rare := {name: n for name, n in counts.items() if name not in lacking and min(n) < FEW}:
                said.append(f"the {part} part has {_in_words(rare)}: fewer than {FEW} tell little")
        return said

    def _counts(self, rows: Sequence[int]) -> dict[str, tuple[int, int]]:
        """How many cases have each label or class, and how many have not."""
        truth = self.truth(rows)
        return {
            name: (int((own == 1).sum()), int((own == 0).sum())) for name, own in zip(self.names, truth.T, strict=True)
        }

    def begin(self, network: nn.Module, args: FinetuneArgs, split: Split, processes: Processes) -> ImageTrial:
        """Make a trial of a network."""
        return self.cohort.begin(network, args, split, processes, labels=self.cohort.columns.values)

    def metrics(self, rows: Sequence[int], found: Tensor) -> Metrics:
        """Return the mean negative log-likelihood as `loss`, and the mean `auroc` over outputs."""
        truth, probability = self.truth(rows), self._probabilities(found)
        likelihood = np.where(truth == 1, probability, 1 - probability if self.kind == "labels" else 1.0)
        surprise = -np.log(np.clip(likelihood, 1e-12, 1))
        loss = float(surprise[np.isfinite(truth)].mean()) * (len(self.names) if self.kind == "classes" else 1)
        auroc = self._mean_auroc(truth, probability, parts_of((), len(rows)))
        return {"loss": loss, "auroc": auroc(np.ones(len(rows)))}

    def outputs(self, split: Split, found: Tensor) -> Outputs:
        """Return the kind of outputs, with the threshold of each label, or of the second of two classes."""
        truth, probability = self.truth(split["val"]), self._probabilities(found)
        if self.kind == "labels":
            return Outputs("labels", tuple(threshold_of(*pair) for pair in zip(truth.T, probability.T, strict=True)))
        return Outputs("classes", (threshold_of(truth[:, 1], probability[:, 1]),) if len(self.names) == 2 else ())

    def answers(self, found: Tensor, outputs: Outputs) -> Answers:
        """Return `probability`, `decided` and `threshold`."""
        probability = outputs.answers(found.numpy())
        decided = outputs.decisions(probability)
        if self.kind == "classes":
            decided = decided[:, None] == np.arange(len(self.names))
        limits = np.broadcast_to(outputs.limits(len(self.names)), probability.shape)
        return {PROBABILITY: probability, DECIDED: decided.astype(bool), THRESHOLD: limits}

    def judge(self, rows: Sequence[int], answers: Answers, folds: Sequence[int] = ()) -> Results:
        """Return mean AUROC, all measures of each output, and of each site, with intervals.

        Of folds what orders cases is the mean over them. All cases are judged at once by decisions, each at the
        threshold of its fold, and by calibration: 0.8 says the same whichever network says it.
        """
        return self.cohort.judge(self._judged, rows, answers, folds, means_of_folds=["auroc", "average_precision"])

    def _judged(self, rows: Sequence[int], answers: Answers, folds: Sequence[int], rounds: int) -> Results:
        truth, groups = self.truth(rows), self.cohort.own_groups(rows)
        probability, decided = answers[PROBABILITY], answers[DECIDED]
        parts, each = parts_of(folds, len(rows)), {}
        for k, name in enumerate(self.names):
            known = np.isfinite(truth[:, k])
            own = [group for group, is_known in zip(groups, known, strict=True) if is_known]
            measures = _measures(truth[known, k], probability[known, k], decided[known, k], [p[known] for p in parts])
            each[name] = {
                "positives": int(truth[known, k].sum()),
                "negatives": int((truth[known, k] == 0).sum()),
                **_thresholds_in(answers[THRESHOLD][:, k]),
                **all_with_intervals(measures, own, rounds=rounds),
            }
        auroc = with_interval(self._mean_auroc(truth, probability, parts), groups, rounds=rounds)
        results: Results = {"cases": len(rows), "auroc": auroc.pop("value"), "auroc_interval": list(auroc.values())}
        if self.kind == "classes":
            results["accuracy"] = float((decided & (truth == 1)).any(1).mean())
        return {**results, "labels" if self.kind == "labels" else "classes": each}

    def compare(self, rows: Sequence[int], answers: Answers, twin: Answers, folds: Sequence[int] = ()) -> Results:
        """Return the gain in mean AUROC over the training from random weights, with its paired interval."""
        truth, parts = self.truth(rows), parts_of(folds, len(rows))
        own, other = (self._mean_auroc(truth, each[PROBABILITY], parts) for each in (answers, twin))
        gain = with_interval(difference_of(own, other), self.cohort.own_groups(rows))
        return {"of": of_folds("AUROC", folds), "gain": gain["value"], "low": gain["low"], "high": gain["high"]}

    def rarest(self, rows: Sequence[int]) -> Rarest | None:
        """Return the class that the fewest groups of some cases have, or a label that they have or have not."""
        columns = list(zip(self.names, self.truth(rows).T, strict=True))
        if self.kind == "classes":
            held = [(f"of class {name}", own == 1) for name, own in columns]
        else:
            held = [(f"{word} {name}", own == v) for name, own in columns for word, v in (("with", 1), ("without", 0))]
        return rarest_of(held, self.cohort.own_groups(rows))

    def write(self, rows: Sequence[int], answers: Answers, out: Path, *, folds: Sequence[int] = ()) -> None:
        """Write `predictions.csv`."""
        columns: list[Any] = [[f"{p:.6f}" for p in column] for column in answers[PROBABILITY].T]
        if self.kind == "labels":
            columns += [column.astype(int).tolist() for column in answers[DECIDED].T]
        else:
            columns.append([self.names[i] for i in answers[DECIDED].argmax(1)])
        outputs = Outputs("labels" if self.kind == "labels" else "classes")
        self.cohort.write(rows, outputs, columns, out, folds=folds)

    def draw(self, trial: Trial, rows: Sequence[int], answers: Answers, out: Path) -> None:
        """Draw the reliability diagram, and the surest right and wrong cases."""
        truth = self.truth(rows)
        draw_reliability(out / "reliability.png", truth, answers[PROBABILITY], self.names)
        ids, plane = [self.cases.ids[i] for i in rows], self.cohort.entry.augment.plane
        draw_cases(out / "surest.png", trial.data["test"], ids, truth, answers, self.names, plane=plane)

    def _probabilities(self, found: Tensor) -> Array:
        """Probabilities of outputs, before there are thresholds."""
        return Outputs("labels" if self.kind == "labels" else "classes").answers(found.numpy())

    def _mean_auroc(self, truth: Floats, probability: Array, parts: Sequence[Array]) -> Measure:
        """Mean AUROC over labels, or over classes against all others; of two classes that of the second.

        It is that of each part of the cases, and their mean.
        """
        wanted = [1] if self.kind == "classes" and len(self.names) == 2 else range(len(self.names))
        return mean_over(
            parts, [mean_of([where_known(auroc_of, truth[p, k], probability[p, k]) for k in wanted]) for p in parts]
        )


def classify(args: FinetuneArgs) -> Classify:
    """Read the task of a run."""
    return Classify(read_cohort(args, partial(classes_or_labels, uncertain=args.uncertain)))


def _in_words(counts: Mapping[str, tuple[int, int]]) -> str:
    return first_names([f"{name} in {n} cases and {rest} without it" for name, (n, rest) in counts.items()])


def threshold_of(truth: Array, probability: Array) -> float:
    """The threshold with the largest sum of sensitivity and specificity (Youden's J), between two probabilities.

    One half where only one value is known, and of several the one in the middle.
    """
    known = np.isfinite(truth)
    positive, p = truth[known] == 1, probability[known]
    distinct = np.unique(p)
    if not positive.any() or positive.all() or len(distinct) < 2:
        return 0.5
    candidates = (distinct[1:] + distinct[:-1]) / 2
    j = _share_from(p[positive], candidates) - _share_from(p[~positive], candidates)
    best = np.flatnonzero(j >= j.max() - 1e-12)
    return float(candidates[best[len(best) // 2]])


def _share_from(values: Array, candidates: Array) -> Array:
    """The share of values that are not below each candidate, without a table of all pairs."""
    share: Array = 1 - np.searchsorted(np.sort(values), candidates) / len(values)
    return share


def _measures(truth: Array, probability: Array, decided: Array, parts: Sequence[Array]) -> dict[str, Measure]:
    positive = truth == 1
    return {
        "auroc": mean_over(parts, [auroc_of(truth[p], probability[p]) for p in parts]),
        "average_precision": mean_over(parts, [average_precision_of(truth[p], probability[p]) for p in parts]),
        "sensitivity": share_of(decided, positive),
        "specificity": share_of(~decided, ~positive),
        "calibration_error": calibration_error_of(truth, probability),
    }


def _thresholds_in(column: Array) -> Results:
    """The threshold by which an output was decided on, or those of several folds; nothing where there is none."""
    found = np.unique(column[np.isfinite(column)]).tolist()
    return {"threshold": found[0]} if len(found) == 1 else {"thresholds": found} if found else {}
