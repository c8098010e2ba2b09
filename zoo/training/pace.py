"""Messages about the course of a run: one line when it begins, then its position and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from zoo.checkpoint import ATTRIBUTE, LoadReport
from zoo.messages import counted
from zoo.progress import duration, say
from zoo.training.data import Batches, tensors_of
from zoo.training.run import Run


class Pace:
    """Speed of a run since this process began, for its cases per second and the time that is left."""

    def __init__(self, run: Run, steps: int) -> None:
        self.steps, self.started, self.first = steps, time.monotonic(), run.epoch * steps + run.step

    def line(self, run: Run, epoch: int, parts: int) -> str:
        """Line about the position of a run after so many parts of an epoch's steps."""
        args, step = run.args, parts // run.args.accumulate
        done = epoch * self.steps + step
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.started)
        left = f", at most {duration((args.epochs * self.steps - done) / rate)} left" if rate else ""
        loss = run.sums["loss"].item() / parts
        return (
            f"epoch {epoch + 1} of {args.epochs}, step {step} of {self.steps}: loss {loss:.4g}, "
            f"{rate * args.batch_size:.3g} cases/s{left}"
        )


def begin_pace(run: Run, dataset: Dataset[Any], batches: Batches, base: str) -> Pace:
    """Say on how much data, where and from which weights a run trains; return its pace from here on."""
    if run.processes.is_main:
        args, epoch = run.args, min(run.epoch, run.args.epochs - 1)
        batches.set_epoch(epoch)
        size = size_of(dataset[next(iter(batches))[0]], run.method)
        where = f"{run.processes.world} processes on {run.processes.device.type}" if run.processes.world > 1 else ""
        on = f"going on with epoch {run.epoch + 1}, step {run.step + 1}" if run.epoch or run.step else f"from {base}"
        say(
            f"training: {counted(run.samples, 'case')}{size}, {counted(args.epochs, 'epoch')} of "
            f"{counted(batches.steps, 'step')} of {counted(args.batch_size, 'case')}, "
            f"{where or run.processes.device.type}, {on}"
        )
    return Pace(run, batches.steps)


def size_of(sample: Any, method: nn.Module) -> str:
    """How large the images of a sample are, in words; empty where it has none."""
    dims, unit = (3, "voxels") if any(p.ndim >= 5 for p in method.parameters()) else (2, "pixels")
    shapes = (tensor.shape for tensor in tensors_of(sample) if tensor.ndim > dims)
    sides = next(shapes, ())[-dims:]
    return f" of {' x '.join(map(str, sides))} {unit}" if sides else ""


def base_in_words(method: nn.Module) -> str:
    """The weights that the zoo loaded into a method, in words."""
    reports: Iterator[LoadReport] = (vars(m)[ATTRIBUTE] for m in method.modules() if ATTRIBUTE in vars(m))
    if not (report := next(reports, None)) or report.is_random:
        return "random weights"
    return f"{report.model}.{report.tag}" if report.tag else report.source
