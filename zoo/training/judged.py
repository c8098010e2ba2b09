"""The epoch whose weights a run is judged by: how it is chosen where nothing is validated, and how it is taken up."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from zoo.training.args import TrainArgs
from zoo.training.saving import read_state

log = logging.getLogger("zoo")

A = TypeVar("A", bound=TrainArgs)


def judged_by_loss(args: A, lacking: str) -> A:
    """Return the arguments of a run without validation: where a metric of it was to choose, the training loss does.

    Args:
        args: The run.
        lacking: What there is not, for the warning.
    """
    if not args.monitor.lstrip("+").startswith("val_"):
        return args
    log.warning("%s: the best epoch is that of the least training loss", lacking)
    return replace(args, monitor="loss")


def take_weights(method: nn.Module, file: Path) -> dict[str, Any]:
    """Fill a method with the weights of `best.pt` or `last.pt`, in eval mode; returns all that the file has.

    Raises:
        CheckpointFormatError: It is not a file of a run.
        IntegrityError: It is damaged.
    """
    state = read_state(file, mmap=True)
    method.load_state_dict(state["model"])
    method.eval()
    return state
