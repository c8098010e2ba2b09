"""Which images some paths stand for: files as they are, folders for what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.dicom_files import INDEX
from zoo.errors import OptionError
from zoo.images import is_dicom
from zoo.report import first_names

PICTURES = (".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".pgm")
VOLUMES = (".nii", ".nii.gz", ".hdr", ".npy")
"""Of a pair `.hdr` and `.img` the first stands for both."""


def find_images(paths: Sequence[str | Path], *, volumes: bool) -> list[Path]:
    """Return the images that paths stand for, in their order, each once.

    Args:
        paths: A file stands for itself, whatever its name. A folder stands for all images in it and in the folders
            below it, sorted, without what is hidden: pictures by their suffix and DICOM by its content; or volumes by
            their suffix, and each folder that has DICOM directly in it as one volume, the series.
        volumes: Whether volumes are looked for, not pictures.

    Raises:
        OptionError: A path does not exist (all are named), or a folder has nothing of the kind in it.
    """
    given = [Path(path) for path in paths]
    if missing := [str(path) for path in given if not path.exists()]:
        raise OptionError(f"{len(missing)} of {len(given)} paths do not exist: {first_names(missing, 10)}")
    found: dict[Path, None] = {}
    for path in given:
        inside = [path] if path.is_file() else list(_volumes_in(path) if volumes else _pictures_in(path))
        if not inside:
            kinds = f"{', '.join(VOLUMES)} or DICOM series" if volumes else f"{', '.join(PICTURES)} or DICOM"
            raise OptionError(f"there are no images in the folder {path}: {kinds} are expected")
        found |= dict.fromkeys(inside)
    if not found:
        raise OptionError("no images: name files or folders")
    return list(found)


def _pictures_in(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and path.is_file() and (path.suffix.lower() in PICTURES or _is_slice(path)):
            yield path


def _volumes_in(folder: Path) -> Iterator[Path]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any(path.is_file() and not _is_volume(path) and _is_slice(path) for path in inside):
        yield folder
    for path in inside:
        if path.is_dir():
            yield from _volumes_in(path)
        elif _is_volume(path):
            yield path


def _is_slice(path: Path) -> bool:
    return path.name.upper() != INDEX and is_dicom(path)


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(VOLUMES)
