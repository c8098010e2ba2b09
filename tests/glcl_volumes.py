"""Small volumes laid out as ACDC: a bright disc within a ring beside a bright bar, in every one somewhere else."""

from __future__ import annotations

import nibabel
import numpy as np

SHAPE, SPACING = (40, 44, 9), (2.0, 2.0, 8.0)
GRID = ("--size", "32", "--spacing", "2.5")
"""On which these volumes are 32 x 35 pixels: the second axis is cropped."""


def draw(seed, shape=SHAPE):
    """Image int16 and labels uint8 of one volume."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    centre = np.array(shape[:2]) / 2 + rng.uniform(-3, 3, 2)
    radius = np.hypot(x - centre[0], y - centre[1]) + 0.4 * z
    labels = np.zeros(shape, np.uint8)
    labels[(np.abs(x - centre[0]) < 7) & (np.abs(y - centre[1] + 13) < 3)] = 1
    labels[radius < 11] = 2
    labels[radius < 6] = 3
    level = np.array([100, 700, 300, 650]) * rng.uniform(0.9, 1.1, 4)
    return (level[labels] + rng.normal(0, 20, shape)).astype(np.int16), labels


def save(path, values, spacing=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), path)
    return path


def write_subject(root, number, *, masked=True, frame="frame01", shape=SHAPE, spacing=SPACING):
    """Write `patient<number>`."""
    name = f"patient{number:03d}"
    image, labels = draw(number, shape)
    save(root / name / f"{name}_{frame}.nii.gz", image, spacing)
    if masked:
        save(root / name / f"{name}_{frame}_gt.nii.gz", labels, spacing)


def write_cohort(root, count=8):
    """Write patients 001 to `count`."""
    for number in range(1, count + 1):
        write_subject(root, number)
    return root
