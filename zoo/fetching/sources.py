"""Resolves a source of the manifest: an address with its rules, or a file on this machine."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from zoo.fetching.cache import file_path
from zoo.fetching.remote import Page, Remote, SourceError, Statement
from zoo.files import pointer_in, user_path
from zoo.messages import printable
from zoo.settings import hugging_face, mirror

if TYPE_CHECKING:
    from zoo.record import RemoteFile

log = logging.getLogger("zoo")

PACKAGED = Path(__file__).parents[1] / "weights"
"""Folder that `package:` sources name files of."""
ZENODO = "https://zenodo.org"
_COMMIT = "[0-9a-f]{40}"


def candidates(file: RemoteFile) -> tuple[str, ...]:
    """The sources to try, in order: the mirror in front where there is one, and a digest proves what it sends."""
    address = mirror()
    if not address or not file.digests:
        return file.sources
    inside = f"{address}/{file_path(file).name}"
    return (inside if "://" in address else f"file:{user_path(inside).absolute()}", *file.sources)


def plain_addresses(file: RemoteFile) -> tuple[str, ...]:
    """The addresses of a file's sources that any client can open; no host is asked for them.

    Zenodo's are the links of its pages of files, Google Drive's those that its page of large files leads to.
    """
    found = []
    for source in file.sources:
        scheme, _, rest = source.partition(":")
        try:
            origin = resolve(source, file.base)
        except SourceError as error:
            log.warning("%s is left out: %s", printable(shown(source)), printable(str(error)))
            continue
        if scheme == "zenodo":
            record, _, name = rest.partition("/")
            found.append(f"{ZENODO}/records/{record}/files/{quote(name)}?download=1")
        elif scheme == "gdrive":
            found.append(f"https://drive.usercontent.google.com/download?id={quote(rest)}&export=download&confirm=t")
        else:
            found.append(origin.resolve().as_uri() if isinstance(origin, Path) else shown(origin.url))
    return tuple(found)


def shown(source: str) -> str:
    """A source as messages and stamps show it: without the user name and password that an address may hold."""
    return re.sub(r"//[^/@]+@", "//", source)


def is_remote(source: str) -> bool:
    """Whether a source needs a connection."""
    return source.startswith(("https://", "http://", "hf://", "zenodo:", "gdrive:"))


def packaged_path(source: str) -> Path | None:
    """The file that a `package:` source names; None for any other source."""
    return PACKAGED / source.removeprefix("package:") if source.startswith("package:") else None


def resolve(source: str, base: Path) -> Remote | Path:
    """Return where a source's bytes are: an address, or a path on this machine (relative ones are relative to `base`).

    Raises:
        SourceError: The source has a form that is not known, or an address that is not allowed.
    """
    scheme, _, rest = source.partition(":")
    if packaged := packaged_path(source):
        return packaged
    if scheme == "file":
        return base / user_path(rest.removeprefix("//"))
    if scheme == "hf":
        return _hugging_face(source)
    if scheme == "zenodo":
        return _zenodo(rest)
    if scheme == "gdrive":
        return Remote(f"https://drive.google.com/uc?id={rest}", read_page=_after_drive_page)
    if scheme in ("https", "http"):
        return Remote(check_url(source))
    raise SourceError("not a known form of source (https://, hf://, zenodo:, gdrive:, file:, package:)")


def _hugging_face(source: str) -> Remote:
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)@([^/]+)/(.+)", source)
    if not match:
        raise SourceError("a Hugging Face source must read hf://owner/name@revision/file")
    from huggingface_hub import get_token, hf_hub_url

    repo, revision, name = match.groups()
    url = hf_hub_url(repo, name, revision=revision, endpoint=hugging_face())
    hint = f"if {repo} is private or gated, ask for access on its page, then log in (`hf auth login`, or set HF_TOKEN)"
    says = partial(_hub_says, is_fixed=re.fullmatch(_COMMIT, revision) is not None)
    return Remote(check_url(url), token=get_token() or "", hint=hint, read_headers=says)


def _hub_says(headers: Mapping[str, str], *, is_fixed: bool) -> Statement:
    """Read what the hub says of a file: its commit, and the sha256 of a file that it stores by Git LFS.

    What lies under a branch or tag may be another file tomorrow: only at a commit is the digest one to hold it to.
    """
    named = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
    commit = headers.get("X-Repo-Commit", "").lower()
    digests = {"sha256": named} if is_fixed and re.fullmatch("[0-9a-f]{64}", named) else {}
    return Statement("the hub", digests, commit if re.fullmatch(_COMMIT, commit) else "")


def _zenodo(rest: str) -> Remote:
    match = re.fullmatch(r"(\d+)/([^/]+)", rest)
    if not match:
        raise SourceError("a Zenodo source must read zenodo:RECORD/file, RECORD a number")
    record, name = match.groups()
    read = partial(_after_zenodo_record, name=name)
    return Remote(f"{ZENODO}/api/records/{record}", read_page=read, page_type="application/json")


def _after_zenodo_record(page: str, name: str) -> Page:
    """Find a file in what Zenodo's API says of a record: https://developers.zenodo.org/#retrieve37."""
    try:
        files = {file["key"]: file for file in json.loads(page)["files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise SourceError("Zenodo's answer is not the description of a record with files") from error
    if name not in files:
        raise SourceError(f"Zenodo's record has no file {name!r}; it has {printable(', '.join(map(str, files)))[:300]}")
    file = files[name]
    try:
        url, said = file["links"]["self"], str(file.get("checksum", ""))
    except (LookupError, TypeError) as error:
        raise SourceError(f"Zenodo does not say where the file {name!r} of the record is") from error
    kind, _, digest = said.lower().partition(":")
    is_known = kind == "md5" and re.fullmatch("[0-9a-f]{32}", digest)
    return Page(str(url), Statement("Zenodo", {"md5": digest} if is_known else {}))


def _after_drive_page(page: str) -> Page:
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    try:
        return Page(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError as error:
        busy = re.search(r"quota|too many users", page, re.IGNORECASE)
        cause = "the file's download quota is used up for now, try again in a day" if busy else "no public access"
        raise SourceError(f"Google Drive shows a page, not the file ({cause}): {error}") from error


def check_url(url: str, previous: str = "") -> str:
    r"""Refuse an address that is not https, except http to this very machine.

    Parsers differ over odd addresses (`http://one\@two/`): what is checked is the form that `requests` makes of the
    address and connects to, and nothing else may be opened.

    Args:
        url: Address about to be opened.
        previous: Address that redirects to it; nothing may lead from https to http.

    Returns:
        The address in that form.

    Raises:
        SourceError: The address is not allowed.
    """
    import requests

    try:
        prepared = requests.Request("GET", url).prepare().url or ""
        parts = urlsplit(prepared)
        host = parts.hostname or ""
    except ValueError as error:  # every error of requests about an address is one
        raise SourceError(
            f"refused: not an address ({printable(error)}); only https is allowed (http to this machine alone)"
        ) from error
    if parts.scheme == "https" and host:
        return prepared
    address = f"{parts.scheme}://{host}"
    if previous.startswith("https:"):
        raise SourceError(f"refused: redirected from https to {address}, where anyone on the way could change the file")
    if parts.scheme != "http" or not _is_loopback(host):
        way = "redirected to " if previous else ""
        raise SourceError(f"refused: {way}{address}; only https is allowed (http to this machine alone)")
    return prepared


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_page(head: bytes) -> None:
    """Refuse an HTML page or a pointer, which hosts send instead of a file.

    Args:
        head: The first bytes of the file.

    Raises:
        SourceError: They are those of an HTML page, or of a pointer of Git LFS or git-annex.
    """
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
        named = f" titled {title[1].decode('utf-8', 'replace').strip()[:80]!r}" if title else ""
        raise SourceError(f"an HTML page{named} came instead of the file")
    if pointer := pointer_in(head):
        raise SourceError(f"a {pointer.program} pointer came instead of the file: `{pointer.command}` fetches the file")
