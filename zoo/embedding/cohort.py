"""Embeds a cohort, from a list of cases to features in memory, or in a folder with which a stopped run goes on."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.arguments import Precision
from zoo.embedding.cases import Cases, find_cases
from zoo.embedding.dataset import FeatureFolder, describe, opening
from zoo.embedding.embedder import Embedded, Embedder, reason
from zoo.embedding.reading import Units, workers_for
from zoo.embedding.reserving import log_of
from zoo.embedding.shares import Share, this_share
from zoo.errors import OptionError
from zoo.features import Features
from zoo.progress import duration, follow, recording, say, warnings_in
from zoo.stopping import Stopped, asked_by, heeding_signals

if TYPE_CHECKING:
    import torch

Engine = Literal["local", "ray"]
ENGINES = ("local", "ray")


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
    cases = paths if isinstance(paths, Cases) else cases_at(embedder, paths)
    return embed_all(embedder, cases, workers=workers, progress=progress)


def embed_all(embedder: Embedder, cases: Cases, *, workers: int | None = 0, progress: bool = True) -> Features:
    """Return the features of cases in memory; the arguments, and what is raised, are those of `embed_each`."""
    prepared = embedder.preparation(cases)
    return _collect(embedder, cases, prepared, embed_each(embedder, cases, workers=workers, progress=progress))


def embed_each(embedder: Embedder, cases: Cases, *, workers: int | None = 0, progress: bool = True) -> list[Embedded]:
    """Return what becomes of each case, in their order; the arguments are those of `embed_cohort`.

    Raises:
        OptionError: `workers` is below 0, this is one of several processes, which would each do everything, or files of
            cases were made ready in different ways, see `Entry.preparation`.
    """
    _check_workers(workers)
    if (share := this_share()).world > 1:
        raise OptionError(
            f"this is one of {share.world} processes, each of which would embed all images: give a folder, which they "
            "share, or start one process"
        )
    embedder.preparation(cases)
    units = embedder.units(range(len(cases)))
    readers = workers_for(len(units)) if workers is None else workers
    results = _shown(embedder.embed_units(cases, units, workers=readers), units, is_shown=progress)
    return [each for unit in results for each in unit]


def cases_at(embedder: Embedder, paths: Sequence[str | Path]) -> Cases:
    """Return the cases at some paths, of the kind that an embedder takes."""
    return find_cases(paths, volumes=embedder.of_volumes, lesions=embedder.of_lesions)


def _collect(embedder: Embedder, cases: Cases, prepared: dict[str, Any], found: Sequence[Embedded]) -> Features:
    """Return features in memory, with what they are of."""
    import numpy as np

    good = [each for each in found if each.features is not None]
    rows = [each.features for each in good if each.features is not None]
    of = [each.case for each, own in zip(good, rows, strict=True) for _ in own]
    names = cases.paths if cases.points is None else cases.ids
    own_ids = {"id": [cases.ids[case] for case in of]} if cases.points is None and cases.have_ids else {}
    return Features(
        np.concatenate(rows) if rows else np.empty((0, 0), np.float32),
        tuple(names[case] for case in of),
        tuple(i for own in rows for i in range(len(own))) if embedder.rows_of else None,
        {cases.ids[each.case]: reason(cases, each) for each in found if each.features is None},
        embedder.facts() | prepared,
        own_ids | {name: [column[case] for case in of] for name, column in cases.carried.items()},
    )


@dataclass(frozen=True)
class Outcome:
    """What a run left in its folder, of the cases of this process."""

    embedded: int
    """Those with rows."""
    before: int
    """Those of them that had rows before."""
    failed: dict[str, str]
    """Those without rows, and why."""


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
    redo_changed: bool = False,
) -> Outcome:
    """Write the features of a cohort into a folder, a Parquet data set; run again, it goes on.

    Rows are written at least once a minute or every 8 MB, in whole files; memory does not grow with the cohort. Under
    `torchrun`, and in a SLURM array, each process embeds its share and writes files of its own. SIGTERM and SIGINT end
    it once what is done is written, with exit code 75.

    Args:
        embedder: What makes features of cases.
        cases: From `find_cases` or `read_list`.
        out: The folder. `read_features` reads it; pandas, polars and DuckDB read its `part-*.parquet`.
        workers: Processes that read cases; None for one less than there are processors, at most 8. Only with the local
            engine.
        engine: `"ray"` for an actor on each GPU, or on every four CPUs, of a Ray cluster.
        ray_address: Of the cluster, `HOST:PORT`; `"local"` for one of this machine, for the run. None for the one this
            program is connected to, that of `$RAY_ADDRESS` or of `ray start`, else `"local"`.
        half: Whether features are kept as float16.
        retry_failed: Whether cases that failed before are tried again.
        redo_changed: Whether cases are done again whose files were changed after their rows were written, which are
            warned of in any case; of a folder of DICOM that a file was added or removed. Only by one process.

    Raises:
        OptionError: The folder holds other features, rows of other files under the same ids, or anything else; another
            run writes to it, files of cases were made ready in different ways, see `Entry.preparation`, a value is out
            of its range, or pyarrow or Ray is not installed.
        OSError: The folder cannot be written; what is in it stays.
    """
    out, share = Path(out), this_share()
    _check_workers(workers)
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r}: {' and '.join(ENGINES)} are known")
    if engine == "local" and ray_address is not None:
        raise OptionError(f"ray_address={ray_address!r} with engine='local': only engine='ray' goes to a cluster")
    if engine == "ray" and workers is not None:
        raise OptionError(f"workers={workers} with engine='ray': each actor reads with as many as its CPUs allow")
    if engine == "ray" and share.world > 1:
        raise OptionError(
            "engine='ray' divides the cases by itself: start one process, not several by torchrun or SLURM"
        )
    if redo_changed and share.world > 1:
        raise OptionError(
            f"redo_changed with {share.world} processes: start one first, which removes the rows of files that were "
            "changed; several may then do what is left"
        )
    prepared = embedder.preparation(cases)  # before the network is loaded
    facts = describe(embedder.facts() | prepared, cases, embedder.rows_of, half=half)
    mine = share.of(embedder.units(range(len(cases))))
    folder: FeatureFolder | None = None
    try:
        log = log_of(out, share.rank)
        opened = opening(out, facts, cases, share, redo_changed=redo_changed)
        with heeding_signals(), warnings_in(log), opened as folder, recording(log):
            units = [left for unit in mine if (left := folder.left(unit, retry_failed=retry_failed))]
            before = folder.count(mine)
            readers = workers_for(len(units)) if workers is None else workers
            by = "on a Ray cluster" if engine == "ray" else f"with {readers} reading processes"
            say(_beginning(embedder, share, out, sum(map(len, units)), before, by))
            with closing(_run(embedder, cases, units, readers, engine, ray_address)) as results:
                for found in _shown(results, units, is_shown=share.rank == 0):
                    folder.add(found)
            folder.flush()
            say(folder.state(mine))
            return Outcome(folder.count(mine), before, folder.reasons(mine))
    except Stopped:
        state = folder.state(mine) if folder else f"nothing was done in {out}"
    # Here, not above: the first one holds the loader, whose processes would stay.
    raise Stopped(f"stopped by {asked_by()}; {state}: the same command goes on")


def _run(
    embedder: Embedder, cases: Cases, units: Units, workers: int, engine: Engine, ray_address: str | None
) -> Generator[list[Embedded], None, None]:
    if engine == "local":
        yield from embedder.embed_units(cases, units, workers=workers)
    else:
        from zoo.embedding.ray import embed_units

        yield from embed_units(embedder, cases, units, address=ray_address)


def _shown(results: Iterator[list[Embedded]], units: Units, *, is_shown: bool) -> Iterator[list[Embedded]]:
    """Pass on what becomes of each unit, and show how many cases are done."""
    total, began = sum(map(len, units)), time.monotonic()

    def line(done: int) -> str:
        rate = done / max(1e-9, time.monotonic() - began)
        return f"{done} of {total} images, {rate:.3g} a second, {duration((total - done) / rate)} left"

    return follow(results, "images", total, line=line, count=len, is_shown=is_shown)


def _beginning(embedder: Embedder, share: Share, out: Path, to_do: int, before: int, by: str) -> str:
    part = f", share {share.rank + 1} of {share.world}" if share.world > 1 else ""
    known = f" ({before} more are done)" if before else ""
    return f"embedding {to_do} images{known} by {embedder.name} into {out}{part}, {by}"


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 0:
        raise OptionError(f"workers={workers}: 0 or more is expected")
