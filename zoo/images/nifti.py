"""Reads NIfTI files and refuses damaged ones: sizes are checked before memory is taken, checksums at the end.

nibabel reads what a header declares and stops there, so that it takes gigabytes for a header of 352 bytes and never
gets to the checksum of a .nii.gz. Here its headers are checked against the file, and the file is read to its end.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite, isnan, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.errors import InputContractError
from zoo.images.reading import MOST_VOXELS, check_count, fill, refused, start_of

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header
    from numpy.typing import NDArray

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
_MAGIC = {348: (344, b"n+1\0", b"ni1\0"), 540: (4, b"n+2\0", b"ni2\0")}
"""By the length of the header: where its magic lies, what that is of a file with its voxels, and of one of a pair."""
_PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)
_MOST_BEFORE = 2**26
"""Bytes before the voxels. Extensions, as copies of DICOM headers, have some thousands."""
_MOST_BEHIND = 2**16
"""Bytes behind the voxels: some programs fill up a block, but what is longer belongs to a header that says more."""
_DEFLATE = 1032
"""Largest ratio at which gzip can compress (RFC 1951: 258 bytes in two bits)."""
_READ = (
    "NIfTI, a NumPy file and a folder with a DICOM series are read; convert anything else, for example with dcm2niix, "
    "or open it yourself and pass a nibabel image"
)
_DAMAGED = ". The file is damaged or was cut short: copy it again, or convert the scan anew"


def is_nifti(start: bytes) -> bool:
    """Tell NIfTI, compressed by gzip or not, from the first 1024 bytes of a file, whatever its name."""
    head = start
    if start.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, max(_MAGIC))
        except zlib.error:
            return False
    return any(head[at : at + len(single)] in (single, pair) for at, single, pair in _MAGIC.values())


def read_header(path: Path) -> Nifti1Header:
    """Return the header of a NIfTI file, of either version and byte order; the name does not matter, the content does.

    Args:
        path: One file, compressed by gzip or bzip2 or not, or either file of a pair `.hdr` and `.img`.

    Raises:
        FileNotFoundError: There is no such file.
        InputContractError: It is not NIfTI, or its header contradicts itself or declares too much.
    """
    file = _half(path, "hdr")
    with refused(f"cannot read {path} as a volume", _DAMAGED, but=FileNotFoundError), _opened(file) as stream:
        start = stream.read(max(_MAGIC))
        header = _parsed(start, path)
        _check_dimensions(header)
        check_count(header.get_data_shape(), MOST_VOXELS, path, unit="voxels")
        _check_type(header)
        _check_offset(header)
        # what lies between the header and the voxels is only checked: nothing of it is needed
        length = int(header["vox_offset"]) if header.is_single else _MOST_BEFORE
        _check_extensions(start + stream.read(max(0, length - len(start))), header)
        if not header.is_single:
            _check_end(stream)
        header.check_fix()  # nibabel's own checks, of the codes and the affines
        return header


def read_voxels(path: Path, header: Nifti1Header) -> NDArray[Any]:
    """Return the values of a NIfTI file, scaled as its header says, as float32 in C order and the header's shape.

    A compressed file is read to its end, so that its checksum and length are checked; what follows a gzip file is
    refused, unless it is zeros.

    Args:
        path: As for `read_header`.
        header: From there.

    Raises:
        InputContractError: The file is shorter or longer than its header says, or its checksum is wrong.
    """
    import numpy as np
    from nibabel.arrayproxy import ArrayProxy

    file, dtype, offset = _half(path, "img"), header.get_data_dtype(), int(header["vox_offset"])
    if header.is_single:
        offset = max(offset, header.single_vox_offset)
    shape = header.get_data_shape()
    with refused(f"cannot read {path} as a volume", _DAMAGED), _opened(file) as stream:
        _check_length(file, offset + prod(shape) * dtype.itemsize)
        values = np.empty(shape, np.float32)
        scaling = header.get_slope_inter()
        _exactly(stream, offset)

        def read(part: tuple[int, ...]) -> NDArray[Any]:
            content = _exactly(stream, prod(part) * dtype.itemsize)
            spec = (part, dtype, 0, *((1.0, 0.0) if scaling[0] is None else scaling))
            scaled: NDArray[Any] = np.asarray(ArrayProxy(io.BytesIO(content), spec, order="C"), dtype=np.float32)
            return scaled

        with np.errstate(over="ignore", invalid="ignore"):  # infinite values are for the transform to refuse
            fill(values.T, read)
        _check_end(stream)
    return values


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    start = start_of(path, "volume")
    opener: Any = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as stream:
        yield stream


def _half(path: Path, suffix: str) -> Path:
    """Return the file of a pair with this suffix; a single file serves as both."""
    match = _PAIR.search(path.name)
    if match is None or match[1].lower() == suffix:
        return path
    suffix = suffix if match[1].islower() else suffix.upper()
    names = [f"{path.name[: match.start()]}.{suffix}{packing}" for packing in ("", ".gz")]
    if found := next((path.with_name(name) for name in names if path.with_name(name).exists()), None):
        return found
    start_of(path, "volume")  # which may not be there either, or stand for something else
    raise InputContractError(f"cannot read {path} as a volume: its other half, {names[0]}, is missing beside it")


def _parsed(start: bytes, path: Path) -> Nifti1Header:
    """Tell version, byte order and kind by length and magic, and have nibabel make a header of it."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    kinds: dict[int, tuple[Any, Any]] = {348: (Nifti1Header, Nifti1PairHeader), 540: (Nifti2Header, Nifti2PairHeader)}
    for order in "<>":
        length = struct.unpack(f"{order}i", start[:4])[0] if len(start) >= 4 else 0
        if length not in _MAGIC:
            continue
        offset, *magics = _MAGIC[length]
        found = start[offset : offset + 4]
        if len(start) < length or found not in magics:
            break
        is_pair = magics.index(found) == 1
        if is_pair != bool(_PAIR.search(path.name)):
            other = "its voxels are in a second file, as for .hdr and .img" if is_pair else "it holds the voxels, too"
            raise ValueError(f"its header says that {other}")
        header: Nifti1Header = kinds[length][is_pair](start[:length], order, check=False)
        return header
    raise InputContractError(f"cannot read {path} as a volume: {_guess(start)}. {_READ}")


def _guess(start: bytes) -> str:
    """Guess what a file is that is not NIfTI."""
    if start[:4] in (b"\\\1\0\0", b"\0\0\1\\") and len(start) >= 348:
        return "it is Analyze 7.5, or a damaged NIfTI; Analyze does not say left from right"
    known = {
        b"\x89HDF": "HDF5, as MINC 2",
        b"CDF": "NetCDF, as MINC 1",
        b"NRRD": "NRRD",
        b"ObjectType": "MetaImage",
        b"# ===": "a Philips PAR header",
        b"\0\0\0\1": "an MGH file of FreeSurfer, perhaps",
        b"<": "a text with markup, such as a web page",
    }
    return f"it is {next((name for magic, name in known.items() if start.startswith(magic)), 'not NIfTI')}"


def _check_dimensions(header: Nifti1Header) -> None:
    """Check number and sizes of the axes."""
    count, *sides = (int(n) for n in header["dim"])
    if not 1 <= count <= 7 or min(sides[:count]) < 1:
        raise ValueError(f"its header has dimensions {count, *sides}")


def _check_type(header: Nifti1Header) -> None:
    """Check that the type of the voxels is known and of the size that is said, and that its scaling has a meaning.

    A slope of 0 means no scaling by nifti1.h, and so does NaN, which nibabel writes.
    """
    bits, dtype = int(header["bitpix"]), header.get_data_dtype()
    if bits not in (0, 8 * dtype.itemsize):
        raise ValueError(f"its header says {dtype.name} and {bits} bits a voxel")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope and not isnan(slope) and not (isfinite(slope) and isfinite(intercept)):
        raise ValueError(f"its header has a slope of {slope:g} and an intercept of {intercept:g}")


def _check_offset(header: Nifti1Header) -> None:
    """Check where the voxels begin: 0 stands for right behind the header."""
    offset, least = float(header["vox_offset"]), header.single_vox_offset if header.is_single else 0
    if not (offset == 0 or least <= offset <= _MOST_BEFORE) or offset != int(offset):
        raise ValueError(f"its header lets the voxels begin at byte {offset:g}, outside {least} to {_MOST_BEFORE}")


def _check_extensions(before: bytes, header: Nifti1Header) -> None:
    """Check that what extends the header ends before the voxels: each part says its own length (nifti1.h)."""
    offset = header.template_dtype.itemsize + 4
    if len(before) < offset or not before[offset - 4]:
        return
    end = int(header["vox_offset"]) if header.is_single else len(before)
    while offset + 16 <= end:
        size = struct.unpack_from(f"{header.endianness}i", before, offset)[0] if offset + 4 <= len(before) else 0
        if size < 16 or offset + size > end:
            raise ValueError(f"its header has an extension of {size} bytes at byte {offset}")
        offset += size


def _check_length(file: Path, declared: int) -> None:
    """Check the size of a file against what its header declares, before it is read."""
    size, start = file.stat().st_size, start_of(file, "volume")
    packing = next((magic for magic in _OPENERS if start.startswith(magic)), None)
    if packing is None and not declared <= size <= declared + _MOST_BEHIND:
        raise ValueError(f"its header declares {declared} bytes, the file has {size}")
    if packing == b"\x1f\x8b" and size * _DEFLATE < declared:
        raise ValueError(f"its header declares {declared} bytes, to which {size} compressed ones cannot unpack")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError(f"it ends {count - len(content)} bytes or more before the end of its voxels")
    return content


def _check_end(stream: BinaryIO) -> None:
    """Read on to the end, where a compressed file has its checksum."""
    if len(stream.read(_MOST_BEHIND + 1)) > _MOST_BEHIND:
        raise ValueError("it continues after the voxels that its header declares")
