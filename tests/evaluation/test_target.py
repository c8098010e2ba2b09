"""What a column is taken for, and what is refused before anything is computed."""

import numpy as np
import pytest

from zoo.errors import OptionError
from zoo.evaluation.target import read_target, strata_of


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["0", "1", "0", "1.0"], "binary", ("0", "1")),
        (["yes", "no", "yes", "no"], "binary", ("no", "yes")),
        (["3", "10", "2", "3", "2", "10"], "classes", ("2", "3", "10")),
        (["b", "a", "c", "a", "b", "c"], "classes", ("a", "b", "c")),
        (["0.5", "1.5", "2.25"], "numbers", ()),
        ([str(age) for age in range(20, 60)], "numbers", ()),
    ],
)
def test_the_kind_is_told_from_the_cells(cells, kind, classes):
    """10 behind 2, not before it; 1.0 is 1; forty ages are measured, not forty classes."""
    target, _ = read_target(cells, "c", None)
    assert (target.kind, target.classes, target.said_by) == (kind, classes, "column")


def test_the_user_can_say_otherwise():
    """Two numbers may be measured, and grades be numbers."""
    target, values = read_target(["1", "2", "3", "1"], "grade", "numbers")
    assert (target.kind, target.said_by, target.range) == ("numbers", "user", (1.0, 3.0))
    assert values.tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("cells", "kind", "said"),
    [
        (["1", "1"], None, "'1' in all cases"),
        (["a", "b", "c", "a", "b", "c"], "binary", "has 3 values"),
        (["1", "2", "old"], "numbers", "1 of 3 cells"),
        (["Yes", "yes", "no", "no"], None, "capitals or blanks alone"),
        ([f"name {i}" for i in range(9)], None, "9 classes for 9 cases"),
        (["1", "2"], "ordinal", "binary, classes, numbers are known"),
    ],
)
def test_what_cannot_be_learnt_is_refused(cells, kind, said):
    """With the column and a cell, before features are looked at."""
    with pytest.raises(OptionError, match=said):
        read_target(cells, "c", kind)


def test_numbers_are_stratified_by_quarters():
    """Folds that had all the old people on one side would not test anything."""
    target, values = read_target([str(x / 7) for x in range(80)], "age", None)
    assert np.bincount(strata_of(target, values)).tolist() == [20, 20, 20, 20]
