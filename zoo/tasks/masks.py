"""The label maps of a segmentation: which belongs to which image, and what their values stand for."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.embedding import Cases
from zoo.errors import InputContractError, OptionError
from zoo.images import MOST_CLASSES, find_images, read_label_picture, read_labels
from zoo.messages import first_names, printable, with_path

log = logging.getLogger("zoo")

BACKGROUND = 0
"""Value of what belongs to no structure, in every mask."""
_MOST_NAMED = 10
_CALLED = "A mask is called like its image, as scan.nii.gz for scan.nii.gz"


@dataclass(frozen=True)
class Classes:
    """What the values of masks stand for."""

    names: tuple[str, ...]
    """Background first."""
    values: tuple[int, ...]
    """The value of each class in the masks."""

    @property
    def mapping(self) -> dict[str, str]:
        """Value -> class, as text; empty where each value is the number of its class."""
        if self.values == tuple(range(len(self.values))):
            return {}
        return {str(value): name for value, name in zip(self.values, self.names, strict=True)}

    def numbers_of(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the number of the class of each pixel or voxel of a mask, whose values are all known."""
        table = np.zeros(MOST_CLASSES, np.uint8)
        table[list(self.values)] = range(len(self.values))
        numbers: NDArray[np.uint8] = table[labels]
        return numbers


def pair_masks(cases: Cases, data: str, masks: str, *, films: bool) -> list[Path]:
    """Return the mask of each case: the one that is called like its image, whatever the suffixes of the two.

    A mask in the folder that the image is in, seen from `data` and `masks`, comes before others of its name. Where both
    images and masks are in several folders, one in a folder of another name is none of them: it is another patient's.

    Args:
        cases: Of the run.
        data: Folder of the images; may be empty.
        masks: Folder of the masks.
        films: Whether masks are pictures, not volumes.

    Raises:
        OptionError: There is no such folder, images have no mask or several, or the folder is that of the images.
    """
    paired = _pair(cases, data, masks, films=films)
    if paired.lacking or paired.unclear:
        raise OptionError(f"--masks {masks}: {paired.said_of_rest(len(cases))}. {_CALLED}")
    _check_apart(cases, paired.masks, masks)
    if paired.spare:
        log.warning("%s has %d masks of no image in the table, which are left out", masks, paired.spare)
    return paired.masks


def find_pairs(data: str, masks: str, *, films: bool) -> tuple[Cases, list[Path]]:
    """Return the images of a folder that have a mask, called by their paths in it, and the mask of each.

    Images without a mask, and masks without an image, are left out and counted.

    Args:
        data: Folder of the images; that of the masks may lie in it.
        masks: Folder of the masks.
        films: Whether images and masks are pictures, not volumes.

    Raises:
        OptionError: There is no such folder, it is one for both, no image has a mask, or one has several.
    """
    _check_folder("--data", data, "images")
    _check_folder("--masks", masks, "label maps")
    inside = Path(masks).resolve()
    if Path(data).resolve().is_relative_to(inside):
        raise OptionError(f"--data {data} lies in --masks {masks}: give images and masks folders of their own")
    found = find_images([data], volumes=not films, quiet=True)
    paths = [path for path in found if not path.resolve().is_relative_to(inside)]
    every = Cases([str(path.relative_to(data)) for path in paths], [str(path) for path in paths], {}, None)
    paired = _pair(every, data, masks, films=films)
    if paired.unclear or not paired.masks:
        said = paired.said_of_rest(len(every)) or f"there is no image in {data} beside them"
        raise OptionError(f"--masks {masks}: {said}. {_CALLED}")
    if paired.lacking or paired.spare:
        log.warning(
            "%d images of %s have a mask in %s; left out are %d images without one (%s) and %d masks without an image",
            *(len(paired.masks), data, masks, len(paired.lacking), first_names(paired.lacking), paired.spare),
        )
    lacking = set(paired.lacking)
    cases = every.take([i for i, id in enumerate(every.ids) if id not in lacking])
    _check_apart(cases, paired.masks, masks)
    return cases, paired.masks


class _Paired(NamedTuple):
    """What was found of the masks of some cases."""

    masks: list[Path]
    """Of the cases that have one, in their order."""
    lacking: list[str]
    unclear: list[str]
    """Cases with several."""
    spare: int
    """Masks of none of the cases."""

    def said_of_rest(self, count: int) -> str:
        """How many of so many images have no mask, or several; empty where each has one."""
        return "; ".join(
            f"{len(ids)} of {count} images have {what}: {first_names(map(printable, ids), _MOST_NAMED)}"
            for ids, what in ((self.lacking, "no mask of their name"), (self.unclear, "several masks of their name"))
            if ids
        )


def _check_folder(flag: str, folder: str, holds: str) -> None:
    if not Path(folder).is_dir():
        raise OptionError(f"{flag} {folder} is no folder that exists: give the one that holds the {holds}")


def _pair(cases: Cases, data: str, masks: str, *, films: bool) -> _Paired:
    """Look for the mask of each case, see `pair_masks`."""
    _check_folder("--masks", masks, "label maps")
    by_path, by_name = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
    for path in find_images([masks], volumes=not films, quiet=True):
        by_path[_stem(path.relative_to(masks))].append(path)
        by_name[_stem(Path(path.name))].append(path)
    images_in, masks_in = _folders(map(Path, cases.paths)), _folders(path for own in by_name.values() for path in own)
    found, lacking, unclear = list[Path](), list[str](), list[str]()
    for id, text in zip(cases.ids, cases.paths, strict=True):
        path = Path(text)
        inside = _stem(path.relative_to(data)) if data and path.is_relative_to(data) else ""
        fitting = by_path.get(inside) or [
            mask
            for mask in by_name.get(_stem(Path(path.name)), [])
            if images_in[path] & masks_in[mask] or not (images_in[path] and masks_in[mask])
        ]
        if len(fitting) == 1:
            found.append(fitting[0])
        else:
            (unclear if fitting else lacking).append(id)
    spare = {path for paths in by_name.values() for path in paths} - set(found)
    return _Paired(found, lacking, unclear, len(spare))


def _folders(files: Iterable[Path]) -> dict[Path, set[str]]:
    """Names of the folders that each file is in, below the one that all are in."""
    files = list(files)
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    return {file: set(file.parent.relative_to(common).parts) for file in files}


def _check_apart(cases: Cases, masks: Sequence[Path], folder: str) -> None:
    same = [path for path, mask in zip(cases.paths, masks, strict=True) if Path(path).resolve() == mask.resolve()]
    if same:
        raise OptionError(f"--masks {folder} is the folder of the images: {printable(same[0])} would be its own mask")
    if (distinct := len(set(masks))) < len(masks):
        raise OptionError(
            f"--masks {folder}: {len(masks)} images have {distinct} masks by their names. Give images of one name "
            "folders, and their masks the same folders"
        )


def _stem(path: Path) -> str:
    """Return a relative path without the suffixes of an image."""
    name = path.name.lower()
    suffix = next((s for s in (".nii.gz", ".nii", ".npy", ".hdr") if name.endswith(s)), path.suffix)
    return str(path.parent / path.name[: len(path.name) - len(suffix)] if suffix else path)


def values_of(mask: Path, *, films: bool) -> tuple[int, ...]:
    """Return the values that a mask has, sorted.

    Raises:
        InputContractError: It cannot be read, or has values that no class can have.
    """
    labels = read_label_picture(mask) if films else read_labels(mask).values
    return tuple(int(value) for value in np.unique(labels))


def all_values(masks: Sequence[Path], *, films: bool) -> list[tuple[int, ...]]:
    """Return the values of each mask.

    Raises:
        InputContractError: Some masks cannot be read; they are counted, and ten are named.
    """
    found, problems = [], []
    for mask in masks:
        try:
            found.append(values_of(mask, films=films))
        except InputContractError as error:
            problems.append(with_path(mask, error))
    if problems:
        raise InputContractError(
            f"{len(problems)} of {len(masks)} masks cannot be used: {'; '.join(problems[:_MOST_NAMED])}"
        )
    return found


def classes_of(values: Sequence[Sequence[int]], names: tuple[str, ...]) -> Classes:
    """Return the classes that the values of masks stand for; 0 is the background.

    Values from 0 to K - 1 are the numbers of the K named classes. Other values stand for the classes in their order, as
    0 and 255 for background and lesion.

    Args:
        values: Of each mask.
        names: Of the classes, background first; empty to call them by their values.

    Raises:
        OptionError: There are no structures, or not as many values as names.
    """
    found = sorted({BACKGROUND, *(value for own in values for value in own)})
    if len(found) < 2:
        raise OptionError("the masks are 0 everywhere: there is nothing to segment. Give masks with labels")
    if not names:
        return Classes(("background", *(str(value) for value in found[1:])), tuple(found))
    if len(set(names)) < len(names):
        raise OptionError(f"--classes {','.join(names)}: two classes have one name")
    if found[-1] < len(names):
        return Classes(names, tuple(range(len(names))))
    if len(found) == len(names):
        return Classes(names, tuple(found))
    raise OptionError(
        f"--classes names {len(names)} classes with the background, {first_names(names, _MOST_NAMED)}, and the masks "
        f"have the values {first_names(map(str, found), 2 * _MOST_NAMED)}: as many names as values are expected, the "
        "background first, or values from 0 to one less than there are names"
    )
