"""What a network learns of whole images: labels, classes or numbers, with a loss for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.checkpoint import load_report
from zoo.embedding import head_outputs
from zoo.entry import State
from zoo.registry import get_entry
from zoo.tasks.outputs import Kind


class Learner(nn.Module):
    """Method of `zoo.training.loop.fit`: `forward` takes `inputs`, `weights` and `label`, and returns the loss.

    The loss is a mean over the cases of a batch, so that several processes learn as one. A label that a case lacks
    counts nothing, and the others of its column the more. What balancing adds to outputs, `prior`, is added inside the
    loss alone: at any time the network's own outputs, and so every file of the run, are without it.

    Args:
        network: An encoder with a head, from `load_model`.
        kind: `labels`, `classes` or `numbers`.
        labels: Of the training cases, `(cases, columns)`, NaN where one is missing; of numbers standardised.
        balanced: Whether a rare class counts as much as a frequent one.
        frozen: Whether all but the head stays as it is, in eval mode.
    """

    importance: Tensor
    prior: Tensor

    def __init__(self, network: nn.Module, kind: Kind, labels: Tensor, *, balanced: bool, frozen: bool) -> None:
        super().__init__()
        self.network, self.kind, self.frozen = network, kind, frozen
        importance = importance_of(kind, labels, balanced=balanced)
        self.register_buffer("importance", importance, persistent=False)
        self.register_buffer("prior", prior_of(kind, importance), persistent=False)
        bias = head_bias(network)
        if bias in load_report(network).fresh:  # the balanced outputs begin where the head was initialised
            with torch.no_grad():
                network.get_parameter(bias).sub_(self.prior)

    def train(self, mode: bool = True) -> Learner:
        """Switch modes; a frozen network stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        weights = batch["weights"]
        flat = [x.flatten(0, 1) for x in batch["inputs"]]
        outputs = head_outputs(self.network, flat, weights.flatten(0, 1)).float()
        return {"loss": self.loss(outputs.view(*weights.shape[:2], -1).sum(1), batch["label"])}

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over cases of the loss of the network's outputs `(N, K)`."""
        outputs = outputs + self.prior
        if self.kind == "classes":
            found = labels[:, 0].long()
            return (F.cross_entropy(outputs, found, reduction="none") * self.importance[found]).mean()
        there = labels.isfinite()
        known = torch.where(there, labels, torch.zeros_like(labels))
        if self.kind == "numbers":
            each = (outputs - known) ** 2 * self.importance
        else:
            of_label = torch.where(known > 0, self.importance[1], self.importance[0])
            each = F.binary_cross_entropy_with_logits(outputs, known, reduction="none") * of_label
        return (each * there).mean()

    def outputs(self, batch: dict[str, Any], at_once: int) -> Tensor:
        """Return the network's outputs for whole images `(N, K)` in float64.

        Args:
            batch: `inputs` and `weights`, each `(N, n, ...)`.
            at_once: Parts that go through the network together.
        """
        weights = batch["weights"]
        flat, counting = [x.flatten(0, 1) for x in batch["inputs"]], weights.flatten(0, 1)
        pieces = [slice(first, first + at_once) for first in range(0, len(counting), at_once)]
        found = torch.cat([head_outputs(self.network, [x[own] for x in flat], counting[own]) for own in pieces])
        return found.double().view(*weights.shape[:2], -1).sum(1)

    def state(self) -> State:
        """Return the network's tensors as they are saved."""
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


def head_bias(network: nn.Module) -> str:
    """Name of the bias of a head's last layer."""
    head = get_entry(load_report(network).model).head
    return [name for name, p in network.named_parameters() if name.startswith(head) and p.ndim == 1][-1]


def importance_of(kind: Kind, labels: Tensor, *, balanced: bool) -> Tensor:
    """Return what each value counts in the loss, 1 on average.

    Args:
        kind: Of the outputs.
        labels: Of the training cases, `(cases, columns)`.
        balanced: Whether rare values count more.

    Returns:
        Of labels (2, columns), of 0 and of 1; of classes (classes,); of numbers (columns,).
    """
    if kind == "classes":
        counts = torch.bincount(labels[:, 0].long()).float()
        return len(labels) / (len(counts) * counts) if balanced else torch.ones_like(counts)
    known = labels.isfinite().float().mean(0).float()
    if kind == "numbers":
        return 1 / known
    counts = torch.stack([(labels == value).float().sum(0) for value in (0, 1)])
    each = counts.sum(0) / (2 * counts) if balanced else torch.ones_like(counts)
    return each / known


def prior_of(kind: Kind, importance: Tensor) -> Tensor:
    """Return what balancing adds to outputs `(K,)`.

    A network that learns with weights w of the classes tells the probabilities of a cohort in which they are as
    frequent as they count; its outputs less log w are those of the training cohort (of a label, less log w1 - log w0).
    """
    if kind == "classes":
        return importance.log() - importance.log().mean()
    return importance[1].log() - importance[0].log() if kind == "labels" else torch.zeros_like(importance)
