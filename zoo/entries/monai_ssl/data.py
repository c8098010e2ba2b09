"""MONAI SSL's data: lists of volumes, and crops of volumes in corrupted views.

Lists are JSON as the Medical Segmentation Decathlon has them: sections (`training`, `validation`) of objects with an
`image`, and further files where a task has them (`label`), relative to a folder. Order, constants and views from
Project-MONAI/tutorials, `self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.monai_ssl.augment import Corrupt
from zoo.entries.monai_ssl.storage import VolumeCache
from zoo.errors import InputContractError, OptionError
from zoo.messages import first_names
from zoo.training.data import Key, seed_of

Entry = dict[str, Path]
"""Name of a file in the list ("image", "label") -> where it is."""

PATIENT = r"^volume-covid19-A-\d+"
"""Whose a volume of TCIA's "CT Images in COVID-19" is: several days and series of one patient share this beginning."""


def read_datalists(
    path: str | Path, sections: Sequence[str], root: str | Path, keys: Sequence[str] = ("image",)
) -> dict[str, list[Entry]]:
    """Read sections of a list of volumes; one that the list lacks is empty.

    Args:
        path: JSON, an object of sections. An entry that is a text in place of an object is an image.
        sections: Their names.
        root: Folder that the files are relative to.
        keys: Files that each entry must have; others are left out.

    Raises:
        OptionError: There is no such list, it is none, or entries lack files or name one twice in a section.
        InputContractError: Files do not exist; the message names all of them.
    """
    content = _read_json(Path(path))
    found = {name: _entries(content.get(name, []), name, Path(path), Path(root), keys) for name in sections}
    files = dict.fromkeys(file for entries in found.values() for entry in entries for file in entry.values())
    if missing := [str(file) for file in files if not file.exists()]:
        raise InputContractError(
            f"{len(missing)} of {len(files)} files that {path} lists do not exist: {first_names(missing, 10)}. The "
            f"paths in a list are relative to the folder of the data, {root}"
        )
    return found


def read_datalist(path: str | Path, section: str, root: str | Path, keys: Sequence[str] = ("image",)) -> list[Entry]:
    """Read one section of a list of volumes, as `read_datalists` does.

    Raises:
        OptionError: As there, or the list has no such section, or nothing in it.
        InputContractError: Files do not exist; the message names all of them.
    """
    entries = read_datalists(path, (section,), root, keys)[section]
    if not entries:
        there = [name for name, part in _read_json(Path(path)).items() if isinstance(part, list)]
        raise OptionError(f"{path} lists nothing under {section!r}; sections of it are: {', '.join(there) or 'none'}")
    return entries


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OptionError(f"the list {path} does not exist")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OptionError(f"cannot read {path} as a list (JSON is expected): {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f'{path} holds a {type(content).__name__}: sections, {{"training": [...]}}, are expected')
    return content


def _entries(found: Any, section: str, path: Path, root: Path, keys: Sequence[str]) -> list[Entry]:
    if not isinstance(found, list):
        raise OptionError(f"{path}, section {section!r}: a list is expected, not {type(found).__name__}")
    entries: list[Any] = [{"image": entry} if isinstance(entry, str) else entry for entry in found]
    problems = [
        f"entry {i} has no {key!r}"
        for i, entry in enumerate(entries)
        for key in keys
        if not (isinstance(entry, dict) and isinstance(entry.get(key), str) and entry[key])
    ]
    if not problems:
        times = Counter(entry[key] for entry in entries for key in keys)
        problems = [f"{file} stands {count} times" for file, count in times.items() if count > 1]
    if problems:
        rest = f"; ... ({len(problems)} in all)" if len(problems) > 10 else ""
        raise OptionError(f"{path}, section {section!r}: {'; '.join(problems[:10])}{rest}")
    return [{key: root / entry[key] for key in keys} for entry in entries]


def of_training_patients(training: Sequence[Entry], validation: Sequence[Entry], patient: str = PATIENT) -> list[Entry]:
    """Return the validation volumes whose patient has training volumes, or that are training volumes themselves.

    TCIA's list has 33 such volumes of 171, of 23 patients.

    Args:
        training: Entries of the list.
        validation: Others.
        patient: Regular expression whose match in an image's name says whose it is; a name without a match is a patient
            of its own.

    Raises:
        OptionError: `patient` is no regular expression.
    """
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise OptionError(f"{patient!r} is no regular expression for names of files: {error}") from error

    def owner(entry: Entry) -> str:
        match = pattern.search(entry["image"].name)
        return match.group() if match and match.group() else str(entry["image"].resolve())

    seen = {owner(entry) for entry in training}
    return [entry for entry in validation if owner(entry) in seen]


class Crops(Dataset[dict[str, Tensor]]):
    """Training data set: item `(pass, index)` is crops of one volume as they are, and two corruptions of each.

    `target`, `view_1`, `view_2`: (K, 1, size, size, size) float32, in [0, 1]. Places of the crops are uniform among all
    in the volume. Draws follow from (seed, pass, index), so neither processes nor workers change them; the two views
    have draws of their own.

    Args:
        files: CTs.
        cache: Where they are prepared, and added when they are first asked for.
        crops: K, of each volume.
        corrupt: How views are made, for crops of the cache's size.
        seed: Of the draws.
        views: 2, or 1 for validation, which looks at `view_1` alone.

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
            raise OptionError(f"crops={crops}, views={views}: expected at least 1, and 1 or 2")
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
