"""The volumes that y-Aware is fine-tuned on, with the class of each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.yaware.cohort import Cohort
from zoo.entries.yaware.splits import Indices
from zoo.training.data import Key


class LabelledVolumes(Dataset[dict[str, Tensor]]):
    """Data set for classification: item `(pass, index)` is a dict of `image` (1, D, H, W) and `label`, an integer.

    The published fine-tuning changes no volume at random, so every pass has the same items.

    Args:
        cohort: The volumes.
        codes: Class of each (n,).
    """

    def __init__(self, cohort: Cohort, codes: Indices) -> None:
        self.cohort, self.codes = cohort, codes

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        _, index = key
        return {"image": torch.from_numpy(self.cohort.volume(index)), "label": torch.tensor(int(self.codes[index]))}
