"""Data sets of CAiD's downstream tasks: radiographs with labels, and radiographs with masks.

Facts from MR-HosseinzadehTaher/BenchmarkTransferLearning, Version1, `dataloader.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from zoo.entries.caid.augment import PUBLISHED_SIZE
from zoo.entries.caid.cohort import Sample
from zoo.entries.caid.data import read_grey, rgb
from zoo.entries.caid.warps import augment
from zoo.errors import OptionError
from zoo.images import is_dicom, read_dicom, read_picture
from zoo.training.data import Key, seeded
from zoo.training.table import write_table

VIEWS = ("random", "center", "ten")
LARGER = 256
"""Pixels that a side is resized to before `PUBLISHED_SIZE` of them are cut out."""
NORMALIZATIONS = {"none": ((0.0,) * 3, (1.0,) * 3), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and standard deviation of the three channels."""


def read_film(path: Path) -> Image.Image:
    """Read a radiograph as an 8-bit grey image: DICOM, or what `read_grey` reads.

    Raises:
        InputContractError: The file cannot be read as one image of known range.
    """
    if not is_dicom(path):
        return read_grey(path)
    return Image.fromarray(np.rint(read_dicom(path) * 255).astype(np.uint8)).convert("L")


def normalized(pixels: Tensor, normalization: str) -> Tensor:
    """Pixels in [0, 1] (..., 1 or 3, H, W) as the network takes them (..., 3, H, W): minus a mean, over a deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATIONS[normalization])
    return (pixels - mean) / std


class LabelledImages(Dataset[dict[str, Tensor]]):
    """Data set for classification: item `(pass, index)` is a dict of `image` and `label` (C,), 0 or 1.

    Args:
        samples: Images with labels.
        size: Side S of the input in pixels.
        view: "random": crop of 0.08 to 1 of the area, mirror, rotation of up to 7 degrees, (3, S, S). "center": resized
            to 256 (for 224), middle crop, (3, S, S). "ten": the four corners and the middle of the resized image, and
            their mirror images, (10, 3, S, S).
        normalization: A key of `NORMALIZATIONS`.
        seed: Draws follow from (seed, pass, index).
    """

    def __init__(self, samples: list[Sample], *, size: int, view: str, normalization: str, seed: int = 0) -> None:
        if view not in VIEWS:
            raise OptionError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
        self.samples, self.view, self.normalization, self.seed = samples, view, normalization, seed
        larger = transforms.Resize([round(size * LARGER / PUBLISHED_SIZE)] * 2)
        self.transform = {
            "random": transforms.Compose(
                [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.RandomRotation(7)]
            ),
            "center": transforms.Compose([larger, transforms.CenterCrop(size)]),
            "ten": transforms.Compose([larger, transforms.TenCrop(size)]),
        }[view]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        sample = self.samples[index]
        with seeded(self.seed, data_pass, index):
            view = self.transform(read_film(sample.file))
        crops = [rgb(np.array(crop)) for crop in (view if self.view == "ten" else [view])]
        images = normalized(torch.stack(crops), self.normalization)
        return {"image": images if self.view == "ten" else images[0], "label": torch.tensor(sample.labels)}


def write_predictions(path: Path, samples: Sequence[Sample], names: Sequence[str], scores: Tensor) -> None:
    """Write a CSV: the file, each label, each probability."""
    columns = ["file", *names, *(f"{name}_probability" for name in names)]
    rows = []
    for sample, row in zip(samples, scores.tolist(), strict=True):
        labels = [int(value) for value in sample.labels]
        rows.append([sample.file.name, *labels, *(f"{p:.6f}" for p in row)])
    write_table(path, columns, rows)


class MaskedImages(Dataset[dict[str, Tensor]]):
    """Data set for segmentation: item `(pass, index)` is a dict of `image` (3, S, S) and `mask` (1, S, S), 0 or 1.

    Both are resized by taking the nearest pixel, as published.

    Args:
        samples: Images.
        masks: One file for each, from `find_masks`.
        size: Side S in pixels.
        random: Apply `warps.augment`.
        normalization: A key of `NORMALIZATIONS`.
        seed: Draws follow from (seed, pass, index).
    """

    def __init__(
        self, samples: list[Sample], masks: list[Path], *, size: int, random: bool, normalization: str, seed: int = 0
    ) -> None:
        self.samples, self.masks = samples, masks
        self.size, self.random, self.normalization, self.seed = size, random, normalization, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        image = self._resized(read_film(self.samples[index].file)).float().div(255)
        mask = self._resized(read_mask(self.masks[index])).float()
        if self.random:
            with seeded(self.seed, data_pass, index):
                image, mask = augment(image, mask)
        return {"image": normalized(image, self.normalization), "mask": mask}

    def _resized(self, image: Image.Image) -> Tensor:
        resized = image.resize((self.size, self.size), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(resized))[None]


def read_mask(path: Path) -> Image.Image:
    """Read a mask as an image of 0 and 1: 1 where a channel of the file is above 0.

    A JPEG must reach 128 there, because compression leaves traces around edges.

    Raises:
        InputContractError: The file cannot be read as one image.
    """
    pixels = read_picture(path)
    marked = pixels >= (1 if path.suffix.lower() == ".png" else 128)
    return Image.fromarray((marked.any(-1) if marked.ndim == 3 else marked).astype(np.uint8))
