"""Killed and resumed to the same weights, on one process and on two; and the same training computed in another way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import forked
import gloo
import pytest
import torch
import toy_run
from torch.distributed.run import main as torchrun
from toy_run import assert_identical, state_of, toy

from zoo.errors import OptionError
from zoo.training import distributed
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def epochs_in(out: Path) -> list[int]:
    return [line["epoch"] for line in read_log(out / "log.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_in_an_epoch_then_resume_ends_with_the_same_weights(tmp_path, workers):
    """A run killed at an arbitrary moment ends bit for bit as an uninterrupted one, optimiser and log too."""
    flags = ["--schedule", "cosine-per-step", "--warmup-epochs", 1, "--validate", "--workers", workers]
    toy_run.main(toy(tmp_path / "whole", *flags))
    context = multiprocessing.get_context("fork")
    process = context.Process(target=toy_run.main, args=(toy(tmp_path / "cut", *flags, "--pause", 0.1),))
    process.start()
    while not (tmp_path / "cut" / "last.pt").exists():
        time.sleep(0.01)
        assert process.exitcode is None, "the run ended before it could be killed"
    time.sleep(0.15)  # into the second of the next epoch's four steps
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert state_of(tmp_path / "cut")["epoch"] < 4
    toy_run.main(toy(tmp_path / "cut", *flags, "--resume"))
    assert_identical(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert epochs_in(tmp_path / "cut") == [1, 2, 3, 4]


@pytest.mark.slow
def test_clean_stop_then_resume_ends_with_the_same_weights(tmp_path):
    """Two epochs and then two more are four epochs, with Adam, clipping, accumulation, plateau and bf16."""
    flags = ["--schedule", "plateau", "--plateau-patience", 0, "--optimizer", "adamw", "--lr", 0.01, "--clip-grad", 1]
    flags += ["--accumulate", 2, "--precision", "bf16", "--monitor", "accuracy"]
    toy_run.main(toy(tmp_path / "whole", *flags))
    toy_run.main(toy(tmp_path / "cut", *flags, "--epochs", 2))
    toy_run.main(toy(tmp_path / "cut", *flags, "--resume"))
    assert_identical(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))
    assert state_of(tmp_path / "cut")["plateau"]["factor"] < 0.5  # it shrank before the stop and after
    assert torch.load(tmp_path / "whole/best.pt")["epoch"] == torch.load(tmp_path / "cut/best.pt")["epoch"]


@pytest.fixture(scope="module")
def whole_on_two(tmp_path_factory):
    """An uninterrupted run of two processes."""
    out = tmp_path_factory.mktemp("two")
    gloo.run(toy_run.main, 2, out / "group", toy(out / "run"))
    return out / "run"


def test_state_differs_between_the_processes(whole_on_two):
    """The comparison below means something: batch statistics and memory are each process's own."""
    first, second = state_of(whole_on_two)["model"], state_of(whole_on_two, rank=1)
    assert "body.1.running_mean" in second
    assert not torch.equal(first["body.1.running_mean"], second["body.1.running_mean"])
    assert not torch.equal(first["memory"], second["memory"])


@pytest.mark.slow
def test_two_processes_resume_after_one_was_killed_in_an_epoch(tmp_path, whole_on_two):
    """Process 1 dies in epoch 2 (its 10th of 16 steps), the other with it; both go on to the same weights each."""
    codes = gloo.wait(gloo.start(toy_run.main, 2, tmp_path / "group", toy(tmp_path / "cut", "--kill-step", 10)))
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert state_of(tmp_path / "cut")["epoch"] == 2
    gloo.run(toy_run.main, 2, tmp_path / "again", toy(tmp_path / "cut", "--resume"))
    for rank in (0, 1):
        assert_identical(state_of(whole_on_two, rank), state_of(tmp_path / "cut", rank))
    assert epochs_in(tmp_path / "cut") == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_resume_after_a_kill_halfway_through_a_save(tmp_path, whole_on_two):
    """The other process's file is an epoch ahead of last.pt then; the end is the same."""
    codes = gloo.wait(gloo.start(toy_run.main, 2, tmp_path / "group", toy(tmp_path / "cut", "--kill-save", 3)))
    assert codes[0] == -signal.SIGKILL
    assert state_of(tmp_path / "cut")["epoch"] == 2
    files = sorted(file.name for file in (tmp_path / "cut" / "ranks").iterdir())
    assert files == ["epoch2-rank1.pt", "epoch3-rank1.pt"]
    assert epochs_in(tmp_path / "cut") == [1, 2, 3]
    assert torch.load(tmp_path / "cut" / "best.pt")["epoch"] <= 2  # never of what last.pt does not know
    gloo.run(toy_run.main, 2, tmp_path / "again", toy(tmp_path / "cut", "--resume"))
    for rank in (0, 1):
        assert_identical(state_of(whole_on_two, rank), state_of(tmp_path / "cut", rank))
    assert epochs_in(tmp_path / "cut") == [1, 2, 3, 4]
    assert [f.name for f in (tmp_path / "cut").glob(".*")] == []


@pytest.mark.slow
def test_torchrun_runs_the_same_file(tmp_path, whole_on_two):
    """Under torchrun the script joins by its environment and ends with the weights of the group above."""
    how = ["--standalone", "--nproc-per-node", "2", "--run-path", "--start-method", "fork"]
    assert forked.wait(forked.start(torchrun, [*how, toy_run.__file__, *toy(tmp_path / "run")]), 120) == 0
    for rank in (0, 1):
        assert_identical(state_of(whole_on_two, rank), state_of(tmp_path / "run", rank))
    assert epochs_in(tmp_path / "run") == [1, 2, 3, 4]


def test_a_run_cannot_be_resumed_in_another_way(tmp_path, whole_on_two):
    """Without --resume, on another number of processes, or with another batch order: refused."""
    before = (whole_on_two / "last.pt").read_bytes()
    with pytest.raises(OptionError, match=r"last\.pt exists; give --resume"):
        toy_run.main(toy(whole_on_two))
    with pytest.raises(OptionError, match=r"written by 2 process\(es\), this run has 1"):
        toy_run.main(toy(whole_on_two, "--resume"))
    toy_run.main(toy(tmp_path / "one", "--epochs", 1))
    with pytest.raises(OptionError, match=r"batch_size 8, now 4; seed 0, now 5.*--allow-changes batch_size,seed"):
        toy_run.main(toy(tmp_path / "one", "--resume", "--epochs", 1, "--batch-size", 4, "--seed", 5))
    assert (whole_on_two / "last.pt").read_bytes() == before


def test_a_resumed_run_takes_its_own_learning_rate_and_decay(tmp_path):
    """What changes on resume by the user's leave takes hold, not the values that lie in the optimiser's state."""
    toy_run.main(toy(tmp_path, "--epochs", 1, "--schedule", "constant"))
    more = ["--resume", "--epochs", 2, "--schedule", "constant", "--lr", 0.003, "--weight-decay", 0.25]
    toy_run.main(toy(tmp_path, *more, "--allow-changes", "lr,weight-decay"))
    group = state_of(tmp_path)["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.003, 0.25, 0.9)
    assert [line["lr"] for line in read_log(tmp_path / "log.jsonl")] == [0.1, 0.003]


@pytest.mark.slow
def test_processes_that_see_different_folders_are_told(tmp_path):
    """A folder that is not shared would resume one process and start the other afresh."""

    def work():
        out = tmp_path / f"out{distributed.rank()}"
        try:
            toy_run.main(toy(out, "--resume", "--epochs", 1))
        except OptionError as error:
            return str(error)

    gloo.run(toy_run.main, 2, tmp_path / "first", toy(tmp_path / "out0", "--epochs", 1))
    for message in gloo.run(work, 2, tmp_path / "second"):
        assert "the processes found epochs [1, 0]" in message


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Weights of a run without batch norm, dropout or draws: a step depends on the mean over its batch alone."""
    out = tmp_path_factory.mktemp("plain")
    toy_run.main(toy(out, "--plain", "--schedule", "constant", "--batch-size", 12))
    return state_of(out)["model"]


def assert_close(first, second) -> None:
    """Float32 sums in another order: measured 1e-7 relative after 16 steps, wrong scaling would show as 1e-1."""
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_accumulation_equals_the_big_batch(tmp_path, plain):
    """Three parts of 4 are one batch of 12."""
    toy_run.main(toy(tmp_path, "--plain", "--schedule", "constant", "--batch-size", 12, "--accumulate", 3))
    assert_close(plain, state_of(tmp_path)["model"])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_equal_one(tmp_path, plain, accumulate):
    """Two shares of 6, or six of 2, are one batch of 12: gradients are averaged, and synchronised once a step."""
    flags = ["--plain", "--schedule", "constant", "--batch-size", 12, "--accumulate", accumulate]
    gloo.run(toy_run.main, 2, tmp_path / "group", toy(tmp_path / "run", *flags))
    assert_close(plain, state_of(tmp_path / "run")["model"])


def test_the_cut_into_epochs_changes_nothing(tmp_path, plain):
    """16 steps as 4 epochs or as 2."""
    flags = ["--plain", "--schedule", "constant", "--batch-size", 12, "--epochs", 2, "--steps-per-epoch", 8]
    toy_run.main(toy(tmp_path, *flags))
    assert_identical(plain, state_of(tmp_path)["model"])


@pytest.mark.slow
def test_validation_does_not_disturb_the_training(tmp_path):
    """With and without validation the weights are the same, draws and batch norm included."""
    for name, flags in (("with", ["--validate"]), ("without", [])):
        toy_run.main(toy(tmp_path / name, *flags))
    assert_identical(state_of(tmp_path / "with")["model"], state_of(tmp_path / "without")["model"])


def test_memory_layout_does_not_change_the_training(tmp_path, plain):
    """NHWC convolutions differ in the order of sums alone."""
    toy_run.main(toy(tmp_path, "--plain", "--schedule", "constant", "--batch-size", 12, "--channels-last"))
    assert_close(plain, state_of(tmp_path)["model"])


@pytest.mark.slow
def test_only_the_first_process_shows_and_writes(tmp_path, capfd):
    """One line for two processes, and nothing on stdout, which is for results."""
    gloo.run(toy_run.main, 2, tmp_path / "group", toy(tmp_path / "run", "--epochs", 2))
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(("training", "epoch"))]
    assert lines == [
        "training: 28 cases of 8 x 8 pixels, 2 epochs of 4 steps of 8 cases, 2 processes on cpu, from random weights"
    ]
    assert printed.out == ""
