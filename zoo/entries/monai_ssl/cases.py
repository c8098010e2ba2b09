"""Labelled CT volumes on the grid of a network, kept on disk as arrays that are mapped: a crop costs what it reads.

Order and constants from Project-MONAI/tutorials, self_supervised_pretraining/vit_unetr_ssl, `ssl_finetune.ipynb`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.entries.monai_ssl.placing import Array, place, place_labels
from zoo.errors import InputContractError
from zoo.files import write_atomically
from zoo.images import Volume, read_volume
from zoo.training.volume_store import digest_of, keep_array, map_array, prepare_all
from zoo.transforms import VolumeTransform

FORMAT = 1
"""Of what is kept on disk: what was kept under another number is not read."""
MOST_CLASSES = 256


@dataclass(frozen=True)
class Case:
    """One labelled volume."""

    image: Path
    """NIfTI in HU, or a folder with a DICOM series."""
    label: Path
    """NIfTI of whole numbers, 0 for background, on the grid of the image."""


class CaseStore:
    """Cases on the grid of a network, kept as arrays as `zoo.training.volume_store` keeps them.

    Args:
        folder: Where the arrays are kept; several runs may share it.
        transform: From `placing.build_transform`.
    """

    def __init__(self, folder: str | Path, transform: VolumeTransform) -> None:
        self.folder, self.transform = Path(folder), transform

    def prepare(self, cases: Sequence[Case], num_classes: int, workers: int = 0) -> None:
        """Make what is not there yet, each process its share, in `workers` loader processes.

        Raises:
            InputContractError: An image or its label cannot be used, or labels are not 0 to `num_classes` - 1. All such
                cases are named.
        """
        prepare_all(self.folder, cases, partial(self._check, num_classes), workers=workers)

    def open(self, case: Case) -> StoredCase:
        """Return the arrays of a case that was prepared."""
        return StoredCase(self.folder, self._key(case), case)

    def _check(self, num_classes: int, case: Case) -> None:
        check_labels(self._facts(case)["labels"], num_classes, case)

    def _facts(self, case: Case) -> dict[str, Any]:
        file = self.folder / f"{self._key(case)}.json"
        if not file.is_file():
            self._make(case)
        facts: dict[str, Any] = json.loads(file.read_text())
        return facts

    def _make(self, case: Case) -> None:
        labels = read_labels(case.label)
        placed = place(case.image, self.transform)
        label = place_labels(labels, placed, self.transform.preprocessing)
        inside = placed.image > self.transform.preprocessing.value_range[0]
        arrays = {
            "image": placed.image,
            "label": label,
            "foreground": np.flatnonzero(label).astype(np.uint32),
            "background": np.flatnonzero((label == 0) & inside).astype(np.uint32),
        }
        facts = {"image": str(case.image), "label": str(case.label), "labels": np.unique(labels.values).tolist()}
        key = self._key(case)
        for part, array in arrays.items():
            keep_array(self.folder / f"{key}.{part}.npy", array)
        text = json.dumps(facts)
        write_atomically(self.folder / f"{key}.json", lambda path: path.write_text(text))  # last: all is there

    def _key(self, case: Case) -> str:
        return digest_of([case.image, case.label], FORMAT, asdict(self.transform.preprocessing))


@dataclass(frozen=True)
class StoredCase:
    """Arrays of one case, mapped when they are first used, in each process anew."""

    folder: Path
    key: str
    case: Case

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "key": self.key, "case": self.case}  # maps would be copied

    @cached_property
    def image(self) -> Array:
        """float32 `(D, H, W)`."""
        return self._map("image")

    @cached_property
    def label(self) -> Array:
        """uint8 `(D, H, W)`."""
        return self._map("label")

    @cached_property
    def foreground(self) -> Array:
        """Where there are labels: indices `(n,)` into the flattened volume."""
        return self._map("foreground")

    @cached_property
    def background(self) -> Array:
        """Where there are none, but something above the window."""
        return self._map("background")

    def _map(self, part: str) -> Array:
        return map_array(self.folder / f"{self.key}.{part}.npy")


def read_labels(path: Path) -> Volume:
    """Read a label volume.

    Raises:
        InputContractError: It cannot be read, or has values that no class can have.
    """
    found = read_volume(path)
    values = np.unique(found.values)
    if wrong := [f"{value:g}" for value in values if not (0 <= value < MOST_CLASSES and value == round(value))]:
        raise InputContractError(f"{path} has values {', '.join(wrong[:10])}: whole numbers from 0 on are expected")
    return found


def check_labels(labels: Sequence[float], num_classes: int, case: Case) -> None:
    """Raise `InputContractError` where there are labels of no class."""
    if wrong := [f"{label:g}" for label in labels if label >= num_classes]:
        raise InputContractError(
            f"{case.label} has labels {', '.join(wrong)}: 0 to {num_classes - 1} are expected for {num_classes} "
            "classes, the background among them"
        )
