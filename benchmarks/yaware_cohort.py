"""What y-Aware's features are worth on the synthetic cohort, against SimCLR's, random weights and raw voxels.

    python -m zoo.entries.yaware.phantom --out cohort
    python -m zoo.entries.yaware.phantom --out unseen --seed 1 --healthy 300 --clinical 2
    python -m zoo.entries.yaware.pretrain --data cohort/healthy.npy --table cohort/healthy.csv --out yaware ...
    python -m zoo.entries.yaware.pretrain ... --kernel views --out simclr
    python benchmarks/yaware_cohort.py --cohort cohort --unseen unseen --yaware yaware/best.pt --simclr simclr/best.pt \
        --out results

Disease against control in `clinical`, whose scanners pre-training has not seen: five stratified folds, in each several
draws of few labelled subjects; linear probes on frozen features, and networks fine-tuned from ours and from scratch.
Test subjects and draws are the same for all. Differences have a 95 % interval from a paired bootstrap over subjects.
Age on the healthy of `unseen`, other scanners again: ridge regression on frozen features, five folds.
Everything here is synthetic: the figures compare methods on this cohort and say nothing about brains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import zoo
from zoo.entries.yaware import MODEL, finetune
from zoo.entries.yaware.cohort import Cohort, read_cohort
from zoo.training.args import parse_args
from zoo.training.evaluate import bootstrap_by_group, extract_features, linear_probe
from zoo.training.metrics import auroc

BUDGETS = (20, 50)
RANDOM_SEEDS = (0, 1, 2)
OURS = "y-Aware"

Scores = dict[int, list[np.ndarray]]
"""Per number of labels: of every split, the scores of its test subjects."""


def main() -> None:
    """Extract, probe, fine-tune, compare, write."""
    args = parse()
    clinical = read_cohort(f"{args.cohort}/clinical.npy", f"{args.cohort}/clinical.csv")
    unseen = read_cohort(f"{args.unseen}/healthy.npy", f"{args.unseen}/healthy.csv", labels=["age"])
    features, embedded = {}, {}
    for name, network in networks(args).items():
        features[name], embedded[name] = encode(network, clinical), encode(network, unseen)
    features["voxels"], embedded["voxels"] = voxels(clinical), voxels(unseen)
    labels = np.array([int(cell) for cell in clinical.column("diagnosis")])
    splits = {n: finetune.read_task(finetune_args(args, n, [])).splits for n in BUDGETS}
    probes = {name: probe(x, labels, splits) for name, x in features.items()}
    results = {
        "setup": {k: str(v) for k, v in vars(args).items()} | {"torch": torch.__version__},
        "probe_auroc": {name: summary(scores, labels, splits) for name, scores in probes.items()},
        "difference": differences(probes, labels, splits),
        "age": {name: age_fit(x, unseen.labels[:, 0]) for name, x in embedded.items()},
        "finetuned_auroc": finetuned(args),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "setup"}, indent=1))
    plot(results, embedded, unseen.labels[:, 0], args.out / "cohort.png")


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", required=True, help="folder that zoo.entries.yaware.phantom wrote")
    parser.add_argument("--unseen", required=True, help="another, with other scanners, for age")
    parser.add_argument("--yaware", required=True, help="weights pre-trained with ages")
    parser.add_argument("--simclr", required=True, help="weights pre-trained with --kernel views")
    parser.add_argument(
        "--repeats", type=int, default=5, help="draws of labelled subjects in each fold, for the probes"
    )
    parser.add_argument("--epochs", type=int, default=50, help="of the fine-tuned networks; 0 leaves them out")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and the picture")
    return parser.parse_args()


def networks(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The encoders to compare."""
    found = {
        OURS: zoo.load_model(MODEL, checkpoint=args.yaware),
        "SimCLR": zoo.load_model(MODEL, checkpoint=args.simclr),
    }
    for seed in RANDOM_SEEDS:
        torch.manual_seed(seed)
        found[f"random weights, seed {seed}"] = zoo.load_model(MODEL, pretrained=False)
    return found


def encode(network: nn.Module, cohort: Cohort) -> np.ndarray:
    """Pooled features (n, 1024)."""
    rows = tqdm(range(0, len(cohort), 20), leave=False, disable=None)
    batches = (np.stack([cohort.volume(j) for j in range(i, min(i + 20, len(cohort)))]) for i in rows)
    return extract_features(network, (torch.from_numpy(batch) for batch in batches))


def voxels(cohort: Cohort) -> np.ndarray:
    """The z-scored voxels themselves, but for those that are background in every subject."""
    everything = np.stack([cohort.volume(i).ravel() for i in range(len(cohort))])
    return everything[:, everything.max(0) > 0]


def finetune_args(args: argparse.Namespace, labelled: int, more: list[str]) -> finetune.Args:
    """Arguments of the recipe that give the splits of the comparison."""
    table = ["--data", f"{args.cohort}/clinical.npy", "--table", f"{args.cohort}/clinical.csv", "--label", "diagnosis"]
    draws = ["--labelled", str(labelled), "--repeats", str(args.repeats), "--workers", "0", "--out", "unused"]
    return parse_args(finetune.Args, [*table, *draws, *more])


def probe(features: np.ndarray, labels: np.ndarray, splits: dict[int, list[Any]]) -> Scores:
    """Scores of the test subjects of every split."""
    return {n: [linear_probe(features[s.train], labels[s.train], features[s.test]) for s in splits[n]] for n in splits}


def mean_auroc(scores: Scores, labels: np.ndarray, splits: dict[int, list[Any]], n: int, weights: np.ndarray) -> float:
    """Mean over the splits of the AUROC, each subject counting by its weight."""
    areas = [auroc(labels[s.test], x, weights[s.test]) for s, x in zip(splits[n], scores[n], strict=True)]
    return float(np.mean(areas))


def summary(scores: Scores, labels: np.ndarray, splits: dict[int, list[Any]]) -> dict[int, dict[str, float]]:
    """Mean and standard deviation of the AUROC over splits, per number of labels."""
    areas = {n: [auroc(labels[s.test], x) for s, x in zip(splits[n], scores[n], strict=True)] for n in splits}
    return {n: {"mean": float(np.mean(a)), "std": float(np.std(a, ddof=1))} for n, a in areas.items()}


def differences(probes: dict[str, Scores], labels: np.ndarray, splits: dict[int, list[Any]]) -> dict[str, Any]:
    """Ours minus each other: the difference of the mean AUROC and its interval."""
    subjects, ours = [str(i) for i in range(len(labels))], probes[OURS]
    result: dict[str, Any] = {}
    for name, other in probes.items():
        if name == OURS:
            continue
        for n in splits:

            def gain(w: np.ndarray, n: int = n, other: Scores = other) -> float:
                return mean_auroc(ours, labels, splits, n, w) - mean_auroc(other, labels, splits, n, w)

            low, high = bootstrap_by_group(gain, subjects, rounds=300)
            result.setdefault(name, {})[n] = {"mean": gain(np.ones(len(labels))), "low": low, "high": high}
    return result


def age_fit(features: np.ndarray, age: np.ndarray) -> dict[str, float]:
    """Correlation and mean absolute error in years of a ridge regression, five folds."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 6, 8)))
    predicted = cross_val_predict(model, features, age, cv=KFold(5, shuffle=True, random_state=0))
    return {"r": float(np.corrcoef(predicted, age)[0, 1]), "mae": float(np.abs(predicted - age).mean())}


def finetuned(args: argparse.Namespace) -> dict[str, Any]:
    """Test AUROC of networks trained on the labelled subjects, all layers, from each start: one draw a fold."""
    starts = {OURS: ["--checkpoint", args.yaware], "from scratch": ["--from-scratch"]}
    results: dict[str, Any] = {}
    for name, start in starts.items() if args.epochs else ():
        for n in BUDGETS:
            out = args.out / f"{name.replace(' ', '-')}-{n}"
            flags = ["--epochs", str(args.epochs), "--resume"]
            table = ["--data", f"{args.cohort}/clinical.npy", "--table", f"{args.cohort}/clinical.csv"]
            labelled = ["--label", "diagnosis", "--labelled", str(n), "--workers", "0", "--out", str(out)]
            results.setdefault(name, {})[n] = finetune.main([*table, *labelled, *flags, *start])["auroc"]
    return results


def plot(results: dict[str, Any], embedded: dict[str, np.ndarray], age: np.ndarray, path: Path) -> None:
    """Draw two principal components coloured by age, for three encoders, and the probes beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2), layout="constrained")
    for axis, name in zip(axes[:3], (OURS, "SimCLR", "random weights, seed 0"), strict=True):
        points = PCA(2, random_state=0).fit_transform(StandardScaler().fit_transform(embedded[name]))
        dots = axis.scatter(points[:, 0], points[:, 1], c=age, s=12, cmap="viridis")
        axis.set(title=f"{name}: age r = {results['age'][name]['r']:.2f}", xticks=[], yticks=[])
        axis.set(xlabel="component 1", ylabel="component 2")
    figure.colorbar(dots, ax=axes[2], label="age (years)")
    for name, row in results["probe_auroc"].items():
        means, stds = ([row[n][k] for n in BUDGETS] for k in ("mean", "std"))
        axes[3].errorbar(BUDGETS, means, stds, label=name, marker="o", capsize=3, lw=2 if name == OURS else 1)
    axes[3].set(title="disease, linear probe", xlabel="labelled subjects", ylabel="AUROC", xticks=BUDGETS)
    axes[3].legend(fontsize=7)
    figure.suptitle("Synthetic cohort, unseen scanners")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
