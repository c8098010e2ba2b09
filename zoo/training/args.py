"""The arguments of a run: a dataclass whose defaults are the published run, and flags made from its fields.

The file is long because fields and flags, with their old names, are two sides of one thing and change together.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

from zoo.arguments import PRECISIONS
from zoo.errors import OptionError
from zoo.messages import escaped
from zoo.settings import processors
from zoo.signals import Ended, ended_by_signals
from zoo.training.failures import in_one_line


class Arguments(Protocol):
    """A dataclass of `arg` fields that checks its own values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""


A = TypeVar("A", bound=Arguments)
T = TypeVar("T")

log = logging.getLogger("zoo")

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "cosine-per-step", "constant", "plateau")


def arg(
    help: str,
    default: Any = dataclasses.MISSING,
    choices: Sequence[str] | None = None,
    *,
    free: bool = False,
    was: str = "",
) -> Any:
    """Declare a field with the help text and the legal values of its flag.

    Args:
        help: What the flag means.
        default: Value of the field where the flag is not given; without a default the flag is required.
        choices: Legal values; None for any.
        free: Whether a resumed run may change it, because no number that the run computes depends on it. A class that
            declares the field again cannot take this back.
        was: Name of the field in the release before; command lines and the `args.json` of older runs may still use it.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "free": free, "was": was})


def default(value: Any) -> Any:
    """Declare an inherited field again with another default; all else stays as its `arg` says."""
    return field(default=value, metadata={})


def facts_of_args(kind: type[Arguments]) -> dict[str, dict[str, Any]]:
    """What the last `arg` of each field says, by name; a field that is `free` in one class stays free."""
    found: dict[str, dict[str, Any]] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        for f in fields(base):
            before = found.get(f.name, {"free": False})
            found[f.name] = {**before, **f.metadata}
            found[f.name]["free"] |= before["free"]
    return found


def renamed(kind: type[Arguments]) -> dict[str, str]:
    """Names of renamed fields: the name in the release before -> the name now."""
    return {facts["was"]: name for name, facts in facts_of_args(kind).items() if facts["was"]}


def build_from(args: object, kind: Callable[..., T], *given: Any, **others: Any) -> T:
    """Build an object whose keyword settings are the run's arguments of the same names.

    Args:
        args: The arguments of a run.
        kind: Class of the object. Each keyword-only parameter that is also an argument gets that argument's value.
        given: Positional parameters.
        others: Keyword parameters that come from elsewhere, or from an argument of another name.
    """
    names = [name for name, p in inspect.signature(kind).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return kind(*given, **({name: getattr(args, name) for name in names if hasattr(args, name)} | others))


@dataclass(kw_only=True)
class TrainArgs:
    """Arguments of every run. `batch_size` and `lr` are for the whole step, over all processes: nothing is scaled."""

    data: str = arg("folder with the images")
    out: str = arg("folder for checkpoints, log and results", free=True)
    epochs: int = arg("length of the run", 100, free=True)
    steps_per_epoch: int = arg("steps in one epoch of the run; 0 for one pass over the data", 0)
    batch_size: int = arg("samples per optimiser step, over all processes and accumulated parts", 256)
    accumulate: int = arg("parts in which a step is computed; momentum copies and queues move once a part", 1)
    optimizer: str = arg("update rule", "sgd", OPTIMIZERS)
    lr: float = arg("learning rate at its peak", 0.03)
    momentum: float = arg("momentum of SGD", 0.9)
    weight_decay: float = arg("weight decay", 1e-4)
    schedule: str = arg("course of the learning rate", "cosine", SCHEDULES)
    warmup_epochs: int = arg("epochs of linear warm-up, counted inside --epochs", 0)
    plateau_factor: float = arg("factor on the learning rate each time schedule 'plateau' acts", 0.5)
    plateau_patience: int = arg("epochs without improvement before 'plateau' acts", 5)
    clip_grad: float = arg("largest gradient norm; 0 for no clipping", 0.0)
    precision: str = arg("arithmetic of the forward pass", "fp32", PRECISIONS)
    channels_last: bool = arg("NHWC memory layout for 2D networks, faster on most machines", False)
    sync_bn: bool = arg("batch statistics over all processes (GPU only)", False)
    monitor: str = arg(
        "metric by which a checkpoint is the best, smaller is better unless it begins with '+'; +epoch: the last",
        "loss",
    )
    patience: int = arg("stop after this many epochs without improvement; 0 for never", 0, free=True)
    seed: int = arg("seed of every draw", 0)
    workers: int = arg("loader processes per process", 0, free=True)
    device: str = arg("cpu, cuda or auto", "auto", free=True)
    resume: bool = arg("go on from OUT/last.pt if it is there", False, free=True)
    allow_changes: str = arg(
        "arguments that a resumed run may change although its result depends on them: lr,data",
        "",
        free=True,
    )
    tensorboard: bool = arg("also write TensorBoard events to OUT/tensorboard", False, free=True)

    def check(self) -> None:
        """Raise one `OptionError` that names everything wrong with the values."""
        problems = []
        for name, facts in facts_of_args(type(self)).items():
            legal, value = facts["choices"], getattr(self, name)
            if legal and value not in legal:
                problems.append(f"{flag_of(name)} must be one of {', '.join(legal)}, not {value!r}")
        needed = [f.name for f in fields(self) if f.default is dataclasses.MISSING]
        problems += [f"{flag_of(name)} is empty" for name in needed if getattr(self, name) == ""]
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                problems.append(f"{flag_of(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("steps_per_epoch", "warmup_epochs", "patience", "workers", "weight_decay", "clip_grad"):
            if getattr(self, name) < 0:
                problems.append(f"{flag_of(name)} must be at least 0, not {getattr(self, name)}")
        if self.warmup_epochs > self.epochs:
            problems.append(f"--warmup-epochs {self.warmup_epochs} is longer than the run, --epochs {self.epochs}")
        if not 0 < self.plateau_factor < 1:
            problems.append(f"--plateau-factor must lie between 0 and 1, not {self.plateau_factor}")
        if not self.lr > 0:
            problems.append(f"--lr must be positive, not {self.lr}")
        if unknown := [name for name in self.allowed_changes() if name not in {f.name for f in fields(self)}]:
            problems.append(f"--allow-changes {','.join(unknown)}: this run has no such argument")
        if problems:
            raise OptionError("wrong arguments:\n  " + "\n  ".join(problems))

    def allowed_changes(self) -> list[str]:
        """Fields that `allow_changes` names, with dashes or underscores, by present or former names."""
        names = [name.replace("-", "_") for name in names_in(self.allow_changes)]
        return [renamed(type(self)).get(name, name) for name in names]


def parse_args(
    cls: type[A],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    *,
    prog: str | None = None,
    usage: str | None = None,
    panels: Mapping[str, Sequence[str]] = MappingProxyType({}),
    rest: str = "",
    hidden: Sequence[str] = (),
) -> A:
    """Build an arguments object from the command line: one flag for each field, with the field's default.

    The default of `--workers` is at most the number of processors.

    Args:
        cls: Its dataclass.
        argv: The words; None for those that Python was started with.
        description: Of the command, for its help.
        prog: What the command is called; None for the name of the program.
        usage: Stands for the list of all flags in the help and above errors; None for that list.
        panels: Fields by the titles of the panels in which the help shows their flags, in this order.
        rest: Title of the last panel, of all other fields; empty for no panels.
        hidden: Fields whose flags the help leaves out.

    Raises:
        OptionError: A value is out of its range.
        SystemExit: The flags themselves are wrong (argparse prints why).
    """
    parser = argparse.ArgumentParser(prog, usage, description=description, formatter_class=_Help)
    types, facts = typing.get_type_hints(cls), facts_of_args(cls)
    by_title = {title: parser.add_argument_group(title) for title in panels}
    groups = {name: by_title[title] for title, names in panels.items() for name in names}
    others: Any = parser.add_argument_group(rest) if rest else parser
    by_name = {f.name: f for f in fields(cls)}
    for f in [by_name[name] for name in dict.fromkeys([*groups, *by_name])]:
        required = f.default is dataclasses.MISSING
        options: dict[str, Any] = {"dest": f.name, "help": facts[f.name]["help"], "required": required}
        options["default"] = argparse.SUPPRESS  # for a required flag, so that the help names no default
        if not required:
            published: Any = f.default
            options["default"] = min(published, processors()) if f.name == "workers" else published
        if types[f.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": types[f.name], "choices": facts[f.name]["choices"]}
        if f.name in hidden:
            options["help"] = argparse.SUPPRESS
        groups.get(f.name, others).add_argument(flag_of(f.name), **options)
    now = {flag_of(old): flag_of(name) for old, name in renamed(cls).items()}
    args = cls(**vars(parser.parse_args(in_new_words(argv, now))))
    args.check()
    return args


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def in_new_words(argv: Sequence[str] | None, now: Mapping[str, str]) -> list[str]:
    """Return the words of a command line; a flag of the release before gets its present name, with a warning.

    Args:
        argv: The words; None for those that Python was started with.
        now: Flag of the release before -> present flag.
    """
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        if flag in now:
            log.warning("%s is called %s now; the next release does not know the old name", flag, now[flag])
        words.append(f"{now.get(flag, flag)}{equals}{value}")
    return words


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the description's line breaks and shows the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default == "" else super()._get_help_string(action)


def run_command(main: Callable[[], object]) -> None:
    """Run a recipe's `main` from the command line; what can go wrong for anybody ends with a line, not a traceback.

    Raises:
        SystemExit: 1 with the line on stderr; 75 where a signal has stopped a training run that can be resumed; 130
            after Ctrl-C and 143 after SIGTERM where there is nothing to resume.
    """
    with ended_by_signals():
        try:
            main()
        except (Ended, KeyboardInterrupt) as end:  # the latter: a second Ctrl-C in a run
            number = end.signal if isinstance(end, Ended) else signal.SIGINT
            print(f"ended by {number.name}", file=sys.stderr)
            raise SystemExit(128 + number) from None
        except Exception as error:  # of any kind: `in_one_line` knows those that end with a line
            if (line := in_one_line(error)) is None:
                raise
            raise SystemExit(escaped(line)) from error


def names_in(text: str) -> tuple[str, ...]:
    """Names of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def command_of(args: TrainArgs, module: str) -> str:
    """The command that made a run: the flags that differ from the defaults, files and folders by their last name."""
    words = ["python", "-m", module]
    for f in fields(args):
        value, flag = getattr(args, f.name), flag_of(f.name)
        if value == f.default or f.name in ("resume", "allow_changes", "tensorboard"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, Path(value).name if isinstance(value, str) else str(value)]
    return " ".join(words)
