"""Fine-tuning data of GLCL's U-Net: randomly changed slices with labels, and whole volumes for evaluation.

Draws follow from (seed, pass, index) alone, so neither processes nor workers change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.glcl.augment import BEND, bend, change_intensity, change_pose
from zoo.entries.glcl.cases import StoredCase
from zoo.errors import InputContractError, OptionError
from zoo.training.data import Key

DEFORMED = 0.525
"""Share of slices that are bent. In the authors' batches of 20 the first n are not, with n uniform from 1 to 18."""


class LabelledSlices(Dataset[dict[str, Tensor]]):
    """Fine-tuning: item `(pass, index)` is `image` (1, S, S) and `label` (C, S, S), a slice changed at random.

    Slices are drawn with replacement among those of all volumes, as the authors do. Labels have one channel for each
    class, and are soft where the slice was bent.

    Args:
        cases: Labelled volumes.
        num_classes: C, background included.
        length: Slices in a pass.
        seed: Of the draws.
        pose: Turn, scale or flip slices.
        deformed: Share of the slices that are bent, and whose intensity changes.
        deviation: Deviation of the bending, in pixels.
        intensity: Change the intensity of these slices. In the authors' code it never happens.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        num_classes: int,
        *,
        length: int,
        seed: int = 0,
        pose: bool = True,
        deformed: float = DEFORMED,
        deviation: float = BEND,
        intensity: bool = True,
    ) -> None:
        check_labelled(cases)
        self.cases, self.num_classes, self.length, self.seed = list(cases), num_classes, length, seed
        self.pose, self.deformed, self.deviation, self.intensity = pose, deformed, deviation, intensity
        self.ends = np.cumsum([case.slices for case in self.cases])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, *key])
        drawn = int(rng.integers(self.ends[-1]))
        volume = int(np.searchsorted(self.ends, drawn, side="right"))
        case, number = self.cases[volume], drawn - int(self.ends[volume])  # from the volume's end on
        image = torch.from_numpy(case.image[number][None].copy())
        classes = torch.from_numpy(case.label[number].copy())
        if self.pose:
            image, classes = change_pose(image, classes, rng)
        label = (classes == torch.arange(self.num_classes, dtype=torch.uint8)[:, None, None]).float()
        if rng.random() < self.deformed:
            image, label = bend(image, label, rng, self.deviation)
            image = change_intensity(image, rng) if self.intensity else image
        return {"image": image.contiguous(), "label": label.contiguous()}


class WholeVolumes(Dataset[dict[str, Any]]):
    """Evaluation: item `(pass, index)` is a volume.

    `image` (Z, 1, S, S); `truth` (X, Y, Z) uint8, as it was drawn; `resampled` (2,) whole numbers, the pixels of the
    slices before they were cut; `spacing` (3,) in mm.

    Args:
        cases: Labelled volumes.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        check_labelled(cases)
        self.cases = list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        case = self.cases[key[1]]
        return {
            "image": torch.from_numpy(case.image[:, None].copy()),
            "truth": torch.from_numpy(case.truth.copy()),
            "resampled": torch.tensor(case.resampled),
            "spacing": torch.tensor(case.grid.spacing, dtype=torch.float64),
        }


def check_labelled(cases: Sequence[StoredCase]) -> None:
    """Check that all volumes have masks, and some mask a structure.

    Raises:
        OptionError: There is no volume.
        InputContractError: Some have no mask, or all masks are background alone.
    """
    if not cases:
        raise OptionError("no volume is named for a part that needs at least one")
    if unlabelled := [case.name for case in cases if not case.is_labelled]:
        raise InputContractError(
            f"{len(unlabelled)} of {len(cases)} volumes have no mask: {', '.join(unlabelled[:10])}. Put the masks "
            "beside the images, or name other volumes"
        )
    if not any(case.truth.any() for case in cases):
        raise InputContractError(
            f"the masks of {', '.join(case.name for case in cases[:10])} are background alone, so they cannot train "
            "or judge a network. Name volumes with structures"
        )
