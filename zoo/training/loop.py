"""The one training loop: any method, one process or many, killed and resumed to the same weights.

A method is a module whose `forward(batch)` returns a dict of scalars with the key `"loss"`; the loop only ever calls
that. What follows from where: the samples of a step from (seed, step), the views of a sample from (seed, pass, index),
the method's own draws from (seed, epoch, step, rank). Nothing else is drawn, so nothing else needs saving.

Files in OUT: `last.pt` and `best.pt` (the weights; `load_model(checkpoint=...)` reads both; `last.pt` also holds what
a resumed run needs), `ranks/` (the buffers of the other processes), `log.jsonl` (one line an epoch), `args.json`,
`curves.png`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from zoo.errors import OptionError
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.data import Batches, batch_size_of, build_loader, length_of, place, seed_of
from zoo.training.distributed import Processes
from zoo.training.optim import Plateau, build_optimizer, lr_factor
from zoo.training.runlog import RunLog, write_atomically

Metrics = dict[str, float]
Validate = Callable[[nn.Module, int], Metrics]

log = logging.getLogger("zoo")

FIXED = ("batch_size", "accumulate", "steps_per_epoch", "seed", "optimizer")
"""Arguments that a resumed run must share with its beginning; the others may change and then hold from there on."""


def fit(
    method: nn.Module,
    dataset: Dataset[Any],
    args: TrainArgs,
    *,
    processes: Processes,
    validate: Validate | None = None,
    params: Iterable[nn.Parameter] | list[dict[str, Any]] | None = None,
) -> Metrics:
    """Train `method` on `dataset` as `args` say and return the metrics of the best epoch.

    Args:
        method: Module from a batch to a dict of scalar losses and metrics; `"loss"` is minimised.
        dataset: Map-style, indexed by `(pass, index)`, items are what `method` takes.
        args: The run.
        processes: From `zoo.training.distributed.start`.
        validate: Called after each epoch on every process as `validate(method, epoch)` in eval mode; the mean of its
            metrics over the processes is logged as `val_<name>`.
        params: Parameters or parameter groups to train; default all that require a gradient.

    Raises:
        OptionError: OUT holds a run and `resume` is off, the run was started in another way, the arguments do not fit
            the method or the machine, or there is no metric of the name `monitor`.
        FloatingPointError: The loss is not finite (the message has the step), or `monitor` was never a number.
    """
    if validate is None and args.monitor.lstrip("+").startswith("val_"):
        raise OptionError(f"--monitor {args.monitor}: this run has no validation")
    run = _Run(method, args, processes, params)
    batches = Batches(length_of(dataset), args, processes)
    run.begin()
    record = RunLog(Path(args.out), first_epoch=run.epoch, enabled=processes.is_main, tensorboard=args.tensorboard)
    loader = build_loader(dataset, batches, args.workers)
    for epoch in range(run.epoch, args.epochs):
        if run.is_exhausted():
            break
        batches.set_epoch(epoch)
        started = time.perf_counter()
        metrics = run.train_epoch(loader, epoch, batches.steps)
        if validate is not None:
            metrics |= {f"val_{k}": v for k, v in run.validate(validate, epoch).items()}
        record.write({"epoch": epoch, **metrics, "seconds": time.perf_counter() - started})
        run.finish_epoch(epoch, metrics)
    record.close()
    if run.best == math.inf:
        raise FloatingPointError(f"--monitor {args.monitor} was a number after no epoch: none can be called the best")
    return run.best_metrics


class _Run:
    """The state of a run: what `last.pt` holds."""

    def __init__(self, method: nn.Module, args: TrainArgs, processes: Processes, params: Any) -> None:
        self.args, self.processes, self.out = args, processes, Path(args.out)
        if args.channels_last and any(p.ndim == 5 for p in method.parameters()):
            raise OptionError("--channels-last is for 2D networks; this one has 3D convolutions")
        if args.sync_bn and processes.device.type != "cuda":
            raise OptionError(f"--sync-bn needs GPUs, this run is on {processes.device.type}")
        if args.sync_bn:
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if args.channels_last else torch.preserve_format
        self.method = method.to(processes.device, memory_format=layout)  # type: ignore[call-overload]
        # Buffers start equal, then are each process's own (saved per rank): broadcasting a queue at every step would
        # cost more than the step.
        for buffer in self.method.buffers():
            distributed.broadcast(buffer)
        self.wrapped = (
            DistributedDataParallel(self.method, broadcast_buffers=False) if processes.world > 1 else self.method
        )
        trained = params if params is not None else [p for p in self.method.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(trained, args)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.plateau = Plateau(args)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=args.precision == "fp16")
        self.epoch, self.waited, self.best, self.best_metrics = 0, 0, math.inf, Metrics()

    def begin(self) -> None:
        """Start afresh in an empty folder, or take up the run that lies there."""
        last = self.out / "last.pt"
        if last.exists() and not self.args.resume:
            raise OptionError(f"{last} exists; give --resume to go on from it, or another --out")
        if last.exists():
            self._load(last)
        epochs = distributed.gather(torch.tensor([self.epoch], device=self.processes.device)).tolist()
        if len(set(epochs)) > 1:
            raise OptionError(f"the processes found epochs {epochs} in {self.out}: all must see the same folder")
        if self.processes.is_main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / "args.json", lambda p: p.write_text(json.dumps(asdict(self.args), indent=1)))
        distributed.barrier()

    def train_epoch(self, loader: Iterable[Any], epoch: int, steps: int) -> Metrics:
        """One optimiser step for each `accumulate` batches; returns the mean of what the method returned."""
        self.method.train()
        total: dict[str, Tensor] = {}
        parts = self.args.accumulate
        bar = tqdm(loader, desc=f"epoch {epoch}", disable=None if self.processes.is_main else True, leave=False)
        for i, batch in enumerate(bar):
            step, part = divmod(i, parts)
            torch.manual_seed(seed_of(self.args.seed, epoch, i, self.processes.rank))
            is_last_part = part == parts - 1
            outputs = self._forward_backward(batch, sync=is_last_part)
            self._check_finite(outputs["loss"], epoch, step)
            for name, value in outputs.items():
                total[name] = total.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            if is_last_part:
                self._step(lr_factor(self.args, epoch, step, steps))
        metrics = {name: value.item() / (steps * parts) for name, value in total.items()}
        metrics = distributed.mean(metrics, 1.0, self.processes.device)
        return metrics | {"lr": self.optimizer.param_groups[0]["lr"]}

    def _forward_backward(self, batch: Any, *, sync: bool) -> dict[str, Tensor]:
        no_sync = isinstance(self.wrapped, DistributedDataParallel) and not sync
        with self.wrapped.no_sync() if no_sync else nullcontext():
            with autocast(self.args.precision, self.processes.device):
                outputs: dict[str, Tensor] = self.wrapped(self._place(batch))
            self.scaler.scale(outputs["loss"] / self.args.accumulate).backward()  # type: ignore[no-untyped-call]
        return outputs

    def _place(self, batch: Any) -> Any:
        return place(batch, self.processes.device, channels_last=self.args.channels_last)

    def _check_finite(self, loss: Tensor, epoch: int, step: int) -> None:
        if not torch.isfinite(loss):
            kept = f"the weights before this epoch are in {self.out / 'last.pt'}" if epoch else "nothing is saved yet"
            raise FloatingPointError(
                f"the loss is {loss.item()} at epoch {epoch}, step {step} (process {self.processes.rank}); {kept}. "
                f"A smaller --lr or --clip-grad 1 may help."
            )

    def _step(self, factor: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor * self.plateau.factor
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizer)
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def validate(self, validate: Validate, epoch: int) -> Metrics:
        """Run the recipe's validation in eval mode, its draws fixed by (seed, rank)."""
        self.method.eval()
        torch.manual_seed(seed_of(self.args.seed, self.processes.rank))
        with torch.no_grad(), autocast(self.args.precision, self.processes.device):
            metrics = validate(self.method, epoch)
        # Processes that disagreed on what is best, or on when to stop, would wait for each other for ever.
        return distributed.mean(metrics, 1.0, self.processes.device)

    def finish_epoch(self, epoch: int, metrics: Metrics) -> None:
        """Note the result, then save: `best.pt` first, so that a kill between the two repeats the epoch."""
        name, sign = self.args.monitor.lstrip("+"), -1.0 if self.args.monitor.startswith("+") else 1.0
        if name not in metrics:
            raise OptionError(f"--monitor {name}: no such metric; there are {', '.join(metrics)}")
        value = sign * metrics[name]
        if math.isnan(value):
            log.warning("%s is NaN after epoch %d", name, epoch)
        improved = value < self.best
        self.waited = 0 if improved else self.waited + 1
        self.plateau.observe(improved)
        if improved:
            self.best, self.best_metrics = value, {"epoch": epoch, **metrics}
        self.epoch = epoch + 1
        self._save(improved)

    def is_exhausted(self) -> bool:
        """Whether `patience` epochs went by without improvement."""
        return 0 < self.args.patience <= self.waited

    def _rank_file(self, rank: int, epoch: int) -> Path:
        return self.out / "ranks" / f"epoch{epoch}-rank{rank}.pt"

    def _save(self, improved: bool) -> None:
        # last.pt is written last and says which epoch the other processes' files are of: it is the commit.
        if not self.processes.is_main:
            write_atomically(
                self._rank_file(self.processes.rank, self.epoch),
                lambda p: torch.save(dict(self.method.named_buffers()), p),
            )
        distributed.barrier()
        if self.processes.is_main:
            weights = {"epoch": self.epoch, "model": self.method.state_dict(), "metrics": self.best_metrics}
            if improved:
                write_atomically(self.out / "best.pt", lambda p: torch.save(weights, p))
            write_atomically(self.out / "last.pt", lambda p: torch.save(weights | self._resume_state(), p))
            for file in (self.out / "ranks").glob("epoch*-rank*.pt"):
                if not file.name.startswith(f"epoch{self.epoch}-"):
                    file.unlink()
        distributed.barrier()

    def _resume_state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state_dict(),
            "waited": self.waited,
            "best": self.best,
            "world": self.processes.world,
        }

    def _load(self, last: Path) -> None:
        state = torch.load(last, map_location="cpu", weights_only=True)
        if state["world"] != self.processes.world:
            raise OptionError(
                f"{last} was written by {state['world']} process(es), this run has {self.processes.world}: it would "
                f"not end with the same weights. Start as many, or begin a new run from its weights."
            )
        began = json.loads((self.out / "args.json").read_text())
        if other := [
            f"{k} {began[k]!r}, now {getattr(self.args, k)!r}" for k in FIXED if began[k] != getattr(self.args, k)
        ]:
            raise OptionError(
                f"{last} is of a run with other arguments ({'; '.join(other)}): give the same, or another --out"
            )
        self.method.load_state_dict(state["model"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)  # the arguments of this run, not of the one that is resumed
        self.scaler.load_state_dict(state["scaler"])
        self.plateau.load_state_dict(state["plateau"])
        self.epoch, self.waited, self.best = state["epoch"], state["waited"], state["best"]
        self.best_metrics = state["metrics"]
        if not self.processes.is_main:
            buffers = torch.load(
                self._rank_file(self.processes.rank, self.epoch), map_location="cpu", weights_only=True
            )
            for name, buffer in self.method.named_buffers():
                buffer.copy_(buffers[name])


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context of the forward pass for a precision of `TrainArgs`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def mean_losses(
    method: nn.Module, loader: Iterable[Any], processes: Processes, *, channels_last: bool = False
) -> Metrics:
    """Mean of what the method returns over a loader, weighted by batch size, over all processes."""
    total, count = Metrics(), 0
    for batch in loader:
        size = batch_size_of(batch)
        for name, value in method(place(batch, processes.device, channels_last=channels_last)).items():
            total[name] = total.get(name, 0.0) + value.item() * size
        count += size
    if not count:
        raise OptionError("the validation set is empty on this process")
    return distributed.mean({k: v / count for k, v in total.items()}, count, processes.device)
