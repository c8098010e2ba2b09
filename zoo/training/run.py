"""The state of a run, and how it is saved and taken up again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.header import KEY
from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.distributed import Processes
from zoo.training.optim import Plateau, build_optimizer
from zoo.training.runlog import Metrics

log = logging.getLogger("zoo")

FIXED = ("batch_size", "accumulate", "steps_per_epoch", "seed", "optimizer")
"""Arguments that a resumed run must share with its beginning; the others may change and then hold from there on."""


class Run:
    """The method, its optimiser and how far they got: what `last.pt` holds."""

    def __init__(
        self, method: nn.Module, args: TrainArgs, processes: Processes, params: Any, header: Mapping[str, str]
    ) -> None:
        self.args, self.processes, self.out, self.header = args, processes, Path(args.out), dict(header)
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
        self.plateau.observe(value)
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
            weights |= {KEY: self.header} if self.header else {}
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
        began, now = json.loads((self.out / "args.json").read_text()), asdict(self.args)
        if other := [
            f"{k} {began[k]!r}, now {getattr(self.args, k)!r}" for k in FIXED if began[k] != getattr(self.args, k)
        ]:
            raise OptionError(
                f"{last} is of a run with other arguments ({'; '.join(other)}): give the same, or another --out"
            )
        if changed := [
            f"{k} {v!r} -> {now[k]!r}" for k, v in began.items() if k in now and k != "resume" and now[k] != v
        ]:
            log.warning("resumed with other arguments than before: %s", ", ".join(changed))
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
