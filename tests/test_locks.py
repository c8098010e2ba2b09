"""One process at a time, and never a lock that nobody holds."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from zoo import locks
from zoo.errors import OptionError, ZooError
from zoo.locks import held
from zoo.training.lock import LOCK, holding


def fork(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path):
    """Eight that each read a number, wait, and write the next one: none is lost."""
    lock, number = tmp_path / "lock", tmp_path / "number"
    number.write_text("0")

    def count():
        for _ in range(5):
            with held(lock):
                read = int(number.read_text())
                time.sleep(0.001)
                number.write_text(str(read + 1))

    processes = [fork(count) for _ in range(8)]
    for process in processes:
        process.join(120)
    assert number.read_text() == "40"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


@pytest.mark.slow
def test_a_killed_holder_holds_nothing(tmp_path):
    """Several find its lock at once, and still one at a time comes in."""
    lock, inside = tmp_path / "lock", tmp_path / "inside"

    def die():
        with held(lock):
            os.kill(os.getpid(), signal.SIGKILL)

    def enter():
        with held(lock):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another is inside
            time.sleep(0.005)
            inside.unlink()

    for _ in range(5):
        fork(die).join(60)
        assert lock.exists()
        processes = [fork(enter) for _ in range(6)]
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", ["held", "holding"])
def test_a_process_killed_at_a_burial_blocks_nobody(tmp_path, monkeypatch, kind, times):
    """After kill -9 between its claim on a dead holder's lock and the removal; and again at that of its claim."""
    monkeypatch.setattr(locks, "PATIENCE", 5.0)
    out = tmp_path / "out"
    out.mkdir()

    def enter():
        return held(out / LOCK) if kind == "held" else holding(out)

    def die_inside():
        with enter():
            os.kill(os.getpid(), signal.SIGKILL)

    def die_at_a_burial():
        Path.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        with enter():
            pass

    for die in (die_inside, *[die_at_a_burial] * times):
        process = fork(die)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    assert len(list(out.iterdir())) == 1 + times
    with enter():
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert list(out.iterdir()) == []


def test_a_late_burier_leaves_the_lock_of_a_third(tmp_path):
    """It saw a dead holder's lock, and comes when another has buried that and a third has made its own."""
    lock = tmp_path / "lock"
    with held(lock):
        locks._bury(lock, "0123456789ab-1-1 process 1 on elsewhere")
        assert locks.is_ours(lock)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_over_is_not_removed(tmp_path):
    """By a holder that was thought dead, as after an hour's sleep: it is another's now."""
    lock = tmp_path / "lock"
    with held(lock):
        lock.write_text("0123456789ab-1-1 process 1 on elsewhere")
    assert lock.exists()


def test_a_live_holder_is_waited_for_and_then_named(tmp_path, monkeypatch):
    """Not for ever: the error says which file to remove if nobody is there."""
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    lock = tmp_path / "lock"
    with held(lock), pytest.raises(ZooError, match=rf"{lock} was there for .*remove that file"), held(lock):
        pass
    assert not lock.exists()


@pytest.mark.parametrize("content", ["", "nonsense", "0" * 200])
def test_what_is_no_name_of_a_process_is_waited_for_a_while(tmp_path, monkeypatch, content):
    """It may be the lock of one that has just been made; once it is old, it is nobody's."""
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    lock = tmp_path / "lock"
    lock.write_text(content)
    os.utime(lock, (time.time() + 60,) * 2)  # made just now, until long after the wait
    with pytest.raises(ZooError, match="was there for"), held(lock):
        pass
    os.utime(lock, (0, 0))
    with held(lock):
        pass
    assert not lock.exists()


def test_the_name_of_a_holder_that_has_just_begun_is_waited_for(tmp_path):
    """Its lock is empty for a moment; the refusal says who it is."""
    lock = tmp_path / LOCK

    def write_late():
        lock.touch()
        time.sleep(0.3)
        lock.write_text("0123456789ab-1-1 process 1 on elsewhere")

    process = fork(write_late)
    while not lock.exists():
        time.sleep(0.01)
    with pytest.raises(OptionError, match=r"at work in .* \(process 1 on elsewhere\)"), holding(tmp_path):
        pass
    process.join(60)


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    """An empty one would keep everybody out."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"), held(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []
