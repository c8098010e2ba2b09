"""The state of a run, and how it is saved and taken up again."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoo import stopping
from zoo.errors import OptionError
from zoo.formats import KEY
from zoo.stopping import Stopped
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.distributed import Processes
from zoo.training.lock import check_held
from zoo.training.optim import Plateau, build_optimizer
from zoo.training.resuming import must_resume, rank_file, take_up, write_args
from zoo.training.runlog import Metrics
from zoo.training.saving import write_state

log = logging.getLogger("zoo")

_FROM_ONE = "epochs_from_one"
"""Key of `last.pt`: the first epoch is called 1. Runs that began before that call it 0."""


class Run:
    """The method, its optimiser and how far they got: what `last.pt` holds."""

    def __init__(
        self,
        method: nn.Module,
        args: TrainArgs,
        processes: Processes,
        params: Any,
        header: Mapping[str, str],
        *,
        samples: int = 0,
    ) -> None:
        self.args, self.processes, self.out, self.samples = args, processes, Path(args.out), samples
        self.header, self.validated = dict(header), dict[str, str]()
        is_3d = any(p.ndim == 5 for p in method.parameters())
        if args.channels_last and is_3d:
            raise OptionError("--channels-last is for 2D networks; this one has 3D convolutions")
        if args.precision == "bf16" and is_3d and processes.device.type == "cpu":
            # Measured with PyTorch 2.15: gradients of 1e25 and more, or infinite, for maps of 2x2x2 voxels.
            raise OptionError(
                "--precision bf16: on a CPU PyTorch's 3D convolutions have wrong gradients in bfloat16 where maps are "
                "small; use fp32 there, or a GPU"
            )
        if args.sync_bn and processes.device.type != "cuda":
            raise OptionError(f"--sync-bn needs GPUs, but this run is on {processes.device.type}")
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
        self.epoch, self.step, self.waited, self.best, self.best_metrics = 0, 0, 0, math.inf, Metrics()
        self.sums: dict[str, Tensor] = {}
        """Sums of what the method returned in the steps of this epoch, on this process."""

    def begin(self) -> None:
        """Start afresh in an empty folder, or take up the run that lies there.

        Raises:
            OptionError: The folder holds a run and `resume` is off, or a run of other arguments, another network, or
                another number of processes.
            CheckpointFormatError: A file of that run is missing or damaged.
            IntegrityError: Its digest shows that it is damaged.
        """
        with distributed.raising_together():
            self.history = take_up(self) if must_resume(self.out, resume=self.args.resume) else []
        position = torch.tensor([[self.epoch, self.step]], device=self.processes.device)
        found = distributed.gather(position).tolist()
        if found.count(found[0]) < len(found):
            raise OptionError(
                f"the processes found epochs {[epoch for epoch, _ in found]} in {self.out}: all must see the same "
                "folder"
            )
        if self.processes.is_main:
            write_args(self.out / "args.json", self.args, self.history)
        distributed.barrier()

    def finish_epoch(self, epoch: int, metrics: Metrics, validated: Mapping[str, str] = MappingProxyType({})) -> None:
        """Note the result of an epoch, from 0, and what the header says of its weights alone; then save."""
        self.validated = dict(validated)
        name, sign = self.args.monitor.lstrip("+"), -1.0 if self.args.monitor.startswith("+") else 1.0
        noted = {"epoch": epoch + 1, **metrics}
        if name not in metrics and self.args.monitor != "+epoch":  # the smallest epoch is the first: a slip
            known = ", ".join([*metrics, "+epoch"])
            raise OptionError(f"--monitor {self.args.monitor}: no such metric; there are {known}")
        value = sign * noted[name]
        if math.isnan(value):
            log.warning("%s is NaN after epoch %d", name, epoch + 1)
        improved = value < self.best
        self.waited = 0 if improved else self.waited + 1
        self.plateau.observe(value)
        if improved:
            self.best, self.best_metrics = value, noted
        self.epoch, self.step, self.sums = epoch + 1, 0, {}
        self._save()

    def is_exhausted(self) -> bool:
        """Whether `patience` epochs have passed without improvement."""
        return 0 < self.args.patience <= self.waited

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` where a signal has asked any of the processes to end; called by all of them."""
        if not distributed.any_of(bool(stopping.asked_by()), self.processes.device):
            return
        if self.step:
            self.check_folder()
            self._save()
        where = f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"
        raise Stopped(
            f"stopped by {stopping.asked_by() or 'a signal to another process'} after {where}, saved "
            f"in {self.out / 'last.pt'}: the same command with --resume goes on"
        )

    def check_folder(self) -> None:
        """Raise `OptionError` on all processes where the run no longer holds OUT."""
        with distributed.raising_together():
            if self.processes.is_main:
                check_held(self.out)

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Add what the method returned for one part of a step."""
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()

    def mean_of_sums(self) -> Metrics:
        """Means over the steps of this epoch and over the processes, and the learning rate."""
        count = self.step * self.args.accumulate
        metrics = {name: value.item() / count for name, value in self.sums.items()}
        return distributed.mean(metrics, 1.0, self.processes.device) | {
            "lr": max(group["lr"] for group in self.optimizer.param_groups)
        }

    def _weights(self) -> dict[str, Any]:
        weights = {"epoch": self.epoch, "model": self.method.state_dict(), "metrics": self.best_metrics}
        # What an epoch's validation chose is not of weights that have learnt on since.
        header = self.header | ({} if self.step else self.validated)
        return weights | ({KEY: header} if header else {})

    def _save(self) -> None:
        # last.pt is the commit: it says which files of the other processes belong to it. best.pt comes after it, and is
        # made again from it if the process is killed between the two.
        if not self.processes.is_main:
            own = {"buffers": dict(self.method.named_buffers()), "sums": self.sums}
            write_state(rank_file(self.out, self.epoch, self.step, self.processes.rank), own)
        distributed.barrier()
        if self.processes.is_main:
            write_state(self.out / "last.pt", self._weights() | self._resume_state())
            if self._is_best():
                write_state(self.out / "best.pt", self._weights())
            others = {rank_file(self.out, self.epoch, self.step, rank) for rank in range(1, self.processes.world)}
            for file in (self.out / "ranks").glob("epoch*-rank*.pt"):
                if file not in others:
                    file.unlink()
        distributed.barrier()

    def _is_best(self) -> bool:
        """Whether the weights are those of the best epoch."""
        return self.step == 0 and self.best_metrics.get("epoch") == self.epoch

    def _resume_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "sums": self.sums,
            "samples": self.samples,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state_dict(),
            "waited": self.waited,
            "best": self.best,
            "world": self.processes.world,
            _FROM_ONE: True,
        }

    def fill(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Take up the state of `last.pt`, and of this process's own file; the first process has none."""
        self.method.load_state_dict(state["model"])
        # Settings are this run's, not the resumed run's; the rate stays that of the last step until the next.
        settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(ours)
        if state["scaler"]:  # empty but for fp16
            self.scaler.load_state_dict(state["scaler"])
        self.plateau.load_state_dict(state["plateau"])
        self.epoch, self.step, self.waited, self.best = (state[k] for k in ("epoch", "step", "waited", "best"))
        self.best_metrics = dict(state["metrics"])
        if "epoch" in self.best_metrics and _FROM_ONE not in state:
            self.best_metrics["epoch"] += 1
        noted = {} if self.step else state.get(KEY, {})
        self.validated = {key: text for key, text in noted.items() if key not in self.header}
        sums = own["sums"] if own else state["sums"]
        self.sums = {name: value.to(self.processes.device) for name, value in sums.items()}
        if own:
            for name, buffer in self.method.named_buffers():
                buffer.copy_(own["buffers"][name])
        if self.processes.is_main and self._is_best():
            write_state(self.out / "best.pt", self._weights())
