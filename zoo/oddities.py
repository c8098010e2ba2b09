"""Warnings that hold of many images, or that several processes have: each is said once, and counted at the end."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, gettempdir
from typing import ClassVar, Literal, TypeAlias

from zoo.settings import local_rank, processes_of_torchrun

log = logging.getLogger("zoo")

Role: TypeAlias = Literal["main", "helper", "silent"]
"""Of a process in a block. `main` says what it has to say; a `helper` what nobody has said before; a `silent` one says
nothing: what it alone has is said at the end."""

_IMAGE = "image"
"""Attribute of a record: the image that it is about."""
_NUMBER = re.compile(r"\d[\d.,]*(e[-+]?\d+)?")
_BYTES = 8
"""Of the digest that stands for an image's name."""
_MOST_LETTERS = 160
_IMAGES, _SAID, _HELD = ".images", ".said", ".held"
"""Ends of the files of a warning: the images that it holds for; its text, once it was said, or as one waits with it."""
_LEFT = "left"


def warn_of(image: object, text: str) -> None:
    """Log a warning of one image.

    Args:
        image: Its name, as the text has it.
        text: The warning.
    """
    log.warning("%s", text, extra={_IMAGE: str(image)}, stacklevel=2)


@contextmanager
def each_once() -> Iterator[None]:
    """Say each warning of images for the first one alone inside the block, and at its end of how many images it holds.

    Two warnings are one where they differ in the image's name and in numbers alone. Processes that are forked inside
    the block count as this one. Of those that one torchrun started on this machine the first one alone speaks, of
    other warnings too; what the others alone have to say comes at the end. Where the log shows debugging, all are said.
    Inside another block it does nothing.
    """
    if present_folder():
        yield
        return
    try:
        shared = _shared_folder()
        temporary = None if shared else TemporaryDirectory(prefix="zoo-")
    except OSError:  # nothing can be written: each warning is said
        yield
        return
    with temporary or nullcontext(str(shared)) as folder:
        once = _Once(Path(folder), "silent" if shared and local_rank() else "main")
        log.addFilter(once)
        try:
            yield
        finally:
            log.removeFilter(once)
            if shared is None or once.is_last(processes_of_torchrun()):
                once.tell()
                if shared:
                    rmtree(shared, ignore_errors=True)


def present_folder() -> str:
    """Return the folder in which the block that this process is in counts; empty outside of any."""
    return next((str(each.folder) for each in log.filters if isinstance(each, _Once)), "")


def help_count(folder: str) -> None:
    """From now on let this process count in another one's block, as one of a cluster's.

    Args:
        folder: From `present_folder` of that process. Where it is empty, or not on this machine, nothing changes.
    """
    if folder and Path(folder).is_dir() and not present_folder():
        log.addFilter(_Once(Path(folder), "helper"))


def _shared_folder() -> Path | None:
    """Make the folder of all processes that one torchrun started on this machine; None for a process of its own.

    They agree on its name by their parent and by when that began, for the number of a process comes back.

    Raises:
        OSError: It cannot be made, or is another user's.
    """
    if processes_of_torchrun() < 2 or not (began := _began(os.getppid())):
        return None
    _Once.blocks += 1  # one process may be in its next block while another is in this one
    run = (os.getppid(), began, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), _Once.blocks)
    folder = Path(gettempdir()) / f"zoo-{'-'.join(map(str, run))}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} is another user's")
    return folder


def _began(process: int) -> str:
    """When a process began, in ticks of the machine; empty where the system does not say it."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class _Once(logging.Filter):
    """Lets the first of some warnings pass. The folder has files for each, which all processes write to."""

    blocks: ClassVar[int] = 0
    """Shared blocks that this process has begun."""

    def __init__(self, folder: Path, role: Role) -> None:
        super().__init__()
        self.folder, self.role = folder, role

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be said."""
        image, text = getattr(record, _IMAGE, None), record.getMessage()
        if image is None and record.levelno < logging.WARNING:
            return True
        try:
            is_said = self._note(text, image)
        except OSError:  # no room for counting: it is said
            return True
        return is_said or log.isEnabledFor(logging.DEBUG)

    def _note(self, text: str, image: str | None) -> bool:
        """Note a warning; returns whether this process is to say it now."""
        if image is None:
            is_new = self._keep(_kind(text), text)
            return is_new or self.role == "main"
        kind = _kind(_NUMBER.sub("#", text.replace(image, "")))
        digest = hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=_BYTES).digest()
        with (self.folder / (kind + _IMAGES)).open("ab", buffering=0) as file:
            file.write(digest)
        return self._keep(kind, f"{image}: {' '.join(text.replace(image, '').split())}")

    def _keep(self, kind: str, text: str) -> bool:
        """Keep the text of a warning; returns whether it is the first, and not to be held."""
        end = _HELD if self.role == "silent" else _SAID
        try:
            with (self.folder / (kind + end)).open("x", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except FileExistsError:
            return False
        return self.role != "silent"

    def is_last(self, processes: int) -> bool:
        """Note that this process leaves the block; returns whether it is the last of so many that share it."""
        try:
            with (self.folder / _LEFT).open("ab", buffering=0) as file:
                file.write(b".")
                return file.tell() >= processes
        except OSError:
            return False

    def tell(self) -> None:
        """Say of how many images each warning holds that holds for several, and what nobody has said."""
        import numpy as np

        files = [file for file in self.folder.iterdir() if file.suffix in (_SAID, _HELD)]
        seen = set[str]()
        for file in sorted(files, key=lambda path: (path.suffix == _HELD, path.stat().st_mtime_ns)):
            if file.stem in seen:
                continue
            seen.add(file.stem)
            said, images = file.read_text("utf-8", "surrogateescape"), file.with_suffix(_IMAGES)
            digests = np.fromfile(images, f"V{_BYTES}").view(np.uint64) if images.exists() else np.zeros(0, np.uint64)
            if (count := len(np.unique(digests))) > 1:
                short = said if len(said) <= _MOST_LETTERS else f"{said[:_MOST_LETTERS]}..."
                log.warning("%d images have this warning (--debug names each), the first is %s", count, short)
            elif file.suffix == _HELD:
                log.warning("%s", said)


def _kind(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
