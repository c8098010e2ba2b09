"""DrasCLR's pre-training objective: tell patients apart at each landmark, by its patch and by neighbouring ones.

Yu et al., "DrasCLR: A self-supervised framework of learning disease-related and anatomy-specific representation for 3D
lung CT images", Medical Image Analysis 2024, 103062; constants from batmanlab/DrasCLR, `train.py`, `run_train.sh` and
`moco/builder.py`. Tensor names are the authors', so that its files load as theirs do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.drasclr.model import DrasCLREncoder, check_locations
from zoo.errors import OptionError
from zoo.training.contrastive import enqueue, first_is_positive, queue_logits, shuffled_forward, update_momentum
from zoo.training.distributed import gather

log = logging.getLogger("zoo")

COMBINATIONS = ("sum", "mean")
QUEUE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class DrasCLR(nn.Module):
    """Views of patches to losses: `loss = patch + beta * neighbour`.

    `forward` takes a dict with `query` and `key`, two views of the patches of N subjects at one landmark (N, 1, 32, 32,
    32), about [-1, 1]; `neighbours` (N, R, 32, 32, 32), the same subjects' patches at the R nearest landmarks;
    `location` (N,), the landmark's index in `locations`, the same for all; and `pass` (N,), the number of earlier
    passes. It returns scalars: `loss`; `patch`, cross-entropy of each patch with its other view against the landmark's
    queue; `neighbour`, that of the neighbours with the same key and queue; `accuracy` and `neighbour_accuracy`, the
    share of subjects nearest to their own key.

    The queue is (locations, dim, queue_size), not (dim, queue_size, locations) as the authors have it, so that a step
    reads and writes adjacent memory. In the published run it takes 1.13 GiB, or half in float16, on every process: all
    processes write the same keys, so only keys are exchanged.

    Args:
        locations: (A, 3), locations of the landmarks, from `atlas.normalise`.
        neighbour_locations: (A, R, 3), locations of their neighbours.
        experts: Kernels that each convolution mixes.
        expert_init: How they start, see `DrasCLREncoder`.
        dim: Length of the projection.
        queue_size: Number of negatives kept for each landmark, K.
        queue_dtype: "float32" or "float16"; in half precision a negative is rounded, losses are not.
        momentum: Share of the key network kept at each step.
        temperature: Of the softmax over similarities.
        beta: Weight of the neighbour loss.
        combine: "sum": the neighbours' similarities are added up, as published, so that their softmax is R times as
            sharp as the patch's. "mean": they are averaged.
        warm_up: Passes over the data before the neighbour loss counts; it is measured all the same.
        mlp: Two-layer projection head (the published command) instead of one layer.
        key_batches: Parts in which a process runs its shuffled keys, each with batch statistics of its own; the authors
            have 1 and rely on several GPUs. One process needs at least 2, or batch norm tells keys from negatives.

    Raises:
        OptionError: A setting is out of its range.
        InputContractError: A location is outside [-1, 1].
    """

    def __init__(
        self,
        locations: Tensor,
        neighbour_locations: Tensor,
        *,
        experts: int = 8,
        expert_init: str = "upstream",
        dim: int = 128,
        queue_size: int = 4096,
        queue_dtype: str = "float32",
        momentum: float = 0.999,
        temperature: float = 0.2,
        beta: float = 1.0,
        combine: str = "sum",
        warm_up: int = 0,
        mlp: bool = True,
        key_batches: int = 1,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= momentum <= 1 and beta >= 0 and min(queue_size, key_batches) >= 1):
            raise OptionError(
                f"temperature={temperature}, momentum={momentum}, beta={beta}, queue_size={queue_size}, "
                f"key_batches={key_batches}: expected above 0, from 0 to 1, at least 0, and at least 1 for the last two"
            )
        for name, word, legal in (("combine", combine, COMBINATIONS), ("queue_dtype", queue_dtype, QUEUE_DTYPES)):
            if word not in legal:
                raise OptionError(f"{name}={word!r}: expected one of {', '.join(legal)}")
        count = len(locations)
        if locations.shape != (count, 3) or neighbour_locations.shape[::2] != (count, 3) or not locations.numel():
            raise OptionError(
                f"locations (A, 3) and neighbour_locations (A, R, 3) are expected, not {tuple(locations.shape)} and "
                f"{tuple(neighbour_locations.shape)}"
            )
        check_locations(locations)
        check_locations(neighbour_locations)
        self.momentum, self.temperature, self.key_batches = momentum, temperature, key_batches
        self.beta, self.combine, self.warm_up = beta, combine, warm_up
        heads = (dim, dim) if mlp else (dim,)
        self.encoder_q = DrasCLREncoder(experts, projection_dims=heads, expert_init=expert_init)
        self.encoder_k = DrasCLREncoder(experts, projection_dims=heads, expert_init=expert_init).requires_grad_(False)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.register_buffer("locations", locations, persistent=False)
        self.register_buffer("neighbour_locations", neighbour_locations, persistent=False)
        self.register_buffer("queue", _random_queue(count, dim, queue_size, QUEUE_DTYPES[queue_dtype]))
        self.register_buffer("queue_ptr", torch.zeros(count, dtype=torch.long))
        self.locations: Tensor
        self.neighbour_locations: Tensor
        self.queue: Tensor
        self.queue_ptr: Tensor

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch; in training also move the key network and the landmark's queue.

        Raises:
            OptionError: The batch has several landmarks.
        """
        here, data_pass = _only(batch, "location"), _only(batch, "pass")
        place = self.locations[here]
        query = _project(self.encoder_q, batch["query"], place)
        around = self._project_neighbours(batch["neighbours"], here)
        with torch.no_grad():
            if self.training:
                update_momentum(self.encoder_q, self.encoder_k, self.momentum)
                # The location needs no shuffling: it is the same for every process.
                key = shuffled_forward(lambda x: _project(self.encoder_k, x, place), batch["key"], self.key_batches)
            else:
                key = _project(self.encoder_k, batch["key"], place)
        negatives = self.queue[here].clone()
        patch, accuracy = first_is_positive(queue_logits(query, key, negatives, self.temperature))
        neighbour, neighbour_accuracy = first_is_positive(queue_logits(around, key, negatives, self.temperature))
        if self.training:
            enqueue(self.queue[here], self.queue_ptr[here], gather(key))
        return {
            "loss": patch + self.beta * neighbour if data_pass >= self.warm_up else patch,
            "patch": patch,
            "neighbour": neighbour,
            "accuracy": accuracy,
            "neighbour_accuracy": neighbour_accuracy,
        }

    def _project_neighbours(self, patches: Tensor, here: int) -> Tensor:
        """Sum or mean (N, dim) of the unit vectors of patches (N, R, 32, 32, 32), run as one batch of N * R."""
        count, number = patches.shape[:2]
        places = self.neighbour_locations[here].expand(count, number, 3)
        vectors = _project(self.encoder_q, patches.flatten(0, 1).unsqueeze(1), places).view(count, number, -1)
        return vectors.sum(1) if self.combine == "sum" else vectors.mean(1)


def _project(encoder: nn.Module, patches: Tensor, location: Tensor) -> Tensor:
    """Unit vectors (N, dim) of patches (N, 1, 32, 32, 32)."""
    return F.normalize(encoder(patches, location).float(), dim=1)


def _only(batch: Mapping[str, Tensor], name: str) -> int:
    """The one number that all samples of a batch share."""
    first, *others = torch.unique(batch[name]).tolist()
    if others:
        raise OptionError(
            f"a batch with {name} {first} and {', '.join(map(str, others[:5]))}: all samples must share one, as "
            "zoo.entries.drasclr.data.Patches orders them"
        )
    return int(first)


def _random_queue(locations: int, dim: int, size: int, dtype: torch.dtype) -> Tensor:
    """Unit columns (locations, dim, size), drawn one location at a time, to save memory."""
    queue = torch.empty(locations, dim, size, dtype=dtype)
    log.info("the queues of %d landmarks take %.2f GiB (%s)", locations, queue.nbytes / 2**30, dtype)
    for own in queue:
        own.copy_(F.normalize(torch.randn(dim, size), dim=0))
    return queue
