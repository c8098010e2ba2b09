"""Folds and draws: groups whole, each group tested once a repeat, each class in every draw."""

import numpy as np
import pytest

from zoo.errors import OptionError
from zoo.evaluation.splits import DRAWS, draw_folds, draw_labels

RNG = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(80), 3)
STRATA = (RNG.random(80) < 0.2).astype(int)[GROUPS]
STRATA[::7] = 1  # patients with images of both classes


def folds_of(repeats=2):
    return draw_folds(GROUPS, STRATA, ["0", "1"], repeats=repeats, seed=0)


def test_each_group_is_tested_once_in_every_repeat():
    """A group on both sides, or one that is tested twice, would count what was learnt of a patient as skill."""
    folds = folds_of()
    assert len(folds) == 10
    for fold in folds:
        assert not set(GROUPS[fold.train]) & set(GROUPS[fold.test])
        assert len(np.unique(STRATA[fold.test])) == 2
    for repeat in (0, 1):
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tested) == list(range(240))
    assert any(a.test.tolist() != b.test.tolist() for a, b in zip(folds[:5], folds[5:], strict=True))


def test_draws_keep_groups_whole_and_have_each_class():
    """Ten labels of one class can teach nothing; a part of a patient's images is no patient."""
    folds = folds_of()
    found = draw_labels(folds, GROUPS, STRATA, count=DRAWS, seed=0)
    assert list(found) == [10, 25, 50, 100]
    for size, draws in found.items():
        assert len(draws) == DRAWS
        for draw in draws:
            assert size <= len(draw.train) <= size + 12
            assert set(draw.train) <= set(folds[draw.fold].train)
            assert set(np.flatnonzero(np.isin(GROUPS, GROUPS[draw.train]))) == set(draw.train)
            assert np.bincount(STRATA[draw.train], minlength=2).min() >= 2
        assert len({tuple(draw.train) for draw in draws}) == DRAWS


def test_sizes_that_cannot_be_drawn_are_left_out():
    """Of 80 cases 64 are learnt from: 100 are not there; ten cannot hold two of six classes."""
    strata = np.arange(80) % 6
    folds = draw_folds(np.arange(80), strata, list("abcdef"), repeats=1, seed=0)
    assert list(draw_labels(folds, np.arange(80), strata, count=10, seed=0)) == [25, 50]


def test_a_class_of_one_group_is_refused():
    """Its cases would be learnt from and never tested, or tested and never learnt from."""
    strata = np.zeros(40, int)
    strata[:3] = 1
    with pytest.raises(OptionError, match="rare: cases of one group alone"):
        draw_folds(np.arange(40) // 4, strata, ["often", "rare"], repeats=1, seed=0)
