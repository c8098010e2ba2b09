"""The downstream task of MONAI SSL: segmentation with Dice and cross-entropy, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor, nn

from zoo.entries.monai_ssl.windows import segment
from zoo.training.metrics import Results, count_overlap, dice, or_none


class Segmenter(nn.Module):
    """Segmentation: `forward` takes K crops of each of N volumes and returns the sum of Dice loss and cross-entropy.

    The loss is MONAI's `DiceCELoss` as in the tutorial: softmax, background included, smoothing 1e-5, no squares,
    weights 1 and 1.

    Args:
        network: Volumes (N, 1, D, H, W) to logits (N, C, D, H, W).
        num_classes: C, background included.
        window: Side of the windows that whole volumes are cut into.
        freeze: Train the convolutions alone, not the transformer.
    """

    def __init__(self, network: nn.Module, num_classes: int, window: int, *, freeze: bool = False) -> None:
        super().__init__()
        self.network, self.num_classes, self.window = network, num_classes, window
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        if freeze:
            for part in ("vit", "swinViT"):
                if hasattr(network, part):
                    network.get_submodule(part).requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of `image` (N, K, 1, S, S, S) and `label` (N, K, 1, S, S, S) of whole numbers."""
        logits = self.network(batch["image"].flatten(0, 1)).float()
        return {"loss": self.loss(logits, batch["label"].flatten(0, 1).long())}

    def overlaps(self, batch: dict[str, Tensor]) -> Tensor:
        """Per volume of a batch with `image` and `label` (N, 1, D, H, W): `count_overlap` flattened, (N, 3 C)."""
        found = segment(self.network, batch["image"], window=self.window)
        pairs = zip(found, batch["label"][:, 0], strict=True)
        return torch.stack([count_overlap(own, truth, self.num_classes).flatten() for own, truth in pairs])


def dice_per_case(overlaps: Tensor) -> Tensor:
    """Dice coefficients (N, C) of overlaps (N, 3, C); NaN where the truth lacks a class.

    As in MONAI's DiceMetric, a class that the truth of a case lacks is left out of every mean, even where it was
    predicted: such false positives lower no Dice.
    """
    return torch.where(overlaps[:, 2] > 0, dice(overlaps, dim=1), torch.nan)


def mean_dice(dice: Tensor) -> float:
    """Mean over cases of the mean over the classes (N, C) that each has; NaN where no case has any."""
    return dice.nanmean(1).nanmean().item()


def upstream_dice(dice: Tensor) -> float:
    """The tutorial's Dice of cases in their order (N, C), background included.

    Its cumulative metric is aggregated after each case, and these running means are averaged: of six cases the weights
    are .408, .242, .158, .103, .061 and .028 (Project-MONAI/tutorials, vit_unetr_ssl/ssl_finetune.ipynb).
    """
    running = [mean_dice(dice[: n + 1]) for n in range(len(dice))]
    return sum(running) / len(running)


def dice_metrics(overlaps: Tensor, names: Sequence[str], *, upstream: bool = False) -> Results:
    """Dice of a set.

    Args:
        overlaps: Overlaps of its cases, in the list's order, (N, 3 C).
        names: Names of the C classes, background first.
        upstream: Compute `dice` as the tutorial does, order-weighted and with background.

    Returns:
        `dice`: the mean over cases, of the foreground classes that each has. `dice_per_class`: the mean over the cases
        that have the class, None where none has. `dice_per_case`: None for a case of background alone, which `dice`
        leaves out. `cases_with`: how many cases have each class.
    """
    by_case = dice_per_case(overlaps.view(len(overlaps), 3, len(names)))
    foreground = by_case[:, 1:]
    by_class = dict(zip(names[1:], foreground.nanmean(0).tolist(), strict=True))
    return {
        "dice": upstream_dice(by_case) if upstream else mean_dice(foreground),
        "dice_per_class": {name: or_none(value) for name, value in by_class.items()},
        "dice_per_case": [or_none(value) for value in foreground.nanmean(1).tolist()],
        "cases_with": dict(zip(names[1:], (~foreground.isnan()).sum(0).tolist(), strict=True)),
    }
