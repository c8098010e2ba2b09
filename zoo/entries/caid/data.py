"""CAiD's images and views: two distorted crops of a radiograph, and the undistorted first crop as the target.

Steps and constants from MR-HosseinzadehTaher/CAiD, `transformation.py` and `data_loader.py`. Lengths are given there
for 224 pixels; at another size they are scaled with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

from zoo.errors import InputContractError, OptionError
from zoo.images import read_picture
from zoo.training.data import Key, seeded
from zoo.training.table import read_table

Pixels = npt.NDArray[np.uint8]

IMAGE_COLUMNS = ("file", "image", "image index", "path", "filename")
TARGET_FLIPS = ("with-input", "upstream")
PUBLISHED_SIZE = 224
SMALLEST_CROP = 0.2
"""Share of the image's area that the smallest crop has."""
JITTER = 0.4
"""Brightness and contrast are multiplied by 1 - JITTER to 1 + JITTER."""


@dataclass(frozen=True)
class Sample:
    """One image of a list: its file and, where the list has them, its labels and patient."""

    file: Path
    labels: tuple[float, ...] = ()
    patient: str = ""


def read_list(
    folder: str | Path, list_file: str | Path = "", *, labels: tuple[str, ...] = (), split: str = ""
) -> list[Sample]:
    """Read which images to use.

    Args:
        folder: Folder with the images.
        list_file: Either lines of a file name and space-separated 0/1 labels (ChestX-ray14's official lists), or a
            CSV whose image column is called file, image, path, filename or "Image Index". Empty: all images in
            `folder`, sorted.
        labels: Columns of the CSV that are labels.
        split: Keep the CSV's rows whose column `split` says this.

    Raises:
        OptionError: No such folder or list, a column is missing, a label is no number, or nothing is left.
        InputContractError: Images are missing; the message counts them and names the first ten.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"{folder} is not a folder of images")
    if not list_file:
        samples = [Sample(f) for f in sorted(folder.iterdir()) if f.suffix.lower() in (".png", ".jpg", ".jpeg")]
    elif not Path(list_file).is_file():
        raise OptionError(f"the list {list_file} does not exist")
    elif Path(list_file).suffix.lower() == ".csv":
        samples = _read_csv(folder, Path(list_file), labels, split)
    else:
        samples = _read_lines(folder, Path(list_file))
    if not samples:
        raise OptionError(f"no images: folder {folder}, list {list_file or '(none)'}, split {split or '(all)'}")
    if missing := [s.file.name for s in samples if not s.file.is_file()]:
        raise InputContractError(
            f"{len(missing)} of {len(samples)} images are not in {folder}: {', '.join(missing[:10])}"
        )
    return samples


def _read_lines(folder: Path, list_file: Path) -> list[Sample]:
    lines = [line.split() for line in list_file.read_text().splitlines() if line.strip()]
    try:
        return [Sample(folder / name, tuple(float(v) for v in values)) for name, *values in lines]
    except ValueError as error:
        raise OptionError(f"{list_file}: lines must be a file name and numbers, but {error}") from error


def _read_csv(folder: Path, list_file: Path, labels: tuple[str, ...], split: str) -> list[Sample]:
    rows = read_table(list_file)
    columns = list(rows[0]) if rows else []
    image = next((c for c in columns if c.lower() in IMAGE_COLUMNS), None)
    absent = [c for c in (*labels, *(["split"] if split else [])) if c not in columns]
    if image is None or absent:
        wanted = f"columns {', '.join(absent)}" if absent else f"an image column ({', '.join(IMAGE_COLUMNS)})"
        raise OptionError(f"{list_file} lacks {wanted}; it has {', '.join(columns) or 'no rows'}")
    try:
        return [
            Sample(folder / row[image], tuple(float(row[c]) for c in labels), row.get("patient", ""))
            for row in rows
            if not split or row["split"] == split
        ]
    except (TypeError, ValueError) as error:
        raise OptionError(f"{list_file}: a label in {', '.join(labels)} is not a number: {error}") from error


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
        InputContractError: The file is no picture, has transparent pixels, or holds floats.
    """
    pixels = read_picture(file)
    if pixels.dtype.kind != "u":
        raise InputContractError(f"{file} holds {pixels.dtype} values; 8- or 16-bit integers are expected")
    return Image.fromarray((pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)).convert("L")


def rgb(pixels: Pixels) -> Tensor:
    """Grey pixels (H, W) to three equal channels (3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(pixels).float().div(255).expand(3, *pixels.shape).clone()


def random_crop(image: Image.Image, size: int, min_area: float = SMALLEST_CROP) -> Image.Image:
    """Crop of `min_area` to 1.0 of the area, aspect 3/4 to 4/3, resized to `size` (bilinear)."""
    box = RandomResizedCrop.get_params(image, scale=[min_area, 1.0], ratio=[3 / 4, 4 / 3])
    crop: Image.Image = resized_crop(image, *box, [size, size])
    return crop


def change(image: Image.Image, jitter: float = JITTER) -> tuple[Image.Image, bool]:
    """Jitter of brightness and contrast (p 0.8), blur (p 0.5), mirror (p 0.5); also whether it was mirrored.

    The authors' jitter of saturation and hue does nothing to a grey image and is left out.
    """
    if torch.rand(()) < 0.8:
        image = ColorJitter(brightness=jitter, contrast=jitter)(image)
    if torch.rand(()) < 0.5:
        radius = torch.empty(()).uniform_(0.1, 2.0).item() * image.width / PUBLISHED_SIZE
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if torch.rand(()) < 0.5:
        return hflip(image), True
    return image, False


def distort(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Inner cut-out (30 %), outer cut-out (5 %), patch swap (30 %) or nothing (35 %) on square pixels (S, S)."""
    draw = rng.random()
    if draw <= 0.30:
        return cut_inside(pixels, rng)
    if draw <= 0.35:
        return cut_outside(pixels, rng)
    return swap_patches(pixels, rng) if draw <= 0.65 else pixels


def cut_inside(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blacken up to 10 rectangles of side 10 to 70, at least 3 pixels from the border; after each stop with p 0.1."""
    out = pixels.copy()
    for _ in range(10):
        out[_window(pixels.shape[0], rng, 10, 70)] = 0
        if rng.random() < 0.1:
            break
    return out


def cut_outside(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Black but for up to 10 windows of side 154 to 174; after each stop with p 0.1."""
    out = np.zeros_like(pixels)
    for _ in range(10):
        window = _window(pixels.shape[0], rng, PUBLISHED_SIZE - 70, PUBLISHED_SIZE - 50)
        out[window] = pixels[window]
        if rng.random() < 0.1:
            break
    return out


def swap_patches(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Exchange 10 pairs of rectangles of side 10 to 15, each copied from the undistorted pixels."""
    out, size = pixels.copy(), pixels.shape[0]
    for _ in range(10):
        height, width = _side(size, rng, 10, 15), _side(size, rng, 10, 15)
        first, second = _place(size, rng, height, width), _place(size, rng, height, width)
        out[first], out[second] = pixels[second], pixels[first]
    return out


def _side(size: int, rng: np.random.Generator, low: int, high: int) -> int:
    return max(1, round(int(rng.integers(low, high + 1)) * size / PUBLISHED_SIZE))


def _place(size: int, rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
    margin = round(3 * size / PUBLISHED_SIZE)
    top = int(rng.integers(margin, size - height - margin + 1))
    left = int(rng.integers(margin, size - width - margin + 1))
    return slice(top, top + height), slice(left, left + width)


def _window(size: int, rng: np.random.Generator, low: int, high: int) -> tuple[slice, slice]:
    return _place(size, rng, _side(size, rng, low, high), _side(size, rng, low, high))
