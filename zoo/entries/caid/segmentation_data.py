"""What CAiD's segmentation task is trained on: radiographs and their masks.

Facts from MR-HosseinzadehTaher/BenchmarkTransferLearning, Version1, `dataloader.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from zoo.entries.caid.data import Sample
from zoo.entries.caid.finetune_data import normalized, read_film
from zoo.entries.caid.warps import augment
from zoo.errors import InputContractError, OptionError
from zoo.images import PIL_FORMATS, is_dicom, read_dataset, read_picture, refused
from zoo.training.data import Key, seeded

MASK_SUFFIXES = (".png", ".jpg", ".jpeg")


def find_masks(samples: list[Sample], folder: str) -> list[Path]:
    """Find the mask of each image: the file of the same stem in `folder`, a PNG if there is a JPEG too.

    Raises:
        OptionError: No such folder, or it is the images' own.
        InputContractError: Masks are missing, or differ in size from their images; counts them, names the first ten.
    """
    if not Path(folder).is_dir():
        raise OptionError(f"{folder} is not a folder of masks; name it with --masks")
    if Path(folder).resolve() == samples[0].file.parent.resolve():
        raise OptionError(f"{folder} holds the images themselves; the masks must lie in a folder of their own")
    masks = {file.stem: file for file in sorted(Path(folder).iterdir()) if file.suffix.lower() in MASK_SUFFIXES}
    if absent := [s.file.name for s in samples if s.file.stem not in masks]:
        raise InputContractError(
            f"{len(absent)} of {len(samples)} images have no mask in {folder} (same name, {', '.join(MASK_SUFFIXES)}): "
            f"{', '.join(absent[:10])}"
        )
    found = [masks[s.file.stem] for s in samples]
    pairs = [(s.file, size_of(s.file), size_of(m)) for s, m in zip(samples, found, strict=True)]
    if unequal := [f"{f.name} {a[0]}x{a[1]}, mask {b[0]}x{b[1]}" for f, a, b in pairs if a != b]:
        raise InputContractError(
            f"{len(unequal)} of {len(samples)} masks in {folder} differ in size from their images: "
            f"{'; '.join(unequal[:10])}"
        )
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header."""
    if is_dicom(path):
        header = read_dataset(path)
        return header.get("Columns", 0), header.get("Rows", 0)
    with refused(f"cannot read {path} as an image"), Image.open(path, formats=PIL_FORMATS) as image:
        return image.width, image.height


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
    """Read a mask as an image of 0 and 1: 1 where the file is not 0 in any channel.

    In a JPEG, where compression leaves traces around edges, where it is at least 128.

    Raises:
        InputContractError: The file cannot be read as one image.
    """
    pixels = read_picture(path)
    marked = pixels >= (1 if path.suffix.lower() == ".png" else 128)
    return Image.fromarray((marked.any(-1) if marked.ndim == 3 else marked).astype(np.uint8))
