"""One run of `zoo finetune`, whatever its task: parts of the data, trainings, the saved network, and results.

A task is a `zoo.tasks.task.Task`: it has read the user's labels, makes a `Trial` for each training, and says what came
out. A run is one training, or several: one for each fold of a cross-validation, and each again from random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from zoo.errors import OptionError
from zoo.oddities import each_once
from zoo.progress import say
from zoo.tasks.args import FinetuneArgs, sized
from zoo.tasks.arms import Arm, Finished, train_all
from zoo.tasks.cautions import warnings_of
from zoo.tasks.data import remove_kept
from zoo.tasks.first_look import look_at
from zoo.tasks.folds import pooled, train_final, write_pooled
from zoo.tasks.outputs import Outputs
from zoo.tasks.saved import FINAL, WEIGHTS
from zoo.tasks.splits import Split, check_kept, draw_folds, draw_split, given_split, write_splits
from zoo.tasks.table import column_of
from zoo.tasks.task import Task
from zoo.tasks.telling import said_of_pair
from zoo.training import distributed
from zoo.training.finetune import digests_of, write_results
from zoo.training.metrics import Results
from zoo.training.resuming import must_resume
from zoo.training.session import running

TWIN = "random"
"""Folder of the training from random weights."""


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
                check_folders(args, task, arms)
                seen = look_at(task.cases, task.contract, args)
                warnings = warnings_of(task, arms, args, seen)
                if processes.is_main:
                    lay_out(task, arms, Path(args.out))
            if processes.is_main:
                say(f"input: {seen.input}")
            finished = train_all(args, task, arms, processes)
            final = train_final(args, task, arms, finished, processes) if args.final else {}
        results = {"task": task.name, **summary(task, arms, finished, args), **final, "warnings": warnings}
        if not args.cross_validate:
            results |= {"weights": digests_of(*(Path(args.out) / name for name in (WEIGHTS, "best.pt")))}
        results |= {"seconds": round(time.perf_counter() - started, 1), "arguments": asdict(args)}
        if processes.is_main:
            if args.cross_validate:
                write_pooled(task, arms, finished, Path(args.out))
            say(_of_states(Path(args.out)))
            rules = [*rules_of(results, task.names), *([results["pair"]["said"]] if "pair" in results else [])]
            write_results(results, args.out, hint=_hint(args, arms), rules=rules)
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
        split = given_split(column_of(task.cases, args.split, "--split"), ids, groups, strata, args.seed)
        if args.pair and "test" not in split:
            raise OptionError(
                f"--pair compares two networks on the test part, and no case has the {args.split} test: give it to "
                "some, or leave out --split to have the parts drawn"
            )
        return [split]
    return [draw_split(groups, strata, args.seed)]


def arms_of(args: FinetuneArgs, splits: Sequence[Split]) -> Iterator[Arm]:
    """The trainings of a run, in their order."""
    for fold, split in enumerate(splits):
        folder = Path(args.out) / f"fold{fold}" if args.cross_validate else Path(args.out)
        yield Arm(folder, split)
        if args.pair:
            yield Arm(folder / TWIN, split, is_twin=True)


def check_folders(args: FinetuneArgs, task: Task, arms: Sequence[Arm]) -> None:
    """Check that the folders of a run are new, or hold this run: before its images are looked at."""
    began = [must_resume(arm.folder, resume=args.resume) for arm in arms]
    if any(began):  # else nothing was learnt: the user may have mended the table
        check_kept(Path(args.out), task.cases.ids, task.labels(), [arm.split for arm in arms if not arm.is_twin])


def lay_out(task: Task, arms: Sequence[Arm], out: Path) -> None:
    """Write which case is in which part, and make the folders of the trainings."""
    splits = [arm.split for arm in arms if not arm.is_twin]
    write_splits(out, task.cases.ids, task.groups, task.labels(), splits)
    for arm in arms:
        arm.folder.mkdir(parents=True, exist_ok=True)


def summary(task: Task, arms: Sequence[Arm], finished: Sequence[Finished], args: FinetuneArgs) -> Results:
    """The results of a run: those of its training; with folds, those of all test parts and of each."""
    rows, answers, folds = pooled(arms, finished)
    folds = folds if args.cross_validate else []
    if args.cross_validate:
        each_fold = [each.results for arm, each in zip(arms, finished, strict=True) if not arm.is_twin]
        test = task.judge(rows, answers, folds)
        results: Results = {"cases": {"test": task.count(rows)}, "test": test, "folds": each_fold}
    else:
        results = {"cases": {part: task.count(own) for part, own in arms[0].split.items()}, **finished[0].results}
    if args.pair and rows:
        other = pooled(arms, finished, of_twins=True).answers
        results["random"] = {"test": task.judge(rows, other, folds)}
        pair = task.compare(rows, answers, other, folds)
        results["pair"] = said_of_pair(pair, len({task.groups[i] for i in rows}), task.rarest(rows))
    return results


def rules_of(results: Results, names: Sequence[str]) -> list[str]:
    """How probabilities became decisions, in words, of a run or of each of its folds."""
    rules = [Outputs(**each["outputs"]).rule(names) for each in results.get("folds", [results])]
    if len(set(rules)) == 1:
        return list(filter(None, rules[:1]))
    return [f"fold{i}: {rule}" for i, rule in enumerate(rules)]


def _of_states(out: Path) -> str:
    """What the largest files of a run are for."""
    size = sum(file.stat().st_size for file in out.rglob("*.pt"))
    return (
        f"model.safetensors is enough for all that follows; last.pt and best.pt, {size / 1e6:.0f} MB in {out}, are for "
        "--resume: delete them once the run is as you want it"
    )


def _hint(args: FinetuneArgs, arms: Sequence[Arm]) -> str:
    images = "SCANS -o LABELS" if args.task == "segment" else "IMAGES -o predictions.csv"
    if args.final:
        return f"next: zoo predict {Path(args.out) / FINAL} {images}"
    which = " (the first fold's network; --final --resume trains one on all cases)" if args.cross_validate else ""
    return f"next: zoo predict {arms[0].folder} {images}{which}"
