"""Digests do not depend on how bytes come, and what a file says comes out as one line that steers nothing."""

import hashlib
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from zoo.fetching.digests import Hasher, difference, digests_of
from zoo.formats.crc32c import crc32c, masked
from zoo.messages import csv_cell, printable
from zoo.record import DIGESTS

CASTAGNOLI = 0x82F63B78


def bit_by_bit(data):
    """CRC-32C as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(data=st.binary(max_size=200))
@example(b"123456789")
def test_the_checksum_is_that_of_its_definition(data):
    """Of any bytes, whichever buffer holds them."""
    assert {crc32c(data), crc32c(bytearray(data)), crc32c(memoryview(data))} == {bit_by_bit(data)}


@given(crc=st.integers(0, 0xFFFFFFFF))
def test_a_masked_checksum_can_be_unmasked(crc):
    """As LevelDB does: no two checksums have one mask."""
    turned = (masked(crc) - 0xA282EAD8) & 0xFFFFFFFF
    assert ((turned >> 17) | (turned << 15)) & 0xFFFFFFFF == crc


@given(pieces=st.lists(st.binary(max_size=40), max_size=6))
def test_digests_do_not_depend_on_the_pieces(pieces):
    """Of a stream, and of the file that it becomes."""
    data = b"".join(pieces)
    hasher = Hasher(DIGESTS, len(data))
    for piece in pieces:
        hasher.update(piece)
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert hasher.digests() == {"sha256": hashlib.sha256(data).hexdigest(), "md5": md5, "git_blob": blob}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        assert digests_of(path, DIGESTS) == hasher.digests()


@given(
    data=st.binary(min_size=1, max_size=40),
    at=st.integers(0),
    kinds=st.sets(st.sampled_from(sorted(DIGESTS)), min_size=1),
)
def test_a_changed_bit_is_a_difference(data, at, kinds):
    """By whichever digest is known."""
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << at % 8
    found = []
    for content in (data, bytes(changed)):
        hasher = Hasher(kinds, len(content))
        hasher.update(content)
        found.append(hasher.digests())
    assert difference(*found)
    assert not difference(found[0], found[0])


@given(text=st.text(st.characters()))
@example("\ud800 a lone surrogate")
def test_a_text_from_a_file_is_one_line_that_steers_nothing(text):
    """Every character can be printed, and all that could be at first is as it was."""
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    shown.encode("utf-8")


@given(text=st.text(st.characters()))
@example("=1+1")
@example("-5e3")
def test_no_cell_is_a_formula(text):
    """It begins with what makes none, or it is a number."""
    cell = csv_cell(text)
    assert cell.isprintable()
    if cell.startswith(("=", "+", "-", "@")):
        float(cell)
