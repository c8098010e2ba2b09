"""Shared parts of the fine-tuning recipes: the starting network, evaluation over all processes, results and hints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo import loading
from zoo.checkpoint import is_counter, load_report
from zoo.entry import Preprocessing
from zoo.errors import OptionError
from zoo.fetching import hash_file
from zoo.files import write_text
from zoo.formats import Task, make_header
from zoo.messages import first_names
from zoo.progress import follow, say
from zoo.provenance import base_of
from zoo.registry import get_entry, split_name
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.data import build_loader, length_of, to_device
from zoo.training.distributed import Processes
from zoo.training.judged import take_weights
from zoo.training.loop import autocast, fit
from zoo.training.metrics import Results
from zoo.training.runlog import Metrics, in_words, last_metrics
from zoo.training.saving import writing


class Start(Protocol):
    """Arguments that say what a network starts from."""

    model: str
    checkpoint: str
    from_scratch: bool


def check_start(args: Start) -> None:
    """Raise `OptionError` where a run is told to start from a file and from random weights."""
    if args.checkpoint and args.from_scratch:
        raise OptionError(f"--checkpoint {args.checkpoint} and --from-scratch exclude each other; give one")


def check_trained(network: nn.Module, recipe: str) -> None:
    """Raise `OptionError` where a network that is to segment has tensors that are not from its file.

    Args:
        network: From `zoo.load_model`.
        recipe: Module that trains such networks, where the family has one.
    """
    report = load_report(network)
    if fresh := [name for name in report.fresh if not is_counter(name)]:
        way = f": python -m {recipe}" if find_spec(recipe) else ""
        raise OptionError(
            f"{report.name} from {report.source}: {len(fresh)} tensors of the network are untrained, "
            f"{first_names(fresh)} ({report.fresh[fresh[0]]}), so it has not learned to segment. Fine-tune it "
            f"first{way}"
        )


def train_and_test(
    method: nn.Module,
    data: Mapping[str, Dataset[dict[str, Tensor]]],
    evaluate: Callable[[str, int], Results],
    args: TrainArgs,
    processes: Processes,
    *,
    header: Mapping[str, str],
    params: Iterable[nn.Parameter] | list[dict[str, Any]] | None = None,
    judged: str = "best.pt",
) -> Results:
    """Fit a method, then judge it on the test part.

    Args:
        method: What `zoo.training.loop.fit` takes.
        data: Parts `train` and, where there are any, `val` and `test`.
        evaluate: From a part's name and the epoch to its metrics; those of `val` that are numbers are logged.
        args: The run.
        processes: From `zoo.training.distributed.start`.
        header: Header of the files, from `finetuning_header`.
        params: Parameters or parameter groups to train; default all that require a gradient.
        judged: The weights that are tested, `best.pt` or `last.pt` in OUT.

    Returns:
        `best` or `last`, the metrics of the epoch that is tested, and `test`, those of the test part.
    """

    def validate(_: nn.Module, epoch: int) -> Metrics:
        share_buffers(method)
        return {name: value for name, value in evaluate("val", epoch).items() if isinstance(value, float)}

    best = fit(
        method,
        data["train"],
        args,
        processes=processes,
        validate=validate if "val" in data else None,
        params=params,
        header=header,
    )
    results: Results = {"best": best} if judged == "best.pt" else {"last": last_metrics(Path(args.out))}
    if "test" in data:
        take_weights(method, Path(args.out) / judged)
        with torch.no_grad(), autocast(args.precision, processes.device):
            results["test"] = evaluate("test", 0)
    return results


def origin_of(network: nn.Module) -> Results:
    """The weights that a network of the zoo was filled with: model, tag, source and digest."""
    report = load_report(network)
    return {"model": report.model, "tag": report.tag, "source": report.source, "sha256": report.sha256}


def finetuning_header(
    network: nn.Module,
    task: Task,
    command: str,
    *,
    input: Preprocessing,
    classes: Sequence[str] = (),
    outputs: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """The header of what a fine-tuning run saves.

    Args:
        network: From `load_network`, before it is trained.
        task: What it learns.
        command: From `zoo.training.args.command_of`.
        input: Input contract of the run's images or volumes.
        classes: Names of the outputs, in their order.
        outputs: How they become answers, as for `make_header`, where that is known before the training.
    """
    report = load_report(network)
    return make_header(
        report.model,
        task,
        command,
        input=input,
        options=report.options,
        base=base_of(report),
        classes=classes,
        outputs=outputs,
    )


def starting_input(args: Start) -> Preprocessing:
    """The input that the weights of a run's start expect, as `loading.input_of` finds it.

    For random weights it is the input of the model, or of the tag that was named.
    """
    if args.from_scratch and not split_name(args.model)[1]:
        return get_entry(args.model).preprocessing
    return loading.input_of(args.model, args.checkpoint or None)


def load_network(args: Start, num_classes: int, **options: Any) -> nn.Module:
    """The network to start from, with a head for the classes; 0 for no head. Options are those of `load_model`.

    Raises:
        InputContractError: The file is of a network for images of another number of channels.
    """
    network = loading.load_model(
        args.model,
        pretrained=not args.from_scratch,
        checkpoint=args.checkpoint or None,
        num_classes=num_classes,
        **options,
    )
    if "in_channels" not in options:
        loading.check_channels(args.model, network)
    return network


def digests_of(*files: Path) -> dict[str, str]:
    """The sha256 of files by name, for `weights` of results: it tells which file a folder's results are of."""
    return {file.name: hash_file(file) for file in files}


def write_results(results: Results, out: str | Path, *, hint: str | None = None, rules: Sequence[str] = ()) -> None:
    """Write `results.json` into a folder, whole or not at all.

    Args:
        results: Values that JSON can hold.
        out: The folder.
        hint: What to do next, said after the results are printed in a few lines; may be empty. None for a part of a
            run, which prints nothing.
        rules: Lines to print below the results: how what was found became decisions.

    Raises:
        OSError: The file cannot be written.
    """
    file = Path(out) / "results.json"
    with writing(file):
        write_text(file, json.dumps(results, indent=2))
    if hint is not None:
        print("\n".join([*in_lines(results), *rules, f"results: {file}"]), flush=True)
    if hint:
        say(hint)


def in_lines(results: Results) -> list[str]:
    """The numbers of a run in three lines at most: those of its parts, and means with their deviations."""
    parts = {name: in_words(value) for name, value in results.items() if isinstance(value, dict)}
    means = [f"{name} {words}" for name, words in parts.items() if "mean" in results[name]]
    lines = [f"{name}: {parts[name]}" for name in ("best", "last", "val", "test") if parts.get(name)]
    if means:
        lines.append(", ".join(means))
    return lines[-3:]


def how_to_load(model: str, file: str | Path, **options: Any) -> str:
    """The last line of a run: the call that loads the network that it wrote, with these options."""
    more = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"next: zoo.load_model({get_entry(model).name!r}, checkpoint={str(file)!r}{more})"


def collect(
    rows: Callable[[dict[str, Tensor]], Tensor],
    dataset: Dataset[dict[str, Tensor]],
    args: TrainArgs,
    processes: Processes,
    data_pass: int = 0,
    *,
    one_each: bool = False,
) -> Tensor:
    """Apply `rows` to a whole data set, each process taking its share.

    Args:
        rows: Batch of N samples to (N, K).
        dataset: Indexed by (pass, index).
        args: Batch size, workers, memory layout.
        processes: From `zoo.training.distributed.start`.
        data_pass: Pass that the samples are drawn from.
        one_each: Whether a batch is one sample, as of whole volumes, which have several sizes.

    Returns:
        (len(dataset), K) on the CPU, in the data set's order, the same on every process.
    """
    count, world = length_of(dataset), processes.world
    share = math.ceil(count / world)  # equal shares, so that they can be gathered: the last rows may be done twice
    keys = [(data_pass, (processes.rank + world * i) % count) for i in range(share)]
    batch_size = 1 if one_each else max(1, args.batch_size // world)
    loader = build_loader(dataset, args.workers, batch_size=batch_size, sampler=keys)
    batches = follow(loader, "evaluating, batch", len(loader), is_shown=distributed.rank() == 0)
    own = torch.cat([rows(to_device(batch, processes.device, channels_last=args.channels_last)) for batch in batches])
    everyone: Tensor = distributed.gather(own).view(world, share, -1)
    return everyone.transpose(0, 1).flatten(0, 1)[:count].cpu()


def share_buffers(method: nn.Module) -> None:
    """Give all processes the first one's batch statistics, so that those that are saved are judged."""
    for buffer in method.buffers():
        distributed.broadcast(buffer)
