"""What a run says: a line when it begins, one a minute, its results; and one line when it fails."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import toy_run
from scripted import Scripted, run
from torch import nn
from toy_run import toy

from zoo import progress
from zoo.checkpoint.report import ATTRIBUTE, LoadReport
from zoo.errors import InputContractError, OptionError
from zoo.progress import duration, follow, recording, say
from zoo.training.args import run_command
from zoo.training.failures import in_one_line
from zoo.training.finetune import write_results
from zoo.training.pace import base_in_words, size_of


@pytest.mark.slow
def test_a_run_without_a_terminal_speaks_before_its_first_epoch_ends(tmp_path, monkeypatch, capsys):
    """Each step is as long as a minute here; run.log has the same lines behind the time."""
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    toy_run.main(toy(tmp_path, "--epochs", 2))
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert lines[0] == "training: 28 cases of 8 x 8 pixels, 2 epochs of 4 steps of 8 cases, cpu, from random weights"
    assert lines[1].startswith("epoch 1 of 2, step 1 of 4: loss ")
    assert re.fullmatch(r"\d+ s left", lines[1].partition(" cases/s, at most ")[2])
    assert lines[5].startswith("epoch 1: loss ")
    assert lines[6].startswith("epoch 2 of 2, step 1 of 4: loss ")
    assert [line[20:] for line in (tmp_path / "run.log").read_text().splitlines()] == lines


@pytest.mark.slow
def test_a_quick_run_says_one_line(tmp_path, capsys):
    """Its epochs are shorter than a minute."""
    run(Scripted([3, 2, 1]), tmp_path, epochs=3)
    assert capsys.readouterr().err.splitlines() == [
        "training: 8 cases, 3 epochs of 1 step of 8 cases, cpu, from random weights"
    ]


@pytest.mark.slow
def test_the_loss_of_a_line_is_the_mean_of_the_epoch_so_far(tmp_path, monkeypatch, capsys):
    """Of the steps before a stop, too, where the run goes on in the middle of an epoch."""
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    run(Scripted([3, 2, 1]), tmp_path, epochs=1, steps_per_epoch=3)
    losses = [line.partition("loss ")[2].partition(",")[0] for line in capsys.readouterr().err.splitlines()[1:4]]
    assert losses == ["3", "2.5", "2"]


def test_a_terminal_gets_a_bar_and_the_log_its_lines(tmp_path, monkeypatch, capsys):
    """The minute's line is not put between the bar's."""
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with recording(tmp_path / "run.log"):
        assert list(follow("abc", "letters", 3)) == ["a", "b", "c"]
    assert "letters:" in capsys.readouterr().err
    assert (tmp_path / "run.log").read_text().splitlines()[-1][20:] == "letters: 3 of 3"


def test_lines_are_a_minute_apart(monkeypatch, capsys):
    """Whatever is followed: the next begins where the last one's clock stood."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    say("start")
    for _ in range(2):
        for _ in follow(range(50), "volumes prepared", 50):
            clock[0] += 4
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["start", *(f"volumes prepared: {n} of 50" for n in (15, 30, 45, 10, 25, 40))]


def test_what_is_said_of_images_and_weights():
    """Sides without channels and batches; the file or tag that the zoo loaded from, in any part of the method."""
    flat, deep = nn.Conv2d(1, 1, 3), nn.Conv3d(1, 1, 3)
    assert size_of({"index": torch.tensor(1), "image": torch.zeros(3, 32, 48)}, flat) == " of 32 x 48 pixels"
    assert size_of([torch.zeros(2, 1, 8, 9, 10)], deep) == " of 8 x 9 x 10 voxels"
    assert size_of(torch.tensor(1.0), flat) == ""
    method = nn.Sequential(flat, deep)
    assert base_in_words(method) == "random weights"
    setattr(deep, ATTRIBUTE, LoadReport("m", source="random", fresh={"weight": "random"}))
    assert base_in_words(method) == "random weights"
    setattr(deep, ATTRIBUTE, LoadReport("m", source="a.pt"))
    assert base_in_words(method) == "a.pt"
    setattr(deep, ATTRIBUTE, LoadReport("m", tag="t", source="https://a"))
    assert base_in_words(method) == "m.t"


def test_results_are_five_lines_at_most(tmp_path, capsys):
    """However many classes and runs there are; all of it is in the file."""
    numbers = {f"dice_{i}": 0.5 for i in range(14)}
    results = {name: numbers for name in ("best", "last", "val", "test")}
    results |= {"auroc": {"mean": 0.81234, "std": 0.02}, "loss": {"mean": 2.0, "std": None}, "runs": [numbers] * 5}
    write_results(results, tmp_path, hint="next: load it")
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 4
    assert lines[-2:] == ["auroc 0.8123 ± 0.02, loss 2", f"results: {tmp_path / 'results.json'}"]
    assert printed.err == "next: load it\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (90, "2 min"),
        (3599, "1 h 00 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (52 * 3600, "2 days 4 h"),
    ],
)
def test_durations_are_for_people(seconds, words):
    """One or two units."""
    assert duration(seconds) == words


FAILURES = [
    (OptionError("--lr"), "OptionError: --lr"),
    (FloatingPointError("the loss is nan"), "FloatingPointError: the loss is nan"),
    (OSError(errno.ENOSPC, "x", "f.pt"), "OSError: f.pt: No space left on device"),
    (FileNotFoundError(errno.ENOENT, "x", Path("f")), "FileNotFoundError: f: No such file or directory"),
    (OSError("own words"), "OSError: own words"),
    (MemoryError("of 3 GiB"), "MemoryError: of 3 GiB\nThere is too little memory: give a smaller --batch-size"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried 3 GiB\nmore"),
        "OutOfMemoryError: CUDA out of memory. Tried 3 GiB\nThere",
    ),
    (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried"), "There is too little memory"),
    (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "give fewer --workers"),
    (
        RuntimeError("[/x/gloo/transport/tcp/pair.cc:5] Connection closed by peer"),
        "Another process of the run has ended",
    ),
    (torch.distributed.DistBackendError("NCCL error"), "Another process of the run has ended"),
    (ModuleNotFoundError("x", name="pandas.io"), r"the package 'pandas.io', which is not installed: pip install"),
    (
        InputContractError(
            "Caught InputContractError in DataLoader worker process 0.\nOriginal Traceback\n  File\n"
            "zoo.errors.InputContractError: a.png is empty"
        ),
        "InputContractError: a.png is empty",
    ),
]


@pytest.mark.parametrize(("error", "words"), FAILURES)
def test_what_can_happen_to_anybody_is_a_line(error, words):
    """With what to do where the system's own words do not say it."""

    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert words in str(stopped.value.code)
    assert "Traceback" not in str(stopped.value.code)
    assert stopped.value.code.count("\n") < 2


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), RuntimeError("shapes"), ModuleNotFoundError("x", name="zoo.x")]
)
def test_our_own_faults_keep_their_traceback(error):
    """A line would hide where they are."""
    assert in_one_line(error) is None


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_command_that_a_signal_ends_says_so(name, code, capsys):
    """Where there is nothing to go on with; the exit code is the shell's for it."""
    before = signal.getsignal(signal.SIGTERM)
    of_job = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    with pytest.raises(SystemExit, match=str(code)):
        run_command(lambda: os.kill(os.getpid(), getattr(signal, name)))
    signal.signal(signal.SIGINT, of_job)
    assert capsys.readouterr().err == f"ended by {name}\n"
    assert signal.getsignal(signal.SIGTERM) is before
