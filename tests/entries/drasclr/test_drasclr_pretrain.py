"""The DrasCLR recipe end to end: a folder of grouped patches goes in, an exported encoder comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import math
import shutil

import gloo
import numpy as np
import pytest
import torch
from drasclr_patches import LANDMARKS, TABLE, write_subjects
from published import check_record
from safetensors.torch import load_file
from saved_runs import are_equal, begun, comes_from, copy_of, header_of, mark

import zoo
from zoo.entries.drasclr import data, pretrain
from zoo.entries.drasclr.atlas import normalise
from zoo.entries.drasclr.method import DrasCLR
from zoo.entries.drasclr.pretrain import Args, build_method, check_share, choose, resolve
from zoo.errors import CheckpointMismatchError, OfflineError, OptionError
from zoo.training.args import parse_args, run_command
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

NAME = "drasclr-cnn3d"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Eight subjects at five landmarks, grouped, and the landmarks."""
    folder = tmp_path_factory.mktemp("cohort")
    write_subjects(folder / "patch", 8, textured=True)
    data.main(["group", "--patches", str(folder / "patch"), "--out", str(folder / "grouped")])
    np.save(folder / "landmarks.npy", LANDMARKS)
    return folder


def flags(cohort, out, *more):
    files = ["--data", str(cohort / "grouped"), "--landmarks", str(cohort / "landmarks.npy"), "--out", str(out)]
    small = "--batch-size 4 --epochs 1 --queue-size 6 --experts 2 --workers 0 --device cpu"
    return [*files, *small.split(), *more]


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """One pass over four of five landmarks, eight steps: the folder, the metrics, and what was printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "first", io.StringIO()
    with contextlib.redirect_stdout(printed):
        metrics = pretrain.main(flags(cohort, out, "--locations", "0,1,3,4"))
    yield out, metrics, printed.getvalue()
    shutil.rmtree(out)


@pytest.fixture
def out(tmp_path):
    """A folder for a run, whose large files go when the test ends."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def last_state(out):
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.slow
def test_the_run_trains_and_logs(run):
    """A line an epoch with the losses and how often each was right; every queue got all subjects of its landmark."""
    out, metrics, _ = run
    (line,) = read_log(out / "log.jsonl")
    names = {"loss", "patch", "neighbour", "accuracy", "neighbour_accuracy"}
    assert names | {"lr", "epoch", "seconds"} == set(line)
    assert all(math.isfinite(value) for value in line.values())
    assert line["loss"] == pytest.approx(line["patch"] + line["neighbour"], rel=1e-5)
    assert metrics == {name: value for name, value in line.items() if name != "seconds"}
    state = last_state(out)["model"]
    assert state["queue"].shape == (4, 128, 6)
    assert state["queue_ptr"].tolist() == [8 % 6] * 4
    assert json.loads((out / "args.json").read_text())["locations"] == "0,1,3,4"


@pytest.mark.slow
def test_the_table_of_neighbours_is_in_the_record(run):
    """Landmarks, those trained on, and whose patches were taken with them, with the rule that broke the ties."""
    record = json.loads((run[0] / "neighbours.json").read_text())
    assert record["landmarks"] == LANDMARKS.tolist()
    assert record["locations"] == [0, 1, 3, 4]
    assert record["neighbours"] == TABLE[[0, 1, 3, 4]].tolist()
    assert "smaller index first" in record["rule"]


@pytest.mark.slow
def test_the_exported_file_is_the_query_network(run):
    """Of the last epoch, tensor for tensor, without queue and key network; `last.pt` and `best.pt` load as well."""
    out, _, _ = run
    state = last_state(out)["model"]
    file = out / f"{NAME}.{out.name}.safetensors"
    exported = load_file(file)
    query = {name.removeprefix("encoder_q."): v for name, v in state.items() if name.startswith("encoder_q.")}
    assert set(exported) == set(query)
    assert all(torch.equal(value, query[name]) for name, value in exported.items())
    patches = torch.rand(2, 1, 32, 32, 32) * 2 - 1
    location = torch.from_numpy(normalise(LANDMARKS))[3]
    features = []
    for form in (file, out / "last.pt", out / "best.pt"):
        model = zoo.load_model(NAME, checkpoint=form)
        assert model.conv1.weight.shape[0] == 2, "two experts, as trained"
        with torch.no_grad():
            features.append(model(patches, location))
    assert features[0].shape == (2, 128)
    assert torch.equal(features[0], features[1])
    assert zoo.load_model(NAME, checkpoint=file, projection=True)(patches, location).shape == (2, 128)


@pytest.mark.slow
def test_the_last_epoch_is_exported_and_all_files_say_the_same(run, cohort, out):
    """Not the one of the least loss; the header is in each file that is saved."""
    copy_of(run[0], out)
    mark(out / "best.pt")
    pretrain.main(flags(cohort, out, "--locations", "0,1,3,4", "--resume"))
    file = out / f"{NAME}.{out.name}.safetensors"
    assert comes_from(file, out / "last.pt", "encoder_q.")
    assert not comes_from(file, out / "best.pt", "encoder_q.")
    for saved in (run[0] / "best.pt", run[0] / "last.pt", file):
        said = header_of(saved)
        assert (said["model"], said["task"], said["classes"], said["options"]) == (NAME, "pretrain", [], {})
        assert (said["recipe"], said["base"]) == ("zoo.entries.drasclr.pretrain", {"source": "random"})
        assert zoo.load_transform(NAME, checkpoint=saved) == zoo.load_transform(NAME)
        assert "--experts 2" in said["command"]


@pytest.mark.slow
def test_the_record_is_a_manifest_s(run, tmp_path, monkeypatch):
    """It names file, digest and command; pasted into a manifest it loads, and completed it is one of ours."""
    out, metrics, printed = run
    record = json.loads((out / "record.json").read_text())
    file = out / f"{NAME}.{out.name}.safetensors"
    assert (record["tag"], record["models"]) == ("first", [NAME])
    assert (record["bytes"], record["sources"], record["input"]) == (file.stat().st_size, [f"file:{file.name}"], {})
    assert record["provenance"]["metrics"] == metrics
    assert "--locations 0,1,3,4 --experts 2 --queue-size 6" in record["provenance"]["command"]
    assert str(out.parent) not in str(record)
    assert len(printed.splitlines()) < 6
    (out / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(out / "manifest.json"))
    assert zoo.load_report(zoo.load_model(f"{NAME}.first")).sha256 == record["sha256"]
    check_record(record)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(cohort, tmp_path):
    """Two epochs of three steps, cut within a pass, with loader processes before and without after: bit for bit."""
    settings = ["--locations", "::4", "--steps-per-epoch", "3", "--schedule", "constant", "--key-batches", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain.main(flags(cohort, whole, *settings, "--epochs", "2"))
    pretrain.main(flags(cohort, cut, *settings, "--workers", "2"))
    assert last_state(cut)["epoch"] == 1
    pretrain.main(flags(cohort, cut, *settings, "--epochs", "2", "--resume"))
    first, second = last_state(whole), last_state(cut)
    assert first["epoch"] == second["epoch"] == 2
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    moments = [state["optimizer"]["state"] for state in (first, second)]
    assert all(torch.equal(moments[0][i][leaf], moments[1][i][leaf]) for i in moments[0] for leaf in moments[0][i])
    losses = [[line["loss"] for line in read_log(folder / "log.jsonl")] for folder in (whole, cut)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 2
    for folder in (whole, cut):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_processes_train_one_network_with_the_same_queues(cohort, out, tmp_path):
    """Each has half of every step; parameters, queues and pointers agree, batch statistics are each process's own."""
    settings = ["--locations", "1,2", "--steps-per-epoch", "2"]
    gloo.run(pretrain.main, 2, tmp_path / "group", flags(cohort, out, *settings))
    model = last_state(out)["model"]
    (file,) = (out / "ranks").iterdir()
    other = torch.load(file, weights_only=True)["buffers"]
    assert torch.equal(model["queue"], other["queue"])
    assert torch.equal(model["queue_ptr"], other["queue_ptr"])
    assert sorted(model["queue_ptr"].tolist()) == [0, 8 % 6], "both steps of the run were at one landmark"
    name = "encoder_q.bn1.running_mean"
    assert not torch.equal(model[name], other[name])
    assert (out / f"{NAME}.{out.name}.safetensors").is_file()


def test_the_defaults_are_the_published_run():
    """Epochs, batch, optimiser, schedule and objective of the authors' script; their order of subjects is off."""
    args = parse_args(Args, ["--data", "d", "--out", "o"])
    assert (args.epochs, args.batch_size, args.optimizer, args.schedule, args.seed) == (20, 128, "sgd", "cosine", 0)
    assert (args.lr, args.momentum, args.weight_decay, args.clip_grad) == (0.01, 0.9, 1e-4, 0)
    assert (args.queue_size, args.key_momentum, args.temperature, args.queue_dtype) == (4096, 0.999, 0.2, "float32")
    assert (args.experts, args.expert_init, args.neighbours, args.augment) == (8, "upstream", 2, "agc")
    assert (args.beta, args.combine, args.warm_up, args.mlp, args.key_batches) == (1, "sum", 0, True, 1)
    assert (args.order, args.precision, args.warmup_epochs, args.locations) == ("shuffled", "fp32", 0, "")
    assert resolve(args) == args
    assert resolve(dataclasses.replace(args, upstream=True)).order == "upstream"


def test_every_setting_of_the_method_is_a_flag():
    """Of its name and with the same default, but the length of the projection; `--momentum` is the optimiser's."""
    parameters = inspect.signature(DrasCLR).parameters
    settings = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "dim"}
    defaults = {f.name: f.default for f in dataclasses.fields(Args)} | {"momentum": Args.key_momentum}
    assert settings == {name: defaults[name] for name in settings}
    args = Args(data="d", out="o", experts=2, queue_size=8, key_momentum=0.5, combine="mean")
    method = build_method(args, LANDMARKS, TABLE, [3, 0])
    assert (method.momentum, method.combine) == (0.5, "mean")
    everywhere = normalise(LANDMARKS)
    np.testing.assert_array_equal(method.locations, everywhere[[3, 0]])
    np.testing.assert_array_equal(method.neighbour_locations, everywhere[TABLE[[3, 0]]])


def test_landmarks_are_chosen_by_number_or_slice():
    """Numbers in their order, Python's slices, all where nothing is said; what names none is refused."""
    assert choose("", 4) == [0, 1, 2, 3]
    assert choose("3,0", 4) == [3, 0]
    assert choose("::8", 20) == [0, 8, 16]
    assert choose("5:7", 20) == [5, 6]
    for text in ("x", "1;2", "0:1:2:3", "::0", "::0.5"):
        with pytest.raises(OptionError, match=r"--locations .*: expected numbers as 3,17,40, or a slice as ::8"):
            choose(text, 20)
    with pytest.raises(OptionError, match="'9:' names none of 4 landmarks"):
        choose("9:", 4)


def test_batch_norm_needs_two_subjects():
    """Over processes, accumulated parts and shuffled parts; one left would have no variance."""
    args = Args(data="d", out="o", batch_size=16, accumulate=2, key_batches=2)
    check_share(args, world=2)
    with pytest.raises(OptionError, match=r"--batch-size 16 over 4 process\(es\), --accumulate 2 and --key-batches 2"):
        check_share(args, world=4)


@pytest.mark.parametrize(("world", "key_batches", "count"), [(1, 1, 1), (1, 2, 0), (2, 1, 0)])
def test_keys_that_are_not_shuffled_are_warned_of(world, key_batches, count, caplog):
    """One process has one batch of keys, which batch norm gives away, unless it is told to part them."""
    check_share(Args(data="d", out="o", batch_size=16, key_batches=key_batches), world)
    assert sum("Give --key-batches 2, which mixes the samples" in message for message in caplog.messages) == count


def test_a_queue_longer_than_the_cohort_is_warned_of(cohort, caplog):
    """Every subject's own older keys would be among its negatives; shorter queues are silent."""
    for size, count in ((8, 1), (7, 0)):
        caplog.clear()
        patches = pretrain.build_patches(parse_args(Args, flags(cohort, "o", "--queue-size", str(size))), TABLE)
        assert patches.subjects == 8
        assert sum("own older keys" in message for message in caplog.messages) == count


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_neighbours(run, cohort):
    """Another choice of landmarks into the same folder is refused before anything is written; no `--resume` too."""
    out, _, _ = run
    before = (out / "neighbours.json").read_bytes()
    with pytest.raises(OptionError, match=r"other landmarks or neighbours \(neighbours\.json\)"):
        pretrain.main(flags(cohort, out, "--locations", "0,1,3,2", "--resume"))
    with pytest.raises(OptionError, match=r"last\.pt exists; give --resume"):
        pretrain.main(flags(cohort, out, "--locations", "0,1,3,4"))
    assert (out / "neighbours.json").read_bytes() == before


def test_the_authors_landmarks_are_the_default(cohort, out, monkeypatch):
    """Without `--landmarks` they are fetched; offline the error says so."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(OfflineError, match="landmarks"):
        pretrain.main(["--data", str(cohort / "grouped"), "--out", str(out)])


BAD = {
    "no folder": (["--data", "nowhere"], "InputContractError: nowhere has patches at 0 landmarks, but 5 are expected"),
    "too large a batch": (["--batch-size", "9"], r"OptionError: 8 subject\(s\) in .* do not fill one step"),
    "a batch of one": (["--batch-size", "1"], "OptionError: --batch-size 1 over 1 process"),
    "no such landmark": (["--locations", "0,5"], r"OptionError: locations \[5\]: different landmarks from 0 to 4"),
    "no such change": (["--augment", "af"], "OptionError: augmentations 'af' have f: a, g, c are expected"),
    "too many neighbours": (["--neighbours", "5"], "OptionError: 5 neighbours among 5 landmarks"),
    "temperature 0": (["--temperature", "0"], "OptionError: temperature=0.0"),
    "no queue": (["--queue-size", "0"], "OptionError: .*queue_size=0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, cohort, out):
    """Before the first step, on the command line with exit code 1."""
    more, message = BAD[case]
    with pytest.raises(SystemExit, match=message) as stopped:
        run_command(lambda: pretrain.main(flags(cohort, out, *more)))
    assert isinstance(stopped.value.code, str), "a text is printed, and the exit code is 1"
    assert "\n" not in stopped.value.code
    assert not (out / "last.pt").exists()


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(run, cohort, out, monkeypatch, capsys):
    """With its queues where the landmarks are the same; the momentum copy equals the network that is trained."""
    file = run[0] / "last.pt"
    stored = last_state(run[0])["model"]
    assert not are_equal(stored, stored, "encoder_k.", "encoder_q.")
    more = ("--locations", "0,1,3,4", "--init", str(file))
    state, base = begun(pretrain, flags(cohort, out, *more), monkeypatch)
    assert are_equal(stored, state, "encoder_q.", "encoder_q.")
    assert are_equal(state, state, "encoder_k.", "encoder_q.")
    assert are_equal(stored, state, "queue", "queue")
    assert (base["model"], base["source"]) == (NAME, "last.pt")
    assert "encoder, projection head, queues loaded\n" in capsys.readouterr().err


@pytest.mark.slow
def test_queues_of_other_landmarks_are_not_taken(run, cohort, out, monkeypatch, capsys):
    """As many of them, but others: their shape does not tell."""
    random, _ = begun(pretrain, flags(cohort, out, "--locations", "0,1,2,3"), monkeypatch)
    more = ("--locations", "0,1,2,3", "--init", str(run[0] / "last.pt"))
    state, _ = begun(pretrain, flags(cohort, out, *more), monkeypatch)
    assert are_equal(random, state, "queue", "queue")
    assert "fresh: queues (no neighbours.json beside the file says" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_of_the_encoder_alone_leaves_the_rest_fresh(run, cohort, out, monkeypatch, capsys):
    """Head and queues; with one layer in the file and two in the run the head is fresh too."""
    stored = load_file(run[0] / f"{NAME}.{run[0].name}.safetensors")
    file, other = out.with_name("encoder.pt"), out.with_name("one.pt")
    encoder = {name: value for name, value in stored.items() if not name.startswith("fc.")}
    torch.save(encoder, file)
    torch.save(encoder | {"fc.weight": stored["fc.2.weight"], "fc.bias": stored["fc.2.bias"]}, other)
    random, _ = begun(pretrain, flags(cohort, out), monkeypatch)
    for init, why in ((file, "projection head, queues (not found in"), (other, "projection head (fc.0.weight, ")):
        state, _ = begun(pretrain, flags(cohort, out, "--init", str(init)), monkeypatch)
        assert are_equal(encoder, state, "", "encoder_q.")
        assert are_equal(random, state, "encoder_q.fc.", "encoder_q.fc.")
        assert f"encoder loaded; fresh: {why}" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused(run, cohort, out):
    """Of another number of experts, with the flag to give; of another family."""
    file = str(run[0] / "last.pt")
    with pytest.raises(OptionError, match=r"last\.pt is of a run with --experts 2, this one has --experts 4: give"):
        pretrain.main(flags(cohort, out, "--experts", "4", "--init", file))
    other = out.with_name("other.pt")
    torch.save(zoo.load_model("glcl-encoder", pretrained=False).state_dict(), other)
    with pytest.raises(CheckpointMismatchError, match=r"other\.pt"):
        pretrain.main(flags(cohort, out, "--init", str(other)))
