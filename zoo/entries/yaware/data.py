"""The volumes that y-Aware is pre-trained on, with their labels and the seeds of their views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.yaware.cohort import Cohort
from zoo.training.data import Key, seed_of


class Volumes(Dataset[dict[str, Tensor]]):
    """Pre-training data set: item `(pass, index)` is one volume, its labels, and the seeds of its two views.

    `image` (1, D, H, W) float32; `label` (k,) float32; `draws` (2,) int64, which follow from (seed, pass, index, view).
    The views themselves are made on the device, a batch at a time.

    Args:
        cohort: The volumes.
        seed: Of the draws.
    """

    def __init__(self, cohort: Cohort, *, seed: int = 0) -> None:
        self.cohort, self.seed = cohort, seed

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        return {
            "image": torch.from_numpy(self.cohort.volume(index)),
            "label": torch.from_numpy(self.cohort.labels[index]).float(),
            "draws": torch.tensor([seed_of(self.seed, data_pass, index, view) for view in (0, 1)]),
        }
