"""Decodes the index of a TensorFlow bundle: a sorted table of protocol buffers.

The table is LevelDB's (google/leveldb, doc/table_format.md), of which the saver uses no compression, no filters and no
meta blocks; the messages are those of tensorflow, core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from zoo.formats.crc32c import crc32c, masked

MAGIC = bytes.fromhex("57fb808b247547db")
"""The last eight bytes of an index."""
TYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64"},
    **{10: "bool", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64"},
}
"""Types that can be read, by their numbers in tensorflow, core/framework/types.proto."""

_FOOTER = 48
_TRAILER = 5  # bytes after a block: its compression and its checksum
_MOST_SHARDS = 99_999  # five digits
_MOST_AXES = 32
_MOST_VALUES = 1 << 48  # of one variable, or along an axis; -1, for a length that is not known, is larger here
_MOST_VARIABLES = 200_000  # each takes a hundred times the bytes in memory that an index can hold it in
_LONGEST_NAME = 4096
_MOST_NAMES = 64 << 20  # bytes; what names share is stored once, so a small file can hold more than memory does

_Fields: TypeAlias = "dict[int, list[int | bytes]]"


class IndexProblem(Exception):
    """Why an index cannot be read, as the end of a message."""


class _DamageError(IndexProblem):
    def __init__(self, what: str = "it is cut short or damaged") -> None:
        super().__init__(f"{what}. Fetch or copy it again")


@dataclass(frozen=True)
class Variable:
    """Where the values of one variable lie."""

    kind: str
    """Type of number as NumPy calls it; empty where it is another."""
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    """Bytes."""
    checksum: int
    """Masked CRC-32C of the bytes."""
    obstacle: str = ""
    """Why the values cannot be read; empty where they can."""


def decode_index(data: bytes) -> tuple[int, dict[str, Variable]]:
    """Return the number of shards and the variables of an index.

    Args:
        data: The whole file.

    Raises:
        IndexProblem: It is damaged, or in a form that is not known. Whatever the bytes are, this comes soon and without
            much memory.
    """
    table = _table(data)
    key, value = next(table, (b"", b""))
    if key or not value:
        raise IndexProblem("it has no header, so no TensorFlow saver wrote it")
    header = _fields(value)
    shards, order = _number(header, 1), _number(header, 2)
    if order:
        raise IndexProblem("its values are big-endian, which is not supported: save it on a little-endian machine")
    if not 1 <= shards <= _MOST_SHARDS:
        raise _DamageError
    pieces = b"\0"  # with which the names of parts of partitioned variables begin
    variables: dict[str, Variable] = {}
    for key, value in table:
        if not key.startswith(pieces):
            variables[key.decode("utf-8", "backslashreplace")] = _variable(value, shards)
        if len(variables) > _MOST_VARIABLES:
            raise IndexProblem(f"it has more than {_MOST_VARIABLES} variables, too many for a checkpoint")
    return shards, variables


def _variable(value: bytes, shards: int) -> Variable:
    entry = _fields(value)
    number, shard, offset, size, checksum = (_number(entry, field) for field in (1, 3, 4, 5, 6))
    kind, shape = TYPES.get(number, ""), _shape(entry)
    if shard >= shards:
        raise _DamageError
    if 7 in entry:
        obstacle = "it is stored in slices, as a partitioned variable. Save it without a partitioner"
        return Variable(kind, shape, shard, 0, 0, 0, obstacle)
    if not kind:
        obstacle = f"its type, number {number} of TensorFlow's, is not one of {', '.join(TYPES.values())}"
        return Variable(kind, shape, shard, offset, size, checksum, obstacle)
    if size != prod(shape) * _item_size(kind):
        raise _DamageError
    return Variable(kind, shape, shard, offset, size, checksum)


def _item_size(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return int(bits[0]) // 8 if bits else 1


def _shape(entry: _Fields) -> tuple[int, ...]:
    axes = [axis for shape in entry.get(2, []) for axis in _fields(_message(shape)).get(2, [])]
    lengths = tuple(_number(_fields(_message(axis)), 1) for axis in axes)
    if len(lengths) > _MOST_AXES or prod(max(length, 1) for length in lengths) > _MOST_VALUES:
        raise _DamageError
    return lengths


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table, in order."""
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise _DamageError
    view = memoryview(data)
    blocks, footer = view[:-_FOOTER], view[-_FOOTER:]
    _, at = _handle(footer, 0)  # the index of meta blocks
    handle, _ = _handle(footer, at)
    last: bytes | None = None
    total = 0
    for _, stored in _entries(_block(blocks, *handle)):
        handle, _ = _handle(memoryview(stored), 0)
        for key, value in _entries(_block(blocks, *handle)):
            total += len(key)
            if total > _MOST_NAMES or (last is not None and key <= last):
                raise _DamageError
            last = key
            yield key, value


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Return offset and size of a block, and where this handle ends."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(blocks: memoryview, offset: int, size: int) -> memoryview:
    """Return the checked content of a block, without its list of restarts."""
    if size < 4 or offset + size + _TRAILER > len(blocks):
        raise _DamageError
    content, trailer = blocks[offset : offset + size], blocks[offset + size : offset + size + _TRAILER]
    if masked(crc32c(blocks[offset : offset + size + 1])) != int.from_bytes(trailer[1:], "little"):
        raise _DamageError("the checksum of a block of it is wrong: it is damaged")
    if trailer[0]:
        kind = "Snappy" if trailer[0] == 1 else f"number {trailer[0]}"
        raise IndexProblem(f"it is compressed ({kind}), which no TensorFlow saver does and which is not supported")
    restarts = 4 * (int.from_bytes(content[-4:], "little") + 1)
    if restarts > size:
        raise _DamageError
    return content[: size - restarts]


def _entries(block: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block; a key is stored without what it shares with the one before."""
    at, key = 0, b""
    while at < len(block):
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or shared + added > _LONGEST_NAME or at + added + length > len(block):
            raise _DamageError
        key = key[:shared] + bytes(block[at : at + added])
        at += added + length
        yield key, bytes(block[at - length : at])


def _fields(message: bytes) -> _Fields:
    """Return the fields of a protocol buffer by number, each with its values in order."""
    found: _Fields = {}
    data, at = memoryview(message), 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | bytes
        value, at = _varint(data, at) if tag & 7 == 0 else _bytes(data, at, tag & 7)
        found.setdefault(tag >> 3, []).append(value)
    return found


def _bytes(data: memoryview, at: int, wire_type: int) -> tuple[int | bytes, int]:
    """Return the value of a field that is no varint, and where it ends: 8 bytes, 4, or as many as it says."""
    if wire_type == 2:
        length, at = _varint(data, at)
    else:
        length = {1: 8, 5: 4}.get(wire_type, len(data))
    if at + length > len(data):
        raise _DamageError
    value = bytes(data[at : at + length])
    return value if wire_type == 2 else int.from_bytes(value, "little"), at + length


def _number(fields: _Fields, number: int) -> int:
    """The last value of a field, as protocol buffers have it; 0 where it is left out."""
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise _DamageError
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _DamageError
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number of at most 64 bits, seven to a byte, that begins at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise _DamageError
