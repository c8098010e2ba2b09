"""One run of `zoo finetune`, whatever its task: parts of the data, trainings, the saved network, and results.

A task is a `zoo.tasks.task.Task`: it has read the user's labels, makes a `Trial` for each training, and says what came
out. A run is one training, or several: one for each fold of a cross-validation, and each again from random weights.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from zoo.checkpoint import load_report
from zoo.learning_rates import param_groups
from zoo.oddities import each_once
from zoo.progress import say
from zoo.registry import get_entry
from zoo.tasks.args import FinetuneArgs, finetune_command, sized
from zoo.tasks.data import remove_kept
from zoo.tasks.first_look import FirstLook, look_at
from zoo.tasks.measures import said_of_pair
from zoo.tasks.outputs import Outputs
from zoo.tasks.saved import write_model
from zoo.tasks.splits import Split, check_kept, draw_folds, draw_split, given_split, write_splits
from zoo.tasks.table import column_of
from zoo.tasks.task import Answers, Rows, Task
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.finetune import finetuning_header, load_network, origin_of, share_buffers, write_results
from zoo.training.loop import autocast, fit
from zoo.training.metrics import Results, or_none
from zoo.training.resuming import must_resume
from zoo.training.runlog import Metrics
from zoo.training.saving import read_state
from zoo.training.session import running

log = logging.getLogger("zoo")

TWIN = "random"
"""Folder of the training from random weights."""


class Finished(NamedTuple):
    """What became of one training."""

    results: Results
    answers: Answers
    """Of the test part; empty without one."""


@dataclass(frozen=True)
class Arm:
    """One training of a run: where it is kept, on what it learns, and whether it starts from random weights."""

    folder: Path
    split: Split
    is_twin: bool = False

    @property
    def tested(self) -> Rows:
        """Cases of the test part."""
        return self.split.get("test", ())


def finetune(args: FinetuneArgs, read: Callable[[FinetuneArgs], Task]) -> Results:
    """Train, test, save and report; returns what `OUT/results.json` says.

    Args:
        args: The run.
        read: Makes its task, with the labels that `args` name.

    Raises:
        OptionError: The table, the labels or the arguments do not fit together, or OUT holds another run.
        InputContractError: Images cannot be what the network takes.
        Stopped: A signal ended the run; the same command with `--resume` goes on.
    """
    with running(args) as processes:
        started = time.perf_counter()
        with each_once():
            with distributed.raising_together():
                task, arms, args = plan(args, read, processes.world)
                seen = look_at(task.cases, task.contract, args)
                warnings = warnings_of(task, arms, args, seen)
                begin(args, task, arms, processes)
            if processes.is_main:
                say(f"input: {seen.input}")
            finished = [train(args, task, arm, processes) for arm in arms]
        results = {"task": task.name, **summary(task, arms, finished, args), "warnings": warnings}
        results |= {"seconds": round(time.perf_counter() - started, 1), "arguments": asdict(args)}
        if processes.is_main:
            write_results(results, args.out, hint=_hint(args, arms), rules=rules_of(results, task.names))
            if "pair" in results:
                say(results["pair"]["said"])
            remove_kept(Path(args.out))
        return results


def plan(args: FinetuneArgs, read: Callable[[FinetuneArgs], Task], world: int) -> tuple[Task, list[Arm], FinetuneArgs]:
    """Read the task and divide its cases; returns the trainings, and the arguments with everything chosen."""
    task = read(args)
    splits = splits_of(args, task)
    chosen = sized(args, min(len(split["train"]) for split in splits), most=task.most, world=world)
    return task, list(arms_of(chosen, splits)), chosen


def splits_of(args: FinetuneArgs, task: Task) -> list[Split]:
    """The parts of the data of each training: one split, or one for each fold."""
    ids, groups, strata = task.cases.ids, task.groups, task.strata()
    if args.cross_validate:
        return draw_folds(groups, strata, args.cross_validate, args.seed)
    if args.split:
        return [given_split(column_of(task.cases, args.split, "--split"), ids, groups, strata, args.seed)]
    return [draw_split(groups, strata, args.seed)]


def arms_of(args: FinetuneArgs, splits: Sequence[Split]) -> Iterator[Arm]:
    """The trainings of a run, in their order."""
    for fold, split in enumerate(splits):
        folder = Path(args.out) / f"fold{fold}" if args.cross_validate else Path(args.out)
        yield Arm(folder, split)
        if args.pair:
            yield Arm(folder / TWIN, split, is_twin=True)


def warnings_of(task: Task, arms: Sequence[Arm], args: FinetuneArgs, seen: FirstLook) -> list[str]:
    """What the user should know of the parts and of the images; each is logged, too."""
    found = [*dict.fromkeys(line for arm in arms for line in task.check(arm.split)), *seen.warnings]
    if not args.group and not args.split:
        found.append(
            "without --group each image is taken for another patient: images of one patient can be both in the "
            "training part and in the test part, and results then look too good"
        )
    for line in found:
        log.warning("%s", line)
    return found


def begin(args: FinetuneArgs, task: Task, arms: Sequence[Arm], processes: Processes) -> None:
    """Check that the folders of a run are new, or hold this run, and write which case is in which part."""
    began = [must_resume(arm.folder, resume=args.resume) for arm in arms]
    splits = [arm.split for arm in arms if not arm.is_twin]
    labels = task.labels()
    if any(began):  # else nothing was learnt: the user may have mended the table
        check_kept(Path(args.out), task.cases.ids, labels, splits)
    if processes.is_main:
        write_splits(Path(args.out), task.cases.ids, task.groups, labels, splits)
        for arm in arms:
            arm.folder.mkdir(parents=True, exist_ok=True)


def train(args: FinetuneArgs, task: Task, arm: Arm, processes: Processes) -> Finished:
    """Train once, choose thresholds on the validation part, and judge the test part; the network is saved."""
    args = arguments_of(args, arm)
    torch.manual_seed(args.seed)
    network = load_network(args, len(task.names))
    origin = origin_of(network)
    header = finetuning_header(network, task.name, finetune_command(args), input=task.contract, classes=task.names)
    params = groups_of(network, args)
    trial = task.begin(network, args, arm.split, processes)

    def validate(_: nn.Module, epoch: int) -> Metrics:
        share_buffers(trial.method)
        return task.metrics(arm.split["val"], trial.predict("val"))

    best = fit(
        trial.method, trial.data["train"], args, processes=processes, validate=validate, params=params, header=header
    )
    trial.method.load_state_dict(read_state(arm.folder / "best.pt", mmap=True)["model"])
    trial.method.eval()
    with torch.no_grad(), autocast(args.precision, processes.device):
        found = {part: trial.predict(part) for part in ("val", "test") if part in arm.split}
    outputs = task.outputs(arm.split, found["val"])
    answers = {part: task.answers(rows, outputs) for part, rows in found.items()}
    results = {
        **origin,
        "outputs": outputs.as_header(),
        "best": {name: or_none(value) for name, value in best.items()},
    } | {part: task.judge(arm.split[part], own) for part, own in answers.items()}
    if processes.is_main:
        write_model(trial.state(), header | {"outputs": json.dumps(outputs.as_header())}, arm.folder)
        if "test" in answers:
            task.write(arm.tested, answers["test"], arm.folder)
            task.draw(trial, arm.tested, answers["test"], arm.folder)
    distributed.barrier()
    return Finished(results, answers.get("test", {}))


def arguments_of(args: FinetuneArgs, arm: Arm) -> FinetuneArgs:
    """The arguments of one training of a run."""
    args = replace(args, out=str(arm.folder))
    return replace(args, from_scratch=True, checkpoint="") if arm.is_twin else args


def groups_of(network: nn.Module, args: FinetuneArgs) -> list[dict[str, Any]]:
    """Parameter groups: the head at the full rate, stages before it at less; at first the head alone learns.

    All of a network with random weights is fresh, and learns from the first epoch on.
    """
    if args.freeze:
        freeze(network)
    groups = param_groups(network, args.lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay)
    for group in groups:
        is_new = group["name"].startswith(("fresh", "head"))
        group["from_epoch"] = 0 if is_new else min(args.head_epochs, args.epochs - 1)
    return groups


def freeze(network: nn.Module) -> None:
    """Let the head of a network from the zoo alone learn."""
    head = get_entry(load_report(network).model).head
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(head))


def summary(task: Task, arms: Sequence[Arm], finished: Sequence[Finished], args: FinetuneArgs) -> Results:
    """The results of a run: those of its training; with folds, those of all test parts together and of each."""
    rows, answers = pooled(arms, finished)
    if args.cross_validate:
        folds = [each.results for arm, each in zip(arms, finished, strict=True) if not arm.is_twin]
        results: Results = {"cases": {"test": task.count(rows)}, "test": task.judge(rows, answers), "folds": folds}
    else:
        results = {"cases": {part: task.count(own) for part, own in arms[0].split.items()}, **finished[0].results}
    if args.pair and rows:
        _, other = pooled(arms, finished, of_twins=True)
        results["random"] = {"test": task.judge(rows, other)}
        results["pair"] = said_of_pair(task.compare(rows, answers, other))
    return results


def rules_of(results: Results, names: Sequence[str]) -> list[str]:
    """How probabilities became decisions, in words, of a run or of each of its folds."""
    rules = [Outputs(**each["outputs"]).rule(names) for each in results.get("folds", [results])]
    if len(set(rules)) == 1:
        return list(filter(None, rules[:1]))
    return [f"fold{i}: {rule}" for i, rule in enumerate(rules)]


def pooled(arms: Sequence[Arm], finished: Sequence[Finished], *, of_twins: bool = False) -> tuple[Rows, Answers]:
    """The test parts of all folds together: their cases, and the answers for them."""
    own = [(arm, each) for arm, each in zip(arms, finished, strict=True) if arm.is_twin == of_twins and arm.tested]
    rows = [row for arm, _ in own for row in arm.tested]
    names = own[0][1].answers if own else ()
    return rows, {name: np.concatenate([each.answers[name] for _, each in own]) for name in names}


def _hint(args: FinetuneArgs, arms: Sequence[Arm]) -> str:
    images = "SCANS -o LABELS" if args.task == "segment" else "IMAGES -o predictions.csv"
    which = " (the first fold's network: none learnt from all cases)" if args.cross_validate else ""
    return f"next: zoo predict {arms[0].folder} {images}{which}"
