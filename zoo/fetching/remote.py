"""Describes an address to fetch from, what its host says of the file, and how one source can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class SourceError(Exception):
    """One source did not give the file. Never leaves the package: `fetch` goes on and collects what each one said."""

    spoilt = False
    """Whether what was written of the download is of no further use."""


class TransientError(Exception):
    """A failure worth another attempt, after `wait` seconds if the server asks for them. Never leaves the room."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class WrongFileError(SourceError):
    """The bytes are not those of the file on record, by their number."""

    spoilt = True


class WrongDigestError(WrongFileError):
    """The bytes have another digest than the one on record."""


class OtherFileStatedError(WrongDigestError):
    """The host says, before it sends a byte, that its file has another digest than the one on record."""

    spoilt = False


@dataclass(frozen=True)
class Statement:
    """What a host says of a file beside its bytes."""

    by: str = ""
    """The host."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By kind, as in `record.DIGESTS`."""
    revision: str = ""
    """Commit of the repository that the file is of, 40 digits."""


@dataclass(frozen=True)
class Page:
    """What a page before a file leads to."""

    url: str
    says: Statement = field(default_factory=Statement)


@dataclass(frozen=True)
class Remote:
    """An address to fetch from."""

    url: str
    token: str = ""
    """Sent as a bearer token to the host and port of `url`, and to no other after a redirect."""
    read_page: Callable[[str], Page] | None = None
    """For hosts that put pages before a file: from the page's text to the next address."""
    page_type: str = "text/html"
    """Content type of these pages."""
    read_headers: Callable[[Mapping[str, str]], Statement] | None = None
    """For hosts whose own answers, redirects too, say something of the file in their headers."""
    hint: str = ""
    """What to do when access is refused."""
