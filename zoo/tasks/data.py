"""The images of a fine-tuning run as tensors: made once by the network's transform and kept, then changed at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.embedding import Cases
from zoo.entry import Augment, Parts, Preprocessing
from zoo.errors import InputContractError
from zoo.progress import say
from zoo.tasks.augment import augmented
from zoo.training import distributed
from zoo.training.data import Key, seeded
from zoo.training.prepared import Arrays, Facts, digest_of, keep, map_part, prepare_all

KEPT = "prepared"
"""Folder in OUT of the images as the network takes them; it goes when the run is done."""
_SHARE_OF_DISK = 2
"""Images are kept where they fit into one of so many shares of the free disk."""
_WEIGHTS = "weights"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Images:
    """The parts of each case of a run, as `zoo embed` makes them; it can be sent to other processes."""

    cases: Cases
    contract: Preprocessing
    reader: Callable[[Any], Parts]
    folder: Path | None = None
    """Where they are kept; None to make them anew each time."""

    def parts(self, index: int) -> Parts:
        """Return all parts of a case."""
        if self.folder is None:
            return self._made(index)
        facts, key = self._kept(index, self.folder), self._key(index)
        inputs = tuple(self._input(self.folder, key, i, facts) for i in range(facts["inputs"]))
        return Parts(inputs, torch.from_numpy(np.array(map_part(self.folder, key, _WEIGHTS))), facts["alone"])

    def drawn(self, index: int, count: int) -> Parts:
        """Return some parts of a case, drawn at random, that together count 1; others are not read from the disk.

        Of a case with fewer parts the last ones are repeated, and count nothing.
        """
        if self.folder is None:
            whole = self._made(index)
            rows, weights = _draw(_weights_of(whole), count)
            return Parts(tuple(x[rows] for x in whole.inputs), weights, whole.alone)
        facts, key = self._kept(index, self.folder), self._key(index)
        rows, weights = _draw(torch.from_numpy(np.array(map_part(self.folder, key, _WEIGHTS))), count)
        inputs = tuple(self._input(self.folder, key, i, facts, rows) for i in range(facts["inputs"]))
        return Parts(inputs, weights, facts["alone"])

    def keep(self, index: int) -> None:
        """Make the parts of a case, where they are not kept yet."""
        if self.folder is not None:
            self._kept(index, self.folder)

    def _made(self, index: int) -> Parts:
        made = self.reader(self.cases.case(index)).scaled()
        return Parts(made.inputs, _weights_of(made), made.alone)

    def _key(self, index: int) -> str:
        point = None if self.cases.points is None else self.cases.points[index]
        return digest_of([Path(self.cases.paths[index])], asdict(self.contract), type(self.reader).__name__, point)

    def _kept(self, index: int, folder: Path) -> Facts:
        return keep(folder, self._key(index), lambda: _packed(self._made(index)))

    def _input(
        self, folder: Path, key: str, number: int, facts: Facts, rows: Sequence[int] | slice = slice(None)
    ) -> Tensor:
        found = torch.from_numpy(np.array(map_part(folder, key, f"input{number}")[rows]))
        return found.expand(-1, facts["channels"], *found.shape[2:]) if number == 0 else found


def _packed(parts: Parts) -> tuple[Arrays, Facts]:
    """The arrays of a case; of channels that are all alike, as those of grey films, one is kept."""
    image = parts.inputs[0]
    is_grey = bool((image == image[:, :1]).all())
    arrays = {f"input{i}": x.numpy() for i, x in enumerate(parts.inputs)}
    arrays["input0"] = (image[:, :1] if is_grey else image).numpy()
    arrays[_WEIGHTS] = _weights_of(parts).numpy()
    return arrays, {"inputs": len(parts.inputs), "channels": image.shape[1], "alone": parts.alone}


def _weights_of(parts: Parts) -> Tensor:
    """How much each part counts, `(n,)` or `(n, *cells)`; all alike where nothing else is said."""
    count = len(parts.inputs[0])
    return torch.full((count,), 1 / count, dtype=torch.float64) if parts.weights is None else parts.weights


def _draw(weights: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Positions of some parts that count something, and their weights, which sum to 1."""
    counting = weights.flatten(1).sum(1).nonzero()[:, 0] if weights.ndim > 1 else weights.nonzero()[:, 0]
    rows = counting[torch.randperm(len(counting))[:count]]
    drawn = weights[rows] / weights[rows].sum()
    lacking = count - len(rows)
    rows = torch.cat([rows, rows[-1:].expand(lacking)])
    return rows.tolist(), torch.cat([drawn, torch.zeros(lacking, *drawn.shape[1:], dtype=drawn.dtype)])


class TrainingImages(Dataset[dict[str, Any]]):
    """Data set of training: item `(pass, index)` has `inputs`, `weights` and `label` of some parts of a case.

    Args:
        images: Of all cases.
        rows: Positions of the cases of this part of the data.
        labels: float32 `(cases, columns)`, of all cases.
        count: Parts of a case in an item.
        augment: How they may be changed; None to leave them as they are.
        seed: Draws follow from (seed, pass, index).
    """

    def __init__(
        self,
        images: Images,
        rows: Sequence[int],
        labels: Tensor,
        *,
        count: int,
        augment: Augment | None,
        seed: int,
    ) -> None:
        self.images, self.rows, self.labels = images, rows, labels
        self.count, self.augment, self.seed = count, augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        data_pass, index = key
        with seeded(self.seed, data_pass, index):
            parts = self.images.drawn(self.rows[index], self.count)
            image = parts.inputs[0]
            if self.augment is not None:
                image = torch.stack([augmented(self.augment, part)[0] for part in image])
        return _item((image, *parts.inputs[1:]), parts.weights) | {"label": self.labels[self.rows[index]]}


class WholeImages(Dataset[dict[str, Any]]):
    """Data set of evaluation: item `(pass, index)` has `inputs` and `weights` of all parts of a case, unchanged."""

    def __init__(self, images: Images, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        parts = self.images.parts(self.rows[key[1]])
        return _item(parts.inputs, parts.weights)


def _item(inputs: Sequence[Tensor], weights: Tensor | None) -> dict[str, Any]:
    assert weights is not None
    return {"inputs": [x.float() for x in inputs], "weights": weights.float()}


def kept_in(out: Path, images: Images, *, workers: int, device: torch.device = _CPU) -> Images:
    """Make the images of a run and keep them in OUT, each once; where the disk has no room they are made each time.

    Called by all processes, which share the folder.

    Args:
        out: Folder of the run.
        images: Of all its cases.
        workers: Loader processes of each process that make them.
        device: Where processes talk to each other.

    Raises:
        InputContractError: Some cannot be what the network takes; the message names them all.
    """
    if not has_room(out, _size_of(images), device):
        return images
    (out / KEPT).mkdir(exist_ok=True)
    kept = Images(images.cases, images.contract, images.reader, out / KEPT)
    prepare_all(out / KEPT, range(len(images.cases)), kept.keep, workers=workers, what="images")
    return kept


def has_room(out: Path, size: int, device: torch.device) -> bool:
    """Whether the images of a run may be kept in OUT, by the free disk; where not, that is said.

    Called by all processes, which get the same answer.

    Args:
        out: Folder of the run.
        size: Bytes of all its images.
        device: Where processes talk to each other.
    """
    if not distributed.any_of(size * _SHARE_OF_DISK > shutil.disk_usage(out).free, device):
        return True
    say(f"the images as the network takes them need {size / 1e9:.3g} GB: they are made anew each time")
    return False


def _size_of(images: Images) -> int:
    """Bytes of all images, were they all as large as the first one."""
    try:
        arrays, _ = _packed(images._made(0))
    except InputContractError:  # it is named with the others that cannot be used
        return 0
    return sum(array.nbytes for array in arrays.values()) * len(images.cases)


def remove_kept(out: Path) -> None:
    """Remove what `kept_in` kept."""
    shutil.rmtree(out / KEPT, ignore_errors=True)
