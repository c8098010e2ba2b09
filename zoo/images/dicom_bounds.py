"""Bounds what pydicom reads: it trusts the lengths that a file declares, and what it unpacks to."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.errors import InputContractError
from zoo.images.reading import MOST_VOXELS, check_count, occurrences, refused, start_of
from zoo.images.whole import check_jpeg, check_jpeg2000
from zoo.messages import reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_BYTES = 5 * 2**28
"""Size of a file: as many voxels of two bytes as are read at all, and a header."""
_MOST_INFLATED = 2**28
"""Bytes that a deflated file may unpack to; pydicom has them in memory three times over. A film has some 30 million."""
_MOST_ITEMS = 200_000
"""Items in all sequences and fragments: pydicom takes 30 microseconds and a kilobyte for each, however empty."""
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # (FFFE,E000) in little and big endian
_MOST_READS = 1_000_000
"""Reads of a header, one to three for each element, however deep: 10 microseconds and half a kilobyte for each. An
Enhanced file takes some 130 for each of its frames."""
_MOST_SEQUENCE = 2**25
"""Bytes of a sequence that says its length, which pydicom takes apart when it is asked for: thousands of frames."""
_MOST_TEXT = 2**20
"""Bytes of a list of words or numbers in text, each of which becomes an object."""
_LISTS = "AE AS AT CS DA DS DT IS LO PN SH TM UC UI"
_MOST_RLE = 2**25
"""Bytes of a run-length encoded image, which can unpack to 64 times as many before pydicom counts them."""
_AT_ONCE = 2**20
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DEFLATED_PIXELS = "1.2.840.10008.1.2.8.1"


class HeaderReader(BufferedReader):
    """A file from which pydicom may read so often, and no more: two or three times for an element or an item.

    pydicom takes it for the file itself, and opens that again for what it left there.

    Raises:
        ValueError: When it is read once more.
    """

    def __init__(self, raw: FileIO | BytesIO) -> None:
        """Wrap a file, or what it was inflated to."""
        super().__init__(raw)
        self._left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has too many elements: more than {_MOST_READS} reads")
        return super().read(size)


def check_file(path: Path) -> None:
    """Check a DICOM file before pydicom parses it.

    Raises:
        FileNotFoundError: There is no such file.
        InputContractError: It is no file, is larger, has more items or unpacks to more than a file may.
    """
    start_of(path, "DICOM file")
    with refused(f"cannot read {path} as DICOM"):
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes, at most {_MOST_BYTES} are read")
        with HeaderReader(FileIO(str(path))) as file:
            if _is_deflated(file):
                _check_inflated(b"".join(_inflated(file)))
            else:
                _check_items(iter(lambda: file.read(_AT_ONCE), b""))


def check_lengths(dataset: Any) -> None:
    """Check the lengths of elements that pydicom takes apart when it is asked for them: sequences and lists.

    Raises:
        ValueError: One is longer than any image needs.
    """
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    for raw in dataset.values():  # as read, not taken apart
        length = getattr(raw, "length", None) or 0
        if length <= _MOST_TEXT:
            continue
        kind = dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else raw.VR
        most = _MOST_SEQUENCE if "SQ" in (raw.VR, kind) else _MOST_TEXT if kind in _LISTS.split() else length
        if length > most:
            raise ValueError(f"its element {raw.tag} has {length} bytes, at most {most} are read")


def decode_pixels(dataset: Any, path: Path, *, frame: int | None = None, most: int = MOST_VOXELS) -> NDArray[Any]:
    """Return the stored values of an image, after a check of how many its header declares.

    Args:
        dataset: From `dicom_files.read_dataset`.
        path: What messages call it.
        frame: Which frame alone is decoded; None for all.
        most: Pixels of all frames that are read.

    Raises:
        InputContractError: There are more, or fewer bytes than these take, the pixels are cut short or damaged, or no
            decoder for their compression is installed.
    """
    try:
        return _decoded(dataset, path, frame, most)
    except (InputContractError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise nearly everything; the panic of one in Rust is no `Exception`
        raise InputContractError(_undecodable(path, dataset, error)) from error


def _decoded(dataset: Any, path: Path, frame: int | None, most: int) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    rows, columns, frames = (int(dataset.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames"))
    check_count((frames, rows, columns), most, path, unit="frames, rows and columns")
    syntax, size = str(dataset.file_meta.TransferSyntaxUID), len(dataset.PixelData)
    if syntax == _DEFLATED_PIXELS:
        raise ValueError("frames deflated one by one are not read: decompress the file first")
    if syntax == _RLE and size > _MOST_RLE:
        raise ValueError(f"it has {size} bytes of run-length encoded pixels, at most {_MOST_RLE} are read")
    _check_streams(dataset, syntax, range(frames) if frame is None else [frame], frames)
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_bits(dataset, None if frame is None else frame * rows * columns, rows * columns)
    with _silent():
        pixels: NDArray[Any] = pixel_array(dataset, index=frame)
    return pixels


def _check_bits(dataset: Any, first: int | None, count: int) -> None:
    """Check that uncompressed values take the bits that the header says: pydicom would cut off all that are above.

    Args:
        dataset: The image.
        first: Value at which the frame begins, of images with one sample a pixel; None to check all frames.
        count: Pixels of a frame.

    Raises:
        ValueError: They do not begin at bit 0, or reach into bits that they are not said to take.
    """
    import numpy as np

    allocated, stored, samples = (int(dataset.get(n) or 1) for n in ("BitsAllocated", "BitsStored", "SamplesPerPixel"))
    high = int(dataset.get("HighBit", stored - 1))
    if high != stored - 1:
        raise ValueError(
            f"its values of {stored} bits end at bit {high}, and bit {stored - 1} is expected: shift them so that they "
            "begin at bit 0"
        )
    has_overlays = any(dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))  # in the bits above
    if stored >= allocated or allocated not in (16, 32) or has_overlays:
        return
    size = allocated // 8
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(dataset.PixelData, f"{order}u{size}", len(dataset.PixelData) // size)
    if first is not None:
        words = words[first * samples : (first + count) * samples]
    is_signed = dataset.get("PixelRepresentation") == 1
    above = words >> (stored - 1 if is_signed else stored)
    negative = (1 << (allocated - stored + 1)) - 1  # the sign in all bits, or in the highest of those that are stored
    wrong = (above > 1) & (above != negative) if is_signed else above > 0
    if wrong.any():
        raise ValueError(f"{int(wrong.sum())} of its values take more than the {stored} bits that its header says")


def _check_streams(dataset: Any, syntax: str, indices: Iterable[int], frames: int) -> None:
    """Check that compressed frames are whole, each as pydicom will take it out of its fragments.

    Without a decoder there is nothing to check: pydicom will say so.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    is_known = syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
    if not is_known or not get_decoder(syntax).is_available:
        return
    table = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = None if None in table else (table[0], table[1])
    for index in indices:
        stream = get_frame(dataset.PixelData, index, extended_offsets=offsets, number_of_frames=frames)
        is_jpeg = syntax not in JPEG2000TransferSyntaxes or stream.startswith(b"\xff\xd8")  # whatever the header says
        check = check_jpeg if is_jpeg else check_jpeg2000
        check(stream)


def _undecodable(path: Path, dataset: Any, error: BaseException) -> str:
    """Say why the pixels could not be decoded, and what to install where a decoder is missing."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    reason = reason_of(error)
    if syntax in (None, _RLE) or not syntax.is_compressed or not isinstance(error, RuntimeError):  # pydicom reads RLE
        return f"cannot read the pixels of {path}: {reason}"
    return (
        f"{path} is compressed as {syntax.name!r}, and no decoder installed here reads it. Install one "
        f'(pip install "pylibjpeg[all]", or python-gdcm) or decompress the file first. pydicom said: {reason}'
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep pydicom from logging the traceback of an error that it raises besides."""
    logger = logging.getLogger("pydicom.pixels.decoders.base")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _is_deflated(file: BinaryIO) -> bool:
    """Whether the data set is, and the file stands where it begins; otherwise at the start."""
    from pydicom.filereader import read_dataset as read_elements

    start = file.read(132)
    file.seek(132 if start[128:] == b"DICM" else 0)
    meta: Any = read_elements(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        return True
    file.seek(0)
    return False


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    """Inflate in parts, for pydicom does so at once, whatever comes of it.

    Raises:
        ValueError: It unpacks to more than a file may.
    """
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(2**16)):
        yield (content := inflater.decompress(chunk, _AT_ONCE))
        size += len(content)
        if size > _MOST_INFLATED:
            raise ValueError(f"it is deflated and unpacks to more than {_MOST_INFLATED} bytes")


def _check_inflated(content: bytes) -> None:
    """Check the elements of an inflated data set, which pydicom reads from memory of its own."""
    from pydicom.filereader import read_dataset as read_elements

    _check_items([content])
    read_elements(HeaderReader(BytesIO(content)), False, True, defer_size=_AT_ONCE)


def _check_items(chunks: Iterable[bytes]) -> None:
    if (count := occurrences(chunks, *_ITEMS)) > _MOST_ITEMS:
        raise ValueError(f"it has {count} items in sequences, at most {_MOST_ITEMS} are read")
