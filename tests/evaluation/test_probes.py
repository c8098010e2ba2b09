"""The two probes: what they compute, and that they see the cases that they are given alone."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from zoo.evaluation import probes
from zoo.evaluation.judging import estimate, holm, p_value, resample, verdict_of
from zoo.evaluation.probes import ALPHAS, FITS, Part, fit_linear, fit_nearest
from zoo.evaluation.report import Estimate
from zoo.tasks.measures import auroc_of


def cases(number, dimensions, distance, classes=2, seed=0):
    """Normal features of several scales, with classes `distance` apart in the first directions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % max(classes, 2)
    features = rng.standard_normal((number, dimensions)) + distance * np.eye(max(classes, 2), dimensions)[labels]
    return 3 + features * np.random.default_rng(9).uniform(0.1, 10, dimensions), labels.astype(float)


def standard(train, *others):
    mean, deviation = train.mean(0), train.std(0)
    return [(each - mean) / deviation for each in (train, *others)]


@pytest.mark.parametrize(("number", "dimensions"), [(40, 200), (200, 20)])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_a_logistic_regression_on_all_features(number, dimensions, classes):
    """Also where it is fitted in the span of fewer cases. Both stop at a gradient of 1e-4, so near 1e-3 of odds."""
    train, labels = cases(number, dimensions, 2, classes)
    test, _ = cases(30, dimensions, 2, classes, seed=1)
    found = fit_linear(Part(train, labels, np.arange(number), classes))
    own, asked = standard(train, test)
    direct = LogisticRegression(C=found.chosen, max_iter=5000, tol=1e-6).fit(own, labels)
    assert found.scores(test) == pytest.approx(direct.predict_proba(asked), abs=2e-3)


@pytest.mark.parametrize(("number", "dimensions"), [(40, 200), (200, 20)])
def test_the_linear_probe_of_numbers_is_ridge_regression(number, dimensions):
    """Its penalty is in units of the number of cases."""
    train, _ = cases(number, dimensions, 0)
    truth = train[:, 0] * 2 + np.random.default_rng(2).normal(size=number)
    test, _ = cases(30, dimensions, 0, seed=1)
    found = fit_linear(Part(train, truth, np.arange(number), 0))
    assert found.chosen in ALPHAS
    own, asked = standard(train, test)
    direct = Ridge(alpha=found.chosen * number).fit(own, truth)
    assert found.scores(test) == pytest.approx(direct.predict(asked), rel=1e-6)


def test_neighbours_vote_by_their_cosine(monkeypatch):
    """By hand for three of them, of features centred by the training cases; Euclid would find others."""
    monkeypatch.setattr(probes, "NEIGHBOURS", (3,))
    train, labels = cases(30, 8, 1)
    test, _ = cases(5, 8, 1, seed=1)
    found = fit_nearest(Part(train, labels, np.arange(30), 2)).scores(test)
    for row, case in enumerate(test):
        a, b = case - train.mean(0), train - train.mean(0)
        cosine = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
        near = np.argsort(-cosine)[:3]
        assert found[row].tolist() == pytest.approx([1 - labels[near].mean(), labels[near].mean()])


@pytest.mark.parametrize("name", list(FITS))
def test_choices_are_made_between_patients(name, monkeypatch):
    """Ten images of each patient that look alike and mean nothing: held back by image, they would seem to be skill."""
    rng = np.random.default_rng(3)
    features = np.repeat(rng.standard_normal((40, 30)), 10, 0) + 0.05 * rng.standard_normal((400, 30))
    labels = np.repeat(np.arange(40) % 2, 10).astype(float)
    quality, measure = [], probes._quality

    def spy(*given):
        quality.append(measure(*given))
        return quality[-1]

    monkeypatch.setattr(probes, "_quality", spy)
    best = {}
    for by, groups in (("patient", np.repeat(np.arange(40), 10)), ("image", np.arange(400))):
        quality.clear()
        FITS[name](Part(features, labels, groups, 2))
        best[by] = np.reshape(quality, (5, -1)).mean(0).max()
    assert best["image"] > 0.85
    assert best["patient"] < 0.75


@pytest.mark.parametrize("name", list(FITS))
@pytest.mark.parametrize("classes", [2, 3, 0])
def test_what_is_fitted_knows_its_own_cases_alone(name, classes):
    """The scaling, the choice and the fit, to the last bit, whatever other cases there are and are asked for."""
    features, labels = cases(90, 12, 1, classes)
    rows = np.arange(60)

    def fitted(all_features, all_labels):
        part = Part(all_features[rows], all_labels[rows], rows // 2, classes)
        found = FITS[name](part)
        found.scores(all_features[60:])
        return dataclasses.asdict(found)

    clean = fitted(features, labels)
    poisoned, wrong = features.copy(), labels.copy()
    poisoned[60:] = 1e6 * np.sign(features[60:])
    wrong[60:] = labels[60:][::-1]
    dirty = fitted(poisoned, wrong)
    assert clean.keys() == dirty.keys()
    assert all(np.array_equal(clean[key], dirty[key]) for key in clean)


def test_resamples_draw_whole_groups_and_are_the_same_for_all():
    """Two images of a patient are drawn as often; a difference of a measure and itself is 0 in each draw."""
    groups, tested = np.arange(60) // 2, np.arange(20, 60)
    seen = []

    def spy(weights):
        seen.append(weights)
        return weights.sum(-1)

    truth, scores = np.arange(60) % 2, np.random.default_rng(0).random(60)
    found = resample(
        {"spy": spy, 1: auroc_of(truth, scores), 2: auroc_of(truth, scores)}, groups, tested, rounds=300, seed=0
    )
    weights = np.concatenate(seen)
    assert np.array_equal(weights[:, 0::2], weights[:, 1::2])
    assert not weights[:, :20].any()
    assert (weights.sum(1) == 40).all()
    assert (weights[0, 20:] == 1).all()
    assert np.array_equal(found[1], found[2])
    assert found[1].shape == (301,)
    assert found[1][1:].std() > 0.01


def test_holm_as_in_a_textbook():
    """Sorted 0.01, 0.02, 0.03: times 3, 2 and 1, never below the one before; what is not known is not counted."""
    assert holm([0.03, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04], nan_ok=True)
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02, 0.01], of=6) == pytest.approx([0.1, 0.06])  # of six tests, the others of which are larger


def test_better_needs_the_interval_and_the_correction():
    """Of 20 encoders one is above the others by chance."""
    above = Estimate(0.1, 0.01, 0.2)
    assert verdict_of(above, 0.04, 20) == "better"
    assert verdict_of(above, 0.06, 20) == "not told apart"
    assert verdict_of(Estimate(0.1, -0.01, 0.2), 0.04, 20) == "not told apart"
    assert verdict_of(Estimate(-0.1, -0.2, -0.01), 0.04, 20) == "worse"
    assert verdict_of(Estimate(0.1), None, 20) == "unknown"


@pytest.mark.parametrize("groups", [4, 10, 19])
def test_of_few_groups_nothing_is_better(groups):
    """Two encoders that differ by chance alone: the intervals of 4 groups would call a fifth of cohorts better."""
    rng = np.random.default_rng(groups)
    apart = rng.normal(size=(200, groups))
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=400)
    verdicts, excluded = set(), 0
    for own in apart:
        found = estimate(np.concatenate([[own.mean()], weights @ own / groups]), groups)
        p = p_value(np.concatenate([[own.mean()], weights @ own / groups]))
        verdicts.add(verdict_of(found, p, groups))
        excluded += not found.low <= 0 <= found.high
    assert verdicts == {"too few groups"}
    assert excluded > 0.06 * len(apart), "else the intervals are wide enough and may be trusted"


def test_a_p_value_is_never_0():
    """2000 draws cannot tell more than one in a thousand."""
    assert p_value(np.concatenate([[1.0], np.ones(1999)])) == pytest.approx(2 / 2000)
    assert p_value(np.concatenate([[0.0], np.tile([1.0, -1.0], 500)])) == 1.0
