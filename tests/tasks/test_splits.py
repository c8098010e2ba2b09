"""The parts of a cohort: no group in two of them, each with its share, and the same for the same seed."""

import pytest

from zoo.errors import OptionError
from zoo.tasks.splits import check_kept, draw_folds, draw_split, given_split, write_splits

IDS = [f"case{i}" for i in range(60)]
GROUPS = [f"p{i // 3}" for i in range(60)]
STRATA = ["ill" if i // 3 % 4 == 0 else "well" for i in range(60)]


def test_no_group_is_in_two_drawn_parts():
    """Images of one patient on both sides would make every result too good."""
    split = draw_split(GROUPS, STRATA, seed=0)
    parts = [{GROUPS[i] for i in rows} for rows in split.values()]
    assert not any(one & other for k, one in enumerate(parts) for other in parts[k + 1 :])
    assert sorted(i for rows in split.values() for i in rows) == list(range(60))
    assert 9 <= len(split["test"]) <= 15


def test_each_part_has_its_share_of_the_rare_class():
    """A split without strata leaves some parts without the ill, whose results are then undefined."""
    for seed in range(5):
        for rows in draw_split(GROUPS, STRATA, seed).values():
            assert 0.1 < sum(STRATA[i] == "ill" for i in rows) / len(rows) < 0.45


def test_a_split_follows_from_its_seed():
    """Another split after a kill would train on the test part."""
    assert draw_split(GROUPS, STRATA, 3) == draw_split(GROUPS, STRATA, 3)
    assert draw_split(GROUPS, STRATA, 3) != draw_split(GROUPS, STRATA, 4)


def test_folds_test_each_case_once():
    """A case that is tested twice, or by a network that has seen its patient, would spoil the pooled result."""
    splits = draw_folds(GROUPS, STRATA, 4, seed=0)
    assert sorted(i for split in splits for i in split["test"]) == list(range(60))
    for split in splits:
        tested = {GROUPS[i] for i in split["test"]}
        assert not tested & {GROUPS[i] for part in ("train", "val") for i in split[part]}


def test_a_group_in_two_given_parts_is_named():
    """The user's own split can have a patient on both sides."""
    words = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    with pytest.raises(OptionError, match=r"2 of 20 groups .* p13 in train and val, p16 in val and test"):
        given_split(words, IDS, GROUPS, STRATA, 0)


def test_an_unknown_word_is_an_error_that_names_it():
    """`validation` taken for nothing would leave its cases out without a word."""
    words = ["train"] * 30 + ["validation"] * 15 + ["test"] * 15
    with pytest.raises(OptionError, match=r"15 cases .*'validation'.*case30"):
        given_split(words, IDS, GROUPS, STRATA, 0)


def test_without_val_it_is_drawn_from_train_by_group():
    """The test part must not choose the epoch, nor may val share a patient with train."""
    words = ["TRAIN"] * 45 + [" test"] * 15
    split = given_split(words, IDS, GROUPS, STRATA, 0)
    assert sorted(split["train"] + split["val"]) == list(range(45))
    assert not {GROUPS[i] for i in split["train"]} & {GROUPS[i] for i in split["val"]}
    assert split["test"] == list(range(45, 60))


def test_without_test_nothing_is_tested():
    """An empty part would be judged as one with undefined results."""
    words = ["train"] * 45 + ["val"] * 15
    assert set(given_split(words, IDS, GROUPS, STRATA, 0)) == {"train", "val"}


def test_few_groups_are_refused():
    """Of three patients no part says anything."""
    with pytest.raises(OptionError, match="3 groups"):
        draw_split(["a", "b", "c"] * 10, ["x"] * 30, 0)


def test_strata_that_are_all_rare_divide_nothing():
    """Each of ten scans may have a rarest structure of its own: they are divided by group, without an error."""
    groups = [f"g{i}" for i in range(20)]
    for strata in ([f"s{i // 2}" for i in range(20)], groups):
        split = draw_split(groups, strata, 0)
        assert sorted(i for rows in split.values() for i in rows) == list(range(20))
        assert len(split["test"]) == 4


def test_ten_groups_are_enough_for_each_way_of_drawing():
    """Counted after the test part is taken away, ten cases would be refused as eight."""
    ten = [f"p{i}" for i in range(10)]
    split = draw_split(ten, ["x"] * 10, 0)
    assert {part: len(rows) for part, rows in split.items()} == {"train": 6, "val": 2, "test": 2}
    for count in (2, 3, 5, 10):
        assert all(fold["train"] and fold["val"] for fold in draw_folds(ten, ["x"] * 10, count, 0))
    for draw in (lambda: draw_split(ten[:9], ["x"] * 9, 0), lambda: draw_folds(ten[:9], ["x"] * 9, 3, 0)):
        with pytest.raises(OptionError, match=r"^9 groups .*without --group each case is one"):
            draw()


def test_few_groups_to_draw_val_from_are_refused():
    """The part that learns, not the whole table, is divided where the user names a test part alone."""
    words = ["train"] * 9 + ["test"] * 9
    with pytest.raises(OptionError, match=r"^9 groups"):
        given_split(words, IDS[:18], IDS[:18], STRATA[:18], 0)


def test_a_run_with_other_parts_is_not_gone_on_with(tmp_path):
    """A row added to the table gives another split, and the network has seen its new test part."""
    split = draw_split(GROUPS, STRATA, 0)
    write_splits(tmp_path, IDS, GROUPS, STRATA, [split])
    check_kept(tmp_path, IDS, STRATA, [split])
    other = {**split, "test": split["val"], "val": split["test"]}
    with pytest.raises(OptionError, match="other parts than the table gives now"):
        check_kept(tmp_path, IDS, STRATA, [other])


def test_a_run_with_other_labels_is_not_gone_on_with(tmp_path):
    """Classes under other names change places, and the head goes on to learn the opposite of what it learnt."""
    split = draw_split(GROUPS, STRATA, 0)
    write_splits(tmp_path, IDS, GROUPS, STRATA, [split])
    corrected = [*STRATA[:-1], "ill"]
    with pytest.raises(OptionError, match=r"other labels than the table gives now, for 1 cases: case59"):
        check_kept(tmp_path, IDS, corrected, [split])


def test_a_run_of_ids_that_look_like_formulas_is_gone_on_with(tmp_path):
    """`splits.csv` has an apostrophe before them, and so no id would be the table's."""
    ids = [f"-p{i}" for i in range(60)]
    split = draw_split(GROUPS, STRATA, 0)
    write_splits(tmp_path, ids, GROUPS, STRATA, [split])
    check_kept(tmp_path, ids, STRATA, [split])
