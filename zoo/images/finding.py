"""Finds the images that paths stand for: files as they are, folders for the images in them."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from zoo.errors import InputContractError, OptionError, PathNotFoundError
from zoo.files import user_path
from zoo.images.dicom_files import INDEX
from zoo.images.pictures import is_dicom
from zoo.messages import first_names, printable, said_of_missing

log = logging.getLogger("zoo")

PICTURES = (".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".pgm")
VOLUMES = (".nii", ".nii.gz", ".hdr", ".npy")
"""Suffixes of volumes; the `.hdr` of a pair stands for its `.img`, too."""
_NEITHER = (".mha", ".mhd", ".nrrd", ".nhdr", ".mgh", ".mgz", ".gif", ".webp")
"""Suffixes of images that nothing here reads: a folder that has some is not taken without a word."""
_MOST_NAMED = 10
_DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
"""Suffixes of DICOM files, which also end in numbers where they are named by UID."""


def find_images(paths: Sequence[str | Path], *, volumes: bool, quiet: bool = False) -> list[Path]:
    """Return the images at some paths, in their order, each once.

    Images of another kind in folders are passed over, which one warning says of all of them.

    Args:
        paths: A file stands for itself, whatever its name. A folder stands for all images in it and in the folders
            below it, sorted, without what is hidden, each folder once whatever links lead to it: pictures by their
            suffix and DICOM by its content; or volumes by their suffix, and each folder that has DICOM directly in it
            as one volume, the series. What is called an image and can be none, as a broken link, is among them.
        volumes: Whether volumes are looked for, not pictures.
        quiet: Whether what is passed over goes unsaid, as where both kinds are looked for in turn.

    Raises:
        PathNotFoundError: A path does not exist; ten are named.
        OptionError: A folder has nothing of the kind in it, or cannot be listed; or a path is an empty text.
    """
    given = [user_path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
    if missing := [printable(path) for path in given if not (path.exists() or path.is_symlink())]:
        raise PathNotFoundError(said_of_missing(missing, len(given)))
    found: dict[Path, None] = {}
    others: dict[Path, None] = {}
    for path in given:
        inside, beside = ([path], []) if not path.is_dir() else _volumes_in(path) if volumes else _pictures_in(path)
        if not inside:
            kinds = f"{', '.join(VOLUMES)} or DICOM series" if volumes else f"{', '.join(PICTURES)} or DICOM"
            has = f", and it has {_counted(beside)}" if beside else ""
            raise OptionError(f"there are no images in the folder {path}: {kinds} are expected{has}")
        found |= dict.fromkeys(inside)
        others |= dict.fromkeys(beside)
    if not found:
        raise OptionError("no images: name files or folders")
    if passed := [path for path in others if path not in found and not quiet]:
        _warn_of_others(passed, "volumes" if volumes else "pictures")
    return list(found)


def _warn_of_others(passed: list[Path], wanted: str) -> None:
    log.warning(
        "%d image(s) of another kind were passed over, %s, where %s are looked for: %s",
        len(passed),
        _counted(passed),
        wanted,
        first_names(map(str, passed), _MOST_NAMED),
    )


def _counted(paths: Iterable[Path]) -> str:
    """How many files there are of each suffix, the most frequent first."""
    counts = Counter(_kind(path) for path in paths)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


def _kind(path: Path) -> str:
    """The suffix that marks a file as an image of some kind; empty where its name does not."""
    name = path.name.lower()
    return next((suffix for suffix in (".nii.gz", *PICTURES, *VOLUMES, *_NEITHER) if name.endswith(suffix)), "")


def names_of(paths: Sequence[Path], made: str = "labels") -> dict[str, Path]:
    """Return the name by which what is made of an image is called -> its path: its own without its suffix.

    Images that share a name, as 001/img.nii.gz and 002/img.nii.gz, are called `<folder>_<name>`.

    Args:
        paths: Files, and folders with a series.
        made: What is made of them, for the message.

    Raises:
        OptionError: Two have one name in folders of one name.
    """
    stems = [_stem(path.resolve()) for path in paths]
    counts = Counter(stems)
    names = [
        f"{path.resolve().parent.name}_{stem}" if counts[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise OptionError(
            f"several volumes would have {made} called {', '.join(twice[:3])}: one call for each is expected, with an "
            "output folder of its own"
        )
    return dict(zip(names, paths, strict=True))


def _stem(path: Path) -> str:
    """Return a name without the suffix of NIfTI or of a picture."""
    return path.stem if path.suffix.lower() in PICTURES else path.name.removesuffix(".gz").removesuffix(".nii")


def holds_series(folder: Path) -> bool:
    """Whether a folder has DICOM directly in it, and so stands for one volume, the series.

    Raises:
        OptionError: It cannot be listed.
    """
    return _has_slice(_entries(folder)[1])


def _pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures in a folder, and the images of other kinds."""
    found: list[Path] = []
    others: list[Path] = []
    for _, inside in _folders(folder):
        for path in inside:
            (found if path.suffix.lower() in PICTURES or _is_slice(path) else others).append(path)
    return _sorted(found), _sorted(path for path in others if _kind(path))


def _volumes_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The volumes in a folder, a series by its own folder, and the images of other kinds."""
    found: list[Path] = []
    others: list[Path] = []
    for inner, files in _folders(folder):
        volumes = [path for path in files if _is_volume(path)]
        rest = [path for path in files if not _is_volume(path)]
        found += [inner, *volumes] if _has_slice(rest) else volumes
        others += [path for path in rest if _kind(path) and not _is_slice(path)]  # of a series one file is opened
    return _sorted(found), _sorted(others)


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """By the parts of the paths: paths compare so themselves, but some ten times slower."""
    return sorted(paths, key=lambda path: path.parts)


def _folders(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a folder and all below it with the files in each, by a link only if nothing else leads to it.

    Each comes once, however many links lead to it.
    A link to a folder above the first is not followed: what lies beside the first was not asked for.
    """
    seen = set(folder.resolve().parents)
    real, linked = deque([folder]), deque[Path]()
    while real or linked:
        folder = (real or linked).popleft()
        if (real_path := folder.resolve()) in seen:
            continue
        seen.add(real_path)
        inner, files = _entries(folder)
        yield folder, files
        for path in inner:
            waiting = linked if path.is_symlink() else real
            waiting.append(path)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible folders in a folder, sorted, and what else is in it.

    The listing says which is which: asking for each file takes minutes where many lie on a network's disk.

    Raises:
        OptionError: It cannot be listed.
    """
    folders: list[Path] = []
    others: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    path = folder / entry.name
                    is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()  # a link may lead to itself
                    (folders if is_folder else others).append(path)
    except OSError as error:
        raise OptionError(f"cannot look for images in {folder}: {error.strerror or error}") from error
    return sorted(folders), others


def _has_slice(files: Iterable[Path]) -> bool:
    return any(_is_slice(path) for path in files if not _is_volume(path))


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM by its content; by its name where that cannot be read, as of pointers of Git LFS."""
    if not path.is_file() or path.name.upper() == INDEX:
        return False
    try:
        return is_dicom(path)
    except (InputContractError, OSError):
        return path.suffix.lower() in _DICOM_SUFFIXES or path.suffix[1:].isdigit()


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUMES)
