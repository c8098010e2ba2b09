"""The one training loop: any method, one process or many, killed and resumed to the same weights.

A method is a module whose `forward(batch)` returns a dict of scalars with the key `"loss"`; the loop only ever calls
that. The samples of a step follow from (seed, step), the views of a sample from (seed, pass, index), the method's own
draws from (seed, epoch, step, rank). Nothing else is drawn, so nothing else needs saving.

Files in OUT: `last.pt` and `best.pt` (the weights; `load_model(checkpoint=...)` reads both; `last.pt` also holds what a
resumed run needs), `ranks/` (the state of the other processes), `log.jsonl` (one line an epoch), `run.log` (the run's
messages), `args.json`, `curves.png`; and `run.lock` while a run is at work.

SIGTERM, SIGUSR1 and SIGINT save `last.pt` after the step, in a validation after the epoch, and end the process with
exit code 75. A second SIGINT ends it at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from zoo.errors import OptionError
from zoo.progress import follow
from zoo.stopping import deferring
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.data import Batches, batch_size_of, build_loader, length_of, seed_of, to_device
from zoo.training.distributed import Processes
from zoo.training.optim import lr_factor
from zoo.training.pace import Pace, base_in_words, begin_pace
from zoo.training.run import Run
from zoo.training.runlog import Metrics, RunLog
from zoo.training.session import at_work

Validate = Callable[[nn.Module, int], Metrics]


def fit(
    method: nn.Module,
    dataset: Dataset[Any],
    args: TrainArgs,
    *,
    processes: Processes,
    validate: Validate | None = None,
    params: Iterable[nn.Parameter] | list[dict[str, Any]] | None = None,
    header: Mapping[str, str] = MappingProxyType({}),
    validated: Mapping[str, str] = MappingProxyType({}),
    base: str = "",
) -> Metrics:
    """Train `method` on `dataset` as `args` say and return the metrics of the best epoch.

    Args:
        method: Module from a batch to a dict of scalar losses and metrics; `"loss"` is minimised.
        dataset: Map-style, indexed by `(pass, index)`, items are what `method` takes. With a method `order`, a
            `zoo.training.data.Order`, it says which samples make up a step; else each pass is shuffled.
        args: The run.
        processes: From `zoo.training.distributed.start`.
        validate: Called after each epoch on every process as `validate(method, epoch)` in eval mode, the first epoch is
            0 here and 1 in all that is written and said; the mean of its metrics over the processes is logged as
            `val_<name>`.
        params: Parameters or parameter groups to train; default all that require a gradient. A group's `from_epoch` is
            the first epoch in which it learns.
        header: Header of `best.pt` and `last.pt`, from `zoo.formats.header`; it is not checked.
        validated: What the header says besides of weights at the end of an epoch. `validate` fills it anew each time,
            as with thresholds that it has chosen.
        base: Name of the weights that the run starts from, for its first line; default those that the zoo loaded into
            the method.

    Raises:
        OptionError: OUT holds a run and `resume` is off, another run is at work there, the run was started in another
            way, the arguments do not fit the method or the machine, or there is no metric of the name `monitor`.
        CheckpointFormatError: A file that the run resumes from is missing or damaged.
        IntegrityError: Its digest shows that it is damaged.
        FloatingPointError: The loss is not finite (the message has the step), or `monitor` was never a number.
        OSError: OUT cannot be written. What was saved before stays.
        Stopped: A signal ended the run; `last.pt` has its last step, from which `resume` goes on.
    """
    if validate is None and args.monitor.lstrip("+").startswith("val_"):
        raise OptionError(f"--monitor {args.monitor}: this run has no validation; give a training metric, as loss")
    with at_work(Path(args.out), processes), deferring():
        run = Run(method, args, processes, params, header, samples=length_of(dataset))
        batches = Batches(run.samples, args, processes, getattr(dataset, "order", None))
        run.begin()
        record = RunLog(run.out, first_epoch=run.epoch, enabled=processes.is_main, tensorboard=args.tensorboard)
        loader = build_loader(dataset, args.workers, batch_sampler=batches)
        pace = begin_pace(run, dataset, batches, base or base_in_words(method))
        for epoch in range(run.epoch, args.epochs):
            if run.is_exhausted():
                break
            batches.set_epoch(epoch, run.step)
            started = time.perf_counter()
            metrics = train_epoch(run, loader, epoch, pace)
            if validate is not None:
                metrics |= {f"val_{k}": v for k, v in _validate(run, validate, epoch).items()}
            run.check_folder()
            record.write({"epoch": epoch + 1, **metrics, "seconds": time.perf_counter() - started})
            run.finish_epoch(epoch, metrics, validated)
            run.stop_if_asked()
        record.close()
        run.stop_if_asked()
    if run.best == math.inf:
        raise FloatingPointError(f"--monitor {args.monitor} was not finite after any epoch, so no epoch is the best")
    return run.best_metrics


def train_epoch(run: Run, loader: Iterable[Any], epoch: int, pace: Pace) -> Metrics:
    """One optimiser step for each `accumulate` batches; returns the means of the method's losses and metrics."""
    run.method.train()
    parts, steps, done = run.args.accumulate, pace.steps, run.step
    shown = follow(
        loader,
        f"epoch {epoch + 1}",
        steps * parts,
        done=done * parts,
        line=partial(pace.line, run, epoch),
        is_shown=run.processes.is_main,
    )
    for i, batch in enumerate(shown, start=done * parts):
        step, part = divmod(i, parts)
        torch.manual_seed(seed_of(run.args.seed, epoch, i, run.processes.rank, 1))  # the 1: no sample has this seed
        is_last_part = part == parts - 1
        outputs = _forward_backward(run, batch, sync=is_last_part)
        _check_finite(run, outputs["loss"], epoch, step)
        run.add(outputs)
        if is_last_part:
            _step(run, lr_factor(run.args, epoch, step, steps), epoch)
            run.step = step + 1
            run.stop_if_asked()
    return run.mean_of_sums()


def _forward_backward(run: Run, batch: Any, *, sync: bool) -> dict[str, Tensor]:
    no_sync = isinstance(run.wrapped, DistributedDataParallel) and not sync
    with run.wrapped.no_sync() if no_sync else nullcontext():
        with autocast(run.args.precision, run.processes.device):
            batch = to_device(batch, run.processes.device, channels_last=run.args.channels_last)
            outputs: dict[str, Tensor] = run.wrapped(batch)
        run.scaler.scale(outputs["loss"] / run.args.accumulate).backward()  # type: ignore[no-untyped-call]
    return outputs


def _check_finite(run: Run, loss: Tensor, epoch: int, step: int) -> None:
    if not torch.isfinite(loss):
        last = run.out / "last.pt"
        kept = f"the weights that were saved before are in {last}" if last.exists() else "nothing is saved yet"
        raise FloatingPointError(
            f"the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1} (process {run.processes.rank}); {kept}. "
            f"A smaller --lr or --clip-grad 1 may help."
        )


def _step(run: Run, factor: float, epoch: int) -> None:
    for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
        waits = epoch < group.get("from_epoch", 0)
        group["lr"] = 0.0 if waits else peak * factor * run.plateau.factor
    if run.args.clip_grad:
        run.scaler.unscale_(run.optimizer)
        params = [p for group in run.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, run.args.clip_grad)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)


def _validate(run: Run, validate: Validate, epoch: int) -> Metrics:
    """Run the recipe's validation in eval mode, its draws fixed by (seed, rank)."""
    run.method.eval()
    torch.manual_seed(seed_of(run.args.seed, run.processes.rank))
    with torch.no_grad(), autocast(run.args.precision, run.processes.device):
        metrics = validate(run.method, epoch)
    # Processes that disagree about the best epoch, or about stopping, would wait for each other for ever.
    return distributed.mean(metrics, 1.0, run.processes.device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context of the forward pass for a precision of `TrainArgs`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def mean_losses(
    method: nn.Module, loader: Iterable[Any], processes: Processes, *, channels_last: bool = False
) -> Metrics:
    """Means of a method's losses and metrics over a loader and all processes, weighted by batch size."""
    total, count = Metrics(), 0
    for batch in follow(
        loader, "validating", len(loader) if isinstance(loader, Sized) else 0, is_shown=distributed.rank() == 0
    ):
        size = batch_size_of(batch)
        for name, value in method(to_device(batch, processes.device, channels_last=channels_last)).items():
            total[name] = total.get(name, 0.0) + value.item() * size
        count += size
    if not count:
        raise OptionError("the validation set is empty on this process; give at least one sample for each process")
    return distributed.mean({k: v / count for k, v in total.items()}, count, processes.device)
