"""What a fine-tuning run would do, without doing it: `zoo finetune --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from zoo.messages import counted
from zoo.progress import duration
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.arms import Arm, arguments_of, learning_groups
from zoo.tasks.cautions import warnings_of
from zoo.tasks.first_look import look_at
from zoo.tasks.run import plan
from zoo.tasks.task import Task
from zoo.training import distributed
from zoo.training.data import Batches, build_loader, length_of, to_device
from zoo.training.distributed import Processes
from zoo.training.finetune import load_network
from zoo.training.loop import autocast
from zoo.training.metrics import Results

_STEPS = 2
"""Steps that are tried; the first one also pays for what happens once."""


def try_run(args: FinetuneArgs, read: Callable[[FinetuneArgs], Task]) -> Results:
    """Return what would be trained on what, and how long a step takes; nothing is written.

    Raises:
        OptionError: As the run itself would.
        InputContractError: One of the images that were tried cannot be what the network takes.
    """
    task, arms, args = plan(args, read, 1)
    seen = look_at(task.cases, task.contract, args)
    warnings = warnings_of(task, arms, args, seen)
    return {
        "task": task.name,
        "outputs": list(task.names),
        "input": seen.input,
        "trainings": len(arms) + args.final,
        "cases": {part: task.count(rows) for part, rows in arms[0].split.items()},
        **_try(args, task, arms[0], distributed.start(args.device)),
        "warnings": warnings,
    }


def lines_of(found: Results) -> list[str]:
    """Return what `try_run` found in a few lines."""
    parts = [f"  {part}: {_counts(counts)}" for part, counts in found["cases"].items()]
    steps, seconds = found["epochs"] * found["steps_per_epoch"], found["seconds_per_step"]
    trainings = f"{found['trainings']} trainings, each of " if found["trainings"] > 1 else ""
    most = found["trainings"] * steps * seconds
    return [
        f"{found['task']}: {', '.join(found['outputs'])}",
        f"  input: {found['input']}",
        *parts,
        f"  {trainings}{counted(found['epochs'], 'epoch')} of {counted(found['steps_per_epoch'], 'step')} of "
        f"{counted(found['batch_size'], 'case')}",
        f"  {found['parameters']} parameters learn; a step takes {seconds:.3g} s here, images included: at most "
        f"{duration(most)} for all steps, and what validation takes",
    ]


def _counts(counts: Results) -> str:
    """The counts of a part in words."""
    kinds = [f"{name} {n}" for each in counts.values() if isinstance(each, dict) for name, n in each.items()]
    plain = [f"{n} {name}" for name, n in counts.items() if not isinstance(n, dict)]
    return ", ".join(plain) + (f" ({', '.join(kinds)})" if kinds else "")


def _try(args: FinetuneArgs, task: Task, arm: Arm, processes: Processes) -> Results:
    """Make a few steps in which nothing is learnt."""
    args = arguments_of(args, arm)
    torch.manual_seed(args.seed)
    network = load_network(args, len(task.names))
    groups = learning_groups(network, args)
    trial = task.begin(network, args, arm.split, processes)
    method, data = trial.method.to(processes.device).train(), trial.data["train"]
    batches = Batches(length_of(data), args, processes, getattr(data, "order", None))
    batches.set_epoch(0)
    learning = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.SGD(learning, 0.0)
    times, before = [], time.perf_counter()
    for batch in islice(_again(build_loader(data, 0, batch_sampler=batches)), _STEPS * args.accumulate):
        _step(method, optimizer, batch, args, processes)
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return {
        "epochs": args.epochs,
        "steps_per_epoch": batches.steps,
        "batch_size": args.batch_size,
        "parameters": sum(parameter.numel() for parameter in learning),
        "seconds_per_step": min(times) * args.accumulate,
    }


def _again(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _step(
    method: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, args: FinetuneArgs, processes: Processes
) -> None:
    with autocast(args.precision, processes.device):
        loss = method(to_device(batch, processes.device, channels_last=args.channels_last))["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
