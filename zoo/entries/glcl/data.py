"""Pre-training data of GLCL: batches of slices for both losses.

Items are whole batches, because their rows have roles; the loop's batch size then counts batches.
Draws follow from (seed, pass, index) alone, so neither processes nor workers change them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.glcl.augment import change_views, crop_views
from zoo.entries.glcl.batches import BLANK, Rows, check_depths
from zoo.entries.glcl.cases import StoredCase
from zoo.training.data import Key

Draw = Callable[..., Rows]
"""From `depths`, the slices of each volume, and `rng`, to the rows (M, 3) of a batch: volume, slice, copy."""


class ContrastiveBatches(Dataset[dict[str, Tensor]]):
    """Pre-training: item `(pass, index)` is `image` (M, 1, S, S), a batch for one of the losses.

    Copy 0 is the unchanged slice; each other copy is a view with draws of its own.

    Args:
        cases: Volumes.
        draw: Chooses the rows, as `batches.global_rows` and `batches.local_rows` do.
        length: Batches in a pass.
        seed: Of the draws.
        n_parts: Parts that volumes are divided into.
        crop: Whether views show a box of the slice, as for the global loss; the local loss needs corresponding regions.
        box: Side of that box in pixels, 0 for 100 of 192.
        call_of: None for independent changes of intensity; else from rows to the call (M,) of the authors' code that
            changes them, see `augment.change_views`.

    Raises:
        InputContractError: Volumes have fewer slices than parts; they are named.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        draw: Draw,
        *,
        length: int,
        seed: int = 0,
        n_parts: int = 1,
        crop: bool = False,
        box: int = 0,
        call_of: Callable[[Rows], Rows] | None = None,
    ) -> None:
        self.cases, self.draw, self.length, self.seed = list(cases), draw, length, seed
        self.crop, self.box, self.call_of = crop, box, call_of
        self.depths = {case.name: case.slices for case in self.cases}
        check_depths(self.depths, n_parts)
        self[0, 0]  # raises at once where the arguments do not fit

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, *key])
        rows = self.draw(depths=self.depths, rng=rng)
        images = self._slices(rows)
        changed = torch.from_numpy(rows[:, 2] > 0)
        views = images[changed]
        if self.crop:
            views = crop_views(views, rng, self.box)
        calls = None if self.call_of is None else torch.from_numpy(self.call_of(rows))[changed]
        images[changed] = change_views(views, rng, calls)
        return {"image": images}

    def _slices(self, rows: Rows) -> Tensor:
        """The slices of rows (M, 3), (M, 1, S, S); blank ones are 0."""
        side = self.cases[0].image.shape[1]
        images = np.zeros((len(rows), 1, side, side), np.float32)
        for image, (volume, number, _) in zip(images, rows, strict=True):
            if volume != BLANK:
                image[0] = self.cases[volume].image[number]
        return torch.from_numpy(images)
