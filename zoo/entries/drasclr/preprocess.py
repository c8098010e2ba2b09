"""Cut the CTs of a cohort, or one CT, into patches at the atlas' landmarks; `ct.patient` has the steps.

    python -m zoo.entries.drasclr.preprocess --image ct.nii.gz --out cohort
    python -m zoo.entries.drasclr.preprocess --table subjects.csv --out cohort

An image is a NIfTI file or a folder with one DICOM series; the table has columns sid, image and, where masks of the
lungs exist, mask, with paths relative to the table's folder. With the authors' atlas this takes minutes a subject;
`--registration published`, the authors' own schedule, adds some 25 minutes of a processor.

Files in OUT: `patch/<sid>_patch.npy` (L, 32, 32, 32) int16 HU, axes (z, y, x); `patch_loc/<sid>_patch_loc.npy` (L, 3),
their first voxels (x, y, z) in the resampled and padded CT; `facts/<sid>.json`, a record of the steps. With
--keep-volumes also that CT, `volume/<sid>.npy` (D, H, W) int16 HU at 1 mm, axes (z, y, x), and `lungs/<sid>.npy` (D, H,
W), 1 in the right lung and 2 in the left, which `zoo.entries.drasclr.dense` maps: some 300 MB a subject.

Finished subjects are not done again, unless their volumes are asked for and missing. Subjects that fail are named at
the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Image
from tqdm import tqdm

from zoo.entries.drasclr import atlas
from zoo.entries.drasclr.atlas import load_landmarks
from zoo.entries.drasclr.cohort import Subject, check_names, read_subjects
from zoo.entries.drasclr.ct.boxes import ANCHORS
from zoo.entries.drasclr.ct.lungs import SEGMENTERS, choose_segmenter
from zoo.entries.drasclr.ct.patient import PatientPatches, digest, preprocess_ct
from zoo.entries.drasclr.ct.registration import ENGINES, REGISTRATIONS, choose_engine
from zoo.entries.drasclr.patches import SUFFIX, facts_file, read_facts
from zoo.errors import InputContractError, OptionError, ZooError
from zoo.files import write_atomically
from zoo.messages import listed
from zoo.training.args import in_new_words, run_command
from zoo.training.arrays import save_array

log = logging.getLogger("zoo")


def preprocess_cohort(
    subjects: Sequence[Subject],
    out: Path,
    *,
    landmarks: npt.NDArray[np.int64],
    atlas_mask: Nifti1Image,
    segmenter: str = "auto",
    registration: str = "fast",
    engine: str = "auto",
    anchor: str = "corner",
    keep_volumes: bool = False,
) -> dict[str, str]:
    """Preprocess one subject after the other and write their files; finished subjects are left out.

    Segmenter and engine are chosen once, so that all subjects are done alike.

    Returns:
        Failed subjects, with the reasons.

    Raises:
        OptionError: OUT has subjects that were done with other options, or an option is wrong.
    """
    segmentation = "given" if all(subject.mask for subject in subjects) else choose_segmenter(segmenter)
    engine = choose_engine(engine, registration)
    wanted = {"registration": registration, "engine": engine, "anchor": anchor, "landmarks": digest(landmarks)}
    done = {
        subject.sid
        for subject in subjects
        if _is_done(out, subject, wanted | {"segmentation": "given" if subject.mask else segmentation}, keep_volumes)
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
                registration=registration,
                engine=engine,
                anchor=anchor,
                keep_volume=keep_volumes,
            )
        except (FileNotFoundError, ZooError) as error:
            if len(subjects) > 1:  # a single failure is reported at the end
                log.warning("%s failed: %s", subject.sid, error)
            failures[subject.sid] = str(error)
        else:
            _write(out, subject.sid, found)
    return failures


def _files(out: Path, sid: str) -> tuple[Path, Path, Path]:
    """Files of a subject's patches, their places and the facts."""
    patches = out / "patch"
    return patches / f"{sid}{SUFFIX}", out / "patch_loc" / f"{sid}_patch_loc.npy", facts_file(patches, sid)


def _volumes(out: Path, sid: str) -> tuple[Path, Path]:
    """Files of a subject's CT at 1 mm and its lungs."""
    return out / "volume" / f"{sid}.npy", out / "lungs" / f"{sid}.npy"


def _is_done(out: Path, subject: Subject, wanted: dict[str, str], keep_volumes: bool) -> bool:
    """Whether all files of a subject exist, made with the wanted options.

    Warns where they were made from another image; they are left alone then, even if some lack.
    """
    files = _files(out, subject.sid)
    if not all(file.is_file() for file in files):
        return False
    facts = read_facts(files[-1])
    if other := {name: facts.get(name) for name, value in wanted.items() if facts.get(name) != value}:
        raise OptionError(
            f"{out} has {subject.sid} with {', '.join(f'{name} {value}' for name, value in other.items())}, but "
            f"{', '.join(f'{name} {wanted[name]}' for name in other)} was asked for: give another --out, or the same"
        )
    if Path(facts["image"]).resolve() != subject.image.resolve():
        log.warning(
            "%s is already in %s, from %s, and is left alone: if %s is of another patient, give it another name",
            subject.sid,
            out,
            facts["image"],
            subject.image,
        )
        return True
    return not keep_volumes or all(file.is_file() for file in _volumes(out, subject.sid))


def _write(out: Path, sid: str, found: PatientPatches) -> None:
    """Write a subject's files, the facts last: they mean that all are there."""
    patches, indices, facts = _files(out, sid)
    save_array(patches, found.patches)
    save_array(indices, found.indices)
    for file, array in zip(_volumes(out, sid), (found.volume, found.lungs), strict=True):
        if array is not None:
            save_array(file, array)
    write_atomically(facts, lambda path: path.write_text(json.dumps({"sid": sid, **found.facts}, indent=2) + "\n"))


def main(argv: Sequence[str] | None = None) -> None:
    """Preprocess one CT, or those of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", type=Path, help="one CT: NIfTI, or a folder with a DICOM series")
    which.add_argument("--table", type=Path, help="CSV with columns sid, image and, where there are any, mask")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sid", help="name of the subject of --image; default: that of the file")
    parser.add_argument("--lung-mask", type=Path, help="lungs of --image: 1 right and 2 left; default: segmented")
    parser.add_argument(
        "--segmenter", default="auto", choices=SEGMENTERS, help="segmenter of the lungs; default: %(default)s"
    )
    parser.add_argument(
        "--registration",
        default="fast",
        choices=REGISTRATIONS,
        help="fast, or published for the authors' schedule, some 25 minutes; default: %(default)s",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        help="what registers: simpleitk, or for published also antspyx, which auto takes where it is installed",
    )
    parser.add_argument("--anchor", default="corner", choices=ANCHORS, help="anchor of the boxes; default: %(default)s")
    parser.add_argument("--keep-volumes", action="store_true", help="write the CTs at 1 mm and their lungs too")
    parser.add_argument("--landmarks", type=Path, help="landmarks of another atlas, .npy; default: the authors'")
    parser.add_argument(
        "--atlas-mask", type=Path, help="lungs of another atlas, 50 and 100, NIfTI; default: the authors'"
    )
    args = parser.parse_args(in_new_words(argv, {"--subjects": "--table"}))
    if args.table is not None:
        if args.sid or args.lung_mask:
            raise OptionError("--sid and --lung-mask are for --image; in a table they are columns, sid and mask")
        subjects = read_subjects(args.table)
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
        registration=args.registration,
        engine=args.engine,
        anchor=args.anchor,
        keep_volumes=args.keep_volumes,
    )
    if failures:
        lines = listed(f"{sid}: {reason}" for sid, reason in failures.items())
        raise InputContractError(f"{len(failures)} of {len(subjects)} subject(s) failed:{lines}")


if __name__ == "__main__":
    run_command(main)
