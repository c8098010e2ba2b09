"""The folds of a cross-validation together: their answers for all cases, and the network that learns from all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from zoo.messages import counted
from zoo.progress import say
from zoo.tasks.args import FinetuneArgs, finetune_command
from zoo.tasks.arms import Arm, Finished, arguments_of, fit_arm, take_best
from zoo.tasks.saved import FINAL, write_model
from zoo.tasks.task import Answers, Rows, Task
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.metrics import Results


class Pooled(NamedTuple):
    """The test parts of all trainings together."""

    rows: Rows
    answers: Answers
    folds: list[int]
    """In which training each case was tested, from 0."""


def pooled(arms: Sequence[Arm], finished: Sequence[Finished], *, of_twins: bool = False) -> Pooled:
    """The test parts of all trainings together: their cases, and the answers for them."""
    own = own_folds(arms, finished, of_twins=of_twins)
    names = own[0][1].answers if own else ()
    return Pooled(
        [row for arm, _ in own for row in arm.tested],
        {name: np.concatenate([each.answers[name] for _, each in own]) for name in names},
        [fold for fold, (arm, _) in enumerate(own) for _ in arm.tested],
    )


def own_folds(
    arms: Sequence[Arm], finished: Sequence[Finished], *, of_twins: bool = False
) -> list[tuple[Arm, Finished]]:
    """The trainings that were tested: those of the network, or of its twin."""
    return [(arm, each) for arm, each in zip(arms, finished, strict=True) if arm.is_twin == of_twins and arm.tested]


def write_pooled(task: Task, arms: Sequence[Arm], finished: Sequence[Finished], out: Path) -> None:
    """Write the predictions for all cases into one table, each by the fold that it was tested in."""
    rows, answers, folds = pooled(arms, finished)
    order = np.argsort(rows, kind="stable").tolist()
    own = {name: values[order] for name, values in answers.items()}
    task.write([rows[i] for i in order], own, out, folds=[folds[i] for i in order])


def train_final(
    args: FinetuneArgs, task: Task, arms: Sequence[Arm], finished: Sequence[Finished], processes: Processes
) -> Results:
    """Train on all cases for as many epochs as the best of a fold had, the median over folds, and save the network.

    No case is left to choose an epoch or thresholds by: the last epoch is taken, and thresholds are those of the
    answers of all folds, each for cases that its network did not learn from.
    """
    folds = own_folds(arms, finished)
    epochs = round(median(each.results["best"]["epoch"] for _, each in folds))
    held_out = [row for arm, _ in folds for row in arm.tested]
    arm = Arm(Path(args.out) / FINAL, {"train": sorted(held_out)})
    command = finetune_command(args)  # of the whole run: it takes the folds to know the epochs
    args = replace(arguments_of(args, arm), epochs=epochs, monitor="+epoch", patience=0)
    found = torch.cat([each.found for _, each in folds])
    outputs = task.outputs({**arm.split, "val": held_out}, found)
    if processes.is_main:
        say(f"{FINAL}, the network to use: {counted(len(held_out), 'case')} to train on, {counted(epochs, 'epoch')}")
    trial, header, origin, *_ = fit_arm(args, task, arm, processes, command=command, outputs=outputs)
    take_best(trial.method, arm.folder / "best.pt")
    if processes.is_main:
        write_model(trial.state(), header, arm.folder)
    distributed.barrier()
    cases = task.count(arm.split["train"])
    return {FINAL: {**origin, "epochs": epochs, "cases": cases, "outputs": outputs.as_header()}}
