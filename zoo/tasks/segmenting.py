"""What a network that was fine-tuned to segment finds in images: the callable for runs of that task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from torch import nn

from zoo.entry import Entry, Labels, Preprocessing, Transform
from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.images import read_volume, voxel_sizes
from zoo.loading import input_of, load_model
from zoo.messages import printable
from zoo.registry import get_entry
from zoo.settings import local_rank
from zoo.tasks.labelling import label_image
from zoo.tasks.outputs import Outputs
from zoo.tasks.panels import draw_panels, planes_at, shades, with_labels
from zoo.tasks.saved import SavedModel
from zoo.training.loop import autocast

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from zoo.tasks.panels import Panel


@dataclass(frozen=True, eq=False)
class SegmentPredictor:
    """Labels of images by a fine-tuned network; it can be pickled, and each process loads the network by itself."""

    saved: SavedModel
    """What the file says."""
    device: str | torch.device = "auto"
    """Where the network runs; `"auto"` for the GPU of this process, if there is one."""
    batch_size: int | None = None
    """Windows or slices at once; None for the family's choice."""
    overlap: float | None = None
    """Share of a window that the next one covers too; None for the family's choice."""
    cache_dir: str | Path | None = None
    precision: str = "fp32"
    """`"bf16"` or `"fp16"` for automatic mixed precision."""

    def __post_init__(self) -> None:
        """Refuse the file of another task."""
        if self.saved.outputs.kind != "voxels":
            raise OptionError(f"{self.saved.path} is of the task {self.saved.task}, which finds no labels of voxels")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process makes by itself."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "transform")}

    def __call__(self, image: Any) -> Any:
        """Return the labels of an image, or a list of answers for a list of images.

        Args:
            image: What `load_transform` takes: a path, of volumes a nibabel image too, of films a PIL image, an array
                or a tensor. Of a volume whose axes are turned or resampled the position must be known. A `list` is
                several images.

        Returns:
            `task`, `labels`, uint8 on the image's own grid, `affine` from voxel to mm, None for films and arrays, and
            `classes`, the names of the labels 0, 1, ...

        Raises:
            InputContractError: An image cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: A path does not exist.
        """
        if isinstance(image, list):
            return [self(each) for each in image]
        labels, affine = self.find(image)
        return {"task": self.task, "labels": labels, "affine": affine, "classes": list(self.classes)}

    def find(self, image: Any) -> Labels:
        """Return the labels of one image, as `zoo.commands.segmenting.label_writer` writes them."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "overlap": self.overlap}
        with autocast(self.precision, next(self.network.parameters()).device):
            window = self.outputs.window
            return label_image(self.entry, self.network, self.transform, image, window=window, **options)

    @cached_property
    def network(self) -> nn.Module:
        """The network in eval mode, on its device."""
        device = self.device
        if device == "auto":
            device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
        return load_model(self.saved.model, checkpoint=self.saved.path, num_classes=len(self.classes), device=device)

    @cached_property
    def transform(self) -> Transform:
        """What makes images the network's input."""
        from zoo.transforms import build_transform

        return build_transform(input_of(self.saved.model, self.saved.path, self.cache_dir))

    @property
    def entry(self) -> Entry:
        """That of the network."""
        return get_entry(self.saved.model)

    @property
    def task(self) -> str:
        """Always `segment`."""
        return self.saved.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, background first."""
        return self.saved.classes

    @property
    def outputs(self) -> Outputs:
        """How the outputs become answers."""
        return self.saved.outputs

    @property
    def input(self) -> Preprocessing:
        """What images must be."""
        return self.transform.preprocessing

    @property
    def header(self) -> Mapping[str, str]:
        """All that the file says of the network, as text."""
        return self.saved.header


def draw_found(predictor: SegmentPredictor, path: Path, found: Labels, file: Path) -> None:
    """Draw the labels over an image as a PNG, whole or not at all: of a volume three planes through what was found.

    Args:
        predictor: What found them.
        path: Of the image.
        found: From `SegmentPredictor.find`.
        file: The picture.
    """
    labels, affine = found
    if labels.ndim == 2:
        grey = predictor.transform.place(path)[0][0].numpy()  # type: ignore[attr-defined]
        rows, columns = (np.arange(n) * side // n for n, side in zip(grey.shape, labels.shape, strict=True))
        panels: list[Panel] = [("labels", "over the film", with_labels(shades(grey), labels[rows][:, columns]))]
    else:
        volume = read_volume(path, least=(1, 1, 1))
        axes = None if affine is None else aff2axcodes(affine)
        spacing = None if affine is None else voxel_sizes(affine).tolist()
        point = _middle(labels)
        planes = (planes_at(array, point, axes, spacing) for array in (shades(volume.values), labels))
        panels = [
            (name, "labels over the volume", with_labels(grey, own))
            for (name, grey), (_, own) in zip(*planes, strict=True)
        ]
    there = [predictor.classes[i] for i in np.unique(labels) if i]
    footer = f"{printable(path.name)}: {', '.join(map(printable, there)) or 'background alone'}"
    picture = draw_panels(panels, footer)
    write_atomically(file, lambda temporary: picture.save(temporary, format="PNG"))


def _middle(labels: NDArray[Any]) -> tuple[int, ...]:
    """Return the labelled voxel that is nearest to the middle of all labelled ones; of none, the middle."""
    voxels = np.argwhere(labels)
    if not len(voxels):
        return tuple(side // 2 for side in labels.shape)
    return tuple(map(int, voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()]))
