"""CT volumes on the grid of a network, kept on disk as mapped arrays, of which a crop reads only its own part.

`VolumeCache` is for pre-training (the authors prepare each volume anew in each epoch), `CaseStore` for labelled
volumes. Order and constants from Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl`,
`ssl_train.ipynb` and `ssl_finetune.ipynb`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.entries.monai_ssl.cohort import Case
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images import read_labels
from zoo.messages import with_path
from zoo.training.arrays import map_array, save_array
from zoo.training.prepared import Arrays, Facts, digest_of, keep, map_part, prepare_all
from zoo.transforms import VolumeTransform, build_volume_transform, place_labels, place_volume

Array = npt.NDArray[Any]

FORMAT = 1
"""Version of the files on disk; files of another version are not read."""
DTYPES = {"float32": np.float32, "float16": np.float16}


def prepare_volume(file: Path, transform: VolumeTransform, size: int) -> npt.NDArray[np.float32]:
    """Return a CT as pre-training crops it: (D, H, W), float32 from 0 to 1.

    Axes as the file has them, resampled and windowed by the input contract, cut to the bounding box of the values above
    the window's lower end, and padded with 0 on both sides of an axis to at least `size` voxels.

    Raises:
        InputContractError: The file cannot be read, is not a CT in HU, or has no value above the window's lower end.
    """
    image = place_volume(file, transform).image
    lack = [max(0, size - side) for side in image.shape]
    return np.pad(image, [(missing // 2, missing - missing // 2) for missing in lack])


class VolumeCache:
    """Prepared volumes on disk, one `.npy` each, made by `zoo.training.prepared`.

    Args:
        folder: Made at the first volume; several runs may share it.
        contract: Grid, window and units of the volumes.
        size: Least voxels along each axis.
        dtype: Type of the numbers, float32 or float16, which takes half the space, for errors of up to 0.0003.

    Raises:
        OptionError: `dtype` is neither.
    """

    def __init__(self, folder: str | Path, contract: Preprocessing, size: int, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise OptionError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        self.folder, self.size, self.dtype = Path(folder), size, DTYPES[dtype]
        self.transform = build_volume_transform(contract)
        self.settings = (FORMAT, asdict(contract), size, dtype)
        self.known: dict[Path, Path] = {}

    def path(self, file: Path) -> Path:
        """Path of a file's prepared volume, whether it exists or not; the file is examined at the first call alone."""
        if file not in self.known:
            stem = re.sub(r"(\.nii)?(\.gz)?$", "", file.name)
            self.known[file] = self.folder / f"{stem}-{digest_of([file], *self.settings)}.npy"
        return self.known[file]

    def add(self, file: Path) -> Path:
        """Prepare the volume of a file if it is not there, and return its path.

        Raises:
            InputContractError: As `prepare_volume`; the message names the file.
        """
        path = self.path(file)
        if path.exists():
            return path
        try:
            volume = prepare_volume(file, self.transform, self.size).astype(self.dtype, copy=False)
        except InputContractError as error:
            raise InputContractError(with_path(file, error)) from error
        save_array(path, volume)
        return path

    def open(self, file: Path) -> Array:
        """Map the prepared volume of a file, so that only the voxels that are used are read; see `add`."""
        return map_array(self.add(file))

    def fill(self, files: Sequence[Path], workers: int = 0) -> None:
        """Prepare all volumes that are not there, each process its share, in `workers` loader processes.

        Raises:
            InputContractError: Volumes cannot be prepared; all of these are named, and the others are kept.
        """
        prepare_all(self.folder, list(dict.fromkeys(files)), self.add, workers=workers)


class CaseStore:
    """Cases on the grid of a network, kept on disk by `zoo.training.prepared`.

    Args:
        folder: Where the arrays are kept; several runs may share it.
        transform: From `contract.build_transform`.
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
        facts = keep(self.folder, self._key(case), partial(self._make, case))
        check_labels(facts["labels"], num_classes, case)

    def _make(self, case: Case) -> tuple[Arrays, Facts]:
        labels = read_labels(case.label)
        placed = place_volume(case.image, self.transform)
        label = place_labels(labels, placed, self.transform.preprocessing)
        inside = placed.image > self.transform.preprocessing.value_range[0]
        arrays = {
            "image": placed.image,
            "label": label,
            "foreground": np.flatnonzero(label).astype(np.uint32),
            "background": np.flatnonzero((label == 0) & inside).astype(np.uint32),
        }
        found = np.unique(labels.values).tolist()
        return arrays, {"image": str(case.image), "label": str(case.label), "labels": found}

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
        """Voxels with labels: indices `(n,)` into the flattened volume."""
        return self._map("foreground")

    @cached_property
    def background(self) -> Array:
        """Voxels without labels and above the window's lower end, likewise."""
        return self._map("background")

    def _map(self, part: str) -> Array:
        return map_part(self.folder, self.key, part)


def check_labels(labels: Sequence[float], num_classes: int, case: Case) -> None:
    """Raise `InputContractError` where labels belong to no class."""
    if wrong := [f"{label:g}" for label in labels if label >= num_classes]:
        raise InputContractError(
            f"{case.label} has labels {', '.join(wrong)}: 0 to {num_classes - 1} are expected for {num_classes} "
            "classes with the background. Correct the labels, or give another number of classes"
        )
