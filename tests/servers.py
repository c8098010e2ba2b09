"""Servers on this machine that behave, or misbehave, as a test asks; and what the tests of fetching share.

A server is given one list of answers per path. Each request takes the next answer, and the last one stays. An answer is
a function of the handler; the functions below make them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import random
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import trustme

import zoo
from zoo.record import RemoteFile

REPOSITORY = Path(zoo.__file__).parents[1]
NAME = "net.tag"
"""The request that the tests make, for the messages."""


def some_bytes(size: int = 300_000, seed: int = 0) -> bytes:
    """Bytes that look like the beginning of a safetensors file and are random after it."""
    return (b"\x10\0\0\0\0\0\0\0{" + random.Random(seed).randbytes(size))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tls(authority: trustme.CA, *hosts: str, expired: bool = False) -> ssl.SSLContext:
    """What a server needs to be one of these hosts."""
    now = datetime.datetime.now(datetime.UTC)
    dates = {"not_before": now - datetime.timedelta(2), "not_after": now - datetime.timedelta(1)} if expired else {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts, **dates).configure_cert(context)
    return context


def remote_file(data: bytes, *sources: str, base: Path = Path(), known: bool = True) -> RemoteFile:
    """A record for `data`; with `known=False` neither its digest nor its length is on record."""
    return RemoteFile(sources, len(data) if known else None, sha256(data) if known else None, base)


def prepare(monkeypatch, tmp_path: Path) -> Path:
    """Point the cache at an empty folder, make retries quick, and hide the settings of whoever runs the tests."""
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith(("ZOO_", "HF_"))]:
        monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOO_RETRY_WAIT", "0.01")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])))
    return tmp_path / "home"


def leftovers(home: Path) -> list[Path]:
    """Temporary files in the cache."""
    return sorted([*home.rglob("*.part"), *home.rglob("*.tmp")])


FETCH = """
import json, sys
from pathlib import Path
from zoo.fetching import fetch
from zoo.manifest import RemoteFile
import requests
sources, size, digest = json.loads(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
fetched = fetch(RemoteFile(tuple(sources), size, digest, Path()), request="net.tag", progress=False)
print(fetched.sha256, flush=True)
"""


def start_fetch(file: RemoteFile, *, before: str = "") -> subprocess.Popen[str]:
    """Start a process that fetches `file` as soon as a line comes on its standard input, and prints the digest."""
    record = json.dumps([file.sources, file.bytes, file.sha256])
    return subprocess.Popen(
        [sys.executable, "-c", before + FETCH, record],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_go(process: subprocess.Popen[str]) -> None:
    """Wait until a process of `start_fetch` is ready, and let it fetch."""
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    process.stdin.write("go\n")
    process.stdin.flush()


@dataclass(frozen=True)
class Request:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        """The byte that was asked for first; 0 without a `Range`."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])


class Handler(BaseHTTPRequestHandler):
    """Looks up the answer to a request and gives it; a CONNECT turns it into the other end of a TLS connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    address = ""

    def log_message(self, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        assert self.server.inner_tls
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.inner_tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.address = f"https://{self.path.removesuffix(':443')}"
        self.close_connection = False

    def do_GET(self) -> None:
        self.close_connection = True
        request = Request(self.address + self.path, dict(self.headers))
        with self.server.lock:
            self.server.requests.append(request)
            answers = self.server.answers.get(request.path.split("?")[0], [status(404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.start = request.start
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            answer(self)
        with contextlib.suppress(OSError):
            self.connection.close()

    def begin(self, code: int, **headers: str | int) -> None:
        """Send status and headers."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()


Answer = Callable[[Handler], None]


class Loopback(ThreadingHTTPServer):
    """A server on a free port of this machine, running while it is used as a context manager."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Server(Loopback):
    """A server of files, or of whatever else a test has it answer.

    Args:
        answers: Per path the answers in order, or one answer. Behind CONNECT a path begins with `https://host`.
        tls: For a server that speaks https.
        inner_tls: For a proxy: the certificate of the hosts that are reached through it.
    """

    def __init__(
        self,
        answers: dict[str, list[Answer] | Answer],
        *,
        tls: ssl.SSLContext | None = None,
        inner_tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(Handler)
        self.answers = {path: a if isinstance(a, list) else [a] for path, a in answers.items()}
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.inner_tls = inner_tls
        if tls:
            self.root = self.root.replace("http:", "https:")
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *args: object) -> None:
        """Stay silent about clients that hang up."""


def whole(data: bytes, *, ranges: bool = True, until: int | None = None, **headers: str | int) -> Answer:
    """The file, or the part of it that is asked for.

    Args:
        data: The file.
        ranges: Whether `Range` is honoured (with `If-Range`, only if it names the `ETag` given here).
        until: Promise everything, and send nothing from this byte on.
        headers: More headers, such as `ETag` and `Content_Type`.
    """

    def answer(handler: Handler) -> None:
        condition = handler.headers.get("If-Range")
        start = handler.start if ranges and condition in (None, headers.get("ETag")) else 0
        extra = {"Content_Type": "application/octet-stream", **headers}
        if start >= len(data) > 0:
            handler.begin(416, Content_Length=0)
            return
        if start:
            extra["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.begin(206 if start else 200, Content_Length=len(data) - start, **extra)
        handler.wfile.write(data[start:until])

    return answer


def status(code: int, **headers: str | int) -> Answer:
    """An empty answer with this status."""
    return lambda handler: handler.begin(code, Content_Length=0, **headers)


def redirect(url: str, **headers: str | int) -> Answer:
    return status(302, Location=url, **headers)


def page(text: str, code: int = 200, content_type: str = "text/html; charset=utf-8") -> Answer:
    """An HTML page."""

    def answer(handler: Handler) -> None:
        handler.begin(code, Content_Type=content_type, Content_Length=len(text.encode()))
        handler.wfile.write(text.encode())

    return answer


def chunked(pieces: Iterator[bytes] | list[bytes]) -> Answer:
    """A body in chunks, whose length is not promised, with a marked end."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Transfer_Encoding="chunked")
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def unmarked(data: bytes) -> Answer:
    """A body that ends where the connection does, as in HTTP/1.0."""

    def answer(handler: Handler) -> None:
        handler.begin(200)
        handler.wfile.write(data)

    return answer


def waiting(data: bytes, sent: int, arrived: threading.Event, go_on: threading.Event, **headers: str | int) -> Answer:
    """Answer as `whole` does up to the byte `sent`, say so, and send the rest only when told."""

    def answer(handler: Handler) -> None:
        whole(data, until=sent, **headers)(handler)
        arrived.set()
        if go_on.wait(30):
            handler.wfile.write(data[sent:])

    return answer
