"""Whether memory grows with a cohort: `python benchmarks/embed_memory.py [--cases 100000] [--workers 1] [--json]`.

So many synthetic films of 32 px, all of different paths, from a table with two carried columns into a folder. A
stand-in for the network makes the run short; its rows have 512 numbers. Looked at are the process and its loaders,
after 1 000 cases and ten times as many, and so on, and the process once the folder is complete. "Of its own" is without
pages of files, as of libraries, which a busy machine takes back and which then make the rest look small.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from functools import cached_property
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, print_facts
from PIL import Image
from torch import nn

import zoo
from zoo.embedding import Embedder, embed_cohort, keep_freed_memory, read_list
from zoo.embedding.embedder import Embedded
from zoo.embedding.reading import Unit
from zoo.transforms import build_transform

FIRST, SIDE, WIDTH = 1000, 32, 512
LOOKED_AT = "process", "of its own", "its loaders", "of them not shared"
FILES = 16
"""Different films; the paths are further links to them, of which a file system takes some 65 000 each."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    embedder = StandIn("caid-resnet50", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        cases = read_list(write_cohort(Path(folder), args.cases), volumes=False)
        started = time.perf_counter()
        done = embed_cohort(embedder, cases, Path(folder) / "out", workers=args.workers)
        elapsed = time.perf_counter() - started
    assert done.embedded == args.cases, done
    first, last, own = embedder.seen[FIRST], status("VmRSS"), status("RssAnon")
    facts: dict[str, Any] = {
        "machine": machine(),
        "cases": args.cases,
        "cases a second": args.cases / elapsed,
        f"memory after {FIRST} cases, MB": first[0],
        "memory at the end, MB": last,
        "memory at the end, more, MB": last - first[0],
        "memory at the end, more: of its own, MB": own - first[1],
        "memory at most, more, MB": status("VmHWM") - first[0],
    }
    for count, now in embedder.seen.items():
        for what, more, before in zip(LOOKED_AT, now, first, strict=True):
            facts[f"after {count} cases, more: {what}, MB"] = more - before
    print_facts(facts, as_json=args.json)


def write_cohort(folder: Path, count: int) -> Path:
    """Films, and the table of them, as `--list` takes it."""
    films = [folder / f"{i}.png" for i in range(FILES)]
    for seed, film in enumerate(films):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(film)
    with (folder / "films.csv").open("w") as table:
        print("path,person,ward", file=table)
        for i in range(count):
            name = f"people/{i // FIRST:04d}/film-{i:08d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(films[i % FILES], folder / name)
            print(f"{name},person {i // 3},ward {i % 7}", file=table)
    return folder / "films.csv"


class StandIn(Embedder):
    """An embedder whose network takes hardly any time, and which notes what memory is in use."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.done, self.seen = 0, dict[int, tuple[float, ...]]()

    @cached_property
    def transform(self) -> Any:
        """To few pixels."""
        return build_transform(replace(zoo.model_info(self.name).input, size=(SIDE, SIDE), resize=None))

    @cached_property
    def network(self) -> nn.Module:
        """One layer, whose features are finite."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, WIDTH)).eval()

    def facts(self) -> dict[str, Any]:
        """Those of one run alone."""
        return {"model": "stand-in"}

    def embed(self, unit: Unit) -> list[Embedded]:
        """Look at the memory each time that there are as many cases again by ten."""
        found = super().embed(unit)
        before, self.done = self.done, self.done + len(found)
        for count in (FIRST, 10 * FIRST, 100 * FIRST, 1000 * FIRST):
            if before < count <= self.done:
                loaders = [child.pid for child in active_children()]
                shares = sum(status("VmRSS", pid) for pid in loaders), sum(map(not_shared, loaders))
                self.seen[count] = (status("VmRSS"), status("RssAnon"), *shares)
        return found


def status(key: str, process: int | str | None = "self") -> float:
    """Megabytes of a process, as Linux counts them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def not_shared(pid: int | None) -> float:
    """Megabytes that a process has alone: pages that it, or the process that it is a copy of, has written to since."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("Private"))


if __name__ == "__main__":
    main()
