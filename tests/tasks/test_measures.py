"""Measures under weights: equal to scikit-learn and SciPy, where cases are drawn several times too."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from zoo.evaluation.judging import verdict_of
from zoo.evaluation.report import Estimate
from zoo.tasks.classify import threshold_of
from zoo.tasks.measures import (
    auroc_of,
    average_precision_of,
    calibration_error_of,
    difference_of,
    mean_of,
    mean_over,
    parts_of,
    r2_of,
    r2_of_part,
    rank_correlation_of,
    share_of,
    with_interval,
)
from zoo.tasks.telling import rarest_of, said_of_pair
from zoo.training.runlog import in_words

RNG = np.random.default_rng(1)
TRUTH = (RNG.random(80) < 0.3).astype(float)
SCORES = np.round(TRUTH * 0.3 + RNG.random(80), 1).clip(0, 1)  # with ties
NUMBERS = np.round(RNG.normal(size=80), 1)
FOUND = np.round(NUMBERS + RNG.normal(size=80), 1)
DRAWS = RNG.multinomial(80, np.full(80, 1 / 80), size=5)


@pytest.mark.parametrize("draw", [np.ones(80, int), *DRAWS])
@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (auroc_of, roc_auc_score, (TRUTH, SCORES)),
        (average_precision_of, average_precision_score, (TRUTH, SCORES)),
        (r2_of, r2_score, (NUMBERS, FOUND)),
        (rank_correlation_of, lambda a, b: spearmanr(a, b).statistic, (NUMBERS, FOUND)),
    ],
)
def test_weights_are_repeated_cases(ours, theirs, values, draw):
    """Ties, and cases that were drawn twice or not at all, counted otherwise would shift every interval."""
    repeated = [np.repeat(each, draw) for each in values]
    assert ours(*values)(draw.astype(float)) == pytest.approx(theirs(*repeated), abs=1e-12)


def test_calibration_error_by_hand():
    """Two bins: 0.25 for two cases of which one holds, and 0.95 for two that both hold."""
    error = calibration_error_of(np.array([0, 1, 1, 1]), np.array([0.25, 0.25, 0.95, 0.95]))
    assert error(np.ones(4)) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    assert error(np.array([1, 0, 0, 0])) == pytest.approx(0.25)


def test_what_is_not_defined_is_null_and_spoils_no_mean():
    """NaN is no JSON, and one rare label without a positive case would make the mean over labels undefined."""
    one = auroc_of(np.zeros(6), np.arange(6))
    assert with_interval(one, list("abcdef")) == {"value": None, "low": None, "high": None}
    other = auroc_of(np.array([0, 0, 0, 1, 1, 1]), np.arange(6))
    assert mean_of([one, other])(np.ones(6)) == 1.0
    assert np.isnan(share_of(np.ones(3, bool), np.zeros(3, bool))(np.ones(3)))


def test_intervals_are_by_group():
    """Ten images of each patient are not ten patients: by image the interval would be too narrow."""
    truth, scores = np.repeat(TRUTH[:20], 10), np.repeat(SCORES[:20], 10)
    measure = auroc_of(truth, scores)
    by_patient = with_interval(measure, [f"p{i // 10}" for i in range(200)], rounds=300)
    by_image = with_interval(measure, [f"i{i}" for i in range(200)], rounds=300)
    assert by_patient["high"] - by_patient["low"] > 2 * (by_image["high"] - by_image["low"])


def test_a_difference_is_paired():
    """Two draws for two methods would give an interval around 0 that is as wide as theirs together."""
    same = auroc_of(TRUTH, SCORES)
    found = with_interval(difference_of(same, same), [str(i) for i in range(80)], rounds=100)
    assert found == {"value": 0.0, "low": None, "high": None}


def test_folds_on_other_scales_are_not_ranked_together():
    """Networks that order their own cases well and call all of them likely, or none: ranked at once they would lose."""
    order = np.argsort(np.argsort(SCORES + RNG.random(80) / 1e6)) / 80
    folds = (RNG.random(80) < 0.5).astype(int)
    scaled = np.where(folds == 0, 0.9 + order / 100, order / 100)  # each fold's own order stays as it was
    parts = parts_of(folds, 80)
    assert [part.sum() for part in parts] == [80 - folds.sum(), folds.sum()]
    for of in (auroc_of, average_precision_of):
        each = [of(TRUTH[part], scaled[part]) for part in parts]
        joined = mean_over(parts, each)(np.ones(80))
        assert joined == pytest.approx(np.mean([of(TRUTH[part], order[part])(np.ones(part.sum())) for part in parts]))
        assert abs(joined - of(TRUTH, scaled)(np.ones(80))) > 0.01
    assert [part.all() for part in parts_of((), 5)] == [True]


def test_the_mean_over_folds_is_of_those_that_tell():
    """A fold without a positive case has no AUROC; in a draw of groups others lack one. Weights are of all cases."""
    parts = parts_of([0, 0, 0, 1, 1, 1], 6)
    each = [auroc_of(np.array([0, 1, 1]), np.array([1, 0, 2])), auroc_of(np.zeros(3), np.arange(3))]
    measure = mean_over(parts, each)
    assert measure(np.ones(6)) == 0.5
    assert measure(np.array([1, 0, 1, 1, 1, 1.0])) == 1.0
    assert np.isnan(measure(np.array([0, 1, 1, 1, 1, 1.0])))
    draws = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 3.0]])
    assert measure(draws).tolist() == [0.5, 1.0]


def test_a_fold_without_a_negative_case_has_no_average_precision():
    """It would be 1.0, whatever the scores: a site of five cases, one per fold, whose positive ones are ranked last."""
    truth, scores = np.array([0, 0, 0, 1, 1]), np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    parts = parts_of(range(5), 5)
    for of in (auroc_of, average_precision_of):
        assert np.isnan(mean_over(parts, [of(truth[part], scores[part]) for part in parts])(np.ones(5)))
        drawn = of(truth, scores)(np.array([[1, 1, 1, 1, 1], [0, 0, 0, 2, 3], [2, 3, 0, 0, 0.0]]))
        assert np.isnan(drawn).tolist() == [False, True, True], "a draw lacks one kind as a fold does"


def test_the_threshold_lies_between_the_two_kinds():
    """At a probability that occurs, rounding would decide on which side its case is."""
    truth = np.array([0, 0, 1, 0, 1, 1, np.nan])
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.9, 0.85])
    assert threshold_of(truth, p) in (pytest.approx(0.6), pytest.approx(0.25))
    assert threshold_of(np.array([0.0, 1.0]), np.array([0.2, 0.6])) == pytest.approx(0.4)
    assert threshold_of(np.zeros(3), np.array([0.1, 0.2, 0.3])) == 0.5


def test_the_threshold_of_many_cases_needs_no_table_of_pairs():
    """Of 100 000 cases it would have 10 GB; of few it is what that table says."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 50, 300):
        truth, p = rng.integers(0, 2, count).astype(float), rng.integers(0, 40, count) / 40
        distinct = np.unique(p)
        if 0 < truth.sum() < count and len(distinct) > 1:
            candidates = (distinct[1:] + distinct[:-1]) / 2
            held = p[:, None] >= candidates
            j = held[truth == 1].mean(0) - held[truth == 0].mean(0)
            best = np.flatnonzero(j >= j.max() - 1e-12)
            assert threshold_of(truth, p) == candidates[best[len(best) // 2]]
    scores = rng.random(100_000)
    assert abs(threshold_of((scores > 0.7).astype(float), scores) - 0.7) < 1e-4


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.01, 0.2, "do not tell"),
        (0.0, 0.1, "do not"),
        (None, None, "no interval"),
    ],
)
def test_better_is_said_only_beyond_the_interval(low, high, verdict):
    """A gain of +0.1 whose interval holds 0 is what people publish by mistake."""
    pair = {"of": "AUROC", "gain": 0.1, "low": low, "high": high}
    said = said_of_pair(pair, 20)["said"]
    assert verdict in said
    assert ("better than" in said) == (verdict == "better")
    assert "-" not in said
    few = said_of_pair(pair, 19)["said"]
    assert "better than" not in few
    assert "worse than" not in few
    assert ("19 tested groups are too few to tell" in few) == (low is not None)


def test_few_groups_of_a_class_are_too_few_among_many():
    """Of 50 groups with 3 positive ones two random orders are told apart three times as often as 95 % says."""
    truth, groups = (
        np.repeat([1, 0, 1, 0], [3, 1, 6, 41]),
        [f"p{i // 2}" for i in range(6)] + [f"q{i}" for i in range(45)],
    )
    rarest = rarest_of([("with x", truth == 1), ("without x", truth == 0)], groups)
    assert rarest == ("with x", 7), "images of one patient are one group"
    pair = {"of": "AUROC", "gain": 0.1, "low": 0.01, "high": 0.2}
    assert (
        "7 tested groups with x are too few to tell, at least 10 are needed" in said_of_pair(pair, 50, rarest)["said"]
    )
    assert "better than" in said_of_pair(pair, 50, rarest._replace(groups=10))["said"]
    found = Estimate(0.1, 0.01, 0.2)
    assert [verdict_of(found, 0.01, 50, each) for each in (rarest, None)] == ["too few groups", "better"]


def test_parts_of_one_size_have_the_r2_of_all():
    """The curve of few labels tests a fold at a time; by its own variance each fold would have another R2."""
    truth, found = NUMBERS + 50, FOUND + 50
    parts = np.split(RNG.permutation(80)[:60], 3)
    among = np.concatenate(parts)
    ones = np.ones(80)
    each = [r2_of_part(truth, rows, found[rows], among)(ones) for rows in parts]
    assert np.mean(each) == pytest.approx(r2_of(truth[among], found[among])(ones[among]))
    (alone,) = [r2_of_part(truth, among, found[among], among)(np.stack([ones, DRAWS[0]]))]
    assert alone == pytest.approx(r2_of(truth[among], found[among])(np.stack([ones, DRAWS[0]])[:, among]))
    assert np.isnan(r2_of_part(truth, among, found[among], among)(np.zeros(80)))


def test_what_a_bootstrap_cannot_tell_has_no_interval():
    """Eight of eight found would be "1.0, surely"; of two patients the least and the largest would be an interval."""
    held = np.ones(8, bool)
    patients = list("abcdefgh")
    assert with_interval(share_of(held, held), patients) == {"value": 1.0, "low": None, "high": None}
    held = np.array([True, False] * 4)
    assert with_interval(share_of(held, np.ones(8, bool)), ["a", "b"] * 4)["low"] is None
    assert 0 <= with_interval(share_of(held, np.ones(8, bool)), patients)["low"] < 0.5


def test_the_last_lines_of_a_run_show_intervals():
    """Of few cases an AUROC alone looks like more than it is."""
    assert in_words({"cases": 16, "auroc": 0.84375, "auroc_interval": [0.476, 1.0]}) == (
        "cases 16, auroc 0.8438 (95 % 0.476 to 1)"
    )
    assert in_words({"auroc": 1.0, "auroc_interval": [None, None]}) == "auroc 1 (no interval)"
