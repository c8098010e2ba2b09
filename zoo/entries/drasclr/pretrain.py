"""Pre-train DrasCLR on the patches of a cohort. The defaults are the published run.

    python -m zoo.entries.drasclr.data group --patches cohort/patch --out cohort/grouped_patch
    python -m zoo.entries.drasclr.pretrain --data cohort/grouped_patch --out runs/drasclr
    torchrun --nproc-per-node 4 -m zoo.entries.drasclr.pretrain --data cohort/grouped_patch --out runs/drasclr --resume
    python -m zoo.entries.drasclr.pretrain --data own/grouped_patch --init drasclr-cnn3d --out runs/own

Published: 20 epochs over 9 179 COPDGene subjects at 581 landmarks on 4 GPUs, batch 128, SGD. Every step is at one
landmark. The exported weights are those of the last epoch, as the authors' are: early losses are low because the queues
begin with random negatives, so the epoch of the lowest loss (`best.pt`) is not the best. `--upstream` brings the
authors' order of subjects back (the card says more).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zoo.entries.drasclr.atlas import load_landmarks, neighbours, normalise
from zoo.entries.drasclr.augment import Augment
from zoo.entries.drasclr.contract import NAME
from zoo.entries.drasclr.data import ORDERS, Patches
from zoo.entries.drasclr.method import COMBINATIONS, QUEUE_DTYPES, DrasCLR
from zoo.entries.drasclr.model import EXPERT_INITS
from zoo.entry import Config
from zoo.errors import OptionError
from zoo.files import write_text
from zoo.registry import get_entry
from zoo.training import distributed
from zoo.training.args import TrainArgs, arg, build_from, command_of, default, parse_args, run_command
from zoo.training.contrastive import warn_of_unshuffled_keys
from zoo.training.loop import fit
from zoo.training.publish import pretraining_header, publish_run
from zoo.training.resuming import read_json
from zoo.training.runlog import Metrics
from zoo.training.session import running
from zoo.training.starting import Own, Part, init_arg, same_names, start_from_init

log = logging.getLogger("zoo")

Indices = npt.NDArray[np.int64]

TABLE = "neighbours.json"
"""File in OUT with the landmarks of a run and their neighbours."""


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Published run of `train.py` with the flags of `run_train.sh`."""

    data: str = arg("folder of patch_loc_<i>.npy")
    epochs: int = default(20)
    batch_size: int = arg("subjects per optimiser step, over all processes and accumulated parts", 128)
    lr: float = default(0.01)
    workers: int = default(4)
    landmarks: str = arg("landmarks (.npy) that the patches were cut at; empty for the authors', which are fetched", "")
    locations: str = arg("landmarks to train on: 3,17,40, or a slice as ::8; empty for all", "")
    neighbours: int = arg("number of nearest landmarks in the neighbour loss", 2)
    augment: str = arg("letters of the changes in their order: affine, gaussian noise, contrast", "agc")
    order: str = arg("landmarks and subjects in a new order in each pass, or in their own", "shuffled", ORDERS)
    init: str = init_arg()
    experts: int = arg("kernels that each convolution mixes", 8)
    expert_init: str = arg("start of the experts, as the authors' or as ordinary kernels", "upstream", EXPERT_INITS)
    queue_size: int = arg("negatives in the queue of each landmark", 4096)
    queue_dtype: str = arg("numbers in the queues", "float32", tuple(QUEUE_DTYPES))
    key_momentum: float = arg("share of the key network kept at each step", 0.999)
    temperature: float = arg("temperature of the contrastive softmax", 0.2)
    beta: float = arg("weight of the neighbour loss", 1.0)
    combine: str = arg("the neighbours' similarities are added up, or averaged", "sum", COMBINATIONS)
    warm_up: int = arg("passes over the data before the neighbour loss counts", 0)
    mlp: bool = arg("two-layer projection head", True)
    key_batches: int = arg("parts the keys' batch norm sees separately; at least 2 for a run on one process", 1)
    half: bool = arg("export the weights in half precision", False, free=True)
    upstream: bool = arg("the published behaviour: landmarks and subjects in their own order", False)


def main(argv: Sequence[str] | None = None) -> Metrics:
    """Train, then export the query network and write its manifest record; returns the metrics of the last epoch."""
    args = resolve(parse_args(Args, argv, __doc__))
    with running(args) as processes:
        check_share(args, processes.world)
        torch.manual_seed(args.seed)
        landmarks = load_landmarks(args.landmarks or None)
        table = neighbours(landmarks, args.neighbours)
        patches = build_patches(args, table)
        method = build_method(args, landmarks, table, patches.locations)
        record = table_of(landmarks, table, patches.locations)
        keep_table(Path(args.out), record)
        base = start(method, args, record)
        command = command_of(args, "zoo.entries.drasclr.pretrain")
        header = pretraining_header(NAME, command, input={}, base=base)
        fit(method, patches, args, processes=processes, header=header, base=args.init)
        return publish_run(args, processes, models=(NAME,), header=header)


def resolve(args: Args) -> Args:
    """Fill in the arguments that depend on others."""
    return replace(args, order="upstream") if args.upstream else args


def check_share(args: Args, world: int) -> None:
    """Raise `OptionError` where batch norm would see one sample, whose last map has one voxel.

    Warns where all keys are one batch on one process.
    """
    share = args.batch_size // (world * args.accumulate)
    if share // max(1, args.key_batches) < 2:
        raise OptionError(
            f"--batch-size {args.batch_size} over {world} process(es), --accumulate {args.accumulate} and "
            f"--key-batches {args.key_batches}: batch norm needs at least 2 subjects at a time"
        )
    warn_of_unshuffled_keys(world, args.key_batches)


def build_patches(args: Args, table: Indices) -> Patches:
    """The patches at the landmarks of the run, and those beside them, by the (L, R) table of neighbours.

    Warns where the queues hold more keys than there are subjects: older keys of a subject are then its negatives.
    """
    patches = Patches(
        args.data,
        table,
        locations=choose(args.locations, len(table)),
        augment=Augment(args.augment),
        order=args.order,
        seed=args.seed,
    )
    if args.queue_size >= patches.subjects:
        log.warning(
            "--queue-size %d for %d subjects: every subject's own older keys are among its negatives; a smaller "
            "--queue-size has fewer of them",
            args.queue_size,
            patches.subjects,
        )
    return patches


def build_method(args: Args, landmarks: Indices, table: Indices, locations: Sequence[int]) -> DrasCLR:
    """The objective with the run's settings, for some of the landmarks (L, 3) and their neighbours of the table."""
    positions = torch.from_numpy(normalise(landmarks))
    return build_from(
        args,
        DrasCLR,
        positions[locations],
        positions[torch.from_numpy(table[locations])],
        momentum=args.key_momentum,
    )


def start(method: DrasCLR, args: Args, record: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a method with the weights of `--init`; returns the base of the header, see `start_from_init`.

    Queues are of one run's landmarks: they are taken from `best.pt` or `last.pt` beside the same table alone.
    """
    parts = [
        Part("encoder", NAME, same_names(get_entry(NAME).required), {"num_classes": 0}),
        Part("projection head", NAME, same_names(("fc.",)), {"projection": True}),
    ]
    file = Path(args.init).parent / TABLE
    is_same = Path(args.init).is_file() and file.is_file() and read_json(file) == record
    refused = "" if is_same else f"no {TABLE} beside the file says that they are of the same landmarks"
    queues = Own("queues", ("queue", "queue_ptr"), needs=parts[-1].label, refused=refused)
    networks = ("encoder_q.", "encoder_k.")
    return start_from_init(method, args, parts, networks=networks, input={}, own=(queues,), decided=arguments_of)


def arguments_of(facts: Config) -> dict[str, int]:
    """Arguments that the weights of an encoder decide."""
    return {"experts": facts["experts"]}


def choose(text: str, count: int) -> list[int]:
    """Landmarks that `--locations` names, of `count`.

    Raises:
        OptionError: The text is neither numbers between commas nor a slice, or names no landmark.
    """
    try:
        if ":" in text:
            bounds = [int(part) if part.strip() else None for part in text.split(":")]
            chosen = list(range(count))[slice(*bounds)]
        else:
            chosen = [int(part) for part in text.split(",")] if text else list(range(count))
    except (TypeError, ValueError) as error:
        raise OptionError(f"--locations {text!r}: expected numbers as 3,17,40, or a slice as ::8") from error
    if not chosen:
        raise OptionError(f"--locations {text!r} names none of {count} landmarks")
    return chosen


def table_of(landmarks: Indices, table: Indices, locations: Sequence[int]) -> dict[str, Any]:
    """The landmarks of a run and their neighbours, as JSON has them; on a grid most neighbours were a choice."""
    return {
        "rule": "nearest by Euclidean distance in voxels, the smaller index first among equals",
        "landmarks": landmarks.tolist(),
        "locations": list(locations),
        "neighbours": table[list(locations)].tolist(),
    }


def keep_table(out: Path, record: Mapping[str, Any]) -> None:
    """Write the landmarks and their neighbours into OUT.

    Raises:
        OptionError: A run in OUT had others.
    """
    file = out / TABLE
    if (out / "last.pt").exists() and file.exists() and read_json(file) != record:
        raise OptionError(
            f"{out} holds a run with other landmarks or neighbours ({file.name}): give the same --landmarks, "
            "--locations and --neighbours, or another --out"
        )
    if distributed.rank() == 0:
        write_text(file, json.dumps(record))


if __name__ == "__main__":
    run_command(main)
