"""A probe says unasked which of its cases the weights were trained on, and never takes unknown for unseen."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from probed import planted, run, table_of
from safetensors.torch import save_file

import zoo as package
from zoo.errors import OfflineError, OptionError
from zoo.evaluation import seen, unasked
from zoo.evaluation.labelled import read_labelled
from zoo.evaluation.overlap import Looked, Overlap
from zoo.features import FeatureTable

MODEL = "caid-resnet50.chestxray14-800"


@pytest.fixture
def probed(monkeypatch):
    """The report of published weights, with what a lookup finds or raises."""

    def of(lookup):
        monkeypatch.setattr(unasked, "find_overlap", lookup)
        table = table_of(40)
        table["split"] = ["test" if int(name[1:]) % 5 < 2 else "train" for name in table["patient"]]
        frame = pd.DataFrame({"id": table["id"]})
        frame.attrs = {"model": MODEL, "tag": "chestxray14-800"}
        return run(FeatureTable(planted(table), frame), table, split="split", sizes=())

    return of


def found(ids, name, **_):
    """Every fourth image was seen, every eighth cannot be looked up."""
    rows = [
        Looked(id, "films", id, id, i % 4 == 0, i % 4 == 0) if i % 8 != 1 else Looked(id) for i, id in enumerate(ids)
    ]
    return Overlap(name, tuple(rows), "package:list.csv", "", 9, 9, ("films",), ("a warning",))


def test_seen_cases_are_in_the_verdict(probed):
    """A test part that was learnt from flatters the encoder: said in the verdict, with the number."""
    report = probed(found)
    (known,) = report.overlaps
    assert (known.encoder, known.ids, known.readable, known.seen) == (MODEL, 80, 70, 20)
    tested = [i for i, case in enumerate(report.shown) if case.part == "test"]
    number = sum(i % 4 == 0 for i in tested)
    assert known.seen_test == number > 0
    assert f"{number} of them, by image or patient, are in the training list of {MODEL}" in report.verdict[1]
    assert any(f"trained on {number} of the tested cases" in warning for warning in report.warnings)
    assert any(f"For 10 of 80 cases nothing says whether {MODEL}" in warning for warning in report.warnings)


def test_a_list_that_cannot_be_had_is_no_clean_result(probed, caplog):
    """Without a connection nothing is known of any case, and the probe goes on."""

    def refuse(*_, **__):
        raise OfflineError("no connection")

    report = probed(refuse)
    assert (report.overlaps[0].readable, report.overlaps[0].seen) == (0, 0)
    assert "no connection" in report.overlaps[0].source
    assert any(f"For 80 of 80 cases nothing says whether {MODEL}" in warning for warning in report.warnings)
    assert "not known" in caplog.text


def test_a_table_of_semicolons_is_named(tmp_path):
    """Spreadsheets of many countries write it: its header is one column."""
    path = tmp_path / "labels.csv"
    path.write_text("file;patient;label\na.png;1;0\n")
    with pytest.raises(OptionError, match=r"it is separated by ';'; save it with commas"):
        read_labelled(path, "label")


def test_an_imported_network_that_learnt_labels_is_no_stranger(tmp_path, zoo, caplog):
    """What it began with is looked up, and that it learnt labels is said: its result on those cases is no evidence."""
    base = {"model": "caid-resnet50", "tag": "chestxray14-800"}
    header = {"model": "caid-resnet50", "task": "classify", "base": json.dumps(base)}
    shipped = package.load_model(MODEL).state_dict()
    save_file(shipped, tmp_path / "tuned.safetensors", header)
    assert zoo("import", "caid-resnet50.tuned", tmp_path / "tuned.safetensors")[0] == 0
    names = ["00000061_012.png", "00039999_000.png"]
    contender = SimpleNamespace(
        name="tuned", role="encoder", sets=[SimpleNamespace(facts={"model": "caid-resnet50.tuned", "tag": "tuned"})]
    )
    (found,) = seen.look_up([contender], names, np.array([0, 1]))
    assert (found.readable, found.seen, found.seen_test) == (2, 1, 1)
    assert found.notes[0].startswith("it has learnt labels before (classify)")
    assert "caid-resnet50.tuned: it has learnt labels before" in caplog.text


def test_parts_of_the_table_that_are_not_used_are_named(caplog):
    """Results of drawn folds would be compared with those of a published split."""
    table = table_of(40)
    table["part"] = ["test" if int(name[1:]) % 5 < 2 else "train" for name in table["patient"]]
    read_labelled(table, "label", group="patient", split="part")
    assert "is not used" not in caplog.text
    read_labelled(table, "label", group="patient")
    assert "column part says train, val or test of each case, and is not used" in caplog.text
