"""`zoo finetune` as a user runs it, on generated films: what it writes, refuses, and does after a kill."""

import csv
import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import fields, replace

import gloo
import nibabel
import numpy as np
import planted
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import zoo as package
from zoo.checkpoint import load_report
from zoo.commands.finetuning import finetune
from zoo.errors import InputContractError, OptionError, PolicyError
from zoo.fetching import hash_file
from zoo.stopping import Stopped
from zoo.tasks.args import FinetuneArgs
from zoo.tasks.arms import Arm, arguments_of, command_for
from zoo.tasks.classify import threshold_of
from zoo.tasks.outputs import columns_of
from zoo.tasks.saved import read_saved
from zoo.training.args import flag_of

pytestmark = [pytest.mark.usefixtures("one_thread", "short_caid", "undrawn", "warm_home"), pytest.mark.slow]

QUICK = ("--epochs", 2, "--steps-per-epoch", 2, "--batch-size", 4, "--seed", 1)
MODEL = "caid-resnet50.chestxray14-800"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Folder with films and their table."""
    folder = tmp_path_factory.mktemp("films")
    planted.write_films(folder)
    return folder


def words(films, out, *flags, task="classify", label="disc", model=MODEL):
    given = ("--task", task, "--table", films / "labels.csv", "--data", films / "images", "--label", label)
    return [model, *map(str, (*given, "--group", "patient", "-o", out, *flags))]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def auroc_in(rows):
    """AUROC of a table of predictions."""
    return roc_auc_score([row["disc"] == "1" for row in rows], [float(row["probability_disc"]) for row in rows])


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """A finished run that classifies, with its twin."""
    out = tmp_path_factory.mktemp("run") / "out"
    results = finetune(words(films, out, *QUICK, "--pair", "--site", "site"))
    return out, results


def test_results_are_json_with_intervals_of_every_measure(run):
    """NaN is no JSON; a measure without an interval says more than it knows."""
    out, results = run
    said = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert said == json.loads(json.dumps(results))
    disc = said["test"]["labels"]["disc"]
    for name in ("auroc", "average_precision", "sensitivity", "specificity", "calibration_error"):
        assert disc[name]["low"] <= disc[name]["value"] <= disc[name]["high"], name
    assert set(said["test"]["sites"]) == {"north", "south"}
    assert sum(site["cases"] for site in said["test"]["sites"].values()) == said["test"]["cases"]
    assert [line for line in said["warnings"] if "fewer than 10" in line]
    state = sum(file.stat().st_size for file in out.rglob("*.pt"))
    assert f"last.pt and best.pt, {state / 1e6:.0f} MB in {out}, are for --resume" in (out / "run.log").read_text()
    assert said["cases"]["train"]["positives"] == {"disc": said["cases"]["train"]["cases"] // 2}


def test_the_pair_of_few_patients_is_never_called_better(run):
    """Both were tested on the same cases, of so few patients that the interval is too narrow whatever it excludes."""
    out, results = run
    pair = results["pair"]
    assert pair["low"] <= pair["gain"] <= pair["high"]
    ours, theirs = results["test"]["auroc"], results["random"]["test"]["auroc"]
    assert pair["gain"] == pytest.approx(ours - theirs)
    assert "tested groups are too few to tell" in pair["said"]
    assert "better" not in pair["said"]
    tables = [rows_of(folder / "predictions.csv") for folder in (out, out / "random")]
    assert [row["id"] for row in tables[0]] == [row["id"] for row in tables[1]]
    report = load_report(package.load_model(MODEL, checkpoint=out / "random" / "model.safetensors"))
    assert not report.fresh


def test_the_command_of_the_twin_trains_it_again(run, films, tmp_path):
    """Alone: with the input of the weights that it is compared with, and the same draws."""
    twin = read_saved(run[0] / "random")
    said = shlex.split(twin.header["command"])
    assert said[:5] == ["python", "-m", "zoo", "finetune", MODEL]
    assert "--from-scratch" in said
    assert "--pair" not in said
    files = {"labels.csv": str(films / "labels.csv"), "random": str(tmp_path / "again")}
    finetune([files.get(word, word) for word in said[4:]] + ["--data", str(films / "images")])
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", run[0] / "random"))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_the_twin_is_the_network_of_its_weights(tmp_path):
    """A plain name's own defaults would be another network: the twin would not differ in its weights alone."""
    args = FinetuneArgs(model="fmcib-resnet50", task="classify", table="t.csv", label="a", out=str(tmp_path), pair=True)
    twin = arguments_of(args, Arm(tmp_path / "random", {}, is_twin=True))
    assert (twin.model, twin.from_scratch, twin.pair) == (package.model_info("fmcib-resnet50").name, True, False)
    own = replace(args, checkpoint="mine.safetensors")
    beside = command_for(own, Arm(tmp_path / "random", {}, is_twin=True))
    assert "--checkpoint mine.safetensors --pair" in beside
    assert "--from-scratch" not in beside


def test_the_saved_network_gives_the_predictions(run, films):
    """Weights of another epoch, a transform of another size, or balancing left in would give others."""
    out, _ = run
    saved, rows = read_saved(out), rows_of(out / "predictions.csv")
    network = package.load_model(MODEL, checkpoint=saved.path)
    transform = package.load_transform(MODEL, checkpoint=saved.path)
    images = torch.stack([transform(films / "images" / row["id"]) for row in rows])
    with torch.no_grad():
        columns = columns_of(saved.outputs, saved.classes, network(images).numpy())
    found = [float(row["probability_disc"]) for row in rows]
    assert found == pytest.approx(columns["probability_disc"], abs=1e-5)
    assert [int(row["predicted_disc"]) for row in rows] == columns["predicted_disc"]
    labels = {row["file"]: row["disc"] for row in rows_of(films / "labels.csv")}
    assert [row["disc"] for row in rows] == [labels[row["id"]] for row in rows]


def test_the_header_says_what_the_network_is(run):
    """The file alone must be enough: task, names, thresholds, input and the licences of what it began with."""
    saved = read_saved(run[0])
    assert (saved.task, saved.classes, saved.outputs.kind) == ("classify", ("disc",), "labels")
    assert 0 < saved.outputs.thresholds[0] < 1
    base = json.loads(saved.header["base"])
    assert base["sha256"]
    assert base["licences"]
    assert base["tag"] == "chestxray14-800"
    assert json.loads(saved.header["input"])["size"] == [64, 64]
    assert saved.header["command"].startswith(f"python -m zoo finetune {MODEL} --")
    assert "--task classify --table labels.csv --label disc --group patient" in saved.header["command"]


def test_best_pt_predicts_what_the_saved_network_does(run, films, tmp_path, zoo):
    """Its header has the thresholds, and its outputs are without what balancing added; `results.json` names both."""
    out, results = run
    for name, target in (("best.pt", "best.csv"), ("", "saved.csv")):
        code, _, err = zoo("predict", out / name, films / "images", "-o", tmp_path / target)
        assert code == 0, err
    assert rows_of(tmp_path / "best.csv") == rows_of(tmp_path / "saved.csv")
    assert results["weights"] == {name: hash_file(out / name) for name in ("model.safetensors", "best.pt")}


def test_a_decision_is_shown_with_its_threshold(films, tmp_path, capsys, monkeypatch):
    """Of two classes, too: "ill" beside a probability of 0.3 is a riddle, on the picture as in the results."""
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **_: drawn.append(text))
    table, rows = tmp_path / "two.csv", rows_of(films / "labels.csv")
    planted.write_rows(
        table, [(r["file"], r["patient"], ("well", "ill")[int(r["disc"])]) for r in rows], ("file", "patient", "state")
    )
    results = finetune(words(films, tmp_path / "out", *QUICK, "--table", table, label="state"))
    (threshold,) = read_saved(tmp_path / "out").outputs.thresholds
    assert results["test"]["classes"]["well"]["threshold"] == threshold  # classes are sorted: ill, well
    assert results["test"]["classes"]["ill"]["threshold"] == pytest.approx(1 - threshold)
    assert f"'well' is the answer from probability {threshold:.3g} on, else 'ill'" in capsys.readouterr().out
    cases = [text for text in drawn if "probability" in text]
    assert cases
    for text in cases:
        limit = threshold if "well: probability" in text else 1 - threshold
        assert f"(the answer from {limit:.2f} on)" in text


def test_no_patient_is_in_two_parts(run):
    """`splits.csv` is what another program would train on."""
    parts = {}
    for row in rows_of(run[0] / "splits.csv"):
        parts.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in parts.values())
    assert {part for found in parts.values() for part in found} == {"train", "val", "test"}


def test_the_folder_of_a_run_has_what_a_user_looks_for(run):
    """And no longer the images that were kept for training."""
    names = {path.name for path in run[0].iterdir()}
    expected = {"model.safetensors", "results.json", "splits.csv", "predictions.csv", "reliability.png", "surest.png"}
    assert expected | {"curves.png", "log.jsonl", "run.log"} <= names
    assert "prepared" not in names


def test_classes_and_numbers(films, tmp_path):
    """One column of words is a softmax over them; a column of numbers has its mean and deviation in the file."""
    results = finetune(words(films, tmp_path / "kinds", *QUICK, label="kind"))
    saved, rows = read_saved(tmp_path / "kinds"), rows_of(tmp_path / "kinds" / "predictions.csv")
    assert (saved.outputs.kind, saved.classes, saved.outputs.thresholds) == ("classes", planted.KINDS, ())
    for row in rows:
        p = {name: float(row[f"probability_{name}"]) for name in planted.KINDS}
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(p, key=p.get)
    assert results["test"]["accuracy"] == pytest.approx(sum(r["predicted"] == r["kind"] for r in rows) / len(rows))
    results = finetune(words(films, tmp_path / "ages", *QUICK, task="regress", label="age"))
    saved, rows = read_saved(tmp_path / "ages"), rows_of(tmp_path / "ages" / "predictions.csv")
    split = {row["id"]: row["split"] for row in rows_of(tmp_path / "ages" / "splits.csv")}
    ages = [float(row["age"]) for row in rows_of(films / "labels.csv") if split[row["file"]] == "train"]
    assert saved.outputs.means == (pytest.approx(sum(ages) / len(ages)),)
    errors = [abs(float(row["predicted_age"]) - float(row["age"])) for row in rows]
    found = results["test"]["numbers"]["age"]["mean_absolute_error"]["value"]
    assert found == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_results_of_the_validation_part_are_said_to_be(films, tmp_path, caplog):
    """Without a test part they look too good; a pair is refused: it would train twice and compare nothing."""
    table = tmp_path / "two.csv"
    rows = [
        (r["file"], r["patient"], r["disc"], ("train", "val")[r["patient"] < "p05"])
        for r in rows_of(films / "labels.csv")
    ]
    planted.write_rows(table, rows, ("file", "patient", "disc", "part"))
    given = words(films, tmp_path / "out", *QUICK, "--table", table, "--split", "part")
    with pytest.raises(OptionError, match="no case has the part test"):
        finetune([*given, "--pair"])
    assert not (tmp_path / "out").exists()
    results = finetune(given)
    assert "no case has the part test: the results are those of the validation part" in caplog.text
    assert "look too good" in results["warnings"][-1]


def test_folds_are_joined(films, tmp_path):
    """Each case is tested once; decisions are of its fold's threshold, and no score is held against another fold's."""
    results = finetune(words(films, tmp_path / "out", *QUICK, "--cross-validate", 2, "--epochs", 1, "--pair"))
    folds = [rows_of(tmp_path / "out" / f"fold{i}" / "predictions.csv") for i in range(2)]
    assert sorted(row["id"] for rows in folds for row in rows) == [f"film{i:03d}.png" for i in range(40)]
    assert results["test"]["cases"] == 40
    assert [fold["test"]["cases"] for fold in results["folds"]] == [len(rows) for rows in folds]
    for i, fold in enumerate(results["folds"]):
        outputs = read_saved(tmp_path / "out" / f"fold{i}").outputs
        assert fold["outputs"] == {"kind": "labels", "thresholds": list(outputs.thresholds)}
        assert fold["test"]["labels"]["disc"]["threshold"] == outputs.thresholds[0]
    with pytest.raises(OptionError, match=r"out is a cross-validation, .* such as .*fold0, or add --final"):
        read_saved(tmp_path / "out")
    pooled = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["id"] for row in pooled] == [f"film{i:03d}.png" for i in range(40)]
    assert all({k: v for k, v in row.items() if k != "fold"} in folds[int(row["fold"])] for row in pooled)
    aurocs = [fold["test"]["auroc"] for fold in results["folds"]]
    assert results["test"]["auroc"] == pytest.approx(sum(aurocs) / 2, abs=1e-12)
    precisions = [fold["test"]["labels"]["disc"]["average_precision"]["value"] for fold in results["folds"]]
    assert results["test"]["labels"]["disc"]["average_precision"]["value"] == pytest.approx(sum(precisions) / 2)
    assert results["test"]["means_of_folds"] == ["auroc", "average_precision"]
    others = [auroc_in(rows_of(tmp_path / "out" / f"fold{i}" / "random" / "predictions.csv")) for i in range(2)]
    assert results["pair"]["gain"] == pytest.approx(sum(aurocs) / 2 - sum(others) / 2, abs=1e-4)
    assert results["pair"]["said"].startswith("AUROC, mean of 2 folds: gain over random weights")
    decided = [row["predicted_disc"] == "1" for rows in folds for row in rows if row["disc"] == "1"]
    assert results["test"]["labels"]["disc"]["sensitivity"]["value"] == pytest.approx(sum(decided) / len(decided))


def test_the_final_network_learns_from_all_cases(films, tmp_path, capsys):
    """As long as the best epochs of the folds, with thresholds of answers for cases that a network never saw."""
    words_ = words(films, tmp_path / "out", *QUICK, "--cross-validate", 2, "--epochs", 3)
    folds = finetune(words_)["folds"]
    assert "--final --resume" in capsys.readouterr().err
    final = finetune([*words_, "--final", "--resume"])["final"]
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"next: zoo predict {tmp_path / 'out' / 'final'} ")
    log = (tmp_path / "out" / "final" / "log.jsonl").read_text().splitlines()
    best = [fold["best"]["epoch"] for fold in folds]
    assert final["epochs"] == len(log) == round(sum(best) / 2)
    assert final["cases"]["cases"] == 40
    saved = read_saved(tmp_path / "out")
    assert saved.path == tmp_path / "out" / "final" / "model.safetensors"
    pooled = rows_of(tmp_path / "out" / "predictions.csv")
    truth, found = (np.array([float(row[name]) for row in pooled]) for name in ("disc", "probability_disc"))
    assert saved.outputs.thresholds[0] == pytest.approx(threshold_of(truth, found), abs=1e-5)
    film = films / "images" / "film000.png"
    answers = [package.load_predictor(tmp_path / "out" / "final" / name)(film) for name in ("", "best.pt", "last.pt")]
    assert answers[0] == answers[1] == answers[2]
    first, own = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("fold0", "final"))
    assert not torch.equal(first["fc.weight"], own["fc.weight"])
    with pytest.raises(OptionError, match="--final trains on all cases after the folds of --cross-validate"):
        finetune(words(films, tmp_path / "other", *QUICK, "--final"))


def test_a_dry_run_touches_nothing(films, tmp_path, capsys):
    """It says what would be trained on what, in how many pixels."""
    found = finetune(words(films, tmp_path / "out", "--dry-run"))
    assert "input: films resized to 73 pixels along the shorter side" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (found["cases"]["train"]["cases"], found["epochs"], found["batch_size"]) == (26, 60, 3)
    assert found["seconds_per_step"] > 0
    finetune(words(films, tmp_path / "out", "--dry-run"))
    assert "train: 26 cases, 13 groups (disc 13)" in capsys.readouterr().err


def test_films_much_larger_than_the_input_are_warned_of_once(tmp_path, capsys, caplog):
    """The weights that ship take 64 pixels: of a film of 2000 little is left, which no figure would show."""
    planted.write_films(tmp_path, side=200)
    flags = (*QUICK, "--freeze", "--epochs", 1)
    results = finetune(words(tmp_path, tmp_path / "out", *flags))
    (line,) = [line for line in results["warnings"] if "small findings are lost" in line]
    assert "40 of 40 films have more than 2 times the pixels a side" in line
    assert "200 x 200 for 64 x 64" in line
    assert "--size 224, for example" in line
    assert caplog.text.count("small findings are lost") == 1
    assert (tmp_path / "out" / "run.log").read_text("utf-8").count("small findings are lost") == 1
    assert "input: films resized to 73 pixels" in capsys.readouterr().err
    results = finetune(words(tmp_path, tmp_path / "larger", *flags, "--size", 128))
    assert not [line for line in results["warnings"] if "small findings are lost" in line]
    assert package.load_predictor(tmp_path / "larger").input.size == (128, 128)
    assert "cases of 128 x 128 pixels" in capsys.readouterr().err


def test_images_of_another_kind_are_refused_before_anything_is_written(films, tmp_path):
    """Scans for a network of films, found by their headers and counted, with nothing left; a dry run says so too."""
    folder = tmp_path / "images"
    shutil.copytree(films / "images", folder)
    for name in ("film003.png", "film004.png"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "scan.nii")
        (tmp_path / "scan.nii").rename(folder / name)
    (folder / "film005.png").write_bytes(b"no picture")
    for flags in ((), ("--dry-run",)):
        with pytest.raises(InputContractError, match=r"(?s)3 of 40 images cannot be used.*takes films") as caught:
            finetune(words(films, tmp_path / "out", *QUICK, "--data", folder, *flags))
        assert "2 volume (NIfTI): " in str(caught.value)
        assert "1 unreadable: " in str(caught.value)
    assert list((tmp_path / "out").glob("*")) == []


def test_images_that_the_network_refuses_one_after_the_other_end_a_run_at_once(tmp_path):
    """Their headers are right and their values are not, as those of an MRI for a network of CT."""
    planted.write_films(tmp_path)
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)  # fewer pixels than a film can have
    with pytest.raises(InputContractError, match=r"(?s)3 of 40 images were tried, and .* cannot use any.*film000"):
        finetune(words(tmp_path, tmp_path / "out", *QUICK))
    assert not (tmp_path / "out" / "splits.csv").exists()


def test_a_policy_is_held_against_what_a_run_starts_from(films, tmp_path, monkeypatch):
    """Random weights are nobody's, whatever the licences of the model's own weights; these are refused."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    assert finetune(words(films, tmp_path / "out", "--dry-run", "--from-scratch"))["epochs"] == 60
    with pytest.raises(PolicyError):
        finetune(words(films, tmp_path / "out", "--dry-run"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--label", "shape"), "--label shape: the table has no such column; it has patient, disc"),
        (("--uncertain", "maybe"), "ignore, positive, negative are known"),
        (("--label", "age"), "give --task regress"),
        (("--label", "kind", "--task", "regress"), "40 of 40 cells are no numbers, .*'left'.* --task classify"),
        (("--split", "site"), "none of train, val and test"),
        (("--cross-validate", 1), "at least 2 folds"),
        (("--pair", "--from-scratch"), "drop one"),
        (("--masks", "masks", "--classes", "a,b"), "--masks and --classes mean nothing to --task classify"),
        (("--data", "nowhere"), "nowhere is no folder"),
        (("--data", ""), "40 of 40 paths do not exist.* or from --data where it is given"),
        (("--model", "caid-resnet50-unet"), "no pooled features for --task classify .* caid-resnet50"),
        (("--size", 16), "--size must be at least 32"),
        (("--size", 64, "--model", "ct-fm-segresenc"), "--size is of films"),
        (("--batch-size", 100), "--batch-size 100 is more than the 26 cases"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_written(films, tmp_path, flags, message):
    """Not an error after an hour of training, and no folder that the next try would stumble over."""
    with pytest.raises(OptionError, match=message):
        finetune(words(films, tmp_path / "out", *QUICK[:4], *flags))
    assert not (tmp_path / "out").exists()


def test_the_help_begins_with_what_a_user_needs(capsys):
    """Not with the factor of a schedule; the model is the first word, not a flag."""
    with pytest.raises(SystemExit):
        finetune(["--help"])
    said = capsys.readouterr().out
    places = [said.index(f"\n  {flag} ") for flag in ("--table", "--group", "--task", "--out", "--momentum")]
    assert places == sorted(places)
    assert said.index("\nyour data:") < places[0]
    assert places[-2] < said.index("\ntraining loop:") < places[-1]
    assert "--model" not in said
    flags = {flag_of(field.name) for field in fields(FinetuneArgs)} - {"--model"}
    assert [flag for flag in sorted(flags) if f"\n  {flag}" not in said] == []


def test_a_command_without_a_model_says_where_it_stands(tmp_path):
    """`--model` is no flag that the help has."""
    with pytest.raises(OptionError, match="no model: its NAME comes first"):
        finetune(["--task", "classify", "-o", str(tmp_path / "out")])


def test_a_missing_flag_is_told_in_few_lines(films, tmp_path, capsys):
    """Below thirty lines of all flags, by names that the examples do not use, nobody would see it."""
    with pytest.raises(SystemExit):
        finetune([MODEL, "--task", "classify"])
    usage, error = capsys.readouterr().err.splitlines()
    assert "zoo finetune NAME --task" in usage
    assert error.endswith("required: --out")
    with pytest.raises(OptionError, match=r"^--task classify needs --label, .*; --task classify needs --table"):
        finetune([MODEL, "--task", "classify", "-o", str(tmp_path / "out")])


def test_one_class_alone_is_refused(films, tmp_path):
    """A network that learns from healthy ones alone says healthy."""
    rows = [(f"film{i:03d}.png", f"p{i}", 0) for i in range(20)]
    planted.write_rows(tmp_path / "one.csv", rows, ("file", "patient", "disc"))
    with pytest.raises(OptionError, match=r"part, \d+ cases, lacks what is to be told apart: disc in 0 cases"):
        finetune(words(films, tmp_path / "out", "--table", tmp_path / "one.csv"))


def test_a_column_of_ages_is_no_column_of_classes(films, tmp_path):
    """Whole numbers may be either; where there are many, the other task is named."""
    rows = [(f"film{i:03d}.png", f"p{i}", 20 + i // 3) for i in range(40)]
    planted.write_rows(tmp_path / "ages.csv", rows, ("file", "patient", "disc"))
    with pytest.raises(OptionError, match="for measured numbers give --task regress"):
        finetune(words(films, tmp_path / "out", "--table", tmp_path / "ages.csv"))


def test_broken_images_are_named_before_training(films, tmp_path):
    """One that breaks after an hour would cost the hour."""
    folder = tmp_path / "films"
    planted.write_films(folder)
    (folder / "images" / "film003.png").write_bytes(b"no picture")
    with pytest.raises(package.errors.InputContractError, match=r"(?s)1 of 40 images cannot be used.*film003\.png"):
        finetune(words(folder, tmp_path / "out", *QUICK))


# Kills and processes


def interrupted(argv, number, signal_number):
    """Run in a child that is sent a signal when its method is called for the `number`-th time."""
    from zoo.tasks.method import Learner

    plain, calls = Learner.forward, []

    def forward(self, batch):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal_number)
        return plain(self, batch)

    Learner.forward = forward
    try:
        finetune(argv)
    except Stopped as stop:
        sys.exit(stop.code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_killed_run_ends_with_the_same_weights(films, tmp_path, run, number, code):
    """The third step is in the second epoch: after kill -9 that epoch is done again, after SIGTERM from its step on."""
    argv = words(films, tmp_path / "out", *QUICK, "--site", "site")
    assert gloo.wait(gloo.start(interrupted, 1, tmp_path / "group", argv, 3, number)) == [code]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    results = finetune([*argv, "--resume"])
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", run[0]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results["test"] == run[1]["test"]


def test_a_folder_that_has_a_run_is_refused_before_anything_is_said_of_it(films, run, monkeypatch, caplog):
    """Nor are the images looked at, which takes a while where they are many."""
    monkeypatch.setattr("zoo.tasks.run.look_at", lambda *_: pytest.fail("images were looked at"))
    with pytest.raises(OptionError, match="give --resume to go on from it, or another --out"):
        finetune(words(films, run[0], *QUICK, "--site", "site"))
    assert caplog.text == ""


def test_a_table_is_mended_after_a_bad_image(films, tmp_path):
    """Nothing was learnt yet: a row that is dropped, as the message asks, needs no other OUT."""
    folder, rows = tmp_path / "images", rows_of(films / "labels.csv")
    shutil.copytree(films / "images", folder)
    (folder / rows[0]["file"]).write_text("no image")
    table = tmp_path / "mended.csv"
    argv = words(films, tmp_path / "out", *QUICK, "--freeze", "--data", folder, "--table", table)
    for kept in (rows, rows[1:]):
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(kept)
        if kept is rows:
            with pytest.raises(InputContractError, match=rows[0]["file"]):
                finetune(argv)
    results = finetune(argv)
    assert sum(part["cases"] for part in results["cases"].values()) == len(rows) - 1


@pytest.mark.parametrize("name", ["group", "predicted"])
def test_a_label_called_like_a_column_of_the_predictions_is_refused(films, tmp_path, name):
    """`predictions.csv` with two columns of one name cannot be read back, and one hides the other."""
    table = tmp_path / "labels.csv"
    table.write_text((films / "labels.csv").read_text().replace("kind", name, 1))
    with pytest.raises(OptionError, match=f"several columns called '{name}'"):
        finetune(words(films, tmp_path / "out", *QUICK, "--table", table, label=name))
    assert not (tmp_path / "out" / "splits.csv").exists()


def test_two_processes_are_one(films, tmp_path):
    """Whatever each sees, the mean gradient is that of the step; batch norm is frozen, whose statistics are its own."""
    flags = (*QUICK, "--freeze", "--lr", "0.01")
    finetune(words(films, tmp_path / "one", *flags))
    gloo.run(_finetuned, 2, tmp_path / "group", words(films, tmp_path / "two", *flags))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # The order of a sum of eight gradients differs: rounding of float32, through four steps of Adam.
    torch.testing.assert_close(two["fc.weight"], one["fc.weight"], rtol=1e-3, atol=1e-5)
    assert torch.equal(one["layer1.0.conv1.weight"], two["layer1.0.conv1.weight"])
    assert (tmp_path / "one" / "splits.csv").read_bytes() == (tmp_path / "two" / "splits.csv").read_bytes()


def _finetuned(argv):
    finetune(argv)
    return {}
