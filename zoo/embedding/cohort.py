"""Embeds a cohort: the steps from a list of cases to features in memory, or to a folder that a stopped run goes on with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.embedding.cases import Cases, find_cases
from zoo.embedding.dataset import FeatureFolder, describe, log_of, opening
from zoo.embedding.embedder import Embedded, Embedder, Precision, reason
from zoo.embedding.shares import Share, this_share
from zoo.errors import OptionError
from zoo.features import Features
from zoo.progress import duration, follow, recording, say
from zoo.stopping import Stopped, heeding_signals

if TYPE_CHECKING:
    import torch

Engine = Literal["local", "ray"]
ENGINES = ("local", "ray")
_MOST_WORKERS = 8
_TRIED = 16
"""Cases that a dry run embeds."""


def embed(
    name: str,
    paths: Sequence[str | Path] | Cases,
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    workers: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    precision: Precision = "fp32",
    layer: int | None = None,
    tokens: bool = False,
) -> Features:
    """Return the pooled features of images, in the order of `paths`, in memory; see `embed_cohort` for many.

    An image that cannot be read, or cannot be what the network was trained on, gives no row and does not end the run:
    it is in `failed`, with the reason.

    Args:
        name: `MODEL` or `MODEL.TAG`, an encoder.
        paths: Images in any form that `load_transform` reads from disk. A folder stands for all images in it, see
            `zoo.images.find_images`. For a network that looks at one lesion, tables of lesions, see
            `zoo.embedding.lesions`; the rows are then called by path and seed point. Or cases from `read_list`.
        checkpoint: As of `Embedder`.
        device: As of `Embedder`.
        batch_size: As of `Embedder`.
        workers: Processes that read images meanwhile; 0 to read them in this one.
        cache_dir: As of `Embedder`.
        progress: Whether to draw progress bars, on a terminal.
        precision: As of `Embedder`.
        layer: As of `Embedder`.
        tokens: As of `Embedder`.

    Raises:
        OptionError: The model has no pooled features, there are no images, or a number is out of its range;
            `PathNotFoundError` where a path does not exist.
        UnknownModelError: No such model or tag; what else `load_model` raises where there are no weights.
    """
    options: dict[str, Any] = {"checkpoint": checkpoint, "device": device, "batch_size": batch_size}
    options |= {"cache_dir": cache_dir, "precision": precision, "layer": layer, "tokens": tokens}
    embedder = Embedder(name, **options, progress=progress)
    _check_workers(workers)
    cases = paths if isinstance(paths, Cases) else cases_at(embedder, paths)
    units = embedder.units(range(len(cases)))
    found = [each for unit in _shown(embedder.embed_units(cases, units, workers=workers), units, progress) for each in unit]
    return collect(embedder, cases, found)


def cases_at(embedder: Embedder, paths: Sequence[str | Path]) -> Cases:
    """Return the cases at some paths, of the kind that an embedder takes."""
    return find_cases(paths, volumes=embedder.of_volumes, lesions=embedder.of_lesions)


def collect(embedder: Embedder, cases: Cases, found: Sequence[Embedded]) -> Features:
    """Return features in memory, with what they are of."""
    import numpy as np

    good = [each for each in found if each.features is not None]
    rows = [each.features for each in good if each.features is not None]
    return Features(
        np.concatenate(rows) if rows else np.empty((0, 0), np.float32),
        tuple(cases.ids[each.case] for each, own in zip(good, rows, strict=True) for _ in own),
        tuple(i for own in rows for i in range(len(own))) if embedder.rows_of else None,
        {cases.ids[each.case]: reason(cases, each) for each in found if each.features is None},
        embedder.facts(),
        {name: [column[each.case] for each, own in zip(good, rows, strict=True) for _ in own] for name, column in cases.carried.items()},
        embedder.rows_of,
    )


@dataclass(frozen=True)
class Outcome:
    """What a run left in its folder."""

    embedded: int
    """Cases of this process that this run embedded."""
    before: int
    """Cases of this process that had rows before."""
    failed: dict[str, str]
    """Cases of this process without rows, and why."""


def embed_cohort(
    embedder: Embedder,
    cases: Cases,
    out: str | Path,
    *,
    workers: int | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    half: bool = False,
    retry_failed: bool = False,
) -> Outcome:
    """Write the features of a cohort into a folder, a Parquet data set; run again, it goes on.

    Rows are written at least once a minute or every 256 MB, in whole files; memory does not grow with the cohort. Under
    `torchrun`, and in a SLURM array, each process embeds its share and writes files of its own. SIGTERM and SIGINT end
    it once what is done is written, with exit code 75.

    Args:
        embedder: What makes features of cases.
        cases: From `find_cases` or `read_list`.
        out: The folder. `read_features` reads it, and so do pandas, polars and DuckDB.
        workers: Processes that read cases; None for one less than there are processors, at most 8.
        engine: `"ray"` for an actor on each GPU, or share of CPUs, of a Ray cluster.
        ray_address: Of the cluster; None for the one that this machine belongs to, else one of this machine alone.
        half: Whether features are kept as float16.
        retry_failed: Whether cases that failed before are tried again.

    Raises:
        OptionError: The folder holds other features or anything else, another run writes to it, a value is out of its
            range, or pyarrow or Ray is not installed.
        OSError: The folder cannot be written; what is in it stays.
    """
    out, share = Path(out), this_share()
    _check_workers(workers)
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r}: {' and '.join(ENGINES)} are known")
    if engine == "ray" and share.world > 1:
        raise OptionError("engine='ray' divides the cases by itself: start one process, not several by torchrun or SLURM")
    facts = describe(embedder.facts(), cases, embedder.rows_of, half=half)
    with ExitStack() as stack:
        stack.enter_context(heeding_signals())
        folder = stack.enter_context(opening(out, facts, rank=share.rank, world=share.world))
        stack.enter_context(recording(log_of(out, share.rank)))
        mine = share.of(embedder.units(range(len(cases))))
        units = [left for unit in mine if (left := folder.left(cases, unit, retry_failed=retry_failed))]
        before = sum(map(len, mine)) - sum(map(len, units))
        count = workers_for(units) if workers is None else workers
        _say_beginning(embedder, share, out, sum(map(len, units)), before, count)
        try:
            results = _engine(embedder, cases, units, count, engine, ray_address)
            for found in _shown(results, units, True):
                folder.add(cases, found)
        except Stopped as stop:
            folder.flush()
            raise Stopped(_how_to_go_on(stop, folder)) from stop
        folder.flush()
    ids = {cases.ids[i] for unit in mine for i in unit}
    return Outcome(sum(map(len, units)), before, folder.reasons(ids))
