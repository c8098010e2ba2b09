"""What DrasCLR's two registrations take, and how far they put its landmarks apart, on synthetic patients.

    python benchmarks/drasclr_registration.py --spacing 1           # full size: 25 minutes and 3.5 GB for each patient
    python benchmarks/drasclr_registration.py                       # the atlas and the patients in voxels of 3 mm
    python benchmarks/drasclr_registration.py --without-finest      # the published schedule less its finest scale

A patient is the atlas' lungs under an affine map, bent by a smooth random field, on the grid of a CT of 512 x 512 x 300
voxels. Seconds are of the processor, not of the clock; both registrations are of one run, with ITK's threads as the
environment says (ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS). Distances are between the places of the 581 landmarks under the
two maps, in mm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from measuring import print_rows
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from zoo.entries.drasclr.atlas import atlas_mask, load_landmarks
from zoo.entries.drasclr.ct import published
from zoo.entries.drasclr.ct.registration import Affine, choose_engine, overlap, register

LATTICE, NODES = 8.0, 64
"""Distance in mm and number of the points along each axis that the random field is drawn at."""
VOXELS = (512, 512, 300)


@dataclass(frozen=True)
class Patient:
    """How a patient's lungs come from the atlas'."""

    name: str
    scale: tuple[float, float, float]
    degrees: tuple[float, float, float]
    """About the axes to the right, to the front and to the top."""
    shift: tuple[float, float, float]
    bend: float
    """Length of the random field in mm, the root of its mean square."""
    smooth: float
    """Its smoothing in mm."""
    spacing: tuple[float, float, float]


PATIENTS = (
    Patient("smaller", (0.93, 0.95, 0.88), (3, -4, 5), (30, -40, 900), 6, 35, (0.7, 0.7, 1.0)),
    Patient("larger, turned", (1.06, 0.97, 1.10), (-7, 3, -9), (-60, 80, -200), 8, 45, (0.8, 0.8, 1.2)),
    Patient("short and deep, bent", (0.85, 1.05, 0.80), (9, 6, -4), (0, 150, 400), 10, 30, (0.68, 0.68, 1.0)),
    Patient("broad and flat, tilted", (1.08, 0.9, 0.94), (11, -8, 13), (120, 20, -500), 9, 40, (0.9, 0.9, 1.2)),
    Patient("tall and slight, bent", (0.88, 0.9, 1.12), (-9, 10, 6), (-20, -90, 100), 12, 28, (0.75, 0.75, 1.25)),
)
"""The last two were drawn when the registration was settled, and nothing was chosen by them."""


def main() -> None:
    """Register each patient both ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas-mask", type=Path, help="default: the authors', which is fetched")
    parser.add_argument("--landmarks", type=Path, help="default: the authors', which are fetched")
    parser.add_argument("--spacing", type=float, default=3.0, help="least voxels in mm; default: %(default)s")
    parser.add_argument("--engine", default="auto", help="of the published registration; default: %(default)s")
    parser.add_argument("--without-finest", action="store_true", help="leave out the published schedule's last scale")
    parser.add_argument("--patients", type=int, nargs="+", default=range(len(PATIENTS)), help="default: all, 0 to 4")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.without_finest:
        published.LEVELS = published.LEVELS[:-1]
    rows = measure(args)
    print(json.dumps(list(rows), indent=2)) if args.json else print_rows(rows)


def measure(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each patient."""
    whole = atlas_mask(args.atlas_mask)
    points = apply_affine(whole.affine, load_landmarks(args.landmarks))
    fixed = coarse(whole, args.spacing)
    for index in args.patients:
        moving = draw(whole, PATIENTS[index], index + 1, args.spacing)
        fast, fast_s = timed(fixed, moving, "fast", "auto")
        slow, slow_s = timed(fixed, moving, "published", args.engine)
        off = np.linalg.norm(fast(points) - slow(points), axis=1)
        yield {
            "patient": PATIENTS[index].name,
            "voxels": " x ".join(map(str, moving.shape)),
            "engine": choose_engine(args.engine, "published"),
            "fast, s": fast_s,
            "published, s": slow_s,
            "ratio": slow_s / fast_s,
            "apart, mean": float(off.mean()),
            "median": float(np.median(off)),
            "95 %": float(np.percentile(off, 95)),
            "max": float(off.max()),
            "Dice fast": min(overlap(fixed, moving, fast).values()),
            "Dice published": min(overlap(fixed, moving, slow).values()),
        }


def timed(fixed: Nifti1Image, moving: Nifti1Image, registration: str, engine: str) -> tuple[Affine, float]:
    """The map, and the seconds of the processor."""
    began = time.process_time()
    found = register(fixed, moving, engine, registration=registration)
    return found, time.process_time() - began


def coarse(mask: Nifti1Image, spacing: float) -> Nifti1Image:
    """The mask with every n-th voxel, so that voxels have at least about `spacing` mm."""
    steps = steps_to(spacing, nibabel.affines.voxel_sizes(mask.affine))
    values = np.asarray(mask.dataobj)[tuple(slice(None, None, step) for step in steps)]
    return Nifti1Image(np.ascontiguousarray(values), mask.affine @ np.diag((*steps, 1)))


def steps_to(spacing: float, sizes: Iterable[float]) -> list[int]:
    """How many voxels of these sizes make about `spacing` mm, along each axis."""
    return [max(1, round(spacing / size)) for size in sizes]


def draw(atlas: Nifti1Image, patient: Patient, seed: int, spacing: float = 0.0) -> Nifti1Image:
    """The lungs of a patient, 50 and 100, in the middle of the grid; its voxels as `coarse` would take them."""
    labels = np.asarray(atlas.dataobj)
    centre = apply_affine(atlas.affine, np.argwhere(labels)[::997].mean(axis=0))
    affine = np.diag((-patient.spacing[0], -patient.spacing[1], patient.spacing[2], 1.0))
    middle = centre + patient.shift
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(VOXELS) - 1) / 2)
    to_atlas = np.linalg.inv(turn(patient.degrees) @ np.diag(patient.scale))
    rng = np.random.default_rng(seed)
    field = [ndimage.gaussian_filter(rng.normal(size=(NODES,) * 3), patient.smooth / LATTICE) for _ in range(3)]
    bends = [part * patient.bend / np.sqrt(3) / part.std() for part in field]
    steps = steps_to(spacing, patient.spacing)
    affine = affine @ np.diag((*steps, 1))
    shape = [-(-count // step) for count, step in zip(VOXELS, steps, strict=True)]
    drawn = np.zeros(shape, np.int16)
    for k in range(shape[2]):  # a slice at a time, for the memory
        voxels = np.stack(np.mgrid[: shape[0], : shape[1], k : k + 1], axis=-1).reshape(-1, 3)
        from_centre = (apply_affine(affine, voxels) - middle) @ to_atlas.T
        nodes = (from_centre / LATTICE + NODES / 2).T
        bent = [ndimage.map_coordinates(part, nodes, order=1, mode="nearest") for part in bends]
        there = apply_affine(np.linalg.inv(atlas.affine), from_centre + np.stack(bent, axis=-1) + centre)
        drawn[:, :, k] = ndimage.map_coordinates(labels, there.T, order=0).reshape(shape[:2])
    return Nifti1Image(drawn, affine)


def turn(degrees: tuple[float, float, float]) -> np.ndarray:
    """The product of turns about the three axes."""
    found = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (k for k in range(3) if k != axis)
        about = np.eye(3)
        about[i, i] = about[j, j] = np.cos(angle)
        about[i, j], about[j, i] = -np.sin(angle), np.sin(angle)
        found = found @ about
    return found


if __name__ == "__main__":
    main()
