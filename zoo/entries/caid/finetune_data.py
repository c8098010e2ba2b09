"""What CAiD's classification task is trained on: radiographs and their labels.

Facts from MR-HosseinzadehTaher/BenchmarkTransferLearning, Version1, `dataloader.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from zoo.entries.caid.data import PUBLISHED_SIZE, Sample, read_grey, read_list, rgb
from zoo.errors import OptionError
from zoo.files import replacing
from zoo.images import is_dicom, read_dicom
from zoo.messages import csv_cell
from zoo.training.data import Key, seeded

CHESTXRAY14 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""Labels of ChestX-ray14's official lists, in their order."""

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
    """Fractions (..., 1 or 3, H, W) to what the network takes, (..., 3, H, W): less a mean, over a deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATIONS[normalization])
    return (pixels - mean) / std


def read_labelled(
    folder: str, list_file: str, *, labels: Sequence[str] = (), split: str = ""
) -> tuple[list[Sample], tuple[str, ...]]:
    """Read a list of images with labels; returns them and the labels' names.

    Args:
        folder: Folder with the images.
        list_file: Lines of "name 0 1 ...", or a CSV.
        labels: Columns of a CSV; of other lists the names of the labels, by default ChestX-ray14's where there are 14.
        split: Rows of a CSV, by its column `split`.

    Raises:
        OptionError: No labels, a varying number of them, one that is not 0 or 1, or fewer or more than names.
        InputContractError: Images are missing.
    """
    if not list_file:
        raise OptionError(f"classification needs labels: name the list of the images in {folder} and their labels")
    samples = read_list(folder, list_file, labels=tuple(labels), split=split)
    counts = sorted({len(sample.labels) for sample in samples})
    if counts == [0]:
        raise OptionError(
            f"{list_file} gives no labels: lines of 'name 0 1 ...' are expected, or a CSV and --labels a,b"
        )
    if len(counts) > 1:
        raise OptionError(f"{list_file}: each image needs the same number of labels, there are {counts}")
    if wrong := [sample for sample in samples if not set(sample.labels) <= {0.0, 1.0}]:
        values = sorted({str(value) for sample in wrong for value in sample.labels} - {"0.0", "1.0"})
        raise OptionError(
            f"{list_file}: labels must be 0 or 1, {len(wrong)} of {len(samples)} images have {', '.join(values)} "
            f"(first: {wrong[0].file.name}); decide on uncertain and missing labels in the list"
        )
    names = tuple(labels) or (CHESTXRAY14 if counts == [14] else tuple(f"label{i}" for i in range(counts[0])))
    if len(names) != counts[0]:
        raise OptionError(f"{list_file} has {counts[0]} label(s) an image, --labels names {len(names)}")
    return samples, names


def check_both_values(samples: list[Sample], names: Sequence[str], wanted: Sequence[str], list_file: str) -> None:
    """Raise `OptionError` where a wanted label is the same for all images: it has no AUROC."""
    constant = [n for i, n in enumerate(names) if n in wanted and len({s.labels[i] for s in samples}) == 1]
    if constant:
        raise OptionError(
            f"{list_file}: all {len(samples)} images have the same value of {', '.join(constant)}, so no AUROC. "
            f"Take more images, or name the labels that count with --auroc-labels"
        )


class LabelledImages(Dataset[dict[str, Tensor]]):
    """Data set for classification: item `(pass, index)` is a dict of `image` and `label` (C,), 0 or 1.

    Args:
        samples: Images with labels.
        size: Side S of the input in pixels.
        view: "random": crop of 0.08 to 1 of the area, mirror, rotation of up to 7 degrees, (3, S, S). "center": resized
            to 256 (of 224), middle crop, (3, S, S). "ten": from the same the four corners and the middle, and their
            mirror images, (10, 3, S, S).
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


def split_names(text: str) -> tuple[str, ...]:
    """Names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def write_predictions(path: Path, samples: Sequence[Sample], names: Sequence[str], scores: Tensor) -> None:
    """Write a CSV: the file, each label, each probability; texts as `messages.csv_cell` writes them."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *map(csv_cell, names), *(csv_cell(f"{name}_probability") for name in names)])
        for sample, row in zip(samples, scores.tolist(), strict=True):
            writer.writerow([csv_cell(sample.file.name), *(int(v) for v in sample.labels), *(f"{p:.6f}" for p in row)])
