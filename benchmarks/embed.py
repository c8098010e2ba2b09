"""What `zoo embed` does a second, against the network alone: `python benchmarks/embed.py [--only films] [--json]`.

Everything is synthetic; weights but those of the 64 px network are random, which changes no time. In one process both
sides take turns; the medians count.

- films: a cohort of JPEG or PNG into a folder, with reading, the loader process and Parquet, against the network's
  forward alone on ready batches of the same size. Both run on all `--threads` and keep freed memory, as `zoo embed`
  does; "in a plain loop" is the forward in a process that does not.
- volumes: MONAI SSL's ViT over CTs in windows, against a loop over the windows, one CT and one window at a time.
- processes: one process with one thread, and two that share a cohort.

Which split of two cores is best: `--only films --threads 1 2 --workers 0 1`.
"""
# The file is long because the three parts share their synthetic images and weights.

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from measuring import machine, print_facts, seconds_of
from PIL import Image
from torch import Tensor

import zoo
from zoo.embedding import Cases, Embedder, embed_all, embed_cohort, keep_freed_memory

FILES = 64
"""Different films; a cohort has each many times under other names."""
OF_SMALL = 8
"""A film takes the network of 64 px so many times less, about; cohorts for it are larger by that."""
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""Batches of other sizes sum in another order; other windows or weights of them differ by more."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = min(2, os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="of films; of volumes and processes at most 3")
    parser.add_argument("--films", type=int, default=256, help="of a cohort")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 1024], help="pixels of the films")
    parser.add_argument("--inputs", type=int, nargs="+", default=[224, 64], choices=[224, 64], help="of the network")
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[cores], help="of the network")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="loader processes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", choices=["films", "volumes", "processes"], help="one part")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)  # the forward in a process of its own
    args = parser.parse_args()
    logging.getLogger("zoo").setLevel(logging.ERROR)  # each load says whose weights it has
    if args.plain:
        print(plain_seconds(args))
        return
    keep_freed_memory()
    torch.set_num_threads(args.threads[-1])
    parts = {"films": films, "volumes": volumes, "processes": processes}
    results: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    for name, part in parts.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                results |= part(Path(folder), args)
    print_facts(results, as_json=args.json)


# Films


def films(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the whole way and of the network alone, in turns."""
    facts: dict[str, Any] = {}
    for side in args.inputs:
        embedder = embedder_of(side, folder, args.device)
        for pixels, kind in [(pixels, kind) for pixels in args.sides for kind in ("jpeg", "png")]:
            count = args.films * (1 if side == 224 else OF_SMALL)
            cases = cohort(write_films(folder, pixels, kind), count)
            for threads, workers in [(t, w) for t in args.threads for w in args.workers]:
                torch.set_num_threads(threads)
                label = f"{kind} of {pixels} px, network of {side} px, {threads} threads + {workers}"
                facts |= films_in_turns(label, embedder, cases, workers, args)
        if args.device == "cpu":
            facts |= against_plain(f"network of {side} px", side, embedder, args)
    return facts


def films_in_turns(
    label: str, embedder: Embedder, cases: Cases, workers: int, args: argparse.Namespace
) -> dict[str, float]:
    """Medians over the turns, the first of which warms up."""
    alone = forward(embedder, len(cases), args.device)
    times = [
        (seconds_of(alone, args.device), seconds_of(whole_way(embedder, cases, workers), args.device))
        for _ in range(args.repeats + 1)
    ][1:]
    ours, theirs = (len(cases) / statistics.median(column) for column in reversed(list(zip(*times, strict=True))))
    return {
        f"{label}: zoo embed, images a second": ours,
        f"{label}: the network alone, images a second": theirs,
        f"{label}: of the network alone": statistics.median(own / whole for own, whole in times),
    }


def whole_way(embedder: Embedder, cases: Cases, workers: int) -> Callable[[], None]:
    """From files to a folder of features, in which nothing was before."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as out, redirect_stderr(io.StringIO()):  # it says how far it is
            done = embed_cohort(embedder, cases, Path(out) / "features", workers=workers)
        assert done.embedded == len(cases), done

    return run


def forward(embedder: Embedder, images: int, device: str) -> Callable[[], None]:
    """The network on as many images, in batches that are ready."""
    size = embedder.batch_size
    batch = torch.rand(size, 3, *embedder.transform.preprocessing.size, device=device)

    def run() -> None:
        with torch.inference_mode():
            for first in range(0, images, size):
                embedder.network(batch[: images - first])

    return run


def against_plain(label: str, side: int, embedder: Embedder, args: argparse.Namespace) -> dict[str, float]:
    """What freed memory that is kept saves the network alone: in turns with a process that gives it back."""
    images = args.films // 2 * (1 if side == 224 else OF_SMALL)
    alone, times = forward(embedder, images, args.device), []
    for _ in range(min(3, args.repeats)):
        flags = ["--plain", "--inputs", side, "--films", images, "--threads", torch.get_num_threads()]
        command = [sys.executable, "-W", "ignore", __file__, *map(str, flags)]
        plain = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        times.append((seconds_of(alone), plain))
    kept, plain = (images / statistics.median(column) for column in zip(*times, strict=True))
    return {
        f"{label}: the network in a plain loop, images a second": plain,
        f"{label}: memory kept, times": kept / plain,
    }


def plain_seconds(args: argparse.Namespace) -> float:
    """Seconds of the forward in this process, which gives freed memory back."""
    torch.set_num_threads(args.threads[-1])
    with tempfile.TemporaryDirectory() as folder:
        alone = forward(embedder_of(args.inputs[0], Path(folder), args.device), args.films, args.device)
        return min(seconds_of(alone, args.device) for _ in range(2))


def embedder_of(side: int, folder: Path, device: str) -> Embedder:
    """CAiD's ResNet-50: with the zoo's weights for 64 px, or with random ones at the published 224."""
    if side == 64:
        return Embedder("caid-resnet50.chestxray14-800", device=device)
    return Embedder("caid-resnet50", checkpoint=random_weights("caid-resnet50", folder), device=device)


def random_weights(name: str, folder: Path) -> Path:
    """A file of them, as `checkpoint=` takes it."""
    torch.manual_seed(0)
    path = folder / f"{name}.pth"
    torch.save(zoo.load_model(name, pretrained=False).state_dict(), path)
    return path


def write_films(folder: Path, side: int, kind: str, count: int = FILES) -> list[str]:
    """Synthetic films: smooth shapes with the grain of a detector, of which a film's size in bytes follows."""
    paths = [folder / f"{side}-{i}.{kind}" for i in range(count)]
    for seed, path in enumerate(paths):
        draw = np.random.default_rng(seed)
        coarse = Image.fromarray(draw.integers(0, 256, (12, 12), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        grains = draw.normal(0, 6, (side, side))
        Image.fromarray((25 + 0.8 * smooth + grains).clip(0, 255).astype(np.uint8)).save(path)
    return list(map(str, paths))


def cohort(paths: Sequence[str], count: int) -> Cases:
    """So many cases of the films, each under a name of its own."""
    return Cases(tuple(f"case {i}" for i in range(count)), tuple(paths[i % len(paths)] for i in range(count)), {}, None)


# Volumes


def volumes(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the CTs together and of the loop, in turns; their features are the same."""
    paths = list(write_volumes(folder, args.volumes))
    name = "monai-ssl-vitb16"
    embedder = Embedder(name, checkpoint=random_weights(name, folder), device=args.device)
    cases = zoo.embedding.find_cases(paths, volumes=True)
    expected, windows = loop_over(embedder, paths)
    np.testing.assert_allclose(embed_all(embedder, cases, progress=False).values, expected, **CLOSE)
    calls: tuple[Callable[[], object], ...] = (
        lambda: embed_all(embedder, cases, workers=args.workers[-1], progress=False),
        lambda: loop_over(embedder, paths),
    )
    times = [[seconds_of(call, args.device) for call in calls] for _ in range(min(3, args.repeats))]
    ours, loop = (statistics.median(column) for column in zip(*times, strict=True))
    label = f"{len(paths)} CTs, {windows} windows of 96^3"
    return {f"{label}: zoo embed, s": ours, f"{label}: the loop, s": loop, f"{label}: faster by": loop / ours}


def loop_over(embedder: Embedder, paths: Sequence[Path]) -> tuple[Any, int]:
    """Features of the CTs, one after the other, each window by itself; and how many windows there are."""
    network: Any = embedder.network
    device, read, rows, count = next(network.parameters()).device, embedder.reader, [], 0
    with torch.inference_mode():
        for path in paths:
            parts = read(path)
            (windows,), shares = parts.inputs, parts.weights
            assert shares is not None
            total: Tensor = sum(  # type: ignore[assignment]
                (network.forward_features(window[None].to(device))[0] * share.to(device)).flatten(1).sum(1)
                for window, share in zip(windows, shares, strict=True)
            )
            rows.append(total.cpu().numpy())
            count += len(windows)
    return np.stack(rows), count


def write_volumes(folder: Path, count: int) -> Iterator[Path]:
    """Synthetic CTs of 36 x 36 x 30 cm, 1.4 mm in the plane and 3 mm apart: tissue with noise in air."""
    shape = (256, 256, 100)
    radii = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij", sparse=True)
    inside = radii[0] ** 2 + radii[1] ** 2 + 0 * radii[2] < 0.9
    for seed in range(count):
        values = np.where(inside, np.random.default_rng(seed).normal(40, 60, shape), -1000).astype(np.int16)
        path = folder / f"{seed}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.4, 1.4, 3.0, 1.0])), path)
        yield path


# Processes


def processes(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Images a second of one process and of two, each with one thread that also reads."""
    rates = {}
    random_weights("caid-resnet50", folder)
    write_films(folder, 224, "jpeg")
    for world in (1, 2):
        times = [run_shares(folder / f"{world}-{i}", world, args.films) for i in range(min(3, args.repeats))]
        rates[world] = args.films / statistics.median(times)
    return {
        "one process of one thread, images a second": rates[1],
        "two such processes, images a second": rates[2],
        "two processes are faster by": rates[2] / rates[1],
    }


def run_shares(out: Path, world: int, images: int) -> float:
    """Seconds from when all processes are ready to when the last has ended."""
    context = get_context("spawn")
    ready = context.Barrier(world + 1)
    children = [context.Process(target=share, args=(rank, world, out, images, ready)) for rank in range(world)]
    for child in children:
        child.start()
    ready.wait()
    started = time.perf_counter()
    ready.wait()
    elapsed = time.perf_counter() - started
    for child in children:
        child.join()
    return elapsed


def share(rank: int, world: int, out: Path, images: int, ready: Any) -> None:
    """One of the processes, as torchrun starts it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    logging.getLogger("zoo").setLevel(logging.ERROR)
    keep_freed_memory()
    torch.set_num_threads(1)
    embedder = Embedder("caid-resnet50", checkpoint=out.parent / "caid-resnet50.pth", device="cpu")
    forward(embedder, embedder.batch_size, "cpu")()
    cases = cohort([str(out.parent / f"224-{i}.jpeg") for i in range(FILES)], images)
    ready.wait()
    with redirect_stderr(io.StringIO()):
        embed_cohort(embedder, cases, out, workers=0)
    ready.wait()


if __name__ == "__main__":
    main()
