"""Fine-tuning data of MONAI SSL: labelled CT volumes, whole or in randomly changed crops.

Constants from Project-MONAI/tutorials, self_supervised_pretraining/vit_unetr_ssl, `ssl_finetune.ipynb`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.monai_ssl.cases import Array, StoredCase
from zoo.errors import InputContractError
from zoo.training.data import Key

log = logging.getLogger("zoo")

CROPS = 4
"""Crops of each volume in a step."""
ON_LABEL = 0.5
"""Share of crops whose centre is drawn among the labelled voxels; the others lie beside them."""
FLIP, TURN, SHIFT = 0.1, 0.1, 0.5
"""Probabilities of a flip along each axis, of a turn by 90, 180 or 270 degrees, of a shift of all values."""
LARGEST_SHIFT = 0.1


class Crops(Dataset[dict[str, Tensor]]):
    """Training data: item `(pass, index)` is `image` (K, 1, S, S, S) float32 and `label` (K, 1, S, S, S) uint8.

    K crops of one volume, each changed at random. Where a volume is smaller than a crop, it is padded with 0 on both
    sides. Centres lie on a label or beside all labels with equal probability, in a volume without labels anywhere; such
    volumes are logged.

    Args:
        cases: Prepared cases.
        size: Side S of a crop in voxels.
        crops: K.
        seed: Draws follow from (seed, pass, index).

    Raises:
        InputContractError: No case has a label.
    """

    def __init__(self, cases: Sequence[StoredCase], *, size: int, crops: int = CROPS, seed: int = 0) -> None:
        self.cases, self.size, self.crops, self.seed = list(cases), size, crops, seed
        check_foreground(self.cases, "crops of them are of background alone")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        rng = np.random.default_rng([self.seed, data_pass, index])
        drawn = [augment(*cut(self.cases[index], self.size, rng), rng) for _ in range(self.crops)]
        images, labels = (np.stack(arrays)[:, None] for arrays in zip(*drawn, strict=True))
        return {"image": torch.from_numpy(images), "label": torch.from_numpy(labels)}


class WholeVolumes(Dataset[dict[str, Tensor]]):
    """Evaluation data: item `(pass, index)` is `image` (1, D, H, W) float32 and `label` (1, D, H, W) uint8.

    Args:
        cases: Prepared cases.

    Raises:
        InputContractError: No case has a label.
    """

    def __init__(self, cases: Sequence[StoredCase]) -> None:
        self.cases = list(cases)
        check_foreground(self.cases, "no mean counts them")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        case = self.cases[key[1]]
        return {"image": torch.from_numpy(case.image[None].copy()), "label": torch.from_numpy(case.label[None].copy())}


def check_foreground(cases: Sequence[StoredCase], consequence: str) -> None:
    """Log the cases whose labels on the network's grid are background alone, and the consequence.

    Raises:
        InputContractError: All cases are such.
    """
    empty = [str(case.case.label) for case in cases if not len(case.foreground)]
    if len(empty) == len(cases):
        raise InputContractError(
            f"all {len(cases)} labels are background alone, 0 everywhere, so there is nothing to segment: "
            f"{', '.join(empty[:10])}. Give volumes with labels"
        )
    if empty:
        names = ", ".join(empty[:10])
        log.warning("%d of %d labels are background alone, so %s: %s", len(empty), len(cases), consequence, names)


def cut(case: StoredCase, size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a crop of a case: image and label `(S, S, S)`.

    The centre is drawn among the labelled voxels, or the others, and moved until the crop lies inside (MONAI's
    RandCropByPosNegLabel); a smaller volume is padded.
    """
    is_on_label = rng.random() < ON_LABEL
    first, other = (case.foreground, case.background) if is_on_label else (case.background, case.foreground)
    candidates = first if len(first) else other
    centre = np.unravel_index(int(candidates[rng.integers(len(candidates))]), case.image.shape)
    starts = [
        min(max(int(c) - size // 2, 0), max(side - size, 0)) for c, side in zip(centre, case.image.shape, strict=True)
    ]
    box = tuple(slice(start, start + size) for start in starts)
    image, label = np.asarray(case.image[box]), np.asarray(case.label[box])
    lacking = [size - side for side in image.shape]
    if any(lacking):
        margins = [(n // 2, n - n // 2) for n in lacking]
        image, label = np.pad(image, margins), np.pad(label, margins)
    return image, label


def augment(image: Array, label: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Change a crop at random: flips, a turn in the plane of the first two axes, a shift of all values of the image."""
    for axis in range(3):
        if rng.random() < FLIP:
            image, label = np.flip(image, axis), np.flip(label, axis)
    if rng.random() < TURN:
        quarters = int(rng.integers(1, 4))
        image, label = np.rot90(image, quarters), np.rot90(label, quarters)
    if rng.random() < SHIFT:
        image = image + np.float32(rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT))
    return image, label
