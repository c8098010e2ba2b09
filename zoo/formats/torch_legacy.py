"""Checks what `torch.save` wrote before PyTorch 1.6, several pickles and then the values, before torch reads it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from zoo.formats.pickle_nodes import Damage, PickleProblem
from zoo.formats.pickles import Outline, outline

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = 8  # bytes in front of the values of a storage: how many they are, little-endian


def check_legacy(path: Path) -> Outline:
    """Walk the pickles, and check that the values of every storage follow, as many as they say.

    Raises:
        PickleProblem: They do not, or the pickles would make something else than tensors and plain values of a sane
            size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        stream = Within(file, size)
        if outline(stream, size).root != _MAGIC or outline(stream, size).root != _PROTOCOL:
            raise PickleProblem("it is a pickle of another program")
        outline(stream, size)  # sizes of numbers on the machine that wrote it
        made = outline(stream, size)
        keys = outline(stream, size).root
        if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
            raise Damage("the list of its storages is damaged")
        if set(keys) != set(made.storages) or len(keys) > len(made.storages):
            raise Damage("its list of storages is not that of its tensors")
        for key in keys:
            storage = made.storages[key]
            count = int.from_bytes(file.read(_COUNT), "little")
            if count != storage.count or file.tell() + storage.size > size:
                raise Damage(f"its storage {str(key)[:40]!r} is cut short")
            file.seek(storage.size, 1)
    return made


class Within:
    """A file of which no more is asked than it has: a length that a pickle states takes no memory by itself."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def tell(self) -> int:
        """Return where the file stands."""
        return self.file.tell()

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer where the file ends."""
        return self.file.read(min(size, self.size - self.file.tell()))

    def readline(self) -> bytes:
        """Return what is left of a line; no name of a function is longer."""
        return self.file.readline(1 << 16)
