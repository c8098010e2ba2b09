"""DrasCLR's downstream tasks: Cox by hand, folds and their probes, cells and maps, whole runs, bad input."""

import csv
import json
from math import exp, log

import numpy as np
import pytest
import torch

from zoo.checkpoint.export import export_safetensors
from zoo.entries.drasclr import dense, finetune
from zoo.entries.drasclr.atlas import normalise
from zoo.entries.drasclr.dense import embed_cells, locate_cells, way_to_atlas
from zoo.entries.drasclr.embed import embed_patient
from zoo.entries.drasclr.features import SubjectFeatures, write_subject_features
from zoo.entries.drasclr.finetune_method import (
    Target,
    cross_validate,
    make_folds,
    metrics,
    read_target,
)
from zoo.entries.drasclr.maps.cells import lay_cells, shares, spread
from zoo.entries.drasclr.maps.probe import best_threshold, fit_probe, load_probe
from zoo.entries.drasclr.model import DrasCLREncoder
from zoo.entries.drasclr.survival import concordance, fit_cox, partial_likelihood
from zoo.errors import InputContractError, OptionError
from zoo.training.args import run_command

COUNT = 60


# --- survival ---------------------------------------------------------------------------------------------------------

X = np.array([[1.0], [0.0], [2.0], [1.0]])
TIME = np.array([2.0, 2.0, 5.0, 3.0])


def test_the_partial_likelihood_by_hand():
    """Two events at one time share one risk set; who is censored is at risk until then."""
    b = 0.7
    everyone, late = exp(b) + 1 + exp(2 * b) + exp(b), exp(2 * b)
    value, _ = partial_likelihood(X, TIME, np.array([True, True, True, False]), np.array([b]))
    assert value == pytest.approx((b - log(everyone)) + (0 - log(everyone)) + (2 * b - log(late)))


def test_the_gradient_is_that_of_the_likelihood():
    """Central differences; times with ties, some censored."""
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(30, 4)), rng.normal(size=4)
    time, event = rng.integers(1, 9, 30).astype(float), rng.random(30) < 0.6
    _, gradient = partial_likelihood(x, time, event, b)
    steps = 1e-5 * np.eye(4)
    up, down = ([partial_likelihood(x, time, event, b + sign * step)[0] for step in steps] for sign in (1, -1))
    np.testing.assert_allclose(gradient, (np.array(up) - down) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_fit_by_hand():
    """Of three subjects the first to have an event has x = 1, the second x = 0: exp(b) solves a quadratic equation.

    With u = exp(b) and the third subject at x = 1 the likelihood is u / (2u + 1) * 1 / (u + 1); its greatest value is
    where 2 u^2 = 1.
    """
    x, time, event = np.array([[1.0], [0.0], [1.0]]), np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    assert fit_cox(x, time, event, 1e-12)[0] == pytest.approx(log(0.5**0.5), abs=1e-5)
    penalised = fit_cox(x, time, event, 1.0)
    _, gradient = partial_likelihood(x, time, event, penalised)
    np.testing.assert_allclose(gradient / 3, penalised, atol=1e-6)  # where the slope of the penalty balances it
    assert abs(penalised[0]) < log(2) / 2


def test_hazards_are_found_again():
    """Exponential times whose hazard follows from two features, a third of them censored."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 3))
    died, left = rng.exponential(np.exp(-x @ [1.0, -0.5, 0.0])), rng.exponential(2.0, 4000)
    found = fit_cox(x, np.minimum(died, left), died < left, 1e-9)
    np.testing.assert_allclose(found, [1.0, -0.5, 0.0], atol=0.08)  # standard errors are about 0.02


def test_large_risks_do_not_overflow():
    """Risks of thousands, as a line search may try."""
    value, gradient = partial_likelihood(1e4 * X, TIME, np.array([True, False, True, True]), np.array([-1.0]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    with pytest.raises(OptionError, match="none of 4 subjects has an event"):
        fit_cox(X, TIME, np.zeros(4, dtype=bool), 1.0)


def test_concordance_by_hand():
    """Pairs are known where the earlier time is an event; equal risks are half a pair."""
    time, event = np.array([1.0, 2.0, 2.0, 4.0, 3.0]), np.array([True, True, False, True, False])
    # Known: 0 before all others (4 pairs); 1 before 2 (same time, censored), 3 and 4. 3 has nobody after it.
    assert concordance(time, event, np.array([5.0, 4.0, 3.0, 2.0, 1.0])) == 1.0
    assert concordance(time, event, np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == 0.0
    assert concordance(time, event, np.zeros(5)) == 0.5
    assert concordance(time, event, np.array([3.0, 2.0, 3.0, 1.0, 2.0])) == pytest.approx((3.5 + 1.5) / 7)
    with pytest.raises(OptionError, match=r"of 2 subjects with 1 event\(s\) no two"):
        concordance(np.array([1.0, 2.0]), np.array([False, True]), np.zeros(2))


# --- targets ----------------------------------------------------------------------------------------------------------


def table(**columns):
    """Subject -> cells."""
    rows = enumerate(zip(*columns.values(), strict=True))
    return {f"s{i}": dict(zip(columns, cells, strict=True)) for i, cells in rows}


def test_what_a_target_is_follows_from_its_cells():
    """Numbers, two values, words, or times with events; it can be said otherwise."""
    assert read_target(table(a=["1", "2.5", " 3e0 "]), "a").values.tolist() == [1, 2.5, 3]
    two = read_target(table(a=["10", "9", "10"]), "a")
    assert (two.task, two.classes, two.values.tolist()) == ("classification", ("9", "10"), [1, 0, 1])
    words = read_target(table(a=["mild", "none", "severe"]), "a")
    assert (words.task, words.classes) == ("classification", ("mild", "none", "severe"))
    assert read_target(table(a=["0", "1", "0"]), "a", task="regression").values.tolist() == [0, 1, 0]
    assert read_target(table(a=["0", "2", "4"]), "a", task="classification").classes == ("0", "2", "4")
    survival = read_target(table(a=["3", "4", "5"], e=["1", "0", "1.0"]), "a", event="e")
    assert (survival.task, survival.event.tolist()) == ("survival", [True, False, True])


@pytest.mark.parametrize(
    ("cells", "settings", "message"),
    [
        (["1", "1", "1"], {}, "a is '1' for all 3 subjects"),
        (["1", "x", "inf"], {"task": "regression"}, "finite numbers are expected, not s1 'x', s2 'inf'"),
        (["1", "-2", "3"], {"event": "e"}, "times from 0 on are expected, not s1 '-2'"),
        (["1", "2", "3"], {"event": "a"}, "1 for an event and 0 for none are expected, not s1 '2', s2 '3'"),
        (["1", "2", "3"], {"task": "survival"}, "survival without --event"),
        (["1", "2", "3"], {"event": "e", "task": "regression"}, "regression with --event"),
    ],
)
def test_what_cannot_be_a_target_is_refused(cells, settings, message):
    """With the subjects."""
    with pytest.raises(OptionError, match=message):
        read_target(table(a=cells, e=["1", "0", "1"]), "a", **settings)


def test_too_many_classes_are_refused():
    """A number that was taken for a class, or an identifier."""
    with pytest.raises(OptionError, match="a has 21 classes, more than 20"):
        read_target(table(a=[f"id{i}" for i in range(21)]), "a")


# --- folds and probes -------------------------------------------------------------------------------------------------


def cohort(seed=0):
    """Features of which the first carries all: subjects in pairs of one patient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COUNT, 8))
    event = rng.random(COUNT) < 0.7
    targets = {
        "regression": Target("regression", 50 + 10 * x[:, 0] + rng.normal(size=COUNT)),
        "classification": Target("classification", (x[:, 0] > 0).astype(float), classes=("0", "1")),
        "survival": Target("survival", np.exp(-4 * x[:, 0]) * rng.exponential(size=COUNT), event),
    }
    return x, targets, [f"patient{i // 2}" for i in range(COUNT)]


@pytest.mark.parametrize("task", ["regression", "classification", "survival"])
def test_no_patient_is_in_two_folds(task):
    """Each subject is tested once; each fold has its share of classes or events."""
    _, targets, groups = cohort()
    names, target = np.array(groups), targets[task]
    folds = make_folds(target, names, 5, 0)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(COUNT))
    for train, test in folds:
        assert not set(names[train]) & set(names[test])
        assert len(train) + len(test) == COUNT
        assert abs(target.strata[test].mean() - target.strata.mean()) < 0.2  # of 12 subjects in pairs
    other = make_folds(target, names, 5, 1)
    assert [test.tolist() for _, test in other] != [test.tolist() for _, test in folds]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [("regression", "r2", 0.95), ("classification", "auroc", 0.95), ("survival", "c_index", 0.8)],
)
def test_what_features_know_is_found(task, metric, least):
    """And chance where they know nothing; the noise of the target allows an R2 of 0.99."""
    x, targets, groups = cohort()
    found = cross_validate(x, targets[task], groups)
    assert set(found.summary) == set(found.folds[0]) - {"test"}
    assert found.summary[metric]["mean"] > least
    assert sum(fold["test"] for fold in found.folds) == COUNT
    for i, fold in enumerate(found.folds):
        rows = np.flatnonzero(found.of_fold == i)
        assert metrics(targets[task].take(rows), found.scores[rows]) == pytest.approx(
            {metric: fold[metric]} | {name: value for name, value in fold.items() if name != "test"}
        )
    blind = cross_validate(np.random.default_rng(5).normal(size=(COUNT, 8)), targets[task], groups)
    chance = 0.0 if task == "regression" else 0.5
    assert abs(blind.summary[metric]["mean"] - chance) < 0.25  # five folds of 12


@pytest.mark.slow
@pytest.mark.parametrize("task", ["regression", "classification", "survival"])
def test_a_fold_knows_nothing_of_its_test_subjects(task):
    """Another's features, and where folds do not depend on them all their values, leave the scores of a fold alone."""
    x, targets, groups = cohort()
    target = targets[task]
    found = cross_validate(x, target, groups)
    rows = np.flatnonzero(found.of_fold == 0)
    changed, values = x.copy(), target.values.copy()
    changed[rows[0]] += 100
    if task != "classification":
        values[rows] += 5
    again = cross_validate(changed, Target(task, values, target.event, target.classes), groups)
    assert np.array_equal(again.of_fold, found.of_fold)
    np.testing.assert_allclose(again.scores[rows[1:]], found.scores[rows[1:]], rtol=1e-6)
    elsewhere = found.of_fold != 0
    assert not np.allclose(again.scores[elsewhere], found.scores[elsewhere], rtol=1e-3)


def test_folds_that_cannot_be_made_are_refused():
    """Too few subjects, too few of a class, too few events."""
    names = np.array([f"s{i}" for i in range(12)])
    few = np.array([1.0] * 3 + [0.0] * 9)
    with pytest.raises(OptionError, match="7 folds need 14 subjects, but there are 12"):
        make_folds(Target("regression", np.arange(12.0)), names, 7, 0)
    with pytest.raises(OptionError, match="4 folds need 4 subjects of each class, but there are 3"):
        make_folds(Target("classification", few, classes=("a", "b")), names, 4, 0)
    with pytest.raises(OptionError, match="4 folds need 4 subjects with an event, but there are 3"):
        make_folds(Target("survival", np.arange(12.0), few > 0), names, 4, 0)
    everyone = make_folds(Target("survival", np.arange(12.0), np.ones(12, dtype=bool)), names, 4, 0)
    assert len(everyone) == 4


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Features of all subjects but one, and a table of all but another; one value is missing."""
    x, targets, groups = cohort()
    sids = tuple(f"s{i}" for i in range(1, COUNT))
    write_subject_features(tmp_path / "f.npz", SubjectFeatures(sids, np.float32(x[1:]), {"weights": "w"}))
    lines = ["sid,patient,fev1,sick,years,died"]
    for i in range(COUNT - 1):
        number = "" if i == 4 else f"{targets['regression'].values[i]}"
        word = "sick" if targets["classification"].values[i] else "well"
        time, event = targets["survival"].values[i], int(targets["survival"].event[i])
        lines.append(f"s{i},{groups[i]},{number},{word},{time},{event}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(folder, *flags):
    given = ["--features", folder / "f.npz", "--table", folder / "table.csv", "--out", folder / "run"]
    return [str(word) for word in (*given, *flags)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "task", "metric", "rows"),
    [
        (["--label", "fev1"], "regression", "r2", COUNT - 3),
        (["--label", "sick", "--group", "patient"], "classification", "auroc", COUNT - 2),
        (["--label", "years", "--event", "died", "--folds", "3"], "survival", "c_index", COUNT - 2),
    ],
)
def test_a_probe_from_a_file_and_a_table(flags, task, metric, rows, files, caplog, capsys):
    """Results say by which protocol, on whom, and with which weights; predictions are those that were judged."""
    results = finetune.main(command(files, *flags))
    assert json.loads((files / "run" / "results.json").read_text()) == results
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"results: {files / 'run' / 'results.json'}"
    assert f"{metric} {results[metric]['mean']:.4g}" in lines[0]
    assert (results["task"], results["subjects"], results["features"]) == (task, rows, {"weights": "w"})
    assert "the authors published none" in results["protocol"]
    assert results["left_out"] == {"without features": 1, "without a row": 1, "without a value": COUNT - 2 - rows}
    assert f"{rows} subjects; left out: 1 without features, 1 without a row" in caplog.text
    assert results[metric]["mean"] == pytest.approx(np.mean([fold[metric] for fold in results["folds"]]))
    assert results[metric]["mean"] > 0.75
    with (files / "run" / "predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert len(predicted) == rows
    assert {int(row["fold"]) for row in predicted} == set(range(len(results["folds"])))
    if task == "regression":
        pairs = np.array([(float(row["value"]), float(row["prediction"])) for row in predicted])
        assert np.abs(pairs[:, 0] - pairs[:, 1]).mean() == pytest.approx(results["all_folds"]["mae"], abs=1e-3)
    if task == "survival":
        assert {row["event"] for row in predicted} == {"0", "1"}
    if task == "classification":
        assert {row["value"] for row in predicted} == {"sick", "well"}


@pytest.mark.slow
def test_more_than_two_classes(files):
    """One decision for each, and the mean AUROC of each against the others."""
    text = (files / "table.csv").read_text().splitlines()
    lines = [text[0] + ",stage", *(f"{line},{'abc'[i % 3]}" for i, line in enumerate(text[1:]))]
    (files / "table.csv").write_text("\n".join(lines) + "\n")
    results = finetune.main(command(files, "--label", "stage", "--folds", "2"))
    assert results["classes"] == ["a", "b", "c"]
    assert 0.2 < results["auroc"]["mean"] < 0.8  # features know nothing of it
    header = (files / "run" / "predictions.csv").read_text().splitlines()[0]
    assert header == "subject,fold,value,a_decision,b_decision,c_decision"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label", "fev2"], r"lacks columns fev2; it has sid, patient"),
        (["--label", "fev1", "--subject", "patient"], "29 of 59 rows repeat a patient"),
        (["--label", "fev1", "--subject", "years"], "no subject has features.*'s1' and .*--subject names the column"),
        (["--label", "fev1", "--folds", "1"], "--folds must be at least 2"),
    ],
)
def test_a_table_that_does_not_fit(flags, message, files):
    """One line, no traceback."""
    with pytest.raises(SystemExit, match=f"OptionError: .*{message}"):
        run_command(lambda: finetune.main(command(files, *flags)))


# --- cells ------------------------------------------------------------------------------------------------------------


def test_cells_by_hand():
    """The last cell of an axis may be shorter; a share is of the voxels in the mask."""
    assert len(lay_cells((4, 5, 3), 2)) == 2 * 3 * 2
    mask = np.zeros((4, 5, 3), dtype=bool)
    mask[3, 4, :] = True
    mask[0, 0, 0] = True
    cells = lay_cells(mask.shape, 2, mask)
    assert cells.tolist() == [[0, 0, 0], [1, 2, 0], [1, 2, 1]]
    truth = np.zeros(mask.shape, np.uint8)
    truth[3, 4, 0] = truth[2, 4, 0] = 1  # the second is not in the mask
    share, count = shares(truth, cells, 2, mask)
    assert (share.tolist(), count.tolist()) == ([0, 0.5, 0], [1, 2, 1])
    share, count = shares(truth, cells, 2)
    assert (share.tolist(), count.tolist()) == ([0, 2 / 4, 0], [8, 4, 2])
    with pytest.raises(InputContractError, match="is empty"):
        lay_cells((4, 5, 3), 2, np.zeros((4, 5, 3)))
    with pytest.raises(InputContractError, match=r"shape \(4, 5\), the volume \(4, 5, 3\)"):
        lay_cells((4, 5, 3), 2, np.zeros((4, 5)))
    with pytest.raises(InputContractError, match=r"truth has the shape \(4, 5\), its mask \(4, 5, 3\)"):
        shares(truth[:, :, 0], cells, 2, mask)


def test_cells_are_spread_linearly():
    """A plane comes back between the centres of cells; a constant everywhere, also beside cells without a value."""
    shape, side = (12, 16, 10), 4
    cells = lay_cells(shape, side)
    centres = cells * side + (side - 1) / 2
    plane = spread(centres @ [1.0, 2.0, 3.0], cells, shape, side)
    voxels = np.indices(shape).transpose(1, 2, 3, 0) @ [1.0, 2.0, 3.0]
    np.testing.assert_allclose(plane[2:10, 2:14, 2:8], voxels[2:10, 2:14, 2:8], atol=1e-4)
    some = cells[(cells.sum(1) % 2) == 0]
    found = spread(np.full(len(some), 0.25), some, shape, side)
    inside = np.zeros((3, 4, 3), dtype=bool)
    inside[tuple(some.T)] = True
    inside = inside.repeat(4, 0).repeat(4, 1).repeat(4, 2)[:, :, :10]
    np.testing.assert_allclose(found, np.where(inside, 0.25, 0), atol=1e-6)
    mask = np.zeros(shape, dtype=bool)
    mask[1, 2, 3] = True
    assert np.flatnonzero(spread(np.ones(len(cells)), cells, shape, side, mask)).tolist() == [1 * 160 + 2 * 10 + 3]


def test_maps_are_judged_by_hand():
    """From the threshold on; what misses all has a Dice of 0, and a truth without anything none."""
    mapped, missed = np.array([0.5, 0.25, 0.75, 1.0]), np.zeros(4)
    truth = np.array([2, 1, 0, 0])  # as some label it
    assert dense.judge(mapped, 0.5, truth) == {"map_voxels": 3, "truth_voxels": 2, "dice": 2 / 5}
    assert dense.judge(missed, 0.5, truth) == {"map_voxels": 0, "truth_voxels": 2, "dice": 0}
    assert dense.judge(mapped, 0.5, missed) == {"map_voxels": 3, "truth_voxels": 0}
    assert dense.judge(mapped, 0.5, None) == {"map_voxels": 3}


# --- the map ----------------------------------------------------------------------------------------------------------

ATLAS = np.array([[0, 0, 0], [26, 0, 0], [0, 26, 0], [0, 0, 26], [26, 26, 26]])


@pytest.fixture(scope="module")
def model():
    """An encoder in which what is in a patch comes through."""
    torch.manual_seed(0)
    network = DrasCLREncoder(experts=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.constant_(module.running_var, 5e-3)
    return network.eval()


def chest(seed, side=48):
    """Noise with a block of emphysema, whose truth it returns beside it."""
    rng = np.random.default_rng(seed)
    volume = rng.normal(-820, 60, (side, side, side)).astype(np.int16)
    truth = np.zeros(volume.shape, np.uint8)
    z, y, x = rng.integers(0, side - 20, 3)
    truth[z : z + 20, y : y + 20, x : x + 20] = seed > 0
    volume[truth > 0] = -990
    return volume, truth


def test_cells_are_embedded_as_patches_are(model):
    """The same voxels at the same place give the same feature; beyond the volume there is -1024."""
    volume, _ = chest(1)
    cells = np.array([[2, 2, 2], [3, 2, 4], [0, 5, 2]])
    places = locate_cells(cells, 8, ATLAS)
    corners = cells * 8 + 4 - 16
    padded = np.pad(volume, 32, constant_values=-1024)
    patches = np.stack([padded[z : z + 32, y : y + 32, x : x + 32] for z, y, x in corners + 32])
    features = embed_cells(model, volume, cells, places, batch_size=2)
    torch.testing.assert_close(features, embed_patient(model, patches, places), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(places[1], np.array([20, 4, 12]) / 13 - 1, atol=1e-6)  # (x, y, z)
    np.testing.assert_allclose(places[2], np.array([4, 26, 0]) / 13 - 1, atol=1e-6)  # z from -12, y from 28
    assert torch.equal(locate_cells(np.array([[4, 4, 4]]), 8, ATLAS), locate_cells(np.array([[1, 1, 1]]), 24, ATLAS))


def test_the_way_to_the_atlas_is_found_again():
    """From where patches were cut, known to a voxel, in a patient who is turned, larger and elsewhere."""
    rng = np.random.default_rng(0)
    landmarks = 26 * rng.integers(0, 12, (581, 3))
    turn = np.array([[1.1, 0.1, 0.0], [-0.1, 0.95, 0.05], [0.0, -0.05, 1.2]])
    indices = np.rint(landmarks @ turn.T + [60, 70, 80]).astype(int)
    found = way_to_atlas(indices, landmarks)
    points = rng.uniform(60, 400, (100, 3))
    back = (points - [60, 70, 80]) @ np.linalg.inv(turn).T
    # Rounding has a deviation of 0.3 voxels; 581 of them leave some 0.02 near the middle.
    np.testing.assert_allclose(points @ found[:3, :3].T + found[:3, 3], back, atol=0.2)
    cells = np.array([[20, 22, 24]])
    corner = cells[:, ::-1] * 8 + 4 - 16
    expected = normalise(np.vstack([landmarks, (corner @ found[:3, :3].T + found[:3, 3])]))[-1:]
    torch.testing.assert_close(locate_cells(cells, 8, landmarks, found), torch.from_numpy(expected))
    with pytest.raises(InputContractError, match="Give the landmarks at which the patches were cut"):
        way_to_atlas(indices[::-1], landmarks)


def test_the_threshold_has_the_greatest_dice():
    """Against all thresholds, one by one, with ties among the scores."""
    rng = np.random.default_rng(0)
    scores, share = rng.integers(0, 8, 40) / 8, rng.random(40) ** 3
    count = rng.integers(1, 9, 40).astype(float)
    sought = share * count
    every = {t: 2 * sought[scores >= t].sum() / (sought.sum() + count[scores >= t].sum()) for t in scores}
    value, threshold = best_threshold(scores, share, count)
    assert value == pytest.approx(max(every.values()))
    assert every[threshold] == pytest.approx(value)


def test_a_probe_finds_shares_again(tmp_path):
    """Shares that follow a logistic function of the features, cells of different size; saved, it is the same."""
    rng = np.random.default_rng(0)

    def volume():
        x = rng.normal(3, [2, 1, 5], (400, 3))
        return x, 1 / (1 + np.exp(-(x[:, 0] - x[:, 1] - 2))), rng.integers(1, 512, 400).astype(float)

    probe = fit_probe([volume() for _ in range(3)])
    x, share, _ = volume()
    np.testing.assert_allclose(probe(x), share, atol=0.02)
    probe.save(tmp_path / "probe.npz")
    again = load_probe(tmp_path / "probe.npz")
    assert np.array_equal(again(x), probe(x))
    assert again.threshold == probe.threshold
    x, share, count = volume()
    with pytest.raises(OptionError, match="1 of 2 have any"):
        fit_probe([(x, share, count), (x, 0 * share, count)])


@pytest.mark.slow
def test_maps_of_a_folder(model, tmp_path, capsys):
    """Each volume by the others, one without a truth by all; what is reported is what the files hold."""
    for name in ("volume", "truth"):
        (tmp_path / name).mkdir()
    for seed in range(5):
        volume, truth = chest(seed, 36)
        np.save(tmp_path / "volume" / f"s{seed}.npy", volume)
        if seed < 4:
            np.save(tmp_path / "truth" / f"s{seed}.npy", truth)
    export_safetensors(model.state_dict(), tmp_path / "own.safetensors")
    np.save(tmp_path / "landmarks.npy", ATLAS)
    given = {"volumes": tmp_path / "volume", "truth": tmp_path / "truth", "out": tmp_path / "maps", "side": 12}
    given |= {"landmarks": tmp_path / "landmarks.npy", "checkpoint": tmp_path / "own.safetensors", "device": "cpu"}
    argv = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    results = dense.main(argv)
    assert f"dice {results['dice']['mean']:.4g}" in capsys.readouterr().out
    assert json.loads((tmp_path / "maps" / "results.json").read_text()) == results
    assert results["source"] == str(given["checkpoint"])
    maps = {seed: np.load(tmp_path / "maps" / f"s{seed}_map.npy") for seed in range(5)}
    for seed, found in maps.items():
        assert (found.dtype, found.shape) == (np.float16, (36, 36, 36))
        inside = found[chest(seed, 36)[1] > 0] if seed else found[:0]
        assert not inside.size or inside.mean() > 1.5 * found.mean()  # the block stands out
    assert results["dice"]["volumes"] == 3
    assert results["dice"]["mean"] == pytest.approx(np.mean([results["volumes"][f"s{i}"]["dice"] for i in (1, 2, 3)]))
    assert "dice" not in results["volumes"]["s0"]
    assert "truth_voxels" not in results["volumes"]["s4"]
    probe, volume = load_probe(tmp_path / "maps" / "probe.npz"), chest(4, 36)[0]
    cells = lay_cells(volume.shape, 12)
    features = embed_cells(model, volume, cells, locate_cells(cells, 12, ATLAS), side=12)
    expected = spread(probe(features.double().numpy()), cells, volume.shape, 12)
    np.testing.assert_allclose(maps[4], expected, atol=1e-3)  # float16
    assert results["volumes"]["s4"]["map_voxels"] == int((expected >= results["threshold"]).sum())

    with pytest.raises(OptionError, match="--side 12 --batch-size 0: at least 1"):
        dense.main([*argv, "--batch-size", "0"])
    (tmp_path / "truth" / "s1.npy").unlink()
    with pytest.raises(OptionError, match=r"5 volumes in .*, of which 3 have a truth.*and 2 any emphysema"):
        dense.main(argv)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: (v + 1000).clip(0), "value of the volume is 0: HU"),
        (lambda v: np.where(v == v.min(), np.nan, v.astype(np.float32)), "the volume is nan: HU"),
        (lambda v: v[0], r"int16 \(48, 48\)"),
    ],
)
def test_what_cannot_be_mapped_is_refused(edit, message, model):
    """No HU, NaN, no volume."""
    cells = np.array([[2, 2, 2], [3, 3, 3]])
    with pytest.raises(InputContractError, match=message):
        embed_cells(model, edit(chest(1)[0]), cells, locate_cells(cells, 8, ATLAS))
