"""What is no good to go on from, and folders that cannot be written: one line, and what was saved stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
import toy_run
from scripted import ONE, Numbers, Scripted, run
from torch import nn
from toy_run import assert_identical, toy

from zoo.errors import CheckpointFormatError, IntegrityError, OptionError
from zoo.files import this_process
from zoo.training.args import TrainArgs, arg, run_command
from zoo.training.lock import LOCK, holding
from zoo.training.loop import fit
from zoo.training.saving import check_seal, read_state, write_state

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

EPOCHS = ["--epochs", 2, "--schedule", "constant"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("finished") / "run"
    toy_run.main(toy(out, *EPOCHS))
    return out


@pytest.fixture
def out(finished, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def as_pickle(out: Path) -> None:
    (out / "last.pt").write_bytes(pickle.dumps({"model": Evil()}))


def as_torch_pickle(out: Path) -> None:
    torch.save({"model": Evil()}, out / "last.pt")


def as_sealed_pickle(out: Path) -> None:
    write_state(out / "last.pt", {"model": Evil()})


def as_folder(out: Path) -> None:
    (out / "last.pt").unlink()
    (out / "last.pt").mkdir()


def write(name: str, data: bytes):
    return lambda out: (out / name).write_bytes(data)


def edit(name: str, change):
    return lambda out: (out / name).write_bytes(change((out / name).read_bytes()))


def remove(name: str):
    return lambda out: (out / name).unlink()


DAMAGE = {
    "cut short": (edit("last.pt", lambda data: data[: len(data) // 2]), "last.pt"),
    "one byte less": (edit("last.pt", lambda data: data[:-1]), "last.pt"),
    "one byte more": (edit("last.pt", lambda data: data + b"\0"), "last.pt"),
    "empty": (write("last.pt", b""), "last.pt"),
    "zeros": (edit("last.pt", lambda data: bytes(len(data))), "last.pt"),
    "text": (write("last.pt", b"<html>quota</html>"), "last.pt"),
    "another's best.pt": (lambda out: shutil.copy(out / "best.pt", out / "last.pt"), "last.pt"),
    "a pickle with code": (as_pickle, "last.pt"),
    "a checkpoint with code": (as_torch_pickle, "last.pt"),
    "a checkpoint with code and digest": (as_sealed_pickle, "last.pt"),
    "a folder": (as_folder, "last.pt"),
    "no args.json": (remove("args.json"), "args.json"),
    "half an args.json": (edit("args.json", lambda data: data[:40]), "args.json"),
    "args.json of a list": (write("args.json", b"[1]"), "args.json"),
    "args.json in bytes": (write("args.json", b"\xff\xfe{}"), "args.json"),
    "no log": (remove("log.jsonl"), "log.jsonl"),
    "a log without its first line": (edit("log.jsonl", lambda data: data.split(b"\n", 1)[1]), "log.jsonl, line 1"),
    "half a line": (edit("log.jsonl", lambda data: data[:-20]), "log.jsonl, line 2"),
    "a line of bytes": (edit("log.jsonl", lambda data: data.replace(b"loss", b"\xff\0", 1)), "log.jsonl, line 1"),
    "best.pt cut short": (edit("best.pt", lambda data: data[:-100]), "best.pt"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_good_is_named_with_a_way_on(out, damage, monkeypatch, tmp_path):
    """One line: which file, what is wrong, what to do. Nothing was run, and nothing is written."""
    change, file = DAMAGE[damage]
    if damage.startswith("best"):  # else it is the last epoch's, and made again from last.pt
        state = read_state(out / "last.pt")
        write_state(out / "last.pt", state | {"metrics": state["metrics"] | {"epoch": 0}})
    change(out)
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: toy_run.main(toy(out, *EPOCHS, "--resume")))
    line = str(stopped.value.code)
    assert line.count("\n") == 0
    assert str(out / file) in line
    assert "another --out" in line
    assert not (tmp_path / "ran").exists()
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == before


def test_any_flipped_bit_of_last_pt_is_found(out):
    """In the tensors, the structure, the archive's own fields and the digest."""
    data = bytearray((out / "last.pt").read_bytes())
    for place in range(0, len(data), len(data) // 400):
        data[place] ^= 1 << (place % 8)
        (out / "last.pt").write_bytes(data)
        with pytest.raises((IntegrityError, CheckpointFormatError)):
            check_seal(out / "last.pt")
        data[place] ^= 1 << (place % 8)
    (out / "last.pt").write_bytes(data)
    check_seal(out / "last.pt")


def test_what_is_saved_is_a_checkpoint_for_everybody(tmp_path):
    """The digest lies where readers of zip archives look over it; no name of a temporary file is in it."""
    state = {"model": {"weight": torch.arange(6.0)}, "epoch": 3}
    for name in ("a.pt", "b.pt"):
        write_state(tmp_path / name, state)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    for mmap in (False, True):
        assert torch.equal(torch.load(tmp_path / "a.pt", mmap=mmap)["model"]["weight"], torch.arange(6.0))
    assert read_state(tmp_path / "a.pt", ["epoch"], mmap=True)["epoch"] == 3
    with pytest.raises(CheckpointFormatError, match="it lacks best"):
        read_state(tmp_path / "a.pt", ["epoch", "best"])


def test_the_best_weights_are_made_again_from_the_last(out):
    """A kill between the two files leaves best.pt an epoch behind, or none."""
    whole = read_state(out / "best.pt")
    (out / "best.pt").unlink()
    toy_run.main(toy(out, *EPOCHS, "--resume"))
    assert_identical(read_state(out / "best.pt"), whole)


def test_best_weights_without_last_ones_are_not_overwritten(out):
    """With --resume and without."""
    (out / "last.pt").unlink()
    before = (out / "best.pt").read_bytes()
    with pytest.raises(OptionError, match=r"best\.pt exists, but no last\.pt to go on from.*another --out"):
        toy_run.main(toy(out, *EPOCHS))
    with pytest.raises(OptionError, match=r"best\.pt exists, but no last\.pt to go on from.*another --out"):
        toy_run.main(toy(out, *EPOCHS, "--resume"))
    assert (out / "best.pt").read_bytes() == before


# Arguments


@dataclass(kw_only=True)
class Args(TrainArgs):
    """Of another recipe."""

    batch_size: int = arg("samples", 8)
    temperature: float = arg("of a softmax", 0.1)
    cache: str = arg("folder", "", free=True)
    epochs: int = arg("length", 1)


def start(out: Path, method: nn.Module | None = None, samples: int = 8, **settings: object) -> None:
    args = Args(data="d", out=str(out), **{"schedule": "constant"} | settings)
    args.check()
    fit(method or Scripted(), Numbers(samples), args, processes=ONE)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"temperature": 0.2}, "temperature 0.1, now 0.2"),
        ({"precision": "bf16"}, "precision 'fp32', now 'bf16'"),
        ({"data": "e"}, "data 'd', now 'e'"),
        ({"lr": 0.5, "momentum": 0.1}, "lr 0.03, now 0.5; momentum 0.9, now 0.1"),
        ({"monitor": "lr"}, "monitor 'loss', now 'lr'"),
    ],
)
def test_arguments_that_change_the_result_need_leave(tmp_path, changed, words):
    """By default every argument of a recipe does; with leave for all that changed the run goes on."""
    start(tmp_path)
    more = {"resume": True, "epochs": 2}
    with pytest.raises(OptionError, match=rf"args\.json is of a run with other arguments \({words}\)") as error:
        fit(
            Scripted(),
            Numbers(),
            Args(**{"data": "d", "out": str(tmp_path), "schedule": "constant"} | more | changed),
            processes=ONE,
        )
    assert f"--allow-changes {','.join(changed)}" in str(error.value)
    given = (
        {"data": "d", "out": str(tmp_path), "schedule": "constant", "allow_changes": ",".join(changed)} | more | changed
    )
    fit(Scripted(), Numbers(), Args(**given), processes=ONE)
    assert list(json.loads((tmp_path / "args.json").read_text())["changes"][0]) == ["epoch", "step", *changed]


@pytest.mark.slow
def test_what_may_change_freely(tmp_path):
    """Where it is computed and kept and for how long; but the rates of a cosine follow from its length."""
    start(tmp_path)
    start(tmp_path, resume=True, cache="c", workers=1, device="cpu", patience=3, epochs=2)
    assert "changes" not in json.loads((tmp_path / "args.json").read_text())
    start(tmp_path / "b", schedule="cosine")
    with pytest.raises(OptionError, match="epochs 1, now 2"):
        start(tmp_path / "b", schedule="cosine", resume=True, epochs=2)


def test_a_run_of_other_samples_network_or_recipe_is_not_gone_on_with(tmp_path):
    """Though all arguments are the same; an argument that the other recipe lacks is named."""
    start(tmp_path)
    with pytest.raises(OptionError, match="on 8 samples, and now there are 9"):
        start(tmp_path, resume=True, samples=9)
    other = Scripted()
    other.weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(OptionError, match=r"last\.pt is of another network: 1 of its tensors .* weight"):
        start(tmp_path, other, resume=True)
    with pytest.raises(OptionError, match=r"temperature 0\.1, now 'absent'"):
        run(Scripted(), tmp_path, resume=True)
    with pytest.raises(OptionError, match="state of another --optimizer"):
        start(tmp_path, resume=True, optimizer="adam", allow_changes="optimizer")


def test_leave_is_for_arguments_that_there_are():
    """A typing error would leave the run refused without a reason."""
    with pytest.raises(OptionError, match=r"--allow-changes learning_rate: this run has no such argument"):
        Args(data="d", out="o", allow_changes="learning-rate,lr").check()


# Folders


def main(out: Path) -> str:
    """What a run says that cannot be."""
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: toy_run.main(toy(out, *EPOCHS)))
    return str(stopped.value.code)


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    """Below a file, on /proc, a file itself."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/run"), Path("/proc/self/run")):
        assert main(out).startswith(f"OptionError: --out {out} cannot be written: ")


def test_a_folder_that_is_removed_ends_the_run(tmp_path, monkeypatch):
    """It is not made again with half a run in it."""
    out, validate = tmp_path / "run", lambda *_: shutil.rmtree(tmp_path / "run") or {"a": 1.0}
    with pytest.raises(OptionError, match="no longer this run's: it was removed"):
        run(Scripted(), out, validate, epochs=2)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 300, 1000])
def test_a_disk_that_is_full_ends_the_run_with_a_sentence(tmp_path, room):
    """What was saved is as it was, no temporary file is left, and once there is room the run goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def validate(_: nn.Module, epoch: int) -> dict[str, float]:
        if epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        return {"a": 1.0 - epoch}

    def bounded() -> None:
        """In a process of its own, whose files alone are bounded, that of what it says among them."""
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), pytest.raises(SystemExit) as stopped:
            run_command(lambda: run(Scripted(), tmp_path / "run", validate, epochs=3, monitor="val_a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # what coverage writes at the end has room
        said.send(str(stopped.value.code))

    heard, said = multiprocessing.Pipe(duplex=False)
    assert forked.wait(forked.start(bounded)) == 0
    last = heard.recv()
    assert last.startswith("OSError: ")
    assert "cannot be written: File too large. What was saved before stays" in last
    assert read_state(tmp_path / "run" / "last.pt")["epoch"] == 1
    assert [f.name for f in (tmp_path / "run").glob(".*")] == []
    values = {"validate": lambda _, epoch: {"a": 1.0 - epoch}, "epochs": 3, "monitor": "val_a"}
    assert run(Scripted(), tmp_path / "run", resume=True, **values)["epoch"] == 3


# Two runs


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused(tmp_path, monkeypatch):
    """While the first is at work, and not when it is over; the first is not disturbed."""
    out, plain = tmp_path / "run", toy_run.Toy.forward

    def waiting(self, batch):
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return plain(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(toy_run.Toy, "forward", waiting)
        first = forked.start(toy_run.main, toy(out, *EPOCHS))
    while not (out / LOCK).exists():
        assert first.exitcode is None
        time.sleep(0.01)
    for flags in ([], ["--resume"]):
        with pytest.raises(OptionError, match=rf"at work in --out {out} \(process {first.pid} on "):
            toy_run.main(toy(out, *EPOCHS, *flags))
    (tmp_path / "go").touch()
    assert forked.wait(first) == 0
    assert not (out / LOCK).exists()
    toy_run.main(toy(out, *EPOCHS, "--resume"))


@pytest.mark.slow
def test_a_dead_run_holds_nothing(tmp_path):
    """After kill -9 the lock stays, and is taken over with what its holder had half written; so is an empty one."""
    heard, said = multiprocessing.Pipe(duplex=False)
    dead = forked.start(lambda: said.send(this_process()))
    assert forked.wait(dead) == 0
    name = heard.recv()
    (tmp_path / LOCK).write_text(f"{name} process {dead.pid} on here")
    (tmp_path / f".last.pt.{name}.01234567.tmp").write_text("half")
    start(tmp_path)
    (tmp_path / LOCK).write_text("")
    os.utime(tmp_path / LOCK, (1, 1))
    os.utime(tmp_path / "run.log", (1, 1))
    os.utime(tmp_path / "last.pt", (1, 1))
    start(tmp_path, resume=True)
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".") or f.name == LOCK] == []


def test_a_run_of_another_machine_is_at_work_while_it_writes(tmp_path):
    """Nobody can look its process up: an hour without a line says that it is over."""
    (tmp_path / LOCK).write_text("0123456789ab-1-1 process 1 on elsewhere")
    with pytest.raises(OptionError, match=rf"process 1 on elsewhere.*remove {tmp_path / LOCK}"):
        start(tmp_path)
    os.utime(tmp_path / LOCK, (1, 1))
    (tmp_path / "run.log").write_text("a line of now\n")
    with pytest.raises(OptionError, match="process 1 on elsewhere"):
        start(tmp_path)
    os.utime(tmp_path / "run.log", (1, 1))
    start(tmp_path)


@pytest.mark.slow
def test_of_many_that_take_over_a_dead_run_one_is_left(tmp_path):
    """They begin at once, on the same lock."""
    (tmp_path / LOCK).write_text("0123456789ab-1-1 process 1 on elsewhere")
    os.utime(tmp_path / LOCK, (1, 1))

    gate, ends = os.pipe()

    def take_over() -> None:
        os.close(ends)
        (tmp_path / f"ready{os.getpid()}").touch()
        os.read(gate, 1)  # until nobody holds the other end
        try:
            with holding(tmp_path):
                while not (tmp_path / "stop").exists():
                    time.sleep(0.01)
        except OptionError:
            sys.exit(3)

    many = [forked.start(take_over) for _ in range(6)]
    while len(list(tmp_path.glob("ready*"))) < len(many):
        time.sleep(0.01)
    os.close(ends)
    while sum(process.exitcode is None for process in many) > 1:
        time.sleep(0.01)
    (tmp_path / "stop").touch()
    assert sorted(map(forked.wait, many)) == [0, 3, 3, 3, 3, 3]
    os.close(gate)
