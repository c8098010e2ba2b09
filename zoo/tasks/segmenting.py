"""What a network that was fine-tuned to segment finds in images: the callable for runs of that task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.arguments import Precision, check_precision
from zoo.embedding import check_head
from zoo.entry import Entry, Labels, Preprocessing, Transform
from zoo.errors import OptionError
from zoo.loading import input_of, load_model
from zoo.registry import get_entry
from zoo.settings import local_rank
from zoo.tasks.inputs import input_in_words
from zoo.tasks.labelling import label_image
from zoo.tasks.saved import OfSaved
from zoo.training.loop import autocast

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, eq=False, repr=False)
class SegmentPredictor(OfSaved):
    """Labels of images by a fine-tuned network; it can be pickled, and each process loads the network by itself."""

    device: str | torch.device = "auto"
    """Where the network runs; `"auto"` for the GPU of this process, if there is one."""
    batch_size: int | None = None
    """Windows or slices at once; None for the family's choice."""
    overlap: float | None = None
    """Share of a window that the next one covers too; None for the family's choice."""
    cache_dir: str | Path | None = None
    precision: Precision = "fp32"
    """`"bf16"` or `"fp16"` for automatic mixed precision."""

    def __post_init__(self) -> None:
        """Refuse the file of another task, and what is out of its range."""
        check_precision(self.precision)
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch_size={self.batch_size}: at least 1 is expected")
        if self.saved.outputs.kind != "voxels":
            raise OptionError(f"{self.saved.path} is of the task {self.saved.task}, which finds no labels of voxels")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process makes by itself."""
        return {name: value for name, value in vars(self).items() if name not in ("network", "transform")}

    def __repr__(self) -> str:
        return f"SegmentPredictor({self.saved.in_a_line()}, {input_in_words(self.input, is_cut=False)})"

    def __call__(self, image: Any) -> Any:
        """Return the labels of an image, or a list of answers for a list of images.

        Args:
            image: What `load_transform` takes: a path, of volumes a nibabel image too, of films a PIL image, an array
                or a tensor. Of a volume whose axes are turned or resampled the position must be known. A `list` is
                several images.

        Returns:
            `task`, `labels`, uint8 on the image's own grid, `affine` from voxel to mm, None for films and arrays,
            `classes`, the names of what is labelled, the background first, and `values`, that of each in `labels`: as
            in the masks that were learnt.

        Raises:
            InputContractError: An image cannot be what the network was trained on, or cannot be read.
            FileNotFoundError: A path does not exist.
        """
        if isinstance(image, list):
            return [self(each) for each in image]
        numbers, affine = self.find(image)
        facts = {"classes": list(self.classes), "values": list(self.values)}
        return {"task": self.task, "labels": self.outputs.in_masks(numbers), "affine": affine, **facts}

    def find(self, image: Any) -> Labels:
        """Return the number of the class of each pixel or voxel of one image, and its matrix."""
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
        count = len(self.classes)
        where: dict[str, Any] = {"checkpoint": self.saved.path, "cache_dir": self.cache_dir, "device": device}
        network = load_model(self.saved.model, num_classes=count, **where)
        check_head(network, count)
        return network

    @cached_property
    def transform(self) -> Transform:
        """What makes images the network's input."""
        from zoo.transforms import build_transform

        return build_transform(input_of(self.saved.model, self.saved.path, self.cache_dir))

    @property
    def values(self) -> Sequence[int]:
        """The value of each class in label maps."""
        return self.outputs.values or range(len(self.classes))

    @property
    def entry(self) -> Entry:
        """That of the network."""
        return get_entry(self.saved.model)

    @property
    def input(self) -> Preprocessing:
        """What images must be."""
        return self.transform.preprocessing
