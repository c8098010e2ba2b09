"""Files of DrasCLR's patches: one per subject, as they are cut, and one per landmark, as training reads them.

Both layouts are those of batmanlab/DrasCLR, `preprocess/4_patchify_images.py` and `5_group_patch.py`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from zoo.entries.drasclr.atlas import PATCH
from zoo.entries.drasclr.contract import WINDOW
from zoo.errors import InputContractError, OptionError
from zoo.files import replacing, write_atomically
from zoo.training.arrays import read_array

log = logging.getLogger("zoo")

SIDES = (PATCH,) * 3
SUFFIX = "_patch.npy"
"""Suffix of the subject in the name of its file."""
SUBJECTS = "subjects.txt"
"""File beside the groups with their subjects, one a line, in order. The authors' code does not write it."""


def choose_subjects(patches: Path, subjects: Sequence[str] | None = None) -> list[str]:
    """Return the subjects of a folder of `<sid>_patch.npy`, sorted, or those asked for.

    Raises:
        OptionError: There are no subjects, or one is repeated.
        InputContractError: A subject has no file.
    """
    found = sorted(file.name.removesuffix(SUFFIX) for file in patches.glob(f"*{SUFFIX}"))
    chosen = found if subjects is None else list(subjects)
    if not chosen:
        if found:
            raise OptionError(f"no subjects are named; files <sid>{SUFFIX} in {patches}: {len(found)}")
        raise OptionError(
            f"there are no files <sid>{SUFFIX} in {patches}: python -m zoo.entries.drasclr.preprocess writes them to "
            "OUT/patch"
        )
    if twice := [sid for sid, times in Counter(chosen).items() if times > 1]:
        raise OptionError(f"{len(twice)} of the subjects are named twice: {', '.join(twice[:5])}")
    if missing := sorted(set(chosen) - set(found)):
        raise InputContractError(
            f"{len(missing)} of {len(chosen)} subjects have no file <sid>{SUFFIX} in {patches}: "
            f"{', '.join(missing[:10])}. Cut their patches with zoo.entries.drasclr.preprocess, or leave them out"
        )
    return chosen


def facts_file(patches: Path, sid: str) -> Path:
    """File with the record of how a subject's patches were cut, in the folder beside theirs."""
    return patches.parent / "facts" / f"{sid}.json"


def read_facts(file: Path) -> dict[str, Any]:
    """Read such a record; where it names no registration it is from before there were two."""
    return {"registration": "published"} | dict(json.loads(file.read_text()))


def registration_in(record: Path) -> str:
    """Return the registration that a record names, with its engine: "fast by simpleitk"."""
    facts = read_facts(record)
    return f"{facts['registration']} by {facts['engine']}" if "engine" in facts else str(facts["registration"])


def registration_of(patches: Path, subjects: Iterable[str]) -> dict[str, str]:
    """Return `{"registration": ...}`, that of these subjects' patches, for the facts of what is made of them.

    Empty where no subject has a record. Warns where some were registered one way and some the other.
    """
    found = {sid: registration_in(file) for sid in subjects if (file := facts_file(patches, sid)).is_file()}
    counts = Counter(found.values())
    if len(counts) > 1:
        said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        log.warning(
            "the patches in %s were cut with different registrations (%s subjects): differences between these subjects "
            "may come from that. Cut all with one --registration",
            patches,
            said,
        )
    return {"registration": " and ".join(sorted(counts))} if counts else {}


def group_file(folder: Path, landmark: int) -> Path:
    """File of one landmark's patches."""
    return folder / f"patch_loc_{landmark}.npy"


def group(patches: Path, out: Path, *, subjects: Sequence[str] | None = None, at_once: int = 48) -> None:
    """Turn one file per subject into one file per landmark, int16 HU.

    Only one subject's part is held in memory; existing files are not written again. NaN becomes -1024, as the authors
    have it, and numbers with a fraction the nearest integer.

    Args:
        patches: Folder of `<sid>_patch.npy`.
        out: Folder for `patch_loc_<i>.npy` and `subjects.txt`.
        subjects: Which subjects, in this order; None for all, sorted.
        at_once: Files written at the same time; every subject's file is opened once for each such set.

    Raises:
        OptionError: There are no subjects, one is repeated, OUT has groups of other subjects, or `at_once` is below 1.
        InputContractError: A subject has no file, another number or size of patches than the first, or values that do
            not fit int16. The message names the subject.
    """
    if at_once < 1:
        raise OptionError(f"--at-once {at_once}: at least 1 is expected")
    chosen = choose_subjects(patches, subjects)
    count = _check_shapes(patches, chosen)
    registration_of(patches, chosen)
    if any(out.glob("patch_loc_*.npy")) and grouped_subjects(out) != chosen:
        raise OptionError(
            f"{out} has groups of other subjects than the {len(chosen)} in {patches}, in another order, or without "
            f"{SUBJECTS}: name another --out"
        )
    write_atomically(out / SUBJECTS, lambda file: file.write_text("".join(f"{sid}\n" for sid in chosen)))
    left = [i for i in range(count) if not group_file(out, i).exists()]
    for first in tqdm(range(0, len(left), at_once), desc="landmarks", unit=f"x{at_once}", disable=None):
        _write_groups(patches, out, chosen, left[first : first + at_once])


def _check_shapes(patches: Path, subjects: Sequence[str]) -> int:
    """Number of landmarks, the same for all subjects."""
    shapes = {sid: open_patches(patches / f"{sid}{SUFFIX}").shape for sid in subjects}
    expected = shapes[subjects[0]]
    if wrong := [sid for sid, shape in shapes.items() if shape != expected or not shape[0]]:
        raise InputContractError(
            f"{len(wrong)} of {len(subjects)} subjects have other patches than {subjects[0]}, {expected}: "
            f"{', '.join(f'{sid} {shapes[sid]}' for sid in wrong[:5])}. Cut them again, all at the same landmarks"
        )
    return int(expected[0])


def _write_groups(patches: Path, out: Path, subjects: Sequence[str], landmarks: Sequence[int]) -> None:
    """Fill the files of some landmarks, subject after subject, then give them their names."""
    write_header: Any = np.lib.format.write_array_header_1_0  # untyped in some releases
    header = {"descr": "<i2", "fortran_order": False, "shape": (len(subjects), *SIDES)}
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(group_file(out, i))) for i in landmarks]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for file in files:
            write_header(file, header)
        for sid in subjects:
            part = open_patches(patches / f"{sid}{SUFFIX}")[landmarks]
            for file, patch in zip(files, _as_int16(part, sid), strict=True):
                file.write(patch.tobytes())


def _as_int16(patches: npt.NDArray[Any], sid: str) -> npt.NDArray[np.int16]:
    if patches.dtype.kind == "f":
        patches = np.rint(np.where(np.isnan(patches), WINDOW[0], patches))
    limits = np.iinfo(np.int16)
    least, most = patches.min(), patches.max()
    if least < limits.min or most > limits.max:
        raise InputContractError(f"subject {sid}: values from {least} to {most} do not fit int16; HU are expected")
    return patches.astype("<i2")


def open_patches(file: Path) -> npt.NDArray[Any]:
    """Map a file of patches (n, 32, 32, 32), so that only the part that is used is read.

    Raises:
        InputContractError: The file is missing, cut short, or does not hold real numbers of that shape.
    """
    array = read_array(file, "patches", is_mapped=True)
    if array.shape[1:] != SIDES or array.dtype.kind not in "iuf":
        raise InputContractError(f"{file} holds {array.dtype} {array.shape}; real numbers (n, 32, 32, 32) are expected")
    return array


open_group = lru_cache(maxsize=64)(open_patches)
"""`open_patches` for files that many samples are read from, one after the other."""


def grouped_subjects(folder: Path) -> list[str]:
    """Return the subjects of a folder of groups, in order; empty where it does not list them."""
    file = folder / SUBJECTS
    return file.read_text().splitlines() if file.is_file() else []
