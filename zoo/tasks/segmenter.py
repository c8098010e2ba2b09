"""What a network learns of masks: the Dice loss and the cross-entropy of crops; and what it finds in whole images."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses.dice import DiceCELoss
from monai.losses.ds_loss import DeepSupervisionLoss
from torch import Tensor, nn

from zoo.entry import Windows
from zoo.tasks.labelling import SLICES_AT_ONCE
from zoo.tasks.sliding import find_classes
from zoo.training.evaluate import judging
from zoo.training.metrics import count_overlap


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

    def overlaps(self, batch: dict[str, Tensor]) -> Tensor:
        """Return of each image of a batch of `Whole` the numbers of voxels of `count_overlap`, `(N, 3 K)`, float64."""
        pairs = zip(batch["image"], batch["label"], strict=True)
        return torch.stack([count_overlap(self.labels(x), label, self.num_classes).flatten() for x, label in pairs])
