"""Lists of volumes, as the Medical Segmentation Decathlon has them: their parts, their files and their labels.

Lists are JSON with sections `training`, `validation` and, where there are labels, `test`. Each entry has an `image` and
the further files of its task (`label`), relative to a folder; `labels` may name the classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import InputContractError, OptionError
from zoo.messages import first_names

ORGANS = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
"""Labels of BTCV, in their order."""
SECTIONS = {"train": "training", "val": "validation", "test": "test"}

Files = dict[str, Path]
"""Name of a file in the list ("image", "label") -> its path."""
PATIENT = r"^volume-covid19-A-\d+"
"""Patient in the file names of TCIA's "CT Images in COVID-19": all days and series of one patient begin alike."""


def read_datalists(
    path: str | Path, sections: Sequence[str], root: str | Path, keys: Sequence[str] = ("image",)
) -> dict[str, list[Files]]:
    """Read sections of a list of volumes; one that the list lacks is empty.

    Args:
        path: JSON, an object of sections. An entry may be a text instead of an object: the path of an image.
        sections: Their names.
        root: Folder that the files are relative to.
        keys: Files that each entry must have; others are left out.

    Raises:
        OptionError: The list does not exist or is not one, or entries lack files or name one twice in a section.
        InputContractError: Files do not exist; the message names all of them.
    """
    content = _read_json(Path(path))
    found = {name: _entries(content.get(name, []), name, Path(path), Path(root), keys) for name in sections}
    files = dict.fromkeys(file for entries in found.values() for entry in entries for file in entry.values())
    if missing := [str(file) for file in files if not file.exists()]:
        raise InputContractError(
            f"{len(missing)} of {len(files)} files that {path} lists do not exist: {first_names(missing, 10)}. The "
            f"paths in a list are relative to the folder of the data, {root}"
        )
    return found


def read_datalist(path: str | Path, section: str, root: str | Path, keys: Sequence[str] = ("image",)) -> list[Files]:
    """Read one section of a list of volumes, as `read_datalists` does.

    Raises:
        OptionError: As there, or the section is missing or empty.
        InputContractError: Files do not exist; the message names all of them.
    """
    entries = read_datalists(path, (section,), root, keys)[section]
    if not entries:
        there = [name for name, part in _read_json(Path(path)).items() if isinstance(part, list)]
        raise OptionError(f"{path} lists nothing under {section!r}; its sections are: {', '.join(there) or 'none'}")
    return entries


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OptionError(f"the list {path} does not exist")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OptionError(f"cannot read {path} as a list (JSON is expected): {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f'{path} holds a {type(content).__name__}: sections, {{"training": [...]}}, are expected')
    return content


def _entries(found: Any, section: str, path: Path, root: Path, keys: Sequence[str]) -> list[Files]:
    if not isinstance(found, list):
        raise OptionError(f"{path}, section {section!r}: a list of entries is expected, not {type(found).__name__}")
    entries: list[Any] = [{"image": entry} if isinstance(entry, str) else entry for entry in found]
    problems = [
        f"entry {i} has no {key!r}"
        for i, entry in enumerate(entries)
        for key in keys
        if not (isinstance(entry, dict) and isinstance(entry.get(key), str) and entry[key])
    ]
    if not problems:
        times = Counter(entry[key] for entry in entries for key in keys)
        problems = [f"{file} is listed {count} times" for file, count in times.items() if count > 1]
    if problems:
        rest = f"; ... ({len(problems)} in all)" if len(problems) > 10 else ""
        raise OptionError(f"{path}, section {section!r}: {'; '.join(problems[:10])}{rest}")
    return [{key: root / entry[key] for key in keys} for entry in entries]


def of_training_patients(training: Sequence[Files], validation: Sequence[Files], patient: str = PATIENT) -> list[Files]:
    """Return the validation volumes whose patient has training volumes, or that are training volumes themselves.

    TCIA's list has 33 such volumes of 171, of 23 patients.

    Args:
        training: Entries of the list.
        validation: Others.
        patient: Regular expression; its match in an image's name is the patient. A name without a match is a patient by
            itself.

    Raises:
        OptionError: `patient` is not a regular expression.
    """
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise OptionError(f"{patient!r} is not a regular expression for names of files: {error}") from error

    def owner(entry: Files) -> str:
        match = pattern.search(entry["image"].name)
        return match.group() if match and match.group() else str(entry["image"].resolve())

    seen = {owner(entry) for entry in training}
    return [entry for entry in validation if owner(entry) in seen]


def read_cases(path: str | Path, root: str | Path, labelled: int = 0) -> dict[str, list[Case]]:
    """Read the cases of each part: `train`, and `val` and `test` where the list has them.

    A section `test` whose entries lack labels, as in BTCV, is left out.

    Args:
        path: JSON list.
        root: Folder that its files are relative to.
        labelled: Training volumes to take, the first of the list; 0 for all.

    Raises:
        OptionError: The list does not exist or is not one, entries lack image or label, or there are fewer than
            `labelled`.
        InputContractError: Files do not exist, all of which are named; or a volume is in two parts.
    """
    keys = ("image", "label")
    sections = [name for name in SECTIONS.values() if name != "test" or _has_labels(Path(path))]
    found = read_datalists(path, sections, root, keys)
    read_datalist(path, SECTIONS["train"], root, keys)  # raises where it is empty
    parts = {
        part: [Case(entry["image"], entry["label"]) for entry in found[section]]
        for part, section in SECTIONS.items()
        if found.get(section)
    }
    judged = [case for part in parts if part != "train" for case in parts[part]]
    if twice := sorted(str(case.image) for case in parts["train"] if case in judged):
        raise InputContractError(
            f"{path}: {len(twice)} training volumes are also judged: {first_names(twice, 10)}. Leave each in one part"
        )
    if labelled > len(parts["train"]):
        raise OptionError(f"--labelled {labelled}: {path} lists {len(parts['train'])} training volumes")
    parts["train"] = parts["train"][: labelled or None]
    return parts


def class_names(path: str | Path, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes, background first: those in the list, else BTCV's for 14 classes, else numbers.

    Raises:
        OptionError: The list names more or fewer.
    """
    named = json.loads(Path(path).read_text("utf-8")).get("labels")
    if not isinstance(named, dict):
        return ORGANS if num_classes == len(ORGANS) else tuple(f"class {i}" for i in range(num_classes))
    if set(named) != {str(i) for i in range(num_classes)}:
        raise OptionError(
            f"{path} names the labels {', '.join(named)}: 0 to {num_classes - 1} are expected for --num-classes "
            f"{num_classes}, which counts the background too"
        )
    return tuple(str(named[str(i)]) for i in range(num_classes))


def _has_labels(path: Path) -> bool:
    """Whether an entry of the section `test` has a label; errors of the list are left to `read_datalists`."""
    try:
        entries: Any = json.loads(path.read_text("utf-8"))["test"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(entries, list) and any(isinstance(entry, dict) and "label" in entry for entry in entries)


@dataclass(frozen=True)
class Case:
    """One labelled volume."""

    image: Path
    """NIfTI in HU, or a folder with a DICOM series."""
    label: Path
    """NIfTI of whole numbers, 0 for background, on the grid of the image."""
