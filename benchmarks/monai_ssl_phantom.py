"""What pre-training is worth on the synthetic abdomens: UNETR from pre-trained and from random weights, few labels.

    python -m zoo.entries.monai_ssl.phantom --out cohort
    python -m zoo.entries.monai_ssl.pretrain --data cohort --list cohort/pretrain.json --spacing 6 --scale-boxes \
        --img-size 32 --hidden-size 192 --mlp-dim 768 --epochs 300 --batch-size 6 --lr 0.002 \
        --schedule cosine-per-step --warmup-epochs 10 --workers 0 --out pretrained
    python benchmarks/monai_ssl_phantom.py --cohort cohort \
        --checkpoint pretrained/monai-ssl-vitautoenc.pretrained.safetensors --out results

Both starts see the same crops in the same order, for as many steps, with the same settings, and are judged alike: the
validation volumes choose the epoch, the test volumes are read once. Dice is the mean over test volumes and organs. Its
spread is that over seeds; the difference of the starts has a 95 % interval from a paired bootstrap over test volumes,
of which each counts with its mean over the seeds. Runs that have finished are not done again, those that were killed
go on. Two at a time, on a core each, the defaults take about an hour.
Everything here is synthetic: the figures compare starts on this cohort and say nothing about patients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

import zoo
from zoo.entries.monai_ssl import FINE_TUNING
from zoo.entries.monai_ssl.placing import build_transform, place
from zoo.entries.monai_ssl.sliding import segment
from zoo.training.evaluate import bootstrap_by_group

MODEL = "monai-ssl-unetr"
STARTS = ("pre-trained", "random")
SPACING = "6"
"""Of the resampled volumes in mm: crops of 32 are then as wide as crops of 48 at the cohort's 4 mm, for a third of the
time."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    start: str
    labelled: int
    seed: int
    folder: Path

    @property
    def results(self) -> Path:
        """What it writes when it has finished."""
        return self.folder / "results.json"


def main() -> None:
    """Fine-tune what is missing, compare, draw, write."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_setup(args)
    runs = [
        Run(start, n, seed, args.out / f"{start}-{n}-{seed}")
        for seed, n, start in product(args.seeds, args.labelled, STARTS)
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: finetune(run, args), runs))
    found = {run: json.loads(run.results.read_text()) for run in runs}
    results = {
        "setup": {k: str(v) for k, v in vars(args).items()} | {"torch": torch.__version__},
        "dice": {n: {start: summary(found, start, n) for start in STARTS} for n in args.labelled},
        "difference": {n: difference(found, n) for n in args.labelled},
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)
    draw(args, found)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder that zoo.entries.monai_ssl.phantom wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="auto-encoder pre-trained on its images")
    parser.add_argument("--labelled", type=int, nargs="+", default=[2, 6], help="training volumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="of each run; validation follows each")
    parser.add_argument("--steps", type=int, default=400, help="in an epoch")
    parser.add_argument("--crops", type=int, default=2, help="in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--img-size", type=int, default=32, help="of the crops, as the auto-encoder has it")
    parser.add_argument("--hidden-size", type=int, default=192, help="of a token, as the auto-encoder has it")
    parser.add_argument("--mlp-dim", type=int, default=768, help="as the auto-encoder has it")
    parser.add_argument("--feature-size", type=int, default=8, help="of the decoder")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results and the picture")
    return parser.parse_args()


def keep_setup(args: argparse.Namespace) -> None:
    """Write down what all runs of a folder share; end where its runs were made with something else."""
    more = {"labelled", "seeds", "jobs", "out"}  # a later call may ask for other runs
    setup = {k: str(v) for k, v in vars(args).items() if k not in more}
    file = args.out / "setup.json"
    if file.is_file() and (before := json.loads(file.read_text())) != setup:
        raise SystemExit(f"{args.out} has runs made with {before}, not with {setup}: name another --out")
    file.write_text(json.dumps(setup, indent=1) + "\n")


def finetune(run: Run, args: argparse.Namespace) -> None:
    """Run the recipe in a process of its own, unless it has finished; what it says goes to a file."""
    if run.results.is_file():
        return
    start = ["--checkpoint", args.checkpoint] if run.start == "pre-trained" else ["--from-scratch"]
    data = ["--data", args.cohort, "--list", args.cohort / "labelled.json", "--cache", args.out / "volumes"]
    sizes = ["--img-size", args.img_size, "--hidden-size", args.hidden_size, "--mlp-dim", args.mlp_dim]
    sizes += ["--feature-size", args.feature_size, "--spacing", SPACING]
    length = ["--epochs", args.epochs, "--steps-per-epoch", args.steps, "--crops", args.crops, "--lr", args.lr]
    length += ["--schedule", "cosine-per-step"]
    which = ["--labelled", run.labelled, "--seed", run.seed, "--out", run.folder, "--workers", 0, "--resume"]
    flags = [str(word) for word in (*start, *data, *sizes, *length, *which)]
    command = [sys.executable, "-m", "zoo.entries.monai_ssl.finetune", *flags]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run.folder.mkdir(exist_ok=True)
    print(f"{run.folder.name} ...", flush=True)
    log = run.folder / "output.txt"
    with log.open("a") as file:
        ended = subprocess.run(command, env=os.environ | threads, stdout=file, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: see {log}")
    print(f"{run.folder.name} done", flush=True)


def per_case(found: dict[Run, Any], start: str, labelled: int) -> np.ndarray:
    """Dice of each seed and test volume (seeds, cases)."""
    chosen = [result for run, result in found.items() if (run.start, run.labelled) == (start, labelled)]
    return np.array([result["test"]["dice_per_case"] for result in chosen], dtype=float)


def summary(found: dict[Run, Any], start: str, labelled: int) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the mean Dice, and the mean of each organ."""
    seeds = per_case(found, start, labelled).mean(1)
    chosen = [result for run, result in found.items() if (run.start, run.labelled) == (start, labelled)]
    organs = {name: float(np.mean([r["test"]["dice_per_class"][name] for r in chosen])) for name in organs_of(chosen)}
    std = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return {"mean": float(seeds.mean()), "std": std, "seeds": seeds.tolist(), "organs": organs}


def organs_of(results: list[Any]) -> list[str]:
    """Names of the organs, as the list has them."""
    return list(results[0]["test"]["dice_per_class"])


def difference(found: dict[Run, Any], labelled: int) -> dict[str, float]:
    """Pre-trained minus random: mean Dice and its interval."""
    gained = (per_case(found, STARTS[0], labelled) - per_case(found, STARTS[1], labelled)).mean(0)

    def gain(weights: np.ndarray) -> float:
        return float(np.average(gained, weights=weights))

    low, high = bootstrap_by_group(gain, [str(i) for i in range(len(gained))])
    return {"mean": gain(np.ones(len(gained))), "low": low, "high": high}


def print_table(results: dict[str, Any]) -> None:
    """Print the comparison, and below it each organ, in Markdown."""
    dice, gained = results["dice"], results["difference"]
    print(f"| labelled volumes | {' | '.join(STARTS)} | difference [95 % interval] |\n|---|---|---|---|")
    for n, of in dice.items():
        cells = [
            f"{of[s]['mean']:.3f}" + (f" ± {of[s]['std']:.3f}" if of[s]["std"] is not None else "") for s in STARTS
        ]
        interval = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gained[n])
        print(f"| {n} | {' | '.join(cells)} | {interval} |")
    columns = [(n, start) for n in dice for start in STARTS]
    print(f"\n| organ | {' | '.join(f'{start}, {n}' for n, start in columns)} |\n|---{'|---' * len(columns)}|")
    for organ in dice[columns[0][0]][columns[0][1]]["organs"]:
        cells = [f"{dice[n][start]['organs'][organ]:.2f}" for n, start in columns]
        print(f"| {organ} | {' | '.join(cells)} |")


def draw(args: argparse.Namespace, found: dict[Run, Any]) -> None:
    """Draw an axial and a coronal slice of one test volume: CT, truth, and what both starts make of it.

    It is the volume whose Dice, over both starts, is the median with the fewest labels.
    """
    from matplotlib.figure import Figure

    fewest, seed = min(args.labelled), args.seeds[0]
    chosen = {run.start: run for run in found if (run.labelled, run.seed) == (fewest, seed)}
    scores = np.mean([per_case(found, start, fewest).mean(0) for start in STARTS], axis=0)
    case = int(np.argsort(scores)[len(scores) // 2])
    files = json.loads((args.cohort / "labelled.json").read_text())["test"][case]
    volume, truth = (np.asarray(nibabel.load(args.cohort / files[kind]).dataobj) for kind in ("image", "label"))
    layers = {"CT": np.zeros_like(truth), "truth": truth}
    for start, run in chosen.items():
        dice = found[run]["test"]["dice_per_case"][case]
        layers[f"{start}, Dice {dice:.2f}"] = predict(run.folder / "best.pt", args.cohort / files["image"])
    middle = np.argwhere(truth).mean(0).round().astype(int)
    cuts = (np.s_[::-1, ::-1, middle[2]], np.s_[::-1, middle[1], ::-1])  # as radiologists look at it
    figure = Figure(figsize=(12, 5), layout="constrained")
    colours = {"cmap": "tab20", "vmin": 0.5, "vmax": 20.5, "alpha": 0.75, "interpolation": "nearest"}
    for row, cut in zip(figure.subplots(2, len(layers)), cuts, strict=True):
        for axes, (title, labels) in zip(row, layers.items(), strict=True):
            axes.imshow(volume[cut].T, cmap="gray", vmin=-175, vmax=250)
            axes.imshow(np.ma.masked_equal(labels[cut].T, 0), **colours)
            axes.set_title(title if cut is cuts[0] else "")
            axes.set_axis_off()
    figure.suptitle(f"Synthetic abdomen {Path(files['image']).name}; networks that have seen {fewest} labelled volumes")
    figure.savefig(args.out / "phantom.png", dpi=60)


def predict(checkpoint: Path, image: Path) -> np.ndarray:
    """Labels of a volume on its own grid."""
    placed = place(image, build_transform(FINE_TUNING, SPACING))
    network = zoo.load_model(MODEL, checkpoint=checkpoint)
    return placed.at_home(segment(network, torch.from_numpy(placed.image)[None]).numpy())


if __name__ == "__main__":
    main()
