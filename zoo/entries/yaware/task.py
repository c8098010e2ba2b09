"""Shared parts of y-Aware's fine-tuning runs: volumes, classes, splits, and the note in OUT of their arguments."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import zoo
from zoo.entries.yaware.args import Args
from zoo.entries.yaware.cohort import Cohort, read_cohort
from zoo.entries.yaware.files import affine_in_words, is_same_place
from zoo.entries.yaware.splits import (
    Indices,
    Split,
    class_codes,
    group_by_subject,
    make_splits,
    site_folds,
    stratified_folds,
)
from zoo.entry import Preprocessing
from zoo.errors import OptionError
from zoo.fetching import hash_file
from zoo.files import write_text
from zoo.training import distributed
from zoo.training.args import renamed
from zoo.training.distributed import Processes
from zoo.training.finetune import starting_input
from zoo.training.resuming import differences, free_names, read_json

log = logging.getLogger("zoo")

RECIPE = "zoo.entries.yaware.finetune"
FINAL = "final"
"""Name of the split, and of the folder in OUT, of the network that is trained on all subjects."""
LENGTH = {"epochs", "patience"}
"""Free in a single run but not here: finished parts had the old values."""


@dataclass(frozen=True, eq=False)
class Task:
    """Volumes, classes and splits that all runs share."""

    cohort: Cohort
    codes: Indices
    """Class of each volume (n,)."""
    classes: tuple[str, ...]
    splits: list[Split]
    final: Split
    """All subjects, with nothing to test on: the parts of the network of `--final`."""
    skipped: dict[str, str]
    """Sites without an AUROC, with the reason."""
    input: Preprocessing
    """Input contract of the volumes."""


def read_task(args: Args) -> Task:
    """Read volumes and classes, and divide them.

    Raises:
        OptionError: Columns or rows are missing, or there are too few classes, subjects or sites.
        InputContractError: Volumes are missing.
    """
    known = starting_input(args)
    cohort = read_cohort(args.data, args.table, rows=args.rows, grid=args.grid, contract=known)
    if not (args.from_scratch or args.checkpoint):
        warn_of_grid(cohort, known)
    try:
        classes, codes = class_codes(cohort.column(args.label))
    except OptionError as error:
        raise OptionError(f"--label {args.label}: {error}") from error
    is_default = args.subject == type(args).subject
    is_own = not args.subject or (is_default and args.subject not in cohort.rows[0])
    subjects = group_by_subject(codes, cohort.names if is_own else cohort.column(args.subject))
    if args.splits == "leave-site-out":
        folds, skipped = site_folds(codes, cohort.column(args.site))
    else:
        folds, skipped = stratified_folds(subjects, args.folds, classes, args.seed), {}
    for site, reason in skipped.items():
        log.warning("site %s: %s", site, reason)
    splits = make_splits(
        subjects, folds, labelled=args.labelled, repeats=args.repeats, val_share=args.val_share, seed=args.seed
    )
    everyone = [(FINAL, np.zeros(0, np.int64))]
    final = make_splits(subjects, everyone, val_share=args.val_share, seed=args.seed)[0]
    return Task(cohort, codes, classes, splits, final, skipped, known.override(cohort.differences(known)))


def warn_of_grid(cohort: Cohort, known: Preprocessing) -> None:
    """Log volumes that are not on the grid of the pre-trained weights, which is allowed."""
    if known.size and cohort.shape != known.size:
        log.warning(
            "the volumes of %s have %s voxels, but the weights were trained on %s: features may mean little until "
            "every layer is fine-tuned",
            cohort.source,
            cohort.shape,
            known.size,
        )
    elif cohort.affine is not None and known.affine and not is_same_place(cohort.affine, np.array(known.affine)):
        log.warning(
            "the volumes of %s lie elsewhere than those of the weights' training: %s, there %s; if an axis points the "
            "other way, the brain is mirrored",
            cohort.source,
            affine_in_words(cohort.affine),
            affine_in_words(np.array(known.affine)),
        )


def check_steps(args: Args, task: Task, processes: Processes) -> None:
    """Raise `OptionError` before training where a split does not fill a step, or a norm would see one value."""
    from zoo.entries.yaware.model import least_batch  # MONAI takes seconds to import; wrong arguments fail before

    smallest = min(task.splits, key=lambda split: len(split.train))
    if len(smallest.train) < args.batch_size:
        raise OptionError(
            f"{smallest.name} has {len(smallest.train)} volumes to train on, fewer than a step's --batch-size "
            f"{args.batch_size}; give a smaller one"
        )
    if args.batch_size // (processes.world * args.accumulate) < least_batch(task.cohort.shape):
        raise OptionError(
            f"--batch-size {args.batch_size} on {processes.world} process(es) in {args.accumulate} part(s): one volume "
            f"of {task.cohort.shape} leaves one value for the batch norms of the last block; at least 2 are needed"
        )


def check_probes(task: Task) -> None:
    """Raise `OptionError` before features are computed where a split has too few volumes of a class for a probe."""
    for split in task.splits:
        counts = np.bincount(task.codes[split.train], minlength=len(task.classes))
        if counts.min() < 2:
            raise OptionError(
                f"--freeze: {split.name} has {counts.min()} volume(s) of {task.classes[counts.argmin()]!r} to train "
                "on; a linear probe needs at least 2 of each class. Fewer --folds or more --labelled leave more"
            )


def begin_run(args: Args, processes: Processes) -> None:
    """Note the arguments in OUT, or compare them with those of the run there.

    Raises:
        OptionError: OUT holds a run of another recipe, or with other arguments, another table or other weights to start
            from; or it holds a run and `resume` is off.
    """
    file = Path(args.out) / "args.json"
    now = {"recipe": RECIPE, **asdict(args), "table_sha256": hash_file(Path(args.table)), **start_of(args)}
    began = read_json(file) if file.exists() else {}
    if began and began.get("recipe") != RECIPE:
        raise OptionError(f"{file} is not of a run of {RECIPE}; give another --out")
    if began and any(file.parent.glob("*/*.json")):
        if not args.resume:
            raise OptionError(f"{file.parent} holds a run; give --resume to go on with it, or another --out")
        changed = differences(began, now, free_names(args) - LENGTH, renamed(Args))
        if changed:
            other = [f"{name} {before!r}, now {after!r}" for name, (before, after) in changed.items()]
            raise OptionError(
                f"{file} is of a run with other arguments ({'; '.join(other)}): its finished parts would not be "
                f"comparable. Give the same, or another --out"
            )
    distributed.barrier()
    if processes.is_main:
        write_text(file, json.dumps(now, indent=1))


def start_of(args: Args) -> dict[str, str]:
    """The weights that a run begins with: their name and the digest of their file.

    Raises:
        OptionError: The checkpoint does not exist.
        WeightsUnavailableError: No weights can be had under the model's name; or one of its causes, as `DownloadError`.
    """
    if args.from_scratch:
        return {"start": "random"}
    if args.checkpoint:
        file = Path(args.checkpoint).expanduser()
        if not file.is_file():
            raise OptionError(f"--checkpoint {args.checkpoint}: there is no such file; give a file of weights")
        return {"start": "checkpoint", "start_sha256": hash_file(file)}
    info = zoo.model_info(args.model)
    return {"start": info.name, "start_sha256": info.sha256 or hash_file(zoo.download_weights(args.model))}
