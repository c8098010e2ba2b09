"""Parts of momentum contrast: logits, queue, momentum update, shuffled batch norm."""

from __future__ import annotations

import math
from itertools import chain

import gloo
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.training import distributed
from zoo.training.contrastive import (
    enqueue,
    first_is_positive,
    other_keys_logits,
    queue_logits,
    shuffled_forward,
    update_momentum,
)


def test_logits_by_hand():
    """Column 0 is the query's own key, the rest the queue, all over the temperature."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    key = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    queue = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    expected = torch.tensor([[0.6, 1.0, 0.0, -1.0], [1.0, 0.0, 1.0, 0.0]]) / 0.2
    torch.testing.assert_close(queue_logits(query, key, queue, 0.2), expected)


def test_other_keys_of_a_step_by_hand():
    """Two queries of the second process among four keys: their own, rows 2 and 3, are no negatives."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    expected = torch.tensor([[1.0, 0.6, -torch.inf, -1.0], [0.0, 0.8, 1.0, -torch.inf]]) / 0.5
    torch.testing.assert_close(other_keys_logits(query, keys, 2, 0.5), expected)


def test_logits_stay_in_float32_under_autocast():
    """bfloat16 has 8 bits: it would move a logit of 5 by up to 0.02. They equal the float32 ones exactly."""
    query, key = (F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(i)), dim=1) for i in (0, 1))
    queue = F.normalize(torch.randn(16, 9, generator=torch.Generator().manual_seed(2)), dim=0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = queue_logits(query, key, queue, 0.2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, queue_logits(query, key, queue, 0.2))


def test_cross_entropy_and_accuracy_by_hand():
    """Equal logits cost log of their number; accuracy counts rows whose first column is largest."""
    loss, accuracy = first_is_positive(torch.zeros(3, 5))
    assert math.isclose(loss.item(), math.log(5), rel_tol=1e-6)
    loss, accuracy = first_is_positive(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [5.0, 4.0]]))
    expected = sum(math.log1p(math.exp(-d)) for d in (2, -1, 2, 1)) / 4
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
    assert accuracy.item() == 0.75


def test_queue_is_written_round_its_end():
    """Three batches of 3 in a queue of 7: the last one is split between the end and the start."""
    queue, pointer = torch.zeros(2, 7), torch.zeros(1, dtype=torch.long)
    for first in (1, 4, 7):
        enqueue(queue, pointer, torch.arange(first, first + 3.0)[:, None].expand(3, 2))
    assert queue[0].tolist() == queue[1].tolist() == [8, 9, 3, 4, 5, 6, 7]
    assert pointer.tolist() == [2]


def test_a_batch_larger_than_the_queue_leaves_its_last_keys():
    """7 keys into 3 places from place 1: each place holds the last key that was written to it."""
    queue, pointer = torch.zeros(1, 3), torch.ones(1, dtype=torch.long)
    enqueue(queue, pointer, torch.arange(1.0, 8.0)[:, None])
    by_hand = torch.zeros(3)
    for i in range(7):
        by_hand[(1 + i) % 3] = i + 1
    assert queue[0].tolist() == by_hand.tolist()
    assert pointer.tolist() == [(1 + 7) % 3]


def test_momentum_update_moves_parameters_by_name_and_leaves_buffers():
    """0.9 old + 0.1 new; batch statistics are not averaged; an average that is a part of the online network is fine."""
    online = nn.ModuleDict({"body": nn.BatchNorm1d(2), "decoder": nn.Linear(2, 2)})
    average = nn.ModuleDict({"body": nn.BatchNorm1d(2)})
    with torch.no_grad():
        online["body"].weight.fill_(3.0)
        online["body"].running_mean.fill_(9.0)
    update_momentum(online, average, 0.9)
    torch.testing.assert_close(average["body"].weight, torch.full((2,), 0.9 * 1 + 0.1 * 3))
    assert average["body"].running_mean.tolist() == [0, 0]
    assert average["body"].weight.grad_fn is None


@pytest.mark.slow
def test_shuffling_returns_each_key_to_its_row(tmp_path):
    """Without batch norm the shuffled pass of two processes is the plain pass, row for row."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(8, 3, 2, 2)

    def work(groups):
        torch.manual_seed(5 + distributed.rank())  # processes draw differently; the first one's order holds
        mine = x.chunk(2)[distributed.rank()]
        return [shuffled_forward(network, mine, groups), network(mine).detach()]

    for groups in (1, 2):
        for shuffled, plain in gloo.run(work, 2, tmp_path / str(groups), groups):
            torch.testing.assert_close(shuffled, plain)


@pytest.mark.slow
def test_batch_statistics_are_mixed_between_processes(tmp_path):
    """One process holds values near 0, the other near 100: a shuffled batch has a mean between, a plain one not."""
    x = torch.cat([torch.randn(16, 1), torch.randn(16, 1) + 100])

    def work():
        torch.manual_seed(0)
        network = nn.BatchNorm1d(1, momentum=1.0)
        shuffled_forward(network, x.chunk(2)[distributed.rank()])
        return network.running_mean

    # 16 of 32 drawn without replacement: the number from one half has a standard deviation of 1.4, so 4 is 2.8 of them.
    first, second = (mean.item() for mean in gloo.run(work, 2, tmp_path))
    assert 25 < first < 75
    assert abs(first + second - 2 * x.mean().item()) < 1e-3


def test_groups_give_one_process_several_batch_statistics():
    """In 4 groups of 4 the batch norm sees 4 batches; in one group the batch is run as it is, without a draw."""
    seen = []
    network = nn.BatchNorm1d(1)
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten().tolist()))
    x = torch.arange(16.0)[:, None]
    state = torch.get_rng_state()
    plain = shuffled_forward(network, x)
    assert torch.equal(state, torch.get_rng_state())
    assert seen == [x.flatten().tolist()]
    seen.clear()
    shuffled = shuffled_forward(network, x, groups=4)
    assert [len(group) for group in seen] == [4, 4, 4, 4]
    assert sorted(chain(*seen)) == x.flatten().tolist()
    assert [*chain(*seen)] != x.flatten().tolist()
    assert not torch.allclose(shuffled, plain)
    row = seen[0].index(min(seen[0]))
    value = torch.tensor(seen[0])
    expected = (value[row] - value.mean()) / (value.var(unbiased=False) + network.eps).sqrt()
    torch.testing.assert_close(shuffled[int(value[row])], expected[None])


def test_no_gradient_reaches_the_keys():
    """Keys are constants of the loss."""
    network = nn.Linear(3, 2)
    assert not shuffled_forward(network, torch.randn(4, 3), groups=2).requires_grad
    assert not shuffled_forward(network, torch.randn(4, 3)).requires_grad
