"""CAiD's images and views: two distorted crops of a radiograph, and the undistorted first crop as the target.

Steps from MR-HosseinzadehTaher/CAiD, `data_loader.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import hflip

from zoo.entries.caid.augment import JITTER, PUBLISHED_SIZE, SMALLEST_CROP, Pixels, change, distort, random_crop
from zoo.entries.caid.cohort import Sample
from zoo.errors import InputContractError, OptionError
from zoo.images import read_picture
from zoo.training.data import Key, seeded

TARGET_FLIPS = ("with-input", "upstream")


class Views(Dataset[dict[str, Tensor]]):
    """Pre-training data set: item `(pass, index)` is the dict of views that `CAiD.forward` takes, for one image.

    Args:
        samples: Images.
        size: Side of the views in pixels, divisible by 32.
        seed: Draws follow from (seed, pass, index).
        min_area: Share of the image's area that the smallest crop has.
        jitter: Brightness and contrast are multiplied by 1 - jitter to 1 + jitter.
        distort: Cut-outs and patch swaps (mode "caid").
        target_flip: "with-input" mirrors the target with the query. "upstream" never mirrors it, as the authors do:
            half of their targets are the mirror image of what the network sees.
    """

    def __init__(
        self,
        samples: list[Sample],
        *,
        size: int = PUBLISHED_SIZE,
        seed: int = 0,
        min_area: float = SMALLEST_CROP,
        jitter: float = JITTER,
        distort: bool = True,
        target_flip: str = "with-input",
    ) -> None:
        if size < 32 or size % 32:
            raise OptionError(f"the views' size must be a positive multiple of 32, not {size}")
        if target_flip not in TARGET_FLIPS:
            raise OptionError(f"target_flip must be one of {', '.join(TARGET_FLIPS)}, not {target_flip!r}")
        if not 0 < min_area <= 1:
            raise OptionError(f"min_area must be above 0 and at most 1, not {min_area}")
        if not 0 <= jitter < 1:
            raise OptionError(f"jitter must be at least 0 and below 1, not {jitter}")
        self.samples, self.size, self.seed = samples, size, seed
        self.min_area, self.jitter = min_area, jitter
        self.distort, self.target_flip = distort, target_flip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        data_pass, index = key
        image = read_grey(self.samples[index].file)
        with seeded(self.seed, data_pass, index):
            crop = random_crop(image, self.size, self.min_area)
            query, is_flipped = change(crop, self.jitter)
            other, _ = change(random_crop(image, self.size, self.min_area), self.jitter)
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
        target = hflip(crop) if is_flipped and self.target_flip == "with-input" else crop
        views = [np.array(query), np.array(other)]
        if self.distort:
            views = [distort(v, rng) for v in views]
        return {"query": rgb(views[0]), "key": rgb(views[1]), "target": rgb(np.array(target))[:1]}


class FixedViews(Dataset[dict[str, Tensor]]):
    """Validation data set: item `index` is always drawn from the same pass of a `Views`."""

    def __init__(self, views: Views, data_pass: int = 0) -> None:
        self.views, self.data_pass = views, data_pass

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.views[self.data_pass, index]


def read_grey(file: Path) -> Image.Image:
    """Image file as 8-bit grey: colours by their luminance, 16-bit values by their upper half.

    Raises:
        InputContractError: The file is not a picture, has transparent pixels, or holds floats.
    """
    pixels = read_picture(file)
    if pixels.dtype.kind != "u":
        raise InputContractError(f"{file} holds {pixels.dtype} values; 8- or 16-bit integers are expected")
    return Image.fromarray((pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)).convert("L")


def rgb(pixels: Pixels) -> Tensor:
    """Grey pixels (H, W) to three equal channels (3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(pixels).float().div(255).expand(3, *pixels.shape).clone()
