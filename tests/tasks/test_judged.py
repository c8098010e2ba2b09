"""Results of a cross-validation and of sites, from answers that need no training."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import r2_score, roc_auc_score

from zoo.registry import get_entry
from zoo.tasks.classify import DECIDED, PROBABILITY, THRESHOLD, Classify
from zoo.tasks.labelled import Cohort
from zoo.tasks.labels import Columns
from zoo.tasks.regress import NUMBER, Regress

COUNT = 60
RNG = np.random.default_rng(3)
FOLDS = [i % 3 for i in range(COUNT)]
SITES = ["a" if i < 40 else "b" for i in range(COUNT)]
ROWS = [*range(COUNT)]


def cohort_of(kind, names, values):
    entry = get_entry("caid-resnet50")
    groups = [f"p{i // 2}" for i in range(COUNT)]
    return Cohort(None, entry, entry.preprocessing, [None] * COUNT, groups, SITES, Columns(kind, names, values))


def answers_of(truth):
    """Probabilities that a fold's network gives too high or too low, and decisions by its threshold."""
    shift = np.array([0.0, 0.3, 0.6])[FOLDS][:, None]
    probability = 0.1 * truth + 0.2 * RNG.random(truth.shape) + shift
    limits = np.broadcast_to(shift + 0.15, truth.shape)
    return {PROBABILITY: probability, DECIDED: probability >= limits, THRESHOLD: limits}


def mean_over_folds(measure, truth, found, rows=ROWS):
    of = np.array(FOLDS)[rows]
    return np.mean([measure(truth[rows][of == fold], found[rows][of == fold]) for fold in range(3)])


@pytest.mark.slow
def test_classes_of_folds_are_ranked_within_them():
    """Of all probabilities together the AUROC is another one; decisions are counted together; sites have folds, too."""
    truth = (RNG.random((COUNT, 2)) < 0.4).astype(float)
    answers = answers_of(truth)
    found = Classify(cohort_of("labels", ("x", "y"), truth)).judge(ROWS, answers, FOLDS)
    assert found["means_of_folds"] == ["auroc", "average_precision"]
    each = [mean_over_folds(roc_auc_score, truth[:, k], answers[PROBABILITY][:, k]) for k in range(2)]
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert [found["labels"][name]["auroc"]["value"] for name in "xy"] == pytest.approx(each)
    assert found["labels"]["x"]["auroc"]["low"] < each[0] < found["labels"]["x"]["auroc"]["high"]
    assert each[0] - roc_auc_score(truth[:, 0], answers[PROBABILITY][:, 0]) > 0.1
    held = answers[DECIDED][truth[:, 0] == 1, 0]
    assert found["labels"]["x"]["sensitivity"]["value"] == pytest.approx(held.mean())
    own = mean_over_folds(roc_auc_score, truth[:, 0], answers[PROBABILITY][:, 0], ROWS[:40])
    assert found["sites"]["a"]["labels"]["x"]["auroc"]["value"] == pytest.approx(own)


@pytest.mark.slow
def test_numbers_of_folds_have_a_unit_and_ranks_have_none():
    """R2 is of all cases; a missing number leaves its fold with fewer of them."""
    truth = RNG.normal(size=(COUNT, 1))
    said = truth + RNG.normal(size=truth.shape) + np.array([0, 2, 4])[FOLDS][:, None]
    truth[:5] = np.nan
    found = Regress(cohort_of("numbers", ("age",), truth)).judge(ROWS, {NUMBER: said}, FOLDS)
    assert found["means_of_folds"] == ["rank_correlation"]
    assert found["r2"] == pytest.approx(r2_score(truth[5:], said[5:]))
    ranks = mean_over_folds(lambda a, b: spearmanr(a, b).statistic, truth[:, 0], said[:, 0], ROWS[5:])
    assert found["numbers"]["age"]["rank_correlation"]["value"] == pytest.approx(ranks)


@pytest.mark.slow
def test_one_test_part_is_one_part():
    """Without folds nothing is averaged, and nothing is said of it."""
    truth = (RNG.random((COUNT, 1)) < 0.4).astype(float)
    answers = answers_of(truth)
    found = Classify(cohort_of("labels", ("x",), truth)).judge(ROWS, answers)
    assert "means_of_folds" not in found
    assert found["auroc"] == pytest.approx(roc_auc_score(truth[:, 0], answers[PROBABILITY][:, 0]))
    gain = Classify(cohort_of("labels", ("x",), truth)).compare(ROWS, answers, answers, FOLDS)
    assert (gain["of"], gain["gain"]) == ("AUROC, mean of 3 folds", 0.0)
