"""Checks of OUT before a run begins or resumes there: nothing is overwritten, and no other run is resumed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointFormatError, IntegrityError, OptionError, UnsafeCheckpointError
from zoo.files import write_text
from zoo.formats import KEY, RANDOM, told
from zoo.messages import first_names, printable
from zoo.training.args import TrainArgs, facts_of_args, renamed
from zoo.training.distributed import Processes
from zoo.training.runlog import read_finished
from zoo.training.saving import check_seal, read_state, writing

log = logging.getLogger("zoo")

KEYS = (
    *("model", "epoch", "metrics", "step", "sums", "samples", "optimizer", "scaler", "plateau", "waited", "best"),
    "world",
)
"""What `last.pt` holds; `best.pt` has the first three."""
HISTORY = "changes"
"""Key of `args.json` for the changes that `--allow-changes` let through, the oldest first."""
ABSENT = "absent"

Arguments = dict[str, Any]


class Kept(Protocol):
    """Arguments that say where a run is kept."""

    out: str


class Resumable(Protocol):
    """The part of `zoo.training.run.Run` that resuming reads and fills."""

    out: Path
    args: TrainArgs
    method: nn.Module
    optimizer: torch.optim.Optimizer
    processes: Processes
    samples: int
    best: float

    def fill(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Take up a state, and the part that is this process's own."""


def must_resume(out: Path, *, resume: bool) -> bool:
    """Whether OUT holds a run that is to be resumed.

    Raises:
        OptionError: OUT holds a run that would be overwritten.
    """
    last, best = out / "last.pt", out / "best.pt"
    if not (last.exists() or best.exists()):
        return False
    if not last.exists():
        raise OptionError(
            f"{best} exists, but no {last.name} to go on from, and a new run would overwrite it: give another --out"
        )
    if not resume:
        raise OptionError(f"{last} exists; give --resume to go on from it, or another --out")
    return True


def take_up(run: Resumable) -> list[Any]:
    """Resume the run in OUT, after all checks.

    Returns:
        How its arguments have changed since it began, the oldest change first.

    Raises:
        OptionError: It is a run of other arguments, samples, or processes, or of another network.
        CheckpointFormatError: A file is missing, or is not what a run writes.
        IntegrityError: A file is damaged.
        UnsafeCheckpointError: Opening a file would run code.
    """
    last, file = run.out / "last.pt", run.out / "args.json"
    with _showing_a_way_on(run.args):
        state, began = read_state(last, KEYS), read_json(file)
        read_finished(run.out / "log.jsonl", state["epoch"])
        changed = changes_of(began, run.args, file)
        check_network(run.method, state["model"], last)
        check_course(run, state, changed, last)
        file = rank_file(run.out, state["epoch"], state["step"], run.processes.rank)
        own = {} if run.processes.is_main else read_state(file, ("buffers", "sums"))
        run.fill(state, own)
        if run.processes.is_main and math.isfinite(run.best):
            check_seal(run.out / "best.pt")
    history: list[Any] = began.get(HISTORY, [])
    if changed:
        log.warning("the run goes on with other arguments than it began with: %s", ", ".join(changed))
        history = [*history, {"epoch": state["epoch"] + 1, "step": state["step"], **changed}]
    return history


def noted_base(args: Kept) -> dict[str, Any]:
    """The weights that the run in OUT began with, by the header of `last.pt`.

    Raises:
        CheckpointFormatError: `last.pt` is missing or damaged; `IntegrityError`, `UnsafeCheckpointError` likewise.
    """
    last = Path(args.out) / "last.pt"
    with _showing_a_way_on(args):
        header = read_state(last, mmap=True).get(KEY, {})
        return told(header, "base", dict, last) or dict(RANDOM)


def rank_file(out: Path, epoch: int, step: int, rank: int) -> Path:
    """File in which a process other than the first keeps its own state, of a step in an epoch."""
    return out / "ranks" / f"epoch{epoch}{f'-step{step}' if step else ''}-rank{rank}.pt"


def check_course(run: Resumable, state: Mapping[str, Any], changed: Arguments, last: Path) -> None:
    """Raise `OptionError` where the run would not end with the same weights, though its arguments are the same."""
    if state["world"] != run.processes.world:
        raise OptionError(
            f"{last} was written by {state['world']} process(es), this run has {run.processes.world}: it would "
            f"not end with the same weights. Start as many processes, or begin a new run from its weights"
        )
    if state["samples"] != run.samples and not changed:
        raise OptionError(
            f"{last} is of a run on {state['samples']} samples, and now there are {run.samples}: give the data that "
            "the run began with, or another --out"
        )
    if "optimizer" in changed:
        raise OptionError(f"{last} has the state of another --optimizer, which this one cannot use: give the same")
    then, now = (
        [len(group["params"]) for group in groups]
        for groups in (state["optimizer"]["param_groups"], run.optimizer.param_groups)
    )
    if then != now:
        raise OptionError(
            f"{last} has an optimizer of {sum(then)} parameters in {len(then)} group(s), this run one of {sum(now)} in "
            f"{len(now)}: the changed arguments decide what is trained. Begin a new run from its weights"
        )


@contextmanager
def _showing_a_way_on(args: Kept) -> Iterator[None]:
    """Add advice to errors about damaged files."""
    try:
        yield
    except (CheckpointFormatError, IntegrityError, UnsafeCheckpointError) as error:
        best = Path(args.out) / "best.pt"
        flags = [flag for flag in ("checkpoint", "init") if hasattr(args, flag)]
        start = f", from {best} by --{flags[0]}" if best.is_file() and flags else ""
        raise type(error)(f"{error}. Put a good copy back, or begin anew in another --out{start}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read what a run noted in OUT, such as the arguments that it began with.

    Raises:
        CheckpointFormatError: It is missing or damaged.
    """
    try:
        noted = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointFormatError(f"{file}, which the run in its folder wrote, cannot be read") from error
    except ValueError:
        noted = None
    if not isinstance(noted, dict) or not isinstance(noted.get(HISTORY, []), list):
        raise CheckpointFormatError(f"{file} is damaged: the JSON that the run in its folder wrote is expected")
    return noted


def write_args(file: Path, args: TrainArgs, history: list[Any]) -> None:
    """Write the arguments of a run, and how they have changed.

    Raises:
        OSError: The file cannot be written.
    """
    with writing(file):
        write_text(file, json.dumps(asdict(args) | ({HISTORY: history} if history else {}), indent=1))


def free_names(args: TrainArgs) -> set[str]:
    """Arguments that a resumed run may change: no number that it computes depends on them."""
    free = {name for name, facts in facts_of_args(type(args)).items() if facts["free"]}
    # The rates of a cosine depend on its length.
    return free - {"epochs"} if args.schedule.startswith("cosine") else free


def changes_of(began: Arguments, args: TrainArgs, file: Path) -> dict[str, list[Any]]:
    """Arguments with their values before and now, where they differ and change what the run computes.

    Raises:
        OptionError: One of them is not named by `--allow-changes`.
    """
    changed = differences(began, asdict(args), free_names(args) | {HISTORY}, renamed(type(args)))
    if other := {name: pair for name, pair in changed.items() if name not in args.allowed_changes()}:
        told = "; ".join(printable(f"{name} {before!r}, now {after!r}") for name, (before, after) in other.items())
        raise OptionError(
            f"{file} is of a run with other arguments ({told}): give the same, or another --out; or "
            f"--allow-changes {','.join(map(printable, other))}, if the run is to go on with the new values"
        )
    return changed


def differences(
    began: Arguments, now: Arguments, free: Collection[str], names: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Noted values before and now, by name, where they differ.

    Args:
        began: What a run noted when it began.
        now: What it would note now.
        free: Names that may differ.
        names: Name of an argument in the release before -> present name.
    """
    began = {names.get(name, name): value for name, value in began.items()}
    now = json.loads(json.dumps(now))
    pairs = {name: [began.get(name, ABSENT), now.get(name, ABSENT)] for name in {**began, **now} if name not in free}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_network(method: nn.Module, state: Mapping[str, Tensor], last: Path) -> None:
    """Raise `OptionError` where a state is of another network."""
    own = {name: tensor.shape for name, tensor in method.state_dict().items()}
    stored = {name: getattr(tensor, "shape", None) for name, tensor in state.items()}
    if other := [name for name in {**own, **stored} if own.get(name) != stored.get(name)]:
        raise OptionError(
            f"{last} is of another network: {len(other)} of its tensors are missing, too many or of another shape, "
            f"{first_names(map(printable, other))}. Give the arguments that it was trained with, or another --out"
        )
