"""y-Aware's downstream method: classification of whole volumes, and its metrics."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.yaware.finetune_data import LabelledVolumes
from zoo.entries.yaware.splits import Indices
from zoo.errors import OptionError
from zoo.messages import csv_cell
from zoo.training.evaluate import linear_probe
from zoo.training.metrics import Results, mean_auroc
from zoo.training.table import write_table

Floats = npt.NDArray[np.float64]


class Classifier(nn.Module):
    """Classification: `forward` takes `image` (N, 1, D, H, W) and `label` (N,), returns the cross-entropy.

    Args:
        network: Volumes to logits (N, C).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean cross-entropy over volumes."""
        return {"loss": F.cross_entropy(self.network(batch["image"]).float(), batch["label"])}

    def probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """Probabilities (N, C) in float64."""
        logits: Tensor = self.network(batch["image"])
        return logits.double().softmax(1)


def probe(train: Floats, codes: Indices, test: Floats, *, seed: int) -> Floats:
    """Probabilities (M, C) by a logistic regression on frozen features.

    The penalty is chosen by AUROC alone, so they are ordered, but not calibrated.

    Args:
        train: (N, D).
        codes: Class of each (N,), all C present.
        test: (M, D).
        seed: Of the folds that choose the penalty.

    Raises:
        OptionError: Fewer than two volumes of a class.
    """
    decisions = linear_probe(train, codes, test, seed=seed)
    if decisions.ndim == 1:  # the logistic function is a softmax against 0
        decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
    probabilities: Floats = torch.from_numpy(decisions).softmax(1).numpy()
    return probabilities


def class_metrics(codes: Indices, probabilities: Floats) -> Results:
    """Metrics of a set; for a set with a single class the loss alone.

    Args:
        codes: Class of each (N,).
        probabilities: (N, C).

    Returns:
        `loss`, the cross-entropy; `auroc` of the second of two classes, else the mean over the classes that occur, each
        against the others; `balanced_accuracy`, the mean over classes of the share that was recognised.

    Raises:
        FloatingPointError: A probability is NaN, as after steps whose gradient was too large.
    """
    if lost := int(np.isnan(probabilities).any(1).sum()):
        raise FloatingPointError(
            f"the network gives NaN, not probabilities, for {lost} of {len(codes)} volumes: its training diverged. A "
            "larger --batch-size, more of it on each process, a smaller --lr or --clip-grad 1 may help"
        )
    own = probabilities[np.arange(len(codes)), codes]
    recognised = probabilities.argmax(1) == codes
    loss = {"loss": float(-np.log(own.clip(1e-300)).mean())}
    if len(np.unique(codes)) < 2:
        return loss
    return loss | {
        "auroc": mean_auroc(codes, probabilities),
        "balanced_accuracy": float(np.mean([recognised[codes == c].mean() for c in np.unique(codes)])),
    }


def write_predictions(path: Path, data: LabelledVolumes, classes: Sequence[str], scores: Floats) -> None:
    """Write a CSV: the volume, its class, and the probability of each class."""
    rows = []
    for name, code, row in zip(data.cohort.names, data.codes, scores.tolist(), strict=True):
        numbers = [f"{p:.9g}" for p in row]  # many are next to 0 and must not tie
        rows.append([name, classes[code], *numbers])
    write_table(path, ["volume", "label", *(f"{name}_probability" for name in classes)], rows)


def read_predictions(path: Path, classes: Sequence[str]) -> tuple[Indices, Floats]:
    """Class of each volume (n,) and probabilities (n, C), from a file of `write_predictions`.

    Raises:
        OptionError: The file is gone.
    """
    if not path.is_file():
        raise OptionError(f"{path} of a finished run is missing: remove results.json beside it to repeat that run")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = [csv_cell(name) for name in classes]
    codes = np.array([cells.index(row["label"]) for row in rows])
    return codes, np.array([[float(row[csv_cell(f"{name}_probability")]) for name in classes] for row in rows])
