"""Warnings that hold of many images, or that several processes have: each is said once, and counted at the end."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from zoo.settings import local_rank, processes_of_torchrun
from zoo.siblings import began, shared_folder

log = logging.getLogger("zoo")

Role: TypeAlias = Literal["main", "helper", "silent"]
"""Of a process in a block. `main` says what it has to say; a `helper` what nobody has said before; a `silent` one does
too, but holds back warnings of images: those that it alone has are said at the end."""

_IMAGE = "image"
"""Attribute of a record: the image that it is about."""
_NUMBER = re.compile(r"\d[\d.,]*(e[-+]?\d+)?")
_BYTES = 8
"""Of the digest that stands for an image's name."""
_MOST_LETTERS = 160
_IMAGES, _SAID, _HELD = ".images", ".said", ".held"
"""Ends of the files of a warning: the images that it holds for; its text, once it was said, or as one waits with it."""
_PRESENT, _LEFT, _TOLD = "present", "left", "told"
"""Files of a shared block: the processes that are in it, those that left it, and that one of them tells."""


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
    the block count as this one. Of those that one torchrun started on this machine the first one alone tells of
    images; what the others alone have to say of them comes at the end, or where one of them fails. Any other warning is
    said by the one that has it first, and errors by all. Where the log shows debugging, all are said. Inside another
    block it does nothing.
    """
    if present_folder():
        yield
        return
    try:
        shared = shared_folder()
        temporary = None if shared else TemporaryDirectory(prefix="zoo-")
    except OSError:  # nothing can be written: each warning is said
        yield
        return
    with temporary or nullcontext(str(shared)) as folder:
        once = _Once(Path(folder), "silent" if shared and local_rank() else "main")
        once.enter()
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            once.leave(processes_of_torchrun() if shared else 1, has_failed=has_failed)
            if shared and once.has_told:
                rmtree(shared, ignore_errors=True)


def count_in(handler: logging.FileHandler) -> None:
    """Have the block that this process is in write its counts to a log too, though its handler may be gone by then.

    As long as the handler is there, it also gets at once what this process holds back.
    """
    for once in log.filters:
        if isinstance(once, _Once):
            once.logs[handler.baseFilename] = handler


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


class _Once(logging.Filter):
    """Lets the first of some warnings pass. The folder has files for each, which all processes write to."""

    def __init__(self, folder: Path, role: Role) -> None:
        super().__init__()
        self.folder, self.role, self.has_told = folder, role, False
        self.logs: dict[str, logging.FileHandler] = {}
        self._own: set[str] = set()
        """Kinds of warnings that this process has had."""

    def enter(self) -> None:
        """Begin to filter, and note that this process is in the block."""
        with suppress(OSError):
            _append(self.folder / _PRESENT, f"{os.getpid()} {began(os.getpid())}\n".encode())
        log.addFilter(self)

    def leave(self, processes: int, *, has_failed: bool) -> None:
        """Stop filtering, and tell what is left: the last of so many processes all, one that failed what is held."""
        log.removeFilter(self)
        with suppress(OSError):
            if has_failed and self.role == "silent":  # the others may be killed for it
                self._tell_held()
            if processes == 1 or self._is_last(processes):
                self.has_told = True
                self._tell()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be said."""
        image, text = getattr(record, _IMAGE, None), record.getMessage()
        if record.levelno >= logging.ERROR or (image is None and record.levelno < logging.WARNING):
            return True
        is_all = log.isEnabledFor(logging.DEBUG)
        is_held = self.role == "silent" and image is not None and not is_all
        kind = _kind(text if image is None else _NUMBER.sub("#", text.replace(image, "")))
        is_own = kind in self._own
        self._own.add(kind)
        try:
            is_new = self._note(kind, text, image, _HELD if is_held else _SAID)
        except FileNotFoundError:  # the folder is gone: each process says it once
            return is_all or not is_own
        except OSError:  # no room for counting: it is said
            return True
        if is_held and not is_own:
            for handler in self.logs.values():
                if handler in log.handlers:
                    handler.handle(record)
        repeats = image is None and self.role == "main" and is_own
        return is_all or repeats or (is_new and not is_held)

    def _note(self, kind: str, text: str, image: str | None, end: str) -> bool:
        """Note a warning, and its image; returns whether its text is the first."""
        if image is None:
            return self._keep(kind + end, text)
        digest = hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=_BYTES).digest()
        _append(self.folder / (kind + _IMAGES), digest)
        return self._keep(kind + end, f"{image}: {' '.join(text.replace(image, '').split())}")

    def _keep(self, name: str, text: str) -> bool:
        """Write a text to a file, unless there is one; returns whether there was none."""
        try:
            with (self.folder / name).open("x", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _is_last(self, processes: int) -> bool:
        """Note that this process leaves; returns whether it is to tell, as all others left or died."""
        _append(self.folder / _LEFT, f"{os.getpid()}\n".encode())
        left = set((self.folder / _LEFT).read_text().split())
        present = dict(line.split() for line in (self.folder / _PRESENT).read_text().splitlines())
        dead = [process for process, since in present.items() if process not in left and began(int(process)) != since]
        return len(left) + len(dead) >= processes and self._keep(_TOLD, "")

    def _tell_held(self) -> None:
        """Say what is held and nobody has said."""
        for file in sorted(self.folder.glob(f"*{_HELD}"), key=lambda path: path.stat().st_mtime_ns):
            text = _read(file)
            if self._keep(file.stem + _SAID, text):
                log.warning("%s", text)

    def _tell(self) -> None:
        """Say of how many images each warning holds that holds for several, and what nobody has said."""
        import numpy as np

        files = [file for file in self.folder.iterdir() if file.suffix in (_SAID, _HELD)]
        seen = set[str]()
        for file in sorted(files, key=lambda path: (path.suffix == _HELD, path.stat().st_mtime_ns)):
            if file.stem in seen:
                continue
            seen.add(file.stem)
            said, images = _read(file), file.with_suffix(_IMAGES)
            digests = np.fromfile(images, f"V{_BYTES}").view(np.uint64) if images.exists() else np.zeros(0, np.uint64)
            if (count := len(np.unique(digests))) > 1:
                short = said if len(said) <= _MOST_LETTERS else f"{said[:_MOST_LETTERS]}..."
                with _with_handlers(self.logs.values()):
                    log.warning("%d images have this warning (--debug names each), the first is %s", count, short)
            elif file.suffix == _HELD:  # the log of its process has it
                log.warning("%s", said)


@contextmanager
def _with_handlers(handlers: Iterable[logging.FileHandler]) -> Iterator[None]:
    """Write what is logged inside the block to these files too, as far as they are still there."""
    added = [each for each in handlers if each not in log.handlers and Path(each.baseFilename).exists()]
    for handler in added:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            log.removeHandler(handler)
            handler.close()


def _append(file: Path, words: bytes) -> None:
    with file.open("ab", buffering=0) as opened:  # in one piece: other processes write to it
        opened.write(words)


def _read(file: Path) -> str:
    return file.read_text("utf-8", "surrogateescape")


def _kind(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
