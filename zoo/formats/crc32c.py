"""CRC-32C, the Castagnoli checksum (RFC 3720, appendix B.4), over megabytes and without a C extension.

A checksum without its first and last inversion is linear: pieces of the data are summed side by side, as one NumPy
vector, and joined in pairs by shifting the left one past the right one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_ONES = 0xFFFFFFFF
_SECTION = 4 << 20  # bytes summed at once, which bounds the memory taken
_SHORT = 256  # bytes up to which a plain loop is faster
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of bytes, for example 0xE3069283 for `b"123456789"`."""
    view = memoryview(data).cast("B")
    state = _ONES
    for start in range(0, len(view), _SECTION):
        state = _advance(state, view[start : start + _SECTION])
    return state ^ _ONES


def masked(crc: int) -> int:
    """Return a checksum in the form in which LevelDB and TensorFlow store it (leveldb, util/crc32c.h: Mask)."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _ONES


def _advance(state: int, data: memoryview) -> int:
    """Return the state of the register after more bytes."""
    import numpy as np

    if len(data) <= _SHORT:
        table = _byte_table()
        for byte in data:
            state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
        return state
    width = 64 if len(data) < 1 << 14 else 512
    pieces = -(-len(data) // width)
    padded = np.zeros(pieces * width, np.uint8)  # at the front, where zeros leave an empty register empty
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    low, high = _word_tables()
    register = np.zeros(pieces, np.uint32)
    for words in np.ascontiguousarray(padded.view("<u4").reshape(pieces, -1).T):
        register ^= words
        register = low[register & 0xFFFF] ^ high[register >> 16]
    return _join(register, width)


def _join(register: NDArray[Any], width: int) -> int:
    """Return the state after pieces of `width` bytes each, a power of two, from the states after each alone."""
    import numpy as np

    while len(register) > 1:
        if len(register) % 2:
            register = np.concatenate((np.zeros(1, np.uint32), register))
        register = _look_up(_shift_tables(width), register[0::2]) ^ register[1::2]
        width *= 2
    return int(register[0])


@cache
def _byte_table() -> tuple[int, ...]:
    import numpy as np

    return tuple(map(int, _after_zeros(np.arange(256, dtype=np.uint32), 8)))


@cache
def _word_tables() -> tuple[NDArray[Any], NDArray[Any]]:
    """What the lower and the upper half of a register become four bytes later."""
    import numpy as np

    halves = np.arange(1 << 16, dtype=np.uint32)
    upper = _after_zeros(halves, 16)
    return _after_zeros(upper, 16), upper


@cache
def _shift_tables(width: int) -> tuple[NDArray[Any], ...]:
    """What each of the four bytes of a register becomes after `width` zero bytes, a power of two."""
    import numpy as np

    if width == 1:
        return tuple(_after_zeros(np.arange(256, dtype=np.uint32) << np.uint32(8 * i), 8) for i in range(4))
    half = _shift_tables(width // 2)
    return tuple(_look_up(half, table) for table in half)


def _look_up(tables: tuple[NDArray[Any], ...], register: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = tables[0][register & 0xFF]
    for i, table in enumerate(tables[1:], start=1):
        found = found ^ table[(register >> (8 * i)) & 0xFF]
    return found


def _after_zeros(register: NDArray[Any], bits: int) -> NDArray[Any]:
    import numpy as np

    for _ in range(bits):
        register = (register >> np.uint32(1)) ^ np.where(register & np.uint32(1), np.uint32(_POLYNOMIAL), np.uint32(0))
    return register
