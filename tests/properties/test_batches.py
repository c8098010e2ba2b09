"""The samples of a step do not depend on how many processes, parts and epochs a run is cut into."""

from itertools import chain

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.training.args import TrainArgs
from zoo.training.data import Batches
from zoo.training.distributed import Processes

DIVISION = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


def batches(length, size, rank=0, world=1, accumulate=1, steps=0, seed=0):
    cut = {"batch_size": size, "accumulate": accumulate, "steps_per_epoch": steps, "seed": seed}
    args = TrainArgs(data="unused", out="unused", **cut)
    return Batches(length, args, Processes(rank, world, torch.device("cpu")))


def of_epochs(made, epochs, done=0):
    """The batches of the first epochs, without the first `done` of them."""
    for epoch in range(epochs):
        made.set_epoch(epoch, max(0, min(done - epoch * made.steps, made.steps)))
        yield from made


@given(division=DIVISION, left=st.integers(0, 30), seed=st.integers(0, 3))
def test_processes_and_parts_share_the_samples_of_a_step(division, left, seed):
    """Together they have those of one process without parts, none twice."""
    world, accumulate, part = division
    size = world * accumulate * part
    length = size + left
    alone = [set(step) for step in batches(length, size, seed=seed)]
    ranks = [list(batches(length, size, rank, world, accumulate, seed=seed)) for rank in range(world)]
    assert {len(made) for made in ranks} == {len(alone) * accumulate}
    for step, expected in enumerate(alone):
        parts = [keys for made in ranks for keys in made[step * accumulate : (step + 1) * accumulate]]
        assert sorted(chain(*parts)) == sorted(expected)
        assert {len(keys) for keys in parts} == {part}
    assert len(set(chain(*alone))) == len(alone) * size


@given(length=st.integers(1, 20), size=st.integers(1, 20), steps=st.integers(1, 9), done=st.integers(0, 12))
def test_a_run_is_the_same_however_it_is_cut(length, size, steps, done):
    """Into epochs of any number of steps, and where it goes on in the middle of one."""
    size = min(size, length)
    made = batches(length, size, steps=steps)
    whole = list(of_epochs(made, 3))
    single = batches(length, size, steps=1)
    assert whole == list(of_epochs(single, 3 * steps))
    assert whole[min(done, len(whole)) :] == list(of_epochs(made, 3, min(done, len(whole))))


@given(length=st.integers(1, 30), size=st.integers(1, 30), passes=st.integers(1, 3))
def test_a_pass_is_a_permutation_without_its_rest(length, size, passes):
    """Another one in each pass, by the seed alone."""
    size = min(size, length)
    made = batches(length, size, steps=passes * (length // size))
    keys = list(chain(*made))
    for data_pass in range(passes):
        mine = [index for number, index in keys if number == data_pass]
        order = np.random.default_rng([0, data_pass]).permutation(length)
        assert mine == order[: length // size * size].tolist()
