"""CAiD's downstream methods: multi-label classification and segmentation, with the metrics of each.

Facts from MR-HosseinzadehTaher/BenchmarkTransferLearning, Version1, `models.py`, `utils.py` and `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.training import distributed
from zoo.training.metrics import auroc, dice
from zoo.training.runlog import Metrics


class Classifier(nn.Module):
    """Multi-label classification: `forward` takes `image` (N, 3, S, S) and `label` (N, C), returns the cross-entropy.

    Args:
        network: Images to logits (N, C), with a head `fc`, which is set to its published initial values.
        freeze: Train the head alone; the rest stays in eval mode.
    """

    def __init__(self, network: nn.Module, *, freeze: bool = False) -> None:
        super().__init__()
        self.network, self.freeze = network, freeze
        nn.init.normal_(network.get_parameter("fc.weight"), std=0.01)
        nn.init.zeros_(network.get_parameter("fc.bias"))
        if freeze:
            network.requires_grad_(False)
            network.get_submodule("fc").requires_grad_(True)

    def train(self, mode: bool = True) -> Classifier:
        """Switch modes; a frozen network stays in eval mode."""
        super().train(mode)
        if self.freeze:
            self.network.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean binary cross-entropy over images and labels."""
        logits = self.network(batch["image"]).float()
        return {"loss": F.binary_cross_entropy_with_logits(logits, batch["label"])}

    def probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """Probabilities (N, C) in float64, the mean over the crops where images are (N, crops, 3, S, S)."""
        images = batch["image"]
        probabilities: Tensor = self.network(images.view(-1, *images.shape[-3:])).double().sigmoid()
        return probabilities.view(len(images), -1, probabilities.shape[-1]).mean(1)


def label_metrics(labels: Tensor, scores: Tensor, names: Sequence[str], counting: Sequence[str]) -> dict[str, Any]:
    """Cross-entropy and AUROC of a set.

    Args:
        labels: (N, C), 0 or 1.
        scores: Probabilities (N, C).
        names: Of the C labels.
        counting: Those of them whose AUROC counts, each with both values present.

    Returns:
        `loss` over all labels; `auroc`, the mean over the counting ones, and `auroc_per_label`.
    """
    loss = F.binary_cross_entropy(scores, labels).item()
    columns = {name: names.index(name) for name in counting}
    areas = {name: auroc(labels[:, c].numpy(), scores[:, c].numpy()) for name, c in columns.items()}
    return {"loss": loss, "auroc": sum(areas.values()) / len(areas), "auroc_per_label": areas}


class Segmenter(nn.Module):
    """Segmentation: `forward` takes `image` (N, 3, S, S) and `mask` (N, 1, S, S), returns the soft Dice loss.

    The loss is over all pixels of a step together, on all processes; with `--accumulate` over those of a part.

    Args:
        network: Images to logits (N, 1, S, S), with a head `segmentation_head.0`, which is set to initial values.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        nn.init.xavier_uniform_(network.get_parameter("segmentation_head.0.weight"))
        nn.init.zeros_(network.get_parameter("segmentation_head.0.bias"))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Soft Dice loss of the batches of all processes."""
        sums = overlap(self._probabilities(batch), batch["mask"]).sum(0, keepdim=True)
        return {"loss": dice_loss(distributed.gather_with_gradient(sums).sum(0))}

    def overlaps(self, batch: dict[str, Tensor]) -> Tensor:
        """Per image (N, 6), in float64: `overlap` of the probabilities, then of the pixels above one half."""
        probabilities, mask = self._probabilities(batch), batch["mask"]
        return torch.cat([overlap(probabilities, mask), overlap((probabilities > 0.5).float(), mask)], dim=1).double()

    def _probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        probabilities: Tensor = self.network(batch["image"]).float().sigmoid()
        return probabilities


def overlap(predicted: Tensor, mask: Tensor) -> Tensor:
    """Sums over each image (N, 3): of the product, of the prediction, of the mask, both (N, 1, H, W) in [0, 1]."""
    return torch.stack([x.flatten(1).sum(1) for x in (predicted * mask, predicted, mask)], dim=1)


def dice_loss(sums: Tensor) -> Tensor:
    """1 - (2 sum(yp) + 1) / (sum(y) + sum(p) + 1) of sums (..., 3)."""
    both, predicted, mask = sums.unbind(-1)
    return 1 - (2 * both + 1) / (predicted + mask + 1)


def dice_metrics(sums: Tensor) -> Metrics:
    """Loss and Dice of a set from `Segmenter.overlaps` (N, 6): pooled over its pixels, and the mean over its images.

    Dice is 1 where both the truth and the prediction are empty.
    """
    soft, hard = sums[:, :3], sums[:, 3:]
    pooled, each = (dice(part).nan_to_num(1.0) for part in (hard.sum(0), hard))
    values = {"loss": dice_loss(soft.sum(0)), "dice": pooled, "dice_per_image": each.mean()}
    return {name: value.item() for name, value in values.items()}
