"""Files that are whole or absent: whoever else writes them, and whenever the writer is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from zoo.files import remove_leftovers, replacing, write_atomically
from zoo.messages import printable


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    """The file is as it was, and no temporary name stays."""
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, lambda p: p.write_text("old"))

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_file_have_two_temporary_names(tmp_path):
    """With one name a reader would find a mix of both, and the first to finish would take the other's half away."""
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A rename that is older than the bytes leaves an empty file after a power cut."""
    happened = []
    monkeypatch.setattr(os, "fsync", lambda handle: happened.append(os.readlink(f"/proc/self/fd/{handle}")))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("renamed"), rename(a, b)))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert happened == [str(temporary), "renamed", str(tmp_path)]


def test_what_a_killed_writer_left_goes_and_what_a_live_one_writes_stays(tmp_path):
    """Told by the process in the name, not by age."""

    def child():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "other") as live:
        live.touch()
        (tmp_path / ".notes.tmp").touch()
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([live.name, ".notes.tmp"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer.weight", "layer.weight"),
        ("Schädel 头", "Schädel 头"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\n  models    forged", "a\\n  models    forged"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_text_from_outside_cannot_steer_a_terminal(text, shown):
    """Escapes, line ends, marks of direction and surrogates are shown, the rest is as it was."""
    assert printable(text) == shown
