"""What DrasCLR's encoder takes, against the plain loop: `python benchmarks/drasclr.py [--repeats 7] [--json]`.

The plain loop goes over the patches: gates of the patch's location, the sum of the experts' kernels by these gates, the
convolution of the one patch. Norms and ELU are the same for both. In one process both take turns; the medians count.

- eval: the features of a batch, without gradients. "cohort": several locations, one after the other, many patients at
  each. "cached": one location again and again, inside `cache_kernels`.
- train: forward and backward, in training mode. "in turns": patches at two locations alternately, as in pre-training.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from measuring import places, print_table, seconds_of
from torch import Tensor
from torch.nn import functional as F

from zoo.entries.drasclr.condconv import ConditionalConv3d
from zoo.entries.drasclr.model import DrasCLREncoder

ALLOWED = 1e-4
"""Largest difference of the features, relative to the largest: anything above is another network."""


@dataclass(frozen=True)
class Case:
    """One way of asking for features."""

    name: str
    patches: int
    locations: int
    mode: str = "eval"
    batches: int = 1
    cached: bool = False


CASES = (
    Case("64 locations", 64, 64),
    Case("581 landmarks of a patient, 16 at a time", 16, 16, batches=4),
    Case("cohort, 64 patients a location", 64, 1, batches=3),
    Case("cohort, 16 patients a location", 16, 1, batches=6),
    Case("64 patches at 16 locations", 64, 16),
    Case("8 locations", 8, 8),
    Case("2 locations", 2, 2),
    Case("one patch", 1, 1),
    Case("one patch, cached", 1, 1, batches=4, cached=True),
    Case("one location", 32, 1, "train"),
    Case("in turns", 32, 2, "train"),
    Case("32 locations", 32, 32, "train"),
)


def main() -> None:
    """Measure and print."""
    print_table(__doc__, measure, repeats=7, add_flags=add_flags)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--only", default="", help="part of a case's name")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each case, device and number of threads."""
    torch.manual_seed(0)
    model = DrasCLREncoder()
    for device, threads in places(args.threads):
        model.to(device)
        for case in CASES:
            if args.only not in case.name:
                continue
            ours, loop = seconds_per_patch(model, case, device, args.repeats)
            yield {
                "case": case.name,
                "mode": case.mode,
                "device": device,
                "threads": threads,
                "ours, ms a patch": 1e3 * ours,
                "plain loop, ms a patch": 1e3 * loop,
                "ratio": loop / ours,
            }


def seconds_per_patch(model: DrasCLREncoder, case: Case, device: str, repeats: int) -> tuple[float, float]:
    """Medians of both ways, which take turns, after one call of each."""
    model.train(case.mode == "train")
    patches = torch.rand(case.patches, 1, 32, 32, 32, device=device) * 2 - 1
    spots = torch.rand(1 if case.cached else case.batches, case.locations, 3, device=device) * 2 - 1
    spots = spots.repeat(case.batches, 1, 1) if case.cached else spots
    rows = spots.repeat(1, case.patches // case.locations, 1)
    shared = rows if case.locations > 1 else spots
    calls: list[Callable[[], Tensor]] = [
        lambda: run(model, case, lambda i: model(patches, shared[i])),
        lambda: run(model, case, lambda i: plain_loop(model, patches, rows[i])),
    ]
    with model.cache_kernels() if case.cached else nullcontext():
        mine, theirs = (call() for call in calls)
        assert (mine - theirs).abs().max() <= ALLOWED * theirs.abs().max(), case
        times = [[seconds_of(call, device) for call in calls] for _ in range(repeats)]
    ours, loop = (statistics.median(column) / (case.patches * case.batches) for column in zip(*times, strict=True))
    return ours, loop


def run(model: DrasCLREncoder, case: Case, features: Callable[[int], Tensor]) -> Tensor:
    """All batches of a case; in training each with its gradients. Returns the features of the last."""
    for i in range(case.batches):
        with torch.set_grad_enabled(case.mode == "train"):
            result = features(i)
        if case.mode == "train":
            model.zero_grad()
            torch.autograd.backward(result.square().sum())
    return result.detach()


def plain_loop(model: DrasCLREncoder, x: Tensor, location: Tensor) -> Tensor:
    """The features of patches at as many locations, one patch after the other in each layer."""
    layers = list(model.named_modules())
    convolutions = [module for _, module in layers if isinstance(module, ConditionalConv3d)]
    norms = [module for _, module in layers if isinstance(module, torch.nn.BatchNorm3d)]
    for convolution, norm in zip(convolutions, norms, strict=True):
        maps = []
        for i in range(len(x)):
            gates = torch.sigmoid(convolution._routing_fn.fc(location[i]))
            kernel = (gates[:, None, None, None, None, None] * convolution.weight).sum(0)
            maps.append(F.conv3d(x[i : i + 1], kernel, convolution.bias, convolution.stride, padding=1))
        x = F.elu(norm(torch.cat(maps)), inplace=True)
    return x.flatten(1)


if __name__ == "__main__":
    main()
