"""A synthetic cohort of grey-matter maps, to run the recipes on without any download.

    python -m zoo.entries.yaware.phantom --out cohort                   # 6 mm, a minute
    python -m zoo.entries.yaware.phantom --out cohort --spacing 1.5     # the published grid, 121 x 145 x 121

Every map is nilearn's ICBM 152 grey-matter template, changed in ways that the table records: smooth random deformation
with modulation, individual regional volumes, atrophy that grows with age, focal atrophy of patients (who, with
`--acceleration`, also age faster), and a scanner's blur, contrast, bias field and noise. `healthy` is for pre-training
(ages 18 to 88), `clinical` has patients and controls of the same ages, from scanners that `healthy` lacks. Places and
sizes of the effects have the order of magnitude that morphometry of ageing and of Alzheimer's disease reports; they are
chosen, not fitted: no result on this cohort is a finding about brains.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from zoo.errors import OptionError
from zoo.files import write_atomically
from zoo.messages import install_hint
from zoo.training.args import run_command
from zoo.training.fields import smooth_field

Array = npt.NDArray[np.float64]

VERSION = 1
"""Version of the generator; any change of its drawings gets a new one."""

EXTENT = (180, 216, 180)
"""Millimetres between the centres of the first and the last voxel, as in SPM's 1.5 mm maps of 121 x 145 x 121."""
ORIGIN = (90.0, -126.0, -72.0)
"""MNI coordinates of the first voxel; the first axis runs from right to left, as SPM writes it."""

Region = tuple[tuple[float, float, float], float, float]
"""MNI centre in millimetres (both hemispheres), radius (standard deviation of a Gaussian) in millimetres, strength."""

AGE_EVERYWHERE = 0.10
AGE_REGIONS: tuple[Region, ...] = (
    ((30, 40, 25), 20, 0.30),  # frontal
    ((38, 5, 0), 12, 0.35),  # insula
    ((55, -25, -10), 18, 0.25),  # lateral temporal
    ((25, -18, -18), 12, 0.30),  # medial temporal
    ((12, -10, 8), 10, 0.25),  # deep grey matter
)
"""Logarithmic loss of density between 20 and 80 years."""
DISEASE_REGIONS: tuple[Region, ...] = (
    ((26, -20, -16), 9, 0.22),  # hippocampus
    ((48, -30, -22), 14, 0.12),  # inferior temporal
    ((8, -58, 30), 12, 0.14),  # precuneus
)
"""Logarithmic loss of density of a patient of mean severity."""

SITES = {"healthy": 10, "clinical": 6}
COLUMNS = ("participant_id", "age", "diagnosis", "severity", "ageing_speed", "site")


@dataclass(frozen=True)
class Anatomy:
    """Anatomy that all subjects share, on one grid."""

    spacing: float
    template: Array
    """Grey-matter density in [0, 1]."""
    ageing: Array
    disease: Array


@dataclass(frozen=True)
class Site:
    """A scanner and its subjects."""

    blur: float
    """Standard deviation in millimetres."""
    gamma: float
    """Exponent of the densities: contrast between tissues."""
    bias: Array
    """Slopes and curvatures of the logarithmic bias field along the axes (6,)."""
    noise: float
    """Standard deviation, in densities."""
    age: tuple[float, float]
    """Mean and standard deviation in years."""


def grid(spacing: float) -> tuple[tuple[int, int, int], Array]:
    """Shape and voxel-to-world affine (4, 4) of the MNI grid of CAT12's maps at a voxel size in millimetres.

    Raises:
        OptionError: The voxel size does not divide 180 and 216 mm, or leaves too few voxels for the network.
    """
    if not spacing > 0 or any(abs(e / spacing - round(e / spacing)) > 1e-9 for e in EXTENT) or spacing > 6:
        raise OptionError(
            f"--spacing {spacing:g}: 1, 1.5, 2, 3, 4, 4.5 or 6 mm, which fill the grid exactly, are expected"
        )
    x, y, z = (round(e / spacing) + 1 for e in EXTENT)
    affine = np.diag([-spacing, spacing, spacing, 1.0])
    affine[:3, 3] = ORIGIN
    return (x, y, z), affine


def build_anatomy(spacing: float) -> Anatomy:
    """Bring the template to the grid and draw the maps of both kinds of atrophy.

    Raises:
        OptionError: nilearn, which has the template, is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_gm_template
    except ImportError as error:
        raise OptionError(
            f"the synthetic cohort is made from a template of nilearn ({error}): {install_hint('nilearn', 'train')}"
        ) from error

    shape, affine = grid(spacing)
    image = load_mni152_gm_template(resolution=1)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
    world: Array = affine[:3, :3] @ indices + affine[:3, 3:]
    inverse = np.linalg.inv(image.affine)
    voxels = inverse[:3, :3] @ world + inverse[:3, 3:]
    density = ndimage.gaussian_filter(np.asarray(image.dataobj, dtype=np.float64), spacing / 2.355)  # FWHM: one voxel
    template = ndimage.map_coordinates(density, voxels, order=1).reshape(shape)
    positions = world.reshape(3, *shape)
    return Anatomy(
        spacing,
        template.clip(0, 1),
        AGE_EVERYWHERE + bumps(positions, AGE_REGIONS),
        bumps(positions, DISEASE_REGIONS),
    )


def bumps(positions: Array, regions: Sequence[Region]) -> Array:
    """Sum of Gaussians (D, H, W) at MNI coordinates (3, D, H, W), each in both hemispheres."""
    total = np.zeros(positions.shape[1:])
    for (x, y, z), radius, strength in regions:
        for side in (x, -x):
            centre = np.array([side, y, z]).reshape(3, 1, 1, 1)
            total += strength * np.exp(-((positions - centre) ** 2).sum(0) / (2 * radius**2))
    return total


def draw_site(rng: np.random.Generator, cohort: str) -> Site:
    """Draw a scanner: those of `healthy` see different ages, as studies do; those of `clinical` the same, elderly."""
    return Site(
        blur=rng.uniform(0.5, 3.0),
        gamma=rng.uniform(0.85, 1.15),
        bias=rng.normal(0, 0.06, 6),
        noise=rng.uniform(0.01, 0.04),
        age=(rng.uniform(22, 75), rng.uniform(6, 16)) if cohort == "healthy" else (70.0, 7.0),
    )


def draw_map(anatomy: Anatomy, site: Site, rng: np.random.Generator, loss: Array) -> npt.NDArray[np.float32]:
    """One subject's modulated grey-matter map (D, H, W).

    Args:
        anatomy: The template on its grid.
        site: The scanner.
        rng: Draws of this subject.
        loss: Logarithmic loss of density by age and disease (D, H, W).
    """
    shape, spacing = anatomy.template.shape, anatomy.spacing
    shift = np.stack([1.2 * smooth_field(rng, shape, spacing, 30) for _ in range(3)])  # millimetres, residual
    slopes = np.stack([np.stack(np.gradient(component, spacing)) for component in shift])
    jacobian = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3)).clip(0.3, 3)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) + shift / spacing
    individual = 0.08 * smooth_field(rng, shape, spacing, 25)
    atrophied = anatomy.template * np.exp(individual - loss)
    density = ndimage.map_coordinates(atrophied, voxels, order=1) * jacobian
    density = ndimage.gaussian_filter(density, site.blur / spacing) ** site.gamma
    density = density * np.exp(polynomial(shape, site.bias))
    brain = ndimage.binary_dilation(density > 0.05)
    noisy = density + brain * rng.normal(0, site.noise, shape)
    density_map: npt.NDArray[np.float32] = noisy.clip(0).astype(np.float32)
    return density_map


def polynomial(shape: Sequence[int], coefficients: Array) -> Array:
    """Field (D, H, W): slopes and curvatures along the three axes, which run from -1 to 1."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    slopes = sum(c * x for c, x in zip(coefficients[:3], axes, strict=True))
    curves = sum(c * (x**2 - 1 / 3) for c, x in zip(coefficients[3:], axes, strict=True))
    return np.asarray(slopes + curves)


def draw_subject(
    rng: np.random.Generator, cohort: str, index: int, sites: Sequence[Site], acceleration: float = 0.0
) -> dict[str, Any]:
    """One row of the table; in `clinical` every second subject is a patient, whatever site and age."""
    number = int(rng.integers(len(sites)))
    mean, deviation = sites[number].age
    age = float(np.clip(rng.normal(mean, deviation), *((18, 88) if cohort == "healthy" else (55, 88))))
    is_patient = cohort == "clinical" and index % 2 == 1
    severity = round(float(rng.uniform(0.5, 1.5)), 3) if is_patient else 0.0
    speed = float(np.exp(rng.normal(0, 0.2))) * (1 + acceleration * severity)
    return {
        "participant_id": f"{cohort}{index:05d}",
        "age": round(age, 2),
        "diagnosis": int(is_patient),
        "severity": severity,
        "ageing_speed": round(speed, 3),
        "site": f"{cohort}{number}",
    }


def log_loss(anatomy: Anatomy, subject: dict[str, Any]) -> Array:
    """Logarithmic loss of density (D, H, W): ageing that speeds up with the years, and the disease."""
    years = max(0.0, (subject["age"] - 20) / 60)
    aged = (years + years**2) / 2 * subject["ageing_speed"]
    loss: Array = aged * anatomy.ageing + subject["severity"] * anatomy.disease
    return loss


def write_cohort(out: Path, cohort: str, count: int, anatomy: Anatomy, seed: int, acceleration: float = 0.0) -> None:
    """Write `<cohort>.npy` (count, 1, D, H, W), its identifiers in order, and `<cohort>.csv`, each whole or not."""
    part = list(SITES).index(cohort)
    sites = [draw_site(np.random.default_rng([seed, part, 1, i]), cohort) for i in range(SITES[cohort])]
    subjects = []

    def write_maps(path: Path) -> None:
        shape = (count, 1, *anatomy.template.shape)
        open_memmap: Any = np.lib.format.open_memmap  # untyped in some releases
        maps = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for i in tqdm(range(count), desc=cohort, disable=None):
            rng = np.random.default_rng([seed, part, 0, i])
            subject = draw_subject(rng, cohort, i, sites, acceleration)
            site = sites[int(subject["site"].removeprefix(cohort))]
            maps[i, 0] = draw_map(anatomy, site, rng, log_loss(anatomy, subject))
            subjects.append(subject)
        maps.flush()

    def write_table(path: Path) -> None:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(subjects)

    def write_identifiers(path: Path) -> None:
        path.write_text("".join(f"{subject['participant_id']}\n" for subject in subjects))

    write_atomically(out / f"{cohort}.npy", write_maps)
    write_atomically(out / f"{cohort}.ids.txt", write_identifiers)
    write_atomically(out / f"{cohort}.csv", write_table)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cohort and its settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--healthy", type=int, default=600, help="subjects to pre-train on")
    parser.add_argument("--clinical", type=int, default=400, help="patients and controls together")
    parser.add_argument(
        "--spacing", type=float, default=6.0, help="voxel size in millimetres; 1.5 is the published grid"
    )
    parser.add_argument(
        "--acceleration",
        type=float,
        default=0.0,
        help="by which share the brain of a patient of mean severity ages faster; 0 for focal disease alone",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    args = parser.parse_args(argv)
    if not args.acceleration >= 0:
        raise OptionError(f"--acceleration {args.acceleration}: expected 0 or more")
    if args.healthy < 1 or args.clinical < 2:
        raise OptionError(f"--healthy {args.healthy} --clinical {args.clinical}: expected at least 1 and 2 subjects")
    grid(args.spacing)
    args.out.mkdir(parents=True, exist_ok=True)
    if there := sorted(p.name for p in args.out.iterdir()):
        raise OptionError(f"{args.out} is not empty ({', '.join(there[:3])}): name a new folder")
    anatomy = build_anatomy(args.spacing)
    for cohort, count in (("healthy", args.healthy), ("clinical", args.clinical)):
        write_cohort(args.out, cohort, count, anatomy, args.seed, args.acceleration)
    facts = {"synthetic": True, "generator": VERSION, "template": "mni_icbm152_gm_tal_nlin_sym_09a (nilearn)"}
    arguments = {"spacing": args.spacing, "seed": args.seed, "healthy": args.healthy, "clinical": args.clinical}
    arguments["acceleration"] = args.acceleration
    shape, affine = grid(args.spacing)
    arguments |= {"shape": shape, "affine": affine.tolist()}
    text = json.dumps({**facts, **arguments}, indent=2) + "\n"
    write_atomically(args.out / "cohort.json", lambda path: path.write_text(text))


if __name__ == "__main__":
    run_command(main)
