"""The data sets that GLCL was made for: the layout of their files, and the meaning of their labels.

Sizes and spacings as in krishnabits001/domain_specific_cl (experiment_init/), layouts as there and in the archives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import InputContractError, OptionError
from zoo.training.table import check_columns, read_table

SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class DataSet:
    """Facts about a collection of volumes."""

    name: str
    structures: tuple[str, ...]
    """Names of the labels 1, 2, ...; 0 is the background."""
    size: int
    """Side of the network's slices in pixels."""
    spacing: float
    """Side of their pixels in mm."""
    layout: tuple[tuple[str, str], ...] = ()
    """Paths of an image and of its mask without suffix, `*` for the volume's name; the first that exists counts.

    Every further `*` is the same name.
    """
    digits: int = 0
    """Length that a name is filled up to with zeros."""
    values: tuple[int, ...] = ()
    """Values in masks for the labels 1, 2, ..., where they differ from these."""
    channel: int | None = None
    """Channel to take of files with a fourth axis; None where there is no such axis."""
    orientation: str = "LP"
    """Directions of the axes of its axial slices, to which volumes are turned; see `transforms.stacks.turn_of`."""

    @property
    def num_classes(self) -> int:
        """Structures and background."""
        return len(self.structures) + 1


DATASETS = {
    "acdc": DataSet(
        "acdc",
        ("right ventricle", "myocardium", "left ventricle"),
        size=192,
        spacing=1.36719,
        layout=tuple(
            (f"patient*/patient*_{frame}", f"patient*/patient*_{frame}_gt") for frame in ("frame01", "frame04")
        ),
    ),
    "prostate": DataSet(
        "prostate",
        ("peripheral zone", "transition zone"),
        size=192,
        spacing=0.625,
        layout=(("*/img", "*/mask"), ("imagesTr/prostate_*", "labelsTr/prostate_*")),
        digits=3,
        channel=0,  # T2; the other is the diffusion coefficient
        orientation="RA",
    ),
    "mmwhs": DataSet(
        "mmwhs",
        (
            "myocardium",
            "left atrium",
            "left ventricle",
            "right atrium",
            "right ventricle",
            "ascending aorta",
            "pulmonary artery",
        ),
        size=160,
        spacing=1.5,
        layout=(("*/img", "*/seg"), ("mr_train_*_image", "mr_train_*_label")),
        values=(205, 420, 500, 550, 600, 820, 850),
    ),
}
"""ACDC (end-diastole: frame 1, or 4 where there is no such file), Decathlon's Task05_Prostate, MM-WHS (MR).

The authors kept the axes of the files. The matrices that scripts/create_cropped_imgs.py writes tell the axes of the
first two; for MM-WHS nothing does, and those of ACDC are this zoo's choice.
"""


@dataclass(frozen=True)
class Case:
    """The files of one volume."""

    name: str
    image: Path
    mask: Path | None = None


def find_cases(root: str | Path, dataset: DataSet) -> list[Case]:
    """Find the volumes in a folder with the data set's layout; they are sorted by name.

    Raises:
        OptionError: The folder does not exist, or holds no volume.
    """
    root = Path(root)
    if not root.is_dir():
        raise OptionError(f"the folder {root} does not exist")
    found: dict[str, Case] = {}
    for image, mask in dataset.layout:
        for suffix in SUFFIXES:
            for path in sorted(root.glob(image + suffix)):
                stem = path.relative_to(root).as_posix().removesuffix(suffix)
                match = re.fullmatch(_pattern(image), stem)
                if match is None:
                    continue
                name = match["name"].zfill(dataset.digits)
                found.setdefault(name, Case(name, path, _existing(root / mask.replace("*", match["name"]))))
    if not found:
        wanted = " or ".join(image.replace("*", "<name>") + SUFFIXES[0] for image, _ in dataset.layout)
        raise OptionError(f"{root} holds no volume of {dataset.name}: {wanted} is expected; for others give --table")
    return [found[name] for name in sorted(found)]


def _pattern(template: str) -> str:
    """A layout as a regular expression: the first `*` is the name, later ones are the same."""
    first, *rest = map(re.escape, template.split("*"))
    return first + "(?P<name>[^/]+)" + "(?P=name)".join(rest)


def _existing(stem: Path) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := Path(f"{stem}{suffix}")).is_file()), None)


def read_cases(table: str | Path, root: str | Path) -> list[Case]:
    """Read volumes from a table with the columns `name`, `image` and, where there are masks, `mask`.

    Args:
        table: CSV or TSV.
        root: Folder that the files are relative to.

    Raises:
        OptionError: The table does not exist, it lacks columns, or a name is repeated.
        InputContractError: Files do not exist; all are named.
    """
    rows = read_table(Path(table))
    check_columns(rows, ("name", "image"), Path(table))
    cases = [
        Case(row["name"].strip(), Path(root) / row["image"].strip(), Path(root) / mask if mask else None)
        for row in rows
        for mask in [row.get("mask", "").strip()]
    ]
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"{table}: {len(twice)} name(s) are in several rows (first: {', '.join(twice[:3])})")
    files = [file for case in cases for file in (case.image, case.mask) if file is not None]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InputContractError(
            f"{len(missing)} of {len(files)} files that {table} lists do not exist: {', '.join(missing[:10])}. Give "
            f"paths relative to {root}"
        )
    return cases


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Return the volumes with these names, in their order.

    Raises:
        OptionError: Some are missing.
    """
    known = {case.name: case for case in cases}
    if absent := [name for name in names if name not in known]:
        raise OptionError(
            f"{len(absent)} of {len(names)} volume(s) asked for are missing: {', '.join(absent[:10])}; there are "
            f"{len(known)}, from {cases[0].name} to {cases[-1].name}. Name some of these (as 001-006,012), or all"
        )
    return [known[name] for name in names]
