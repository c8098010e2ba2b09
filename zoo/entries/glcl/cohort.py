"""Which volumes a run takes, and on what grid: the flags that both recipes of GLCL share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from zoo.entries.glcl.layouts import DATASETS, Case, DataSet, choose, find_cases, read_cases
from zoo.entries.glcl.model import MOMENTUM, STRIDE
from zoo.entries.glcl.storage import CaseStore
from zoo.entries.glcl.subjects import parse_ids
from zoo.errors import OptionError
from zoo.training.args import OPTIMIZERS, SCHEDULES, TrainArgs, arg

ALL, PUBLISHED = "all", "published"


@dataclass(kw_only=True)
class CohortArgs(TrainArgs):
    """What pre-training and fine-tuning have in common."""

    data: str = arg("folder with the volumes")
    optimizer: str = arg("update rule", "adam", OPTIMIZERS)
    lr: float = arg("learning rate at its peak", 1e-3)
    weight_decay: float = arg("weight decay", 0.0)
    schedule: str = arg("course of the learning rate", "constant", SCHEDULES)
    workers: int = arg("loader processes per process", 4)
    norm_momentum: float = arg("share of each step in the norms' moving averages; .1 for short runs", MOMENTUM)
    dataset: str = arg("what the volumes are: layout, labels, size and pixels", "acdc", tuple(DATASETS))
    list: str = arg("table (name, image, mask; files relative to --data) in place of the layout; empty for none", "")
    structures: str = arg("what labels 1, 2, ... of masks of your own are: a,b; empty for the data set's", "")
    size: int = arg("side of the slices in pixels, a multiple of 32; 0 for the data set's", 0)
    spacing: float = arg("side of a pixel in mm; 0 for the data set's", 0.0)
    n4: bool = arg("correct the bias field of the volumes first, once", False)
    cache: str = arg("folder for the prepared volumes, may be shared by runs; empty for OUT/volumes", "")

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
        named = tuple(name.strip() for name in self.structures.split(",")) if self.structures else ()
        if "" in named or len(set(named)) < len(named) or len(named) > 254:
            raise OptionError(f"--structures {self.structures!r}: different names between commas are expected")
        known = replace(known, structures=named, values=()) if named else known
        return replace(known, size=self.size or known.size, spacing=self.spacing or known.spacing)

    def open_store(self) -> CaseStore:
        """Where the volumes are kept on the network's grid."""
        volumes = self.volumes
        return CaseStore(self.cache or Path(self.out) / "volumes", volumes, volumes.size, volumes.spacing, n4=self.n4)


def all_cases(args: CohortArgs) -> list[Case]:
    """Find all volumes of a run's folder, or of its table."""
    return read_cases(args.list, args.data) if args.list else find_cases(args.data, args.volumes)


def named_cases(flag: str, text: str, cases: Sequence[Case], published: Sequence[str]) -> list[Case]:
    """Return the volumes that a flag names.

    Args:
        flag: Its name, for messages.
        text: `published`, `all`, or names, of which numbers may be ranges: `001-006,012`.
        cases: All that there are.
        published: Names that the first stands for.

    Raises:
        OptionError: Volumes are not there.
    """
    if text == ALL:
        return [*cases]
    try:
        return choose(cases, published if text == PUBLISHED else parse_ids(text))
    except OptionError as error:
        raise OptionError(f"{flag} {text}: {error}") from None


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Say which share of the norms' moving averages comes from the latest step."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum


def forget_averages(network: nn.Module) -> None:
    """Make all norms' averages those of a new network."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()


def changed_input(volumes: DataSet) -> dict[str, object]:
    """What a record must say of the input where it is not that of the published ACDC weights."""
    published = DATASETS["acdc"]
    facts: dict[str, object] = {}
    if volumes.size != published.size:
        facts["size"] = [volumes.size] * 2
    if volumes.spacing != published.spacing:
        facts["spacing"] = [volumes.spacing] * 2
    return facts
