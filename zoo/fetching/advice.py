"""Explains why no source gave a file, and lists every way out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import DownloadError, IntegrityError, OfflineError, ZooError
from zoo.fetching.cache import stamp_path
from zoo.fetching.pinning import why_unused
from zoo.fetching.remote import SourceError, WrongDigestError
from zoo.fetching.sources import shown
from zoo.messages import printable
from zoo.record import WeightsFile

if TYPE_CHECKING:
    from zoo.fetching.partial import StorageError
    from zoo.record import RemoteFile


def no_source_left(
    file: RemoteFile, request: str, target: Path, failures: list[tuple[str, SourceError]], skipped: list[str]
) -> ZooError:
    """The error for a file that is not on this machine and that no source gave.

    Args:
        file: The file.
        request: What the user asked for.
        target: Its path in the cache.
        failures: The sources that were tried, and what each said.
        skipped: Those that were not, for connections are forbidden.
    """
    said = [f"  {_link(source)}: {error}" for source, error in failures]
    if skipped:
        said += [f"  {_link(source)}: not tried" for source in skipped]
        state = "damaged" if os.path.isfile(target) else "not"
        what = (
            f"which is {state} in the cache, and connections are forbidden (offline=True, ZOO_OFFLINE or "
            "HF_HUB_OFFLINE). Its sources:"
        )
        ways = ["allow connections", *_other_ways(file, request, target)]
        return OfflineError(_page(file, request, what, said, ways))
    if failures and all(isinstance(error, WrongDigestError) for _, error in failures):
        accept = f"leave it, or to accept the new file remove {stamp_path(target)} and {target}"
        remedy = "try again later, and report it if it stays: the authors may have put up another file"
        what = "but every source sent another file, which was not kept."
        way = remedy if file.digests else accept
        return IntegrityError(_page(file, request, what, said, [way]))
    none = [] if failures else ["  there is no source on record"]
    ways = ["try again later", *_other_ways(file, request, target)]
    return DownloadError(_page(file, request, "and no source gave it:", said + none, ways))


def _page(file: RemoteFile, request: str, what: str, said: list[str], ways: list[str]) -> str:
    if isinstance(file, WeightsFile) and file.state == "withdrawn":
        said = [*said, "  Their publishers withdrew them, so they may never answer again"]
    lines = [f"{request} needs {_named(file)}, {what}", *said, "What you can do:", *(f"  - {way}" for way in ways)]
    return "\n".join(lines)


def _link(source: str) -> str:
    """A source as an address that a browser opens, where it stands for one."""
    scheme, _, rest = source.partition(":")
    return printable(f"https://drive.google.com/file/d/{rest}" if scheme == "gdrive" else shown(source))


def _named(file: RemoteFile) -> str:
    size = "size unknown" if file.bytes is None else f"{file.bytes:,} bytes"
    digests = ", ".join(f"{kind} {digest}" for kind, digest in file.digests.items()) or "sha256 unknown"
    return f"{printable(file.filename)} ({size}, {digests})"


def _other_ways(file: RemoteFile, request: str, target: Path) -> list[str]:
    ways = []
    if isinstance(file, WeightsFile):
        name = request if "." in request else f"{request}.{file.tag}"  # where it keeps licences, input and assets
        ways.append(
            "fetch it with a browser, or on another machine, and hand it over: "
            f"load_model({name!r}, checkpoint='FILE'), or for good `zoo import {printable(name)} FILE`"
        )
        ways.append(
            f"copy the cache ($ZOO_HOME, here {target.parent.parent}) from a machine where `zoo download {request}` "
            "went well"
        )
    if os.path.isfile(target):
        ways.append(f"put the right file at {target}. The one there is not used: {why_unused(file, target)}")
    else:
        ways.append(f"put the file by hand at {target}")
    if file.sha256:
        ways.append(f"set ZOO_MIRROR to a folder or address that has it as {file.sha256}")
    return ways


def cannot_store(file: RemoteFile, request: str, target: Path, error: StorageError) -> str:
    """The message for a cache that cannot take a file."""
    what = "the disk is full" if error.full else f"the cache cannot be written: {error}"
    return (
        f"{request} needs {_named(file)} in {target.parent}, but {what}. The temporary file was removed. "
        f"What you can do: {'free that many bytes' if error.full else 'make it writable'}, or let ZOO_HOME "
        "(or cache_dir=) name a folder elsewhere"
    )
