"""Measures of results: ROC curves, overlap and surface distances of segmentations, and means over tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

Results = dict[str, Any]
"""Metrics by name, numbers and mappings of numbers, as JSON can hold them."""

PERCENTILE = 95
"""Percentile of the surface distances, reported beside the largest."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def auroc(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve of binary labels (N,), with optional sample weights (N,)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores, sample_weight=weights))


def mean_auroc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve of labels (N,): of class 1 where scores are (N,) or (N, 2), else the mean over classes.

    Of more than two classes, each that occurs counts, against all others.
    """
    if scores.ndim == 1:
        return auroc(labels == 1, scores)
    wanted = [1] if scores.shape[1] == 2 else np.unique(labels)
    return float(np.mean([auroc(labels == c, scores[:, c]) for c in wanted]))


def summarise(tests: Sequence[Results]) -> Results:
    """Mean and standard deviation (n - 1; None for one value) of each metric over the tests that have it."""
    summary: Results = {}
    for name in dict.fromkeys(name for test in tests for name in test):
        values = [test[name] for test in tests if name in test]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[name] = {"mean": float(np.mean(values)), "std": deviation}
    return summary


def count_overlap(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Number of voxels of each class (3, C), float64: in both, in the prediction, in the truth."""
    pairs = truth.flatten().long() * num_classes + found.flatten().long()
    table = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    return torch.stack([table.diagonal(), table.sum(0), table.sum(1)])


def dice(overlaps: Tensor, dim: int = -1) -> Tensor:
    """Dice coefficients: twice the overlap, over the sum of prediction and truth.

    Args:
        overlaps: Sizes of overlap, prediction and truth along one axis of 3, as `count_overlap` counts them.
        dim: That axis; the result lacks it.

    Returns:
        From 0 to 1; NaN where truth and prediction are both empty, which each task counts in its own way.
    """
    both, found, truth = overlaps.unbind(dim)
    return 2 * both / (found + truth)


def surface_distances(found: Tensor, truth: Tensor, num_classes: int, spacing: Sequence[float]) -> Tensor:
    """Hausdorff distances in mm of each structure (2, C - 1), float64: the 95th percentile, and the largest.

    The larger of both directions counts. NaN where a structure is missing on one side or both. MONAI's
    `compute_hausdorff_distance` finds the same to float32, and takes three times as long: it looks for the surfaces and
    their distances anew for each percentile.

    Args:
        found: Labels (X, Y, Z).
        truth: The same.
        num_classes: C.
        spacing: Between voxels in mm.
    """
    distances = np.full((2, num_classes - 1), np.nan)
    for label in range(1, num_classes):
        masks = [(labels == label).cpu().numpy() for labels in (found, truth)]
        if not all(mask.any() for mask in masks):
            continue
        box = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))[0]
        surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in masks]
        ways = [
            ndimage.distance_transform_edt(~other, sampling=spacing)[own]
            for own, other in (surfaces, reversed(surfaces))
        ]
        distances[:, label - 1] = [max(np.percentile(way, q) for way in ways) for q in (PERCENTILE, 100)]
    return torch.from_numpy(distances).to(found.device)


def measure_labels(found: Tensor, truth: Tensor, num_classes: int, spacing: Sequence[float]) -> Tensor:
    """`count_overlap` and `surface_distances` of labels, flat (5 C - 2), float64; `measured` takes them apart."""
    distances = surface_distances(found, truth, num_classes, spacing)
    return torch.cat([count_overlap(found, truth, num_classes).flatten(), distances.flatten()])


def measured(rows: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Overlaps (N, 3, C) and distances (N, 2, C - 1) of images from `measure_labels`; of overlaps alone these."""
    overlaps, distances = rows[:, : 3 * num_classes], rows[:, 3 * num_classes :]
    apart = distances.view(len(rows), 2, num_classes - 1) if distances.shape[1] else None
    return overlaps.view(len(rows), 3, num_classes), apart


def or_none(value: float) -> float | None:
    """A number for JSON, which has no NaN: None stands for it."""
    return None if math.isnan(value) else value
