"""A synthetic cohort of abdominal CT with the 13 organs of BTCV, to run the recipes on without any download.

    python -m zoo.entries.monai_ssl.phantom --out cohort --unlabelled 60 --train 6 --val 4 --test 10

Each patient is an abdomen in HU at 4 mm: body wall with ribs, spine, fat, muscles, the bottom of lungs and heart,
bowel, and the organs as ellipsoids and tubes at their places, smoothly deformed. Build, pose, the size and place of
each organ, contrast phase, densities, sharpness and noise differ between patients. Densities of organs overlap with
each other's and with those of bowel and muscle, so a voxel's own value does not tell what it is. Places, sizes and
densities have the order of magnitude of CT; they are chosen, not fitted: no result on this cohort is a finding about
patients.

Files in OUT: `images/*.nii.gz` (int16 HU) and `labels/*.nii.gz` (uint8), `pretrain.json` (images without labels),
`labelled.json`, `labelled_2.json` (the same with the first two training volumes), `cohort.json`, `overview.png`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from zoo.entries.monai_ssl.cohort import ORGANS
from zoo.entries.monai_ssl.phantom_anatomy import BODY, BONES, COLON, DOMES, PASSING, VERTEBRA, VISCERA, Shape
from zoo.entries.monai_ssl.phantom_canvas import SHAPE, SPACING, Array, Canvas, column, ellipsoid, field_of
from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.training.args import run_command
from zoo.training.pictures import new_figure

VERSION = 1
"""Version of the generator; any change of its drawings gets a new one."""

PARTS = ("unlabelled", "training", "validation", "test")
FEW = 2
"""Training volumes of the shorter list."""
LEAST_VOXELS = 8
"""Least voxels of each organ in each volume; a patient with fewer is drawn anew."""


@dataclass(frozen=True)
class Patient:
    """One abdomen with its labels."""

    volume: npt.NDArray[np.int16]
    """HU, of shape `SHAPE`."""
    labels: npt.NDArray[np.uint8]
    """0 to 13, of the same shape."""


def affine() -> npt.NDArray[np.float64]:
    """Voxel to world (4, 4) in millimetres, the origin in the middle of the volume; axes run as NIfTI's do."""
    matrix = np.diag([SPACING, SPACING, SPACING, 1.0])
    matrix[:3, 3] = [-SPACING * (n - 1) / 2 for n in SHAPE]
    return matrix


def draw_positions(rng: np.random.Generator) -> Array:
    """Position in the reference anatomy of a patient's voxels (3, W, D, H): build, pose, and smooth deformation."""
    axes = [SPACING * (np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in SHAPE]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = Rotation.from_euler("xyz", rng.normal(0, 3, 3), degrees=True).as_matrix()
    build = rng.uniform(0.9, 1.04) * np.exp(rng.normal(0, 0.03, 3))
    matrix = (turn / build[:, None]).astype(np.float32)
    bends = np.stack([5 * field_of(rng, 70) + 1.5 * field_of(rng, 25) for _ in range(3)])
    positions: Array = np.tensordot(matrix, grid - column(rng.normal(0, (5, 4, 8))), 1) + bends
    return positions


def paint_trunk(canvas: Canvas) -> tuple[Array, Array, Array]:
    """Paint skin, fat and the abdominal wall; returns the depths below skin, fat and wall."""
    x, y, _ = canvas.positions
    right, front, power = BODY
    radius = ((np.abs(x) / right) ** power + (np.abs(y) / front) ** power).clip(1e-6) ** (1 / power)
    skin = np.hypot(x, y) * (1 / radius - 1)
    fat = canvas.rng.uniform(5, 20) * (1 + 0.5 * np.clip(-y / front, 0, 1)) + 2 * field_of(canvas.rng, 40)
    wall = skin - fat
    canvas.paint(skin, canvas.density("fat", "skin"))
    canvas.paint(wall, canvas.density("muscle", "wall"))
    inside = wall - canvas.rng.uniform(8, 13)
    canvas.paint(inside, canvas.density("fat", "inside") + 12 * field_of(canvas.rng, 12))
    return skin, wall, inside


def draw_bowel(rng: np.random.Generator) -> list[Shape]:
    """Draw loops of small bowel, lymph nodes and vessels, which have densities of organs beside the organs."""
    shapes = []
    for i in range(rng.integers(9, 15)):
        start = rng.uniform((-70, 8, -112), (70, 70, -28))
        ways = rng.normal(0, (26, 12, 16), (3, 3)).cumsum(0)
        radius = rng.uniform(8, 13)
        line = [(tuple(start + way), radius) for way in (np.zeros(3), *ways)]
        shapes.append(Shape("bowel", f"loop {i}", tube=tuple(line), hollow=radius > 10))
    for i in range(rng.integers(4, 9)):
        centre = rng.uniform((-80, -30, -100), (80, 60, 60))
        tissue = ("spleen", "pancreas", "adrenal", "portal")[i % 4]
        shapes.append(Shape(tissue, f"node {i}", ellipsoids=((tuple(centre), tuple(rng.uniform(4, 10, 3))),)))
    return shapes


def paint_chest(canvas: Canvas) -> None:
    """Paint the lungs above the diaphragm's domes, and the heart between them."""
    x, y, z = canvas.positions
    heights = [top - 36 * ((x - cx) / 62) ** 2 - 40 * ((y - cy) / 70) ** 2 for cx, cy, top in DOMES]
    above = z - np.maximum.reduce(heights) - canvas.rng.normal(0, 6)
    beside = np.hypot(x + 4, (y - 6) / 2) - 30
    canvas.paint(np.minimum(above, beside), canvas.density("lung"))
    heart = ellipsoid(canvas.positions, (-16, 40, 112), (54, 38, 30))
    canvas.paint(np.minimum(above - 3, heart), canvas.density("heart"))


def paint_bones(canvas: Canvas, wall: Array) -> None:
    """Paint ribs between the outside and the inside of the wall, the muscles of the back, and the spine."""
    _, y, z = canvas.positions
    slope = z + 0.45 * y + canvas.rng.uniform(0, 28)
    rib = np.minimum(5.5 - np.abs(slope % 28 - 14), 4 - np.abs(wall - 5))
    margin = z + 28 - 0.75 * np.clip(y, 0, None)  # there are no ribs below it
    canvas.paint(np.minimum(rib, margin), canvas.density("cortex", "ribs"))
    canvas.paint_shapes(BONES)
    vertebra = canvas.moves["spine"].depth(canvas.positions, VERTEBRA)
    canvas.paint(vertebra, canvas.density("cortex", "spine"))
    canvas.paint(vertebra - 2.5, canvas.density("bone", "spine"))
    disc = 5 - np.abs((z + canvas.rng.uniform(0, 34)) % 34 - 17)
    canvas.paint(np.minimum(vertebra, disc), canvas.density("disc"))


def image(canvas: Canvas, skin: Array) -> npt.NDArray[np.int16]:
    """Image of a canvas by a scanner: texture, sharpness, an offset, noise."""
    rng = canvas.rng
    hu = canvas.hu + (skin > 0) * (rng.normal(0, 6) + 6 * field_of(rng, 12))
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.4)
    hu = ndimage.gaussian_filter(hu, rng.uniform(0.2, 0.6)) + noise / noise.std() * rng.uniform(8, 24)
    rounded: npt.NDArray[np.int16] = np.rint(hu.clip(-1024, 3071)).astype(np.int16)
    return rounded


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw one abdomen in which every organ can be seen."""
    while True:
        canvas = Canvas(rng, draw_positions(rng), rng.dirichlet((0.6, 0.8, 3.0)).astype(np.float32))
        skin, wall, inside = paint_trunk(canvas)
        trunk = canvas.hu.copy()
        canvas.paint_shapes([*draw_bowel(rng), *COLON, *VISCERA])
        paint_chest(canvas)
        canvas.paint_shapes(PASSING)
        canvas.paint(-inside, trunk)  # organs end at the wall
        paint_bones(canvas, wall)
        if np.bincount(canvas.labels.ravel(), minlength=len(ORGANS)).min() >= LEAST_VOXELS:
            return Patient(image(canvas, skin), canvas.labels)


def write_patients(out: Path, part: str, count: int, seed: int) -> list[dict[str, str]]:
    """Write the volumes of one part, with labels unless they are to pre-train on; returns their list."""
    entries = []
    for i in tqdm(range(count), desc=part, disable=None):
        patient = draw_patient(np.random.default_rng([seed, PARTS.index(part), i]))
        name = f"{part}{i:04d}.nii.gz"
        entries.append({"image": f"images/{name}"})
        write_nifti(out / "images" / name, patient.volume)
        if part != "unlabelled":
            entries[-1]["label"] = f"labels/{name}"
            write_nifti(out / "labels" / name, patient.labels)
    return entries


def write_nifti(path: Path, values: npt.NDArray[Any]) -> None:
    """Write a volume, whole or not at all, the same bytes each time."""
    packed = gzip.compress(Nifti1Image(values, affine()).to_bytes(), mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(packed))


def read_patient(out: Path, entry: dict[str, str]) -> Patient:
    """Read a labelled patient that was written."""
    volume, labels = (np.asarray(Nifti1Image.from_filename(out / entry[kind]).dataobj) for kind in ("image", "label"))
    return Patient(volume, labels)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def draw_overview(patients: Sequence[Patient], path: Path) -> None:
    """Draw an axial and a coronal slice of some patients, beside each the same with the labels in colour."""
    colours = {"cmap": "tab20", "vmin": 0.5, "vmax": 20.5, "alpha": 0.75, "interpolation": "nearest"}
    figure = new_figure(13, 2.9 * len(patients))
    for row, patient in zip(figure.subplots(len(patients), 4, squeeze=False), patients, strict=True):
        pancreas = np.argwhere(patient.labels == ORGANS.index("pancreas")).mean(0).round().astype(int)
        kidneys = np.argwhere(np.isin(patient.labels, (2, 3))).mean(0).round().astype(int)
        cuts = (np.s_[::-1, ::-1, pancreas[2]], np.s_[::-1, kidneys[1] + 4, ::-1])  # oriented as for radiologists
        for axis, (cut, labelled) in zip(row, product(cuts, (False, True)), strict=True):
            axis.imshow(patient.volume[cut].T, cmap="gray", vmin=-175, vmax=250)
            if labelled:
                axis.imshow(np.where(patient.labels[cut].T > 0, patient.labels[cut].T, np.nan), **colours)
            axis.set_axis_off()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=60, format="png"))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cohort and its settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--unlabelled", type=int, default=60, help="volumes to pre-train on; a tenth of them validates")
    parser.add_argument("--train", type=int, default=6, help="labelled volumes to fine-tune on")
    parser.add_argument("--val", type=int, default=4, help="labelled volumes that choose the checkpoint")
    parser.add_argument("--test", type=int, default=10, help="labelled volumes for the final test")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    args = parser.parse_args(argv)
    counts = dict(zip(PARTS, (args.unlabelled, args.train, args.val, args.test), strict=True))
    if min(counts.values()) < 1 or args.unlabelled < 2 or args.train < FEW:
        raise OptionError(f"{counts}: expected at least 2 unlabelled, {FEW} training, 1 validation and 1 test volumes")
    if args.out.is_dir() and (there := sorted(p.name for p in args.out.iterdir())):
        raise OptionError(f"{args.out} is not empty ({', '.join(there[:3])}): name a new folder")
    lists = {part: write_patients(args.out, part, count, args.seed) for part, count in counts.items()}
    facts = {"synthetic": True, "generator": VERSION, "seed": args.seed}
    header = {**facts, "labels": {str(i): name for i, name in enumerate(ORGANS)}}
    images = lists.pop("unlabelled")
    held = max(1, len(images) // 10)
    write_json(args.out / "pretrain.json", {**facts, "training": images[:-held], "validation": images[-held:]})
    write_json(args.out / "labelled.json", {**header, **lists})
    few = {**lists, "training": lists["training"][:FEW]}
    write_json(args.out / f"labelled_{FEW}.json", {**header, **few})
    write_json(args.out / "cohort.json", {**header, "volumes": counts, "shape": SHAPE, "affine": affine().tolist()})
    draw_overview([read_patient(args.out, entry) for entry in lists["test"][:3]], args.out / "overview.png")


if __name__ == "__main__":
    run_command(main)
