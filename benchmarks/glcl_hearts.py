"""What GLCL's two stages are worth on the synthetic hearts: the U-Net fine-tuned with few labels from three starts.

    python -m zoo.entries.glcl.phantom --out hearts --subjects 66
    flags="--data hearts --subjects 001-040 --size 96 --spacing 2 --norm-momentum 0.1 --steps-per-epoch 50"
    python -m zoo.entries.glcl.pretrain --stage encoder --epochs 20 $flags --out global
    python -m zoo.entries.glcl.pretrain --stage decoder --epochs 6 $flags --out local \
        --init global/glcl-encoder.global.safetensors
    python benchmarks/glcl_hearts.py --hearts hearts --encoder global/glcl-encoder.global.safetensors \
        --decoder local/glcl-unet.local.safetensors --seeds 0 1 2 3 4 --out results

`few_labels.py` says how the starts are compared; scores are Dice, the mean over both ventricles and the myocardium.
Hearts 001 to 008 are labelled, 041 and 042 validate, 043 to 066 test: neither stage of pre-training has seen the last
two kinds. Everything here is synthetic: the figures compare starts on this cohort and say nothing about patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from few_labels import Found, Run, compare, finish_runs, middle_case, parser_of, print_comparison, print_structures

import zoo
from zoo.entries.glcl.cohort import DATASETS
from zoo.entries.glcl.phantom import MYOCARDIUM
from zoo.entries.glcl.segment import segment_volume
from zoo.registry import get_entry
from zoo.transforms import build_slice_transform

MODEL = "glcl-unet"
STARTS = ("nothing", "global", "global + local")
PAIRS = (("global", "nothing"), ("global + local", "nothing"), ("global + local", "global"))
STRUCTURES = DATASETS["acdc"].structures
TRAIN, VAL, TEST = "001-008", "041,042", "043-066"


def main() -> None:
    """Fine-tune what is missing, compare, draw, write."""
    args = parse()
    runs = finish_runs(args, "zoo.entries.glcl.finetune", STARTS, lambda run: flags_of(run, args))
    found = {run: dice_of(run) for run in runs}
    results = compare(args, found, STARTS, PAIRS)
    columns = [(f"{start}, {n}", start, n) for n in args.labelled for start in STARTS]
    tables = {
        measure: {title: means(runs, measure, start, n) for title, start, n in columns}
        for measure in ("dice", "hausdorff95")
    }
    (args.out / "results.json").write_text(json.dumps({**results, **tables}, indent=1) + "\n")
    print_comparison(results)
    print_structures(tables["dice"], "Dice")
    print_structures(tables["hausdorff95"], "95 % Hausdorff distance, mm")
    draw(args, found)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = parser_of(__doc__, labelled=(1, 2, 8))
    parser.add_argument("--hearts", type=Path, required=True, help="folder that zoo.entries.glcl.phantom wrote")
    parser.add_argument("--encoder", type=Path, required=True, help="weights of stage 1")
    parser.add_argument("--decoder", type=Path, required=True, help="weights of stage 2")
    parser.add_argument("--epochs", type=int, default=6, help="of each run; validation follows each")
    parser.add_argument("--steps", type=int, default=50, help="in an epoch")
    parser.add_argument("--slices", type=int, default=10, help="in a step")
    parser.add_argument("--size", type=int, default=96, help="of the slices in pixels")
    parser.add_argument("--spacing", type=float, default=2.0, help="of their pixels in mm")
    return parser.parse_args()


def flags_of(run: Run, args: argparse.Namespace) -> list[object]:
    """Flags of the recipe for a run."""
    start: dict[str, list[object]] = {
        "nothing": ["--from-scratch"],
        "global": ["--checkpoint", args.encoder],
        "global + local": ["--checkpoint", args.decoder],
    }
    data = ["--data", args.hearts, "--train", TRAIN, "--val", VAL, "--test", TEST, "--cache", args.out / "volumes"]
    grid = ["--size", args.size, "--spacing", args.spacing, "--device", "cpu"]
    length = ["--epochs", args.epochs, "--steps-per-epoch", args.steps, "--batch-size", args.slices]
    return [*start[run.start], *data, *grid, *length, "--norm-momentum", 0.1]


def dice_of(run: Run) -> np.ndarray:
    """Dice of each test volume: the mean over its structures."""
    cases = run.results["test"]["cases"].values()
    return np.array([np.mean([case[structure]["dice"] for structure in STRUCTURES]) for case in cases])


def means(runs: list[Run], measure: str, start: str, labelled: int) -> dict[str, float]:
    """A measure of each structure: the mean over seeds of the mean over the volumes that have a value."""
    chosen = [run.results["test"] for run in runs if (run.start, run.labelled) == (start, labelled)]
    values = {s: [test[f"{measure}_per_structure"][s] for test in chosen] for s in STRUCTURES}
    return {s: float(np.nanmean(np.array(of, dtype=float))) for s, of in values.items()}


def draw(args: argparse.Namespace, found: Found) -> None:
    """Draw a middle slice of the median test heart: image, truth, and what each start makes of it, a row a number."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seed, fewest = args.seeds[0], min(args.labelled)
    case = middle_case(found, fewest)
    runs = [run for run in found if run.seed == seed]
    name = [*runs[0].results["test"]["cases"]][case]
    image, mask = (args.hearts / f"patient{name}" / f"patient{name}_frame01{end}.nii.gz" for end in ("", "_gt"))
    volume, truth = (np.asarray(nibabel.load(path).dataobj) for path in (image, mask))
    cut = np.s_[:, :, int((truth == MYOCARDIUM).sum((0, 1)).argmax())]
    low, high = np.percentile(volume, [1, 99])
    figure = Figure(figsize=(2.4 * (len(STARTS) + 2), 2.6 * len(args.labelled) + 0.4), layout="constrained")
    colours: dict[str, Any] = {"cmap": "tab10", "vmin": 0.5, "vmax": 10.5, "alpha": 0.6, "interpolation": "nearest"}
    rows = figure.subplots(len(args.labelled), len(STARTS) + 2, squeeze=False)
    for row, labelled in zip(rows, args.labelled, strict=True):
        layers = {"image": np.zeros_like(truth), "truth": truth}
        for run in (run for run in runs if run.labelled == labelled):
            layers[f"{run.start}, {labelled} labelled\nDice {found[run][case]:.2f}"] = predict(run, image, args)
        for axes, (title, labels) in zip(row, layers.items(), strict=True):
            axes.imshow(volume[cut].T, cmap="gray", vmin=low, vmax=high)
            drawn = axes.imshow(np.where(labels > 0, labels, np.nan)[cut].T, **colours)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    patches = [Patch(color=drawn.cmap(drawn.norm(i)), label=name) for i, name in enumerate(STRUCTURES, 1)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
    figure.suptitle(f"Synthetic heart {name}")
    figure.savefig(args.out / "hearts.png", dpi=70)


def predict(run: Run, image: Path, args: argparse.Namespace) -> np.ndarray:
    """Labels (X, Y, Z) of a heart by the best checkpoint of a run."""
    grid = {"size": [args.size] * 2, "spacing": [args.spacing] * 2}
    transform = build_slice_transform(get_entry(MODEL).preprocessing.override(grid))
    return segment_volume(zoo.load_model(MODEL, checkpoint=run.folder / "best.pt"), image, transform)


if __name__ == "__main__":
    main()
