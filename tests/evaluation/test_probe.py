"""`zoo.probe`: honest on noise, on a planted signal and on patients that are there twice."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from probed import noise, planted, probed, run, table_of

import zoo
from zoo.errors import InputContractError, OptionError
from zoo.evaluation import assembling, fitting, looks, probes, probing
from zoo.evaluation.embedding import twins_of
from zoo.evaluation.intensities import NAME
from zoo.evaluation.labelled import read_labelled
from zoo.evaluation.page import html_of
from zoo.features import FeatureTable


def split_in(table):
    """The same table with a column of parts, by patient."""
    number = table["patient"].str[1:].astype(int)
    return table.assign(split=np.where(number % 5 < 2, "test", "train"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "classes", "numbers"])
@pytest.mark.parametrize("is_split", [False, True])
def test_noise_is_worth_nothing_and_a_signal_is_found(kind, is_split):
    """Chance within the interval of noise and far below that of the signal, by both probes.

    Of numbers noise has an R2 a little below 0: the mean of all beats what was learnt.
    """
    table = table_of(90 if kind == "classes" else 60, kind)  # with a split 12 tested patients have each class
    table = split_in(table) if is_split else table
    features = {"planted": planted(table), "noise": noise(table, seed=7)}
    report = run(features, table, split="split" if is_split else None, sizes=())
    main, chance = ("r2", 0.0) if kind == "numbers" else ("auroc", 0.5)
    assert (report.main_measure, report.best) == (main, "planted")
    for name in ("linear", "knn"):
        found = report.result("noise").measures[name][main]
        assert found.low - 0.02 <= chance <= found.high + (0.15 if main == "r2" else 0)
        assert report.result("planted").measures[name][main].low > chance + 0.1
    (difference,) = [d for d in report.result("noise").differences if d.probe == "linear"]
    assert (difference.to, difference.name, difference.verdict) == ("best", "planted", "worse")
    assert difference.difference.high < 0
    assert report.result("planted").differences == ()


@pytest.mark.slow
def test_noise_twice_is_not_told_apart():
    """The better of two draws of noise is not called better."""
    table = table_of()
    report = run({"one": noise(table, seed=3), "other": noise(table, seed=5)}, table, sizes=())
    said = {d.verdict for each in report.encoders for d in each.differences}
    assert said == {"not told apart"}
    assert "is better" not in " ".join(report.verdict)


@pytest.mark.slow
def test_intervals_of_noise_hold_chance():
    """Scores of all folds in one list would be below it: where a fold tests more of a class, it learnt fewer of it.

    Over 12 draws the mean AUROC is known to some 0.02, and fewer than 9 intervals of 95 % that hold 0.5 would be seen
    once in 300 times.
    """
    table = table_of(40)
    found = [
        run(noise(table, seed=s), table, sizes=()).encoders[0].measures["linear"]["auroc"] for s in range(100, 112)
    ]
    assert np.mean([each.value for each in found]) == pytest.approx(0.5, abs=0.05)
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 9


@pytest.mark.slow
def test_the_order_of_rows_changes_nothing():
    """Neither folds, nor draws, nor resamples: shuffled rows give the same report to the last digit."""
    table = table_of()
    features = planted(table, 0.5)
    order = np.random.default_rng(3).permutation(len(table))
    one = run({"x": features}, table)
    other = run({"x": features[order]}, table.iloc[order])
    same = dataclasses.replace(one, repeat=other.repeat)
    assert same == other


@pytest.mark.slow
def test_rows_without_ids_are_shuffled_too():
    """An array beside a table that names no case."""
    table = table_of().drop(columns="id")
    features = planted(table, 0.5)
    order = np.random.default_rng(3).permutation(len(table))
    one, other = run(features, table), run(features[order], table.iloc[order])
    assert one.encoders[0].measures == other.encoders[0].measures
    assert one.encoders[0].curve == other.encoders[0].curve


@pytest.mark.slow
def test_rows_that_nothing_names_are_shuffled_too():
    """Cases that are groups of their own, called by their rows: numbers of rows must not order the folds."""
    table = table_of()[["label"]]
    features = planted(table, 0.5)
    order = np.random.default_rng(3).permutation(len(table))
    one, other = run(features, table, group=None), run(features[order], table.iloc[order], group=None)
    assert one.encoders[0].measures == other.encoders[0].measures
    assert one.encoders[0].curve == other.encoders[0].curve


@pytest.mark.slow
def test_the_best_of_several_is_corrected_for_being_picked():
    """As one of all pairs: the largest of four differs from the least by chance, as no pair named before would."""
    table = table_of()
    report = run({str(seed): noise(table, seed=seed) for seed in range(4)}, table, sizes=())
    found = [d for each in report.encoders for d in each.differences if (d.to, d.probe) == ("best", "linear")]
    least = min(found, key=lambda d: d.p)
    assert len(found) == 3
    assert least.p_holm == min(1, 6 * least.p)


@pytest.mark.slow
def test_few_tested_groups_are_said():
    """A hundred images of few patients are few pieces of evidence, of a class and in all."""
    table = table_of(18)
    said = " ".join(run(noise(table), table, sizes=()).warnings)
    assert "Fewer than 10 tested groups are of 0 and 1" in said or "Fewer than 10 tested groups are of 0, 1" in said
    assert "Only 18 groups are tested" in said
    assert "nothing is called better" in said
    assert not any("groups are" in line for line in run(noise(table_of()), table_of(), sizes=()).warnings)


@pytest.mark.slow
def test_verdicts_of_few_groups_say_so():
    """A planted signal among 18 patients is not called better, though its interval excludes 0; among 24 it is."""
    verdicts = {}
    for patients in (18, 24):
        table = table_of(patients)
        features = {"planted": planted(table, 3), "noise": noise(table)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting, "compare", as_baseline(fitting.compare))
            report = run(features, table, sizes=())
        (found,) = [d for d in report.result("planted").differences if (d.to, d.probe) == ("random", "linear")]
        assert found.difference.low > 0
        verdicts[patients] = found.verdict, *report.verdict
    assert verdicts[24][0] == "better"
    assert "it is better than its network with random weights (+" in verdicts[24][1]
    assert verdicts[18][0] == "too few groups"
    said = " ".join(verdicts[18][1:])
    assert "18 groups are too few to tell it from its network with random weights (+" in said
    assert "95 % interval +" in said
    assert "So few groups cannot tell it from noise" in said
    assert "better" not in said


def as_baseline(compare):
    """`compare`, with noise also in the part of the random weights."""

    def compared(plan, contenders, values):
        return compare(plan, [dataclasses.replace(each, twin="noise") for each in contenders], values)

    return compared


@pytest.mark.slow
def test_neighbours_of_many_cases_are_a_draw_that_is_said(monkeypatch):
    """Of 84 000 films as many as 5000 are looked at: whoever reads the number must know."""
    table = table_of()
    assert run(noise(table), table, sizes=()).split.neighbour_cases == 96
    for module in (probes, looks, assembling):
        monkeypatch.setattr(module, "MOST_KEPT", 50)
    report = run(noise(table), table, sizes=())
    assert report.split.neighbour_cases == 50
    said = "Nearest neighbours are looked for among 50 of 96 training cases, drawn at random"
    assert any(said in warning for warning in report.warnings)
    page = html_of(report, {})
    assert said in page
    assert "neighbours among\n50 training cases" in page


def test_the_curve_of_numbers_ends_in_the_table():
    """Each draw by the variance of all tested cases: with nearly all labels it comes to the R2 of the table."""
    table = table_of(60, "numbers")
    report = run(planted(table, 3), table, sizes=(94,), draws=10)
    few, whole = report.encoders[0].curve
    assert few.mean == pytest.approx(whole.mean, abs=0.02)
    assert whole.mean == report.encoders[0].measures["linear"]["r2"].value


@pytest.mark.slow
def test_copies_that_cannot_be_found_are_said():
    """Features of few numbers agree by chance; a reader who knows of no search may think that there was one."""
    table = table_of()
    grades = (np.arange(len(table)) % 5).astype(np.float32)[:, None]
    said = "Whether an image is there twice, in two groups, was not looked for"
    assert any(said in warning for warning in run(grades, table, sizes=()).warnings)
    both = run({"grades": grades, "noise": noise(table)}, table, sizes=())
    assert not any(said in warning for warning in both.warnings)


def test_random_weights_are_called_by_what_they_belong_to():
    """By a number they would change their name with the order in which encoders are named."""

    def found(name, **facts):
        return SimpleNamespace(name=name, facts={"network": "net", "input": {"size": 1}, **facts})

    one, two, same = found("net.one"), found("net.two", layer=3), found("net.same")
    assert set(twins_of([one])) == set(twins_of([one, same])) == {"net, random weights"}
    expected = {"net, random weights as net.one and net.same", "net, random weights as net.two"}
    assert set(twins_of([one, two, same])) == set(twins_of([same, two, one])) == expected
    assert set(twins_of([found("net, random weights")])) == {"net, random weights as net, random weights"}


def test_training_lists_are_asked_by_paths():
    """CheXpert's and MIMIC's folders name the patient; names of files alone are nobody's."""
    paths = [f"train/patient{i:05}/study1/view1_frontal.jpg" for i in range(4)]
    table = pd.DataFrame({"path": paths, "label": [0, 1, 0, 1]})
    assert list(probing.image_names(read_labelled(table, "label"))) == paths


@pytest.mark.slow
def test_draws_of_few_labels_are_the_same_for_each_encoder(monkeypatch):
    """Two encoders that were given other patients would differ by the draw."""
    asked = []
    fit = fitting.fit_linear

    def spy(part):
        asked.append((part.groups.tolist(), part.labels.tolist()))
        return fit(part)

    monkeypatch.setattr(fitting, "fit_linear", spy)
    report = probed(sizes=(10, 25))
    half = len(asked) // 2
    assert half == 20  # ten each of 10 and 25
    assert asked[:half] == asked[half:]
    for each in report.encoders:
        assert [point.size for point in each.curve] == [10, 25, None]
        assert [point.draws for point in each.curve[:2]] == [10, 10]
    means = [point.mean for point in report.result("planted").curve]
    assert means[0] < means[-1]


def test_a_patient_on_both_sides_is_refused():
    """By name, before anything is computed."""
    table = split_in(table_of())
    table.loc[0, "split"] = "train"
    with pytest.raises(OptionError, match=r"1 of 60 groups are both .*: p0\."):
        run(noise(table), table, split="split")


@pytest.mark.slow
def test_the_same_image_under_two_patients_is_refused():
    """A patient with two numbers, whose copies differ by what batches round."""
    table = table_of()
    features = planted(table)
    features[7] = features[50] * (1 + 1e-6)
    with pytest.raises(OptionError, match=r"1 pairs .*case007 \(p3\) and case050 \(p25\)"):
        run(features, table)
    table.loc[7, "patient"] = table.loc[50, "patient"]
    table.loc[6, "patient"] = table.loc[50, "patient"]
    run(features, table, sizes=())


def test_a_file_in_two_groups_is_refused(tmp_path):
    """Two rows of one film with two patients, whatever the folder is called."""
    table = table_of().rename(columns={"id": "path"})
    table.loc[1, "path"] = "./" + table.loc[40, "path"]
    with pytest.raises(OptionError, match="more than one group"):
        run(noise(table), table)


@pytest.mark.slow
def test_cases_without_a_label_are_left_out_and_counted(caplog):
    """They are neither a class nor 0."""
    table = table_of().astype({"label": object})
    table.loc[[3, 4, 5], "label"] = ["", None, "n/a"]
    report = run(noise(table), table, sizes=())
    assert (report.cohort.rows, report.cohort.cases, report.cohort.without_label) == (120, 117, 3)
    assert "3 of 120 cases have no label" in caplog.text
    assert any("3 of 120 cases were left out" in warning for warning in report.warnings)


@pytest.mark.slow
def test_labels_of_shown_cases_are_classes():
    """A column with gaps is of floats: 1.0 would be none of the classes that the map tells apart, but class 1 is."""
    table = table_of().astype({"label": float})
    table.loc[3, "label"] = np.nan
    report = run(noise(table), table, sizes=())
    assert {case.label for case in report.shown} == set(report.target.classes) == {"0", "1"}


def features_of(table, **columns):
    """What `zoo.read_features` returns."""
    frame = pd.DataFrame(columns)
    frame.attrs = {"model": "caid-resnet50.mine"}
    return FeatureTable(noise(frame, seed=4), frame)


@pytest.mark.slow
def test_features_are_matched_and_both_differences_counted():
    """By the names of files, in another folder and another order; one film lacks features, two lack a row."""
    table = table_of().rename(columns={"id": "file"})
    names = [*table["file"][1:], "other1", "other2"][::-1]
    found = features_of(table, path=[f"/data/films/{name}" for name in names])
    report = run(found, table, sizes=())
    assert report.encoders[0].name == "caid-resnet50.mine"
    assert (report.cohort.cases, report.cohort.without_features) == (119, 1)
    assert report.cohort.not_in_table == {"caid-resnet50.mine": 2}


@pytest.mark.slow
def test_a_few_columns_that_agree_are_no_copies():
    """Of grades from 0 to 4 many cases have the same; a table without rows is called so."""
    table = table_of()
    grades = (np.arange(len(table)) % 5).astype(np.float32)[:, None]
    assert run(grades, table, sizes=()).encoders[0].name == "features"
    with pytest.raises(OptionError, match="the table has no rows"):
        run(grades[:0], table[:0], sizes=())


@pytest.mark.parametrize("by_name", [True, False])
def test_features_of_one_name_are_refused(by_name):
    """Two arrays without names, or a name that is the baseline's: the last would stand for all of them."""
    table = table_of()
    good, bad = planted(table, 3), noise(table)
    with pytest.raises(OptionError, match=f"called {NAME if by_name else 'features'}: give each its own name"):
        run({NAME: good} if by_name else [good, bad], table, sizes=())


@pytest.mark.slow
def test_matching_goes_to_the_right_case():
    """A shuffled file of features of a signal is still one."""
    table = table_of()
    values = planted(table, 3)
    order = np.random.default_rng(0).permutation(len(table))
    frame = pd.DataFrame({"path": [f"/x/{name}.png" for name in table["id"].iloc[order]]})
    report = run(FeatureTable(values[order], frame), table, sizes=())
    assert report.encoders[0].measures["linear"]["auroc"].value > 0.9


@pytest.mark.slow
def test_slices_of_a_case_are_averaged():
    """Rows of a volume in slices are no cases of their own."""
    table = table_of()
    values = planted(table, 3)
    frame = pd.DataFrame({"id": np.repeat(table["id"], 3), "path": "v", "slice": np.tile([0, 1, 2], len(table))})
    spread = np.repeat(values, 3, 0) + np.tile([[-100.0], [0], [100]], (len(table), 1)).astype(np.float32)
    report = run(FeatureTable(spread, frame), table, sizes=())
    assert report.encoders[0].measures["linear"]["auroc"].value > 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, t: (f[:-1], t), "119 rows of features for 120 rows"),
        (lambda f, t: (np.where(np.arange(12) == 3, np.nan, f), t), "120 of 120 rows have NaN"),
        (lambda f, t: (f[:, :, None], t), "without --tokens"),
        (lambda f, t: (f, t.drop(columns="label")), "no such column; it has id, patient"),
        (lambda f, t: (f, t.assign(patient="")), "120 cases have no group"),
        (lambda f, t: (f, t.assign(id="x")), "more than once"),
        (lambda f, t: (features_of(t, path=["a", "b"]), t), "none of the 120 cases"),
        (lambda f, t: ([], t), "nothing to probe"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    """In words that name the count or the case."""
    table = table_of()
    features, table = change(noise(table), table)
    with pytest.raises((OptionError, InputContractError), match=said):
        run(features, table)


@pytest.mark.slow
def test_missing_baselines_are_said():
    """Features alone tell nothing of whether the pre-training helped; the reader learns what to give."""
    report = probed(sizes=())
    assert "no baselines" in report.warnings[0]
    assert "--data" in report.warnings[0]
    assert "no baseline" in report.verdict[0]


def test_the_validation_part_is_tested_where_there_is_no_test_part():
    """Else it is learnt from: what is chosen is chosen inside the training part."""
    table = split_in(table_of())
    words = table["split"].replace("test", "val")
    assert run(noise(table), table.assign(split=words), split="split", sizes=()).split.test_cases == 48
    three = words.where(table["patient"] != "p1", "test").where(table["patient"] != "p2", "test")
    report = run(noise(table), table.assign(split=three), split="split", sizes=())
    assert (report.split.test_cases, report.split.train_cases) == (4, 116)


def test_neighbours_are_training_cases_of_other_patients():
    """The nearest image of the same patient says nothing of a new one."""
    table = split_in(table_of())
    report = run(planted(table), table, split="split", sizes=())
    queries = report.encoders[0].queries
    assert len(queries) == 6
    for query in queries:
        asked = report.shown[query.case]
        near = [report.shown[each.case] for each in query.neighbours]
        assert asked.part == "test"
        assert {each.part for each in near} == {"train"}
        assert asked.group not in {each.group for each in near}
        cosines = [each.similarity for each in query.neighbours]
        assert cosines == sorted(cosines, reverse=True)
    assert sorted(report.shown[query.case].label for query in queries) == ["0", "0", "0", "1", "1", "1"]


def test_the_program_finds_it():
    """`zoo.probe` is public, and imports nothing before it is used."""
    assert zoo.probe is probing.probe


@pytest.mark.slow
def test_unlabelled_rows_are_in_the_table():
    """Features of cases without a label are no strangers to a table with ids and paths."""
    table = table_of().assign(path=lambda t: t["id"] + ".png").astype({"label": object})
    table.loc[[3, 4], "label"] = ""
    found = features_of(table, path=[f"/data/{name}" for name in table["path"]])
    assert run(found, table, sizes=()).cohort.not_in_table == {}


@pytest.mark.slow
def test_features_of_one_model_are_told_apart(tmp_path):
    """Two files of it under one name would be one result without a word."""
    table = table_of()
    for name, values in (("a", planted(table)), ("b", noise(table))):
        facts = np.array('{"model": "caid-resnet50.mine"}')
        np.savez(tmp_path / f"{name}.npz", features=values, paths=table["id"].to_numpy(str), zoo=facts)
    report = run([tmp_path / "a.npz", tmp_path / "b.npz"], table, sizes=())
    assert [each.name for each in report.encoders] == [f"caid-resnet50.mine ({tmp_path / f'{x}.npz'})" for x in "ab"]
    assert report.best.endswith("a.npz)")
    found = features_of(table, id=table["id"])
    with pytest.raises(OptionError, match=r"several features are called caid-resnet50\.mine"):
        run([found, found], table)
