"""What frozen features are worth: probes, subsets, retrieval, intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from zoo.errors import OptionError
from zoo.training import evaluate
from zoo.training.evaluate import (
    bootstrap_by_group,
    draw_groups,
    extract_features,
    label_subsets,
    linear_probe,
    retrieval,
)
from zoo.training.metrics import auroc, mean_auroc


def two_classes(number, dimensions, distance, seed=0):
    """Normal features whose classes lie `distance` apart along one random direction."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    direction = np.random.default_rng(99).standard_normal(dimensions)
    scale = np.random.default_rng(98).uniform(0.1, 10, dimensions)
    features = rng.standard_normal((number, dimensions)) + np.outer(
        labels - 0.5, distance * direction / np.linalg.norm(direction)
    )
    return features * scale + 3, labels


def test_the_probe_in_the_span_is_the_probe_on_all_features(monkeypatch):
    """40 samples of 300 features: the same decisions as a logistic regression on the standardised features themselves.

    Both stop at a gradient of 1e-4, which leaves decisions known to some 3e-4 of their range.
    """
    train, labels = two_classes(40, 300, 3)
    test, _ = two_classes(25, 300, 3, seed=1)
    mean, std = train.mean(0), train.std(0)
    for penalty in (1e-3, 1e-1, 1e1):
        monkeypatch.setattr(evaluate, "PENALTIES", (penalty,))
        scores = linear_probe(train, labels, test)
        direct = LogisticRegression(C=penalty / 40, max_iter=1000).fit((train - mean) / std, labels)
        expected = direct.decision_function((test - mean) / std)
        assert np.abs(scores - expected).max() < 2e-3 * np.ptp(expected)


@pytest.mark.slow
def test_the_probe_separates_what_is_separable_and_nothing_else():
    """AUROC 1 for classes far apart, about 0.5 for none: 200 test samples know 0.5 to 4 * 0.04."""
    for distance, low, high in ((30, 1.0, 1.0), (0, 0.34, 0.66)):
        train, labels = two_classes(60, 50, distance)
        test, truth = two_classes(200, 50, distance, seed=1)
        assert low <= auroc(truth, linear_probe(train, labels, test)) <= high


def test_the_probe_tells_more_than_two_classes(monkeypatch):
    """A column each, as a multinomial regression on all features has it; to the same tolerance as above."""
    rng = np.random.default_rng(0)
    labels = np.arange(45) % 3
    train, test = (rng.standard_normal((45, 80)) + 2 * np.eye(3, 80)[labels] for _ in range(2))
    mean, std = train.mean(0), train.std(0)
    monkeypatch.setattr(evaluate, "PENALTIES", (1e-1,))
    scores = linear_probe(train, labels, test)
    direct = LogisticRegression(C=1e-1 / 45, max_iter=1000).fit((train - mean) / std, labels)
    expected = direct.decision_function((test - mean) / std)
    assert scores.shape == (45, 3)
    assert np.abs(scores - expected).max() < 2e-3 * np.ptp(expected)
    one_against_rest = [auroc(labels == c, scores[:, c]) for c in range(3)]
    assert mean_auroc(labels, scores) == pytest.approx(np.mean(one_against_rest))
    assert mean_auroc(labels[labels > 0], scores[labels > 0]) == pytest.approx(
        np.mean([auroc(labels[labels > 0] == c, scores[labels > 0][:, c]) for c in (1, 2)])
    )
    with pytest.raises(OptionError, match="but the rarest has 0"):
        linear_probe(train, np.where(labels == 1, 3, labels), test)


@pytest.mark.slow
def test_the_penalty_is_chosen_by_what_generalises():
    """With few samples and weak signal a strong penalty wins over the weakest; scores repeat with the same seed."""
    train, labels = two_classes(60, 400, 2.5)
    test, truth = two_classes(400, 400, 2.5, seed=1)
    chosen = linear_probe(train, labels, test)
    assert auroc(truth, chosen) > 0.6
    assert np.array_equal(chosen, linear_probe(train, labels, test))


def test_the_probe_bears_constant_features_and_names_missing_classes():
    """A dead feature divides by nothing; a class with one label cannot be cross-validated."""
    train, labels = two_classes(20, 5, 10)
    train[:, 2] = 7.0
    assert np.isfinite(linear_probe(train, labels, train)).all()
    with pytest.raises(OptionError, match="at least 2 labels of each class, but the rarest has 1"):
        linear_probe(train, np.eye(20)[0], train)


def test_subsets_are_stratified_of_the_asked_size_and_repeat():
    """30 % positives stay 30 %, every subset has exactly `size` members, another seed gives others."""
    labels = np.repeat([1, 0], [30, 70])
    subsets = label_subsets(labels, 20, 5, seed=3)
    assert [len(set(s.tolist())) for s in subsets] == [20] * 5
    assert [int(labels[s].sum()) for s in subsets] == [6] * 5
    assert len({tuple(sorted(s)) for s in subsets}) == 5
    assert all(np.array_equal(a, b) for a, b in zip(subsets, label_subsets(labels, 20, 5, seed=3), strict=True))
    assert not np.array_equal(subsets[0], label_subsets(labels, 20, 5, seed=4)[0])


@pytest.mark.parametrize(("positive", "size"), [(50, 25), (49, 25), (3, 25), (50, 99), (97, 7)])
def test_subsets_have_their_size_whatever_rounds(positive, size):
    """Half a sample of each class is nobody's; a rare class still gets two."""
    labels = np.repeat([1, 0], [positive, 100 - positive])
    (subset,) = label_subsets(labels, size, 1)
    assert len(subset) == size
    assert min(labels[subset].sum(), size - labels[subset].sum()) >= 2


@pytest.mark.parametrize(
    ("counts", "size", "shares"),
    [
        ([3] * 10, 24, [3] * 4 + [2] * 6),  # 2.4 of each: what is left over finds no room in one class
        ([3, 6, 3, 3], 8, [2, 2, 2, 2]),  # 1.6 of the rare, who have 2 at the cost of the others
        ([40, 25, 25, 10], 21, [9, 5, 5, 2]),  # 8.4, 5.25, 5.25, 2.1: to the largest fraction
        ([2, 2, 2, 2, 9], 12, [2, 2, 2, 2, 4]),
    ],
)
def test_many_classes_have_their_shares(counts, size, shares):
    """At least two of each, at most what there are, and what rounding leaves over where it is missed most."""
    labels = np.repeat(np.arange(len(counts)), counts)
    for subset in label_subsets(labels, size, 3):
        assert np.bincount(labels[subset]).tolist() == shares
        assert len(set(subset.tolist())) == size


@pytest.mark.parametrize(
    ("counts", "size", "shares"),
    [([50, 50], 25, [13, 12]), ([54, 46], 25, [13, 12]), ([58, 42], 25, [15, 10]), ([97, 3], 7, [5, 2])],
)
def test_two_classes_round_as_ever(counts, size, shares):
    """Halves to even, then what is left over to the larger class: published figures are of these draws."""
    (subset,) = label_subsets(np.repeat([0, 1], counts), size, 1)
    assert np.bincount(np.repeat([0, 1], counts)[subset]).tolist() == shares


def test_all_labels_are_one_subset():
    """Size 0, or as many as there are: no draw. Too few of a class is an error with the counts."""
    labels = np.array([0, 1] * 5)
    for size in (0, 10, 50):
        (subset,) = label_subsets(labels, size, 4)
        assert subset.tolist() == list(range(10))
    with pytest.raises(OptionError, match=r"3 of 10 labels cannot hold 2 of each class; classes have \[5, 5\]"):
        label_subsets(labels, 3, 1)
    with pytest.raises(OptionError, match=r"\[9, 1\]"):
        label_subsets(np.eye(10)[0], 5, 1)


def test_auroc_by_hand():
    """3 of 4 pairs in order are 0.75; weights count samples."""
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert auroc(labels, scores) == 0.75
    assert auroc(labels, scores, np.array([1, 0, 1, 1])) == 1.0
    assert auroc(labels, scores, np.array([1, 3, 2, 1])) == pytest.approx((2 * 1 + 1 * 4) / (3 * 4))


def test_retrieval_by_hand():
    """Four directions, 0, 20, 180 and 200 degrees about a common offset, of the patients A, A, B and A.

    From 0: A, A, B. From 20: A, B, A. From 200: B, A, A. B is alone and no query; no query finds itself.
    """
    angles = np.deg2rad([0, 20, 180, 200])
    features = 5 + np.stack([np.cos(angles), np.sin(angles)], axis=1)
    hits, precision, queries = retrieval(features, ["A", "A", "B", "A"])
    assert queries.tolist() == [0, 1, 3]
    assert hits.tolist() == [1, 1, 0]
    assert precision == pytest.approx([1, (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2])


def test_the_interval_covers_a_known_mean():
    """95 of 100 intervals of a mean of 60 normal draws, give or take 4 standard deviations of 2.2; and their width."""
    covered, widths = 0, []
    for trial in range(100):
        values = np.random.default_rng(trial).standard_normal(60) + 7
        low, high = bootstrap_by_group(
            lambda w, v=values: float((w * v).sum() / w.sum()), [str(i) for i in range(60)], rounds=300, seed=trial
        )
        covered += low < 7 < high
        widths.append(high - low)
    assert 86 <= covered <= 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.1)


def test_the_interval_is_by_group():
    """Ten equal images of each patient: the interval is that of 40 patients, three times that of 400 images."""
    patients = np.random.default_rng(0).standard_normal(40)
    images, names = np.repeat(patients, 10), np.repeat(np.arange(40), 10).astype(str)

    def mean(weights):
        return float((weights * images).sum() / weights.sum())

    by_patient = np.ptp(bootstrap_by_group(mean, names, rounds=500))
    by_image = np.ptp(bootstrap_by_group(mean, [str(i) for i in range(400)], rounds=500))
    assert by_patient / by_image == pytest.approx(np.sqrt(10), rel=0.2)
    assert by_patient == pytest.approx(2 * 1.96 * patients.std() / np.sqrt(40), rel=0.15)
    assert bootstrap_by_group(mean, names, rounds=50) == bootstrap_by_group(mean, names, rounds=50)


def test_draws_are_the_same_however_many_are_in_memory(monkeypatch):
    """Of many cases some draws at a time: none is left out, and none counts twice."""
    names = [str(i) for i in range(30)]
    (whole,) = draw_groups(names, rounds=50)
    monkeypatch.setattr("zoo.training.evaluate._AT_ONCE", 7 * 30)
    parts = [*draw_groups(names, rounds=50)]
    assert [len(part) for part in parts] == [*[7] * 7, 1]
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 30).all()


def test_rounds_without_both_classes_are_left_out():
    """Two patients: in half of the draws only one class is there, and its AUROC is not a number."""
    labels, scores, groups = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), ["a", "a", "b", "b"]

    def statistic(weights):
        drawn = weights > 0
        return auroc(labels, scores, weights) if len(set(labels[drawn])) == 2 else float("nan")

    assert bootstrap_by_group(statistic, groups, rounds=50) == (0.75, 0.75)


def test_features_come_in_float64_from_a_network_in_eval_mode():
    """Batches are concatenated, maps flattened, batch norm not moved, no graph kept; a function will do as well."""
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.9)).train()
    batches = [torch.randn(3, 2, 2, 2), torch.randn(1, 2, 2, 2)]
    features = extract_features(network, batches)
    assert features.shape == (4, 8)
    assert features.dtype == np.float64
    assert not network.training
    assert network[0].running_mean.tolist() == [0, 0]
    expected = torch.cat(batches).flatten(1) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-6)
    assert extract_features(lambda x: x.mean((2, 3)), batches).shape == (4, 2)
