"""GLCL's downstream task: segmentation of slices, evaluated on volumes at their scanned resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import OptionError
from zoo.tasks.labelling import classes_of_slices
from zoo.training.metrics import Results, count_overlap, dice, measure_labels, measured, or_none

LOSSES = ("dice", "dice-foreground", "cross-entropy")
SMOOTH = 1.0
"""Pixels added to numerator and denominator of Dice, so that finding a class that a slice lacks costs."""
UPSTREAM_SMOOTH = 1e-10
CLASS_WEIGHTS = {8: (0.09, *[0.13] * 7)}
"""Weights of the cross-entropy; for other numbers of classes the background has .1, and the others share .9."""
MEASURES = ("dice", "hausdorff95", "hausdorff")


class Segmenter(nn.Module):
    """Segmentation: `forward` takes slices with soft labels and returns the loss.

    Losses and their weights are those of krishnabits001/domain_specific_cl, losses.py and models.py: `dice`, 1 - the
    mean over images and all classes of 2 sum(p y) / (sum p + sum y); `dice-foreground`, without the background;
    `cross-entropy`, weighted by class.

    Args:
        network: Slices (N, 1, S, S) to logits (N, C, S, S).
        num_classes: C, background included.
        loss: One of `LOSSES`.
        upstream: Add 1e-10 to the denominator of Dice alone: then a class that a slice lacks adds a constant, whether
            it is found or not.

    Raises:
        OptionError: There is no such loss.
    """

    weights: Tensor

    def __init__(self, network: nn.Module, num_classes: int, loss: str = "dice", *, upstream: bool = False) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise OptionError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
        self.network, self.num_classes, self.loss, self.upstream = network, num_classes, loss, upstream
        weights = CLASS_WEIGHTS.get(num_classes, (0.1, *[0.9 / (num_classes - 1)] * (num_classes - 1)))
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of `image` (N, 1, S, S) and `label` (N, C, S, S), whose channels sum to 1."""
        logits, label = self.network(batch["image"]).float(), batch["label"]
        if self.loss == "cross-entropy":
            weighted = self.weights[:, None, None] * label * logits.log_softmax(1)
            return {"loss": -weighted.sum(1).mean()}
        first = 1 if self.loss == "dice-foreground" else 0
        overlap = soft_dice(logits.softmax(1)[:, first:], label[:, first:], upstream=self.upstream)
        return {"loss": 1 - overlap.mean()}

    def segment(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Labels (X, Y, Z) of each volume of a batch of `WholeVolumes`, at the resolution of its truth."""
        return [
            classes_of_slices(
                self.network, image, (int(resampled[0]), int(resampled[1])), (truth.shape[0], truth.shape[1])
            )
            for image, truth, resampled in zip(batch["image"], batch["truth"], batch["resampled"], strict=True)
        ]

    def measure(self, batch: dict[str, Tensor]) -> Tensor:
        """Per volume of a batch of `WholeVolumes`: voxels of each class in both, found and true, (N, 3 C), float64."""
        pairs = zip(self.segment(batch), batch["truth"], strict=True)
        return torch.stack([count_overlap(found, truth, self.num_classes).flatten() for found, truth in pairs])

    def measure_surfaces(self, batch: dict[str, Tensor]) -> Tensor:
        """Per volume `measure_labels`: the numbers of `measure`, then distances of surfaces, (N, 5 C - 2)."""
        rows = []
        for found, truth, spacing in zip(self.segment(batch), batch["truth"], batch["spacing"], strict=True):
            rows.append(measure_labels(found, truth, self.num_classes, spacing.tolist()))
        return torch.stack(rows)


def soft_dice(p: Tensor, y: Tensor, *, upstream: bool = False) -> Tensor:
    """Dice (N, C) of probabilities and labels (N, C, H, W); see `Segmenter`."""
    both, sizes = 2 * (p * y).sum((2, 3)), (p + y).sum((2, 3))
    return both / (sizes + UPSTREAM_SMOOTH) if upstream else (both + SMOOTH) / (sizes + SMOOTH)


def volume_metrics(rows: Tensor, structures: Sequence[str], names: Sequence[str]) -> Results:
    """Metrics of a set of volumes.

    Args:
        rows: From `Segmenter.measure` or `measure_surfaces`, one for each volume.
        structures: Names of the classes without the background.
        names: Names of the volumes.

    Returns:
        `dice`: the mean over volumes of the mean over the structures that truth or prediction has, as published.
        `<measure>_per_structure`: means over the volumes that have a value. `cases`: name -> structure -> measure; None
        where there is no value. For rows of `measure`, Dice is the only measure.
    """
    overlaps, distances = measured(rows, len(structures) + 1)
    values = {MEASURES[0]: dice(overlaps, dim=1)[:, 1:]}
    if distances is not None:
        values |= dict(zip(MEASURES[1:], distances.unbind(1), strict=True))
    cases = {
        name: {
            structure: {measure: or_none(values[measure][i, j].item()) for measure in values}
            for j, structure in enumerate(structures)
        }
        for i, name in enumerate(names)
    }
    means = {
        f"{measure}_per_structure": dict(zip(structures, map(or_none, found.nanmean(0).tolist()), strict=True))
        for measure, found in values.items()
    }
    return {"dice": values["dice"].nanmean(1).nanmean().item(), **means, "cases": cases}
