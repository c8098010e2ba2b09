"""Which samples a process sees at which step, and the draws a sample is changed with."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from zoo.errors import OptionError
from zoo.training.args import TrainArgs
from zoo.training.data import Batches, batch_size_of, build_loader, length_of, seed_of, seeded, to_device
from zoo.training.distributed import Processes


def steps(length=23, epochs=4, rank=0, world=1, **settings):
    """Every part of every step of a run, for one process."""
    args = TrainArgs(data="d", out="o", **{"batch_size": 6, **settings})
    batches = Batches(length, args, Processes(rank, world, torch.device("cpu")))
    parts = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        mine = list(batches)
        assert len(mine) == len(batches)
        parts += mine
    return parts


def test_a_pass_has_each_sample_at_most_once():
    """23 samples give 3 steps of 6 a pass; the 5 left over are others in another pass."""
    parts = steps()
    assert [len(part) for part in parts] == [6] * 12
    left_out = set()
    for number in range(4):
        keys = chain(*parts[3 * number :][:3])
        indices = [index for data_pass, index in keys if data_pass == number]
        assert len(indices) == len(set(indices)) == 18
        left_out.add(frozenset(range(23)) - frozenset(indices))
    assert len(left_out) == 4


def test_the_order_follows_from_seed_and_pass():
    """The same seed gives the same run, another seed or pass another order."""
    assert steps() == steps()
    assert steps(seed=1) != steps(seed=2)
    orders = [[index for _, index in chain(*steps()[3 * n :][:3])] for n in range(4)]
    assert len({tuple(order) for order in orders}) == 4


def test_processes_share_out_the_batch_of_one_process():
    """At every step the union over 1, 2 or 3 processes, and over accumulated parts, is the same batch."""
    whole = steps()
    for world in (2, 3):
        shares = [steps(rank=rank, world=world) for rank in range(world)]
        assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == whole
    two, accumulated = ([steps(rank=rank, world=2, accumulate=a, batch_size=12) for rank in (0, 1)] for a in (1, 3))
    for step, (first, second) in enumerate(zip(*two, strict=True)):
        parts = [accumulated[rank][3 * step + part] for part in range(3) for rank in (0, 1)]
        assert [len(part) for part in parts] == [2] * 6
        assert [*chain(*parts)] == first + second


def test_a_run_is_the_same_however_it_is_cut_into_epochs():
    """12 steps as 4 passes, as 6 epochs of 2 or as 2 epochs of 6 are the same 12 batches."""
    whole = steps()
    assert steps(epochs=6, steps_per_epoch=2) == whole
    assert steps(epochs=2, steps_per_epoch=6) == whole
    assert steps(epochs=3, steps_per_epoch=4, accumulate=2) == [part for step in whole for part in (step[:3], step[3:])]


def test_a_data_set_s_own_order_makes_the_steps():
    """It is asked for each pass once, with the samples of a step; what does not fill a step at its end is left out."""
    asked = []

    def order(data_pass, step_size):
        asked.append((data_pass, step_size))
        return np.array([9, 7, 5, 3, 1, 8, data_pass])

    batches = Batches(20, TrainArgs(data="d", out="o", batch_size=3), Processes(0, 1, torch.device("cpu")), order)
    batches.set_epoch(1)
    assert [*batches] == [[(1, 9), (1, 7), (1, 5)], [(1, 3), (1, 1), (1, 8)]]
    assert asked == [(0, 3), (1, 3)]


def test_batches_that_cannot_be_made_are_refused():
    """A batch that does not divide, and a data set smaller than a step; the message has the numbers."""
    with pytest.raises(OptionError, match=r"--batch-size 6 .* 2 process\(es\) times 2"):
        steps(world=2, accumulate=2)
    with pytest.raises(OptionError, match=r"5 sample\(s\) do not fill one step of --batch-size 6"):
        steps(length=5)
    assert len(steps(length=6, epochs=1)) == 1


class Draws(Dataset):
    """One seeded number, one number of the global generator."""

    def __len__(self):
        return 12

    def __getitem__(self, key):
        with seeded(3, *key):
            return torch.rand(())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_s_draws_follow_from_its_key(workers):
    """Workers change nothing, the next pass draws anew, and the global generator does not move."""
    args = TrainArgs(data="d", out="o", batch_size=4, workers=workers)
    batches = Batches(12, args, Processes(0, 1, torch.device("cpu")))
    loader = build_loader(Draws(), workers, batch_sampler=batches)
    before = torch.get_rng_state()
    drawn = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        keys = [*chain(*batches)]
        values = torch.cat(list(loader))
        for key, value in zip(keys, values, strict=True):
            with seeded(3, *key):
                assert value == torch.rand(())
        drawn += values.tolist()
    assert torch.equal(before, torch.get_rng_state())
    assert len(set(drawn)) == 24


def test_seeds_differ_by_position_and_length():
    """(1, 2), (2, 1), (1, 2, 1) and (12,) are different draws; a seed fits 63 bits."""
    seeds = [seed_of(*parts) for parts in ((1, 2), (2, 1), (1, 2, 1), (12,), (1,))]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) == seed_of(1, 2)


def test_seeded_leaves_the_generator_even_after_an_error():
    """What comes after the block is what would have come without it."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="shape"), seeded(1, 2):
        torch.rand(5).view(2, 3)
    assert torch.equal(torch.rand(3), expected)


def test_place_moves_nested_tensors_and_lays_out_images():
    """Only four-dimensional tensors become NHWC; numbers and names pass; volumes keep their layout."""
    batch = {"image": torch.zeros(2, 3, 4, 4), "rest": [torch.zeros(2, 1, 4, 4, 4), ("name", torch.zeros(2))]}
    moved = to_device(batch, torch.device("cpu"), channels_last=True)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert not moved["image"].is_contiguous()
    assert moved["rest"][0].is_contiguous()
    assert moved["rest"][1][0] == "name"
    assert to_device(batch, torch.device("cpu"))["image"].is_contiguous()


def test_lengths():
    """The batch size is that of the first tensor; a data set without a length is refused by its name."""
    assert batch_size_of({"a": [1, (torch.zeros(5, 2), torch.zeros(3))]}) == 5
    assert length_of(Draws()) == 12

    class Endless(Dataset):
        def __getitem__(self, key):
            return np.zeros(1)

    with pytest.raises(OptionError, match="Endless has no length"):
        length_of(Endless())
