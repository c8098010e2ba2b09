r"""A synthetic cohort of lungs with emphysema, to run the recipes on without any download.

    python -m zoo.entries.drasclr.phantom --out cohort --subjects 80
    python -m zoo.entries.drasclr.data group --patches cohort/patch --out cohort/grouped_patch
    python -m zoo.entries.drasclr.pretrain --data cohort/grouped_patch --landmarks cohort/landmarks.npy --out run \
        --batch-size 16 --queue-size 32 --key-batches 2
    python -m zoo.entries.drasclr.embed --patches cohort/patch --landmarks cohort/landmarks.npy \
        --checkpoint run/last.pt --out features.npz
    python -m zoo.entries.drasclr.finetune --features features.npz --table cohort/subjects.csv --label severity \
        --out severity

Each subject is a small chest in HU at 1 mm: a body, two lungs with a gradient from front to back, branching vessels,
and emphysema as clusters of air-filled holes, more of them at the top; the share of the lung that they take is the
severity. Inflation, noise, sharpness and shape differ between subjects independently of severity. Subjects are drawn in
the grid of one atlas, so the landmarks need no registration. Sizes and densities have the order of magnitude of CT;
they are chosen, not fitted: no result on this cohort is a finding about lungs.

Files in OUT: `landmarks.npy` (L, 3) and `lung_mask.npy` of the atlas; `patch/<sid>_patch.npy` (L, 32, 32, 32) int16 HU;
`volume/<sid>.npy` and `truth/<sid>.npy` (D, H, W), the chest and the mask of its emphysema, of the last `--volumes`
subjects; `subjects.csv`; `cohort.json`.
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

from zoo.entries.drasclr.atlas import PATCH, STEP
from zoo.errors import OptionError
from zoo.training.args import run_command
from zoo.training.arrays import save_array

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

VERSION = 1
"""Version of the generator; any change of its drawings gets a new one."""

SHAPE = (144, 132, 168)
"""Voxels of 1 mm along z (feet to head), y (front to back) and x (right to left)."""
LUNGS = (((72, 64, 46), (62, 46, 30)), ((70, 66, 124), (58, 44, 27)))
"""Centre and half axes of both ellipsoids, in voxels."""
BODY = ((66, 84), (62, 82))
"""Centre and half axes of the trunk's cross-section, (y, x)."""
SOFT_TISSUE, AIR, VESSEL, HOLE = 40.0, -1000.0, 20.0, -975.0
"""HU."""
WORST = 0.35
"""Share of the lung that the most severe emphysema takes."""
LEAST_LUNG = 0.1
"""Least share of lung in a landmark's box (batmanlab/DrasCLR, preprocess/1_patchify_atlas.py)."""
COLUMNS = ("sid", "severity", "share", "fev1", "time", "event", "inflation", "noise", "blur")


@dataclass(frozen=True)
class Subject:
    """One chest with its truth and its row of the table."""

    volume: npt.NDArray[np.int16]
    """HU, (D, H, W)."""
    truth: Mask
    """Mask of the emphysema, (D, H, W)."""
    row: dict[str, Any]


def lungs(scale: Array, shift: Array) -> Mask:
    """Both lungs (D, H, W), their half axes scaled and their centres moved by (3,)."""
    places = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij", sparse=True)
    found = np.zeros(SHAPE, dtype=bool)
    for centre, half in LUNGS:
        terms = [((p - c - d) / (h * s)) ** 2 for p, c, d, h, s in zip(places, centre, shift, half, scale, strict=True)]
        found |= (terms[0] + terms[1] + terms[2]) <= 1
    return found


def landmarks(mask: Mask) -> npt.NDArray[np.int64]:
    """Lower corners (L, 3), in (x, y, z), of the boxes with enough lung: the rule of the authors' first step."""
    corners = [
        (x, y, z)
        for x in range(0, SHAPE[2] - PATCH, STEP)
        for y in range(0, SHAPE[1] - PATCH, STEP)
        for z in range(0, SHAPE[0] - PATCH, STEP)
        if mask[z : z + PATCH, y : y + PATCH, x : x + PATCH].mean() > LEAST_LUNG
    ]
    return np.array(corners, dtype=np.int64)


def draw_vessels(rng: np.random.Generator, lung: Mask) -> Mask:
    """Branching tubes (D, H, W) from the middle of the chest outwards, thinner at each branch."""
    tree = np.zeros(SHAPE, dtype=bool)
    for centre, _ in LUNGS:
        root = np.array([centre[0], centre[1], (centre[2] + SHAPE[2] / 2) / 2])
        outward = np.array([0.0, 0.0, np.sign(centre[2] - SHAPE[2] / 2)])
        branches = [(root, outward + rng.normal(0, 0.5, 3), 3.0) for _ in range(7)]
        while branches:
            start, direction, radius = branches.pop()
            direction = direction / np.linalg.norm(direction)
            end = start + direction * rng.uniform(9, 20) * (0.5 + radius / 3)
            draw_tube(tree, start, end, radius)
            inside = all(0 <= e < n for e, n in zip(end, SHAPE, strict=True)) and lung[tuple(end.astype(int))]
            if inside and radius > 0.9:
                branches += [(end, direction + rng.normal(0, 0.55, 3), radius * 0.78) for _ in range(2)]
    return tree & lung


def draw_tube(volume: Mask, start: Array, end: Array, radius: float) -> None:
    """Set the voxels within `radius` of a line."""
    reach = int(np.ceil(radius))
    offsets = np.argwhere(ball(radius)) - reach
    steps = np.linspace(start, end, 2 * int(np.linalg.norm(end - start)) + 2)
    places = (np.round(steps).astype(int)[:, None] + offsets[None]).reshape(-1, 3)
    places = places[((places >= 0) & (places < SHAPE)).all(1)]
    volume[tuple(places.T)] = True


def ball(radius: float) -> Mask:
    """Ball in the smallest cube that holds it."""
    reach = int(np.ceil(radius))
    axes = np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij")
    return np.asarray((np.stack(axes) ** 2).sum(0) <= radius**2, dtype=bool)


def draw_emphysema(rng: np.random.Generator, lung: Mask, share: float) -> Mask:
    """Holes (D, H, W) of 2 to 5 mm in clusters, until they take `share` of the lung; more of them at the top."""
    found = np.zeros(SHAPE, dtype=bool)
    wanted, inside = share * lung.sum(), np.argwhere(lung)
    top = np.exp((inside[:, 0] - SHAPE[0] / 2) / (SHAPE[0] / 4) * rng.uniform(0.2, 1.5))
    while found.sum() < wanted:
        centre = inside[rng.choice(len(inside), p=top / top.sum())]
        for place in centre + rng.normal(0, 9, (40, 3)):
            draw_tube(found, place, place, rng.uniform(2, 5))
        found &= lung
    return found


def draw_subject(rng: np.random.Generator, index: int) -> Subject:
    """Draw one chest; every fifth is healthy, the others' severity is uniform."""
    severity = 0.0 if index % 5 == 0 else float(rng.uniform(0.02, 1))
    lung = lungs(rng.uniform(0.9, 1.06, 3), rng.normal(0, 2, 3))
    truth = draw_emphysema(rng, lung, WORST * severity)
    inflation, noise, blur = rng.uniform(-40, 40), rng.uniform(12, 35), rng.uniform(0.5, 0.9)
    (cy, cx), (hy, hx) = BODY
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    chest = np.where(((y - cy) / hy) ** 2 + ((x - cx) / hx) ** 2 <= 1, SOFT_TISSUE, AIR)
    volume = np.broadcast_to(chest, SHAPE).copy()
    gradient = 45 * (np.arange(SHAPE[1])[None, :, None] - cy) / hy
    texture = 25 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 4) * (4**1.5 * 2 * np.pi**0.75)
    volume[lung] = (-850 + inflation + np.broadcast_to(gradient, SHAPE) + texture)[lung]
    volume[draw_vessels(rng, lung)] = VESSEL
    volume[truth] = HOLE
    volume = ndimage.gaussian_filter(volume, blur) + ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.5) * noise * 2
    share = float(truth.sum() / lung.sum())
    row = {
        "sid": f"phantom{index:04d}",
        "severity": round(severity, 4),
        "share": round(share, 4),
        "fev1": round(95 - 55 * severity + float(rng.normal(0, 8)), 2),
        **draw_survival(rng, severity),
        "inflation": round(inflation, 1),
        "noise": round(noise, 1),
        "blur": round(blur, 2),
    }
    return Subject(np.rint(volume.clip(-1024, 3071)).astype(np.int16), truth, row)


def draw_survival(rng: np.random.Generator, severity: float) -> dict[str, float]:
    """Years until death or the end of observation: exponential, the hazard growing fivefold with severity."""
    death, end = rng.exponential(12 / 5**severity), rng.uniform(3, 10)
    return {"time": round(float(min(death, end)), 3), "event": int(death < end)}


def cut(volume: npt.NDArray[np.int16], corners: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Patches (L, 32, 32, 32) at lower corners (L, 3) in (x, y, z)."""
    return np.stack([volume[z : z + PATCH, y : y + PATCH, x : x + PATCH] for x, y, z in corners])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cohort and its settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--subjects", type=int, default=80, help="number of subjects; default: %(default)s")
    parser.add_argument(
        "--volumes",
        type=int,
        default=5,
        help="number of last subjects whose chest and truth are kept; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    args = parser.parse_args(argv)
    if args.subjects < 1 or args.volumes < 0:
        raise OptionError(f"--subjects {args.subjects} --volumes {args.volumes}: at least 1 and 0 are expected")
    if args.out.is_dir() and (there := sorted(p.name for p in args.out.iterdir())):
        raise OptionError(f"{args.out} is not empty ({', '.join(there[:3])}): name a new folder")
    for name in ("patch", "volume", "truth"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    atlas = lungs(np.ones(3), np.zeros(3))
    corners = landmarks(atlas)
    save_array(args.out / "landmarks.npy", corners)
    save_array(args.out / "lung_mask.npy", atlas.astype(np.uint8))
    rows = []
    for i in tqdm(range(args.subjects), desc="subjects", disable=None):
        subject = draw_subject(np.random.default_rng([args.seed, i]), i)
        sid = subject.row["sid"]
        save_array(args.out / "patch" / f"{sid}_patch.npy", cut(subject.volume, corners))
        if i >= args.subjects - args.volumes:
            save_array(args.out / "volume" / f"{sid}.npy", subject.volume)
            save_array(args.out / "truth" / f"{sid}.npy", subject.truth.astype(np.uint8))
        rows.append(subject.row)
    with (args.out / "subjects.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    facts = {"synthetic": True, "generator": VERSION, "subjects": args.subjects, "seed": args.seed}
    (args.out / "cohort.json").write_text(
        json.dumps({**facts, "landmarks": len(corners), "shape": SHAPE}, indent=2) + "\n"
    )


if __name__ == "__main__":
    run_command(main)
