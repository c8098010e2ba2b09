"""Copies of single tensors out of a zip archive of `torch.save`, whose values lie in it as they are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import FileIO
from typing import TYPE_CHECKING, TypeAlias

from zoo.formats.torch_zip import TorchZip, ZipProblem, data_offset

if TYPE_CHECKING:
    from torch import Tensor


Place: TypeAlias = "tuple[str | int | None, Tensor]"
"""The key of a tensor's storage and how it lies there; or None and the tensor, which is to be copied as it is."""


def place_of(tensor: Tensor, key: str | int | None) -> Place:
    """Return where a mapped tensor is read again, which keeps no mapping alive where its storage is known.

    Args:
        tensor: The tensor; a conjugated or negated one has other values than its storage.
        key: Of its storage, None where that is not known.
    """
    import torch

    if key is None or tensor.is_conj() or tensor.is_neg():
        return None, tensor
    count = tensor.untyped_storage().nbytes() // tensor.itemsize
    storage = torch.empty(count, dtype=tensor.dtype, device="meta")
    return key, storage.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def read_tensors(archive: TorchZip, places: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Yield names with tensors in memory, each read when its turn comes.

    Raises:
        ZipProblem: The file has changed since it was opened.
    """
    try:
        with FileIO(archive.path) as file:
            for name, (key, layout) in places.items():
                if key is None:
                    yield name, layout.clone()
                else:
                    yield name, _read(file, data_offset(file, archive.records[key]), layout)
    except OSError as error:
        raise ZipProblem(str(error)) from error


def _read(file: FileIO, start: int, layout: Tensor) -> Tensor:
    """Read a tensor of a storage that starts at a byte of the file: what lies between its first value and its last."""
    import torch

    steps = zip(layout.size(), layout.stride(), strict=True)
    count = 1 + sum((side - 1) * stride for side, stride in steps) if layout.numel() else 0
    flat = torch.empty(count, dtype=layout.dtype, device="cpu")
    file.seek(start + int(layout.storage_offset()) * layout.itemsize)
    memory = flat.view(torch.uint8).numpy().data
    while memory:
        if not (length := file.readinto(memory)):
            raise ZipProblem("it was cut short while it was read")
        memory = memory[length:]
    found = flat.as_strided(layout.size(), layout.stride())
    return found if found.is_contiguous() else found.clone()
