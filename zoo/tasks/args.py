"""The arguments of `zoo finetune`: those of every run, and what the user says of the labels and of the network.

Where a default is 0 or empty, `sized` chooses from the number of cases.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from zoo.errors import OptionError
from zoo.tasks.cells import UNCERTAIN
from zoo.training.args import TrainArgs, arg, command_of, default, flag_of, names_in
from zoo.transforms import SMALLEST_SIDE

TASKS = ("classify", "regress", "segment")
RUN = "zoo finetune"
PARTS = 4
"""Slices or crops of a volume that a step is given of it."""

_STEPS = 600
"""Steps of a run of the default length: what a ResNet-50 needs for a few hundred films, and half an hour of two cores
for 2000 of them."""
_EPOCHS = (10, 60)
"""Fewest and most epochs that are chosen."""
_FEWEST_STEPS = 8
"""Steps of an epoch that few cases are divided into: a step over all of them would learn once an epoch."""

A = TypeVar("A", bound="FinetuneArgs")


@dataclass(kw_only=True)
class FinetuneArgs(TrainArgs):
    """Arguments of a fine-tuning run of any entry."""

    model: str = arg("MODEL or MODEL.TAG to start from")
    task: str = arg("what it learns", choices=TASKS)
    table: str = arg("table of the cases, CSV, TSV or Parquet; to segment --data and --masks can do", "")
    data: str = arg("folder from which the table's paths lead, default the table's own; or that of the images", "")
    label: str = arg("columns of the labels: one, or several with commas; of segmentation none", "")
    uncertain: str = arg(f"classify: what cells of -1 are, beside 0 and 1: {', '.join(UNCERTAIN)}", "")
    masks: str = arg("segment: folder of the label maps, each called like its image", "")
    classes: str = arg("segment: names of the labels 0, 1, ... with commas, the background first", "")
    window: str = arg("segment: voxels of crops and windows along each axis, as 96,96,96; default the model's", "")
    path_column: str = arg("column of the paths; default path, image_path or file", "")
    group: str = arg("column of what must stay together, such as the patient", "")
    split: str = arg("column that says train, val or test of each case; default a random split by group", "")
    site: str = arg(
        "classify, regress: column of hospitals or scanners, for each of which results are given too", "", free=True
    )
    checkpoint: str = arg("your own file to start from, instead of the published weights", "")
    from_scratch: bool = arg("start from random weights", False)
    size: int = arg("pixels a side that films are brought to; 0 for those of the weights", 0)
    freeze: bool = arg("train the head alone", False)
    head_epochs: int = arg("epochs at first in which the head alone learns, beside pre-trained weights", 1)
    layer_decay: float = arg("factor on the learning rate for each stage further from the head", 0.75)
    class_weights: bool = arg("let rare classes count as much as frequent ones", True)
    augment: bool = arg("change training images at random, as the model's anatomy allows", True)
    parts: int = arg("parts of a volume that a step is given of it; 0 for 4 slices or crops, or 2 windows", 0)
    pair: bool = arg("also train the same network from random weights, and compare", False, free=True)
    cross_validate: int = arg("folds by group, each of which is tested once; 0 for one split", 0)
    final: bool = arg("after the folds train a network on all cases, in OUT/final: the one to use", False, free=True)
    dry_run: bool = arg("say what would be trained on what, and how long a step takes; write nothing", False, free=True)
    epochs: int = arg("length of the run; 0 for about 600 steps", 0, free=True)
    batch_size: int = arg("cases per step; 0 for up to 16 films, 4 volumes or 2 in windows, to segment 8 or 1", 0)
    optimizer: str = default("adamw")
    lr: float = arg("learning rate of the head at its peak; 0 for 1e-4, with --freeze 1e-3", 0.0)
    weight_decay: float = default(0.01)
    schedule: str = default("cosine-per-step")
    warmup_epochs: int = default(1)
    clip_grad: float = default(1.0)
    monitor: str = arg(
        "metric that decides which epoch is best, larger is better behind a '+': val_loss, +val_auroc, +val_r2",
        "val_loss",
    )
    patience: int = arg("stop after this many epochs without improvement; 0 for never, -1 for a third", -1, free=True)

    def check(self) -> None:
        """Raise one `OptionError` that names everything wrong with the values, as far as they are chosen."""
        problems = []
        if self.head_epochs < 0:
            problems.append(f"--head-epochs must be at least 0, not {self.head_epochs}")
        if not 0 < self.layer_decay <= 1:
            problems.append(f"--layer-decay must lie in (0, 1], not {self.layer_decay}")
        if self.size and self.size < SMALLEST_SIDE:
            problems.append(f"--size must be at least {SMALLEST_SIDE}, not {self.size}")
        if self.parts < 0:
            problems.append(f"--parts must be at least 0, not {self.parts}")
        if self.cross_validate < 0 or self.cross_validate == 1:
            problems.append(f"--cross-validate must be at least 2 folds, not {self.cross_validate}")
        if self.cross_validate and self.split:
            problems.append(f"--cross-validate draws its own parts, and --split {self.split} gives them: drop one")
        if self.final and not self.cross_validate:
            problems.append("--final trains on all cases after the folds of --cross-validate: give that too")
        if self.pair and self.from_scratch:
            problems.append("--pair compares with random weights, and --from-scratch starts from them: drop one")
        if self.checkpoint and self.from_scratch:
            problems.append(f"--checkpoint {self.checkpoint} and --from-scratch exclude each other: drop one")
        problems += self._lacking()
        of_others = ("label", "site") if self.task == "segment" else ("masks", "classes")
        if said := [flag_of(name) for name in of_others if getattr(self, name)]:
            problems.append(f"{' and '.join(said)} mean nothing to --task {self.task}: drop them")
        if self.uncertain and (self.uncertain not in UNCERTAIN or self.task != "classify"):
            problems.append(f"--uncertain {self.uncertain}: of --task classify, {', '.join(UNCERTAIN)} are known")
        if twice := [column for column, n in Counter(self.columns()).items() if n > 1]:
            problems.append(f"--label {self.label} names {', '.join(twice)} more than once: name each column once")
        if self.window and (self.task != "segment" or self.sides() is None):
            problems.append(f"--window {self.window}: whole numbers with commas are expected, of --task segment alone")
        if problems:
            raise OptionError("; ".join(problems))
        TrainArgs.check(_as_chosen(self))

    def _lacking(self) -> list[str]:
        """What is needed to find the cases and their labels, and is not there."""
        problems = []
        if self.task == "segment" and not self.masks:
            problems.append("--task segment needs --masks, the folder of the label maps")
        if self.task in ("classify", "regress") and not self.label:
            problems.append(f"--task {self.task} needs --label, the column of the labels")
        if self.table:
            return problems
        if self.task != "segment" or not self.data:
            segments = ", or --data, the folder of the images" if self.task == "segment" else ""
            problems.append(f"--task {self.task} needs --table, that of the cases{segments}")
        of_tables = [flag_of(name) for name in ("path_column", "group", "split") if getattr(self, name)]
        if of_tables:
            problems.append(f"{' and '.join(of_tables)} without --table: they name its columns")
        return problems

    def sides(self) -> tuple[int, ...] | None:
        """Sides of a window, empty where none are given; None where they are no numbers above 0."""
        sides = names_in(self.window)
        return tuple(map(int, sides)) if all(side.isdecimal() and int(side) for side in sides) else None

    def columns(self) -> tuple[str, ...]:
        """Columns of the labels."""
        return names_in(self.label)


def sized(args: A, cases: int, *, most: int, world: int) -> A:
    """Return the arguments with what they leave open chosen from the number of training cases.

    Args:
        args: As the user gave them.
        cases: In the training part.
        most: Cases per step where there are enough.
        world: Processes, among which a step is divided.
    """
    if args.batch_size > cases:
        raise OptionError(f"--batch-size {args.batch_size} is more than the {cases} cases of the training part")
    shares = world * args.accumulate
    batch = args.batch_size or min(most, max(2, cases // _FEWEST_STEPS))
    batch = batch if args.batch_size else min(-(-batch // shares) * shares, max(1, cases // shares) * shares)
    steps = args.steps_per_epoch or max(1, cases // batch)
    epochs = args.epochs or min(max(math.ceil(_STEPS / steps), _EPOCHS[0]), _EPOCHS[1])
    chosen = replace(
        args,
        batch_size=batch,
        epochs=epochs,
        lr=args.lr or (1e-3 if args.freeze else 1e-4),
        patience=max(3, epochs // 3) if args.patience < 0 else args.patience,
    )
    TrainArgs.check(chosen)
    return chosen


def finetune_command(args: FinetuneArgs) -> str:
    """The command that made a run, the model in its place."""
    command = command_of(args, f"{RUN} {args.model}")
    return command.replace(f" {flag_of('model')} {Path(args.model).name}", "", 1)


def _as_chosen(args: FinetuneArgs) -> FinetuneArgs:
    """The arguments with something legal in the place of what is still to be chosen."""
    return replace(
        args,
        epochs=args.epochs or max(1, args.warmup_epochs),
        batch_size=args.batch_size or 1,
        lr=args.lr or 1.0,
        patience=max(0, args.patience),
    )
