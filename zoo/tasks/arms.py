"""One training of a run, from its network to the saved file, whatever its task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.checkpoint import load_report
from zoo.entry import Config
from zoo.formats import KEY
from zoo.learning_rates import param_groups
from zoo.registry import get_entry, model_info
from zoo.tasks.args import FinetuneArgs, finetune_command
from zoo.tasks.outputs import Outputs, read_outputs
from zoo.tasks.saved import write_model
from zoo.tasks.splits import Split
from zoo.tasks.task import Answers, Rows, Task, Trial
from zoo.training import distributed
from zoo.training.distributed import Processes
from zoo.training.finetune import finetuning_header, load_network, origin_of, share_buffers
from zoo.training.judged import take_weights
from zoo.training.loop import autocast, fit
from zoo.training.metrics import Results, or_none
from zoo.training.runlog import Metrics


class Finished(NamedTuple):
    """What became of one training."""

    results: Results
    answers: Answers
    """Of the test part; empty without one."""
    found: Tensor
    """What the network made of each case of the test part; none without one."""
    config: Config
    """Options that the network was built with."""


class Fitted(NamedTuple):
    """A trained network, before its outputs are judged."""

    trial: Trial
    header: dict[str, str]
    origin: Results
    """The weights that it started from."""
    best: Metrics
    config: Config
    """Options that the network was built with."""


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


def train_all(args: FinetuneArgs, task: Task, arms: Sequence[Arm], processes: Processes) -> list[Finished]:
    """Train the networks of a run one after the other; a twin comes behind the network that it is compared with."""
    finished: list[Finished] = []
    for arm in arms:
        options = twin_options(args, finished[-1].config) if arm.is_twin else {}
        finished.append(train(args, task, arm, processes, options))
    return finished


def twin_options(args: FinetuneArgs, config: Config) -> Config:
    """Return the options of the twin of a network, which from a file of the user's may have any.

    Those of a tag hold by its name, also for the command that trains the twin alone.
    """
    return {name: value for name, value in config.items() if name != "num_classes"} if args.checkpoint else {}


def train(args: FinetuneArgs, task: Task, arm: Arm, processes: Processes, options: Config) -> Finished:
    """Train once, choose thresholds on the validation part, and judge the test part; the network is saved.

    Args:
        args: The run.
        task: What is learnt.
        arm: The training.
        processes: From `zoo.training.distributed.start`.
        options: Of the network, beside those that follow from what it starts from.
    """
    command = command_for(args, arm)
    args = arguments_of(args, arm)
    trial, header, origin, best, config = fit_arm(args, task, arm, processes, command=command, options=options)
    outputs = take_best(trial.method, arm.folder / "best.pt")
    with torch.no_grad(), autocast(args.precision, processes.device):
        found = {part: trial.predict(part) for part in ("val", "test") if part in arm.split}
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
    return Finished(results, answers.get("test", {}), found.get("test", torch.empty(0)), config)


def fit_arm(
    args: FinetuneArgs,
    task: Task,
    arm: Arm,
    processes: Processes,
    *,
    command: str,
    options: Config | None = None,
    outputs: Outputs | None = None,
) -> Fitted:
    """Train a network on the training part of an arm, validated where it has another one; `last.pt` has its end.

    Args:
        args: The run.
        task: What is learnt.
        arm: The training.
        processes: From `zoo.training.distributed.start`.
        command: That trains the network again.
        options: Of the network, beside those that follow from what it starts from.
        outputs: How they become answers, where no validation part says it.
    """
    torch.manual_seed(args.seed)
    network = load_network(args, len(task.names), **(options or {}))
    origin, config = origin_of(network), dict(load_report(network).config)
    said = outputs.as_header() if outputs else {}
    header = finetuning_header(network, task.name, command, input=task.contract, classes=task.names, outputs=said)
    params = learning_groups(network, args)
    trial, chosen = task.begin(network, args, arm.split, processes), dict[str, str]()

    def validate(_: nn.Module, epoch: int) -> Metrics:
        share_buffers(trial.method)
        found = trial.predict("val")
        chosen["outputs"] = json.dumps(task.outputs(arm.split, found).as_header())
        return task.metrics(arm.split["val"], found)

    given: dict[str, Any] = {"params": params, "header": header, "validated": chosen}
    validated = validate if "val" in arm.split else None
    best = fit(trial.method, trial.data["train"], args, processes=processes, validate=validated, **given)
    return Fitted(trial, header, origin, best, config)


def take_best(method: nn.Module, file: Path) -> Outputs:
    """Fill a method with the weights of `best.pt`, in eval mode; returns how their outputs become answers."""
    return read_outputs(take_weights(method, file)[KEY], file)[0]


def arguments_of(args: FinetuneArgs, arm: Arm) -> FinetuneArgs:
    """The arguments of one training of a run.

    A twin has the input and the options of the weights that it is compared with, so they are named by their tag.
    """
    args = replace(args, out=str(arm.folder))
    if not arm.is_twin:
        return args
    if not args.checkpoint:
        args = replace(args, model=model_info(args.model).name)
    return replace(args, from_scratch=True, checkpoint="", pair=False)


def command_for(args: FinetuneArgs, arm: Arm) -> str:
    """The command that trains this network again; a twin alone, unless its input is that of the user's own file."""
    return finetune_command(args if arm.is_twin and args.checkpoint else arguments_of(args, arm))


def learning_groups(network: nn.Module, args: FinetuneArgs) -> list[dict[str, Any]]:
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
