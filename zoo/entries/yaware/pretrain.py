"""Pre-train y-Aware on grey-matter maps and ages. The defaults are the published run.

    python -m zoo.entries.yaware.pretrain --data train.npy --table train.csv --out runs/yaware
    torchrun --nproc-per-node 4 -m zoo.entries.yaware.pretrain --data train.npy ... --out runs/yaware --resume
    python -m zoo.entries.yaware.pretrain --data own.npy --table own.csv --init yaware-densenet121 --out runs/own

Published: 100 epochs over 10 420 maps of 121 x 145 x 121 voxels, batch 64, Adam, cut-out views, sigma 5 years. Where
the authors' code has a defect, the default mends it; `--upstream` brings the published behaviour back (the card lists
both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from zoo.entries.yaware import MODEL
from zoo.entries.yaware.augment import TRANSFORMS
from zoo.entries.yaware.cohort import GRIDS, Cohort, check_apart, read_cohort
from zoo.entries.yaware.data import Volumes
from zoo.entries.yaware.method import KERNELS, NORMALIZATIONS, YAware
from zoo.entries.yaware.model import least_batch
from zoo.entries.yaware.splits import class_codes
from zoo.errors import OptionError
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import TrainArgs, arg, build_from, command_of, default, parse_args, run_command
from zoo.training.data import build_loader
from zoo.training.finetune import share_buffers
from zoo.training.loop import Validate, fit, mean_losses
from zoo.training.publish import pretraining_header, publish_run
from zoo.training.runlog import Metrics
from zoo.training.session import running
from zoo.training.starting import Part, init_arg, same_names, start_from_init


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `main.py --mode pretraining`, with the README's cut-out views."""

    data: str = arg(
        ".npy array (n, 1, D, H, W), or folder of NIfTI files; MAPS.ids.txt beside an array MAPS.npy, one identifier "
        "of the table (sub-01, sub-01_ses-2) a line, is compared with the table's order"
    )
    table: str = arg("CSV or TSV with a row for each volume, in the order of an array")
    epochs: int = default(100)
    batch_size: int = arg("subjects per optimiser step, over all processes and accumulated parts", 64)
    optimizer: str = default("adam")
    lr: float = default(1e-4)
    weight_decay: float = default(5e-5)
    schedule: str = default("constant")
    workers: int = default(8)
    rows: str = arg("rows of the table to train on, 'column=value'; empty for all", "")
    val_data: str = arg("volumes for validation; empty for those of --data", "")
    val_table: str = arg("table for validation; empty for that of --table", "")
    monitor: str = arg("metric that decides which epoch is exported, where there is validation", "val_loss")
    val_rows: str = arg("rows for validation; there is none without one of the three --val flags", "")
    grid: str = arg(
        "published: check grey-matter maps, and bring files to the published grid; any: take them unchanged",
        "published",
        GRIDS,
    )
    label: str = arg("column, or several with commas between, whose values tell how near two subjects are", "age")
    sigma: float = arg("standard deviation of the kernel, in the label's unit", 5.0)
    kernel: str = arg("gaussian for real labels, equal for classes, views for none (SimCLR)", "gaussian", KERNELS)
    temperature: float = arg("temperature of the contrastive softmax", 0.1)
    init: str = init_arg()
    tf: str = arg(
        "changes that make views; the authors' configuration file says all_tf, their README cutout",
        "cutout",
        TRANSFORMS,
    )
    normalize: str = arg(
        "let each anchor's weights sum to 1, or normalise along the authors' axis", "anchor", NORMALIZATIONS
    )
    val_random: bool = arg("draw new validation views each epoch", False)
    half: bool = arg("export the weights in half precision", False, free=True)
    upstream: bool = arg("the published behaviour of normalisation and validation views", False)


def main(argv: Sequence[str] | None = None) -> Metrics:
    """Train, then export the network and write its manifest record."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        torch.manual_seed(args.seed)
        method = build_method(args)
        volumes = build_volumes(args, args.data, args.table, args.rows)
        check_parts(args, volumes.cohort.shape, processes)
        validate = validation(args, volumes.cohort, processes)
        command = command_of(args, "zoo.entries.yaware.pretrain")
        changed = volumes.cohort.differences()
        base = start_from_init(method, args, parts(), networks=("network.",), input=changed)
        header = pretraining_header(MODEL, command, input=changed, base=base)
        best = fit(method, volumes, args, processes=processes, validate=validate, header=header, base=args.init)
        judged = best if validate else None  # without validation the last, as published
        return publish_run(args, processes, models=(MODEL,), header=header, best=judged)


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on others.

    Raises:
        OptionError: The kernel has no label to compare.
    """
    if args.upstream:
        args = replace(args, normalize="upstream", val_random=True)
    if not (args.val_data or args.val_table or args.val_rows) and args.monitor.lstrip("+").startswith("val_"):
        args = replace(args, monitor="loss")
    if args.kernel != "views" and not columns_of(args):
        raise OptionError(
            f"--label {args.label!r} names no column, which --kernel {args.kernel} compares; --kernel views needs none"
        )
    return args


def check_parts(args: Args, shape: Sequence[int], processes: distributed.Processes) -> None:
    """Raise `OptionError` where a part of a step has too few subjects for the loss, or for the norms of a process."""
    compared = args.batch_size // args.accumulate
    own = compared // processes.world
    if compared < 2 or own < least_batch(shape):
        raise OptionError(
            f"--batch-size {args.batch_size} --accumulate {args.accumulate} on {processes.world} process(es): each "
            f"part of a step needs at least 2 subjects, to be compared with each other, and {least_batch(shape)} on "
            f"each process, for the batch norms of volumes of {tuple(shape)}"
        )


def columns_of(args: Args) -> list[str]:
    """Columns of the table that the kernel compares."""
    return [] if args.kernel == "views" else [name.strip() for name in args.label.split(",") if name.strip()]


def build_method(args: Args) -> YAware:
    """The objective with the run's settings."""
    return build_from(args, YAware)


def parts() -> list[Part]:
    """The parts of the method that weights may have."""
    head = same_names(("hidden_representation.", "head_projection."))
    return [
        Part("encoder", MODEL, same_names(get_entry(MODEL).required), {"num_classes": 0}),
        Part("projection head", MODEL, head, {"projection": True}),
    ]


def build_volumes(args: Args, data: str, table: str, rows: str) -> Volumes:
    """The volumes of some rows of a table, with the labels that the kernel compares: numbers, or codes of classes."""
    names = columns_of(args)
    if args.kernel != "equal":
        return Volumes(read_cohort(data, table, labels=names, rows=rows, grid=args.grid), seed=args.seed)
    cohort = read_cohort(data, table, rows=rows, grid=args.grid)
    codes = np.stack([class_codes(cohort.column(name))[1] for name in names], axis=1)
    return Volumes(replace(cohort, labels=codes.astype(np.float64)), seed=args.seed)


def validation(args: Args, trained: Cohort, processes: distributed.Processes) -> Validate | None:
    """Mean losses over the validation rows, divided among the processes; the views are fixed by default."""
    if not (args.val_data or args.val_table or args.val_rows):
        return None
    volumes = build_volumes(args, args.val_data or args.data, args.val_table or args.table, args.val_rows)
    check_apart(trained, volumes.cohort)
    volumes.seed += 1
    mine = range(processes.rank, len(volumes), processes.world)
    batch = max(2, args.batch_size // (processes.world * args.accumulate))
    if len(volumes) // processes.world < 2:
        raise OptionError(
            f"{len(volumes)} validation volume(s) for {processes.world} process(es): 2 for each are needed"
        )
    parts = [list(mine[i : i + batch]) for i in range(0, len(mine) - 1, batch)]  # a last one alone cannot be compared

    def validate(method: nn.Module, epoch: int) -> Metrics:
        share_buffers(method)
        data_pass = epoch if args.val_random else 0
        keys = [[(data_pass, i) for i in part] for part in parts]
        loader = build_loader(volumes, args.workers, batch_sampler=keys)
        return mean_losses(method, loader, processes)

    return validate


if __name__ == "__main__":
    run_command(main)
