"""Opens addresses: redirects, tokens, pages before a file, and what each failure means. No other code opens sockets."""

from __future__ import annotations

import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from zoo.fetching.remote import Remote, SourceError, Statement, TransientError
from zoo.fetching.sources import check_url
from zoo.messages import printable
from zoo.settings import least_speed
from zoo.version import __version__

if TYPE_CHECKING:
    import requests

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two packets."""
HOPS = 10
"""Redirects, or pages, that may stand before a file."""
CHUNK = 1 << 16
LEAST_SPEED = 1024.0
"""Bytes a second below which a source is left for the next one: at that speed 88 MB take a day. `ZOO_LEAST_SPEED` says
otherwise, 0 for no bound."""
SLOW_AFTER = 60.0
"""Seconds of waiting over which the speed is taken."""
_LONGEST_PAGE = 1 << 20


def new_session() -> requests.Session:
    """Return a session for one source. Proxies, CA bundle and ~/.netrc are the user's, as `requests` reads them."""
    import requests

    session = requests.Session()
    # Ranges count the bytes of the body as sent, so nothing may be compressed on the way.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"medssl-zoo/{__version__}"})
    return session


def open_remote(
    session: requests.Session, remote: Remote, headers: dict[str, str]
) -> tuple[requests.Response, Statement]:
    """Return the answer (200, 206 or 416) that stands for the file, with its body not yet read; and what the host says.

    Args:
        session: Keeps cookies between the pages of a host.
        remote: The address.
        headers: `Range` and `If-Range`. Pages before a file are fetched without them.

    Raises:
        SourceError: The address, a redirect or a page is refused, or the server refuses.
        TransientError: Another attempt may go better.
    """
    if remote.read_page is None:
        response = _follow(session, remote.url, headers, remote)
        return _checked(response, remote), _said(response, remote)
    says = Statement()
    response = _follow(session, remote.url, {}, remote)
    for _ in range(HOPS):
        if not is_page(response, remote.page_type) or _is_transient(response.status_code):
            break
        page = remote.read_page(_text(response))
        says = page.says if page.says.by else says
        response = _follow(session, check_url(page.url, response.url), {}, remote)
    if headers and response.status_code == 200:
        response.close()
        response = _follow(session, response.url, headers, remote)
    return _checked(response, remote), says


def _said(response: requests.Response, remote: Remote) -> Statement:
    """What the host itself, by this answer or a redirect to it, says of the file; where it redirects to has no word."""
    if remote.read_headers is None:
        return Statement()
    answers = [each for each in (*response.history, response) if _origin(each.url) == _origin(remote.url)]
    statements = [remote.read_headers(each.headers) for each in answers]
    return next((said for said in statements if said.digests), next(iter(statements), Statement()))


def _follow(session: requests.Session, url: str, headers: dict[str, str], remote: Remote) -> requests.Response:
    """Open an address and follow its redirects, each of them checked and kept in the `history` of the answer."""
    import requests

    earlier: list[requests.Response] = []
    for _ in range(HOPS):
        auth = _Bearer(remote.token) if remote.token and _origin(url) == _origin(remote.url) else None
        try:
            response = session.get(url, headers=headers, auth=auth, stream=True, allow_redirects=False, timeout=TIMEOUT)
            target = session.get_redirect_target(response)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _connection_failure(error) from error
        except requests.RequestException as error:
            raise SourceError(f"{type(error).__name__}: {printable(_innermost(error))}") from error
        except UnicodeError as error:
            raise SourceError("the server redirects to an address that is not text") from error
        except OSError as error:  # a CA file that REQUESTS_CA_BUNDLE names and that is not there
            raise SourceError(f"no connection can be made from here: {printable(error)}") from error
        if target is None:
            response.history = earlier
            return response
        response.close()
        earlier.append(response)
        url = check_url(urljoin(url, target), url)
    raise SourceError(f"more than {HOPS} redirects")


class _Bearer:
    """Sets the token of one request; given as `auth`, it also comes before anything that ~/.netrc may say."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _connection_failure(error: Exception) -> Exception:
    """A certificate that is not accepted will not be accepted in a second either; all else is worth an attempt."""
    cause = _innermost(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(
            f"the server's TLS certificate is not accepted ({cause.verify_message}), so nothing was fetched. Check "
            "this machine's clock; behind a proxy that opens TLS, name its CA file in REQUESTS_CA_BUNDLE"
        )
    reason = re.sub(r"^\w+\(host=.*?\): ", "", str(cause))  # urllib3 begins with its own object
    return TransientError(f"no connection, or a broken one: {reason}")


def _innermost(error: BaseException) -> BaseException:
    """The cause of an error, without the layers of two libraries around it or the address, which may hold a key."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error


def _checked(response: requests.Response, remote: Remote) -> requests.Response:
    """Return a response that carries the file, or part of it, or says that it has no such part."""
    status = response.status_code
    if status in (200, 206, 416):
        return response
    said = f"HTTP {status} {printable(response.reason)}".rstrip()
    wait = _retry_after(response)
    response.close()
    if _is_transient(status):
        raise TransientError(said, wait)
    raise SourceError(f"{said}; {remote.hint}" if remote.hint and status in (401, 403, 404) else said)


def _is_transient(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or not as HTTP defines it."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return float(min(Retry().parse_retry_after(response.headers.get("Retry-After", "")), sys.maxsize))
    except (InvalidHeader, ValueError, OverflowError):  # of dates that no calendar has, too
        return 0.0


def read_chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it comes over the wire, 64 KiB at once.

    A .gz file that a server labels as an encoding stays what it is. What came before a connection was cut is yielded.

    Raises:
        TransientError: The connection was cut.
        SourceError: Bytes come more slowly than `LEAST_SPEED`.
    """
    import urllib3

    gathered, meter = bytearray(), _Meter()
    failure: Exception | None = None
    while failure is None:
        try:
            piece = meter.time(lambda: response.raw.read1(CHUNK, decode_content=False))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            failure = TransientError(f"the connection was cut: {_innermost(error)}")
            break
        except SourceError as error:
            failure = error
            break
        if not piece:
            break
        gathered += piece
        while len(gathered) >= CHUNK:
            yield bytes(gathered[:CHUNK])
            del gathered[:CHUNK]
    if gathered:
        yield bytes(gathered)
    if failure:
        raise failure


class _Meter:
    """Takes the speed of a body, over the time in which nothing but the next bytes is waited for."""

    def __init__(self) -> None:
        self.least = least_speed(LEAST_SPEED)
        self.waited = self.received = 0.0

    def time(self, read: Callable[[], bytes]) -> bytes:
        """Return what `read` does; raise `SourceError` where it has been too slow for `SLOW_AFTER`."""
        began = time.monotonic()
        piece = read()
        self.waited += time.monotonic() - began
        self.received += len(piece)
        if self.waited >= SLOW_AFTER:
            speed = self.received / self.waited
            if speed < self.least:
                raise SourceError(
                    f"only {speed:.0f} bytes a second come, fewer than {self.least:g} (ZOO_LEAST_SPEED sets the bound)"
                )
            self.waited = self.received = 0.0
        return piece


def is_page(response: requests.Response, page_type: str = "text/html") -> bool:
    """Whether the answer is a page to look at, by its headers."""
    attached = "attachment" in response.headers.get("Content-Disposition", "")
    return response.headers.get("Content-Type", "").startswith(page_type) and not attached


def _text(response: requests.Response) -> str:
    """The first megabyte of a page."""
    with closing(response):
        body = b"".join(islice(read_chunks(response), _LONGEST_PAGE // CHUNK))
    return body.decode("utf-8", "replace")
