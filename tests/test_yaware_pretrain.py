"""The y-Aware recipe end to end: an array of maps and a table go in, an exported DenseNet comes out."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import inspect
import io
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import gloo
import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.entries.yaware import pretrain, synthetic
from zoo.entries.yaware.data import Volumes
from zoo.entries.yaware.method import YAware
from zoo.entries.yaware.pretrain import Args, build_method, build_volumes, resolve, validation
from zoo.errors import OptionError
from zoo.training.args import parse_args, run_command
from zoo.training.distributed import Processes
from zoo.training.runlog import read_log

NAME = "yaware-densenet121"
ONE = Processes(0, 1, torch.device("cpu"))
SCHEMA = json.loads((Path(__file__).parent / "manifest.schema.json").read_text("utf-8"))
LICENCE = {"licence": "CC0-1.0", "commercial": True, "redistribute": True}
OWNERS = {
    "writer": "any",
    "citation": "any",
    "licences": {"code": LICENCE, "weights": LICENCE, "data": LICENCE},
    "provenance": {"repository": "any", "commit": "any", "command": "any", "data": "any"},
}
"""What a manifest of ours wants to know of weights and no program can say."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Eight subjects of 31 x 37 x 31 voxels, half of them to train on and half to validate."""
    folder = tmp_path_factory.mktemp("cohort") / "synthetic"
    synthetic.main(["--out", str(folder), "--healthy", "8", "--clinical", "2"])
    rewrite(folder / "healthy.csv", folder / "healthy.csv", lambda i, row: row | {"split": "train" if i < 4 else "val"})
    return folder


def rewrite(source, target, change):
    """Write a table again, each row as `change(number, row)` has it; None leaves it out."""
    with source.open(newline="") as file:
        rows = [new for i, row in enumerate(csv.DictReader(file)) if (new := change(i, row)) is not None]
    with target.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return target


def flags(cohort, out, *more):
    files = ["--data", str(cohort / "healthy.npy"), "--table", str(cohort / "healthy.csv"), "--out", str(out)]
    small = "--batch-size 2 --epochs 1 --steps-per-epoch 1 --workers 0 --device cpu"
    return [*files, *small.split(), *more]


TWO_EPOCHS = ["--rows", "split=train", "--epochs", "2", "--steps-per-epoch", "2"]


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """Two passes of two steps, with validation: the folder, the metrics, and what was printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "first", io.StringIO()
    with contextlib.redirect_stdout(printed):
        metrics = pretrain.main(flags(cohort, out, *TWO_EPOCHS, "--val-rows", "split=val"))
    yield out, metrics, printed.getvalue()
    shutil.rmtree(out)


@pytest.fixture
def out(tmp_path):
    """A folder for a run, whose large files go when the test ends."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_the_run_trains_validates_and_logs(run):
    """A line an epoch with each loss and its validation twin; with ages as labels no loss can reach 0."""
    out, metrics, _ = run
    lines = read_log(out / "log.jsonl")
    names = {"loss", "accuracy", "excess"}
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert names | {f"val_{name}" for name in names} | {"lr", "epoch", "seconds"} == set(line)
        assert all(np.isfinite(value) for value in line.values())
        assert 0 < line["excess"] < line["loss"]
        assert 0 < line["val_excess"] < line["val_loss"]
        assert line["lr"] == 1e-4
    assert metrics["loss"] == min(line["loss"] for line in lines)
    assert json.loads((out / "args.json").read_text())["rows"] == "split=train"


def test_the_exported_file_is_the_best_network(run, cohort):
    """Tensor for tensor, head included; `best.pt` and `last.pt` load as well, and what it computes is the same."""
    out, _, _ = run
    best = torch.load(out / "best.pt", weights_only=True)["model"]
    file = out / f"{NAME}.{out.name}.safetensors"
    exported = load_file(file)
    assert {f"network.{name}" for name in exported} == set(best)
    assert all(torch.equal(value, best[f"network.{name}"]) for name, value in exported.items())
    volume = torch.from_numpy(np.load(cohort / "healthy.npy")[:1])
    method = YAware().eval()
    method.load_state_dict(best)
    with torch.no_grad():
        assert torch.equal(
            zoo.load_model(NAME, checkpoint=file, projection=True)(volume),
            method.network(volume),
        )
        pooled = method.network.forward_features(volume).relu().mean((2, 3, 4))
        torch.testing.assert_close(zoo.load_model(NAME, checkpoint=file)(volume), pooled)
    for form, epoch in (("best.pt", best), ("last.pt", torch.load(out / "last.pt", weights_only=True)["model"])):
        encoder = zoo.load_model(NAME, checkpoint=out / form)
        assert all(torch.equal(value, epoch[f"network.{name}"]) for name, value in encoder.state_dict().items())


def test_the_printed_record_is_a_manifests(run, cohort, monkeypatch):
    """It loads by its tag, keeps to the schema once its owner has filled in what is his, and says the input's size."""
    out, metrics, printed = run
    record = json.loads(printed[printed.index('{\n  "tag"') :])
    assert (record["tag"], record["models"], record["trained_by"]) == ("first", [NAME], "user")
    assert record["input"] == {"size": [31, 37, 31], "affine": synthetic.grid(6)[1].tolist()}
    assert record["provenance"]["metrics"] == metrics
    assert "--data healthy.npy --out first" in record["provenance"]["command"]
    assert "--table healthy.csv --rows split=train" in record["provenance"]["command"]
    assert str(cohort) not in printed
    complete = record | OWNERS | {"provenance": OWNERS["provenance"] | record["provenance"]}
    jsonschema.validate({"schema": 1, "weights": [complete]}, SCHEMA)
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    encoder = zoo.load_model(f"{NAME}.first")
    assert zoo.load_report(encoder).sha256 == record["sha256"]
    assert zoo.model_info(f"{NAME}.first").input.size == (31, 37, 31)
    density = np.load(cohort / "healthy.npy")[0]
    volume = zoo.load_transform(f"{NAME}.first")(density)
    trained_on = build_volumes(parse_args(Args, flags(cohort, out)), *data_of(cohort))[0, 0]["image"]
    torch.testing.assert_close(volume, trained_on)


def data_of(cohort):
    return str(cohort / "healthy.npy"), str(cohort / "healthy.csv"), ""


@pytest.mark.parametrize("spacing", [1, 2, 3, 6])
def test_the_record_says_where_volumes_lie(spacing):
    """Nothing on the published grid; another voxel size in the same field of view is told by the shape."""
    assert pretrain.input_of((121, 145, 121)) == pretrain.input_of((121, 145, 121), "LAS") == {}
    shape, affine = synthetic.grid(spacing)
    found = pretrain.input_of(shape)
    assert found["size"] == list(shape)
    np.testing.assert_allclose(found["affine"], affine, rtol=1e-12)


@pytest.mark.parametrize(("shape", "axes"), [((80, 80, 80), ""), ((121, 145, 121), "RAS"), ((31, 37, 31), "RAS")])
def test_the_record_does_not_guess_where_volumes_lie(shape, axes):
    """Of another field of view, or of files that run from left to right, the place is open."""
    assert pretrain.input_of(shape, axes) == {"size": list(shape), "affine": None}


def test_kill_9_in_the_second_epoch_then_resume_ends_with_the_same_weights(run, cohort, out, monkeypatch):
    """Killed between the two steps of epoch 1; weights and optimiser end as those of the uninterrupted run.

    That one had validation, which does not touch the training.
    """
    whole, _, _ = run
    read = []

    def dying(self, key):
        read.append(key[0])
        if read.count(1) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, key)

    original = Volumes.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(Volumes, "__getitem__", dying)
        context = multiprocessing.get_context("fork")
        process = context.Process(target=pretrain.main, args=(flags(cohort, out, *TWO_EPOCHS),))
        process.start()
        process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(out / "last.pt", weights_only=True)["epoch"] == 1
    assert not list(out.glob("*.safetensors"))
    pretrain.main(flags(cohort, out, *TWO_EPOCHS, "--resume"))
    first, second = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, out))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert first["epoch"] == second["epoch"] == 2
    moments = [state["optimizer"]["state"] for state in (first, second)]
    assert all(torch.equal(moments[0][i][leaf], moments[1][i][leaf]) for i in moments[0] for leaf in moments[0][i])
    assert [line["loss"] for line in read_log(out / "log.jsonl")] == [
        line["loss"] for line in read_log(whole / "log.jsonl")
    ]


def test_the_published_behaviour_runs(cohort, out):
    """`--upstream`: the authors' normalisation, whose least value is not known, on views of all kinds; in half."""
    metrics = pretrain.main(flags(cohort, out, "--upstream", "--tf", "all_tf", "--half"))
    assert {"loss", "accuracy"} <= set(metrics)
    assert "excess" not in metrics
    used = json.loads((out / "args.json").read_text())
    assert (used["normalize"], used["val_random"], used["tf"]) == ("upstream", True, "all_tf")
    exported = load_file(out / f"{NAME}.run.safetensors")
    assert {exported[f"features.{name}.weight"].dtype for name in ("conv0", "norm0")} == {torch.float16, torch.float32}
    assert (
        zoo.load_model(NAME, checkpoint=out / f"{NAME}.run.safetensors")(torch.zeros(1, 1, 32, 32, 32)).isfinite().all()
    )


def test_simclr_needs_no_ages(cohort, out, tmp_path):
    """With `--kernel views` the table may be without the column; the least loss is 0."""
    table = rewrite(
        cohort / "healthy.csv", tmp_path / "bare.csv", lambda i, row: {"participant_id": row["participant_id"]}
    )
    metrics = pretrain.main(flags(cohort, out, "--table", str(table), "--kernel", "views"))
    assert metrics["excess"] == pytest.approx(metrics["loss"], rel=1e-6)


def test_two_processes_make_one_run(cohort, out, tmp_path, capfd):
    """Two subjects each for training and validation; both end with the same numbers, one of them writes."""
    argv = flags(cohort, out, "--rows", "split=train", "--val-rows", "split=val", "--batch-size", "4")
    first, second = gloo.run(pretrain.main, 2, tmp_path / "group", argv)
    assert first == second
    assert {"loss", "excess", "val_loss"} <= set(first)
    assert [path.name for path in out.glob("*.safetensors")] == [f"{NAME}.run.safetensors"]
    assert capfd.readouterr().out.count('"tag": "run"') == 1


DEFAULTS = {
    "epochs": 100,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 1e-4,
    "weight_decay": 5e-5,
    "schedule": "constant",
    "workers": 8,
    "temperature": 0.1,
    "sigma": 5.0,
    "label": "age",
    "kernel": "gaussian",
    "tf": "cutout",
    "normalize": "anchor",
    "grid": "published",
    "steps_per_epoch": 0,
    "accumulate": 1,
    "warmup_epochs": 0,
    "clip_grad": 0.0,
    "precision": "fp32",
    "patience": 0,
    "val_random": False,
    "half": False,
    "upstream": False,
    "rows": "",
    "val_data": "",
    "val_table": "",
    "val_rows": "",
}
"""The authors' config.py and main.py, their README for the views, and no quirk."""


@pytest.mark.parametrize("flag", DEFAULTS)
def test_the_defaults_are_the_published_run(flag):
    """Each flag by itself, as the command line gives it."""
    args = parse_args(Args, ["--data", "d", "--table", "t", "--out", "o"])
    assert getattr(args, flag) == DEFAULTS[flag]


def test_no_default_of_this_recipe_is_untested():
    """Every flag that the recipe declares itself and that has a default stands in the table."""
    own = {name for name in Args.__annotations__ if getattr(Args, name, None) is not None} - {"data", "table"}
    assert own <= set(DEFAULTS)


def args_of(**settings):
    return Args(data="d", table="t", out="o", **settings)


def test_one_argument_speaks_for_others():
    """`--upstream` is two switches, and leaves what the README says of the views."""
    upstream = resolve(args_of(upstream=True))
    assert (upstream.normalize, upstream.val_random, upstream.tf) == ("upstream", True, "cutout")
    plain = resolve(args_of())
    assert (plain.normalize, plain.val_random) == ("anchor", False)
    assert resolve(args_of(batch_size=4, accumulate=2)).batch_size == 4


def test_every_setting_reaches_the_method(monkeypatch):
    """Each argument of `YAware` is a flag of its name, with the same default."""
    seen = {}
    parameters = inspect.signature(YAware).parameters
    defaults = {f.name: f.default for f in dataclasses.fields(Args)}
    assert {name: defaults[name] for name in parameters} == {name: p.default for name, p in parameters.items()}
    monkeypatch.setattr(pretrain, "YAware", lambda **settings: seen.update(settings))
    wanted = {"tf": "crop", "temperature": 0.5, "sigma": 2.0, "normalize": "upstream", "kernel": "equal"}
    assert set(wanted) == set(parameters)
    build_method(args_of(**wanted))
    assert seen == wanted


def test_labels_may_be_several_columns(cohort):
    """Named with commas between; with `--kernel views` there are none."""
    args = parse_args(Args, flags(cohort, "o", "--label", "age, ageing_speed"))
    item = build_volumes(args, *data_of(cohort))[0, 3]
    assert item["label"].shape == (2,)
    assert build_volumes(dataclasses.replace(args, kernel="views"), *data_of(cohort))[0, 3]["label"].shape == (0,)


class Recorder(torch.nn.Module):
    """Stands where the method does: keeps the seeds and the ages it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.draws, self.sizes = [], []

    def forward(self, batch):
        self.draws += batch["draws"].tolist()
        self.sizes.append(len(batch["image"]))
        return {"loss": batch["label"].mean()}


def shown(args, epoch=0, processes=ONE):
    recorder = Recorder()
    validation(args, processes)(recorder, epoch)
    return recorder


def test_validation_views_are_fixed_unless_asked_otherwise(cohort):
    """The same seeds at every epoch, others with `--val-random` and others than training's."""
    fixed = parse_args(Args, flags(cohort, "o", "--val-rows", "split=val"))
    random = dataclasses.replace(fixed, val_random=True)
    assert shown(fixed, epoch=0).draws == shown(fixed, epoch=7).draws
    assert shown(random, epoch=0).draws != shown(random, epoch=7).draws
    training = build_volumes(fixed, *data_of(cohort)[:2], "split=val")[0, 0]["draws"].tolist()
    assert training not in shown(fixed).draws
    assert validation(dataclasses.replace(fixed, val_rows=""), ONE) is None


def test_validation_has_nobody_alone(cohort):
    """Parts of the training batch's size: eight in fives are five and three, in sevens seven, and the last is left out.

    Each of two processes has its half; a process with one subject is refused before the run.
    """
    settings = parse_args(Args, flags(cohort, "o", "--val-table", str(cohort / "healthy.csv")))
    assert shown(dataclasses.replace(settings, batch_size=5)).sizes == [5, 3]
    assert shown(dataclasses.replace(settings, batch_size=7)).sizes == [7]
    halves = [Processes(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    assert [shown(dataclasses.replace(settings, batch_size=4), processes=half).sizes for half in halves] == [[2, 2]] * 2
    with pytest.raises(OptionError, match=r"8 validation volume\(s\) for 5 process\(es\): 2 for each are needed"):
        validation(settings, Processes(0, 5, torch.device("cpu")))


def test_validation_of_the_same_weights_is_the_same_number(cohort):
    """Through the network, in two epochs; with new views it is another."""
    torch.manual_seed(0)
    method = YAware().eval()
    args = parse_args(Args, flags(cohort, "o", "--val-rows", "split=val"))
    with torch.no_grad():
        first, second = (validation(args, ONE)(method, epoch) for epoch in (0, 1))
        third = validation(dataclasses.replace(args, val_random=True), ONE)(method, 1)
    assert first == second
    assert first["loss"] != third["loss"]


def spoiled(change):
    def make(cohort, folder):
        volumes = np.load(cohort / "healthy.npy")
        change(volumes)
        np.save(folder / "volumes.npy", volumes)
        return ["--data", str(folder / "volumes.npy")]

    return make


def retold(change):
    return lambda cohort, folder: ["--table", str(rewrite(cohort / "healthy.csv", folder / "table.csv", change))]


def put(index, value):
    def change(volumes):
        volumes[index] = value

    return change


BAD = {
    "no age": (
        retold(lambda i, row: row | {"age": "" if i == 3 else row["age"]}),
        r"OptionError: .*'age'.*healthy00003",
    ),
    "age in words": (retold(lambda i, row: row | {"age": "old" if i == 5 else row["age"]}), r"OptionError: .*'old'"),
    "no column": (retold(lambda i, row: {"participant_id": row["participant_id"]}), r"OptionError: .*'?age"),
    "a row too few": (retold(lambda i, row: row if i else None), r"OptionError: .*8 volumes.*7 rows"),
    "a subject twice": (retold(lambda i, row: row | {"participant_id": "x"}), r"OptionError: .*several rows"),
    "NaN": (spoiled(put((slice(None), 0, 15, 15, 15), np.nan)), r"InputContractError: healthy\d+ in .*NaN"),
    "constant": (spoiled(put(slice(None), 0.5)), r"InputContractError: healthy\d+ in .*constant"),
    "no array": (["--data", "nowhere.npy"], r"OptionError: nowhere\.npy is neither"),
    "batch of one": (["--batch-size", "1"], r"OptionError: --batch-size 1 --accumulate 1: at least 2 subjects"),
    "parts of one": (["--accumulate", "2"], r"OptionError: --batch-size 2 --accumulate 2: at least 2 subjects"),
    "too large a batch": (
        ["--batch-size", "9"],
        r"OptionError: 8 sample\(s\) do not fill one step of --batch-size 9",
    ),
    "sigma 0": (["--sigma", "0"], r'OptionError: sigma=0\.0: .*kernel="views"'),
    "negative sigma": (["--sigma", "-5"], r"OptionError: sigma=-5\.0: expected a positive number"),
    "temperature 0": (["--temperature", "0"], r"OptionError: temperature=0\.0: expected a positive number"),
    "no label": (["--label", ", "], r"OptionError: --label ', ' names no column for --kernel gaussian"),
    "no such rows": (["--rows", "split=test"], r"OptionError: .*none of 8 rows has split=test"),
    "one to validate": (["--val-rows", "participant_id=healthy00001"], r"OptionError: 1 validation volume"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, cohort, tmp_path):
    """Before the first step, or as soon as the volume is read, on the command line with exit code 1."""
    given, message = BAD[case]
    more = given(cohort, tmp_path) if callable(given) else given
    with pytest.raises(SystemExit, match=message) as stopped:
        run_command(lambda: pretrain.main(flags(cohort, tmp_path / "run", *more)))
    assert isinstance(stopped.value.code, str), "a text is printed, and the exit code is 1"
    assert "\n" not in stopped.value.code
    assert not (tmp_path / "run" / "last.pt").exists()
