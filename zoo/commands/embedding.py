"""What `zoo embed` does: features into a file or a folder, or a trial that says what a run would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.commands.printing import raise_for_failed, rest_in
from zoo.embedding import (
    Cases,
    Embedder,
    embed_all,
    embed_cohort,
    find_cases,
    left_in,
    read_list,
    try_cases,
    workers_for,
)
from zoo.errors import OptionError
from zoo.features import SUFFIXES, check_out, write_features
from zoo.messages import listed
from zoo.progress import duration


def find(embedder: Embedder, paths: Sequence[Path], table: Path | None, **options: Any) -> Cases:
    """Return the cases that a command names for an embedder, see `find_named`."""
    kind = {"volumes": embedder.of_volumes, "lesions": embedder.of_lesions}
    return find_named(paths, table, **kind, **options)


def find_named(
    paths: Sequence[Path], table: Path | None, *, volumes: bool, lesions: bool = False, **options: Any
) -> Cases:
    """Return the cases that a command names, by paths or by a table.

    Args:
        paths: Files and folders; none with a table.
        table: Table of cases.
        volumes: Whether cases are volumes, not films.
        lesions: Whether the network looks at one lesion.
        **options: Of `read_list`; None for those that the command was not given.

    Raises:
        OptionError: It names both or neither, or they cannot be read.
    """
    if table is None:
        if stray := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
            raise OptionError(f"{' and '.join(stray)} without --list: a table is expected, whose paths are meant")
        if not paths:
            raise OptionError("no images: name files or folders, or a table of them by --list")
        return find_cases(paths, volumes=volumes, lesions=lesions)
    if paths:
        raise OptionError(f"both paths ({paths[0]}) and --list {table}: one of the two is expected")
    given = {name: value for name, value in options.items() if value is not None}
    return read_list(table, volumes=volumes, lesions=lesions, **given)


def into_file(embedder: Embedder, cases: Cases, out: Path, workers: int | None) -> Iterator[str]:
    """Write features into one file, whole or not at all; yields what to print.

    Raises:
        InputContractError: Some images have no features; all others are written.
        OptionError: OUT cannot be written.
    """
    found = embed_all(embedder, cases, workers=workers)
    if found.paths:
        write_features(found, out)
        shape = " x ".join(map(str, found.values.shape))
        yield f"{out}: {shape} features of {len(set(found.paths))} image(s), by {found.facts['model']}"
    raise_for_failed(found.failed.values(), f"image(s) have no features, {rest_in(out, bool(found.paths))}")


def into_folder(embedder: Embedder, cases: Cases, out: Path, workers: int | None, **options: Any) -> Iterator[str]:
    """Write features into a folder, or go on with it; yields what to print.

    Raises:
        InputContractError: Some images have no features; all others are written.
        OptionError: OUT cannot be written, or holds other features.
    """
    done = embed_cohort(embedder, cases, out, workers=workers, **options)
    before = f", {done.before} of them by earlier runs" if done.before else ""
    reader = f"; zoo.read_features({str(out)!r}) reads them" if done.embedded else ""
    yield f"{out}: features of {done.embedded} image(s){before}{reader}"
    again = "" if options["retry_failed"] else " (--retry-failed tries them again)"
    rest = f"the others are in {out}, " if done.embedded else ""
    raise_for_failed(
        done.failed.values(), f"image(s) have no features{again}, {rest}all reasons in {out / 'failed*.csv'}"
    )


def trial(
    embedder: Embedder, cases: Cases, out: Path | None, workers: int | None, *, half: bool, retry_failed: bool
) -> Iterator[str]:
    """Try a few cases and write nothing; yields how many there are, how long they take, and which are refused.

    Of a folder that is there, cases with rows are counted and not tried.

    Raises:
        OptionError: OUT would be refused.
    """
    if out is not None and out.suffix not in SUFFIXES and out.exists():
        cases, state = left_in(out, embedder, cases, half=half, retry_failed=retry_failed)
        yield f"{state}; {len(cases)} are left to do"
        if not len(cases):
            return
    elif out is not None and out.exists():
        yield f"{out} is there: a run replaces it"
    tried, readers = try_cases(embedder, cases), workers_for(len(cases)) if workers is None else workers
    yield f"{len(cases)} image(s) for {embedder.name}; {tried.read} were read to see"
    yield (
        f"reading {tried.reading:.3g} s an image, the network {tried.computing:.3g} s: about "
        f"{duration(tried.seconds(len(cases), readers))} with {readers} reading process(es)"
    )
    refused = f"{len(tried.refused)} of {tried.read} would be refused:{listed(tried.refused.values())}"
    yield from refused.splitlines() if tried.refused else [f"none of the {tried.read} would be refused"]


def check_arguments(out: Path | None, *, is_trial: bool, **for_folders: bool | str | None) -> None:
    """Refuse what has no meaning, before a network is loaded.

    Args:
        out: What OUT names, if anything.
        is_trial: Whether nothing is to be written.
        **for_folders: Options that only a folder takes, by name: whether each was given, or its value.

    Raises:
        OptionError: There is no OUT, or it is a file that cannot be written or cannot be what was asked for.
    """
    if out is None:
        if is_trial:
            return
        raise OptionError("no OUT: name a folder, or a file .npz or .csv, by -o; or give --dry-run")
    if out.suffix in SUFFIXES:
        check_out(out)
        if stray := [f"--{name.replace('_', '-')}" for name, asked in for_folders.items() if asked]:
            raise OptionError(f"{' and '.join(stray)} with -o {out}: a folder is expected, which keeps what is done")
    elif out.suffix not in ("", ".parquet"):
        raise OptionError(f"{out}: expected a name that ends in .npz or .csv, or a folder")
