"""From a CT of the chest to its patches at the atlas' landmarks: the five steps of DrasCLR's authors, for one or many.

    python -m zoo.entries.drasclr.preprocess --image ct.nii.gz --out cohort
    python -m zoo.entries.drasclr.preprocess --subjects subjects.csv --out cohort

An image is a NIfTI file or a folder with one DICOM series; the table has columns sid, image and, where masks of the
lungs exist, mask, with paths from the table's folder on. The lungs are segmented (lungmask), the atlas' lungs are
brought onto them by an affine map (antspyx), the landmarks go along, the CT is resampled to 1 mm, and boxes of 32
voxels are cut along its axes: batmanlab/DrasCLR, preprocess/. With the authors' atlas this takes minutes a subject.

Files in OUT: `patch/<sid>_patch.npy` (L, 32, 32, 32) int16 HU, axes (z, y, x); `patch_loc/<sid>_patch_loc.npy` (L, 3),
where they were cut, (x, y, z) in the resampled and padded CT; `facts/<sid>.json`, what was done. Whoever is there is
not done again. Subjects that fail are named at the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from tqdm import tqdm

import zoo
from zoo.entries.drasclr import atlas
from zoo.entries.drasclr.arrays import save_array
from zoo.entries.drasclr.atlas import load_landmarks
from zoo.entries.drasclr.boxes import ANCHORS, check_atlas, cut, locate
from zoo.entries.drasclr.lung_masks import check_lungs, read_lungs
from zoo.entries.drasclr.lungs import SEGMENTERS, choose_segmenter, segment
from zoo.entries.drasclr.registration import ENGINES, LUNGS, Affine, check_overlap, choose_engine, overlap, register
from zoo.entries.drasclr.scan import PAD, import_itk, place_scan, to_millimetres
from zoo.entries.drasclr.subjects import Subject, check_names, read_subjects
from zoo.errors import InputContractError, OptionError, ZooError
from zoo.training.args import run_command
from zoo.training.runlog import write_atomically
from zoo.volumes import VolumeInput, read_volume, voxel_sizes

log = logging.getLogger("zoo")


@dataclass(frozen=True, eq=False)
class PatientPatches:
    """What the network looks at in one patient."""

    patches: npt.NDArray[np.int16]
    """`(L, 32, 32, 32)` HU from -1024 to 240, axes (z, y, x), in the order of the landmarks."""
    indices: npt.NDArray[np.int64]
    """`(L, 3)`, lower corners (x, y, z) in the CT at 1 mm with 60 voxels around it."""
    affine: Affine
    """From points of the atlas to the patient's."""
    facts: dict[str, Any]
    """What was done, as JSON takes it."""


def preprocess_ct(
    image: VolumeInput,
    *,
    landmarks: npt.NDArray[np.int64] | None = None,
    atlas_mask: Nifti1Image | None = None,
    lung_mask: VolumeInput | None = None,
    segmenter: str = "auto",
    engine: str = "auto",
    anchor: str = "corner",
) -> PatientPatches:
    """Cut a CT into the patches of the atlas' landmarks.

    Args:
        image: A CT in HU of both lungs, voxels of at most 5 mm, axes in any order: a path to NIfTI, a folder with one
            DICOM series, or a nibabel image.
        landmarks: `(L, 3)`, lower corners (x, y, z) in the atlas; None for the authors' 581.
        atlas_mask: The lungs of the atlas, see `atlas.atlas_mask`; None for the authors'.
        lung_mask: The lungs of the patient, see `lung_masks.read_lungs`; None to segment them.
        segmenter: "lungmask" as the authors, "threshold", or "auto", see `lungs.choose_segmenter`.
        engine: "antspyx" as the authors, "simpleitk", or "auto", see `registration.choose_engine`.
        anchor: "corner" puts a landmark's lower corner where the map says, as the authors, and as the published weights
            know it; "centre" its centre, which a map that scales or turns moves elsewhere.

    Raises:
        InputContractError: The image is no CT in HU, misses a lung, does not fit the atlas, or ends too far from a
            landmark; the mask does not fit; or landmarks and atlas do not.
        OptionError: There is no such segmenter, engine or anchor, or it is not installed.
        OfflineError: A file must be fetched and connections are forbidden; `DownloadError` if no source gave it.
        FileNotFoundError: A path does not exist.
    """
    if anchor not in ANCHORS:
        raise OptionError(f"anchor must be one of {', '.join(ANCHORS)}, not {anchor!r}")
    import_itk()  # what is missing is said before minutes are spent
    engine = choose_engine(engine)
    landmarks = load_landmarks() if landmarks is None else landmarks
    fixed = atlas.atlas_mask() if atlas_mask is None else atlas_mask
    check_atlas(landmarks, fixed)
    volume = read_volume(image)
    scan = place_scan(volume, fixed.affine)
    segmentation = "given" if lung_mask is not None else choose_segmenter(segmenter)
    lungs = segment(scan, segmentation) if lung_mask is None else read_lungs(read_volume(lung_mask), volume)
    millilitres = check_lungs(lungs, scan.source)
    moving = Nifti1Image(np.array([0, *LUNGS], np.int16)[np.asarray(lungs.dataobj)], lungs.affine)
    affine = register(fixed, moving, engine)
    fit = overlap(fixed, moving, affine)
    check_overlap(fit, scan.source)
    grid = to_millimetres(scan)
    indices = locate(landmarks, fixed.affine, affine, grid, anchor)
    facts = {
        "image": scan.source,
        "voxels": list(scan.values.shape),
        "spacing": voxel_sizes(scan.affine).round(6).tolist(),
        "segmentation": segmentation,
        "lungs_ml": {name: round(value, 1) for name, value in millilitres.items()},
        "engine": affine.engine,
        "atlas_to_patient": affine.matrix.tolist(),
        "overlap": fit,
        "anchor": anchor,
        "landmarks": digest(landmarks),
        "grid": {"voxels": list(grid.values.shape), "padding": PAD, "affine": grid.affine.tolist()},
        "versions": _versions(affine.engine, segmentation),
    }
    return PatientPatches(cut(grid, indices), indices, affine, facts)


def digest(landmarks: npt.NDArray[np.int64]) -> str:
    """Return what tells one set of landmarks from another: the sha256 of their numbers."""
    return hashlib.sha256(np.ascontiguousarray(landmarks, dtype="<i8").tobytes()).hexdigest()


def _versions(*used: str) -> dict[str, str]:
    packages = sorted({"simpleitk", *used} - {"given", "threshold"})
    return {"medssl-zoo": zoo.__version__} | {name: version(name) for name in packages}


def preprocess_cohort(
    subjects: Sequence[Subject],
    out: Path,
    *,
    landmarks: npt.NDArray[np.int64],
    atlas_mask: Nifti1Image,
    segmenter: str = "auto",
    engine: str = "auto",
    anchor: str = "corner",
) -> dict[str, str]:
    """Preprocess one subject after the other, and write what comes out; whoever is there already is left out.

    Segmenter and engine are chosen once, so that all subjects are done alike.

    Returns:
        Whom it failed for, and why.

    Raises:
        OptionError: OUT has subjects that were done otherwise, or an option is wrong.
    """
    segmentation = "given" if all(subject.mask for subject in subjects) else choose_segmenter(segmenter)
    wanted = {"engine": choose_engine(engine), "anchor": anchor, "landmarks": digest(landmarks)}
    done = {
        subject.sid
        for subject in subjects
        if _is_done(out, subject, wanted | {"segmentation": "given" if subject.mask else segmentation})
    }
    failures: dict[str, str] = {}
    for subject in tqdm([s for s in subjects if s.sid not in done], desc="subjects", disable=None):
        try:
            found = preprocess_ct(
                subject.image,
                landmarks=landmarks,
                atlas_mask=atlas_mask,
                lung_mask=subject.mask,
                segmenter=segmentation,
                engine=wanted["engine"],
                anchor=anchor,
            )
        except (FileNotFoundError, ZooError) as error:
            log.warning("%s failed: %s", subject.sid, error)
            failures[subject.sid] = str(error)
        else:
            _write(out, subject.sid, found)
    return failures


def _files(out: Path, sid: str) -> tuple[Path, Path, Path]:
    """Where a subject's patches, their places and the facts go."""
    return out / "patch" / f"{sid}_patch.npy", out / "patch_loc" / f"{sid}_patch_loc.npy", out / "facts" / f"{sid}.json"


def _is_done(out: Path, subject: Subject, wanted: dict[str, str]) -> bool:
    """Whether a subject is there, and done as is wanted now; warns where it was done from another image."""
    files = _files(out, subject.sid)
    if not all(file.is_file() for file in files):
        return False
    facts = json.loads(files[-1].read_text())
    if other := {name: facts.get(name) for name, value in wanted.items() if facts.get(name) != value}:
        raise OptionError(
            f"{out} has {subject.sid} with {', '.join(f'{name} {value}' for name, value in other.items())}, now asked "
            f"for {', '.join(f'{name} {wanted[name]}' for name in other)}: name another --out, or ask for the same"
        )
    if Path(facts["image"]).resolve() != subject.image.resolve():
        log.warning(
            "%s is in %s already, from %s, and is left alone: what is another patient's needs another name than %s",
            subject.sid,
            out,
            facts["image"],
            subject.image,
        )
    return True


def _write(out: Path, sid: str, found: PatientPatches) -> None:
    """Write a subject's files, the facts last: they stand for all."""
    patches, indices, facts = _files(out, sid)
    save_array(patches, found.patches)
    save_array(indices, found.indices)
    write_atomically(facts, lambda path: path.write_text(json.dumps({"sid": sid, **found.facts}, indent=2) + "\n"))


def main(argv: Sequence[str] | None = None) -> None:
    """Preprocess one CT, or those of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", type=Path, help="one CT: NIfTI, or a folder with a DICOM series")
    which.add_argument("--subjects", type=Path, help="CSV with columns sid, image and, where there are any, mask")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sid", help="what to call the subject of --image; default: its name")
    parser.add_argument("--lung-mask", type=Path, help="lungs of --image: 1 right and 2 left; default: segmented")
    parser.add_argument("--segmenter", default="auto", choices=SEGMENTERS, help="of the lungs; default: %(default)s")
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="of the registration; default: %(default)s")
    parser.add_argument("--anchor", default="corner", choices=ANCHORS, help="of the boxes; default: %(default)s")
    parser.add_argument("--landmarks", type=Path, help="of another atlas, .npy; default: the authors'")
    parser.add_argument("--atlas-mask", type=Path, help="its lungs, 50 and 100, NIfTI; default: the authors'")
    args = parser.parse_args(argv)
    if args.subjects is not None:
        if args.sid or args.lung_mask:
            raise OptionError("--sid and --lung-mask are for --image; in a table they are columns, sid and mask")
        subjects = read_subjects(args.subjects)
    else:
        sid = args.sid or re.sub(r"\.nii(\.gz)?$", "", args.image.resolve().name)
        check_names([sid], "--sid" if args.sid else "--image without --sid")
        subjects = [Subject(sid, args.image, args.lung_mask)]
    failures = preprocess_cohort(
        subjects,
        args.out,
        landmarks=load_landmarks(args.landmarks),
        atlas_mask=atlas.atlas_mask(args.atlas_mask),
        segmenter=args.segmenter,
        engine=args.engine,
        anchor=args.anchor,
    )
    if failures:
        lines = "".join(f"\n  {sid}: {reason}" for sid, reason in failures.items())
        raise InputContractError(f"{len(failures)} of {len(subjects)} subject(s) failed:{lines}")


if __name__ == "__main__":
    run_command(main)
