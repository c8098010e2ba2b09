"""Fetching when things go wrong: servers that misbehave, processes that die, disks that are full."""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import (
    FETCH,
    NAME,
    Server,
    chunked,
    leftovers,
    let_go,
    page,
    prepare,
    remote_file,
    sha256,
    some_bytes,
    start_fetch,
    status,
    unmarked,
    waiting,
    whole,
)

import zoo.fetching.client
import zoo.fetching.partial
import zoo.fetching.transfer
from zoo.errors import DownloadError, IntegrityError, OptionError
from zoo.fetching.cache import file_path
from zoo.fetching.client import CHUNK, read_chunks
from zoo.fetching.download import fetch
from zoo.files import is_alive, this_machine, this_process

DATA = some_bytes()
OTHER = some_bytes(seed=1)
HALF = len(DATA) // 2


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return prepare(monkeypatch, tmp_path)


def files_in(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.is_file())


def leave_partial(file, content: bytes, writer: str = "free") -> Path:
    """A partial such as an earlier process leaves."""
    partial = file_path(file).with_name(f"{file_path(file).name}.{writer}.01234567..part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    return partial


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_connection_cut_anywhere_is_gone_on_from(home, seed):
    """Cut at a random byte, the download asks for exactly the rest and has the right digest."""
    cut = random.Random(seed).randrange(1, len(DATA))
    with Server({"/w": [whole(DATA, until=cut), whole(DATA)]}) as server:
        fetched = fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert [r.start for r in server.requests] == [0, cut]
    assert fetched.path.read_bytes() == DATA
    assert leftovers(home) == []


def test_attempts_are_counted_anew_when_bytes_arrive():
    """Eight cuts in a row are more than the attempts without progress, and yet the file arrives."""
    cuts = [i * len(DATA) // 9 for i in range(1, 9)]
    with Server({"/w": [*(whole(DATA, until=cut) for cut in cuts), whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert [r.start for r in server.requests] == [0, *cuts]


def test_a_server_that_ignores_range(home):
    """An answer of 200 to a request for the rest means byte 0."""
    answers = [whole(DATA, until=HALF), whole(DATA, ranges=False)]
    with Server({"/w": answers}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert [r.start for r in server.requests] == [0, HALF]


def test_a_server_that_ignores_range_and_always_cuts_is_left_in_the_end():
    """Bytes arrive at each attempt, but never more: the next source is tried after a bounded number of them."""
    with Server({"/bad": whole(DATA, ranges=False, until=HALF), "/good": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/bad", f"{server.root}/good")
        assert fetch(file, request=NAME).source == f"{server.root}/good"
        assert 5 <= len(server.requests) <= 15


@pytest.mark.parametrize("headers", [{}, {"Content_Range": "bytes 0-9/10"}], ids=["absent", "another"])
def test_a_rest_that_begins_elsewhere_is_not_appended(headers):
    """A 206 whose range is not the one that was asked for is thrown away, and the file is fetched from byte 0."""

    def odd(handler) -> None:
        handler.begin(206, Content_Length=10, **headers)
        handler.wfile.write(b"x" * 10)

    with Server({"/w": [whole(DATA, until=HALF), odd, whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert [r.start for r in server.requests] == [0, HALF, 0]


def test_503_twice_then_good():
    """A server that is down for a moment costs two attempts."""
    with Server({"/w": [status(503), status(503), whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert len(server.requests) == 3


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_five_attempts_then_the_next_source(code):
    """What may pass is tried five times; then comes the next source."""
    with Server({"/down": status(code), "/good": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/down", f"{server.root}/good")
        assert fetch(file, request=NAME).source == f"{server.root}/good"
        assert [r.path for r in server.requests] == ["/down"] * 5 + ["/good"]


def test_the_backoff_doubles(monkeypatch):
    """The pauses begin at ZOO_RETRY_WAIT and double; nonsense there is an error that names it."""
    pauses = []
    monkeypatch.setattr(zoo.fetching.transfer.time, "sleep", pauses.append)
    monkeypatch.setenv("ZOO_RETRY_WAIT", "3")
    with Server({"/w": status(503)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        with pytest.raises(DownloadError, match="HTTP 503 Service Unavailable"):
            fetch(file, request=NAME)
        assert pauses == [3, 6, 12, 24]
        monkeypatch.setenv("ZOO_RETRY_WAIT", "soon")
        with pytest.raises(OptionError, match="ZOO_RETRY_WAIT"):
            fetch(file, request=NAME)


@pytest.mark.parametrize(("header", "low", "high"), [("7", 7, 7), ("60", 60, 60), ("x", 0, 1), ("\xb2", 0, 1)])
def test_retry_after_is_honoured_up_to_a_minute(monkeypatch, header, low, high):
    """429 with Retry-After sets the pause; what is no number of seconds sets none."""
    pauses = []
    monkeypatch.setattr(zoo.fetching.transfer.time, "sleep", pauses.append)
    with Server({"/w": [status(429, Retry_After=header), whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
    (pause,) = pauses
    assert low <= pause <= high


@pytest.mark.parametrize("header", ["61", "86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_for_more_than_a_minute_is_left_at_once(monkeypatch, header):
    """Nobody sits before a terminal for a day: the next source is tried at once, the error says how long."""
    pauses = []
    monkeypatch.setattr(zoo.fetching.transfer.time, "sleep", pauses.append)
    with Server({"/busy": status(429, Retry_After=header), "/good": whole(DATA)}) as server:
        busy, good = f"{server.root}/busy", f"{server.root}/good"
        assert fetch(remote_file(DATA, busy, good), request=NAME).source == good
        with pytest.raises(DownloadError, match=r"asks to wait for [\d,]+ seconds"):
            fetch(remote_file(OTHER, busy), request=NAME)
        assert [r.path for r in server.requests] == ["/busy", "/good", "/busy"]
    assert pauses == []


def dripping(data: bytes, times: int, pause: float):
    """Promise the whole file and send one byte at a time."""

    def answer(handler) -> None:
        handler.begin(200, Content_Length=len(data))
        for i in range(times):
            handler.wfile.write(data[i : i + 1])
            time.sleep(pause)

    return answer


def test_a_server_that_drips_is_left_for_the_next_source(home, monkeypatch):
    """Each byte comes in time, so that no time-out sees it, and the file would take years; what came is not lost."""
    monkeypatch.setattr(zoo.fetching.client, "SLOW_AFTER", 0.3)
    monkeypatch.setenv("ZOO_LEAST_SPEED", "500")
    with Server({"/drips": dripping(DATA, 1000, 0.01), "/good": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/drips", f"{server.root}/good")
        assert fetch(file, request=NAME).source == f"{server.root}/good"
        assert 0 < server.requests[1].start < 1000
        with pytest.raises(DownloadError, match=r"only \d+ bytes a second come, fewer than 500"):
            fetch(remote_file(OTHER, f"{server.root}/drips"), request=NAME)


def test_a_slow_consumer_is_not_a_slow_server(monkeypatch):
    """Time that passes while bytes are hashed and written does not count."""
    monkeypatch.setattr(zoo.fetching.client, "SLOW_AFTER", 0.2)
    monkeypatch.setenv("ZOO_LEAST_SPEED", "1e9")
    part = zoo.fetching.partial.Partial
    write = part.write
    monkeypatch.setattr(part, "write", lambda self, chunk: (time.sleep(0.1), write(self, chunk)))
    with Server({"/w": whole(DATA)}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA


def test_what_is_no_speed_is_said(monkeypatch):
    """The variable is named."""
    monkeypatch.setenv("ZOO_LEAST_SPEED", "fast")
    with Server({"/w": whole(DATA)}) as server, pytest.raises(OptionError, match="ZOO_LEAST_SPEED='fast'"):
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)


@pytest.mark.parametrize("promised", [True, False])
def test_a_file_of_unknown_size_has_a_bound_too(home, monkeypatch, promised):
    """A server that never ends its answer, or promises terabytes, does not fill the disk."""
    monkeypatch.setattr(zoo.fetching.transfer, "LARGEST", 1 << 18)
    body = whole(DATA) if promised else chunked([DATA[: 1 << 16]] * 100)
    with Server({"/w": body}) as server, pytest.raises(DownloadError, match=r"262,144"):
        fetch(remote_file(DATA, f"{server.root}/w", known=False), request=NAME)
    assert files_in(home) == []


def test_a_server_cannot_steer_the_terminal():
    """What a status line says is shown, not obeyed."""

    def odd(handler) -> None:
        handler.wfile.write(b"HTTP/1.1 403 \x1b[2Jforbidden\r\nContent-Length: 0\r\n\r\n")

    with Server({"/w": odd}) as server, pytest.raises(DownloadError) as error:
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
    assert "\x1b" not in str(error.value)
    assert r"403 \x1b[2Jforbidden" in str(error.value)


def test_a_server_that_falls_silent(monkeypatch):
    """A connection that is open and brings nothing is given up and gone on from."""
    monkeypatch.setattr(zoo.fetching.client, "TIMEOUT", (5.0, 0.3))
    arrived, never = threading.Event(), threading.Event()
    with Server({"/w": [waiting(DATA, 1 << 17, arrived, never), whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert server.requests[1].start == 1 << 17
        never.set()


def test_nobody_listens():
    """A refused connection is tried five times; then comes the next source, and without one the message says why."""
    with Server({}) as closed:
        pass
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{closed.root}/w", f"{server.root}/w")
        assert fetch(file, request=NAME).source == f"{server.root}/w"
    with pytest.raises(DownloadError, match=r"no connection.*\(given up after 5 attempts\)"):
        fetch(remote_file(OTHER, f"{closed.root}/w"), request=NAME)


def test_404_then_the_second_source():
    """What is not there is not asked for again; the next source is."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/gone", f"{server.root}/w")
        assert fetch(file, request=NAME).source == f"{server.root}/w"
        assert [r.path for r in server.requests] == ["/gone", "/w"]


def test_when_no_source_is_left_each_is_named():
    """The message has the request, the file, what each source said, and what to do."""
    with Server({"/page": page("<!DOCTYPE html><html></html>")}) as server:
        file = remote_file(DATA, f"{server.root}/gone", f"{server.root}/page")
        with pytest.raises(DownloadError) as caught:
            fetch(file, request=NAME)
    message = str(caught.value)
    for word in (NAME, f"{len(DATA):,} bytes", sha256(DATA), "/gone: HTTP 404 Not Found", "/page: an HTML page"):
        assert word in message
    assert str(file_path(file)) in message
    assert "ZOO_MIRROR" in message


def test_wrong_bytes(home):
    """Right length, wrong digest: IntegrityError with both digests, and nothing stays in the cache."""
    with Server({"/w": whole(OTHER)}) as server:
        with pytest.raises(IntegrityError) as caught:
            fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert len(server.requests) == 1
    for word in (NAME, sha256(DATA), sha256(OTHER), "which was not kept"):
        assert word in str(caught.value)
    assert files_in(home) == []


def test_wrong_bytes_then_the_second_source():
    """A wrong digest moves on to the next source."""
    with Server({"/bad": whole(OTHER), "/good": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/bad", f"{server.root}/good")
        assert fetch(file, request=NAME).source == f"{server.root}/good"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        page("<!DOCTYPE html><html><title>Sign in</title></html>"),
        page("\n<html><head><title>Sign in</title>", content_type="application/octet-stream"),
        page("<b>Sign in</b>", content_type="text/html"),
    ],
    ids=["html", "html under another type", "html by its type only"],
)
def test_a_page_instead_of_the_file(home, answer, known):
    """A page with status 200 is called a page, whatever its type says and whether or not the digest is known."""
    with Server({"/w": answer}) as server, pytest.raises(DownloadError, match=r"HTML page.*instead of the file"):
        fetch(remote_file(DATA, f"{server.root}/w", known=known), request=NAME)
    assert files_in(home) == []


def test_an_empty_body_of_unknown_digest(home):
    """Nothing at all is never pinned as the file."""
    with Server({"/w": whole(b"")}) as server, pytest.raises(DownloadError, match="empty"):
        fetch(remote_file(DATA, f"{server.root}/w", known=False), request=NAME)
    assert files_in(home) == []


@pytest.mark.parametrize("make", [whole, lambda data: chunked([data[:1000], data[1000:]])], ids=["promised", "chunked"])
@pytest.mark.parametrize(("body", "word"), [(DATA[:-5], "shorter"), (DATA + b"12345", "longer")])
def test_a_body_shorter_or_longer_than_on_record(home, make, body, word):
    """Another length than the manifest's is refused at once, however the server sends it, and nothing stays."""
    with Server({"/w": make(body), "/good": whole(DATA)}) as server:
        with pytest.raises(DownloadError, match=word):
            fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert len(server.requests) == 1
        assert files_in(home) == []
        fetch(remote_file(DATA, f"{server.root}/w", f"{server.root}/good"), request=NAME)


def test_a_body_without_end_is_left_early():
    """No more is read than the record allows; the server notices that nobody listens any more."""
    sent = 0

    def endless():
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield DATA[: 1 << 16]

    with (
        Server({"/w": chunked(endless())}) as server,
        pytest.raises(DownloadError, match="longer"),
    ):
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
    assert sent < 1 << 28


def test_a_body_without_marked_end_that_stops_early():
    """Where the end is not marked a short body is a lost connection: the rest is asked for."""
    with Server({"/w": [unmarked(DATA[:HALF]), whole(DATA)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert server.requests[1].start == HALF


def test_an_interrupted_download_is_gone_on_from_within_the_same_process(home):
    """What a failed fetch received is kept and used by the next, as when a notebook cell is run again."""
    with Server({"/w": [whole(DATA, until=HALF), *[status(503)] * 5, whole(DATA)]}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        with pytest.raises(DownloadError):
            fetch(file, request=NAME)
        (left,) = leftovers(home)
        assert left.stat().st_size == HALF
        fetch(file, request=NAME)
        assert server.requests[-1].start == HALF
    assert leftovers(home) == []


def test_a_known_digest_is_gone_on_from_across_sources():
    """The digest proves the whole in the end, so that bytes of one source may be followed by those of another."""
    with Server({"/a": [whole(DATA, until=HALF), status(404)], "/b": whole(DATA)}) as server:
        fetched = fetch(remote_file(DATA, f"{server.root}/a", f"{server.root}/b"), request=NAME)
        assert [(r.path, r.start) for r in server.requests] == [("/a", 0), ("/a", HALF), ("/b", HALF)]
    assert fetched.path.read_bytes() == DATA


@pytest.mark.parametrize("left", [OTHER[:HALF], OTHER, OTHER * 2], ids=["half", "whole", "too long"])
def test_a_wrong_beginning_is_tried_once_more_from_byte_0(home, left):
    """When the parts do not make the file, the source gets a second chance without them."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        leave_partial(file, left)
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        assert [bool(r.start) for r in server.requests] == [True, False]
    assert leftovers(home) == []


def test_a_changed_file_is_tried_once_more_from_byte_0_and_no_more(home):
    """A file that changed between the parts: from byte 0 once, then it is the wrong file, though cut again."""
    answers = [whole(DATA, until=HALF), whole(OTHER), whole(OTHER, until=HALF), whole(OTHER)]
    with Server({"/w": answers}) as server:
        with pytest.raises(IntegrityError, match=f"/w: sha256 is {sha256(OTHER)}"):
            fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert [r.start for r in server.requests] == [0, HALF, 0, HALF]
    assert files_in(home) == []


def test_a_partial_that_is_whole_needs_no_connection():
    """A process that was killed just before the last step left everything that is needed."""
    with Server({}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        leave_partial(file, DATA)
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        assert server.requests == []


def test_of_several_partials_the_longest_is_gone_on_from_and_none_stays(home):
    """A job whose processes were all killed leaves one partial each; they must not fill the disk."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        leave_partial(file, DATA[:1000], writer=f"{this_machine()}-{1 << 30}-1")
        leave_partial(file, DATA[:HALF])
        fetch(file, request=NAME)
        assert server.requests[0].start == HALF
    assert leftovers(home) == []


@pytest.mark.parametrize("answer", [page("<html></html>"), whole(OTHER * 2, ranges=False)], ids=["page", "longer"])
def test_a_useless_source_does_not_cost_what_was_received(answer):
    """A source that shows a page or a file of another length leaves the partial alone; the next goes on from it."""
    with Server({"/bad": answer, "/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/bad", f"{server.root}/w")
        leave_partial(file, DATA[:HALF])
        fetch(file, request=NAME)
        assert [r.start for r in server.requests] == [HALF, HALF]


def test_unknown_digest_goes_on_with_the_same_entity_tag():
    """Only If-Range with the tag of the first part makes the rest belong to it, also for a later fetch."""
    answers = [whole(DATA, until=HALF, ETag='"v1"'), *[status(503)] * 5, whole(DATA, ETag='"v1"')]
    with Server({"/w": answers}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=False)
        with pytest.raises(DownloadError):
            fetch(file, request=NAME)
        assert fetch(file, request=NAME).sha256 == sha256(DATA)
        assert [(r.start, r.headers.get("If-Range")) for r in server.requests] == [(0, None)] + [(HALF, '"v1"')] * 6


@pytest.mark.parametrize("careless", [False, True], ids=["200", "206 with another tag"])
def test_unknown_digest_and_a_file_that_changed(careless):
    """When the tag is another the file is fetched from byte 0, even if the server sends the rest all the same."""

    def rest(handler) -> None:
        handler.begin(206, Content_Range=f"bytes {HALF}-{len(DATA) - 1}/{len(DATA)}", ETag='"v2"', Content_Length=HALF)
        handler.wfile.write(OTHER[HALF:])

    good = whole(OTHER, ETag='"v2"')
    answers = [whole(DATA, until=HALF, ETag='"v1"'), *([rest] if careless else []), good]
    with Server({"/w": answers}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w", known=False), request=NAME).path.read_bytes() == OTHER


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"v1"'}, {"ETag": f'"{"v" * 200}"'}], ids=["none", "weak", "too long"])
def test_unknown_digest_without_a_strong_tag_begins_anew(home, tag):
    """Nothing tells that the rest belongs to the beginning, so there is no Range and nothing is kept."""
    with Server({"/w": [whole(DATA, until=HALF, **tag), whole(DATA, **tag), status(404)]}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w", known=False), request=NAME).sha256 == sha256(DATA)
        assert [r.start for r in server.requests] == [0, 0]


def test_unknown_digest_is_never_put_together_from_two_sources():
    """The same tag on another source means nothing; each goes on only from its own bytes."""
    first = [whole(DATA, until=HALF, ETag='"v1"'), status(404), whole(DATA, ETag='"v1"')]
    second = [whole(OTHER, until=HALF + 1, ETag='"v1"'), status(404)]
    with Server({"/a": first, "/b": second}) as server:
        file = remote_file(DATA, f"{server.root}/a", f"{server.root}/b", known=False)
        with pytest.raises(DownloadError):
            fetch(file, request=NAME)
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        starts = [(r.path, r.start) for r in server.requests]
    assert starts == [("/a", 0), ("/a", HALF), ("/b", 0), ("/b", HALF + 1), ("/a", HALF)]


@pytest.mark.parametrize(("days", "kept"), [(6, True), (8, False)])
def test_partials_older_than_a_week_are_deleted(home, days, kept):
    """Any fetch that downloads clears old partials of any file away, and no younger ones of other files."""
    partial = leave_partial(remote_file(OTHER), b"half")
    then = time.time() - days * 24 * 3600
    os.utime(partial, (then, then))
    with Server({"/w": whole(DATA)}) as server:
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
    assert partial.exists() is kept


@pytest.mark.parametrize(("minutes", "claimed"), [(30, False), (90, True)])
def test_a_writer_on_another_machine_is_dead_after_an_hour_of_silence(home, minutes, claimed):
    """Nobody can ask another machine for its processes, so that the time of the last write decides."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        partial = leave_partial(file, DATA[:HALF], writer="0123456789ab-1-1")
        then = time.time() - minutes * 60
        os.utime(partial, (then, then))
        fetch(file, request=NAME)
        assert server.requests[0].start == (HALF if claimed else 0)
    assert partial.exists() is not claimed


def test_who_is_alive():
    """This process is; a child is not once it has ended, waited for or not; its number alone means nothing."""
    assert is_alive(this_process(), 0.0)
    machine, pid, started = this_process().split("-")
    assert not is_alive(f"{machine}-{pid}-{int(started) + 1}", time.time())
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table of processes
        assert not is_alive(f"{machine}-{child.pid}-{started}", time.time())
    assert not is_alive(f"{machine}-{child.pid}-{started}", time.time())


def wait_for_partial(home: Path, size: int) -> Path:
    """The partial that another process writes, once it holds this many bytes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in leftovers(home):
            if path.stat().st_size >= size:
                return path
        time.sleep(0.01)
    raise AssertionError(f"no partial of {size} bytes: {leftovers(home)}")


@pytest.mark.slow
def test_the_partial_of_a_running_process_is_left_alone(home):
    """While its writer lives nobody goes on from a partial: both processes end with the right file."""
    arrived, go_on = threading.Event(), threading.Event()
    with Server({"/w": [waiting(DATA, 1 << 17, arrived, go_on), whole(DATA)]}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        process = start_fetch(file)
        let_go(process)
        assert arrived.wait(30)
        wait_for_partial(home, 1 << 17)
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        assert [r.start for r in server.requests] == [0, 0]
        go_on.set()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (0, sha256(DATA)), err
    assert file_path(file).read_bytes() == DATA
    assert leftovers(home) == []


@pytest.mark.parametrize("pieces", [(1, 70_000, 131_072), (65_535, 65_537, 131_072), (40_000, 131_071, 131_072)])
def test_a_body_is_yielded_in_whole_chunks_however_it_comes(pieces):
    """What came in pieces of another size waited for more: a partial had less than was on the machine."""
    given = [DATA[a:b] for a, b in pairwise((0, *pieces))]
    raw = SimpleNamespace(read1=lambda *_, **__: given.pop(0) if given else b"")
    chunks = list(read_chunks(SimpleNamespace(raw=raw)))
    assert [len(chunk) for chunk in chunks] == [CHUNK, CHUNK]
    assert b"".join(chunks) == DATA[: 2 * CHUNK]


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_kill_9_during_the_download_and_again(home, known):
    """Killed twice, the final name never appears; the third process goes on from what is there, and it is right."""
    events = [(threading.Event(), threading.Event()) for _ in range(2)]
    stalls = [waiting(DATA, n << 17, *pair, ETag='"v1"') for n, pair in enumerate(events, 1)]
    with Server({"/w": [*stalls, whole(DATA, ETag='"v1"')]}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=known)
        for (arrived, _), least in zip(events, (1 << 16, (1 << 17) + 1), strict=True):
            process = start_fetch(file)
            let_go(process)
            assert arrived.wait(30)
            wait_for_partial(home, least)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert not file_path(file).exists()
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        starts = [r.start for r in server.requests]
        for _, go_on in events:
            go_on.set()
    assert starts[0] == 0
    assert (1 << 16) <= starts[1] < starts[2]
    assert leftovers(home) == []


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_eight_processes_at_once(home, known):
    """Eight processes that all have begun before any may end: each ends well, with one right file and nothing else."""
    everyone = threading.Barrier(8)

    def together(handler) -> None:
        everyone.wait(60)
        whole(DATA, ETag='"v1"')(handler)

    with Server({"/w": together}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=known)
        if known:
            leave_partial(file, DATA[:HALF])
        processes = [start_fetch(file) for _ in range(8)]
        for process in processes:
            let_go(process)
        results = [(*p.communicate(timeout=60), p.returncode) for p in processes]
        starts = sorted(r.start for r in server.requests)
    assert [(out.strip(), code) for out, _, code in results] == [(sha256(DATA), 0)] * 8, results
    assert starts == [0] * 7 + [HALF if known else 0], "what a dead process left is gone on from by one only"
    assert files_in(home) == sorted([file_path(file).name, f"{file_path(file).name}.json"])
    assert file_path(file).read_bytes() == DATA


def full_disk_error(error: BaseException | str, file) -> None:
    for word in (NAME, "the disk is full", f"{file.bytes:,} bytes", str(file_path(file).parent), "ZOO_HOME"):
        assert word in str(error)


def test_a_full_disk(home, monkeypatch):
    """The kernel refuses the bytes: a clear message, no temporary file, and no other source is tried."""

    def on_a_full_disk(path: Path, mode: str):
        file = builtins.open(path, mode)  # noqa: SIM115
        os.dup2(os.open("/dev/full", os.O_RDWR), file.fileno())
        return file

    monkeypatch.setattr(zoo.fetching.partial, "open", on_a_full_disk, raising=False)
    with Server({"/a": whole(DATA), "/b": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/a", f"{server.root}/b")
        with pytest.raises(DownloadError) as caught:
            fetch(file, request=NAME)
        assert [r.path for r in server.requests] == ["/a"]
    full_disk_error(caught.value, file)
    assert files_in(home) == []


def can_mount() -> bool:
    """Whether this user may mount a file system in a namespace of their own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting in a user namespace is not allowed here")


def run_in_mount(home: Path, mount: str, file, check: str) -> subprocess.CompletedProcess[str]:
    """Mount something over the cache for one process, fetch in it, and run `check` in the same place afterwards."""
    record = json.dumps([file.sources, file.bytes, file.sha256])
    script = f'mount {mount} && {{ "$1" -c "$2" "$3" < /dev/null; {check}; }}'
    command = ["unshare", "-rm", "sh", "-c", script, str(home), sys.executable, FETCH, record]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_mount
def test_a_full_file_system(home):
    """The same on a real file system of 64 kB: afterwards it is empty."""
    home.mkdir()
    with Server({"/a": whole(DATA), "/b": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/a", f"{server.root}/b")
        done = run_in_mount(home, '-t tmpfs -o size=64k none "$0"', file, 'find "$0" -type f')
        assert [r.path for r in server.requests] == ["/a"]
    assert done.stdout == "ready\n"
    full_disk_error(done.stderr, file)


@pytest.mark.slow
@needs_mount
def test_a_cache_on_a_read_only_file_system(home):
    """What is there is used, with a stamp and without; what is not there is refused with the reason."""
    with Server({"/w": whole(DATA), "/new": whole(OTHER)}) as server:
        file, new = remote_file(DATA, f"{server.root}/w"), remote_file(OTHER, f"{server.root}/new")
        fetch(file, request=NAME)
        read_only = '--bind -o ro "$0" "$0" && mount -o remount,bind,ro "$0"'
        assert run_in_mount(home, read_only, file, "true").stdout.split() == ["ready", sha256(DATA)]
        file_path(file).with_name(f"{sha256(DATA)}.json").unlink()
        assert run_in_mount(home, read_only, file, "true").stdout.split() == ["ready", sha256(DATA)]
        assert "cannot be written: Read-only file system" in run_in_mount(home, read_only, new, "true").stderr
    assert files_in(home) == [sha256(DATA)]
