"""The forms of a source: https and its rules, Hugging Face and its token, Google Drive and its pages."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
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

from zoo.errors import DownloadError, IntegrityError
from zoo.fetching.download import fetch

DATA = some_bytes()
HALF = len(DATA) // 2


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return prepare(monkeypatch, tmp_path)


def test_https_with_redirects(trusted):
    """A relative redirect and one to another server are followed; Range survives them."""
    with Server({"/file": whole(DATA)}, tls=tls(trusted, "127.0.0.1")) as store:
        answers = {"/w": redirect("/moved"), "/moved": redirect(f"{store.root}/file")}
        with Server(answers, tls=tls(trusted, "127.0.0.1")) as server:
            store.answers["/file"] = [whole(DATA, until=HALF), whole(DATA)]
            assert fetch(remote_file(DATA, f"{server.root}/w"), request=NAME).path.read_bytes() == DATA
        assert [r.start for r in store.requests] == [0, HALF]


def test_an_expired_certificate(trusted, home):
    """It gets its own message, is not tried again, and the next source is."""
    expired = tls(trusted, "127.0.0.1", expired=True)
    with Server({"/w": whole(DATA)}, tls=expired) as server, Server({"/w": whole(DATA)}) as good:
        with pytest.raises(DownloadError, match=r"certificate is not accepted.*certificate has expired") as caught:
            fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert "given up" not in str(caught.value)
        assert server.requests == []
        assert leftovers(home) == []
        assert fetch(remote_file(DATA, f"{server.root}/w", f"{good.root}/w"), request=NAME).source == f"{good.root}/w"


def test_a_certificate_of_an_unknown_authority(authority):
    """What a proxy that opens TLS causes: the message names the variable that helps."""
    with (
        Server({"/w": whole(DATA)}, tls=tls(authority, "127.0.0.1")) as server,
        pytest.raises(DownloadError, match=r"certificate is not accepted.*REQUESTS_CA_BUNDLE"),
    ):
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)


def test_no_redirect_from_https_to_http(trusted):
    """Not even to this machine: what https brought must not be changed on the way."""
    with Server({"/w": whole(DATA)}) as plain:
        answers = {"/w": redirect(f"{plain.root}/w")}
        with (
            Server(answers, tls=tls(trusted, "127.0.0.1")) as server,
            pytest.raises(DownloadError, match=r"redirected from https to http://127\.0\.0\.1"),
        ):
            fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)
        assert plain.requests == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://example.org/w", "only https is allowed"),
        ("http://10.0.0.1/w", "only https is allowed"),
        ("http://localhost.example.org/w", "only https is allowed"),
        ("ftp://example.org/w", "not a known form of source"),
        ("w.pth", "not a known form of source"),
        ("hf://owner/name/w.pth", "must read hf://owner/name@revision/file"),
        ("https://", "only https is allowed"),
        ("https://[::1/w", "not an address"),
        (r"http://example.org\@127.0.0.1/w", "http://example.org; only https"),
        (r"http://example.org\@localhost/w", "http://example.org; only https"),
        ("http://127.0.0.1@example.org/w", "http://example.org; only https"),
        ("http://127.0.0.1#@example.org\\@localhost/w", "no connection|only https"),
        ("http://127.0.0.1\t.example.org/w", "only https"),
    ],
)
def test_sources_that_are_refused(source, words):
    """An address that is not allowed, or no address at all, is refused before anything is opened."""
    with pytest.raises(DownloadError, match=words):
        fetch(remote_file(DATA, source), request=NAME)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://192.0.2.1/w", "redirected to http://192.0.2.1; only https"),
        ("ftp://127.0.0.1/w", "redirected to ftp://127.0.0.1; only https"),
        ("/w", "more than 10 redirects"),
    ],
)
def test_redirects_that_are_refused(target, words):
    """A redirect is held to the rules of a source, and a circle has an end."""
    with Server({"/w": redirect(target)}) as server, pytest.raises(DownloadError, match=words):
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)


@pytest.mark.parametrize("odd", ["\\", "\\\\", "\\x"])
def test_the_address_that_is_checked_is_the_one_that_is_opened(monkeypatch, odd):
    r"""Of `http://host\@127.0.0.1/` one parser reads the host before the sign and another the one behind it."""
    opened = []
    real = requests.Session.send
    monkeypatch.setattr(
        requests.Session, "send", lambda self, request, **kwargs: (opened.append(request.url), real(self, request))[1]
    )
    with Server({"/w": whole(DATA)}) as server:
        target = server.root.removeprefix("http://")
        with pytest.raises(DownloadError):
            fetch(remote_file(DATA, f"http://nowhere.example{odd}@{target}/w"), request=NAME)
    assert not [url for url in opened if "nowhere.example" in (urlsplit(url).hostname or "")]


def test_a_redirect_that_is_not_text(home):
    """A `Location` of bytes that are no UTF-8 is a refusal of this source, and the next one is tried."""

    def odd(handler) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\nContent-Length: 0\r\n\r\n")

    with Server({"/odd": odd, "/good": whole(DATA)}) as server:
        odd_source, good = f"{server.root}/odd", f"{server.root}/good"
        assert fetch(remote_file(DATA, odd_source, good), request=NAME).source == good
        with pytest.raises(DownloadError, match="redirects to an address that is not text"):
            fetch(remote_file(DATA[::-1], odd_source), request=NAME)


def test_a_ca_file_that_is_not_there(monkeypatch, trusted, tmp_path):
    """A setting of this machine is named; no traceback of a library."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with (
        Server({"/w": whole(DATA)}, tls=tls(trusted, "127.0.0.1")) as server,
        pytest.raises(DownloadError, match=r"no connection can be made from here: .*gone\.pem"),
    ):
        fetch(remote_file(DATA, f"{server.root}/w"), request=NAME)


HUB_FILE = "/owner/name/resolve/v1.0/weights/w%20eights.safetensors"


def test_hugging_face(monkeypatch, tmp_path):
    """The endpoint is that of the moment; the token goes to it and not to where it redirects, whatever netrc says."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Server({"/cdn": [whole(DATA, until=HALF), whole(DATA)]}) as store:
        answers = {HUB_FILE: redirect("/renamed"), "/renamed": redirect(f"{store.root}/cdn")}
        with Server(answers) as hub:
            monkeypatch.setenv("HF_ENDPOINT", f"{hub.root}/")
            file = remote_file(DATA, "hf://owner/name@v1.0/weights/w eights.safetensors")
            fetched = fetch(file, request=NAME)
            assert [r.path for r in hub.requests] == [HUB_FILE, "/renamed"] * 2
            assert {r.headers["Authorization"] for r in hub.requests} == {"Bearer hf_secret"}
        assert [r.start for r in store.requests] == [0, HALF]
        assert not any("hf_secret" in r.headers.get("Authorization", "") for r in store.requests)
    assert (fetched.path.read_bytes(), fetched.source) == (DATA, file.sources[0])


def test_a_private_repository(monkeypatch):
    """When access is refused the message says how to get it; the token is not in it."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Server({HUB_FILE: status(401)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.root)
        with pytest.raises(DownloadError, match="HTTP 401 Unauthorized; if owner/name is private or gated") as caught:
            fetch(remote_file(DATA, "hf://owner/name@v1.0/weights/w eights.safetensors"), request=NAME)
        assert len(hub.requests) == 1
    assert "hf_secret" not in str(caught.value)


def test_a_hub_without_https_elsewhere_gets_no_token(monkeypatch):
    """An endpoint on plain http, not on this machine, is refused before the token leaves."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(DownloadError, match="only https is allowed"):
        fetch(remote_file(DATA, "hf://owner/name@main/w"), request=NAME)


DRIVE = "https://drive.google.com/uc"
STORE = "https://drive.usercontent.google.com/download"
CONFIRM = (
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
    f'<form id="download-form" action="{STORE}" method="get"><input type="submit" value="Download anyway"/>'
    '<input type="hidden" name="id" value="abc"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1-2"></form></body></html>'
)
QUOTA = (
    "<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>"
    '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>'
)
ATTACHED = {"Content_Disposition": 'attachment; filename="w.pth"'}


@pytest.fixture
def drive(trusted, monkeypatch):
    """A proxy that is Google Drive, TLS included."""
    hosts = tls(trusted, "drive.google.com", "drive.usercontent.google.com", "accounts.google.com")
    with Server({}, inner_tls=hosts) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.root)
        yield proxy


@pytest.mark.parametrize("known", [True, False])
def test_google_drive_with_a_page_before_the_file(drive, known):
    """The confirmation page is passed with what it asks for."""
    drive.answers = {DRIVE: [redirect(f"{STORE}?id=abc")], STORE: [page(CONFIRM), whole(DATA, **ATTACHED)]}
    fetched = fetch(remote_file(DATA, "gdrive:abc", known=known), request=NAME)
    assert (fetched.path.read_bytes(), fetched.source) == (DATA, "gdrive:abc")
    assert drive.requests[0].path == f"{DRIVE}?id=abc"
    assert "confirm=t" in drive.requests[-1].path
    assert "uuid=1-2" in drive.requests[-1].path


def test_google_drive_is_gone_on_from(drive):
    """After a cut the pages are passed again without Range, which they would not understand, and the file with it."""
    cut, good = whole(DATA, until=HALF, **ATTACHED), whole(DATA, **ATTACHED)
    drive.answers = {DRIVE: [redirect(f"{STORE}?id=abc")], STORE: [page(CONFIRM), cut, page(CONFIRM), good]}
    assert fetch(remote_file(DATA, "gdrive:abc"), request=NAME).path.read_bytes() == DATA
    assert [r.start for r in drive.requests] == [0, 0, 0, 0, 0, 0, HALF]


@pytest.mark.parametrize("code", [200, 403])
def test_google_drive_quota(drive, code, home):
    """The quota page has its own message, and is not pinned as the file even if no digest is known."""
    drive.answers = {DRIVE: [redirect(f"{STORE}?id=abc")], STORE: [page(QUOTA, code)]}
    with pytest.raises(DownloadError, match=r"Google Drive shows a page.*quota is used up.*Too many users"):
        fetch(remote_file(DATA, "gdrive:abc", known=False), request=NAME)
    assert len(drive.requests) == 2
    assert leftovers(home) == []


def test_google_drive_file_that_is_not_public(drive):
    """A login page says that there is no public access."""
    login = "https://accounts.google.com/ServiceLogin"
    drive.answers = {DRIVE: [redirect(login)], login: [page("<!DOCTYPE html><html><title>Sign in</title></html>")]}
    with pytest.raises(DownloadError, match=r"Google Drive shows a page.*no public access"):
        fetch(remote_file(DATA, "gdrive:abc"), request=NAME)


def test_google_drive_is_checked_like_any_source(drive):
    """A busy server is asked again; another file under the same id is a wrong digest."""
    other = some_bytes(seed=1)
    drive.answers = {DRIVE: [status(503), page("<html>busy</html>", 500), whole(other, **ATTACHED)]}
    with pytest.raises(IntegrityError, match=sha256(other)):
        fetch(remote_file(DATA, "gdrive:abc"), request=NAME)
    assert len(drive.requests) == 3
