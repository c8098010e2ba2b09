"""Checks that a compressed image is whole: of one cut short, decoders may make a picture that is partly grey."""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

Stream = bytes | mmap
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""In a JPEG and a JPEG-LS stream. Among compressed bytes are only restarts, D0 to D7: FF is followed by 00 there, or in
JPEG-LS by less than 80."""
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_MOST_PARTS = 100_000
"""Segments, chunks or tile-parts of one image, which are gone through one by one."""
_MOST_SCANS = 100
"""Scans of a JPEG image. Progressive ones have some 10, each of which takes as long as the image."""
_CODESTREAM, _TILE_PART, _CODESTREAM_END = b"\xff\x4f\xff\x51", b"\xff\x90", b"\xff\xd9"
_AT_ONCE = 2**20
_CUT = "the image is cut short or damaged. Copy or export it again"


def check_file(path: Path, check: Callable[[Stream], None]) -> None:
    """Check a file by one of the functions below, without a copy of it in memory."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
        check(stream)


def check_jpeg(stream: Stream) -> None:
    """Check that a JPEG or JPEG-LS stream goes on to its end marker; padding may follow.

    Raises:
        ValueError: It does not, or has more scans than any encoder makes: a decoder goes through all pixels for each.
    """
    offset = scans = 0
    for _ in range(_MOST_PARTS):
        offset, kind = _next_marker(stream, offset)
        scans += kind == _SCAN
        if kind is None:
            raise ValueError(f"its JPEG stream has no end marker: {_CUT}")
        if kind == _END:
            break
        if kind != _START:
            offset += int.from_bytes(stream[offset : offset + 2], "big")
    else:
        raise ValueError(f"it is a JPEG of more than {_MOST_PARTS} segments")
    if scans > _MOST_SCANS:
        raise ValueError(f"it is a JPEG of {scans} scans, at most {_MOST_SCANS} an image are read")


def _next_marker(stream: Stream, offset: int) -> tuple[int, int | None]:
    """Return where the next marker ends and its second byte, None where there is no other."""
    found = _MARKER.search(stream, offset)
    return (found.end(), found[0][1]) if found else (offset, None)


def check_jpeg2000(stream: Stream) -> None:
    """Check that a JPEG 2000 stream, bare or in a JP2 file, has all tiles with all their parts, and its end marker.

    Raises:
        ValueError: It does not.
    """
    try:
        _check_tiles(stream, _codestream_in(stream))
    except struct.error as error:
        raise ValueError(f"its JPEG 2000 stream has no end marker: {_CUT}") from error


def _codestream_in(stream: Stream) -> int:
    """Return where the codestream begins: at once, or in the box of that name (ISO/IEC 15444-1, Annex I)."""
    offset = 0
    for _ in range(_MOST_PARTS):
        if stream[offset : offset + 4] == _CODESTREAM:
            return offset
        length, kind = struct.unpack_from(">I4s", stream, offset)
        header = 16 if length == 1 else 8
        if length == 1:
            length = struct.unpack_from(">Q", stream, offset + 8)[0]
        offset += header if kind == b"jp2c" else max(header, length)
    raise ValueError("it has no JPEG 2000 codestream")


def _check_tiles(stream: Stream, start: int) -> None:
    """Go from tile-part to tile-part by their lengths (ISO/IEC 15444-1, A.4.2)."""
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", stream, start + 8)
    expected = -((left - right) // max(1, width)) * -((top - bottom) // max(1, height))
    seen, parts, offset = Counter[int](), Counter[int](), start + 2
    for _ in range(_MOST_PARTS):
        marker, length = struct.unpack_from(">2sH", stream, offset)
        if marker == _TILE_PART:
            tile, length, _, count = struct.unpack_from(">HIBB", stream, offset + 4)
            seen[tile] += 1
            parts[tile] = max(parts[tile], count)
            length = (length or len(bytes(stream[offset:]).rstrip(b"\0\xff")) - 2) - 2  # 0: all up to the end marker
        offset += 2 + max(2, length)
        if stream[offset : offset + 2] == _CODESTREAM_END:
            break
    else:
        raise ValueError(f"its JPEG 2000 stream has more than {_MOST_PARTS} parts")
    if len(seen) != expected or any(seen[tile] < count for tile, count in parts.items()):
        raise ValueError(f"its JPEG 2000 stream lacks tiles or parts of tiles: {_CUT}")


def check_png(stream: Stream) -> None:
    """Check the checksum of every chunk of a PNG file, which a decoder does not where it needs no more bytes.

    Raises:
        ValueError: One is wrong, or the last chunk is missing.
    """
    offset, kind = 8, b""  # behind the signature
    for _ in range(_MOST_PARTS):
        length, kind = struct.unpack(">I4s", stream[offset : offset + 8].ljust(8, b"\0"))
        end, checksum = offset + 8 + length, 0
        for first in range(offset + 4, min(end, len(stream)), _AT_ONCE):
            checksum = zlib.crc32(stream[first : min(first + _AT_ONCE, end)], checksum)
        if stream[end : end + 4] != checksum.to_bytes(4, "big"):
            raise ValueError(f"its PNG chunk at byte {offset} does not match its checksum: {_CUT}")
        if kind == b"IEND":
            return
        offset = end + 4
    raise ValueError(f"it is a PNG of more than {_MOST_PARTS} chunks")
