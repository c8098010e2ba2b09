"""Tells the format of a checkpoint by its content, never by its name."""

from __future__ import annotations

import pickle
from pathlib import Path

from zoo.errors import CheckpointFormatError
from zoo.files import pointer_at, pointer_in
from zoo.formats.tensorflow_bundle import find_bundle, is_index
from zoo.formats.tensorflow_index import MAGIC

SAFETENSORS, TORCH_ZIP, TORCH_LEGACY = "safetensors", "PyTorch zip", "PyTorch pickle"
READABLE = (SAFETENSORS, TORCH_ZIP, TORCH_LEGACY)
"""Formats of a checkpoint in one file."""
FOLDER = "folder"
"""What `sniff` says of a folder that is no TensorFlow checkpoint."""
TENSORFLOW = "TensorFlow checkpoint"
"""Start of the format names of a bundle, given by its prefix, its index or its folder."""
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "HDF5 file (Keras)",
    b"\x1f\x8b": "gzip archive",
    b"7z\xbc\xaf": "7z archive",
    b"BZh": "bzip2 archive",
    b"\x93NUMPY": "NumPy array",
}


def sniff(path: Path) -> str:
    """Name the format of a file by its content: one of those that can be read, or a description.

    Raises:
        CheckpointFormatError: There is no such file, or only a pointer to it, or it cannot be read.
    """
    try:
        return _sniff(path)
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror}") from error


def _sniff(path: Path) -> str:
    if path.is_dir():
        is_bundle = (path / "checkpoint").is_file() or any(map(is_index, path.glob("*.index")))
        return f"{TENSORFLOW} folder" if is_bundle else FOLDER
    if not path.is_file():
        if find_bundle(path):
            return TENSORFLOW
        if path.exists():  # opening it may wait for ever, and reading it may never end
            return "pipe, socket or device, not a file"
        if pointer := pointer_at(path):
            raise CheckpointFormatError(f"{path} is {pointer}")
        if path.is_symlink():
            raise CheckpointFormatError(f"{path} is a link to {path.readlink()}, where there is no file")
        raise CheckpointFormatError(f"{path} does not exist")
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read(8)
    if pointer := pointer_in(head):
        raise CheckpointFormatError(f"{path} is {pointer}")
    return _sniff_bytes(head, tail)


def _sniff_bytes(head: bytes, tail: bytes) -> str:
    if not head:
        return "empty file"
    if head[:4] == b"PK\x03\x04":
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "NumPy archive (.npz), as `zoo embed` writes features" if first_name.endswith(b".npy") else TORCH_ZIP
    if head[:1] == b"\x80" and head[1:2] and head[1] <= pickle.HIGHEST_PROTOCOL:
        return TORCH_LEGACY
    if head[257:262] == b"ustar":
        return "tar archive (in which PyTorch before 0.1.10 saved)"
    if tail == MAGIC:
        return f"{TENSORFLOW} index"
    if known := next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None):
        return known
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return SAFETENSORS
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return "HTML page"
    return "text file" if b"\0" not in head and head.isascii() else "file of unknown format"
