"""A method with one weight and known losses, for tests of the course of a run."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from zoo.training import distributed
from zoo.training.args import TrainArgs
from zoo.training.loop import fit


class Numbers(Dataset):
    """Item `(pass, index)` is the number `index`."""

    def __init__(self, length: int = 8) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key) -> torch.Tensor:
        return torch.tensor(float(key[1]))


class Scripted(nn.Module):
    """One weight with gradient `slope`; reports the losses of a script, one a step."""

    def __init__(self, losses=(), slope: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.losses, self.slope, self.seen = list(losses), slope, []

    def forward(self, batch):
        value = self.slope * self.weight[0]
        shown = self.losses.pop(0) if self.losses and self.training else 0.0
        return {"loss": value - value.detach() + shown, "score": torch.tensor(-shown)}


ONE = distributed.Processes(0, 1, torch.device("cpu"))


def run(method, out, validate=None, **settings):
    """Fit with plain SGD, one step of 8 samples an epoch, unless `settings` say otherwise."""
    defaults = {"batch_size": 8, "epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    args = TrainArgs(data="", out=str(out), **(defaults | settings))
    return fit(method, Numbers(), args, processes=ONE, validate=validate)
