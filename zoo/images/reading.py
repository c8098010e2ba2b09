"""Checks a file before a reader sees it: that it is a file and not a pointer, and the sizes that it declares.

A reader takes the sizes that a header declares on trust, and memory for them. The bounds here keep what is refused
below 4 GB and a minute, whatever the file says.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError
from zoo.files import pointer_at, pointer_in
from zoo.messages import reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_VOXELS = 2**29
"""Voxels of a volume: 2 GB as float32, as the largest scans in use have, 1024 x 1024 x 512 or 512 x 512 x 2048."""
MOST_PIXELS = 2**26
"""Pixels of a picture: 0.8 GB as three float32. A film of 43 x 35 cm digitised at 50 micrometres has 60 million."""
_AT_ONCE = 2**24
"""Bytes of a file that are turned into values at once."""
_START = 1024
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def start_of(path: Path, what: str, *, may_be_empty: bool = False) -> bytes:
    """Check that a path is a file that can be read and holds something, and return its first 1024 bytes.

    Args:
        path: Any path. What is no regular file is not opened, for a pipe would never end.
        what: What messages call it, for example `"image"`.
        may_be_empty: Whether a file of no bytes is taken, too.

    Raises:
        FileNotFoundError: There is nothing at the path.
        InputContractError: It is a folder, a pipe, a device, empty, may not be read, or is the pointer that Git LFS or
            git-annex leave in place of a file.
    """
    with refused(f"cannot read {path}", but=FileNotFoundError):
        if not path.exists():
            raise FileNotFoundError(f"no {what} at {path}: {_absence(path)}")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a folder")
            raise InputContractError(f"{path} is {kind}: one file with the {what} is expected")
        if not status.st_size and not may_be_empty:
            raise InputContractError(f"cannot read {path} as {_a(what)}: the file is empty")
        with path.open("rb") as file:
            start = file.read(_START)
    if pointer := pointer_in(start):
        raise InputContractError(f"{path} is {pointer}")
    return start


def _absence(path: Path) -> str:
    if pointer := pointer_at(path):
        return f"the path is {pointer}"
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which does not exist"
    return "the path does not exist"


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


@contextmanager
def refused(request: str, advice: str = "", *, but: type[Exception] = InputContractError) -> Iterator[None]:
    """Turn whatever a reader raises into one `InputContractError`: damaged files raise nearly everything.

    Args:
        request: How the message begins, for example `cannot read scan.nii as a volume`.
        advice: How it ends.
        but: Another error to let pass.
    """
    try:
        yield
    except (InputContractError, but):
        raise
    except Exception as error:  # the purpose of this block
        raise InputContractError(f"{request} ({reason_of(error)}){advice}") from error


def check_count(shape: tuple[int, ...], most: int, source: object, *, unit: str) -> None:
    """Check how many values a header declares before memory is taken for them.

    Raises:
        InputContractError: More than `most`, voxels or pixels, as `unit` says.
    """
    if (count := prod(map(int, shape))) > most:
        raise InputContractError(
            f"{source} declares {' x '.join(map(str, shape))} {unit}, {count:.3g}: at most {most:.3g} are read. If "
            "it is that large, cut it or resample it first; otherwise its header is damaged"
        )


def occurrences(chunks: Iterable[bytes], *patterns: bytes) -> int:
    """Count patterns, all of one length, in the chunks of a file, across their ends too."""
    count, rest = 0, b""
    for chunk in chunks:
        content = rest + chunk
        count += sum(map(content.count, patterns))
        rest = content[1 - len(patterns[0]) :]
    return count


def fill(values: NDArray[Any], read: Callable[[tuple[int, ...]], NDArray[Any]]) -> None:
    """Fill an array from a stream in parts, so that no second copy of a large one is in memory.

    Args:
        values: What to fill, the axis that changes slowest in the stream first; its strides do not matter.
        read: Returns the next values of the stream in a shape.
    """
    rows = max(1, _AT_ONCE // values.itemsize) * len(values) // values.size
    if not rows and values.ndim > 1:
        for part in values:
            fill(part, read)
        return
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        part[...] = read(part.shape)
