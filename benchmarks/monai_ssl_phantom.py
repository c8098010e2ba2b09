"""What pre-training is worth on the synthetic abdomens: UNETR from pre-trained and from random weights, few labels.

    python -m zoo.entries.monai_ssl.phantom --out cohort
    python -m zoo.entries.monai_ssl.pretrain --data cohort --table cohort/pretrain.json --spacing 6 --scale-boxes \
        --size 32 --hidden-size 192 --mlp-dim 768 --epochs 300 --batch-size 6 --lr 0.002 \
        --schedule cosine-per-step --warmup-epochs 10 --workers 0 --out pretrained
    python benchmarks/monai_ssl_phantom.py --cohort cohort \
        --checkpoint pretrained/monai-ssl-vitautoenc.pretrained.safetensors --out results

`few_labels.py` says how the starts are compared; scores are Dice, the mean over organs. Two runs at a time, on a core
each, the defaults take about an hour. Everything here is synthetic: the figures compare starts on this cohort and say
nothing about patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from few_labels import Found, Run, compare, finish_runs, middle_case, parser_of, print_comparison, print_structures

import zoo
from zoo.entries.monai_ssl import FINE_TUNING
from zoo.entries.monai_ssl.contract import build_transform
from zoo.entries.monai_ssl.windows import segment
from zoo.transforms import place_volume

MODEL = "monai-ssl-unetr"
STARTS = ("pre-trained", "random")
SPACING = "6"
"""Of the resampled volumes in mm: crops of 32 are then as wide as crops of 48 at the cohort's 4 mm, for a third of the
time."""


def main() -> None:
    """Fine-tune what is missing, compare, draw, write."""
    args = parse()
    runs = finish_runs(args, "zoo.entries.monai_ssl.finetune", STARTS, lambda run: flags_of(run, args))
    found = {run: np.array(run.results["test"]["dice_per_case"], dtype=float) for run in runs}
    results = compare(args, found, STARTS, [STARTS])
    organs = {f"{start}, {n}": organ_means(runs, start, n) for n in args.labelled for start in STARTS}
    (args.out / "results.json").write_text(json.dumps({**results, "organs": organs}, indent=1) + "\n")
    print_comparison(results)
    print_structures(organs, "organ")
    draw(args, found)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = parser_of(__doc__, labelled=(2, 6))
    parser.add_argument("--cohort", type=Path, required=True, help="folder that zoo.entries.monai_ssl.phantom wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="auto-encoder pre-trained on its images")
    parser.add_argument("--epochs", type=int, default=5, help="of each run; validation follows each")
    parser.add_argument("--steps", type=int, default=400, help="in an epoch")
    parser.add_argument("--crops", type=int, default=2, help="in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--size", type=int, default=32, help="of the crops, as the auto-encoder has it")
    parser.add_argument("--hidden-size", type=int, default=192, help="of a token, as the auto-encoder has it")
    parser.add_argument("--mlp-dim", type=int, default=768, help="as the auto-encoder has it")
    parser.add_argument("--feature-size", type=int, default=8, help="of the decoder")
    return parser.parse_args()


def flags_of(run: Run, args: argparse.Namespace) -> list[object]:
    """Flags of the recipe for a run."""
    start = ["--checkpoint", args.checkpoint] if run.start == "pre-trained" else ["--from-scratch"]
    data = ["--data", args.cohort, "--table", args.cohort / "labelled.json", "--cache", args.out / "volumes"]
    sizes = ["--size", args.size, "--hidden-size", args.hidden_size, "--mlp-dim", args.mlp_dim]
    sizes += ["--feature-size", args.feature_size, "--spacing", SPACING]
    length = ["--epochs", args.epochs, "--steps-per-epoch", args.steps, "--crops", args.crops, "--lr", args.lr]
    return [*start, *data, *sizes, *length, "--schedule", "cosine-per-step"]


def organ_means(runs: list[Run], start: str, labelled: int) -> dict[str, float]:
    """Dice of each organ, the mean over seeds."""
    chosen = [run.results["test"]["dice_per_class"] for run in runs if (run.start, run.labelled) == (start, labelled)]
    return {organ: float(np.mean([dice[organ] for dice in chosen])) for organ in chosen[0]}


def draw(args: argparse.Namespace, found: Found) -> None:
    """Draw an axial and a coronal slice of the median test volume: CT, truth, and what both starts make of it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    fewest, seed = min(args.labelled), args.seeds[0]
    case = middle_case(found, fewest)
    files = json.loads((args.cohort / "labelled.json").read_text())["test"][case]
    volume, truth = (np.asarray(nibabel.load(args.cohort / files[kind]).dataobj) for kind in ("image", "label"))
    layers = {"CT": np.zeros_like(truth), "truth": truth}
    for run, dice in found.items():
        if (run.labelled, run.seed) == (fewest, seed):
            title = f"{run.start}, Dice {dice[case]:.2f}"
            layers[title] = predict(run.folder / "best.pt", args.cohort / files["image"])
    middle = np.argwhere(truth).mean(0).round().astype(int)
    cuts = (np.s_[::-1, ::-1, middle[2]], np.s_[::-1, middle[1], ::-1])  # as radiologists look at it
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    colours: dict[str, Any] = {"cmap": "tab20", "vmin": 0.5, "vmax": 20.5, "alpha": 0.75, "interpolation": "nearest"}
    for row, cut in zip(figure.subplots(2, len(layers)), cuts, strict=True):
        for axes, (title, labels) in zip(row, layers.items(), strict=True):
            axes.imshow(volume[cut].T, cmap="gray", vmin=-175, vmax=250)
            drawn = axes.imshow(np.where(labels > 0, labels, np.nan)[cut].T, **colours)
            axes.set_title(title if cut is cuts[0] else "")
            axes.set_axis_off()
    organs = next(iter(found)).results["test"]["dice_per_class"]
    patches = [Patch(color=drawn.cmap(drawn.norm(i)), label=name) for i, name in enumerate(organs, 1)]
    figure.legend(handles=patches, loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle(f"Synthetic abdomen {Path(files['image']).name}; networks that have seen {fewest} labelled volumes")
    figure.savefig(args.out / "phantom.png", dpi=75)


def predict(checkpoint: Path, image: Path) -> np.ndarray:
    """Labels of a volume on its own grid."""
    placed = place_volume(image, build_transform(FINE_TUNING, SPACING))
    network = zoo.load_model(MODEL, checkpoint=checkpoint)
    return placed.at_home(segment(network, torch.from_numpy(placed.image)[None]).numpy())


if __name__ == "__main__":
    main()
