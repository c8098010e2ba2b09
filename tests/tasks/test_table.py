"""The user's table: what its columns of labels mean, and every way in which they cannot be right."""

import numpy as np
import planted
import pytest

from zoo.embedding import Cases
from zoo.errors import OptionError
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.labels import classes_or_labels, numbers_in, with_labels
from zoo.tasks.table import groups_of, read_cases


def cases(**columns):
    count = len(next(iter(columns.values())))
    ids = [f"film{i}.png" for i in range(count)]
    return Cases(ids, ids, columns, None)


def arguments(**given):
    return FinetuneArgs(
        **{"out": "run", "model": "caid-resnet50", "task": "classify", "label": "y", "table": "t", **given}
    )


def test_zeros_and_ones_are_labels_with_gaps():
    """Empty cells taken for 0 would teach that everybody unasked is healthy."""
    found = classes_or_labels(cases(a=["0", "1.0", "", "1"], b=["n/a", "0", "1", "NaN"]), ("a", "b"))
    assert (found.kind, found.names) == ("labels", ("a", "b"))
    np.testing.assert_array_equal(found.values, [[0, np.nan], [1, 0], [np.nan, 1], [1, np.nan]])


def test_text_is_classes_in_the_order_of_their_names():
    """Names in the order of the rows would change with the order of the table."""
    found = classes_or_labels(cases(a=["well", "ill", "well", "gone", "ill", "gone"]), ("a",))
    assert (found.kind, found.names) == ("classes", ("gone", "ill", "well"))
    assert found.values[:, 0].tolist() == [2, 1, 2, 0, 1, 0]


def test_two_words_are_classes_not_labels():
    """A text that is no number has no 0 and no 1."""
    assert classes_or_labels(cases(a=["no", "yes", "no", "yes"]), ("a",)).names == ("no", "yes")


def test_whole_numbers_are_classes_in_their_own_order():
    """As texts 10 would come before 2."""
    found = classes_or_labels(cases(a=["10", "2", "3.0", "2", "10", "3"]), ("a",))
    assert found.names == ("2", "3", "10")
    assert found.values[:, 0].tolist() == [2, 0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": ["0.5", "1.5", "2.5", "0.5"]}, "--task regress"),
        ({"a": ["0", "1", "1"], "b": ["0", "2", "1"]}, "b has '2'"),
        ({"a": ["well", "left  lung", "Left lung"] * 3}, "'Left lung' and 'left  lung'"),
        ({"a": [f"name {i}" for i in range(8)]}, "8 classes for 8 cases"),
        ({"a": ["yes", "no", "Yes", "NO"] * 3}, "'NO' and 'no', 'Yes' and 'yes'"),
    ],
)
def test_what_cannot_be_classes_is_refused(columns, words):
    """Measured numbers, uncertain findings, texts that are different in each row, and words in two spellings."""
    with pytest.raises(OptionError, match=words):
        classes_or_labels(cases(**columns), tuple(columns))


@pytest.mark.parametrize(
    "columns", [{"a": ["0", "-1.0", "1", ""]}, {"a": ["1", "1", "0", "0"], "b": ["1", "-1", "", "1"]}]
)
def test_uncertain_labels_need_a_word(columns, caplog):
    """CheXpert's -1 as a third class, or as a second one where a column lacks 0, is learnt as a finding of its own."""
    name = tuple(columns)[-1]
    with pytest.raises(OptionError, match=f"--label {name} is -1 in 1, .*--uncertain ignore .*positive .*negative"):
        classes_or_labels(cases(**columns), tuple(columns))
    row = 1
    for word, label in (("ignore", np.nan), ("positive", 1), ("negative", 0)):
        found = classes_or_labels(cases(**columns), tuple(columns), word)
        assert found.kind == "labels"
        np.testing.assert_array_equal(found.values[row, -1], label)
    with_labels(cases(**columns), tuple(columns), "positive")
    assert f"--label {name}: 1 cells are -1 and count as 1, by --uncertain" in caplog.text


def test_a_case_whose_labels_are_all_uncertain_is_left_out(caplog):
    """It would be a case of which nothing is known."""
    table = cases(a=["1", "-1", "0"], b=["", "-1", "-1"])
    assert with_labels(table, ("a", "b"), "ignore").ids == ("film0.png", "film2.png")
    assert len(with_labels(table, ("a", "b"), "negative")) == 3
    with_labels(cases(a=["0", "1"]), ("a",), "ignore")
    assert "--uncertain ignore: no cell of --label a is -1" in caplog.text


def test_minus_one_among_other_numbers_is_a_class(caplog):
    """Grades may begin below 0."""
    assert classes_or_labels(cases(a=["-1", "0", "1", "2"] * 2), ("a",)).names == ("-1", "0", "1", "2")


def test_words_that_count_as_no_label_are_counted(caplog):
    """`unknown` learnt as a class would say of a new patient that nothing is known; `none` may be a finding."""
    kept = with_labels(cases(a=["1", "NA", " n/a ", "nan", "Unknown", "null", "", "0", "NA"]), ("a",))
    assert kept.ids == ("film0.png", "film7.png")
    assert "--label a: 6 cells count as no label: 2 'NA', 1 'n/a', 1 'nan', 1 'Unknown', 1 'null'" in caplog.text
    assert classes_or_labels(cases(a=["none", "some"] * 3), ("a",)).names == ("none", "some")


@pytest.mark.parametrize("who", [["p1", "P1", "p2"], ["p 1", "p1", "p2"]])
def test_groups_that_differ_in_spelling_are_pointed_out(who, caplog):
    """One patient would be both learnt from and tested."""
    assert groups_of(cases(y=["0", "1", "1"], who=who), arguments(group="who")) == who
    assert "--group who has values that differ in capitals or blanks alone" in caplog.text
    assert f"{who[0]!r} and {who[1]!r}" in caplog.text


def test_text_where_numbers_are_due_is_named():
    """`sixty` read as a gap would be left out without a word."""
    with pytest.raises(OptionError, match="1 of 3 cells are no numbers, 'sixty'"):
        numbers_in(cases(age=["50", "sixty", ""]), ("age",))


def test_cases_without_any_label_are_left_out(caplog):
    """They would be trained on as if something were known of them."""
    kept = with_labels(cases(a=["1", "", "0"], b=["", "na", ""]), ("a", "b"))
    assert kept.ids == ("film0.png", "film2.png")
    assert "1 of 3 cases have no label" in caplog.text


def test_a_missing_column_lists_those_that_are_there():
    """A traceback or an empty message would not help."""
    with pytest.raises(OptionError, match="--label y: the table has no such column; it has a, b"):
        with_labels(cases(a=["1"], b=["1"]), ("y",))


def test_a_case_without_group_is_an_error():
    """All with an empty cell would count as one patient."""
    with pytest.raises(OptionError, match=r"1 cases have no group, film1\.png"):
        groups_of(cases(y=["0", "1"], who=["p", " "]), arguments(group="who"))


def test_names_with_underscores_are_no_numbers():
    """Python takes 1_0 for 10, and the class would have a name that the table does not know."""
    assert classes_or_labels(cases(a=["1_0", "1_1", "1_0", "1_1"]), ("a",)).names == ("1_0", "1_1")
    with pytest.raises(OptionError, match="2 of 2 cells are no numbers"):
        numbers_in(cases(a=["1_0", "1_1"]), ("a",))


def test_rows_of_one_file_stay_together(tmp_path):
    """The same image, or another lesion of the same scan, would be both learnt from and tested."""
    (tmp_path / "link.png").symlink_to(tmp_path / "film.png")
    paths = [str(tmp_path / name) for name in ("film.png", "other.png", "link.png", "film.png")]
    ids, who = ["a", "b", "c", "d"], ["p", "q", "p", "r"]
    assert groups_of(Cases(ids, paths, {}, None), arguments()) == ["a", "b", "a", "a"]
    with pytest.raises(OptionError, match=r"1 files are in more than one group: .*film\.png in p and r"):
        groups_of(Cases(ids, paths, {"who": who}, None), arguments(group="who"))


def test_a_label_named_twice_is_refused():
    """Of two outputs of one name the answers by name have one."""
    with pytest.raises(OptionError, match="names y more than once"):
        arguments(label="y, x, y").check()


@pytest.mark.parametrize(
    ("names", "warned"), [(["a_0", "a_1", "b_0", "c"], True), (["film_1", "film_2", "film_3"], False)]
)
def test_series_of_one_patient_are_pointed_out(names, warned, caplog):
    """Names such as 00013_004 have the patient in them; film_1, film_2 do not."""
    files = [f"{name}.png" for name in names]
    groups_of(Cases(files, files, {}, None), arguments())
    assert ("several images of one patient" in caplog.text) == warned


def test_a_table_and_a_folder_that_differ_are_counted_both_ways(tmp_path, caplog):
    """Images that are missing end the run, those that are not listed are said to be left out."""
    table = planted.write_films(tmp_path, count=12)
    given = arguments(table=str(table), data=str(tmp_path / "images"))
    rows = [(f"film{i:03d}.png", 1) for i in range(2, 12)]
    planted.write_rows(table, rows, ("file", "y"))
    assert len(read_cases(given, volumes=False, lesions=False)) == 10
    assert "2 images that the table does not list, which are left out: film000.png, film001.png" in caplog.text
    planted.write_rows(table, [*rows, *((f"other{i}.png", 1) for i in range(12))], ("file", "y"))
    with pytest.raises(OptionError, match=r"12 of 22 paths do not exist: other0\.png.*\(12 in all\)"):
        read_cases(given, volumes=False, lesions=False)
