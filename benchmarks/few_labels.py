"""What the comparisons of starts with few labels share: runs of a recipe that may be killed, scores, a table.

All starts of a comparison see the same samples in the same order for as many steps, with the same settings, and are
judged alike: validation volumes choose the checkpoint, test volumes are read once. A figure is the mean over test
volumes; its spread is that over seeds. The difference of two starts has a 95 % interval from a paired bootstrap over
test volumes, of which each counts with its mean over the seeds. Runs that have finished are not done again, those that
were killed go on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measuring import machine

from zoo.training.evaluate import bootstrap_by_group

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    start: str
    labelled: int
    seed: int
    folder: Path

    @property
    def results(self) -> Any:
        """What it wrote when it had finished."""
        return json.loads((self.folder / "results.json").read_text())


Found = Mapping[Run, Scores]
"""Scores of the test volumes (cases,) of each run."""


def parser_of(description: str | None, labelled: Sequence[int]) -> argparse.ArgumentParser:
    """A parser with the flags of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, nargs="+", default=[*labelled], help="training volumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results and the picture")
    return parser


def finish_runs(
    args: argparse.Namespace, module: str, starts: Sequence[str], flags_of: Callable[[Run], Sequence[object]]
) -> list[Run]:
    """Do what is missing of starts x labelled x seeds; returns all runs.

    Args:
        args: Of the comparison.
        module: The recipe.
        starts: Names of the starts.
        flags_of: The recipe's flags for a run; seed, number of volumes and folder are added.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    keep_setup(args)
    plan = product(args.seeds, args.labelled, starts)
    runs = [Run(start, n, seed, args.out / f"{start}-{n}-{seed}".replace(" ", "")) for seed, n, start in plan]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: finish(run, module, flags_of(run)), runs))
    return runs


def keep_setup(args: argparse.Namespace) -> None:
    """Write down what all runs of a folder share; end where its runs were made with something else."""
    more = {"labelled", "seeds", "jobs", "out"}  # a later call may ask for other runs
    setup = {k: str(v) for k, v in vars(args).items() if k not in more}
    file = args.out / "setup.json"
    if file.is_file() and (before := json.loads(file.read_text())) != setup:
        raise SystemExit(f"{args.out} has runs made with {before}, not with {setup}: name another --out")
    file.write_text(json.dumps(setup, indent=1) + "\n")


def finish(run: Run, module: str, flags: Sequence[object]) -> None:
    """Run the recipe in a process of its own, unless it has finished; what it says goes to a file."""
    if (run.folder / "results.json").is_file():
        return
    which = ["--labelled", run.labelled, "--seed", run.seed, "--out", run.folder, "--workers", 0, "--resume"]
    command = [sys.executable, "-m", module, *(str(word) for word in (*flags, *which))]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run.folder.mkdir(exist_ok=True)
    print(f"{run.folder.name} ...", flush=True)
    log = run.folder / "output.txt"
    with log.open("a") as file:
        ended = subprocess.run(command, env=os.environ | threads, stdout=file, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: see {log}")
    print(f"{run.folder.name} done", flush=True)


def per_case(found: Found, start: str, labelled: int) -> Scores:
    """Scores of each seed and test volume (seeds, cases)."""
    return np.array([scores for run, scores in found.items() if (run.start, run.labelled) == (start, labelled)])


def compare(
    args: argparse.Namespace, found: Found, starts: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Means, spreads and differences: what `results.json` of a comparison holds.

    Args:
        args: Of the comparison.
        found: Scores.
        starts: Names of the starts.
        pairs: Which are compared: the second is taken from the first.
    """
    return {
        "setup": {k: str(v) for k, v in vars(args).items()} | {"machine": machine()},
        "scores": {n: {start: summary(per_case(found, start, n)) for start in starts} for n in args.labelled},
        "differences": {
            n: {" - ".join(pair): difference(*(per_case(found, start, n) for start in pair)) for pair in pairs}
            for n in args.labelled
        },
    }


def summary(scores: Scores) -> dict[str, Any]:
    """Mean of scores (seeds, cases), and the standard deviation of the seeds' means."""
    seeds = scores.mean(1)
    std = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return {"mean": float(seeds.mean()), "std": std, "seeds": seeds.tolist()}


def difference(ours: Scores, other: Scores) -> dict[str, float]:
    """Mean of what a start has more than another, of scores (seeds, cases), and its interval."""
    gained = (ours - other).mean(0)

    def gain(weights: Scores) -> float:
        return float(np.average(gained, weights=weights))

    low, high = bootstrap_by_group(gain, [str(i) for i in range(len(gained))])
    return {"mean": gain(np.ones(len(gained))), "low": low, "high": high}


def print_comparison(results: Mapping[str, Any]) -> None:
    """Print the scores and the differences in Markdown."""
    scores, differences = results["scores"], results["differences"]
    starts, pairs = (list(next(iter(found.values()))) for found in (scores, differences))
    print(f"| labelled volumes | {' | '.join([*starts, *pairs])} |\n|---{'|---' * (len(starts) + len(pairs))}|")
    for n, of in scores.items():
        cells = [
            f"{of[s]['mean']:.3f}" + (f" ± {of[s]['std']:.3f}" if of[s]["std"] is not None else "") for s in starts
        ]
        cells += ["{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**differences[n][pair]) for pair in pairs]
        print(f"| {n} | {' | '.join(cells)} |")


def print_structures(values: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Print a value of each structure (columns -> structure -> value) in Markdown."""
    columns = list(values)
    print(f"\n| {title} | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for structure in values[columns[0]]:
        print(f"| {structure} | {' | '.join(f'{values[column][structure]:.2f}' for column in columns)} |")


def middle_case(found: Found, labelled: int) -> int:
    """The test volume whose score, over all starts and seeds with so many labels, is the median."""
    scores = np.mean([scores for run, scores in found.items() if run.labelled == labelled], axis=0)
    return int(np.argsort(scores)[len(scores) // 2])
