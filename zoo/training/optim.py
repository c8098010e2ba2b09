"""Optimisers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zoo.training.args import TrainArgs


def build_optimizer(params: Iterable[nn.Parameter] | list[dict[str, Any]], args: TrainArgs) -> torch.optim.Optimizer:
    """Build the update rule that `args.optimizer` names, for parameters or for groups from `zoo.param_groups`."""
    if args.optimizer == "sgd":
        return torch.optim.SGD(params, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
    optimizer: torch.optim.Optimizer = kind(params, args.lr, weight_decay=args.weight_decay)
    return optimizer


def lr_factor(args: TrainArgs, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate at a step of an epoch: linear warm-up, then `args.schedule`.

    A function of the position alone, so a resumed run needs no state for it ('plateau' adds its own factor).
    """
    per_step = args.schedule == "cosine-per-step"
    position = epoch + step / steps_per_epoch
    if position < args.warmup_epochs:
        return (epoch * steps_per_epoch + step + 1) / (args.warmup_epochs * steps_per_epoch)
    if args.schedule not in ("cosine", "cosine-per-step"):
        return 1.0
    progress = ((position if per_step else epoch) - args.warmup_epochs) / max(1, args.epochs - args.warmup_epochs)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


class Plateau:
    """Factor on the learning rate that shrinks when the monitored metric stops improving (schedule 'plateau').

    As torch's `ReduceLROnPlateau`, which the published runs use, it asks for an improvement of 1e-4 of the best value.
    """

    def __init__(self, args: TrainArgs) -> None:
        self.active = args.schedule == "plateau"
        self.patience, self.shrink = args.plateau_patience, args.plateau_factor
        self.factor, self.waited, self.best = 1.0, 0, math.inf

    def observe(self, value: float) -> None:
        """Take note of one epoch's result, the smaller the better."""
        if math.isinf(self.best) or value < self.best - 1e-4 * abs(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.active and self.waited > self.patience:
            self.factor, self.waited = self.factor * self.shrink, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"factor": self.factor, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the state of an earlier run."""
        self.factor, self.waited, self.best = state["factor"], int(state["waited"]), state["best"]
