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

import gloo
import numpy as np
import pytest
import torch
from published import check_record
from safetensors.torch import load_file
from saved_runs import are_equal, begun, comes_from, copy_of, header_of, mark

import zoo
from zoo.entries.yaware import phantom, pretrain
from zoo.entries.yaware.cohort import read_cohort
from zoo.entries.yaware.data import Volumes
from zoo.entries.yaware.method import YAware
from zoo.entries.yaware.pretrain import Args, build_method, build_volumes, check_parts, resolve, validation
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.training.args import parse_args, run_command
from zoo.training.distributed import Processes
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "short_yaware", "undrawn")

NAME = "yaware-densenet121"
ONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Eight subjects of 31 x 37 x 31 voxels, half of them to train on and half to validate."""
    folder = tmp_path_factory.mktemp("cohort") / "synthetic"
    phantom.main(["--out", str(folder), "--healthy", "8", "--clinical", "2"])
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


TWO_EPOCHS = ["--rows", "split=train", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """Two epochs of one step, with validation: the folder, the metrics, and what was printed."""
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


@pytest.mark.slow
def test_the_run_trains_validates_and_logs(run):
    """A line an epoch with each loss and its validation twin; with ages as labels no loss can reach 0."""
    out, metrics, _ = run
    lines = read_log(out / "log.jsonl")
    names = {"loss", "accuracy", "excess"}
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert names | {f"val_{name}" for name in names} | {"lr", "epoch", "seconds"} == set(line)
        assert all(np.isfinite(value) for value in line.values())
        assert 0 < line["excess"] < line["loss"]
        assert 0 < line["val_excess"] < line["val_loss"]
        assert line["lr"] == 1e-4
    assert metrics["val_loss"] == min(line["val_loss"] for line in lines)
    assert json.loads((out / "args.json").read_text())["rows"] == "split=train"


@pytest.mark.slow
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
    for form, epoch in (("best.pt", best), ("last.pt", torch.load(out / "last.pt", weights_only=True)["model"])):
        encoder = zoo.load_model(NAME, checkpoint=out / form)
        assert all(torch.equal(value, epoch[f"network.{name}"]) for name, value in encoder.state_dict().items())


@pytest.mark.slow
def test_the_best_epoch_is_exported_and_all_files_say_the_same(run, cohort, out):
    """Not the last one; the header has the size of the volumes, in each file that is saved."""
    copy_of(run[0], out)
    mark(out / "best.pt")
    pretrain.main(flags(cohort, out, *TWO_EPOCHS, "--val-rows", "split=val", "--resume"))
    file = out / f"{NAME}.{out.name}.safetensors"
    assert comes_from(file, out / "best.pt", "network.")
    assert not comes_from(file, out / "last.pt", "network.")
    for saved in (run[0] / "best.pt", run[0] / "last.pt", file):
        said = header_of(saved)
        assert (said["model"], said["task"], said["classes"], said["options"]) == (NAME, "pretrain", [], {})
        assert (said["recipe"], said["base"]) == ("zoo.entries.yaware.pretrain", {"source": "random"})
        assert said["input"] == {"size": [31, 37, 31], "affine": None}
        assert zoo.load_transform(NAME, checkpoint=saved).preprocessing.size == (31, 37, 31)


@pytest.mark.slow
def test_the_record_is_a_manifests(run, cohort, monkeypatch):
    """It loads by its tag, keeps to the schema once its owner has filled in what is his, and says the input's size."""
    out, metrics, printed = run
    record = json.loads((out / "record.json").read_text())
    assert (record["tag"], record["models"], record["trained_by"]) == ("first", [NAME], "user")
    assert record["input"] == {"size": [31, 37, 31], "affine": None}
    assert record["provenance"]["metrics"] == metrics
    assert "--data healthy.npy --out first" in record["provenance"]["command"]
    assert "--table healthy.csv --rows split=train" in record["provenance"]["command"]
    assert str(cohort) not in str(record)
    assert len(printed.splitlines()) < 6
    check_record(record)
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    encoder = zoo.load_model(f"{NAME}.first")
    assert zoo.load_report(encoder).sha256 == record["sha256"]
    assert zoo.model_info(f"{NAME}.first").input.size == (31, 37, 31)


def data_of(cohort):
    return str(cohort / "healthy.npy"), str(cohort / "healthy.csv"), ""


@pytest.mark.slow
def test_the_record_s_transform_makes_what_was_trained_on(run, cohort, monkeypatch):
    """An array of the run's own size, whose place is open, becomes what the network saw; another size is refused."""
    out, _, _ = run
    record = json.loads((out / "record.json").read_text())
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    transform = zoo.load_transform(f"{NAME}.first")
    density = np.load(cohort / "healthy.npy")[0, 0]
    trained_on = build_volumes(parse_args(Args, flags(cohort, out)), *data_of(cohort))[0, 0]["image"]
    torch.testing.assert_close(transform(density), trained_on)
    with pytest.raises(InputContractError):
        transform(density[:-1])


def test_the_record_says_where_volumes_lie(cohort):
    """Nothing on the published grid; of an array of another size the place is open, of files it is theirs."""
    array = read_cohort(*data_of(cohort)[:2])
    published, affine = dataclasses.replace(array, shape=(121, 145, 121)), phantom.grid(6)[1]
    assert published.differences() == {}
    assert array.differences() == {"size": [31, 37, 31], "affine": None}
    placed = dataclasses.replace(array, affine=affine)
    assert placed.differences() == {"size": [31, 37, 31], "affine": affine.tolist()}
    elsewhere = dataclasses.replace(published, affine=np.diag([1.5, 1.5, 1.5, 1]))
    assert elsewhere.differences()["affine"] == np.diag([1.5, 1.5, 1.5, 1]).tolist()


@pytest.mark.slow
def test_kill_9_in_the_second_epoch_then_resume_ends_with_the_same_weights(run, cohort, out, monkeypatch):
    """Killed while it reads the step of epoch 1; weights and optimiser end as those of the uninterrupted run.

    That one had validation, which does not touch the training. Without it the last epoch is the one that is exported.
    """
    whole, _, _ = run
    read = []

    def dying(self, key):
        read.append(key)
        if len(read) == 4:
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
    last = load_file(out / f"{NAME}.run.safetensors")
    assert all(torch.equal(value, second["model"][f"network.{name}"]) for name, value in last.items())
    assert [line["loss"] for line in read_log(out / "log.jsonl")] == [
        line["loss"] for line in read_log(whole / "log.jsonl")
    ]


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_processes_make_one_run(cohort, out, tmp_path, capfd):
    """Two subjects each for training and validation; both end with the same numbers, one of them writes."""
    argv = flags(cohort, out, "--rows", "split=train", "--val-rows", "split=val", "--batch-size", "4")
    first, second = gloo.run(pretrain.main, 2, tmp_path / "group", argv)
    assert first == second
    assert {"loss", "excess", "val_loss"} <= set(first)
    assert [path.name for path in out.glob("*.safetensors")] == [f"{NAME}.run.safetensors"]
    assert capfd.readouterr().out.count("record.json") == 1


DEFAULTS = {
    "epochs": 100,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 1e-4,
    "weight_decay": 5e-5,
    "schedule": "constant",
    "workers": 8,
    "monitor": "val_loss",
    "temperature": 0.1,
    "sigma": 5.0,
    "label": "age",
    "kernel": "gaussian",
    "init": "",
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
def test_the_defaults_are_the_published_run(flag, monkeypatch):
    """Each flag by itself, as the command line gives it on a machine with processors enough."""
    monkeypatch.setattr("zoo.training.args.processors", lambda: 64)
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


def test_every_setting_of_the_method_is_a_flag():
    """Of its name, with the same default."""
    settings = {name: p.default for name, p in inspect.signature(YAware).parameters.items()}
    defaults = {f.name: f.default for f in dataclasses.fields(Args)}
    assert settings == {name: defaults[name] for name in settings}
    objective = build_method(args_of(sigma=2.0, normalize="upstream")).objective
    assert (objective.sigma, objective.normalize) == (2.0, "upstream")


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


def training_of(cohort):
    return read_cohort(*data_of(cohort)[:2], rows="split=train")


def shown(args, trained, epoch=0, processes=ONE):
    recorder = Recorder()
    validation(args, trained, processes)(recorder, epoch)
    return recorder


def test_validation_views_are_fixed_unless_asked_otherwise(cohort):
    """The same seeds at every epoch, others with `--val-random` and others than training's."""
    fixed, trained = parse_args(Args, flags(cohort, "o", "--val-rows", "split=val")), training_of(cohort)
    random = dataclasses.replace(fixed, val_random=True)
    assert shown(fixed, trained, epoch=0).draws == shown(fixed, trained, epoch=7).draws
    assert shown(random, trained, epoch=0).draws != shown(random, trained, epoch=7).draws
    training = build_volumes(fixed, *data_of(cohort)[:2], "split=val")[0, 0]["draws"].tolist()
    assert training not in shown(fixed, trained).draws
    assert validation(dataclasses.replace(fixed, val_rows=""), trained, ONE) is None


def test_validation_has_nobody_alone(cohort):
    """Parts of the training batch's size: eight in fives are five and three, in sevens seven, and the last is left out.

    Each of two processes has its half; a process with one subject is refused before the run.
    """
    settings = parse_args(Args, flags(cohort, "o", "--val-table", str(cohort / "healthy.csv")))
    trained = read_cohort(str(cohort / "clinical.npy"), str(cohort / "clinical.csv"))
    assert shown(dataclasses.replace(settings, batch_size=5), trained).sizes == [5, 3]
    assert shown(dataclasses.replace(settings, batch_size=7), trained).sizes == [7]
    for rank in (0, 1):
        half = Processes(rank, 2, torch.device("cpu"))
        assert shown(dataclasses.replace(settings, batch_size=4), trained, processes=half).sizes == [2, 2]
    with pytest.raises(OptionError, match=r"8 validation volume\(s\) for 5 process\(es\): 2 for each are needed"):
        validation(settings, trained, Processes(0, 5, torch.device("cpu")))


def test_validation_of_the_same_weights_is_the_same_number(cohort):
    """Through the network, in two epochs; with new views it is another."""
    torch.manual_seed(0)
    method = YAware().eval()
    args, trained = parse_args(Args, flags(cohort, "o", "--val-rows", "split=val")), training_of(cohort)
    with torch.no_grad():
        first, second = (validation(args, trained, ONE)(method, epoch) for epoch in (0, 1))
        third = validation(dataclasses.replace(args, val_random=True), trained, ONE)(method, 1)
    assert first == second
    assert first["loss"] != third["loss"]


def test_every_part_of_a_step_has_someone_to_compare_with():
    """And each process two, where the last map is a single voxel, of which one subject has no statistics."""
    small, published = (31, 37, 31), (121, 145, 121)

    def check(batch_size, accumulate, world, shape):
        processes = Processes(0, world, torch.device("cpu"))
        check_parts(args_of(batch_size=batch_size, accumulate=accumulate), shape, processes)

    for legal in ((2, 1, 1, small), (8, 2, 2, small), (4, 2, 1, small), (4, 1, 4, published), (64, 1, 64, published)):
        check(*legal)
    for wrong in ((1, 1, 1, published), (4, 4, 1, published), (4, 1, 4, small), (8, 4, 2, small)):
        with pytest.raises(OptionError, match=f"--batch-size {wrong[0]} --accumulate {wrong[1]} on {wrong[2]} process"):
            check(*wrong)


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
    "batch of one": (
        ["--batch-size", "1"],
        r"OptionError: --batch-size 1 --accumulate 1 on 1 process\(es\): each part of a step needs at least 2 ",
    ),
    "parts of one": (
        ["--accumulate", "2"],
        r"OptionError: --batch-size 2 --accumulate 2 on 1 process\(es\): each part of a step needs at least 2 ",
    ),
    "too large a batch": (
        ["--batch-size", "9"],
        r"OptionError: 8 sample\(s\) do not fill one step of --batch-size 9",
    ),
    "sigma 0": (["--sigma", "0"], r'OptionError: sigma=0\.0: .*kernel="views"'),
    "negative sigma": (["--sigma", "-5"], r"OptionError: sigma=-5\.0: expected a positive number"),
    "temperature 0": (["--temperature", "0"], r"OptionError: temperature=0\.0: expected a positive number"),
    "no label": (["--label", ", "], r"OptionError: --label ', ' names no column, which --kernel gaussian"),
    "no such rows": (["--rows", "split=test"], r"OptionError: .*none of 8 rows has split=test"),
    "validated on its own": (
        ["--val-rows", "split=val"],
        r"OptionError: training and validation share 4 volumes and 4 subjects",
    ),
    "one to validate": (
        ["--rows", "split=train", "--val-rows", "participant_id=healthy00005"],
        r"OptionError: 1 validation volume",
    ),
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


def test_classes_may_be_words(cohort):
    """`--kernel equal` compares a column of names, whatever they are; the Gaussian kernel wants numbers."""
    table = ["--data", str(cohort / "healthy.npy"), "--table", str(cohort / "healthy.csv"), "--out", "unused"]
    args = parse_args(Args, [*table, "--label", "site", "--kernel", "equal"])
    volumes = build_volumes(args, args.data, args.table, "")
    sites = volumes.cohort.column("site")
    codes = volumes.cohort.labels[:, 0]
    assert [[a == b for b in codes] for a in codes] == [[a == b for b in sites] for a in sites]
    with pytest.raises(OptionError, match="no finite number in column 'site'"):
        build_volumes(dataclasses.replace(args, kernel="gaussian"), args.data, args.table, "")


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(run, cohort, out, monkeypatch, capsys, caplog):
    """Encoder and projection head of the exported file, tensor for tensor; the same grid is no warning."""
    file = run[0] / f"{NAME}.{run[0].name}.safetensors"
    state, base = begun(pretrain, flags(cohort, out, "--init", str(file)), monkeypatch)
    assert are_equal(load_file(file), state, "", "network.")
    assert (base["source"], base["sha256"]) == (file.name, zoo.fetching.hash_file(file))
    assert base["base"] == {"source": "random"}
    assert "encoder, projection head loaded\n" in capsys.readouterr().err
    assert not [text for text in caplog.messages if "but this run has" in text]


@pytest.mark.slow
def test_a_file_of_the_encoder_alone_leaves_the_head_fresh(run, cohort, out, monkeypatch, capsys, caplog):
    """As after fine-tuning; of a file without a header the published grid is what it is compared with."""
    stored = load_file(run[0] / f"{NAME}.{run[0].name}.safetensors")
    file = out.with_name("encoder.pt")
    torch.save({name: value for name, value in stored.items() if name.startswith("features.")}, file)
    random, _ = begun(pretrain, flags(cohort, out), monkeypatch)
    state, _ = begun(pretrain, flags(cohort, out, "--init", str(file)), monkeypatch)
    assert are_equal(stored, state, "features.", "network.features.")
    assert are_equal(random, state, "network.head_projection.", "network.head_projection.")
    assert "encoder loaded; fresh: projection head (not found in the file)" in capsys.readouterr().err
    (warning,) = (text for text in caplog.messages if "but this run has" in text)
    assert f"does not say its input; that of {NAME} has size (121, 145, 121)" in warning
    assert "this run has size (31, 37, 31)" in warning


def test_weights_of_another_family_are_refused(cohort, out):
    """By the tensors that they lack."""
    file = out.with_name("other.pt")
    torch.save(zoo.load_model("glcl-encoder", pretrained=False).state_dict(), file)
    with pytest.raises(CheckpointMismatchError, match=r"other\.pt"):
        pretrain.main(flags(cohort, out, "--init", str(file)))
