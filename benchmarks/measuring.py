"""What the benchmarks share: the machine, seconds, a file loaded in two ways, rows printed as they come."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import zoo


def machine() -> str:
    """Cores, accelerator, Python and torch that the figures are of."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {device}, Python {sys.version.split()[0]}, torch {torch.__version__}"


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call; what it returns is freed afterwards."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def both_clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds of one call, and seconds of processor time of it and of freeing what it returns."""
    started = time.process_time()
    elapsed = seconds_of(call)
    return elapsed, time.process_time() - started


def file_on_record(
    folder: Path, model: str, content: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, str]:
    """Write weights by `torch.save`, and a manifest with a record of them; return the settings that name both.

    Args:
        folder: Where both lie, and the cache.
        model: Name without a tag; the weights' is `benchmark`.
        content: Of the file.
        options: Of the record.
    """
    path, manifest = folder / "weights.pth", folder / "weights.json"
    torch.save(content, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {"tag": "benchmark", "models": [model], "state": "hosted", "sources": [f"file:{path}"]}
    record |= {"bytes": path.stat().st_size, "sha256": digest, "options": dict(options)}
    manifest.write_text(json.dumps({"schema": 1, "weights": [record]}))
    return {"ZOO_MANIFEST": str(manifest), "ZOO_HOME": str(folder)}


def cached_against_by_hand(
    label: str,
    model: str,
    content: Mapping[str, Any],
    by_hand: Callable[[Path], object],
    repeats: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """Medians in milliseconds of a cached `load_model` and of a script's way from one file, in turns, and their ratio.

    The ratio of their processor times, too, which a machine that does other things meanwhile disturbs less.

    Args:
        label: What the rows call it.
        model: Name without a tag.
        content: Of the file, which `torch.save` writes.
        by_hand: The script's way, from the file.
        repeats: Of each way.
        options: Of the weights' record.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, name = Path(folder) / "weights.pth", f"{model}.benchmark"
        before = dict(os.environ)
        settings = file_on_record(Path(folder), model, content, options)
        calls = (lambda: zoo.load_model(name), lambda: by_hand(path))
        try:
            os.environ |= settings
            zoo.load_model(name)  # the first load converts it into the cache
            times = [[both_clocks(call) for call in calls] for _ in range(repeats)]
        finally:
            os.environ.clear()
            os.environ |= before
    (ours, our_work), (theirs, their_work) = (
        [1e3 * statistics.median(clock) for clock in zip(*column, strict=True)] for column in zip(*times, strict=True)
    )
    return {
        f"{label}, cached load_model, ms": ours,
        f"{label}, build + torch.load + copy, ms": theirs,
        f"{label}, cached load_model is faster by": theirs / ours,
        f"{label}, in processor time by": their_work / our_work,
    }


def print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    """Print figures, one a line, or as JSON."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        print(f"{key:55} {value:.4g}" if isinstance(value, float) else f"{key:55} {value}")


def print_table(
    description: str | None,
    measure: Callable[[argparse.Namespace], Iterable[Mapping[str, object]]],
    repeats: int,
    add_flags: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> None:
    """The program of a benchmark whose result is a table: read the flags, measure, print.

    Args:
        description: For `--help`.
        measure: From the flags to rows of equal columns.
        repeats: Default of `--repeats`.
        add_flags: Adds those of this benchmark.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, os.cpu_count() or 1)}))
    parser.add_argument("--json", action="store_true")
    add_flags(parser)
    args = parser.parse_args()
    if args.json:
        print(json.dumps({"machine": machine(), "rows": list(measure(args))}, indent=2))
        return
    print(machine())
    print_rows(measure(args))


def places(threads: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Devices with their numbers of threads: the CPU with each of `threads`, which torch is told, and a GPU if any."""
    before = torch.get_num_threads()
    for device, number in [("cpu", n) for n in threads] + [("cuda", 1)] * torch.cuda.is_available():
        torch.set_num_threads(number)
        yield device, number
    torch.set_num_threads(before)


def print_rows(rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows of the same columns as a Markdown table, each when it is there."""
    for i, row in enumerate(rows):
        if i == 0:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        values = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(values) + " |", flush=True)
