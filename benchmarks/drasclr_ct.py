"""What each step from a chest CT to DrasCLR's features takes: `python benchmarks/drasclr_ct.py [--json]`.

The CT is drawn, 512 x 512 x 300 voxels in a gzipped NIfTI: lungs of `drasclr_registration.py` in a body, with noise.
Weights are random, which changes no time. The steps are those of `zoo embed drasclr-cnn3d CT --out FOLDER` in one
process: a patient is one row, the mean over the 581 landmarks, which are fetched with the atlas' lung mask if the cache
lacks them. The table says by what the lungs are segmented, as `choose_segmenter` finds it here.

Seconds are of the processor, not of the clock, with ITK's threads as the environment says
(ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS); shares are of the whole run.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from drasclr_registration import PATIENTS, draw
from measuring import print_table
from nibabel.nifti1 import Nifti1Image

import zoo
from zoo.checkpoint import export_safetensors
from zoo.embedding import Cases, Embedder, embed_cohort
from zoo.entries.drasclr.atlas import atlas_mask
from zoo.entries.drasclr.contract import NAME
from zoo.entries.drasclr.ct.boxes import check_atlas, cut, locate
from zoo.entries.drasclr.ct.lung_masks import check_lungs
from zoo.entries.drasclr.ct.lungs import choose_segmenter, segment
from zoo.entries.drasclr.ct.registration import overlap, register
from zoo.entries.drasclr.ct.scan import place_scan, to_millimetres
from zoo.images import read_volume

STEPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "reading": (read_volume,),
    "checks of the atlas, the CT and the lungs": (check_atlas, place_scan, check_lungs),
    "lungs": (choose_segmenter, segment),
    "registration": (register,),
    "overlap with the atlas": (overlap,),
    "voxels of 1 mm": (to_millimetres,),
    "patches": (locate, cut),
    "network": (Embedder.embed,),
}
"""A step and what does it; the rest of a run is loading and writing."""
AIR, LUNG, TISSUE, NOISE = -1000, -850, 40, 25
"""HU of a drawn CT, and the standard deviation of its noise."""
MARGIN = (30.0, 45.0)
"""Body around the lungs in mm: to the right and left, to the front and back."""


def main() -> None:
    """Measure and print."""
    print_table(__doc__, measure, repeats=1, add_flags=add_flags)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--patient", type=int, default=0, choices=range(len(PATIENTS)), help="of those that are drawn")


def measure(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each step, the rest and the whole."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights, scan = folder / "random.safetensors", folder / "ct.nii.gz"
        export_safetensors(zoo.load_model(NAME, pretrained=False).state_dict(), weights)
        nibabel.save(chest(draw(atlas_mask(), PATIENTS[args.patient], args.patient + 1)), scan)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for i in range(args.repeats):
                spent = seconds_by_step(scan, weights, folder / f"features-{threads}-{i}")
                whole = spent["the whole"]
                for step, seconds in spent.items():
                    name = f"lungs, by {choose_segmenter('auto')}" if step == "lungs" else step
                    yield {"step": name, "threads": threads, "s of a processor": seconds, "share": seconds / whole}


def seconds_by_step(scan: Path, weights: Path, out: Path) -> dict[str, float]:
    """Embed a CT; the seconds of each step, of the rest, and of the whole."""
    profile = cProfile.Profile(time.process_time)
    with profile, redirect_stderr(io.StringIO()):  # it says how far it is
        done = embed_cohort(Embedder(NAME, checkpoint=weights), Cases(["ct"], [str(scan)], {}, None), out, workers=0)
    assert done.embedded == 1, done.failed
    stats: Any = pstats.Stats(profile)
    spent = {step: sum(cumulative(stats, each) for each in calls) for step, calls in STEPS.items()}
    return spent | {"the rest": stats.total_tt - sum(spent.values()), "the whole": stats.total_tt}


def cumulative(stats: Any, function: Callable[..., Any]) -> float:
    """Seconds in a function and what it calls."""
    code = function.__code__
    return float(stats.stats[code.co_filename, code.co_firstlineno, code.co_name][3])


def chest(lungs: Nifti1Image) -> Nifti1Image:
    """A CT of drawn lungs in HU: air, an elliptic body that is as long as the scan, the lungs in it, noise."""
    inside = np.asarray(lungs.dataobj) > 0
    sizes = nibabel.affines.voxel_sizes(lungs.affine)
    radii = []
    for axis, margin in enumerate(MARGIN):
        (places,) = np.nonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        middle, half = places[[0, -1]].mean(), np.ptp(places[[0, -1]]) / 2 + margin / sizes[axis]
        radii.append((np.arange(inside.shape[axis]) - middle) / half)
    body = np.add.outer(radii[0] ** 2, radii[1] ** 2) <= 1
    rng, values = np.random.default_rng(0), np.empty(inside.shape, np.int16)
    for k in range(inside.shape[2]):  # a slice at a time, for the memory
        drawn = np.where(inside[:, :, k], LUNG, np.where(body, TISSUE, AIR))
        values[:, :, k] = drawn + rng.normal(scale=NOISE, size=drawn.shape)
    made = Nifti1Image(values, lungs.affine)
    made.set_qform(lungs.affine, code=1)
    made.set_sform(lungs.affine, code=1)
    return made


if __name__ == "__main__":
    main()
