"""Fetches a model from the Hugging Face hub by its address, `hf://owner/name@revision`: what `zoo export` put there.

A branch or a tag may stand for another file tomorrow. So the commit that it stands for at its first use is kept in the
cache, with the digest that the hub states, and one that has moved since is an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

from zoo.errors import DownloadError, IntegrityError, OfflineError, OptionError
from zoo.fetching.cache import write_shared
from zoo.fetching.download import fetch, state_of
from zoo.files import read_text, user_path
from zoo.record import RemoteFile
from zoo.settings import cache_home, is_offline

log = logging.getLogger("zoo")

HUB_FILE = "model.safetensors"
"""Name of the file in a repository."""
_BRANCH = "main"
_ADDRESS = re.compile(rf"hf:/+([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/{re.escape(HUB_FILE)})?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_STATED = "the sha256 that the hub states of it"


class HubFile(NamedTuple):
    """A model of the hub on this machine."""

    path: Path
    address: str
    """With the commit, so that it stands for this file for ever."""
    sha256: str
    proved_by: str
    """What the digest was held against; empty where the hub states none."""

    @property
    def source(self) -> str:
        """Where the file came from."""
        return f"{self.address}/{HUB_FILE}"


@dataclass(frozen=True)
class _Pin:
    """What an address stood for at its first use."""

    address: str
    commit: str
    sha256: str | None
    """That the hub stated; None where it stated none."""


def is_hub(name: object) -> bool:
    """Whether a name, or a path that one was made into, is an address of the hub: `Path` makes `hf:/` of `hf://`."""
    return isinstance(name, str | PathLike) and str(name).startswith("hf:/")


def local_file(
    file: str | PathLike[str],
    cache_dir: str | Path | None = None,
    *,
    offline: bool | None = None,
    progress: bool = False,
) -> Path:
    """Return the path on this machine of the user's file, which is fetched where it is an address of the hub.

    Raises:
        OptionError: It is not a path.
        DownloadError: It cannot be fetched; `OfflineError`, `IntegrityError` for these causes.
    """
    return (
        fetch_hub(fspath(file), cache_dir, offline=offline, progress=progress).path if is_hub(file) else user_path(file)
    )


def fetch_hub(
    address: str, cache_dir: str | Path | None = None, *, offline: bool | None = None, progress: bool = True
) -> HubFile:
    """Return the file that an address of the hub stands for, verified.

    Args:
        address: `hf://owner/name@revision`; without a revision the branch `main`.
        cache_dir: The cache; see `cache_home`.
        offline: Whether connections are forbidden; see `is_offline`.
        progress: Whether to draw a progress bar, on a terminal.

    Raises:
        OptionError: The address has another form.
        OfflineError: The file is not on this machine, and connections are forbidden.
        IntegrityError: The revision has moved since its first use, or another file came than the hub states.
        DownloadError: The hub does not give the file.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise OptionError(
            f"{address!r}: an address of the hub is expected, hf://owner/name or hf://owner/name@revision"
        )
    repo, revision = match[1], match[2] or _BRANCH
    known = _read_pin(_pin_path(repo, revision, cache_dir))
    if known and (is_offline(offline) or _COMMIT.fullmatch(revision)):
        pin = known
    elif is_offline(offline):
        raise OfflineError(
            f"hf://{repo}@{revision} was never used on this machine, and connections are forbidden (offline=True, "
            f"ZOO_OFFLINE or HF_HUB_OFFLINE). Allow connections once, or copy the cache ({cache_home(cache_dir)}) from "
            "a machine that used it"
        )
    else:
        pin = _ask(repo, revision, known)
    source = f"hf://{repo}@{pin.commit}/{HUB_FILE}"
    file = RemoteFile((source,), None, pin.sha256)
    fetched = fetch(file, request=f"hf://{repo}@{revision}", cache_dir=cache_dir, offline=offline, progress=progress)
    if pin != known:
        for each in dict.fromkeys((revision, pin.commit)):
            _write_pin(_pin_path(repo, each, cache_dir), pin)
        log.info("hf://%s@%s is commit %s", repo, revision, pin.commit)
    return HubFile(fetched.path, pin.address, fetched.sha256, _STATED if pin.sha256 else "")


def _ask(repo: str, revision: str, known: _Pin | None) -> _Pin:
    """What the hub says now that a revision stands for."""
    try:
        commit = revision
        if not _COMMIT.fullmatch(revision):
            commit = state_of(f"hf://{repo}@{revision}/{HUB_FILE}").revision
        if not commit:
            raise DownloadError("the hub does not say which commit it is: name the commit, 40 digits")
        if known and known.commit != commit:
            raise IntegrityError(
                f"hf://{repo}@{revision} has moved: it was commit {known.commit} at its first use here, and now is "
                f"{commit}. Load hf://{repo}@{commit} for the new one, or {known.address} for the one of before"
            )
        says = state_of(f"hf://{repo}@{commit}/{HUB_FILE}")
    except DownloadError as error:
        raise DownloadError(
            f"hf://{repo}@{revision}: {error}. {HUB_FILE} is looked for, as `zoo export --to-hub` puts it there; what "
            "else a repository has is loaded by load_model(MODEL, checkpoint=FILE) once it is downloaded"
        ) from error
    return _Pin(f"hf://{repo}@{commit}", commit, says.digests.get("sha256"))


def _pin_path(repo: str, revision: str, cache_dir: str | Path | None) -> Path:
    digest = hashlib.sha256(f"{repo}@{revision}".encode()).hexdigest()
    return cache_home(cache_dir) / "hub" / f"{digest}.json"


def _read_pin(path: Path) -> _Pin | None:
    """None where there is none, or none that can be read: the hub is asked again."""
    try:
        return _Pin(**json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write_pin(path: Path, pin: _Pin) -> None:
    try:
        write_shared(path, json.dumps(asdict(pin), indent=1) + "\n")
    except OSError as error:
        log.warning("the commit of %s cannot be kept in %s: %s", pin.address, path, error)
