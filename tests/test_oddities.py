"""Warnings of single images: said once, and counted."""

import logging
import os

import pytest

from zoo.oddities import each_once, warn_of

log = logging.getLogger("zoo")


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
