"""Warnings of single images: of a cohort each is said for its first image, and at the end of how many it holds."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

log = logging.getLogger("zoo")

_IMAGE = "image"
"""Attribute of a record: the image that it is about."""
_NUMBER = re.compile(r"\d[\d.,]*(e[-+]?\d+)?")
_BYTES = 8
"""Of the digest that stands for an image's name."""
_MOST_LETTERS = 160


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
    the block count as this one. Where the log shows debugging, all are said. Inside another block it does nothing.
    """
    temporary = None if any(isinstance(each, _Once) for each in log.filters) else _folder()
    if temporary is None:
        yield
        return
    with temporary as folder:
        once = _Once(Path(folder))
        log.addFilter(once)
        try:
            yield
        finally:
            log.removeFilter(once)
            once.tell()


def _folder() -> TemporaryDirectory[str] | None:
    """Where images are counted; None where nothing can be written, and each warning is said."""
    try:
        return TemporaryDirectory(prefix="zoo-")
    except OSError:
        return None


class _Once(logging.Filter):
    """Lets the first of some warnings pass. The folder has a file for each, which all processes write to."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be said."""
        image = getattr(record, _IMAGE, None)
        if image is None:
            return True
        text = record.getMessage()
        kind = hashlib.sha256(_NUMBER.sub("#", text.replace(image, "")).encode("utf-8", "surrogateescape")).hexdigest()
        try:
            is_first = self._note(kind, image, text)
        except OSError:  # no room for counting: it is said
            return True
        return is_first or log.isEnabledFor(logging.DEBUG)

    def _note(self, kind: str, image: str, text: str) -> bool:
        """Count an image; returns whether it is the first one with this kind of warning."""
        digest = hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=_BYTES).digest()
        with (self.folder / f"{kind}.images").open("ab", buffering=0) as file:
            file.write(digest)
        try:
            with (self.folder / f"{kind}.first").open("x", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{image}: {' '.join(text.replace(image, '').split())}")
        except FileExistsError:
            return False
        return True

    def tell(self) -> None:
        """Say of how many images each warning holds that holds for several."""
        import numpy as np

        for file in sorted(self.folder.glob("*.first"), key=lambda path: path.stat().st_mtime_ns):
            count = len(np.unique(np.fromfile(file.with_suffix(".images"), f"V{_BYTES}").view(np.uint64)))
            if count > 1:
                said = file.read_text("utf-8", "surrogateescape")
                short = said if len(said) <= _MOST_LETTERS else f"{said[:_MOST_LETTERS]}..."
                log.warning("%d images have this warning (--debug names each), the first is %s", count, short)
