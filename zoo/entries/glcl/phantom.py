"""Synthetic short-axis stacks of hearts, to run the three stages without any download.

    python -m zoo.entries.glcl.phantom --out hearts --subjects 60

Each subject is a stack of MR-like slices from the base of a heart to below its apex: left ventricle with papillary
muscles, myocardium and right ventricle amid lungs, liver, chest wall, fat and vessels as bright as the ventricles.
Shape, wall, pose, contrast of every tissue, bias field, blur and noise differ between subjects, so that no intensity
tells a label. Two frames of one heart, relaxed and contracted, share all but the size of the ventricles. Sizes have the
order of magnitude of adult hearts; all is chosen, not fitted: no result on these stacks is a finding about hearts.

Files in OUT, in the layout of ACDC: `patient<ID>/patient<ID>_frame01.nii.gz` (relaxed), `_frame04.nii.gz` (contracted),
int16 without units, and `..._gt.nii.gz` with 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle;
`cohort.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage
from tqdm import tqdm

from zoo.errors import OptionError
from zoo.training.args import run_command

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
Rng = np.random.Generator

VERSION = 1
"""Version of the generator; any change of its drawings gets a new one."""

RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3
FIELD = 250.0
"""Side of a slice in mm."""
SPACING, THICKNESS, SLICES = (1.45, 1.75), (7.0, 10.0), (8, 13)
"""Ranges of a subject's pixel size and slice distance (mm), and of its number of slices."""
TISSUES = {
    "lung": (0.03, 0.15),
    "muscle": (0.2, 0.45),
    "liver": (0.25, 0.6),
    "fat": (0.5, 1.1),
    "vessel": (0.55, 1.0),
    "blood": (0.6, 1.0),
    "wall": (0.2, 0.45),
}
"""Range of the intensity of each tissue; `wall` is the myocardium."""


@dataclass(frozen=True)
class Heart:
    """One heart and its surroundings: lengths in mm, angles in radians, z from 0 at the base to 1 at the apex."""

    cavity: float
    """Radius of the left ventricle at the base, relaxed."""
    wall: float
    """Thickness of the myocardium, relaxed."""
    right: float
    """Distance of the right ventricle's free wall from the centre of the left one, in outer radii of the left."""
    squeeze: float
    """Radius of the contracted cavity, as a share of the relaxed one."""
    turn: float
    """Direction in which the right ventricle lies."""
    oval: float
    lobes: Array
    """Amplitudes and phases (3, 2) of the outline's harmonics."""
    centre: Array
    """Centre of the left ventricle at the base, (2,)."""
    drift: Array
    """Shift of the centre from base to apex, (2,)."""
    apex: float
    """Share of the stack above the apex."""


def draw_heart(rng: Rng) -> Heart:
    """Draw one heart; one in four is dilated, one in four has a thick wall."""
    kind = rng.integers(4)
    return Heart(
        cavity=rng.uniform(29, 35) if kind == 0 else rng.uniform(19, 27),
        wall=rng.uniform(13, 18) if kind == 1 else rng.uniform(7, 11),
        right=rng.uniform(1.35, 1.95),
        squeeze=rng.uniform(0.55, 0.8),
        turn=np.pi + rng.normal(0, 0.35),
        oval=rng.uniform(0.88, 1.12),
        lobes=np.column_stack([rng.uniform(0, [0.07, 0.05, 0.03]), rng.uniform(0, 2 * np.pi, 3)]),
        centre=rng.normal(0, 10, 2),
        drift=rng.normal(0, 7, 2),
        apex=rng.uniform(0.8, 0.95),
    )


def draw_labels(heart: Heart, x: Array, y: Array, z: Array, *, contracted: bool) -> Labels:
    """Both ventricles and the myocardium at places x, y (mm) and z (0 base, 1 end of the stack), any shape."""
    depth = z / heart.apex
    taper = np.sqrt(np.clip(1 - depth**2.5, 0, None))
    dx, dy = x - heart.centre[0] - heart.drift[0] * z, (y - heart.centre[1] - heart.drift[1] * z) / heart.oval
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    outline = 1 + sum(a * np.cos((k + 2) * angle + phase) for k, (a, phase) in enumerate(heart.lobes))
    shrink = heart.squeeze if contracted else 1.0
    outer_area = (heart.cavity + heart.wall) ** 2 - heart.cavity**2 * (1 - shrink**2) * 0.8
    cavity, outer = heart.cavity * shrink * taper, np.sqrt(outer_area) * (0.25 + 0.75 * taper)
    is_left, is_outer = radius < cavity * outline, (radius < outer * outline) & (depth < 1)
    along = np.cos(angle - heart.turn)
    reach = outer * outline * (1 + (heart.right - 1) * shrink**0.5 * np.clip(along, 0, None) ** 0.7)
    is_right = (radius < reach * np.clip(1.15 - 0.4 * depth, 0, None)) & (along > 0.25) & (depth < 0.8)
    labels = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.uint8)
    labels[is_right] = RIGHT_VENTRICLE
    labels[is_outer] = MYOCARDIUM
    labels[is_left & is_outer] = LEFT_VENTRICLE
    return labels


def draw_tissues(rng: Rng, heart: Heart, x: Array, y: Array, z: Array) -> Array:
    """Intensities (X, Y, Z) of a chest without its heart."""
    level = {name: rng.uniform(*bounds) for name, bounds in TISSUES.items()}
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    chest = np.zeros(shape)
    half = np.array([rng.uniform(125, 150), rng.uniform(95, 115)])
    body = np.broadcast_to(np.hypot(x / half[0], y / half[1]), shape)
    skin = rng.uniform(0.04, 0.14)
    chest[body < 1] = level["fat"]
    chest[body < 1 - skin] = level["muscle"]
    chest[body < 0.9 - skin] = level["lung"]
    liver = np.hypot((x + rng.uniform(40, 70)) / 75, (y + rng.uniform(55, 85) - 30 * z) / 60)
    chest[np.broadcast_to(liver < 1, shape) & (body < 0.9 - skin)] = level["liver"]
    pad = np.hypot(x - heart.centre[0] + 12, y - heart.centre[1]) / (rng.uniform(55, 72))
    chest[np.broadcast_to(pad < 1, shape)] = rng.uniform(level["muscle"], level["fat"])
    for place, size in (
        (rng.normal([35, -62], 8), rng.uniform(9, 13)),
        (rng.normal([-12, -48], 8), rng.uniform(6, 10)),
    ):
        chest[np.broadcast_to(np.hypot(x - place[0], y - place[1]) < size, shape)] = level["vessel"]
    for _ in range(rng.integers(4, 9)):
        place, axes = rng.uniform(-85, 85, 2), rng.uniform(4, 14, 2)
        blob = np.hypot((x - place[0]) / axes[0], (y - place[1]) / axes[1]) < 1
        chest[np.broadcast_to(blob, shape) & (body < 1 - skin)] = rng.uniform(0.1, 1)
    return chest


def fill_heart(rng: Rng, chest: Array, labels: Labels, pixel: float) -> Array:
    """The chest with a heart in it: bright blood, papillary muscles, dark walls, a thin one for the right ventricle."""
    blood, wall = rng.uniform(*TISSUES["blood"]), rng.uniform(*TISSUES["wall"])
    filled = chest.copy()
    near = ndimage.grey_dilation(labels == RIGHT_VENTRICLE, size=(3, 3, 1)) & (labels == 0)
    filled[near | (labels == MYOCARDIUM)] = wall
    filled[labels == RIGHT_VENTRICLE] = blood * rng.uniform(0.85, 1.1)
    filled[labels == LEFT_VENTRICLE] = blood
    for k in range(labels.shape[2]):
        inside = np.argwhere(labels[:, :, k] == LEFT_VENTRICLE)
        if len(inside) * pixel**2 < 300:  # mm2: too small for muscles to show
            continue
        centre, reach = inside.mean(0), np.sqrt(len(inside) / np.pi)
        for angle in rng.normal([0.6, 3.8], 0.3):
            place = centre + 0.6 * reach * np.array([np.cos(angle), np.sin(angle)])
            rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
            muscle = np.hypot(rows - place[0], columns - place[1]) < rng.uniform(0.14, 0.22) * reach
            filled[:, :, k][muscle & (labels[:, :, k] == LEFT_VENTRICLE)] = wall * 1.1
    return filled


def draw_field(rng: Rng, shape: tuple[int, ...], smooth: float) -> Array:
    """A smooth random field with a standard deviation of 1; `smooth` in voxels within slices."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), (smooth, smooth, 1), mode="reflect")
    return np.asarray((field - field.mean()) / field.std())


def scan(rng: Rng, tissues: Array, bias: Array) -> npt.NDArray[np.int16]:
    """Image of tissues (X, Y, Z) by a scanner: texture, blur, bias field, Rician noise, and gain."""
    texture = 1 + 0.06 * draw_field(rng, tissues.shape, 2.0)
    blurred = ndimage.gaussian_filter(tissues * texture, (rng.uniform(0.5, 0.9),) * 2 + (0.0,)) * np.exp(bias)
    noise = rng.uniform(0.02, 0.06) * rng.normal(size=(2, *tissues.shape))
    image = np.hypot(blurred + noise[0], noise[1]) * rng.uniform(200, 900)
    return np.asarray(np.rint(image), dtype=np.int16)


def draw_subject(rng: Rng) -> tuple[dict[str, tuple[npt.NDArray[np.int16], Labels]], Array]:
    """Draw one subject: image and labels (X, Y, Z) of each frame, and their affine (4, 4)."""
    pixel, thickness, slices = rng.uniform(*SPACING), rng.uniform(*THICKNESS), int(rng.integers(*SLICES, endpoint=True))
    side = round(FIELD / pixel)
    heart = draw_heart(rng)
    places = (np.arange(side) - (side - 1) / 2) * pixel
    x, y = np.broadcast_arrays(places[:, None, None], places[None, :, None])
    z = np.linspace(0, 1, slices)[None, None, :]
    warp = [4.0 * draw_field(rng, (side, side, 1), 16 / pixel * 1.5) for _ in range(2)]
    turn = rng.normal(0, 0.2)
    x, y = x * np.cos(turn) - y * np.sin(turn) + warp[0], x * np.sin(turn) + y * np.cos(turn) + warp[1]
    chest = draw_tissues(rng, heart, x, y, z)
    bias = rng.uniform(0.1, 0.3) * draw_field(rng, (side, side, slices), side / 5)
    contrast, frames = int(rng.integers(1 << 32)), {}
    for frame, contracted in (("frame01", False), ("frame04", True)):
        labels = draw_labels(heart, x, y, z, contracted=contracted)
        frames[frame] = (scan(rng, fill_heart(np.random.default_rng(contrast), chest, labels, pixel), bias), labels)
    return frames, np.diag([-pixel, -pixel, thickness, 1.0])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cohort and its settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--subjects", type=int, default=60, help="number of subjects")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    args = parser.parse_args(argv)
    if args.subjects < 1:
        raise OptionError(f"--subjects {args.subjects}: expected at least 1")
    if args.out.is_dir() and (there := sorted(p.name for p in args.out.iterdir())):
        raise OptionError(f"{args.out} is not empty ({', '.join(there[:3])}): name a new folder")
    for i in tqdm(range(1, args.subjects + 1), desc="subjects", disable=None):
        name = f"patient{i:03d}"
        (args.out / name).mkdir(parents=True)
        frames, affine = draw_subject(np.random.default_rng([args.seed, i]))
        for frame, (image, labels) in frames.items():
            nibabel.save(Nifti1Image(image, affine), args.out / name / f"{name}_{frame}.nii.gz")
            nibabel.save(Nifti1Image(labels, affine), args.out / name / f"{name}_{frame}_gt.nii.gz")
    facts: dict[str, Any] = {"synthetic": True, "generator": VERSION, "subjects": args.subjects, "seed": args.seed}
    (args.out / "cohort.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
