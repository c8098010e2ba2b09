"""A run says before it begins what makes its results look better than they are, and which parts it leaves unused."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from zoo.embedding import Cases
from zoo.errors import OfflineError
from zoo.evaluation import unasked
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.arms import Arm
from zoo.tasks.cautions import warnings_of
from zoo.tasks.first_look import FirstLook
from zoo.tasks.splits import unused_parts

NAME = "caid-resnet50.chestxray14-800"
LEARNT, STRANGE = "00000061_012.png", "00039999_000.png"
"""A film that the weights which ship were trained on, and one that is in no list."""


def said(tmp_path, *tested, folds=1, part="test", carried=None, model=NAME, **given):
    """The warnings of a run that judges some films, each fold some of them."""
    paths = (STRANGE, STRANGE, *tested)
    args = FinetuneArgs(model=model, task="classify", group="patient", out=str(tmp_path), **given)
    task = SimpleNamespace(cases=Cases(paths, paths, carried or {}, None), check=lambda split: [])
    rows = range(2, len(paths))
    arms = [Arm(tmp_path, {"train": (0,), "val": (1,), part: rows[fold::folds]}) for fold in range(folds)]
    return warnings_of(task, arms, args, FirstLook("", ()))


@pytest.mark.parametrize("folds", [1, 3])
def test_tested_films_that_the_weights_learnt_from_are_counted(tmp_path, folds):
    """By image or by another film of the patient, over all folds: a paired gain on them is no gain on strangers."""
    (line,) = said(tmp_path, LEARNT, STRANGE, "00000061_099.png", folds=folds)
    assert f"2 of the 3 images of the test part, or others of their patients, are among those that {NAME} was" in line
    assert f"zoo overlap IDS --for {NAME}" in line


@pytest.mark.parametrize("given", [{"from_scratch": True}, {"model": "ct-fm-segresenc"}], ids=str)
def test_weights_of_which_nothing_is_on_record_are_passed_over(tmp_path, given):
    """Random ones, and those without a list."""
    assert said(tmp_path, LEARNT, **given) == []


def test_a_file_that_learnt_labels_says_so_and_what_it_began_with(tmp_path):
    """Another seed would test cases that it learnt from; a file without a header says nothing."""
    base = {"model": "caid-resnet50", "tag": "chestxray14-800"}
    header = {"task": "classify", "base": json.dumps({"model": "caid-resnet50", "tag": "", "base": base})}
    for name, metadata in (("own", header), ("bare", None)):
        save_file({"fc.bias": torch.zeros(1)}, tmp_path / f"{name}.safetensors", metadata)
    first, second = said(tmp_path, LEARNT, STRANGE, checkpoint=str(tmp_path / "own.safetensors"))
    assert "own.safetensors has learnt labels before (classify)" in first
    assert f"1 of the 2 images of the test part, or others of their patients, are among those that {NAME}" in second
    assert said(tmp_path, LEARNT, checkpoint=str(tmp_path / "bare.safetensors")) == []


def test_without_a_test_part_the_validation_films_are_looked_up(tmp_path):
    """The results are then theirs."""
    *_, line = said(tmp_path, LEARNT, STRANGE, part="val", split="part")
    assert "1 of the 2 images of the validation part" in line


def test_strangers_need_no_word(tmp_path):
    """A warning that always comes is read by nobody."""
    assert said(tmp_path, STRANGE, "00039998_001.png") == []


def test_a_list_that_cannot_be_had_is_said_and_ends_nothing(tmp_path, monkeypatch):
    """A node without connections trains; what is not known is not called unseen."""

    def refuse(*_, **__):
        raise OfflineError("no connection")

    monkeypatch.setattr(unasked, "find_overlap", refuse)
    (line,) = said(tmp_path, LEARNT)
    assert "is not known: the list could not be had: no connection" in line


def test_a_column_of_parts_that_is_not_used_is_named(tmp_path):
    """Results of drawn parts would be compared with those of the published ones."""
    carried = {"fold": ["train", "Val", "test"], "kind": ["train", "bus", "train"], "part": ["test"] * 3}
    (line,) = said(tmp_path, STRANGE, carried=carried)
    assert "column fold says train, val or test of each case, and is not used: with --split fold" in line
    assert said(tmp_path, STRANGE, carried=carried, split="fold") == []
    assert unused_parts({"empty": [], "holes": ["train", None, "test"], "all": ["train"] * 2}) == ""
    line = unused_parts({f"part {i}": ["train", "test"] for i in range(9)})
    assert "part 0, part 1, part 2, ... (9 in all)" in line
    assert "--split 'part 0'" in line
