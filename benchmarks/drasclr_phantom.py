"""What DrasCLR's features are worth on the phantom cohort, against random weights and plain densities.

    python -m zoo.entries.drasclr.phantom --out cohort --subjects 80
    python -m zoo.entries.drasclr.data group --patches cohort/patch --out cohort/grouped_patch
    python -m zoo.entries.drasclr.pretrain --data cohort/grouped_patch --landmarks cohort/landmarks.npy --out run ...
    python benchmarks/drasclr_phantom.py --cohort cohort --checkpoint run/last.pt --out results

Patients: the mean of the features over the landmarks, linear probes of severity, FEV1 and survival in five folds, the
folds drawn anew several times, the same for all. R2 is of the predictions of all folds together; its difference to ours
has a 95 % interval from a paired bootstrap over subjects. The C-index is the mean over folds.
Maps: of the emphysema in the chests that were kept, each by a probe that the others taught, Dice against the truth.
Beside them stand the mean HU and the share below -950 HU, of a patient's patches or of a cell, what the true severity
itself gives, and the voxels below -950 HU themselves, which need no network. Random weights get the batch statistics of
this cohort first: without them nothing of the image arrives behind 13 layers whose experts start small.
Everything here is synthetic: the figures compare features on this cohort and say nothing about lungs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import nn
from tqdm import tqdm

import zoo
from zoo.checkpoint import export_safetensors
from zoo.entries.drasclr import dense
from zoo.entries.drasclr.atlas import load_landmarks, normalise
from zoo.entries.drasclr.contract import NAME
from zoo.entries.drasclr.ct.lungs import by_threshold
from zoo.entries.drasclr.ct.scan import Scan
from zoo.entries.drasclr.data import scale
from zoo.entries.drasclr.embed import embed_cohort
from zoo.entries.drasclr.features import read_subject_features
from zoo.entries.drasclr.finetune_method import Target, cross_validate, read_target
from zoo.entries.drasclr.maps.cells import lay_cells, shares, spread
from zoo.entries.drasclr.maps.probe import fit_probe
from zoo.entries.drasclr.patches import open_patches
from zoo.training.evaluate import bootstrap_by_group
from zoo.training.table import read_table

RANDOM_SEEDS = (0, 1, 2)
OURS, DENSITY, TRUTH = "DrasCLR", "density", "true severity"
EMPHYSEMA = -950
"""HU below which CT counts a voxel as emphysema (Gevenois et al., Am. J. Respir. Crit. Care Med. 1996)."""

Found = dict[str, dict[str, Any]]
"""Features -> target -> what was found."""


def main() -> None:
    """Embed, probe, map, compare, write."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {row["sid"]: row for row in read_table(args.subjects or args.cohort / "subjects.csv")}
    places = torch.from_numpy(normalise(load_landmarks(args.cohort / "landmarks.npy")))
    files = {
        OURS: args.checkpoint,
        **{f"random weights, seed {s}": random_weights(args, s, places) for s in RANDOM_SEEDS},
    }
    features = {name: embed(args, name, file, list(rows), places) for name, file in files.items()}
    features[DENSITY] = densities(args, list(rows))
    features[TRUTH] = np.array([[float(row["severity"])] for row in rows.values()])
    targets = {
        "severity": read_target(rows, "severity"),
        "fev1": read_target(rows, "fev1"),
        "survival": read_target(rows, "time", event="event"),
    }
    found = {name: {t: probe(args, x, target) for t, target in targets.items()} for name, x in features.items()}
    del found[TRUTH]["severity"]
    results = {
        "setup": {k: str(v) for k, v in vars(args).items()} | {"torch": torch.__version__, "subjects": len(rows)},
        "patients": {n: {t: summary(f) for t, f in of.items()} for n, of in found.items()},
        "difference": differences(found, {t: targets[t].values for t in ("severity", "fev1")}),
        "maps": maps(args, files),
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "setup"}, indent=1))
    plot(args)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder that zoo.entries.drasclr.phantom wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights pre-trained on it")
    parser.add_argument("--subjects", type=Path, help="table of those to probe; default all of the cohort")
    parser.add_argument("--repeats", type=int, default=5, help="how often the folds are drawn")
    parser.add_argument("--side", type=int, default=dense.SIDE, help="of a cell of the maps, in voxels")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, features, maps and the picture")
    return parser.parse_args()


def random_weights(args: argparse.Namespace, seed: int, places: torch.Tensor) -> Path:
    """File of weights that were never trained, with the batch statistics of some of the cohort's patches."""
    torch.manual_seed(seed)
    network = zoo.load_model(NAME, pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the mean over all batches
    network.train()
    rng, files = np.random.default_rng(seed), sorted((args.cohort / "patch").glob("*.npy"))
    for place in rng.permutation(len(places))[:16]:
        chosen = rng.permutation(len(files))[:32]
        batch = np.stack([open_patches(files[i])[place] for i in chosen])
        with torch.no_grad():
            network(torch.from_numpy(scale(batch)).unsqueeze(1), places[place])
    file: Path = args.out / f"random-{seed}.safetensors"
    export_safetensors(network.state_dict(), file)
    return file


def embed(args: argparse.Namespace, name: str, weights: Path, sids: list[str], places: torch.Tensor) -> np.ndarray:
    """Pooled features (n, 128)."""
    file = args.out / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
    network = zoo.load_model(NAME, checkpoint=weights)
    found = read_subject_features(embed_cohort(network, args.cohort / "patch", file, subjects=sids, locations=places))
    return found.values[[found.sids.index(sid) for sid in sids]].astype(float)


def densities(args: argparse.Namespace, sids: list[str]) -> np.ndarray:
    """Mean HU and share below -950 HU of the patches (n, 2)."""
    rows = []
    for sid in tqdm(sids, desc="densities", leave=False, disable=None):
        patches = np.load(args.cohort / "patch" / f"{sid}_patch.npy", mmap_mode="r")
        rows.append([patches.mean(), (patches < EMPHYSEMA).mean()])
    return np.array(rows)


def probe(args: argparse.Namespace, x: np.ndarray, target: Target) -> dict[str, Any]:
    """Metrics of each draw of the folds, and the mean prediction of each subject where predictions are numbers."""
    names = [str(i) for i in range(len(x))]
    drawn = [cross_validate(x, target, names, seed=seed) for seed in range(args.repeats)]
    if target.task == "survival":
        return {"c_index": [one.summary["c_index"]["mean"] for one in drawn]}
    return {
        "r2": [r2_score(target.values, one.scores) for one in drawn],
        "predicted": np.mean([one.scores for one in drawn], axis=0),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over the draws."""
    (name, values), *_ = found.items()
    return {name: float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def differences(found: Found, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Ours minus each other: the difference of R2 of the mean predictions, and its interval."""
    result = {}
    for target, y in values.items():
        ours = found[OURS][target]["predicted"]
        others = {name: of[target]["predicted"] for name, of in found.items() if name != OURS and target in of}
        result[target] = {name: difference(y, ours, other) for name, other in others.items()}
    return result


def difference(y: np.ndarray, ours: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """R2 of our predictions (n,) of y less that of others."""

    def gain(w: np.ndarray) -> float:
        return float(r2_score(y, ours, sample_weight=w) - r2_score(y, other, sample_weight=w))

    low, high = bootstrap_by_group(gain, [str(i) for i in range(len(y))], rounds=1000)
    return {"mean": gain(np.ones(len(y))), "low": low, "high": high}


def maps(args: argparse.Namespace, weights: dict[str, Path]) -> dict[str, Any]:
    """Mean Dice of the maps of each network, of the densities of cells, and of single voxels."""
    files = sorted((args.cohort / "volume").glob("*.npy"))
    masks = args.out / "lungs"
    masks.mkdir(exist_ok=True)
    for file in files:
        np.save(masks / file.name, lungs(np.load(file)))
    folders = {"--volumes": args.cohort / "volume", "--truth": args.cohort / "truth", "--masks": masks}
    folders |= {"--landmarks": args.cohort / "landmarks.npy", "--side": args.side}
    given = [str(word) for pair in folders.items() for word in pair]
    results = {}
    for i, (name, file) in enumerate(weights.items()):
        results[name] = dense.main([*given, "--checkpoint", str(file), "--out", str(args.out / f"maps-{i}")])["dice"]
    return results | plain_maps(args, files)


def lungs(volume: np.ndarray) -> np.ndarray:
    """Mask of both lungs of a chest (D, H, W)."""
    turned = np.ascontiguousarray(volume.transpose(2, 1, 0))
    return by_threshold(Scan(turned, np.diag([-1.0, -1.0, 1.0, 1.0]), "phantom")).transpose(2, 1, 0) > 0


def plain_maps(args: argparse.Namespace, files: list[Path]) -> dict[str, Any]:
    """The same of cells that are known by their densities alone, and of the voxels below -950 HU."""
    parts, voxels, folders = {}, {}, (args.cohort / "volume", args.cohort / "truth", args.out / "lungs")
    for file in files:
        volume, truth, mask = (np.load(folder / file.name) for folder in folders)
        cells = lay_cells(volume.shape, args.side, mask)
        share, count = shares(truth, cells, args.side, mask)
        airy, _ = shares(volume < EMPHYSEMA, cells, args.side, mask)
        corners = cells * args.side
        boxes = [volume[tuple(slice(a, a + args.side) for a in corner)].mean() for corner in corners]
        parts[file.stem] = (np.column_stack([boxes, airy]), share, count)
        voxels[file.stem] = dense.judge(((volume < EMPHYSEMA) & mask).astype(np.float32), 1.0, truth).get("dice")
    scores = {}
    for file in files:
        truth, mask = (np.load(folder / file.name) for folder in folders[1:])
        taught = fit_probe([part for sid, part in parts.items() if sid != file.stem])
        cells = lay_cells(mask.shape, args.side, mask)
        mapped = spread(taught(parts[file.stem][0]), cells, mask.shape, args.side, mask)
        if truth.any():
            scores[file.stem] = dense.judge(mapped, taught.threshold, truth)["dice"]
    both = {f"{DENSITY} of a cell": scores, f"voxels below {EMPHYSEMA} HU": {sid: voxels[sid] for sid in scores}}
    return {n: {"mean": np.mean(list(s.values())), "std": np.std(list(s.values()), ddof=1)} for n, s in both.items()}


def plot(args: argparse.Namespace) -> None:
    """Draw the fullest coronal slice of the chest whose emphysema is the median: CT, truth, our map, a random one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    truths = {file.stem: np.load(file) for file in sorted((args.cohort / "truth").glob("*.npy"))}
    sid = sorted(truths, key=lambda name: truths[name].sum())[len(truths) // 2]
    row = int(truths[sid].sum(axis=(0, 2)).argmax())
    volume = np.load(args.cohort / "volume" / f"{sid}.npy")
    folders = [args.out / f"maps-{i}" for i in (0, 1)]
    ours, blind = (np.load(folder / f"{sid}_map.npy") for folder in folders)
    dices = [json.loads((folder / "results.json").read_text())["volumes"][sid].get("dice") for folder in folders]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    titles = ["CT", "emphysema", f"DrasCLR, Dice {dices[0] or 0:.2f}", f"random weights, Dice {dices[1] or 0:.2f}"]
    for axis, layer, title in zip(axes, (None, truths[sid], ours, blind), titles, strict=True):
        axis.imshow(volume[::-1, row], cmap="gray", vmin=-1000, vmax=200)
        if layer is not None:
            shown = np.ma.masked_less(layer[::-1, row].astype(float), 0.02)
            drawn = axis.imshow(shown, cmap="inferno", vmin=0, vmax=1, alpha=0.8)
        axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[-1], label="share of emphysema")
    figure.suptitle(f"Synthetic chest {sid}, coronal slice; mapped by what other chests have taught")
    figure.savefig(args.out / "map.png", dpi=60)


if __name__ == "__main__":
    main()
