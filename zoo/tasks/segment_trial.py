"""One training of a network that segments: its crops, its validation, and its test on the images' own grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.entry import Entry, State, Windows
from zoo.images import read_label_picture, read_labels
from zoo.tasks.args import PARTS, FinetuneArgs
from zoo.tasks.crops import Crops, Positions, Whole
from zoo.tasks.labelling import label_image
from zoo.tasks.masked import MaskedImages
from zoo.tasks.panels import planes_at, shades
from zoo.tasks.segmenter import Segmenter
from zoo.tasks.splits import Split
from zoo.training.distributed import Processes
from zoo.training.finetune import collect
from zoo.training.metrics import Array, measure_labels
from zoo.transforms import ImageTransform


class SegmentTrial:
    """One training of a network that segments: a `Trial` of `zoo.tasks.run`."""

    def __init__(
        self,
        entry: Entry,
        images: MaskedImages,
        network: nn.Module,
        args: FinetuneArgs,
        split: Split,
        processes: Processes,
        windows: Windows | None,
    ) -> None:
        self.entry, self.images, self.args, self.processes, self.windows = entry, images, args, processes, windows
        self.num_classes = len(images.classes.names)
        self.segmenter = Segmenter(network, self.num_classes, windows, frozen=args.freeze)
        self.method: nn.Module = self.segmenter
        count = 1 if isinstance(images.transform, ImageTransform) else args.parts or PARTS
        augment = entry.augment if args.augment else None
        size = windows.size if windows else ()
        train = Crops(self.images, split["train"], size=size, count=count, augment=augment, seed=args.seed)
        self.data: Mapping[str, Dataset[Any]] = {"train": train}
        if "val" in split:
            self.data = {**self.data, "val": Whole(self.images, split["val"])}
        if "test" in split:
            self.data = {**self.data, "test": Positions(split["test"])}

    def predict(self, part: str) -> Tensor:
        """Return what is found of each case of a part, see `Segment`; of the test part on the images' own grids."""
        measure = self._on_own_grid if part == "test" else self.segmenter.measure
        return collect(measure, self.data[part], self.args, self.processes, one_each=True)

    def state(self) -> State:
        """Return the network's tensors as they are saved."""
        return {name: tensor.detach().clone() for name, tensor in self.segmenter.network.state_dict().items()}

    def shown(self, row: int) -> tuple[Array, Array, Array]:
        """Return the slice of a case with most of its structures: image from 0 to 1, truth and prediction."""
        stored = self.images.open(row)
        image = torch.from_numpy(np.array(stored.image, np.float32))
        truth, found = self.images.numbers(stored.label), self.segmenter.labels(image).cpu().numpy()
        shown: Sequence[Array] = ((image[:, 0] if self.windows is None else image[0]).numpy(), truth, found)
        if truth.ndim == 3:
            axis = 0 if self.windows is None else 3 - sum(self.entry.augment.plane)
            level = int((truth > 0).sum(tuple({0, 1, 2} - {axis})).argmax())
            shown = [self._plane(array, axis, level) for array in shown]
        return shades(shown[0]), shown[1], shown[2]

    def _plane(self, volume: Array, axis: int, level: int) -> Array:
        """Return a plane across an axis, as it is shown: of volumes whose pose is known the axial one."""
        contract = self.images.transform.preprocessing
        if self.windows is None:
            plane: Array = volume[level].T
            return plane
        point = [level if i == axis else side // 2 for i, side in enumerate(volume.shape)]
        planes = planes_at(volume, point, contract.orientation, contract.spacing)
        return planes[2 if contract.orientation else axis][1]

    def _on_own_grid(self, batch: dict[str, Tensor]) -> Tensor:
        rows, size = [], self.windows.size if self.windows else ()
        for row in batch["row"].tolist():
            path, network = self.images.images[row], self.segmenter.network
            labels, _ = label_image(self.entry, network, self.images.transform, path, window=size)
            truth, spacing = read_truth(self.images, row)
            pair = torch.from_numpy(labels), torch.from_numpy(truth)
            rows.append(measure_labels(*pair, self.num_classes, spacing))
        return torch.stack(rows).to(batch["row"].device)


def read_truth(images: MaskedImages, row: int) -> tuple[Array, Sequence[float]]:
    """Return the numbers of the classes of a mask on its own grid, and how far apart its pixels or voxels are."""
    if isinstance(images.transform, ImageTransform):
        return images.numbers(read_label_picture(images.masks[row])), (1.0, 1.0)
    found = read_labels(images.masks[row])
    return images.numbers(found.values.astype(np.uint8)), found.grid.spacing
