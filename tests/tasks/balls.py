"""Images with a bright ball each on noise, and their masks: what a network that segments can learn in few steps."""

import csv
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image


def draw(shape, seed, radius=0.25):
    """An image of noise from 0 to 1 with a brighter ball somewhere, and where the ball is."""
    rng = np.random.default_rng(seed)
    middle = [side * rng.uniform(0.35, 0.65) for side in shape]
    apart = np.indices(shape) - np.reshape(middle, (-1, *[1] * len(shape)))
    inside = np.sqrt((apart**2).sum(0)) < radius * min(shape)
    return np.clip(rng.normal(0.25, 0.08, shape) + 0.5 * inside, 0, 1), inside


def write_films(folder, count, shape=(80, 96), value=255):
    """PNG films and masks of 0 and a value."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        image, inside = draw(shape, i)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / "images" / f"film{i}.png")
        Image.fromarray((inside * value).astype(np.uint8)).save(folder / "masks" / f"film{i}.png")
    return write_table(folder, [f"film{i}.png" for i in range(count)])


def write_volumes(folder, count, shape, affine, *, scale=(0.0, 1.0), values=(1,)):
    """NIfTI volumes and masks; of two values the ball's upper half, twice as bright, has the second."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    low, high = scale
    for i in range(count):
        image, inside = draw(shape, i)
        labels = inside * values[0]
        if len(values) > 1:
            second = inside & (np.indices(shape)[0] > np.argwhere(inside)[:, 0].mean())
            labels[second] = values[1]
            image = np.where(second, image + 0.6, image)
        nibabel.save(
            nibabel.Nifti1Image((low + image * (high - low)).astype(np.float32), affine),
            folder / "images" / f"scan{i}.nii.gz",
        )
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), folder / "masks" / f"scan{i}.nii.gz")
    return write_table(folder, [f"scan{i}.nii.gz" for i in range(count)])


def write_table(folder, names, parts=("train", "train", "train", "val", "test")):
    """A table of paths with the part of each."""
    path = Path(folder) / "cases.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "patient", "split"), *((n, f"p{i}", parts[i % len(parts)]) for i, n in enumerate(names))]
        )
    return path
