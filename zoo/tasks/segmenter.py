"""What a network learns of masks: the Dice loss and the cross-entropy of crops; and what it finds in whole images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.losses.dice import DiceCELoss
from monai.losses.ds_loss import DeepSupervisionLoss
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Windows
from zoo.tasks.labelling import SLICES_AT_ONCE
from zoo.tasks.sliding import find_classes, stitch
from zoo.training.evaluate import judging
from zoo.training.metrics import count_overlap

SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice loss (MONAI, losses/dice.py)."""


class Segmenter(nn.Module):
    """Method of `zoo.training.loop.fit`: `forward` takes K crops of each of N images and returns the loss.

    The loss is MONAI's `DiceCELoss`, the background included, as its tutorials have it. Of a network that also gives
    logits of coarser maps in training, each coarser map counts half of the one before (MONAI's `DeepSupervisionLoss`).

    Args:
        network: Of the zoo, with logits `(N, num_classes, *space)`.
        num_classes: The background included.
        windows: In which whole images go through it; None for slices.
        frozen: Whether all but the head stays as it is, in eval mode.
    """

    def __init__(self, network: nn.Module, num_classes: int, windows: Windows | None, *, frozen: bool = False) -> None:
        super().__init__()
        self.network, self.num_classes, self.windows, self.frozen = network, num_classes, windows, frozen
        self.loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))

    def train(self, mode: bool = True) -> Segmenter:
        """Switch modes; a frozen network stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of `image` (N, K, C, *size) and `label` (N, K, 1, *size) of class numbers."""
        found: Any = self.network(batch["image"].flatten(0, 1))
        logits = [level.float() for level in found] if isinstance(found, list) else found.float()
        return {"loss": self.loss(logits, batch["label"].flatten(0, 1).float())}

    def labels(self, image: Tensor) -> Tensor:
        """Return the class of each pixel or voxel of an image `(C, *space)`, or of slices `(n, 1, H, W)`; uint8."""
        device = next(self.network.parameters()).device
        with judging(self.network):
            if self.windows is not None:
                return find_classes(self.network, image, self.windows, device=device)
            parts = [self.network(some.to(device)).argmax(1) for some in torch.split(image, SLICES_AT_ONCE)]
            return torch.cat(parts).to(image.device, torch.uint8)

    def measure(self, batch: dict[str, Tensor]) -> Tensor:
        """Return what is found of each image of a batch of `Whole`, `(N, 3 K + 1)`, float64.

        First the numbers of voxels of `count_overlap`; then the loss of the whole image, by the formula of `forward`.
        """
        return torch.stack([self._measured(*pair) for pair in zip(batch["image"], batch["label"], strict=True)])

    def _measured(self, image: Tensor, label: Tensor) -> Tensor:
        counts = torch.zeros((3, self.num_classes), dtype=torch.float64, device=label.device)
        soft, entropy = torch.zeros_like(counts[:2]), torch.zeros_like(counts[0, 0])
        for logits, truth in self._pieces(image, label.long()):
            shares, hot = logits.softmax(0), F.one_hot(truth, self.num_classes).T
            counts += count_overlap(logits.argmax(0), truth, self.num_classes)
            soft += torch.stack([(shares * hot).sum(1), shares.sum(1)])
            entropy += F.cross_entropy(logits.T, truth, reduction="sum")
        overlap = (2 * soft[0] + SMOOTH) / (soft[1] + counts[2] + SMOOTH)
        loss = 1 - overlap.mean() + entropy / label.numel()
        return torch.cat([counts.flatten(), loss[None]])

    def _pieces(self, image: Tensor, label: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits `(K, n)` and classes `(n,)` of some pixels or voxels after others, until all were there."""
        device = next(self.network.parameters()).device
        with judging(self.network):
            if self.windows is not None:
                for axis, at, logits in stitch(self.network, image, self.windows, device, torch.float32):
                    yield logits.flatten(1), label.select(axis, at).flatten()
                return
            for some, truth in zip(torch.split(image, SLICES_AT_ONCE), torch.split(label, SLICES_AT_ONCE), strict=True):
                yield self.network(some.to(device)).float().transpose(0, 1).flatten(1), truth.flatten()
