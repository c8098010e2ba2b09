"""Computes features of image files with a model and its own transform, for `zoo embed` and for programs.

Example:
    >>> found = embed("caid-resnet50.chestxray14-800", ["films"])
    >>> found.values.shape, found.paths[0], found.failed
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from zoo.checkpoint import load_report
from zoo.embedding.lesions import Lesion, read_lesions
from zoo.entry import Entry
from zoo.errors import OptionError
from zoo.features import Features
from zoo.images import find_images
from zoo.loading import input_of, load_model
from zoo.messages import problem_of, reason_of, with_path
from zoo.registry import entries, get_entry
from zoo.transforms import CropTransform, ImageTransform, SliceTransform, build_transform
from zoo.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoo.entry import Transform

log = logging.getLogger("zoo")

_Case: TypeAlias = "Path | Lesion"

_IMAGES_AT_ONCE, _VOLUMES_AT_ONCE = 32, 4
_PARTS_AHEAD = 2
"""Parts that each reading process has under way."""


def embed(
    name: str,
    paths: Sequence[str | Path],
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    workers: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Features:
    """Return the pooled features of images, in the order of `paths`.

    An image that cannot be read, or cannot be what the network was trained on, gives no row and does not end the run:
    it is in `failed`, with the reason.

    Args:
        name: `MODEL` or `MODEL.TAG`, an encoder.
        paths: Images in any form that `load_transform` reads from disk. A folder stands for all images in it, see
            `zoo.images.find_images`. For a network that looks at one lesion, tables of lesions, see
            `zoo.embedding.lesions`; the rows are then called by path and seed point.
        checkpoint: Your own file to use instead of the published weights; its input is the one in its header, else the
            model's, or that of the tag that is named.
        device: Where the network runs.
        batch_size: Images at once; of volumes the slices, windows or patches. None for 32 images or slices, else 4, or
            what the family finds fastest.
        workers: Processes that read images meanwhile; 0 to read them in this one.
        cache_dir: Folder of downloads; `$ZOO_HOME`, else `~/.cache/medssl-zoo`.
        progress: Whether to draw progress bars, on a terminal.

    Raises:
        OptionError: The model has no pooled features, there are no images, or a number is out of its range;
            `PathNotFoundError` where a path does not exist.
        UnknownModelError: No such model or tag; what else `load_model` raises where there are no weights.
    """
    from tqdm import tqdm

    entry = get_entry(name)
    _check(entry, batch_size, workers)
    transform = build_transform(input_of(name, checkpoint, cache_dir))
    files = _cases(paths, transform)
    options: dict[str, Any] = {"checkpoint": checkpoint, "cache_dir": cache_dir, "progress": progress}
    model = load_model(name, num_classes=0, device=device, **options)
    by_file: dict[str, Tensor] = {}
    failed: dict[str, str] = {}
    results = _embedded(entry, model, transform, files, batch_size, workers, cache_dir)
    is_hidden = None if progress else True  # None draws on a terminal alone
    for file, features, problem in tqdm(results, total=len(files), desc="images", disable=is_hidden):
        if features is None:
            failed[str(file)] = with_path(file, problem)
        elif features.isfinite().all():
            by_file[str(file)] = features
        else:
            failed[str(file)] = f"{file}: its features are NaN or infinite"
    return _collected(by_file, failed, model, of_slices=isinstance(transform, SliceTransform))


def _cases(paths: Sequence[str | Path], transform: Transform) -> list[_Case]:
    """What is embedded, a row or several for each."""
    if isinstance(transform, CropTransform):
        return [*read_lesions([paths] if isinstance(paths, str | Path) else paths)]
    return [*find_images(paths, volumes=not isinstance(transform, ImageTransform))]


def _check(entry: Entry, batch_size: int | None, workers: int) -> None:
    if not entry.is_encoder:
        encoders = [other.name for other in entries().values() if other.family == entry.family and other.is_encoder]
        gives = "gives" if len(encoders) == 1 else "give"
        way = f"In its family {' and '.join(encoders)} {gives} them" if encoders else "No model of its family gives any"
        raise OptionError(f"{entry.name!r} has no pooled features: {entry.summary}. {way}")
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: at least 1 is expected")
    if workers < 0 or (workers and entry.embed):
        none = f": {entry.name!r} reads its volumes itself, one after the other" if entry.embed else ""
        raise OptionError(f"workers={workers}: {'0' if entry.embed else '0 or more'} is expected{none}")


class _Found(NamedTuple):
    """A file, or a lesion in one, with its input `(n, C, *space)`, later its features `(n, D)`, or why it has none."""

    file: _Case
    values: Tensor | None
    problem: str = ""


def _embedded(
    entry: Entry,
    model: nn.Module,
    transform: Transform,
    files: list[_Case],
    batch_size: int | None,
    workers: int,
    cache_dir: str | Path | None,
) -> Iterator[_Found]:
    """Yield each file with its features on the CPU, or with why it has none."""
    import torch

    with torch.no_grad():
        if entry.embed is None:
            yield from _in_batches(model, transform, files, batch_size, workers)
            return
        for file in files:
            path: Any = file  # of a lesion no family needs more than its input
            try:
                yield _Found(file, entry.embed(model, transform, path, batch_size, cache_dir).float().cpu())
            except Exception as error:  # of whatever kind: one file never ends the run
                yield _Found(file, None, problem_of(error))


def _in_batches(
    model: nn.Module, transform: Transform, files: list[_Case], batch_size: int | None, workers: int
) -> Iterator[_Found]:
    """Embed what the transform makes of the files: several images together, or the slices of a volume in parts."""
    size = batch_size or (_IMAGES_AT_ONCE if len(transform.preprocessing.size) == 2 else _VOLUMES_AT_ONCE)
    at_once = 1 if isinstance(transform, SliceTransform) else size
    for batch in _read_all(files, transform, at_once, workers):
        inputs = {found.file: found.values for found in batch if found.values is not None}
        features = dict(zip(inputs, _features(model, list(inputs.values()), size), strict=True))
        for found in batch:
            yield _Found(found.file, features.get(found.file), found.problem)


def _features(model: nn.Module, inputs: list[Tensor], size: int) -> tuple[Tensor, ...]:
    """Features `(n, D)` on the CPU of each input `(n, C, *space)`, `size` images or slices at a time."""
    import torch

    if not inputs:
        return ()
    device = next(model.parameters()).device
    parts = torch.split(torch.cat(inputs), size)
    rows = torch.cat([model(part.to(device)).float().cpu() for part in parts])
    return torch.split(rows, [len(each) for each in inputs])


def _read_all(files: Sequence[_Case], transform: Transform, at_once: int, workers: int) -> Iterator[list[_Found]]:
    """Yield the files with what the transform makes of them, in parts.

    A reading process that dies, of a fault in a decoder or for want of memory, takes with it what the others have read;
    which file it was of is found by reading those that were under way one by one, each in a process of its own.
    """
    done = 0
    while done < len(files):
        try:
            for batch in _loader(files[done:], transform, at_once, workers):
                done += len(batch)
                yield batch
        except RuntimeError as error:
            if not workers:
                raise
            log.warning("a process that reads images died (%s): the next ones are read one by one", reason_of(error))
            for file in files[done : done + at_once * workers * _PARTS_AHEAD]:
                done += 1
                yield _read_alone(file, transform)


def _read_alone(file: _Case, transform: Transform) -> list[_Found]:
    try:
        batch: list[_Found] = next(iter(_loader([file], transform, 1, 1)))
    except RuntimeError as error:
        return [_Found(file, None, f"the process that read it died: {reason_of(error)}")]
    return batch


def _loader(files: Sequence[_Case], transform: Transform, at_once: int, workers: int) -> Iterable[list[_Found]]:
    from torch.utils.data import DataLoader

    read: Any = _Inputs(tuple(files), transform)
    ahead = _PARTS_AHEAD if workers else None
    return DataLoader(read, at_once, num_workers=workers, collate_fn=list, prefetch_factor=ahead)


@dataclass(frozen=True)
class _Inputs:
    """The network's input of each file, or why there is none: a data set for loader processes."""

    files: tuple[_Case, ...]
    transform: Transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Found:
        file = self.files[index]
        try:
            made = self.transform(file)
        except Exception as error:  # of whatever kind: one file never ends the run
            return _Found(file, None, problem_of(error))
        return _Found(file, made if isinstance(self.transform, SliceTransform) else made[None])


def _collected(
    by_file: Mapping[str, Tensor], failed: Mapping[str, str], model: nn.Module, *, of_slices: bool
) -> Features:
    import numpy as np

    report = load_report(model)
    facts = {"model": report.name, "source": report.source, "sha256": report.sha256, "trained_by": report.trained_by}
    rows = [rows.numpy() for rows in by_file.values()]
    return Features(
        np.concatenate(rows).astype(np.float32) if rows else np.empty((0, 0), np.float32),
        tuple(path for path, rows in by_file.items() for _ in rows),
        tuple(i for rows in by_file.values() for i in range(len(rows))) if of_slices else None,
        failed,
        facts | {"zoo": __version__},
    )
