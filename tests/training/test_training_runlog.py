"""The record of a run: log, arguments, curves, events, and files that are whole or absent."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from scripted import Scripted, run

from zoo.errors import OptionError
from zoo.training.runlog import RunLog, plot_curves, read_log


@pytest.mark.slow
def test_a_run_leaves_its_record(tmp_path):
    """One JSON line an epoch, the arguments, a picture of the curves, and nothing half-written."""
    run(Scripted([2, 1]), tmp_path, epochs=2, seed=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"epoch", "loss", "score", "lr", "seconds"}] * 2
    assert [line["loss"] for line in lines] == [2, 1]
    args = json.loads((tmp_path / "args.json").read_text())
    assert (args["seed"], args["batch_size"], args["out"]) == (3, 8, str(tmp_path))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    files = ["args.json", "best.pt", "curves.png", "last.pt", "log.jsonl", "run.log"]
    assert sorted(f.name for f in tmp_path.iterdir()) == files


@pytest.mark.parametrize("first", [0, 1])
def test_a_log_that_a_kill_cut_short_is_taken_up(tmp_path, first):
    """A half line and the lines of epochs that are done again are dropped; no epoch stands twice.

    Older runs called the first epoch 0: their lines get the numbers of the later ones.
    """
    text = "".join(json.dumps({"epoch": i + first, "loss": float(i)}) + "\n" for i in range(4))
    (tmp_path / "log.jsonl").write_text(text + '{"epoch": 4, "lo')
    assert len(read_log(tmp_path / "log.jsonl")) == 4
    log = RunLog(tmp_path, first_epoch=3, enabled=True, tensorboard=False)
    log.write({"epoch": 4, "loss": 9.0, "seconds": 1.0})
    assert [(line["epoch"], line["loss"]) for line in read_log(tmp_path / "log.jsonl")] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 9),
    ]
    assert read_log(tmp_path / "absent.jsonl") == []


def test_curves_of_a_log_whose_metrics_changed(tmp_path):
    """A run resumed with a validation list has more to draw; a metric that some epochs lack is no reason to fail."""
    plot_curves([{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5, "val_loss": 2.0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_tensorboard_events_are_written_once_an_epoch(tmp_path):
    """Also after a resumed run did an epoch again."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for epochs, resume in ((2, False), (3, True)):
        run(Scripted([5, 4, 3] if not resume else [3]), tmp_path, epochs=epochs, resume=resume, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 5), (2, 4), (3, 3)]


def test_a_missing_package_is_named_before_the_run(tmp_path, monkeypatch):
    """Not after the last epoch, when the curves are drawn."""
    monkeypatch.setattr("zoo.training.runlog.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"package matplotlib: pip install 'matplotlib>="):
        run(Scripted(), tmp_path)


@pytest.mark.slow
def test_curves_are_drawn_whatever_backend_a_notebook_names(tmp_path):
    """Its command inherits the variable without the package that it names; one that is here shows what follows."""
    code = (
        "import os, sys; from pathlib import Path; from zoo.training.runlog import plot_curves\n"
        "for backend in sys.argv[2:]:\n"
        "    if os.fork() == 0:\n"
        "        os.environ['MPLBACKEND'] = backend\n"
        "        plot_curves([{'epoch': 1, 'loss': 2}], Path(sys.argv[1], f'{backend}.png')); import matplotlib\n"
        "        print(os.environ['MPLBACKEND'], dict.get(matplotlib.rcParams, 'backend') == 'svg', flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "assert 'matplotlib' not in sys.modules"
    )
    command = [sys.executable, "-c", code, tmp_path, "of-another-environment", "svg"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    for name in ("of-another-environment", "svg"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert said.stdout.split() == ["of-another-environment", "False", "svg", "True"]
