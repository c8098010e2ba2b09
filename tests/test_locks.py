"""One process at a time, and never a lock that nobody holds."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from zoo import locks
from zoo.errors import ZooError
from zoo.locks import held


def fork(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


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


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    """An empty one would keep everybody out."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"), held(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []
