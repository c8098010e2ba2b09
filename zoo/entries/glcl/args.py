"""Flags that both recipes of GLCL share: the volumes of a run, and their grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from zoo.entries.glcl.cases import CaseStore, StoredCase
from zoo.entries.glcl.cohort import DATASETS, Case, DataSet, choose, find_cases, read_cases
from zoo.entries.glcl.layers import MOMENTUM, STRIDE
from zoo.entries.glcl.splits import parse_ids
from zoo.errors import OptionError
from zoo.formats import open_checkpoint
from zoo.loading import input_of
from zoo.registry import split_name
from zoo.training.args import TrainArgs, arg, default

log = logging.getLogger("zoo")

ALL, PUBLISHED = "all", "published"
SAME_PIXELS = 0.01
"""Relative difference of pixel sizes that is not worth a warning: less than between volumes of one scanner."""


@dataclass(kw_only=True)
class CohortArgs(TrainArgs):
    """Arguments of both pre-training and fine-tuning."""

    data: str = arg("folder with the volumes")
    optimizer: str = default("adam")
    lr: float = default(1e-3)
    weight_decay: float = default(0.0)
    schedule: str = default("constant")
    workers: int = default(4)
    norm_momentum: float = arg("share of each step in the norms' moving averages; .1 for short runs", MOMENTUM)
    dataset: str = arg("data set, with its layout, labels, size and pixels", "acdc", tuple(DATASETS))
    table: str = arg(
        "CSV (name, image, mask; files relative to --data) in place of the layout; empty for none", "", was="list"
    )
    classes: str = arg(
        "names of the labels 1, 2, ... of your own masks: a,b; empty for the data set's", "", was="structures"
    )
    size: int = arg("side of the slices in pixels, a multiple of 32; 0 for the data set's", 0)
    spacing: float = arg("side of a pixel in mm; 0 for the data set's", 0.0)
    n4: bool = arg("correct the bias field of the volumes once, before all else", False)
    cache: str = arg("folder for the prepared volumes, may be shared by runs; empty for OUT/volumes", "", free=True)

    def check(self) -> None:
        """Raise `OptionError` for values that are wrong, or wrong together."""
        super().check()
        if self.size < 0 or self.size % STRIDE:
            raise OptionError(f"--size {self.size}: a multiple of {STRIDE} is expected")
        if self.spacing < 0:
            raise OptionError(f"--spacing {self.spacing}: a length in mm is expected")
        if not 0 < self.norm_momentum <= 1:
            raise OptionError(f"--norm-momentum {self.norm_momentum}: a share above 0 is expected")

    @property
    def volumes(self) -> DataSet:
        """The data set, with the structures, size and spacing of this run."""
        known = DATASETS[self.dataset]
        named = tuple(name.strip() for name in self.classes.split(",")) if self.classes else ()
        if "" in named or len(set(named)) < len(named) or len(named) > 254:
            raise OptionError(f"--classes {self.classes!r}: different names between commas are expected")
        known = replace(known, structures=named, values=()) if named else known
        return replace(known, size=self.size or known.size, spacing=self.spacing or known.spacing)

    def open_store(self) -> CaseStore:
        """Store of the volumes on the network's grid."""
        volumes = self.volumes
        return CaseStore(self.cache or Path(self.out) / "volumes", volumes, volumes.size, volumes.spacing, n4=self.n4)


def all_cases(args: CohortArgs) -> list[Case]:
    """Find all volumes of a run's folder, or of its table."""
    return read_cases(args.table, args.data) if args.table else find_cases(args.data, args.volumes)


def named_cases(flag: str, text: str, cases: Sequence[Case], published: Sequence[str]) -> list[Case]:
    """Return the volumes that a flag names.

    Args:
        flag: Name of the flag, for messages.
        text: `published`, `all`, or names; numbers may be given as ranges: `001-006,012`.
        cases: All volumes.
        published: Names that `published` stands for.

    Raises:
        OptionError: Volumes are missing.
    """
    if text == ALL:
        return [*cases]
    try:
        return choose(cases, published if text == PUBLISHED else parse_ids(text))
    except OptionError as error:
        raise OptionError(f"{flag} {text}: {error}") from None


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Set the share of the norms' moving averages that comes from the latest step."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum


def forget_averages(network: nn.Module) -> None:
    """Reset all norms' averages to those of a new network."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()


def grid_facts(volumes: DataSet, cases: Sequence[StoredCase]) -> dict[str, Any]:
    """Facts about the input of weights for a record, published or not: the pixels, axes and distances of slices.

    Args:
        volumes: The data set.
        cases: Volumes that the weights were trained on.
    """
    steps = [case.grid.spacing[2] for case in cases]
    return {
        "size": [volumes.size] * 2,
        "spacing": [volumes.spacing] * 2,
        "orientation": volumes.orientation,
        "thickness": [round(min(steps), 3), round(max(steps), 3)],
    }


def warn_of_other_pixels(model: str, checkpoint: str, volumes: DataSet) -> None:
    """Warn where the record of a run's starting weights has pixels of another size than the run.

    Args:
        model: `MODEL` or `MODEL.TAG`.
        checkpoint: File of the weights; empty for those of the tag. For a file without facts about its input the tag
            counts.
        volumes: Data set of the run.
    """
    is_known = bool(split_name(model)[1]) or (checkpoint and "input" in open_checkpoint(checkpoint).metadata)
    sides = input_of(model, checkpoint or None).spacing or ()
    if is_known and not all(math.isclose(side, volumes.spacing, rel_tol=SAME_PIXELS) for side in sides):
        log.warning(
            "%s was trained on pixels of %s mm, but those of this run have %g mm: structures appear to it in another "
            "size. Give --spacing %g, unless that is intended",
            checkpoint or model,
            " x ".join(f"{side:g}" for side in sides),
            volumes.spacing,
            sides[0],
        )
