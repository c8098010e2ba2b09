"""Digests that a record states beside sha256, and those that the hub and Zenodo state of what they send."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from servers import (
    NAME,
    Server,
    leftovers,
    page,
    prepare,
    redirect,
    remote_file,
    sha256,
    some_bytes,
    status,
    tls,
    whole,
)

from zoo.errors import DownloadError, IntegrityError, OfflineError
from zoo.fetching import fetch, verify_file
from zoo.fetching.cache import file_path, read_stamp, stamp_path
from zoo.fetching.digests import digests_of

DATA, OTHER = some_bytes(), some_bytes(seed=1)
HALF = len(DATA) // 2
COMMIT = "a27ed7505712cbc12b3325c4722ffbfa5af39c35"
HUB_SOURCE = f"hf://owner/name@{COMMIT}/w.safetensors"
HUB_FILE = f"/owner/name/resolve/{COMMIT}/w.safetensors"
API = "https://zenodo.org/api/records/42"
CONTENT = f"{API}/files/w.safetensors/content"


def md5(data):
    return hashlib.md5(data).hexdigest()


def git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    return prepare(monkeypatch, tmp_path)


def linked(target, digest=None, **headers):
    """The hub's answer for a file of Git LFS: a redirect that names its sha256 in quotes."""
    return redirect(target, **({"X_Linked_Etag": f'"{digest}"'} if digest else {}), **headers)


@pytest.fixture
def hub(monkeypatch):
    """A hub whose files lie on another server, as the real one's do."""
    with Server({"/cdn": whole(DATA)}) as store, Server({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        server.store = store
        yield server


def record_of(data):
    """What Zenodo's API says of a record with one file; of its own type, as JSON."""
    file = {"key": "w.safetensors", "size": len(data), "links": {"self": CONTENT}}
    return {"id": 42, "files": [file | {"checksum": f"md5:{md5(data)}"}]}


def described(content):
    return page(json.dumps(content), content_type="application/json")


@pytest.fixture
def zenodo(trusted, monkeypatch):
    """A proxy that is Zenodo, TLS included."""
    hosts = tls(trusted, "zenodo.org")
    with Server({API: described(record_of(DATA)), CONTENT: whole(DATA)}, inner_tls=hosts) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.root)
        yield proxy


# ------------------------------------------------------------------------------------------------------- on record


def test_a_git_blob_is_what_git_says_it_is(tmp_path):
    """The ids of an empty file and of "hello", which every git computes."""
    for content, expected in (
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ):
        (tmp_path / "file").write_bytes(content)
        assert digests_of(tmp_path / "file", ["git_blob"]) == {"git_blob": expected}


@pytest.mark.parametrize("size", [len(DATA), None], ids=["size known", "size unknown"])
@pytest.mark.parametrize(("kind", "digest"), [("md5", md5), ("git_blob", git_blob)])
def test_a_digest_on_record_that_is_no_sha256_is_held(home, size, kind, digest):
    """In one part and in two; another file is refused as by sha256, and what was right once is pinned."""
    right, wrong = (replace(remote_file(DATA, known=False), bytes=size, **{kind: digest(d)}) for d in (DATA, OTHER))
    with Server({"/w": whole(DATA), "/cut": [whole(DATA, until=HALF), whole(DATA)]}) as server:
        with pytest.raises(IntegrityError, match=f"{kind} is {digest(DATA)}, not {digest(OTHER)}"):
            fetch(replace(wrong, sources=(f"{server.root}/w",)), request=NAME)
        assert leftovers(home) == []
        for path in ("/w", "/cut"):
            file = replace(right, sources=(f"{server.root}{path}",))
            fetched = fetch(file, request=NAME)
            assert (fetched.sha256, fetched.proved_by) == (sha256(DATA), f"the {kind} {digest(DATA)} on record")
    again = fetch(file, request=NAME, offline=True)
    assert (again.path, again.proved_by) == (fetched.path, f"the {kind} {digest(DATA)} on record")


@pytest.mark.parametrize(("kind", "digest"), [("md5", md5), ("git_blob", git_blob)])
def test_a_file_put_by_hand_must_have_the_digest_on_record(kind, digest):
    """It is neither pinned nor used before."""
    file = replace(remote_file(DATA, "https://host/w", known=False), **{kind: digest(DATA)})
    target = file_path(file)
    target.parent.mkdir(parents=True)
    target.write_bytes(OTHER)
    with pytest.raises(OfflineError, match=f"{kind} is {digest(OTHER)}, not {digest(DATA)}"):
        fetch(file, request=NAME, offline=True)
    assert not stamp_path(target).exists()
    target.write_bytes(DATA)
    assert fetch(file, request=NAME, offline=True).proved_by == f"the {kind} {digest(DATA)} on record"
    assert read_stamp(stamp_path(target)).sha256 == sha256(DATA)


def test_a_download_goes_on_from_another_source_when_md5_is_on_record():
    """As with a sha256: the digest proves in the end what came from anywhere."""
    with Server({"/a": [whole(DATA, until=HALF), status(404)], "/b": whole(DATA)}) as server:
        sources = (f"{server.root}/a", f"{server.root}/b")
        fetched = fetch(replace(remote_file(DATA, *sources, known=False), md5=md5(DATA)), request=NAME)
        assert fetched.path.read_bytes() == DATA
        assert server.requests[-1].start == HALF


@pytest.mark.parametrize("later", [{"md5": md5(OTHER)}, {"git_blob": git_blob(OTHER)}, {"bytes": 5}])
def test_what_a_record_states_later_holds_for_a_file_that_was_pinned_before(later):
    """A right digest is noted, a wrong one or another size is refused, by `fetch` and by `verify_file`."""
    with Server({"/w": whole(DATA)}) as server:
        file = remote_file(DATA, f"{server.root}/w", known=False)
        assert fetch(file, request=NAME).proved_by == ""
    right = replace(file, md5=md5(DATA), bytes=len(DATA))
    assert fetch(right, request=NAME, offline=True).proved_by == f"the md5 {md5(DATA)} on record"
    assert verify_file(right).problems == ()
    wrong = replace(file, **later)
    with pytest.raises(OfflineError, match=r" is .*, not "):
        fetch(wrong, request=NAME, offline=True)
    assert len(verify_file(wrong).problems) == 1


# --------------------------------------------------------------------------------------------------------- the hub


def test_the_digest_that_the_hub_states_at_a_commit_is_held_and_pinned(hub, home):
    """Where the record has none; later another file in its place is refused."""
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(DATA), X_Repo_Commit=COMMIT)]
    file = remote_file(DATA, HUB_SOURCE, known=False)
    fetched = fetch(file, request=NAME)
    assert (fetched.sha256, fetched.proved_by) == (sha256(DATA), "the sha256 that the hub states")
    fetched.path.write_bytes(OTHER)
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(OTHER))]
    hub.store.answers["/cdn"] = [whole(OTHER)]
    with pytest.raises(IntegrityError, match=sha256(OTHER)):
        fetch(file, request=NAME)
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(DATA))]
    hub.store.answers["/cdn"] = [whole(DATA)]
    assert fetch(file, request=NAME).path.read_bytes() == DATA


@pytest.mark.parametrize("cut", [False, True])
def test_bytes_that_are_not_what_the_hub_states_are_refused(hub, home, cut):
    """Whatever the store behind it sends; nothing of it is kept or pinned."""
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(OTHER))]
    hub.store.answers["/cdn"] = [whole(DATA, until=HALF, ETag='"1"'), whole(DATA, ETag='"1"')] if cut else [whole(DATA)]
    with pytest.raises(IntegrityError, match=f"sha256 is {sha256(DATA)}, not {sha256(OTHER)}"):
        fetch(remote_file(DATA, HUB_SOURCE, known=False), request=NAME)
    assert leftovers(home) == []
    assert not list(home.rglob("*.json"))


def test_a_file_of_which_the_hub_states_nothing_is_pinned_by_the_first_download(hub):
    """And nobody is said to have proved it."""
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn")]
    fetched = fetch(remote_file(DATA, HUB_SOURCE, known=False), request=NAME)
    assert (fetched.sha256, fetched.proved_by) == (sha256(DATA), "")


@pytest.mark.parametrize("revision", ["main", COMMIT[:7]])
def test_what_the_hub_states_of_a_branch_counts_for_nothing(hub, revision):
    """Tomorrow it may be another file's."""
    hub.answers[HUB_FILE.replace(COMMIT, revision)] = [linked(f"{hub.store.root}/cdn", sha256(OTHER))]
    fetched = fetch(remote_file(DATA, HUB_SOURCE.replace(COMMIT, revision), known=False), request=NAME)
    assert (fetched.sha256, fetched.proved_by) == (sha256(DATA), "")


def test_the_store_behind_the_hub_has_no_word(hub):
    """Only the hub itself states digests."""
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn")]
    hub.store.answers["/cdn"] = [whole(DATA, X_Linked_Etag=f'"{sha256(OTHER)}"')]
    fetched = fetch(remote_file(DATA, HUB_SOURCE, known=False), request=NAME)
    assert (fetched.sha256, fetched.proved_by) == (sha256(DATA), "")


def test_a_hub_that_states_another_digest_than_the_record_is_left_before_a_byte_comes(hub, tmp_path):
    """What another source had sent of the right file is gone on from."""
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(OTHER))]
    hub.answers |= {"/a": [whole(DATA, until=HALF), status(404)], "/b": [whole(DATA)]}
    file = remote_file(DATA, f"{hub.root}/a", HUB_SOURCE, f"{hub.root}/b")
    assert fetch(file, request=NAME).source == f"{hub.root}/b"
    assert hub.requests[-1].start == HALF
    with pytest.raises(IntegrityError, match=f"the hub states another file.*{sha256(OTHER)}, not {sha256(DATA)}"):
        fetch(replace(file, sources=(HUB_SOURCE,)), request=NAME, cache_dir=tmp_path / "another")


# ---------------------------------------------------------------------------------------------------------- Zenodo

SOURCE = "zenodo:42/w.safetensors"


def test_zenodo_is_asked_for_the_address_and_the_md5(zenodo):
    """Both by its API; the md5 proves the file, and its sha256 is pinned."""
    fetched = fetch(remote_file(DATA, SOURCE, known=False), request=NAME)
    assert [r.path for r in zenodo.requests] == [API, CONTENT]
    assert (fetched.path.read_bytes(), fetched.source) == (DATA, SOURCE)
    assert fetched.proved_by == "the md5 that Zenodo states"
    assert fetch(remote_file(DATA, SOURCE, known=False), request=NAME, offline=True).path == fetched.path


def test_bytes_that_are_not_what_zenodo_states_are_refused(zenodo, home):
    """And those of another file than the record has, before a byte comes."""
    zenodo.answers[CONTENT] = [whole(OTHER)]
    with pytest.raises(IntegrityError, match=f"md5 is {md5(OTHER)}, not {md5(DATA)}"):
        fetch(remote_file(DATA, SOURCE, known=False), request=NAME)
    assert leftovers(home) == []
    with pytest.raises(IntegrityError, match=f"Zenodo states another file.*{md5(DATA)}, not {md5(OTHER)}"):
        fetch(replace(remote_file(DATA, SOURCE, known=False), md5=md5(OTHER)), request=NAME)


def test_an_md5_in_capitals_is_one(zenodo, home):
    """It is held as any other."""
    content = record_of(OTHER)
    content["files"][0]["checksum"] = content["files"][0]["checksum"].upper()
    zenodo.answers[API] = [described(content)]
    with pytest.raises(IntegrityError, match=f"md5 is {md5(DATA)}, not {md5(OTHER)}"):
        fetch(remote_file(DATA, SOURCE, known=False), request=NAME)


def test_a_file_of_which_zenodo_states_no_md5_is_pinned(zenodo):
    """And nobody is said to have proved it."""
    content = record_of(DATA)
    content["files"][0]["checksum"] = "sha512:00"
    zenodo.answers[API] = [described(content)]
    assert fetch(remote_file(DATA, SOURCE, known=False), request=NAME).proved_by == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (described({"files": [{"key": "other", "links": {"self": CONTENT}}]}), "no file 'w.safetensors'; it has other"),
        (described({"files": [{"key": "w.safetensors"}]}), "does not say where the file 'w.safetensors'"),
        (described({"files": 3}), "not the description of a record"),
        (described([]), "not the description of a record"),
        (page("{", content_type="application/json"), "not the description of a record"),
        (
            described({"files": [{"key": "w.safetensors", "links": {"self": "http://zenodo.org/f"}}]}),
            "from https to http",
        ),
        (page("<html>busy</html>"), "an HTML page came instead"),
        (status(404), "HTTP 404"),
    ],
    ids=["no such file", "no address", "odd", "list", "no JSON", "downgrade", "page", "gone"],
)
def test_answers_of_zenodo_without_the_file_are_refused(zenodo, home, answer, words):
    """A sentence each, and nothing is kept."""
    zenodo.answers[API] = [answer]
    with pytest.raises(DownloadError, match=words):
        fetch(remote_file(DATA, SOURCE, known=False), request=NAME)
    assert leftovers(home) == []


@pytest.mark.parametrize("source", ["zenodo:w.safetensors", "zenodo:x/w", "zenodo:1/a/b"])
def test_a_zenodo_source_names_record_and_file(source):
    """A number and a name."""
    with pytest.raises(DownloadError, match="must read zenodo:RECORD/file"):
        fetch(remote_file(DATA, source), request=NAME)


# --------------------------------------------------------------------------------------------------- faults of both


@pytest.fixture(params=["hub", "zenodo"])
def host(request):
    """(server of the bytes, their path, source) of either host, set up to state the right digest."""
    if request.param == "zenodo":
        return request.getfixturevalue("zenodo"), CONTENT, SOURCE
    hub = request.getfixturevalue("hub")
    hub.answers[HUB_FILE] = [linked(f"{hub.store.root}/cdn", sha256(DATA))]
    return hub.store, "/cdn", HUB_SOURCE


@pytest.mark.parametrize("known", [True, False])
def test_a_cut_connection_is_gone_on_from(host, known):
    """With Range to the bytes alone; where no digest is on record, by their entity tag."""
    server, path, source = host
    server.answers[path] = [whole(DATA, until=HALF, ETag='"1"'), status(503), whole(DATA, ETag='"1"')]
    assert fetch(remote_file(DATA, source, known=known), request=NAME).path.read_bytes() == DATA
    starts = [r.start for r in server.requests if r.path == path]
    assert starts[0] == 0
    assert starts[-1] == HALF


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(404), "HTTP 404"),
        (page("<!DOCTYPE html><title>Sign in</title>"), "an HTML page"),
        (whole(DATA[:-7]), "shorter|on record"),
        (whole(DATA + b"7654321"), "longer|on record"),
        (whole(OTHER), sha256(DATA)),
    ],
    ids=["gone", "page", "short", "long", "other"],
)
def test_the_next_source_is_tried_after(host, home, answer, words, caplog):
    """Each fault, named; and nothing of it stays."""
    server, path, source = host
    server.answers |= {path: [answer]}
    with Server({"/good": whole(DATA)}) as good:
        file = remote_file(DATA, source, f"{good.root}/good")
        assert fetch(file, request=NAME).source == f"{good.root}/good"
    assert any(source in line for line in caplog.messages)
    assert re.search(words, caplog.text)
    assert leftovers(home) == []
