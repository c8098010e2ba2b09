"""What y-Aware's parts cost, as ratios inside one run: `python benchmarks/yaware.py [--repeats 5] [--json]`.

- Augmentations: volumes per second of `Augment` on a batch, and of the authors' way, one volume after the other through
  SciPy, with the same draws. Both end with a float32 batch, have equally many threads on a CPU, and take turns; of the
  repeats the fastest counts, which other load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from zoo.entries.yaware.augment import Augment, Draw

SIZES = ((121, 145, 121), (31, 37, 31))
"""Of CAT12's maps at 1.5 mm, and at 6 mm."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="with draws of their own")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, os.cpu_count() or 1)}))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {"machine": machine(), "augmentations": augmentations(args)}
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(results["machine"])
    show(results["augmentations"])


def machine() -> str:
    """Cores, accelerator, Python and libraries that the figures are of."""
    from importlib.metadata import version

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
    return f"{os.cpu_count()} cores, {device}, Python {sys.version.split()[0]}, {libraries}"


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys as a table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def augmentations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Throughput of both ways for each size, set of changes, device and number of threads."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    rows = []
    before = torch.get_num_threads()
    for size in SIZES:
        volumes = torch.randn(args.batch, 1, *size, generator=torch.Generator().manual_seed(0))
        for tf in ("all_tf", "cutout"):
            for threads in args.threads:
                torch.set_num_threads(threads)
                for device in devices:
                    ours, theirs = seconds_per_batch(Augment(tf), volumes, device, threads, args)
                    rows.append(
                        {
                            "size": "x".join(map(str, size)),
                            "changes": tf,
                            "device": device,
                            "threads": threads,
                            "ours, volumes/s": args.batch / ours,
                            "SciPy, volumes/s": args.batch / theirs,
                            "ratio": theirs / ours,
                        }
                    )
    torch.set_num_threads(before)
    return rows


def seconds_per_batch(
    augment: Augment, volumes: torch.Tensor, device: str, threads: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Mean over batches of the fastest repeat: `Augment`, and SciPy on as many threads."""
    arrays, placed, size = volumes.numpy(), volumes.to(device), tuple(volumes.shape[2:])

    def ours(seeds: range) -> torch.Tensor:
        changed = augment(placed, seeds)
        if device == "cuda":
            torch.cuda.synchronize()
        return changed

    with ThreadPoolExecutor(threads) as pool:

        def theirs(seeds: range) -> torch.Tensor:
            changed = pool.map(lambda a, s: one_by_one(a, augment.draw(size, s)), arrays, seeds)
            return torch.stack([torch.as_tensor(a, dtype=torch.float32) for a in changed])

        ours(range(args.batch))  # whatever is set up at the first call
        theirs(range(args.batch))
        fastest = []
        for first in range(0, args.batches * args.batch, args.batch):
            seeds = range(first, first + args.batch)
            times = [(seconds_of(ours, seeds), seconds_of(theirs, seeds)) for _ in range(args.repeats)]
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


def seconds_of(call: Callable[[range], object], seeds: range) -> float:
    """Wall-clock seconds of one call; what it returns is freed afterwards."""
    started = time.perf_counter()
    result = call(seeds)
    elapsed = time.perf_counter() - started
    del result
    return elapsed


if __name__ == "__main__":
    main()
