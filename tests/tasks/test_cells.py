"""Labels of a table: a probe and a fine-tuning run read the same classes in it, or refuse it both."""

import numpy as np
import pandas as pd
import pytest

from zoo.embedding import Cases
from zoo.errors import OptionError
from zoo.evaluation.labelled import read_labelled
from zoo.evaluation.probing import probe
from zoo.evaluation.target import read_target
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.cells import number_of, text_of
from zoo.tasks.labels import classes_or_labels, numbers_in, with_labels
from zoo.tasks.table import groups_of


def by_probe(cells, kind=None, uncertain=None):
    """Class or number of each case that has a label; NaN of the others."""
    labelled = read_labelled(pd.DataFrame({"y": pd.Series(cells, dtype=object)}), "y", uncertain=uncertain)
    target, values = read_target(labelled.texts, "y", kind)
    found = np.full(len(cells), np.nan, object)
    for row, value in zip(labelled.rows, values, strict=True):
        found[row] = target.classes[int(value)] if target.classes else value
    return found.tolist()


def by_task(cells, kind=None, uncertain=None):
    """The same, as a fine-tuning run reads it."""
    ids = [str(i) for i in range(len(cells))]
    kept = with_labels(Cases(ids, ids, {"y": cells}, None), ("y",), uncertain or "")
    columns = numbers_in(kept, ("y",)) if kind == "numbers" else classes_or_labels(kept, ("y",), uncertain or "")
    found = np.full(len(cells), np.nan, object)
    names = {"labels": ("0", "1"), "classes": columns.names}.get(columns.kind)
    for id, (value,) in zip(kept.ids, columns.values, strict=True):
        found[int(id)] = names[int(value)] if names else value
    return found.tolist()


@pytest.mark.parametrize(
    "cells",
    [
        ["0", "1", "0.0", "1.0", "-0", "+1"],
        [0, 1.0, True, False, np.nan, None],
        ["2", "10", "3.0", "2", "10", "3"],
        ["0.5", "1.5", "0.50", "1.5"],
        ["ill", " well ", "ill", "", "n/a", "well"],
        ["1_0", "1_1", "1_0", "1_1"],
        ["inf", "sup", "inf", "sup"],
        [1, pd.NA, 0, 1, 0, pd.NaT],
        ["none", "some", "none", "Unknown", "some"],
    ],
)
def test_a_probe_and_a_task_read_the_same_classes(cells):
    """A class of a probe that is two in fine-tuning, or a blank that is one: blanks, numbers as text, spellings."""
    assert [str(each) for each in by_probe(cells, "classes")] == [str(each) for each in by_task(cells)]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["Yes", "yes", "no", "no"] * 2, "differ in capitals or blanks alone, or are one number: 'Yes' and 'yes'"),
        (["left lung", "left  lung", "right", "right"] * 2, "'left  lung' and 'left lung'"),
        (["1", "1.0", "a", "a"] * 2, "'1' and '1.0'"),
        ([f"{n / 7:.3f}" for n in range(40)], "40 classes for 40 cases"),
        (["a", "a", "a", ""], "'a' in all cases"),
        (["1", "0", "-1", "1", "0"], "-1 in 1, 0 in 2, 1 in 2 cells"),
        (["1", "-1", "1", "-1"], "-1 in 2, 1 in 2 cells"),
    ],
)
def test_a_probe_and_a_task_refuse_the_same_classes(cells, said):
    """One that takes what the other refuses teaches opposites, or a doubt as a finding."""
    for read in (by_probe, by_task):
        with pytest.raises(OptionError, match=said):
            read(cells, "classes")


@pytest.mark.parametrize("word", ["ignore", "positive", "negative"])
def test_uncertain_labels_mean_the_same_to_both(word):
    """CheXpert's -1 is what the user says it is."""
    cells = ["1", "0", "-1", "1", "0", "-1.0", ""]
    found = by_probe(cells, None, word)
    assert [str(each) for each in found] == [str(each) for each in by_task(cells, None, word)]
    assert str(found[2]) == {"ignore": "nan", "positive": "1", "negative": "0"}[word]
    with pytest.raises(OptionError, match="--uncertain maybe: ignore, positive, negative are known"):
        by_probe(cells, None, "maybe")


@pytest.mark.parametrize("kind", [None, "numbers"])
def test_uncertain_is_refused_of_measured_numbers(kind):
    """A z-score of -1 would be learnt as 1; a fine-tuning run refuses it too."""
    table = pd.DataFrame({"z": [-1.0, *np.linspace(-2, 2, 30)]})
    with pytest.raises(OptionError, match=r"--uncertain positive: .*column z has measured numbers"):
        probe(np.zeros((31, 2)), table, column="z", kind=kind, uncertain="positive")
    with pytest.raises(OptionError, match="--uncertain positive: of --task classify"):
        FinetuneArgs(model="caid-resnet50", task="regress", table="t", label="z", uncertain="positive", out="o").check()


def test_a_probe_and_a_task_say_alike_what_becomes_of_cells(caplog):
    """Whoever misses it reads a doubt as a finding; and a word for cells that are not there is a slip."""
    for cells, word in ((["1", "0", "-1", "n/a", "1", "-1.0"], "positive"), (["1", "0", "1", "0"], "ignore")):
        said = []
        for read in (by_probe, by_task):
            caplog.clear()
            read(cells, None, word)
            said.append([line.replace("--label", "--column") for line in caplog.messages if "of 6 cases" not in line])
        assert said[0] == said[1]
        assert said[0] == (
            [
                "--column y: 1 cells count as no label: 1 'n/a'",
                "--column y: 2 cells are -1 and count as 1, by --uncertain",
            ]
            if word == "positive"
            else ["--uncertain ignore: no cell of --column y is -1"]
        )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["50", "sixty", "", "70.5"], "1 of 3 cells are no numbers, 'sixty'"),
        (["50,5", "60", "70"], "Write a point for the decimal comma"),
        (["1", "inf", "2"], "1 of 3 cells are no numbers, 'inf'"),
        (["1_0", "1_1"], "2 of 2 cells are no numbers"),
    ],
)
def test_a_probe_and_a_task_refuse_the_same_numbers(cells, said):
    """With the cell, and where it is written with a comma with what to write."""
    for read in (by_probe, by_task):
        with pytest.raises(OptionError, match=said):
            read(cells, "numbers")


def test_numbers_of_text_are_numbers():
    """As a column of a Parquet file has them that was written as text."""
    cells = ["50.5", " 61 ", "", "7e1"]
    assert by_probe(cells, "numbers")[:2] == by_task(cells, "numbers")[:2] == [50.5, 61.0]


@pytest.mark.parametrize(("odd", "said"), [("sixty", "1 cells are no numbers, 'sixty'"), ("60,5", "decimal comma")])
def test_a_column_of_numbers_with_one_text_says_which(odd, said):
    """Told that a class needs several cases, nobody looks for the one cell in forty."""
    cells = [f"{20 + n / 3:.1f}" for n in range(40)] + [odd]
    with pytest.raises(OptionError, match=f"{said}.*--kind numbers"):
        by_probe(cells)


@pytest.mark.parametrize(
    "cells",
    [[True, False, None, True, False], list(np.array([1, 0, 0, 1, 0], bool)), ["True", "False", "", "TRUE", "false"]],
)
def test_truth_values_are_one_and_zero_wherever_they_are_written(cells):
    """One column, in memory, as Parquet and as CSV, would be labels here and classes False, True there."""
    for read in (by_probe, by_task):
        assert read(cells)[:2] == ["1", "0"]
        assert read(cells)[3] == "1"
    assert by_probe(["true", "false", "maybe", "maybe"] * 2)[:2] == ["true", "false"], "a word beside others is a class"


def test_one_patient_in_two_spellings_of_a_number_is_refused(caplog):
    """As two groups it could stand on both sides of a split; 007 may be another patient than 7, and is warned of."""

    def by_both(groups):
        table = {"y": [0, 1] * (len(groups) // 2), "p": groups}
        read_labelled(pd.DataFrame(table), "y", group="p")
        ids = [f"/{i}.png" for i in range(len(groups))]
        args = FinetuneArgs(model="caid-resnet50", task="classify", table="t", label="y", group="p", out="o")
        groups_of(Cases(ids, ids, table, None), args)

    with pytest.raises(OptionError, match=r"--group p has groups that are one number: '7' and '7\.0'"):
        by_both(["7", "7.0", "8", "9"])
    args = FinetuneArgs(model="caid-resnet50", task="classify", table="t", label="y", group="p", out="o")
    with pytest.raises(OptionError, match=r"--group p has groups that are one number: '7' and '7\.0'"):
        groups_of(Cases(["a", "b"], ["/a", "/b"], {"p": ["7", "7.0"]}, None), args)
    by_both(["12345678901234567890", "12345678901234567891", "1.5", "1.50"])
    assert not caplog.messages
    by_both(["007", "7", "8", "9"])
    assert sum("count as different: '007' and '7'" in line for line in caplog.messages) == 2


def test_cells_are_read_by_one_rule():
    """What is no number, and what is no label."""
    assert [number_of(text) for text in ("", "nan", "inf", "1_0", "-0", "1e3")] == [None, None, None, None, 0, 1000]
    assert [text_of(cell) for cell in (None, np.nan, pd.NA, pd.NaT, " NA ", True, 2.0)] == [""] * 5 + ["1", "2.0"]
