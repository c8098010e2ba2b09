"""Measures that several families judge their results by."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from torch.nn import functional as F

from zoo.training.metrics import count_overlap, dice, or_none, summarise, surface_distances


def test_dice_is_of_overlaps_along_any_axis():
    """By hand; what is nowhere has none, and nothing that was found of what is there is 0."""
    counts = torch.tensor([[3.0, 4, 5], [0, 0, 2], [0, 0, 0]])
    for found in (dice(counts), dice(counts.T, dim=0)):
        assert found[:2].tolist() == pytest.approx([6 / 9, 0])
        assert found[2].isnan()
        assert [or_none(value) for value in found.tolist()][1:] == [0, None]


def test_numbers_for_json_are_numbers_or_none():
    """NaN is none; infinity is a number that JSON refuses by itself."""
    assert or_none(0.0) == 0.0
    assert or_none(math.nan) is None


def test_runs_are_summarised_with_their_spread():
    """The deviation is the sample's; one value has none; a test that lacks a metric does not count for it."""
    tests = [{"loss": 1.0}, {"loss": 2.0, "auroc": 0.6}, {"loss": 3.0, "auroc": 0.8}]
    assert summarise(tests)["auroc"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.02**0.5)}
    assert summarise(tests)["loss"] == {"mean": 2.0, "std": 1.0}
    assert summarise(tests[:2])["auroc"] == {"mean": 0.6, "std": None}


def test_overlaps_are_counted():
    """Against plain comparisons."""
    rng = torch.Generator().manual_seed(0)
    found, truth = (torch.randint(0, 4, (6, 5, 3), generator=rng) for _ in range(2))
    both, own, true = count_overlap(found, truth.to(torch.uint8), 4)
    for label in range(4):
        counts = ((found == label) & (truth == label)).sum(), (found == label).sum(), (truth == label).sum()
        assert [both[label], own[label], true[label]] == [count.item() for count in counts]


def surface(mask):
    """Voxels (n, 3) of a mask of which a neighbour across a face is outside it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for step in (1, -1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner)


def test_distances_of_surfaces_are_those_of_their_voxels():
    """In mm of anisotropic voxels, against all pairs and MONAI; of a shifted box the shift, of what is missing none."""
    rng, spacing = np.random.default_rng(0), np.array((1.4, 1.5, 8.0))
    truth = torch.zeros(24, 26, 6, dtype=torch.uint8)
    truth[4:14, 5:15, 1:4], truth[16:20, 4:20, 2:6] = 1, 2
    found = truth.roll((3, 1), (0, 1)) * torch.from_numpy(rng.random(truth.shape) > 0.1)
    distances = surface_distances(found, truth, 4, spacing.tolist())
    assert distances.shape == (2, 3)
    assert distances[:, 2].isnan().all()
    for label in (1, 2):
        own, true = (surface((labels == label).numpy()) * spacing for labels in (found, truth))
        pairs = np.linalg.norm(own[:, None] - true[None], axis=2)
        for i, share in enumerate((95, 100)):
            expected = max(np.percentile(pairs.min(axis), share) for axis in (0, 1))
            assert distances[i, label - 1].item() == pytest.approx(expected, rel=1e-9)
    each = [F.one_hot(labels.long(), 4).movedim(-1, 0)[None] for labels in (found, truth)]
    for i, percentile in enumerate((95, None)):  # MONAI counts in float32
        theirs = compute_hausdorff_distance(*each, percentile=percentile, spacing=spacing.tolist())[0]
        np.testing.assert_allclose(distances[i, :2].numpy(), theirs[:2].numpy(), rtol=1e-6)
    moved = surface_distances(truth.roll(3, 0), truth, 3, spacing.tolist())
    assert moved[1].tolist() == pytest.approx([4.2] * 2)
