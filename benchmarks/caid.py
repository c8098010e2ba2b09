"""What frozen CAiD features are worth on labelled radiographs, against random weights and raw pixels.

    python benchmarks/caid.py --data images --list labels.csv --label pneumonia --model caid-resnet50.chestxray14-800

Linear-probe AUROC at several label budgets over several label subsets, and retrieval of another image of the same
patient, all at the model's own input size. Differences come with a 95 % interval from a bootstrap over patients,
paired: both methods see the same patients drawn. `--folds 5` cross-validates by patient inside the training split and
never opens the test images: that is for choosing settings. Without it the test split is looked at.

The list is a CSV with the columns file, patient, split (train, val) and the label.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import zoo
from zoo.entries.caid.cohort import Sample, read_list
from zoo.training.evaluate import bootstrap_by_group, extract_features, label_subsets, linear_probe, retrieval
from zoo.training.metrics import auroc

RANDOM_SEEDS = (0, 1, 2)
BUDGETS = (25, 50, 100, 0)
"""Labelled training images; 0 for all of them."""
DECISIVE = 50


@dataclass(frozen=True)
class Task:
    """Which images train a probe and which test it."""

    train: np.ndarray
    test: np.ndarray


def main() -> None:
    """Extract, probe, retrieve, compare, write."""
    args = parse()
    train = read_list(args.data, args.list, labels=(args.label,), split="train")
    test = [] if args.folds else read_list(args.data, args.list, labels=(args.label,), split=args.test_split)
    samples = train + test
    labels = np.array([s.labels[0] for s in samples])
    patients = [s.patient for s in samples]
    tasks = (
        folds(patients, args.folds)
        if args.folds
        else [Task(np.arange(len(train)), np.arange(len(train), len(samples)))]
    )
    features = all_features(args, samples)
    probes = {name: probe(x, labels, tasks, args.subsets) for name, x in features.items()}
    pool = np.concatenate([t.test for t in tasks])
    found = {name: retrieval(x[pool], [patients[i] for i in pool]) for name, x in features.items()}
    results = summary(probes, found, labels, patients, tasks, pool)
    results["setup"] = {k: str(v) for k, v in vars(args).items()} | {"images": len(samples), "torch": torch.__version__}
    show(results)
    if args.plot:
        plot(results, args.plot)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--list", required=True, help="CSV")
    parser.add_argument("--label", required=True, help="column with the binary label")
    parser.add_argument("--model", default="caid-resnet50", help="MODEL.TAG")
    parser.add_argument("--checkpoint", default=None, help="a file to load instead")
    parser.add_argument("--size", type=int, default=0, help="input side; default the model's own")
    parser.add_argument("--subsets", type=int, default=10, help="label subsets per budget")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate inside the training split")
    parser.add_argument("--test-split", default="val")
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--plot", default="", help="PNG to draw")
    return parser.parse_args()


def folds(patients: list[str], count: int) -> list[Task]:
    """Folds that keep a patient together."""
    from sklearn.model_selection import GroupKFold

    return [Task(a, b) for a, b in GroupKFold(count).split(np.zeros(len(patients)), groups=patients)]


def all_features(args: argparse.Namespace, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Features of every contestant, from the same pixels."""
    size = args.size or zoo.model_info(args.model).input.size[0]
    images = list(batches(args.model, samples, size))
    entry = args.model.split(".")[0]
    trained = zoo.load_model(entry if args.checkpoint else args.model, checkpoint=args.checkpoint)
    features = {"trained": extract_features(trained, images)}
    for seed in RANDOM_SEEDS:
        torch.manual_seed(seed)
        network = zoo.load_model(entry, pretrained=False)
        features[f"random {seed}"] = extract_features(network, images)
    for name, parameter in network.named_parameters():
        if name.endswith(".bn3.weight"):
            nn.init.zeros_(parameter)  # how --zero-init-residual starts: a fairer opponent of what it ends with
    features[f"random {RANDOM_SEEDS[-1]}, zero residual"] = extract_features(network, images)
    shrink: Callable[[torch.Tensor], torch.Tensor] = nn.AdaptiveAvgPool2d(16)
    features["pixels 16x16"] = extract_features(lambda x: shrink(x[:, :1]), images)
    return features


def batches(model: str, samples: list[Sample], size: int) -> Iterator[torch.Tensor]:
    """Images as the model's own transform makes them, at `size`."""
    from zoo.transforms import build_transform

    contract = zoo.model_info(model).input
    scale = size / contract.size[0]
    resize = None if contract.resize is None else round(contract.resize * scale)
    transform = build_transform(contract.override({"size": [size, size], "resize": resize}))
    for start in range(0, len(samples), 32):
        yield torch.stack([transform(s.file) for s in samples[start : start + 32]])


def probe(x: np.ndarray, labels: np.ndarray, tasks: list[Task], subsets: int) -> dict[int, list[list[np.ndarray]]]:
    """Scores of the test images: budget -> task -> label subset."""
    return {
        budget: [
            [
                linear_probe(x[t.train[rows]], labels[t.train[rows]], x[t.test])
                for rows in label_subsets(labels[t.train], budget, subsets)
            ]
            for t in tasks
        ]
        for budget in BUDGETS
    }


def summary(
    probes: dict[str, Any],
    found: dict[str, Any],
    labels: np.ndarray,
    patients: list[str],
    tasks: list[Task],
    pool: np.ndarray,
) -> dict[str, Any]:
    """Means, spreads over label subsets, and paired differences to every other contestant."""
    results: dict[str, Any] = {"auroc": {}, "retrieval": {}, "difference": {}}
    for name, scores in probes.items():
        values = {
            b: [auroc(labels[t.test], s) for t, some in zip(tasks, scores[b], strict=True) for s in some]
            for b in BUDGETS
        }
        results["auroc"][name] = {str(b or "all"): [float(np.mean(v)), float(np.std(v))] for b, v in values.items()}
        first, precision, queries = found[name]
        results["retrieval"][name] = {"recall@1": first.mean(), "mAP": precision.mean(), "queries": len(queries)}
    for name in probes:
        if name == "trained":
            continue
        results["difference"][name] = {
            f"AUROC at {DECISIVE}": auroc_difference(probes["trained"], probes[name], labels, patients, tasks),
            "mAP": retrieval_difference(found["trained"], found[name], [patients[i] for i in pool]),
        }
    return results


def auroc_difference(ours: Any, other: Any, labels: np.ndarray, patients: list[str], tasks: list[Task]) -> list[float]:
    """Difference of the mean AUROC at the decisive budget, and its interval."""
    owner = np.concatenate([t.test for t in tasks])
    starts = np.cumsum([0, *(len(t.test) for t in tasks)])

    def statistic(weights: np.ndarray) -> float:
        differences = []
        for k, task in enumerate(tasks):
            w, y = weights[starts[k] : starts[k + 1]], labels[task.test]
            drawn = w > 0
            if len(np.unique(y[drawn])) < 2:
                return float("nan")
            pairs = zip(ours[DECISIVE][k], other[DECISIVE][k], strict=True)
            differences += [auroc(y[drawn], a[drawn], w[drawn]) - auroc(y[drawn], b[drawn], w[drawn]) for a, b in pairs]
        return float(np.mean(differences))

    low, high = bootstrap_by_group(statistic, [patients[i] for i in owner], rounds=1000)
    return [statistic(np.ones(len(owner))), low, high]


def retrieval_difference(ours: Any, other: Any, patients: list[str]) -> list[float]:
    """Difference of the mean average precision, and its interval."""
    gain, queries = ours[1] - other[1], ours[2]

    def statistic(weights: np.ndarray) -> float:
        w = weights[queries]
        return float((gain * w).sum() / w.sum()) if w.sum() else float("nan")

    low, high = bootstrap_by_group(statistic, patients)
    return [float(gain.mean()), low, high]


def show(results: dict[str, Any]) -> None:
    """Print the tables as Markdown, ready for a card."""
    budgets = list(next(iter(results["auroc"].values())))
    print("| features | " + " | ".join(f"AUROC, {b} labels" for b in budgets) + " | recall@1 | mAP |")
    print("|---" * (len(budgets) + 3) + "|")
    for name, values in results["auroc"].items():
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in values.values()]
        found = results["retrieval"][name]
        print(f"| {name} | " + " | ".join(cells) + f" | {found['recall@1']:.3f} | {found['mAP']:.3f} |")
    print()
    for name, values in results["difference"].items():
        parts = [f"{k} {v:+.3f} [{low:+.3f}, {high:+.3f}]" for k, (v, low, high) in values.items()]
        print(f"trained - {name}: " + "; ".join(parts))


def plot(results: dict[str, Any], path: str) -> None:
    """Draw AUROC against the number of labels, and retrieval, for every contestant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in results["auroc"].items():
        means, spreads = zip(*values.values(), strict=True)
        style = {"color": "black", "linewidth": 2.5} if name == "trained" else {"alpha": 0.7}
        left.errorbar(list(values), means, spreads, label=name, marker="o", capsize=2, **style)
    left.set(xlabel="labelled training images", ylabel="AUROC, linear probe")
    left.legend(fontsize=7)
    found = {name: value["mAP"] for name, value in results["retrieval"].items()}
    right.barh(
        list(found)[::-1], list(found.values())[::-1], color=["C3" if n == "trained" else "C7" for n in found][::-1]
    )
    right.set(xlabel="mean average precision, same patient")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
