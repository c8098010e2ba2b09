"""Probes features on a user's own labels: `zoo.probe`, the steps from a table to a report."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import OptionError
from zoo.evaluation.assembling import assemble
from zoo.evaluation.copies import check_images
from zoo.evaluation.fitting import Plan, judge
from zoo.evaluation.judging import ROUNDS
from zoo.evaluation.labelled import Labelled, read_labelled
from zoo.evaluation.looks import has_umap
from zoo.evaluation.report import ProbeReport, Repeat
from zoo.evaluation.seen import look_up
from zoo.evaluation.sources import Contender, Where, find_contenders
from zoo.evaluation.splits import DRAWS, REPEATS, SIZES, check_parts, draw_folds, draw_labels, given_fold
from zoo.evaluation.target import read_target, strata_of
from zoo.messages import install_hint
from zoo.version import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

_PACKAGES = ("numpy", "scikit-learn", "scipy", "torch")


def probe(
    features: Any,
    table: str | Path | DataFrame,
    *,
    column: str,
    group: str | None = None,
    split: str | None = None,
    kind: str | None = None,
    uncertain: str | None = None,
    data: str | Path | None = None,
    path_column: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    sizes: Sequence[int] = SIZES,
    draws: int = DRAWS,
    command: str | None = None,
) -> ProbeReport:
    """Return what frozen features are worth on labels of your own, beside random weights and plain intensities.

    Everything is fitted and chosen on training parts alone. Cases of one group are never on both sides. The order of
    the table's rows changes nothing.

    Args:
        features: What to probe, one of these, a sequence of them, or a mapping from names to them.
            The path of a folder, `.npz` or `.csv` that `zoo embed` wrote.
            What `zoo.read_features` returned.
            An array `(N, D)` in the order of the table's rows.
            `MODEL` or `MODEL.TAG`, by which the table's images are embedded first.
        table: `.csv`, `.tsv`, `.parquet` or a DataFrame: a row for each case, with `id`, or a column of paths.
        column: Column of labels: two values, several, or numbers. Cases without one are left out.
        group: Column of what stays together, the patient; None for each case alone.
        split: Column of `train` and `test` (or `val`); None for repeated cross-validation by group.
        kind: `binary`, `classes` or `numbers`; None to tell it from the column.
        uncertain: What a label of -1 is beside 0 and 1: `ignore`, `positive` or `negative`.
        data: Folder from which the table's paths lead; None for the table's own.
        path_column: Column of paths; None for `path`, `image_path` or `file`.
        out: Folder in which features are kept, and found by the next call; None to keep none.
        device: Where networks run.
        workers: Processes that read images; None for one less than there are processors.
        cache_dir: Folder of downloads.
        seed: Of folds, draws and resamples.
        rounds: Of the bootstrap.
        repeats: Of the cross-validation.
        sizes: Numbers of labelled cases of the few-label curve, below all of them.
        draws: Of each size.
        command: How to do it again; None for the program's own words.

    Raises:
        OptionError: Table, features and columns do not fit together, or a group or an image is on both sides.
        InputContractError: Features cannot be read, or are not finite.
    """
    began, date = time.monotonic(), datetime.now().astimezone().isoformat(timespec="seconds")
    check_installed()
    check_counts(seed=seed, rounds=rounds, repeats=repeats, draws=draws)
    labelled = read_labelled(
        table, column, group=group, split=split, path_column=path_column, kind=kind, uncertain=uncertain
    )
    read_target(labelled.texts, column, kind)  # refused before images are embedded
    options = {"device": device, "workers": workers, "cache_dir": None if cache_dir is None else Path(cache_dir)}
    where = Where(_path(data), path_column, _path(out), **options)  # type: ignore[arg-type]
    contenders, kept, warnings = find_contenders(features, labelled, where)
    embedding = time.monotonic() - began
    spare = len(labelled) - len(kept)
    labelled, contenders = _ordered(labelled.take(kept), contenders)
    plan = make_plan(labelled, column, kind, seed=seed, rounds=rounds, repeats=repeats, sizes=sizes, draws=draws)
    warnings += check_images(contenders, labelled)
    results = judge(plan, contenders)
    overlaps = tuple(look_up(contenders, image_names(labelled), plan.tested, cache_dir))
    report = assemble(plan, contenders, results, spare, warnings, overlaps)
    repeat = Repeat(
        command or _call(contenders, labelled, column, group, split, kind, uncertain, seed),
        seed,
        rounds,
        str(labelled.table) if labelled.table else "a table in memory",
        _table_digest(table),
        {"zoo": __version__, "python": platform.python_version(), **{name: _version(name) for name in _packages()}},
        date,
        round(time.monotonic() - began - embedding, 3),
    )
    return replace(report, repeat=repeat)


def _call(contenders: Sequence[Contender], labelled: Labelled, column: str, *more: Any) -> str:
    """How a program called it."""
    names = [each.name for each in contenders if each.role == "encoder"]
    given = dict(zip(("group", "split", "kind", "uncertain", "seed"), more, strict=True))
    said = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
    table = "table" if labelled.table is None else repr(str(labelled.table))
    return f"zoo.probe([{', '.join(map(repr, names))}], {table}, column={column!r}{said})"


def check_installed() -> None:
    """Raise `OptionError` where a library is missing that every probe needs."""
    for package, module in (("scikit-learn", "sklearn"), ("pandas", "pandas")):
        if find_spec(module) is None:
            raise OptionError(f"a probe needs {package}: {install_hint(package, 'train')}")


def check_counts(**counts: int) -> None:
    """Raise `OptionError` where a number cannot be what it is for."""
    for name, value in counts.items():
        least = {"seed": 0, "rounds": 200, "draws": 10}.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name}={value!r}: a whole number of at least {least} is expected")


def make_plan(
    labelled: Labelled,
    column: str,
    kind: str | None,
    *,
    seed: int,
    rounds: int,
    repeats: int,
    sizes: Sequence[int],
    draws: int,
) -> Plan:
    """Return what every contender is asked.

    Raises:
        OptionError: The cases cannot be divided so that something can be learnt and tested.
    """
    target, labels = read_target(labelled.texts, column, kind)
    strata = strata_of(target, labels)
    names = target.classes or [f"quarter {i + 1}" for i in range(int(strata.max()) + 1)]
    number = {name: i for i, name in enumerate(dict.fromkeys(labelled.groups))}  # by name, rows would have an order
    groups = np.array([number[name] for name in labelled.groups])
    if labelled.parts is not None:
        folds = given_fold(labelled.parts)
    else:
        folds = draw_folds(groups, strata, names, repeats=repeats, seed=seed)
    check_parts(folds, strata, names, of_classes=bool(target.classes))
    few = draw_labels(folds, groups, strata, sizes=sizes, count=draws, seed=seed)
    return Plan(target, labelled, labels, groups, strata, folds, few, seed, rounds)


def image_names(labelled: Labelled) -> Sequence[str]:
    """Names of the cases by which training lists tell images: paths, as some tell patients by folders, else ids."""
    return labelled.ids if labelled.paths is None else labelled.paths


def _ordered(labelled: Labelled, contenders: Sequence[Contender]) -> tuple[Labelled, list[Contender]]:
    """Cases in an order that does not depend on the table's rows."""
    first = contenders[0].sets[0].values
    keys = [hashlib.sha256(row.tobytes()).hexdigest() for row in np.ascontiguousarray(first, np.float32)]
    order = in_one_order(labelled, keys)
    return labelled.take(order), [each.take(order) for each in contenders]


def in_one_order(labelled: Labelled, tie_break: Sequence[str] | None = None) -> list[int]:
    """Return the positions of the cases in an order that does not depend on that of the table's rows.

    Args:
        labelled: The cases.
        tie_break: What to order cases by whose ids say only in which row they are.
    """
    keys = labelled.ids if labelled.have_ids or labelled.paths is not None or tie_break is None else tie_break
    order: list[int] = np.argsort(np.array(keys, dtype=object), kind="stable").tolist()
    return order


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _table_digest(table: Any) -> str:
    if isinstance(table, str | Path):
        with Path(table).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _packages() -> Iterator[str]:
    yield from _PACKAGES
    if has_umap():  # else maps are by PCA
        yield "umap-learn"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
