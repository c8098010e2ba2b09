"""Tells DICOM files by their first bytes and opens them, with the 128-byte preamble of PS3.10 and without it."""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path
from typing import Any

from zoo.images.dicom_bounds import HeaderReader, check_file, check_lengths
from zoo.images.reading import refused

INDEX = "DICOMDIR"
"""List of what a CD holds: DICOM, but no image (PS3.10)."""
_LARGE = 2**16  # bytes; larger elements, pixels above all, stay in the file until they are asked for
_ELEMENTS = 3  # that must look right in a row; no picture, text or array starts so
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 2 reserved bytes, then a length of 4 (PS3.5 7.1)


def starts_as_dicom(start: bytes) -> bool:
    """Tell DICOM from the first 1024 bytes of a file: `DICM` behind the preamble, or a data set from byte 0 on.

    A data set without preamble counts where it is little-endian, begins with group 0002 or 0008, and its first elements
    have ascending tags, and value representations or lengths that lead from one to the next.
    """
    return start[128:132] == b"DICM" or _starts_as_data_set(start)


def _starts_as_data_set(start: bytes) -> bool:
    offset, last = 0, (0, 0)
    for _ in range(_ELEMENTS):
        if len(start) < offset + 12:
            return False
        group, element = struct.unpack_from("<HH", start, offset)
        if group not in (2, 8) or (group, element) <= last:
            return False
        last, kind = (group, element), start[offset + 4 : offset + 6]
        if kind in _SHORT:
            offset += 8 + struct.unpack_from("<H", start, offset + 6)[0]
        elif kind in _LONG:
            offset += 12 + struct.unpack_from("<I", start, offset + 8)[0]
        elif group == 8:  # implicit representation, which the elements of group 2 never have
            offset += 8 + struct.unpack_from("<I", start, offset + 4)[0]
        else:
            return False
    return True


def read_dataset(path: Path) -> Any:
    """Return pydicom's dataset of a DICOM file, its pixels still in the file.

    Raises:
        FileNotFoundError: There is no such file.
        InputContractError: It cannot be read, or declares more than a file may, see `dicom_bounds`.
    """
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    check_file(path)
    with refused(f"cannot read {path} as DICOM"):
        with HeaderReader(FileIO(str(path))) as file:
            dataset = pydicom.dcmread(file, defer_size=_LARGE, force=True)
        check_lengths(dataset)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            is_implicit, is_little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def element(dataset: Any, keyword: str) -> Any:
    """Return the value of a data element, None where it is absent or empty.

    Raises:
        InputContractError: It cannot be read as what the standard says it is.
    """
    with refused(f"cannot read {keyword} of {getattr(dataset, 'filename', None) or 'a DICOM file'}"):
        value = dataset.get(keyword)
    return value if value is None or not hasattr(value, "__len__") or len(value) else None
