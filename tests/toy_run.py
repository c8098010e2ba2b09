"""A small run for the tests of the training loop, with everything that a resumed run must bring back.

Batch norm and a memory buffer that differ between processes, dropout, a momentum copy, draws in the data and in the
method; and ways to be killed at a chosen moment. Runs by itself and under torchrun.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from zoo.training import distributed
from zoo.training.args import TrainArgs, arg, parse_args, run_command
from zoo.training.contrastive import update_momentum
from zoo.training.data import Key, seeded
from zoo.training.loop import fit, mean_losses
from zoo.training.runlog import Metrics
from zoo.training.session import running


@dataclass(kw_only=True)
class ToyArgs(TrainArgs):
    """A run of a few steps."""

    data: str = arg("unused", "")
    epochs: int = arg("length of the run", 4)
    batch_size: int = arg("samples per optimiser step", 8)
    steps_per_epoch: int = arg("steps in one epoch", 4)
    lr: float = arg("learning rate", 0.1)
    samples: int = arg("size of the data set", 28)
    plain: bool = arg(
        "without batch norm, dropout, memory and draws: the loss of a batch is a mean over samples", False
    )
    validate: bool = arg("measure the loss on fixed samples after each epoch", False)
    pause: float = arg("seconds that every step takes", 0.0, free=True)
    kill_step: int = arg("call of the method in which the last process gets --kill-signal", 0, free=True)
    kill_signal: int = arg("that", signal.SIGKILL, free=True)
    kill_save: int = arg("writing of last.pt in which the first process kills itself", 0, free=True)


class ToyData(Dataset[tuple[Tensor, Tensor]]):
    """Noisy patterns in four classes; item `(pass, index)`."""

    def __init__(self, args: ToyArgs) -> None:
        with seeded(args.seed):
            self.patterns = torch.randn(4, 1, 8, 8)
        self.args = args

    def __len__(self) -> int:
        return self.args.samples

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        data_pass, index = key
        with seeded(self.args.seed, data_pass, index):
            return self.patterns[index % 4] + torch.randn(1, 8, 8), torch.tensor(index % 4)


class Toy(nn.Module):
    """Classifies, and pulls its features towards those of a momentum copy and away from what it remembers."""

    def __init__(self, args: ToyArgs) -> None:
        super().__init__()
        norm, drop = (nn.Identity(), nn.Identity()) if args.plain else (nn.BatchNorm2d(6), nn.Dropout(0.3))
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), drop)
        self.head = nn.Linear(96, 4)
        self.average = copy.deepcopy(self.body).requires_grad_(False)
        self.register_buffer("memory", torch.zeros(96))
        self.memory: Tensor
        self.args, self.calls = args, 0

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.args.kill_step and distributed.rank() == distributed.world() - 1:
            os.kill(os.getpid(), self.args.kill_signal)
        time.sleep(self.args.pause)
        images, classes = batch
        features = self.body(images)
        logits = self.head(features)
        loss = F.cross_entropy(logits, classes)
        if not self.args.plain:
            if self.training:
                update_momentum(self.body, self.average, 0.9)
            away = features - self.average(images + torch.rand_like(images)).detach() - 0.1 * self.memory
            loss = loss + 0.1 * away.square().mean()
            if self.training:
                self.memory.lerp_(features.detach().mean(0).float(), 0.5)
        return {"loss": loss, "accuracy": (logits.argmax(1) == classes).float().mean()}


def main(argv: list[str]) -> Metrics:
    """Run, as a recipe does."""
    args = parse_args(ToyArgs, argv)
    with running(args) as processes:
        torch.manual_seed(args.seed)
        data = ToyData(args)
        held_out = Subset(ToyData(args), [(0, 1000 + i) for i in range(processes.rank, 10, processes.world)])

        def validate(method: nn.Module, epoch: int) -> Metrics:
            return mean_losses(method, DataLoader(held_out, 3, generator=torch.Generator()), processes)

        if args.kill_save:
            die_in_save(args.kill_save)
        return fit(Toy(args), data, args, processes=processes, validate=validate if args.validate else None)


def die_in_save(number: int) -> None:
    """Have this process kill itself halfway through writing `last.pt` for the `number`-th time."""
    save, left = torch.save, [number]

    def patched(state: Any, file: BinaryIO) -> None:
        left[0] -= "last.pt" in file.name
        if left[0]:
            save(state, file)
        else:
            file.write(b"PK half a file")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = patched


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_command(lambda: main(sys.argv[1:]))


def toy(out: Path, *flags: object) -> list[str]:
    return ["--out", str(out), *map(str, flags)]


def state_of(out: Path, rank: int = 0) -> dict:
    """All that a process ends with: everything in last.pt, or the buffers of another process."""
    files = sorted((out / "ranks").glob(f"epoch*-rank{rank}.pt")) if rank else [out / "last.pt"]
    assert len(files) == 1, files
    state = torch.load(files[0], weights_only=True)
    return state["buffers"] if rank else state


def assert_identical(first, second, path="") -> None:
    """Bit for bit, through nested dicts and lists."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list):
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_identical(a, b, f"{path}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path
