"""Parts of momentum contrast (He et al., CVPR 2020), shared by the methods that have a key network and a queue."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.training import distributed

log = logging.getLogger("zoo")


def queue_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities of each query to its key (column 0) and to the queue, over the temperature.

    Args:
        query: Unit vectors (N, D).
        key: Unit vectors (N, D), row i the positive of query i.
        queue: Unit columns (D, K), the negatives.
        temperature: Positive number.

    Returns:
        Logits (N, 1 + K) in float32, whatever the autocast mode: half precision would round the differences away.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.float(), key.float(), queue.float()
        return torch.cat([(query * key).sum(1, keepdim=True), query @ queue], dim=1) / temperature


def other_keys_logits(query: Tensor, step_keys: Tensor, first: int, temperature: float) -> Tensor:
    """Similarities of each query to the keys of its step that are not its own, over the temperature.

    Args:
        query: This process's unit vectors (N, D).
        step_keys: Unit vectors (M, D), of this process or of all in rank order; query i's own is row `first + i`.
        first: Row of the first query's own key.
        temperature: Positive number.

    Returns:
        Logits (N, M) in float32, minus infinity in the own key's column.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ step_keys.float().T / temperature
    rows = torch.arange(len(query), device=query.device)
    own = torch.zeros_like(logits, dtype=torch.bool)
    own[rows, rows + first] = True
    return logits.masked_fill(own, -torch.inf)


def first_is_positive(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy with column 0 as the class, and the share of rows in which column 0 is largest."""
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, target), (logits.argmax(1) == 0).float().mean()


@torch.no_grad()
def update_momentum(online: nn.Module, average: nn.Module, momentum: float) -> None:
    """Move each parameter of `average` towards the one of the same name in `online`; buffers are left alone.

    `average` may be a part of `online` (a key network without decoder), never the other way round.
    """
    source = dict(online.named_parameters())
    for name, parameter in average.named_parameters():
        parameter.mul_(momentum).add_(source[name].detach(), alpha=1 - momentum)


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Write `keys` (N, D) into the columns of `queue` (D, K) from `pointer` on, round the end, and move the pointer."""
    size = queue.shape[1]
    start = int(pointer)
    columns = torch.arange(start, start + len(keys), device=queue.device) % size
    queue[:, columns[-size:]] = keys[-size:].T.to(queue.dtype)
    pointer.fill_((start + len(keys)) % size)


@torch.no_grad()
def shuffled_forward(network: Callable[[Tensor], Tensor], x: Tensor, groups: int = 1) -> Tensor:
    """Run `network` on a random mixture of all processes' batches and return this process's own rows.

    Batch norm then sees other samples beside a key than beside its query, so a key cannot be told by its batch
    statistics (He et al., section 3.3). That needs more than one group of samples: the processes are groups already,
    and `groups` > 1 runs each process's share in that many parts, which is what one process alone needs. With one group
    in all a permutation would change nothing, so the batch is not permuted.
    """
    if distributed.world() * groups == 1:
        return network(x)
    everyone = distributed.gather(x)
    order = distributed.broadcast(torch.randperm(len(everyone), device=x.device))
    mine = order.view(distributed.world(), -1)[distributed.rank()]
    own = torch.cat([network(everyone[part]) for part in mine.chunk(groups)])
    outputs = distributed.gather(own)
    return outputs[order.argsort()].view(distributed.world(), -1, *outputs.shape[1:])[distributed.rank()]


def warn_of_unshuffled_keys(world: int, groups: int) -> None:
    """Warn where `shuffled_forward` has one group in all: its batch statistics alone tell a key from the queue.

    Args:
        world: Processes of the run.
        groups: Parts in which each runs its keys, the run's `--key-batches`.
    """
    if world * groups == 1:
        log.warning(
            "--key-batches 1 on one process: a query and its key are in batches of the same samples, whose statistics "
            "tell the key from the queue. Give --key-batches 2, which mixes the samples as several processes do"
        )
