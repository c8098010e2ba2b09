"""The arguments of a run: a dataclass whose defaults are the published run, and flags made from its fields."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from zoo.errors import OptionError
from zoo.messages import escaped
from zoo.signals import Ended, ended_by_signals
from zoo.training.failures import in_one_line


class Arguments(Protocol):
    """A dataclass of `arg` fields that looks at its own values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""


A = TypeVar("A", bound=Arguments)

PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "cosine-per-step", "constant", "plateau")


def arg(
    help: str, default: Any = dataclasses.MISSING, choices: Sequence[str] | None = None, *, free: bool = False
) -> Any:
    """Declare a field with the help text and the legal values of its flag.

    Args:
        help: What it is.
        default: Its value where none is given; without one the flag is required.
        choices: Its legal values; None for any.
        free: Whether a resumed run may have it otherwise, because no number that the run computes follows from it. So
            it is in every class that declares the field again.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "free": free})


@dataclass(kw_only=True)
class TrainArgs:
    """What every run has. `batch_size` and `lr` are for the whole step, over all processes: nothing is scaled."""

    data: str = arg("folder with the images")
    out: str = arg("folder for checkpoints, log and results", free=True)
    epochs: int = arg("length of the run", 100, free=True)
    steps_per_epoch: int = arg("steps in one epoch of the run; 0 for one pass over the data", 0)
    batch_size: int = arg("samples per optimiser step, over all processes and accumulated parts", 256)
    accumulate: int = arg("parts a step is computed in; momentum copies and queues move once a part", 1)
    optimizer: str = arg("update rule", "sgd", OPTIMIZERS)
    lr: float = arg("learning rate at its peak", 0.03)
    momentum: float = arg("momentum of SGD", 0.9)
    weight_decay: float = arg("weight decay", 1e-4)
    schedule: str = arg("course of the learning rate", "cosine", SCHEDULES)
    warmup_epochs: int = arg("epochs of linear warm-up, counted inside --epochs", 0)
    plateau_factor: float = arg("what schedule 'plateau' multiplies the learning rate by", 0.5)
    plateau_patience: int = arg("epochs without improvement before 'plateau' acts", 5)
    clip_grad: float = arg("largest gradient norm; 0 for no clipping", 0.0)
    precision: str = arg("arithmetic of the forward pass", "fp32", PRECISIONS)
    channels_last: bool = arg("NHWC memory layout for 2D networks, faster on most machines", False)
    sync_bn: bool = arg("batch statistics over all processes (GPU only)", False)
    monitor: str = arg(
        "metric that decides which checkpoint is best; smaller is better unless it begins with '+'", "loss"
    )
    patience: int = arg("stop after this many epochs without improvement; 0 for never", 0, free=True)
    seed: int = arg("seed of every draw", 0)
    workers: int = arg("loader processes per process", 0, free=True)
    device: str = arg("cpu, cuda or auto", "auto", free=True)
    resume: bool = arg("go on from OUT/last.pt if it is there", False, free=True)
    allow_changes: str = arg(
        "arguments that a resumed run may have otherwise than it began with, though they change its result: lr,data",
        "",
        free=True,
    )
    tensorboard: bool = arg("also write TensorBoard events to OUT/tensorboard", False, free=True)

    def check(self) -> None:
        """Raise one `OptionError` that names everything wrong with the values."""
        problems = []
        for f in fields(self):
            legal, value = f.metadata.get("choices"), getattr(self, f.name)
            if legal and value not in legal:
                problems.append(f"--{f.name.replace('_', '-')} must be one of {', '.join(legal)}, not {value!r}")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                problems.append(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("steps_per_epoch", "warmup_epochs", "patience", "workers", "weight_decay", "clip_grad"):
            if getattr(self, name) < 0:
                problems.append(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if self.warmup_epochs > self.epochs:
            problems.append(f"--warmup-epochs {self.warmup_epochs} is longer than the run, --epochs {self.epochs}")
        if not 0 < self.plateau_factor < 1:
            problems.append(f"--plateau-factor must lie between 0 and 1, not {self.plateau_factor}")
        if not self.lr > 0:
            problems.append(f"--lr must be positive, not {self.lr}")
        if unknown := [name for name in self.allowed_changes() if name not in {f.name for f in fields(self)}]:
            problems.append(f"--allow-changes {','.join(unknown)}: no argument of this run has such a name")
        if problems:
            raise OptionError("wrong arguments:\n  " + "\n  ".join(problems))

    def allowed_changes(self) -> list[str]:
        """Names of the fields that `allow_changes` names, in which dashes may stand for underscores."""
        return [name.strip().replace("-", "_") for name in self.allow_changes.split(",") if name.strip()]


def parse_args(cls: type[A], argv: Sequence[str] | None = None, description: str | None = None) -> A:
    """Build an arguments object from the command line: one flag a field, with the field's default.

    That of `--workers` is at most the number of processors.

    Raises:
        OptionError: A value is out of its range.
        SystemExit: The flags themselves are wrong (argparse prints why).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    types = typing.get_type_hints(cls)
    for f in fields(cls):
        flag, required = "--" + f.name.replace("_", "-"), f.default is dataclasses.MISSING
        options: dict[str, Any] = {"dest": f.name, "help": f.metadata["help"], "required": required}
        options["default"] = argparse.SUPPRESS  # of a required flag, so that the help names no default
        if not required:
            published: Any = f.default
            options["default"] = min(published, _processors()) if f.name == "workers" else published
        if types[f.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": types[f.name], "choices": f.metadata["choices"]}
        parser.add_argument(flag, **options)
    args = cls(**vars(parser.parse_args(argv)))
    args.check()
    return args


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description's commands on lines of their own; behind each flag its default, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default == "" else super()._get_help_string(action)


def _processors() -> int:
    """How many processors this process may use; more loader processes than these only stand in each other's way."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_command(main: Callable[[], object]) -> None:
    """Run a recipe's `main` from the command line, where what can go wrong for anybody is a line and not a traceback.

    Raises:
        SystemExit: 1 with the line on stderr; 75 of a training run that a signal has stopped; 130 after Ctrl-C, 143
            after SIGTERM, where there is nothing to go on with.
    """
    with ended_by_signals():
        try:
            main()
        except (Ended, KeyboardInterrupt) as end:  # the latter: a second Ctrl-C in a run
            number = end.signal if isinstance(end, Ended) else signal.SIGINT
            print(f"ended by {number.name}", file=sys.stderr)
            raise SystemExit(128 + number) from None
        except Exception as error:  # which of them are a line is for `in_one_line` to say
            if (line := in_one_line(error)) is None:
                raise
            raise SystemExit(escaped(line)) from error


def command_of(args: TrainArgs, module: str) -> str:
    """The command that made a run: the flags that differ from the defaults, files and folders by their last name."""
    words = ["python", "-m", module]
    for f in fields(args):
        value, flag = getattr(args, f.name), "--" + f.name.replace("_", "-")
        if value == f.default or f.name in ("resume", "allow_changes", "tensorboard"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, Path(value).name if isinstance(value, str) else str(value)]
    return " ".join(words)
