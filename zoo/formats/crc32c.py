"""CRC-32C, the Castagnoli checksum (RFC 3720, appendix B.4), and the form in which TensorFlow stores it."""

from __future__ import annotations

_ONES = 0xFFFFFFFF
_SECTION = 4 << 20  # bytes copied at once: the library takes nothing but bytes
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of bytes, for example 0xE3069283 for `b"123456789"`."""
    import google_crc32c

    view, checksum = memoryview(data).cast("B"), 0
    for start in range(0, len(view), _SECTION):
        checksum = google_crc32c.extend(checksum, bytes(view[start : start + _SECTION]))
    return checksum


def masked(crc: int) -> int:
    """Return a checksum in the form in which LevelDB and TensorFlow store it (leveldb, util/crc32c.h: Mask)."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _ONES
