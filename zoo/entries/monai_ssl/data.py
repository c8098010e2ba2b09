"""Pre-training data of MONAI SSL: crops of volumes, and corrupted views of them.

Order, constants and views from Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.monai_ssl.augment import Corrupt
from zoo.entries.monai_ssl.cases import VolumeCache
from zoo.errors import OptionError
from zoo.training.data import Key, seed_of


class Crops(Dataset[dict[str, Tensor]]):
    """Training data set: item `(pass, index)` has crops of one volume, unchanged, and two corruptions of each.

    `target`, `view_1`, `view_2`: (K, 1, size, size, size) float32, in [0, 1]. Crops lie anywhere in the volume with
    equal probability. Draws follow from (seed, pass, index), so neither processes nor workers change them; the two
    views are drawn independently.

    Args:
        files: CTs.
        cache: Holds the prepared volumes; a volume is added when it is first used.
        crops: K, the crops of each volume.
        corrupt: Makes the views, from crops of the cache's size.
        seed: Of the draws.
        views: 2, or 1 for validation, which needs `view_1` alone.

    Raises:
        OptionError: `crops` is below 1, or `views` neither 1 nor 2.
    """

    def __init__(
        self,
        files: Sequence[Path],
        cache: VolumeCache,
        *,
        corrupt: Corrupt,
        crops: int = 2,
        seed: int = 0,
        views: int = 2,
    ) -> None:
        if crops < 1 or views not in (1, 2):
            raise OptionError(f"crops={crops}, views={views}: at least 1 crop and 1 or 2 views are expected")
        self.cache, self.corrupt, self.crops, self.seed, self.views = cache, corrupt, crops, seed, views
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        state = np.random.RandomState(np.random.MT19937(seed_of(self.seed, data_pass, index)))
        volume, size = self.cache.open(self.files[index]), self.cache.size
        corners = [[state.randint(side - size + 1) for side in volume.shape] for _ in range(self.crops)]
        crops = [
            torch.from_numpy(volume[x : x + size, y : y + size, z : z + size].astype(np.float32))[None]
            for x, y, z in corners
        ]
        item = {"target": torch.stack(crops)}
        for view in range(1, self.views + 1):
            item[f"view_{view}"] = torch.stack([self.corrupt(crop, state) for crop in crops])
        return item
