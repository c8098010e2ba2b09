"""The samples that each process sees at each step, and the seeds of their random changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import OptionError
from zoo.stopping import leave_to_parent
from zoo.training.args import TrainArgs
from zoo.training.distributed import Processes

Key = tuple[int, int]
"""(pass over the data, index of the sample): what a training data set is indexed with."""

Order = Callable[[int, int], npt.NDArray[np.int64]]
"""(pass, samples per step) -> the pass's samples, step after step: the `order` of a data set whose steps are not a
mixture of any samples."""


def seed_of(*parts: int) -> int:
    """Mix numbers (seed, epoch, index, ...) into one 63-bit seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Make PyTorch's draws inside the block follow from `parts` alone, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))  # torch.manual_seed would also move CUDA's generator
        yield


class Batches:
    """Keys of one process's batches for a stretch of steps.

    `order` gives the samples of a pass in their order, by default a permutation that follows from (seed, pass); the
    batch of a step follows from the step's number since the start of the run. So the steps of a run are the same
    however it is cut into epochs, and a step's batches over all processes hold the same samples however many processes
    there are. The rest of a pass that does not fill a step is left out.
    """

    def __init__(self, length: int, args: TrainArgs, processes: Processes, order: Order | None = None) -> None:
        parts = processes.world * args.accumulate
        if args.batch_size % parts:
            raise OptionError(
                f"--batch-size {args.batch_size} cannot be divided among {processes.world} process(es) "
                f"times {args.accumulate} accumulated part(s): give a multiple of {parts}"
            )
        if length < args.batch_size:
            raise OptionError(
                f"{length} sample(s) do not fill one step of --batch-size {args.batch_size}: give a smaller "
                "one, or more samples"
            )
        self.length, self.seed, self.accumulate = length, args.seed, args.accumulate
        self.step_size, self.part_size = args.batch_size, args.batch_size // parts
        self.rank, self.world = processes.rank, processes.world
        self.order = order or self._shuffle
        self.steps_per_pass = len(self.order(0, self.step_size)) // self.step_size
        self.steps = args.steps_per_epoch or self.steps_per_pass
        self.first, self.done = 0, 0

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Choose the epoch whose steps are yielded, without the first `done`."""
        self.first, self.done = epoch * self.steps, done

    def __len__(self) -> int:
        return max(0, self.steps - self.done) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first + self.done, self.first + self.steps):
            data_pass, position = divmod(step, self.steps_per_pass)
            if data_pass != current:
                current, order = data_pass, self.order(data_pass, self.step_size)
            rows = order[position * self.step_size :][: self.step_size]
            for part in range(self.accumulate):
                mine = rows[(part * self.world + self.rank) * self.part_size :][: self.part_size]
                yield [(data_pass, int(i)) for i in mine]

    def _shuffle(self, data_pass: int, _: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, data_pass]).permutation(self.length)


def build_loader(dataset: Dataset[Any], workers: int, **batches: Any) -> DataLoader[Any]:
    """Build a loader that does not touch the method's random numbers and whose processes leave signals to their parent.

    Args:
        dataset: Indexed with the keys of `batches`.
        workers: Loader processes; 0 for none.
        **batches: Arguments of `DataLoader`: `batch_sampler`, or `batch_size` with or without `sampler`.
    """
    return DataLoader(
        dataset,
        num_workers=workers,
        generator=torch.Generator(),  # its own: a loader draws a seed at each start
        worker_init_fn=leave_to_parent,
        pin_memory=torch.cuda.is_available(),
        **batches,
    )


def length_of(dataset: Dataset[Any]) -> int:
    """Number of samples of a map-style data set."""
    if not isinstance(dataset, Sized):
        raise OptionError(f"{type(dataset).__name__} has no length; the loop needs a map-style data set")
    return len(dataset)


def to_device(batch: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """Move the tensors of a (nested) batch to the device; with `channels_last` also images (N, C, H, W) to NHWC."""
    if isinstance(batch, dict):
        return {k: to_device(v, device, channels_last=channels_last) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(v, device, channels_last=channels_last) for v in batch]
    if not isinstance(batch, Tensor):
        return batch
    layout = torch.channels_last if channels_last and batch.ndim == 4 else torch.preserve_format
    return batch.to(device, non_blocking=True, memory_format=layout)


def batch_size_of(batch: Any) -> int:
    """Length of the first tensor of a (nested) batch."""
    return len(next(tensors_of(batch)))


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors of a (nested) batch, in their order."""
    if isinstance(batch, Tensor):
        yield batch
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from tensors_of(part)
