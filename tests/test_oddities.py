"""Warnings of single images: said once, and counted."""

import logging
import os
import subprocess
import sys
import time

import pytest

from zoo.oddities import each_once, help_count, present_folder, warn_of
from zoo.progress import warnings_in

log = logging.getLogger("zoo")

WITH_PROC = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux says when a process began")
"""By which the processes of one torchrun agree on a folder; elsewhere each says its own warnings."""


def texts(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_warning_is_said_for_its_first_image_and_counted(caplog):
    """A thousand lines of one text hide the one line of another; an image that is read twice is one."""
    with each_once():
        for name, low in (("a.png", 0.1), ("b.png", 0.25), ("b.png", 0.25), ("c.png", 1e-07)):
            warn_of(name, f"{name} is faint: it spans {low} to 0.3")
        warn_of("c.png", "c.png is constant")
        log.warning("no image at all")
        log.warning("no image at all")
    assert texts(caplog) == [
        "a.png is faint: it spans 0.1 to 0.3",
        "c.png is constant",
        *["no image at all"] * 2,
        "3 images have this warning (--debug names each), the first is a.png: is faint: it spans 0.1 to 0.3",
    ]


def test_outside_all_are_said_and_inside_too_where_debugging(caplog):
    """A program that reads one image after the other must hear of each."""
    for name in ("a.png", "b.png"):
        warn_of(name, f"{name} is faint")
    caplog.set_level(logging.DEBUG, "zoo")
    with each_once():
        for name in ("a.png", "b.png"):
            warn_of(name, f"{name} is faint")
    assert texts(caplog)[:4] == ["a.png is faint", "b.png is faint"] * 2


def test_blocks_are_nested_and_end_with_an_error(caplog):
    """The count is said once, by the outer one, and a run that fails says what was odd."""

    def fail():
        with each_once(), each_once():
            for name in ("a.png", "b.png"):
                warn_of(name, f"{name} is faint")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [text.split(" ", 1)[0] for text in texts(caplog)] == ["a.png", "2"]
    assert log.filters == []


def test_where_nothing_can_be_counted_all_are_said(caplog, monkeypatch):
    """A full disk for temporary files is no reason to end a command, nor to be silent."""

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.oddities.TemporaryDirectory", full)
    with each_once():
        for name in ("a.png", "b.png"):
            warn_of(name, f"{name} is faint")
    assert texts(caplog) == ["a.png is faint", "b.png is faint"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that read images are forked")
def test_processes_that_read_images_count_together(caplog):
    """Each would say it once, and the count would lack theirs."""
    with each_once():
        for name in ("a.png", "b.png"):
            if not (child := os.fork()):
                warn_of(name, f"{name} is faint")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        warn_of("c.png", "c.png is faint")
    (said,) = texts(caplog)
    assert said == "3 images have this warning (--debug names each), the first is a.png: is faint"


RANK = """
import logging, os, sys, time
from pathlib import Path
from zoo.oddities import each_once, warn_of

logging.basicConfig(format="%(message)s", level=logging.WARNING)
rank, log = int(os.environ["LOCAL_RANK"]), logging.getLogger("zoo")
for block in range(2):
    with each_once():
        if rank:  # the others are ahead: what of an image they have in common with the first one is not theirs to say
            log.warning("images of one patient can be in both parts")
            log.warning("process %d has no room", rank)
            warn_of(f"{rank}.png", f"{rank}.png is faint")
            warn_of(f"{rank}.png", f"{rank}.png is blue")
            Path(sys.argv[1], f"{block}-{rank}").touch()
        else:
            while len(list(Path(sys.argv[1]).glob(f"{block}-*"))) < 2:
                time.sleep(0.01)
            log.warning("images of one patient can be in both parts")
            warn_of("0.png", "0.png is faint")
    if rank == 2:
        time.sleep(0.2)
"""


@pytest.mark.slow
@WITH_PROC
def test_processes_of_one_torchrun_say_a_warning_once(tmp_path):
    """Four GPUs would say all of it four times; and the count would be of one's share of the images."""
    (tmp_path / "run.py").write_text(RANK)
    (tmp_path / "temporary").mkdir()
    common = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "TORCHELASTIC_RUN_ID": "none"}
    common |= {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i)}, stderr=subprocess.PIPE)
        for i in range(3)
    ]
    said = [rank.communicate()[1].decode().splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], said
    assert said[0][0] == "0.png is faint"
    lines = sorted(line for own in said for line in own)
    counts = [line for line in lines if line.startswith(("2 images", "3 images"))]
    assert len(counts) == 4
    assert counts[0].startswith("2 images have this warning")
    assert counts[0].endswith(".png: is blue")
    assert counts[2].endswith("the first is 0.png: is faint")
    others = ["0.png is faint", "images of one patient can be in both parts"]
    assert [line for line in lines if line not in counts] == sorted(
        [*others, "process 1 has no room", "process 2 has no room"] * 2
    )
    assert list((tmp_path / "temporary").iterdir()) == []


FAILING = """
import logging, os, signal, sys, time
from pathlib import Path
from zoo.oddities import each_once, warn_of
from zoo.progress import warnings_in

logging.basicConfig(format="%(message)s", level=logging.WARNING)
rank, log, folder = int(os.environ["LOCAL_RANK"]), logging.getLogger("zoo"), Path(sys.argv[1])
with each_once(), warnings_in(folder / f"{rank}.log"):
    if rank:
        warn_of("1.png", "1.png is faint")
        log.error("the disk is full")
        log.warning("there is little room")
        while sys.argv[2] == "dead" and not (folder / "killed").exists():
            time.sleep(0.01)
        raise ZeroDivisionError
    time.sleep(60)
"""


@pytest.mark.slow
@WITH_PROC
@pytest.mark.parametrize("first", ["dead", "alive"])
def test_what_a_failing_process_has_to_say_is_not_lost_with_the_first_one(tmp_path, first):
    """All are killed where one fails: nobody is left to tell what that one held back, its error among it."""
    (tmp_path / "run.py").write_text(FAILING)
    (temporary := tmp_path / "temporary").mkdir()
    (temporary / "zoo-999999999-7-0-1").mkdir()
    common = {**os.environ, "TMPDIR": str(temporary), "TORCHELASTIC_RUN_ID": "none"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), first]
    one, other = (
        subprocess.Popen(command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i)}, stderr=subprocess.PIPE)
        for i in range(2)
    )
    while len(b"".join(file.read_bytes() for file in temporary.glob("*/present")).splitlines()) < 2:
        assert one.poll() is None
        time.sleep(0.01)
    if first == "dead":
        one.kill()
        one.wait()
        (tmp_path / "killed").touch()
    said = other.communicate()[1].decode().splitlines()
    one.kill()
    one.communicate()
    told = said[: said.index("Traceback (most recent call last):")]
    assert told == ["the disk is full", "there is little room", "1.png: is faint"]
    kept = [line.split(" ", 2)[2] for line in (tmp_path / "1.log").read_text().splitlines()]
    assert kept == ["1.png is faint", "the disk is full", "there is little room"]
    stays = [folder.name for folder in temporary.iterdir()]
    assert "zoo-999999999-7-0-1" not in stays, "what a run left that was killed stays behind for ever"
    assert first == "alive" or stays == []


def test_a_log_has_the_counts_though_it_ends_before_the_block(tmp_path, caplog):
    """The log of a cohort said of the first image alone that it is faint, and nothing of the other thousands."""
    with each_once():
        with warnings_in(tmp_path / "run.log"):
            for name in ("a.png", "b.png"):
                warn_of(name, f"{name} is faint")
        log.warning("of something else")
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert lines == [text for text in texts(caplog) if text != "of something else"]
    assert len(lines) == 2
    assert log.handlers == [], "a handler is left on the log"


def test_a_removed_log_does_not_come_back(tmp_path, caplog):
    """A refused probe removes its folder: the counts at the end would fail, or make the file again."""
    with each_once(), warnings_in(tmp_path / "run.log"):
        for name in ("a.png", "b.png"):
            warn_of(name, f"{name} is faint")
        (tmp_path / "run.log").unlink()
    assert len(caplog.records) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_silent_process_says_all_at_once_where_debugging(caplog, monkeypatch):
    """And then not again at the end."""
    caplog.set_level(logging.DEBUG, "zoo")
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("zoo.oddities.processes_of_torchrun", lambda: 1)  # the last one, which tells
    with each_once():
        warn_of("a.png", "a.png is faint")
        log.warning("there is little room")
    assert texts(caplog) == ["a.png is faint", "there is little room"]


def test_a_process_of_a_cluster_counts_with_the_one_that_began(caplog):
    """Each actor would say it for its own first image; on another machine, without the folder, it must."""
    with each_once():
        folder = present_folder()
        warn_of("a.png", "a.png is faint")
        others = log.filters[:]
        log.filters.clear()  # another process, as it were
        help_count(folder)
        warn_of("b.png", "b.png is faint")
        for _ in range(2):
            log.warning("a process that reads images died")
        log.filters[:] = others
    help_count("/nowhere")
    assert present_folder() == ""
    assert texts(caplog) == [
        "a.png is faint",
        "a process that reads images died",
        "2 images have this warning (--debug names each), the first is a.png: is faint",
    ]
