"""Fetching when all goes well: the cache, its stamps, mirrors, offline, verification."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from servers import NAME, Server, leftovers, prepare, remote_file, sha256, some_bytes, status, whole

import zoo.fetching.sources
from zoo.errors import DownloadError, IntegrityError, OfflineError
from zoo.fetching.cache import converted_path, file_path, hash_file, proven_digest, read_stamp, stamp_path, write_stamp
from zoo.fetching.download import fetch, verify_file
from zoo.record import WeightsFile
from zoo.settings import cache_home, is_offline

DATA = some_bytes()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return prepare(monkeypatch, tmp_path)


def flip_a_bit(path: Path) -> None:
    """Change the content but neither size nor modification time, as a failing disk does."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_cache_lies_where_it_is_told_to(monkeypatch, tmp_path):
    """The argument, then ZOO_HOME, then the home folder; nothing is created by asking."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home(tmp_path / "a") == tmp_path / "a"
    assert cache_home() == tmp_path / "home"
    monkeypatch.delenv("ZOO_HOME")
    assert cache_home() == tmp_path / ".cache" / "medssl-zoo"
    assert list(tmp_path.iterdir()) == []


def test_file_names_hold_the_digest(home):
    """A file is named by its digest; by its first source's while its own is unknown."""
    known = remote_file(DATA, "https://example.org/a", "https://example.org/b")
    unknown = remote_file(DATA, "https://example.org/a", "https://example.org/b", known=False)
    assert file_path(known) == home / "files" / sha256(DATA)
    assert file_path(unknown) == home / "files" / f"source-{sha256(b'https://example.org/a')}"
    assert converted_path("abc", "net") == home / "converted" / "abc.net.safetensors"


def test_importing_is_free():
    """The modules of fetching load neither torch nor numpy nor requests."""
    code = "import sys, zoo.fetching; print([m for m in ('torch', 'numpy', 'requests') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_file_is_fetched_once(home):
    """The first fetch brings the bytes and stamps them; the second opens no connection."""
    with Server({"/w": whole(DATA, ETag='"v1"')}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        first = fetch(file, request=NAME)
        second = fetch(file, request=NAME)
        assert len(server.requests) == 1
    assert first == second
    assert (first.path, first.sha256, first.source) == (home / "files" / sha256(DATA), sha256(DATA), file.sources[0])
    assert first.path.read_bytes() == DATA
    stamp = json.loads(stamp_path(first.path).read_text())
    assert {k: stamp[k] for k in ("sha256", "size", "source", "etag")} == {
        "sha256": sha256(DATA),
        "size": len(DATA),
        "source": file.sources[0],
        "etag": '"v1"',
    }
    assert stamp["mtime_ns"] == first.path.stat().st_mtime_ns
    assert stamp["zoo"]
    assert sorted(p.name for p in (home / "files").iterdir()) == [sha256(DATA), f"{sha256(DATA)}.json"]


def test_cache_dir_comes_before_the_environment(tmp_path, home):
    """`cache_dir` receives the file, and ZOO_HOME stays untouched."""
    with Server({"/w": whole(DATA)}) as server:
        fetched = fetch(remote_file(DATA, f"{server.root}/w"), request=NAME, cache_dir=tmp_path / "other")
    assert fetched.path.is_relative_to(tmp_path / "other")
    assert not home.exists()


def test_packaged_files_are_read_in_place(monkeypatch, tmp_path, home):
    """`package:` copies nothing; the stamp lies in the cache, names the file, and notices when that changes."""
    monkeypatch.setattr(zoo.fetching.sources, "PACKAGED", tmp_path)
    (tmp_path / "small.safetensors").write_bytes(DATA)
    file = remote_file(DATA, "package:small.safetensors")
    fetched = fetch(file, request=NAME, offline=True)
    assert fetched.path == tmp_path / "small.safetensors"
    stamp = read_stamp(home / "files" / f"{sha256(DATA)}.json")
    assert stamp
    assert stamp.path == str(fetched.path)
    fetched.path.write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="reinstall the package"):
        fetch(file, request=NAME)
    fetched.path.unlink()
    with pytest.raises(DownloadError, match="missing from the installed package"):
        fetch(file, request=NAME)


def test_a_bad_packaged_file_gives_way_to_the_next_source(monkeypatch, tmp_path, home):
    """A package that was damaged does not stand in the way of a download."""
    monkeypatch.setattr(zoo.fetching.sources, "PACKAGED", tmp_path)
    (tmp_path / "w").write_bytes(b"damaged")
    with Server({"/w": whole(DATA)}) as server:
        fetched = fetch(remote_file(DATA, "package:w", f"{server.root}/w"), request=NAME)
    assert fetched.path == home / "files" / sha256(DATA)


def test_file_sources_are_relative_to_the_manifest(tmp_path, home):
    """`file:` is copied into the cache through the same checks, also offline."""
    (tmp_path / "in-house").mkdir()
    (tmp_path / "in-house" / "w.pth").write_bytes(DATA)
    file = remote_file(DATA, "file:in-house/w.pth", base=tmp_path)
    fetched = fetch(file, request=NAME, offline=True)
    assert fetched.path == home / "files" / sha256(DATA)
    assert fetched.path.read_bytes() == DATA
    absolute = remote_file(DATA, f"file://{tmp_path}/in-house/w.pth")
    assert fetch(absolute, request=NAME, cache_dir=tmp_path / "second").path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, DownloadError, "No such file"),
        (b"x" * len(DATA), IntegrityError, sha256(b"x" * len(DATA))),
        (DATA + b"x", DownloadError, "longer than on record"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", DownloadError, "Git LFS pointer"),
    ],
)
def test_a_bad_file_source(tmp_path, home, content, error, words):
    """A `file:` source that is missing or wrong is named with what is wrong, and nothing is kept."""
    if content is not None:
        (tmp_path / "w").write_bytes(content)
    with pytest.raises(error, match=words):
        fetch(remote_file(DATA, "file:w", base=tmp_path), request=NAME)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_mirror_by_address_comes_first(monkeypatch):
    """`<mirror>/<sha256>` is asked before the sources; a mirror without the file only costs a request."""
    with Server({f"/zoo/{sha256(DATA)}": whole(DATA), "/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        monkeypatch.setenv("ZOO_MIRROR", f"{server.root}/zoo/")
        assert fetch(file, request=NAME).source == f"{server.root}/zoo/{sha256(DATA)}"
        other = some_bytes(seed=1)
        server.answers["/other"] = [whole(other)]
        assert fetch(remote_file(other, f"{server.root}/other"), request=NAME).source == f"{server.root}/other"
        paths = [r.path for r in server.requests]
    assert paths == [f"/zoo/{sha256(DATA)}", f"/zoo/{sha256(other)}", "/other"]


def test_mirror_by_folder_works_offline(monkeypatch, tmp_path):
    """A folder mirror needs no connection; a wrong file in it is passed over."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("ZOO_MIRROR", str(mirror))
    (mirror / sha256(DATA)).write_bytes(b"x" * len(DATA))
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        with pytest.raises(OfflineError, match="mirror"):
            fetch(file, request=NAME, offline=True)
        assert fetch(file, request=NAME, cache_dir=tmp_path / "first").source == f"{server.root}/w"
    (mirror / sha256(DATA)).write_bytes(DATA)
    assert fetch(file, request=NAME, offline=True).path.read_bytes() == DATA


def test_no_mirror_while_the_digest_is_unknown(monkeypatch, tmp_path):
    """A mirror is asked by digest, so it cannot be asked without one."""
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path))
    with Server({"/w": whole(DATA)}) as server:
        assert fetch(remote_file(DATA, f"{server.root}/w", known=False), request=NAME).source == f"{server.root}/w"


@pytest.mark.parametrize(
    ("argument", "zoo_offline", "hub_offline", "expected"),
    [
        (None, "", "", False),
        (None, "1", "", True),
        (None, "", "true", True),
        (None, "0", "off", False),
        (False, "1", "1", False),
        (True, "", "", True),
    ],
)
def test_what_counts_as_offline(monkeypatch, argument, zoo_offline, hub_offline, expected):
    """The argument decides; without one, either variable."""
    monkeypatch.setenv("ZOO_OFFLINE", zoo_offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", hub_offline)
    assert is_offline(argument) is expected


OFFLINE = """
import sys
def forbid(event, _):
    if event.startswith("socket."):
        raise SystemExit(f"a socket: {event}")
sys.addaudithook(forbid)
from pathlib import Path
from zoo.fetching import fetch
from zoo.errors import OfflineError
from zoo.manifest import RemoteFile
sources = ("https://example.org/w.pth", "hf://owner/name@main/w.pth", "gdrive:abc", "http://127.0.0.1:9/w")
try:
    fetch(RemoteFile(sources, 1234, "ab" * 32, Path()), request="net.tag")
except OfflineError as error:
    print(error)
print("requests" in sys.modules)
"""


def test_offline_opens_no_socket(monkeypatch, home):
    """The interpreter reports every socket to an audit hook; there is none. The message has all that a person needs."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("ZOO_MIRROR", "https://mirror.example.org")
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    message, requests_imported = done.stdout.strip().rsplit("\n", 1)
    assert requests_imported == "False"
    for word in (
        "net.tag",
        "w.pth",
        "1,234 bytes",
        "ab" * 32,
        "https://example.org/w.pth",
        "hf://owner/name@main/w.pth",
    ):
        assert word in message
    assert str(home / "files" / ("ab" * 32)) in message
    assert "ZOO_MIRROR" in message


def test_a_file_put_by_hand_is_accepted_once_it_is_right(home):
    """What a person carries to the place that the message names is hashed, then used; a wrong one is not."""
    file = remote_file(DATA, "https://example.org/w")
    target = file_path(file)
    target.parent.mkdir(parents=True)
    target.write_bytes(DATA[:-1])
    with pytest.raises(OfflineError, match="damaged in the cache"):
        fetch(file, request=NAME, offline=True)
    target.write_bytes(DATA)
    assert fetch(file, request=NAME, offline=True).path == target
    assert read_stamp(stamp_path(target))


def weights(*sources: str) -> WeightsFile:
    """A record of weights of which no digest is published."""
    return WeightsFile(sources, None, None, tag="t", models=("m",))


@pytest.fixture
def checkpoint() -> bytes:
    """A file with the container that torch.save writes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("checkpoint/data.pkl", DATA)
    return content.getvalue()


def test_what_is_no_checkpoint_is_never_pinned(home, checkpoint):
    """A wrong file put by hand is not used, and the right one is afterwards; nothing has to be deleted."""
    file = weights("gdrive:abc")
    target = file_path(file)
    target.parent.mkdir(parents=True)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("notes.txt", "no weights")
    for wrong in (b"<!doctype html>", b"some text", checkpoint[:-30], other.getvalue(), b""):
        target.write_bytes(wrong)
        with pytest.raises(OfflineError, match=r"put the right file at .* The one there is not used: it "):
            fetch(file, request=NAME, offline=True)
        assert not stamp_path(target).exists()
    target.write_bytes(checkpoint)
    assert fetch(file, request=NAME, offline=True).sha256 == sha256(checkpoint)


def test_a_download_that_is_no_checkpoint_is_never_pinned(home, checkpoint):
    """The next source is asked."""
    with Server({"/a": whole(b'{"error": "moved"}'), "/b": whole(checkpoint)}) as server:
        file = weights(f"{server.root}/a", f"{server.root}/b")
        assert fetch(file, request=NAME).path.read_bytes() == checkpoint


def test_a_file_that_is_not_the_pinned_one_says_what_to_delete(home, checkpoint):
    """Whoever has the right file by now learns where the digest of the first one is kept, and why."""
    file = weights("gdrive:abc")
    target = file_path(file)
    target.parent.mkdir(parents=True)
    target.write_bytes(checkpoint)
    fetch(file, request=NAME, offline=True)
    target.write_bytes(checkpoint + b"another")
    reason = "no digest of this file is published, so that of the first one used is kept in "
    with pytest.raises(OfflineError, match=f"{reason}{re.escape(str(stamp_path(target)))}: remove it"):
        fetch(file, request=NAME, offline=True)
    stamp_path(target).unlink()
    target.write_bytes(checkpoint)
    assert fetch(file, request=NAME, offline=True).sha256 == sha256(checkpoint)


def test_a_file_and_its_name_are_on_the_disk_before_it_counts(home, tmp_path, monkeypatch):
    """A rename that a power cut undoes, or that is older than the bytes, would leave a stamp for what is not there."""
    (tmp_path / "w").write_bytes(DATA)
    file = remote_file(DATA, f"file:{tmp_path}/w")
    happened, rename = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: happened.append(Path(os.readlink(f"/proc/self/fd/{handle}"))))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("renamed"), rename(a, b)))
    target = fetch(file, request=NAME).path
    assert happened[0].name.startswith(f".{target.name}.")
    assert happened[1:3] == ["renamed", target.parent]


def test_the_ways_out_of_a_failed_download(home):
    """A link that a browser opens, the file by hand in three ways, and a whole cache."""
    with pytest.raises(OfflineError) as caught:
        fetch(weights("gdrive:abc"), request="model.tag", offline=True)
    for part in (
        "  https://drive.google.com/file/d/abc: not tried\n",
        "load_model('model.tag', checkpoint='FILE')",
        "`zoo import model.tag FILE`",
        f"copy the cache ($ZOO_HOME, here {home})",
        f"put the file by hand at {file_path(weights('gdrive:abc'))}",
    ):
        assert part in str(caught.value)


def test_a_failure_is_said_once(home, caplog):
    """By the error alone where no source is left, by a warning where another one gave the file."""
    missing = f"file:{home}/missing"
    with pytest.raises(DownloadError, match="No such file"):
        fetch(remote_file(DATA, missing), request=NAME)
    assert not caplog.records
    (home.parent / "w").write_bytes(DATA)
    fetch(remote_file(DATA, missing, f"file:{home.parent}/w"), request=NAME)
    assert ["No such file" in record.getMessage() for record in caplog.records] == [True]


def test_an_unknown_digest_is_pinned_by_the_first_download(home):
    """A later, different file is an error that says how to accept it; accepting it works."""
    other = some_bytes(seed=1)
    with Server({"/w": [whole(DATA), whole(other)]}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=False)
        target = fetch(file, request=NAME).path
        assert fetch(file, request=NAME, offline=True).sha256 == sha256(DATA)
        target.unlink()
        with pytest.raises(IntegrityError, match="to accept the new file remove") as caught:
            fetch(file, request=NAME)
        assert not target.exists()
        assert sha256(other) in str(caught.value)
        assert sha256(DATA) in str(caught.value)
        assert str(stamp_path(target)) in str(caught.value)
        stamp_path(target).unlink()
        assert fetch(file, request=NAME).sha256 == sha256(other)


def test_a_touched_file_is_hashed_not_fetched(home):
    """Another modification time with the same bytes costs a hash, and the stamp is written anew."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        target = fetch(file, request=NAME).path
        os.utime(target, ns=(0, 0))
        fetch(file, request=NAME)
        assert len(server.requests) == 1
    stamp = read_stamp(stamp_path(target))
    assert stamp
    assert (stamp.mtime_ns, stamp.source) == (0, file.sources[0])


@pytest.mark.parametrize("known", [True, False])
def test_a_truncated_file_is_fetched_again(home, known):
    """A cached file of another length is noticed at the next fetch without any verification, and replaced."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=known)
        target = fetch(file, request=NAME).path
        os.truncate(target, 1000)
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        assert len(server.requests) == 2


@pytest.mark.parametrize("known", [True, False])
def test_verify_finds_one_flipped_bit(home, known):
    """What size and time cannot tell, `verify_file` tells; the next fetch then replaces the file."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=known)
        assert verify_file(file).found == ()
        assert verify_file(file).problems == ()
        target = fetch(file, request=NAME).path
        good = verify_file(file)
        assert (good.found, good.problems) == ((target,), ())
        flip_a_bit(target)
        fetch(file, request=NAME)
        assert target.read_bytes() != DATA, "the stamp still matches, so this shows that verifying is what helps"
        (problem,) = verify_file(file).problems
        assert str(target) in problem
        assert sha256(DATA) in problem
        assert fetch(file, request=NAME).path.read_bytes() == DATA
        assert verify_file(file).problems == ()


def test_verify_looks_at_converted_copies(home):
    """A converted copy is held to the digest in its own stamp; a bad one is no longer proved at the next load."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        target = fetch(file, request=NAME).path
    copies = [converted_path(sha256(DATA), model) for model in ("a", "b", "c")]
    copies[0].parent.mkdir()
    for copy in copies:
        copy.write_bytes(DATA)
    for copy in copies[:2]:
        write_stamp(copy, sha256=hash_file(copy), source=str(target))
    flip_a_bit(copies[1])
    assert proven_digest(copies[1]) is not None
    result = verify_file(file)
    assert result.found == (target, *copies)
    assert [str(copies[1]) in p or str(copies[2]) in p for p in result.problems] == [True, True]
    assert [proven_digest(copy) is not None for copy in copies] == [True, False, False]


def test_verify_looks_at_packaged_files(monkeypatch, tmp_path):
    """A packaged file is hashed in its place, and the remedy is another one."""
    monkeypatch.setattr(zoo.fetching.sources, "PACKAGED", tmp_path)
    (tmp_path / "w").write_bytes(DATA)
    file = remote_file(DATA, "package:w")
    assert verify_file(file).problems == ()
    flip_a_bit(tmp_path / "w")
    assert "reinstall" in verify_file(file).problems[0]
    with pytest.raises(IntegrityError):
        fetch(file, request=NAME)


def test_a_broken_stamp_is_no_stamp(home):
    """A stamp that was cut short means hashing again, not an error."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w")
        target = fetch(file, request=NAME).path
        stamp_path(target).write_text('{"sha256": "')
        assert fetch(file, request=NAME, offline=True).path == target
    assert read_stamp(stamp_path(target))


def test_an_unwritable_cache_is_used_as_it_is(home):
    """Another user, who may write nothing, loads what is there without any stamp, and is told what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "shared"
        file = remote_file(DATA, "https://example.org/w")
        target = file_path(file, shared)
        target.parent.mkdir(parents=True)
        target.write_bytes(DATA)
        missing = remote_file(some_bytes(seed=1), f"file:{target}")
        for path in (Path(folder), shared, target.parent):
            path.chmod(0o555)
        child = os.fork()
        if child == 0:
            code = 9
            try:
                code = _as_another_user(file, missing, shared)
            finally:  # whatever happens, the child must not go on with the tests
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(folder).chmod(0o755)
        shared.chmod(0o755)
        target.parent.chmod(0o755)
        assert code == 0
        assert [p.name for p in target.parent.iterdir()] == [target.name]


def _as_another_user(file, missing, shared: Path) -> int:
    """0 if all is as it should be; root must become someone else, because no mode keeps root from writing."""
    if os.geteuid() == 0:
        os.setuid(65534)
    if fetch(file, request=NAME, cache_dir=shared, offline=True).path.read_bytes() != DATA:
        return 1
    if verify_file(file, cache_dir=shared).problems:
        return 2
    try:
        fetch(missing, request=NAME, cache_dir=shared)
    except DownloadError as error:
        return 0 if "cannot be written" in str(error) and "ZOO_HOME" in str(error) else 3
    return 4


def test_passwords_stay_out_of_messages_and_stamps(home):
    """A password inside a source's address is used, and shown nowhere."""
    with Server({"/w": [whole(DATA), status(404)]}) as server:
        address = server.root.replace("http://", "http://user:secret@")
        target = fetch(remote_file(DATA, f"{address}/w"), request=NAME).path
        assert server.requests[0].headers["Authorization"].startswith("Basic ")
        assert "secret" not in stamp_path(target).read_text()
        with pytest.raises(DownloadError) as caught:
            fetch(remote_file(DATA + b"x", f"{address}/w"), request=NAME)
    assert "secret" not in str(caught.value)


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("screen", "progress", "drawn"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
)
def test_the_progress_bar_is_for_terminals(monkeypatch, screen, progress, drawn):
    """A bar with the file's name if it is wanted and stderr is a terminal; else nothing at all."""
    monkeypatch.setattr(sys, "stderr", screen)
    with Server({"/w.pth": whole(DATA)}) as server:
        fetch(remote_file(DATA, f"{server.root}/w.pth"), request=NAME, progress=progress)
    assert ("w.pth: 100%" in screen.getvalue()) is drawn
    assert bool(screen.getvalue()) is drawn


def test_no_source_on_record(home):
    """A record without sources says so and where a file of one's own goes."""
    file = remote_file(DATA)
    with pytest.raises(DownloadError, match="no source on record") as caught:
        fetch(file, request=NAME)
    assert str(file_path(file)) in str(caught.value)
    assert leftovers(home) == []
