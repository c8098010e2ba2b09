"""Images cut short, and what an interrupted copy leaves: refused, where a decoder paints the rest grey in silence."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from zoo.errors import InputContractError
from zoo.images import whole
from zoo.images.dicom_bounds import decode_pixels
from zoo.images.pictures import read_dicom, read_picture
from zoo.images.whole import check_jpeg, check_jpeg2000, check_png

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
JPEG, JPEG2000 = ("JPEG", check_jpeg), ("JPEG2000", check_jpeg2000)
TILES = {"no_jp2": True, "tile_size": (32, 32)}
KINDS = {
    "baseline": (JPEG, {"quality": 90}),
    "restarts": (JPEG, {"restart_marker_rows": 1}),
    "progressive": (JPEG, {"progressive": True}),
    "codestream": (JPEG2000, {"no_jp2": True}),
    "tiles": (JPEG2000, TILES),
    "jp2": (JPEG2000, {}),
    "png": (("PNG", check_png), {}),
}


def encoded(kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **settings)
    return buffer.getvalue()


def tile_ends(stream):
    """Where each tile-part ends."""
    ends, place = [], stream.index(b"\xff\x90")
    while stream[place : place + 2] == b"\xff\x90":
        place += struct.unpack_from(">I", stream, place + 6)[0]
        ends.append(place)
    return ends


def between_tiles(stream):
    """Where PIL takes what is there for a whole image of JPEG 2000: behind the marker of the next tile-part."""
    return [end + 2 for end in tile_ends(stream)[:-1]]


def film(tmp_path, syntax, stream, **edits):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", PIXELS, bits=8))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    for name, value in edits.items():
        setattr(dataset, name, value)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    return tmp_path / "a.dcm"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_cut_anywhere_is_refused(kind):
    """Bare, padded to an even length, or filled up to its length; as a whole it may have any padding."""
    (name, check), settings = KINDS[kind]
    stream = encoded(name, **settings)
    for padding in (b"", b"\0", b"\xff", bytes(100)):
        check(stream + padding)
    cuts = [*range(8, len(stream), 29), *range(len(stream) - 12, len(stream))]
    for cut in cuts + (between_tiles(stream) if kind == "tiles" else []):
        rest = len(stream) - cut
        for filling in (b"", b"\0", bytes(rest), b"\xff" * rest):
            if stream[:cut] + filling != stream:
                with pytest.raises(ValueError, match=r"cut short or damaged\. Copy or export it again"):
                    check(stream[:cut] + filling)


def test_jpeg_2000_without_a_tile_is_refused_though_it_ends_properly():
    """Or without a part of one; a last part whose length is 0 goes on to the end marker."""
    stream = encoded("JPEG2000", **TILES)
    start, *ends = stream.index(b"\xff\x90"), *tile_ends(stream)
    for missing in range(len(ends)):
        with pytest.raises(ValueError, match="lacks tiles or parts of tiles"):
            check_jpeg2000(stream[: [start, *ends][missing]] + stream[ends[missing] :])
    last, parts = bytearray(stream), bytearray(stream)
    last[ends[-2] + 6 : ends[-2] + 10] = bytes(4)
    check_jpeg2000(bytes(last) + b"\0")
    with pytest.raises(ValueError, match="no end marker"):
        check_jpeg2000(bytes(last[:-9]))
    parts[start + 11] = 2
    with pytest.raises(ValueError, match="lacks tiles or parts of tiles"):
        check_jpeg2000(bytes(parts))


def test_bytes_of_jpeg_ls_are_no_markers():
    """There FF is followed by less than 80; and a thumbnail's end is not that of the image."""
    scan = b"\xff\xd8\xff\xda\0\4\0\0" + bytes(range(256)).replace(b"\xff", b"") + b"\xff\x41\xff\x7f\xff\xff\xd0"
    check_jpeg(scan + b"\xff\xd9\0")
    thumbnail = b"\xff\xd8\xff\xe0\0\6\xff\xd8\xff\xd9" + scan[2:]
    check_jpeg(thumbnail + b"\xff\xd9")
    for cut in (scan, thumbnail):
        with pytest.raises(ValueError, match="no end marker"):
            check_jpeg(cut)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "codestream", "tiles", "jp2"])
def test_a_film_cut_short_inside_dicom_is_refused(kind, tmp_path):
    """In one line that names the file; whole, as it stands and with padding, it is what PIL reads."""
    (name, _), settings = KINDS[kind]
    stream = encoded(name, **settings)
    plain = JPEGExtended12Bit if kind == "progressive" else JPEGBaseline8Bit
    syntax = JPEG2000Lossless if name == "JPEG2000" else plain
    expected = np.asarray(Image.open(io.BytesIO(stream)))
    for padding in (b"", b"\0", bytes(9)):
        assert np.array_equal(read_dicom(film(tmp_path, syntax, stream + padding)), expected / np.float32(255))
    cuts = [len(stream) // 2, len(stream) - 10, len(stream) - 2]
    for cut in cuts + (between_tiles(stream) if kind == "tiles" else []):
        for filling in (b"", bytes(len(stream) - cut)):
            with pytest.raises(InputContractError, match=r"^cannot read the pixels of .*a\.dcm: its JPEG .*cut short"):
                read_dicom(film(tmp_path, syntax, stream[:cut] + filling))


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_of_many_frames_the_one_cut_short_is_refused(table, tmp_path):
    """The others are read, wherever it is said where each begins."""
    stream = encoded("JPEG")
    edits = {"NumberOfFrames": 3}
    if table == "extended":  # which alone says that the last one stored is the second frame
        content, *words = encapsulate_extended([stream, stream, stream[:-9]])
        for name, word in zip(("ExtendedOffsetTable", "ExtendedOffsetTableLengths"), words, strict=True):
            edits[name] = word[:8] + word[16:] + word[8:16]
    else:
        content = encapsulate([stream, stream[:-9], stream], has_bot=table == "basic")
    path = film(tmp_path, JPEGBaseline8Bit, stream, PixelData=content, **edits)
    dataset = pydicom.dcmread(path)
    for frame in (0, 2):
        assert decode_pixels(dataset, path, frame=frame).shape == PIXELS.shape
    for frame in (1, None):
        with pytest.raises(InputContractError, match="its JPEG stream has no end marker"):
            decode_pixels(dataset, path, frame=frame)


def test_a_jpeg_that_dicom_calls_jpeg_2000_is_no_damaged_one(tmp_path):
    """PIL tells by the first bytes, and so does the check."""
    stream = encoded("JPEG")
    assert read_dicom(film(tmp_path, JPEG2000Lossless, stream)).shape == PIXELS.shape
    with pytest.raises(InputContractError, match="its JPEG stream has no end marker"):
        read_dicom(film(tmp_path, JPEG2000Lossless, stream[:-9]))


@pytest.mark.parametrize("kind", ["baseline", "tiles", "png"])
def test_a_picture_half_copied_is_refused(kind, tmp_path):
    """Of a file whose tail is still zeros PIL reads a PNG, some tiles, and a JPEG that lacks little."""
    (name, _), settings = KINDS[kind]
    stream, path = encoded(name, **settings), tmp_path / "film"
    path.write_bytes(stream)
    assert read_picture(path).shape == PIXELS.shape
    for cut in (between_tiles(stream)[0] if kind == "tiles" else len(stream) // 2, len(stream) - 3):
        for filling in (b"", bytes(len(stream) - cut)):
            path.write_bytes(stream[:cut] + filling)
            with pytest.raises(InputContractError, match=r"cannot read .*film as an image \("):
                read_picture(path)
    damaged = bytearray(encoded("PNG"))
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputContractError, match=r"its PNG chunk at byte \d+ does not match its checksum"):
        read_picture(path)


def test_streams_of_endless_parts_are_not_gone_through(monkeypatch):
    """Each of a few bytes and without an end."""
    monkeypatch.setattr(whole, "_MOST_PARTS", 1000)
    codestream = encoded("JPEG2000", no_jp2=True)
    header, tile = codestream[: codestream.index(b"\xff\x90")], struct.pack(">2sHHIBB", b"\xff\x90", 10, 0, 12, 0, 0)
    chunk = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    for said, check, stream in (
        ("more than 1000 segments", check_jpeg, b"\xff\xd8" + b"\xff\xfe\0\2" * 2000),
        ("more than 1000 parts", check_jpeg2000, header + tile * 2000),
        ("no JPEG 2000 codestream", check_jpeg2000, struct.pack(">I4s", 8, b"free") * 2000),
        ("more than 1000 chunks", check_png, bytes(8) + chunk * 2000),
    ):
        with pytest.raises(ValueError, match=said):
            check(stream)


def test_the_panic_of_a_decoder_is_one_sentence(tmp_path, monkeypatch):
    """A decoder in Rust raises what is no `Exception` at a damaged stream; Ctrl-C is not taken for it."""
    path = write_dicom(tmp_path / "a.dcm", PIXELS, bits=8)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    error = type("Panic", (BaseException,), {})("index out of bounds")

    def decode(source, runner):
        raise error

    monkeypatch.setitem(sys.modules, "panicking", types.SimpleNamespace(decode=decode, is_available=lambda _: True))
    decoder = get_decoder(RLELossless)
    monkeypatch.setattr(decoder, "_available", {"panicking": decode})
    with pytest.raises(InputContractError, match=r"cannot read the pixels of .*a\.dcm: index out of bounds"):
        decode_pixels(dataset, path)
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        decode_pixels(dataset, path)
