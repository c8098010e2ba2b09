"""Lists of the radiographs that CAiD's recipes use, with the labels or the mask of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zoo.errors import InputContractError, OptionError
from zoo.images import PIL_FORMATS, is_dicom, read_dataset, refused
from zoo.training.table import read_table

MASK_SUFFIXES = (".png", ".jpg", ".jpeg")

CHESTXRAY14 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""Labels of ChestX-ray14's official lists, in their order."""

IMAGE_COLUMNS = ("file", "image", "image index", "path", "filename")


@dataclass(frozen=True)
class Sample:
    """One image of a list: its file and, where the list has them, its labels and patient."""

    file: Path
    labels: tuple[float, ...] = ()
    patient: str = ""


def read_list(
    folder: str | Path, list_file: str | Path = "", *, labels: tuple[str, ...] = (), split: str = ""
) -> list[Sample]:
    """Read which images to use.

    Args:
        folder: Folder with the images.
        list_file: Either lines of a file name and space-separated 0/1 labels (ChestX-ray14's official lists), or a
            CSV whose image column is called file, image, path, filename or "Image Index". Empty: all images in
            `folder`, sorted.
        labels: Columns of the CSV that are labels.
        split: Keep the CSV's rows whose column `split` says this.

    Raises:
        OptionError: The folder or list does not exist, a column is missing, a label is not a number, or no image is
            left.
        InputContractError: Images are missing; the message has their number and the first ten names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"{folder} is not a folder; give the folder with the images")
    if not list_file:
        samples = [Sample(f) for f in sorted(folder.iterdir()) if f.suffix.lower() in (".png", ".jpg", ".jpeg")]
    elif not Path(list_file).is_file():
        raise OptionError(f"the list {list_file} does not exist")
    elif Path(list_file).suffix.lower() == ".csv":
        samples = _read_csv(folder, Path(list_file), labels, split)
    else:
        samples = _read_lines(folder, Path(list_file))
    if not samples:
        raise OptionError(f"no images: folder {folder}, list {list_file or '(none)'}, split {split or '(all)'}")
    if missing := [s.file.name for s in samples if not s.file.is_file()]:
        raise InputContractError(
            f"{len(missing)} of {len(samples)} images are not in {folder}: {', '.join(missing[:10])}"
        )
    return samples


def _read_lines(folder: Path, list_file: Path) -> list[Sample]:
    lines = [line.split() for line in list_file.read_text().splitlines() if line.strip()]
    try:
        return [Sample(folder / name, tuple(float(v) for v in values)) for name, *values in lines]
    except ValueError as error:
        raise OptionError(f"{list_file}: each line must be a file name and numbers: {error}") from error


def _read_csv(folder: Path, list_file: Path, labels: tuple[str, ...], split: str) -> list[Sample]:
    rows = read_table(list_file)
    columns = list(rows[0]) if rows else []
    image = next((c for c in columns if c.lower() in IMAGE_COLUMNS), None)
    wanted = (*labels, "split") if split else labels
    absent = [c for c in wanted if c not in columns]
    if image is None or absent:
        lacking = f"columns {', '.join(absent)}" if absent else f"an image column ({', '.join(IMAGE_COLUMNS)})"
        raise OptionError(f"{list_file} lacks {lacking}; it has {', '.join(columns) or 'no rows'}")
    try:
        return [
            Sample(folder / row[image], tuple(float(row[c]) for c in labels), row.get("patient", ""))
            for row in rows
            if not split or row["split"] == split
        ]
    except (TypeError, ValueError) as error:
        raise OptionError(f"{list_file}: a label in {', '.join(labels)} is not a number: {error}") from error


def read_labelled(
    folder: str, list_file: str, *, labels: Sequence[str] = (), split: str = ""
) -> tuple[list[Sample], tuple[str, ...]]:
    """Read a list of images with labels; returns them and the labels' names.

    Args:
        folder: Folder with the images.
        list_file: Lines of "name 0 1 ...", or a CSV.
        labels: Label columns of a CSV. For other lists names for the labels, by default ChestX-ray14's where there are
            14.
        split: Rows of a CSV, by its column `split`.

    Raises:
        OptionError: There are no labels, their number varies or differs from the number of names, or one is not 0 or 1.
        InputContractError: Images are missing.
    """
    if not list_file:
        raise OptionError(f"classification needs labels: give a list of the images in {folder} and their labels")
    samples = read_list(folder, list_file, labels=tuple(labels), split=split)
    counts = sorted({len(sample.labels) for sample in samples})
    if counts == [0]:
        raise OptionError(
            f"{list_file} gives no labels: lines of 'name 0 1 ...' are expected, or a CSV and --label a,b"
        )
    if len(counts) > 1:
        raise OptionError(f"{list_file}: each image needs the same number of labels, but there are {counts}")
    if wrong := [sample for sample in samples if not set(sample.labels) <= {0.0, 1.0}]:
        values = sorted({str(value) for sample in wrong for value in sample.labels} - {"0.0", "1.0"})
        raise OptionError(
            f"{list_file}: labels must be 0 or 1, {len(wrong)} of {len(samples)} images have {', '.join(values)} "
            f"(first: {wrong[0].file.name}); decide on uncertain and missing labels in the list"
        )
    names = tuple(labels) or (CHESTXRAY14 if counts == [14] else tuple(f"label{i}" for i in range(counts[0])))
    if len(names) != counts[0]:
        raise OptionError(f"{list_file} has {counts[0]} label(s) per image, but --label names {len(names)}")
    return samples, names


def check_both_values(samples: list[Sample], names: Sequence[str], wanted: Sequence[str], list_file: str) -> None:
    """Raise `OptionError` where a wanted label is the same for all images, so that it has no AUROC."""
    constant = [n for i, n in enumerate(names) if n in wanted and len({s.labels[i] for s in samples}) == 1]
    if constant:
        raise OptionError(
            f"{list_file}: all {len(samples)} images have the same value of {', '.join(constant)}, which gives no "
            f"AUROC. Take more images, or name the labels that count with --auroc-labels"
        )


def find_masks(samples: list[Sample], folder: str) -> list[Path]:
    """Find the mask of each image: the file of the same stem in `folder`; a PNG counts before a JPEG.

    Raises:
        OptionError: The folder does not exist, or holds the images themselves.
        InputContractError: Masks are missing, or differ in size from their images; the message has their number and the
            first ten names.
    """
    if not Path(folder).is_dir():
        raise OptionError(f"{folder} is not a folder of masks; name it with --masks")
    if Path(folder).resolve() == samples[0].file.parent.resolve():
        raise OptionError(f"{folder} holds the images themselves; give another folder for the masks")
    masks = {file.stem: file for file in sorted(Path(folder).iterdir()) if file.suffix.lower() in MASK_SUFFIXES}
    if absent := [s.file.name for s in samples if s.file.stem not in masks]:
        raise InputContractError(
            f"{len(absent)} of {len(samples)} images have no mask in {folder} (same name, {', '.join(MASK_SUFFIXES)}): "
            f"{', '.join(absent[:10])}"
        )
    found = [masks[s.file.stem] for s in samples]
    pairs = [(s.file, size_of(s.file), size_of(m)) for s, m in zip(samples, found, strict=True)]
    if unequal := [f"{f.name} {a[0]}x{a[1]}, mask {b[0]}x{b[1]}" for f, a, b in pairs if a != b]:
        raise InputContractError(
            f"{len(unequal)} of {len(samples)} masks in {folder} differ in size from their images: "
            f"{'; '.join(unequal[:10])}"
        )
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header."""
    if is_dicom(path):
        header = read_dataset(path)
        return header.get("Columns", 0), header.get("Rows", 0)
    with refused(f"cannot read {path} as an image"), Image.open(path, formats=PIL_FORMATS) as image:
        return image.width, image.height
