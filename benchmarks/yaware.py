"""What y-Aware's parts cost, as ratios inside one run: `python benchmarks/yaware.py [--repeats 5] [--json]`.

- Augmentations: volumes per second of `Augment` on a batch, and of the authors' way, one volume after the other through
  SciPy, with the same draws. Both end with a float32 batch, have equally many threads on a CPU, and take turns; of the
  repeats the fastest counts, which other load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from measuring import places, print_table, seconds_of
from scipy import ndimage

from zoo.entries.yaware.augment import Augment, Draw

SIZES = ((121, 145, 121), (31, 37, 31))
"""Of CAT12's maps at 1.5 mm, and at 6 mm."""


def main() -> None:
    """Measure and print."""
    print_table(__doc__, augmentations, repeats=5, add_flags=add_flags)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="with draws of their own")


def augmentations(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Throughput of both ways for each size, set of changes, device and number of threads."""
    for size, tf in product(SIZES, ("all_tf", "cutout")):
        volumes = torch.randn(args.batch, 1, *size, generator=torch.Generator().manual_seed(0))
        for device, threads in places(args.threads):
            ours, theirs = seconds_per_batch(Augment(tf), volumes, device, threads, args)
            yield {
                "size": "x".join(map(str, size)),
                "changes": tf,
                "device": device,
                "threads": threads,
                "ours, volumes/s": args.batch / ours,
                "SciPy, volumes/s": args.batch / theirs,
                "ratio": theirs / ours,
            }


def seconds_per_batch(
    augment: Augment, volumes: torch.Tensor, device: str, threads: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Mean over batches of the fastest repeat: `Augment`, and SciPy on as many threads."""
    arrays, placed, size = volumes.numpy(), volumes.to(device), tuple(volumes.shape[2:])

    def ours(seeds: range) -> torch.Tensor:
        return augment(placed, seeds)

    with ThreadPoolExecutor(threads) as pool:

        def theirs(seeds: range) -> torch.Tensor:
            changed = pool.map(lambda a, s: one_by_one(a, augment.draw(size, s)), arrays, seeds)
            return torch.stack([torch.as_tensor(a, dtype=torch.float32) for a in changed])

        ours(range(args.batch))  # whatever is set up at the first call
        theirs(range(args.batch))
        fastest = []
        for first in range(0, args.batches * args.batch, args.batch):
            seeds = range(first, first + args.batch)
            times = [[seconds_of(partial(way, seeds), device) for way in (ours, theirs)] for _ in range(args.repeats)]
            fastest.append([min(t) for t in zip(*times, strict=True)])
    return statistics.mean(m[0] for m in fastest), statistics.mean(m[1] for m in fastest)


def one_by_one(volume: np.ndarray, drawn: Draw) -> np.ndarray:
    """The changes of (1, D, H, W) as a script without a device makes them.

    As in the authors' pipeline noise is float64 and of NumPy's older generator, and the channel is one more axis; of
    the two noise fields that they draw, one of which is not used, only one is drawn.
    """
    volume = volume.copy()
    if drawn.flip is not None:
        volume = np.flip(volume, drawn.flip)
    if drawn.sigma is not None:
        volume = ndimage.gaussian_filter(volume, drawn.sigma)
    if drawn.noise is not None:
        std, seed = drawn.noise
        volume = volume + np.random.RandomState(seed % 2**32).normal(0, std, volume.shape)
    if drawn.cutout is not None:
        volume = volume.copy()
        volume[0][drawn.cutout] = 0
    if drawn.crop is not None:
        box = volume[0][drawn.crop][None]
        factors = np.divide(volume.shape, box.shape)
        # What scikit-image's resize does.
        volume = ndimage.zoom(box, factors, order=1, mode="mirror", grid_mode=True)
    return volume


if __name__ == "__main__":
    main()
