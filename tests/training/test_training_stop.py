"""Runs that a signal ends: saved after the step, and gone on with to the same weights, wherever they were."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import gloo
import pytest
import torch
import toy_run
from toy_run import assert_identical, state_of, toy

from zoo import stopping
from zoo.siblings import began
from zoo.stopping import Stopped, deferring, heeding_signals
from zoo.training.args import run_command
from zoo.training.runlog import read_log

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

FLAGS = ["--validate", "--schedule", "cosine-per-step", "--accumulate", 2]
STEPS = 16


def start(out: Path, *flags: object) -> BaseProcess:
    """The command in a process of its own, as a scheduler starts it, without the imports."""
    return forked.start(run_command, lambda: toy_run.main(toy(out, *flags)))


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, optimiser, best weights and log, but for how long it took; nothing half written is left."""
    assert_identical(state_of(first), state_of(second))
    assert_identical(*(torch.load(out / "best.pt", weights_only=True) for out in (first, second)))
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(o / "log.jsonl")]
        for o in (first, second)
    ]
    assert lines[0] == lines[1]
    assert sorted(f.name for f in first.iterdir()) == sorted(f.name for f in second.iterdir())


@pytest.fixture(autouse=True)
def foreground():
    """SIGINT as in a foreground job: one in the background, as of a shell's `&`, inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    toy_run.main(toy(out, *FLAGS))
    return out


@pytest.mark.slow
def test_ten_random_signals_then_resume_ends_with_the_same_weights(tmp_path, whole):
    """Each ends the run at another step, by another signal, kill -9 among them; of an epoch nothing is done twice."""
    rng = random.Random(7)
    signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL]
    for trial in range(10):
        out, number, saved = tmp_path / str(trial), signals[trial % 4], 0
        while saved < 4:
            calls = 2 * (STEPS - 4 * saved)  # the method is called for each of two parts of a step
            how = ["--kill-step", rng.randrange(1, calls), "--kill-signal", int(number)] if saved < 2 else []
            try:
                child = gloo.start(toy_run.main, 1, tmp_path / "group", toy(out, *FLAGS, *how, "--resume"))
                (code,) = gloo.wait(child)
            finally:
                last = out / "last.pt"
                saved = torch.load(last, weights_only=True)["epoch"] if last.exists() else 0
            assert code in ((0, 75) if number != signal.SIGKILL else (0, -9))
        assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_step_and_exits_with_75(tmp_path, number, capfd):
    """One line says how to go on; last.pt is of the step that was computed, best.pt is not; the folder is free."""
    process = start(tmp_path / "run", "--kill-step", 6, "--kill-signal", int(number), "--workers", 1)
    code, (out, err) = forked.wait(process), capfd.readouterr()
    assert (code, out) == (75, "")
    assert [line for line in err.splitlines() if not line.startswith("training: ")] == [
        f"stopped by {number.name} after step 2 of epoch 2, saved in {tmp_path / 'run' / 'last.pt'}: the same command "
        "with --resume goes on"
    ]
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (last["epoch"], last["step"]) == (1, 2)
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)  # of the epoch before, not of this step
    assert not torch.equal(best["model"]["head.weight"], last["model"]["head.weight"])
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == [
        "args.json",
        "best.pt",
        "last.pt",
        "log.jsonl",
        "run.log",
    ]


@pytest.mark.slow
def test_a_scheduler_s_signal_to_all_processes_ends_the_run_as_well(tmp_path, whole, monkeypatch):
    """Loader processes that died of it would take the step, and what is to be saved, with them."""
    waiting = tmp_path / "waiting"

    def wait(*_: object) -> None:
        waiting.touch()
        forked.wait_for(stopping.asked_by)

    with monkeypatch.context() as patched:
        patched.setattr(toy_run.os, "kill", wait)
        process = start(tmp_path / "run", *FLAGS, "--workers", 2, "--kill-step", 5)  # the first part of a step's two
    forked.wait_for(waiting.exists)
    os.killpg(process.pid, signal.SIGTERM)
    assert forked.wait(process) == 75
    toy_run.main(toy(tmp_path / "run", *FLAGS, "--resume"))
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_stop_at_one_step(tmp_path):
    """The signal reaches one of them alone; both save the same step, and go on to the weights of an unbroken run."""
    flags = ["--epochs", 2, "--schedule", "constant"]
    gloo.run(toy_run.main, 2, tmp_path / "a", toy(tmp_path / "whole", *flags))
    how = ["--kill-step", 6, "--kill-signal", int(signal.SIGUSR1)]
    codes = gloo.wait(gloo.start(toy_run.main, 2, tmp_path / "b", toy(tmp_path / "cut", *flags, *how)))
    assert codes == [75, 75]
    assert [f.name for f in (tmp_path / "cut" / "ranks").iterdir()] == ["epoch1-step2-rank1.pt"]
    gloo.run(toy_run.main, 2, tmp_path / "c", toy(tmp_path / "cut", *flags, "--resume"))
    for rank in (0, 1):
        assert_identical(state_of(tmp_path / "whole", rank), state_of(tmp_path / "cut", rank))
    logs = [[line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "cut")]
    assert logs[0] == logs[1]  # the means have the sums of both processes from before the stop


def test_a_signal_in_the_last_step_of_an_epoch_leaves_the_validation_for_later(tmp_path, whole):
    """Which may take longer than the scheduler waits."""
    how = ["--kill-step", 8, "--kill-signal", int(signal.SIGTERM)]
    with pytest.raises(Stopped):
        toy_run.main(toy(tmp_path / "run", *FLAGS, *how))
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (last["epoch"], last["step"], read_log(tmp_path / "run" / "log.jsonl")) == (0, 4, [])
    toy_run.main(toy(tmp_path / "run", *FLAGS, "--resume"))
    assert_same_run(whole, tmp_path / "run")


def test_signals_end_at_once_what_has_nothing_to_save():
    """Outside the steps; inside them the first is noted, and a second SIGINT ends them."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="75"), heeding_signals():
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupted() -> None:
        with heeding_signals(), deferring():
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping.asked_by() == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):  # for the first, after the block
        interrupted()
    assert signal.getsignal(signal.SIGTERM) is before
    with heeding_signals():
        assert not stopping.asked_by(), "a signal of an earlier run"


def test_an_ignored_signal_stays_ignored():
    """A shell's background jobs and nohup say so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeding_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopping.asked_by()
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_changed_by_leave_is_recorded(tmp_path):
    """args.json says what the run is now, and what it was until when."""
    flags = ["--schedule", "constant", "--epochs", 2]
    with pytest.raises(Stopped):
        toy_run.main(toy(tmp_path, *flags, "--kill-step", 6, "--kill-signal", int(signal.SIGTERM)))
    toy_run.main(toy(tmp_path, *flags, "--resume", "--lr", 0.01, "--allow-changes", "lr"))
    args = json.loads((tmp_path / "args.json").read_text())
    assert args["lr"] == 0.01
    assert args["changes"] == [{"epoch": 2, "step": 2, "lr": [0.1, 0.01]}]
    toy_run.main(toy(tmp_path, *flags[:2], "--resume", "--lr", 0.01, "--epochs", 3))
    assert json.loads((tmp_path / "args.json").read_text())["changes"] == args["changes"]


@pytest.mark.parametrize("begin", [stopping.leave_to_parent, stopping.end_cleanly])
def test_a_loaders_process_ends_with_a_parent_that_died_before_it_was_ready(begin, tmp_path):
    """Torch looks for another parent than the one that it finds, which is then no longer its own."""
    told = tmp_path / "process"

    class Process(forked.Orphan):
        def run(self):
            told.write_text(str(os.getpid()))
            super().run()

    def load():
        torch.multiprocessing.Process = Process
        next(iter(torch.utils.data.DataLoader(range(3), num_workers=1, worker_init_fn=begin)))

    forked.start(load).join()
    forked.wait_for(lambda: told.exists() and told.read_text())
    process = int(told.read_text())
    try:
        forked.wait_for(lambda: not began(process), 20)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
