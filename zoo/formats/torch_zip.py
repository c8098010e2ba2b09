"""Reads the directory of a zip archive of `torch.save`, and checks it before torch maps or reads a record.

torch trusts the archive: mapped, it takes a record's bytes as they lie there, compressed or not, and those behind it
where the record is shorter than its tensor; and it checks no CRC. Here each is looked at first.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

from zoo.formats.pickle_nodes import Storage
from zoo.formats.pickles import Outline, outline
from zoo.messages import printable

_MOST_DIRECTORY = 16 << 20  # bytes; a network of ten thousand tensors has one of 1 MB
MOST_PICKLE = 64 << 20  # bytes; that of a network of a thousand tensors has 150 KB
_MOST_INFLATED = 256 << 20
_MOST_RATIO = 8
"""Compressed records may hold this many times the bytes of the file, or `_MOST_INFLATED`; weights shrink by a tenth."""
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1
_PIECE = 1 << 18  # bytes; two are in memory at once, and larger ones are hardly read faster
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, ValueError, LookupError, EOFError, OSError)
"""Errors of the standard library's reader on a damaged archive."""


class ZipProblem(Exception):
    """Why an archive is not read, as a part of a sentence about the file."""


class TorchScriptError(ZipProblem):
    """The archive is a program that `torch.jit.save` wrote."""


@dataclass(frozen=True)
class TorchZip:
    """The directory of an archive, and what its pickle needs of it."""

    path: Path
    records: Mapping[str | int, ZipInfo]
    """By the keys of the storages that they hold."""
    outline: Outline
    can_be_mapped: bool
    """Whether the bytes of all storages lie in the file as they are in memory."""

    def check(self, keys: Iterable[str | int] | None = None) -> None:
        """Read records and compare them with their CRC.

        Args:
            keys: Of the storages; None for all.

        Raises:
            ZipProblem: One of them is not what was written.
        """
        wanted = self.records if keys is None else {key: self.records[key] for key in keys}
        with open_archive(self.path) as archive:
            for record in wanted.values():
                _read(archive, record, keep=False)


def open_torch_zip(path: Path) -> TorchZip:
    """Read the directory and the pickle of an archive, and check that every storage has its record.

    Raises:
        ZipProblem: The archive is damaged, or none of `torch.save`.
        TorchScriptError: It is a program.
        PickleProblem: Its pickle would make something else than tensors and plain values of a sane size.
    """
    size = path.stat().st_size
    with open_archive(path) as archive:
        found, prefix = _records(archive)
        if "constants.pkl" in found or any(name.startswith("code/") for name in found):
            raise TorchScriptError
        pickled = found.get("data.pkl")
        if pickled is None:
            raise ZipProblem(f"it is a zip archive without a record {printable(prefix)}/data.pkl")
        if pickled.file_size > min(MOST_PICKLE, _most_inflated(size)):
            raise ZipProblem(f"its pickle has {pickled.file_size} bytes, too many for a checkpoint")
        made = outline(io.BytesIO(_read(archive, pickled)), size)
        records = {key: _record(found, storage) for key, storage in made.storages.items()}
        _check_inflated([*records.values(), pickled], size)
        is_native, end = _is_native(archive, found), archive.start_dir
    stored = all(record.compress_type == ZIP_STORED for record in records.values())
    return TorchZip(path, records, made, stored and _lie_apart(path, records, made.storages, end) and is_native)


class _SmallReads(io.BufferedReader):
    """A file of which no piece is read that only a damaged or malicious directory needs."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY:
            raise ZipProblem(f"its directory has {size} bytes, too many for a checkpoint")
        return super().read(size)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open any zip archive, if its directory is of a sane size.

    Raises:
        ZipProblem: It is not a zip archive, or is damaged.
    """
    with _SmallReads(io.FileIO(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise ZipProblem(f"its directory is cut short or damaged: {printable(error)}") from error
        file.seek(-_END.size - len(archive.comment), io.SEEK_END)
        signature, *_, offset, _ = _END.unpack(file.read(_END.size))
        if signature != b"PK\5\6" or offset not in (archive.start_dir, 0xFFFFFFFF):
            raise ZipProblem("its directory is not where it says, or something stands behind it")
        yield archive


def _records(archive: zipfile.ZipFile) -> tuple[dict[str, ZipInfo], str]:
    """Return the records by their names behind the folder that all are in, and that folder, as torch finds them."""
    infos = archive.infolist()
    prefix = infos[0].filename.partition("/")[0] if infos else ""
    if any(info.filename != info.orig_filename for info in infos):
        raise ZipProblem("it has records whose names end at a null character or are not written as zip has them")
    if len({info.filename.lower() for info in infos}) < len(infos):
        raise ZipProblem("it has several records of one name")
    return {
        info.filename.removeprefix(f"{prefix}/"): info for info in infos if info.filename.startswith(f"{prefix}/")
    }, prefix


def _record(found: Mapping[str, ZipInfo], storage: Storage) -> ZipInfo:
    """Return the record of a storage, if it is whole and long enough."""
    name = f"data/{storage.key}"
    record = found.get(name)
    if record is None:
        raise ZipProblem(f"its record {printable(name)} is missing")
    if record.file_size < storage.size:
        raise ZipProblem(
            f"its record {printable(name)} has {record.file_size} bytes where its tensors need {storage.size}"
        )
    if record.flag_bits & _ENCRYPTED or record.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ZipProblem(f"its record {printable(name)} is encrypted, or compressed in a way that torch does not read")
    if record.compress_type == ZIP_STORED and record.compress_size != record.file_size:
        raise ZipProblem(f"its record {printable(name)} has two sizes")
    return record


def _is_native(archive: zipfile.ZipFile, found: Mapping[str, ZipInfo]) -> bool:
    """Whether the bytes of a number are in the order of this machine, as without a record that says their order."""
    order = found.get("byteorder")
    return order is None or (order.file_size < 9 and _read(archive, order) == sys.byteorder.encode())


def _most_inflated(size: int) -> int:
    return max(_MOST_INFLATED, _MOST_RATIO * size)


def _check_inflated(records: list[ZipInfo], size: int) -> None:
    inflated = sum(record.file_size for record in records if record.compress_type != ZIP_STORED)
    stored = sum(record.file_size for record in records if record.compress_type == ZIP_STORED)
    if inflated > _most_inflated(size) or stored > size:
        raise ZipProblem(f"its records have {inflated + stored} bytes in a file of {size}, more than weights do")


def _lie_apart(
    path: Path, records: Mapping[str | int, ZipInfo], storages: Mapping[str | int, Storage], end: int
) -> bool:
    """Check that each stored record lies by itself where torch will look; whether all are aligned to their numbers."""
    aligned, last = True, 0
    with path.open("rb") as file:
        for key, record in sorted(records.items(), key=lambda item: item[1].header_offset):
            start = data_offset(file, record)
            if record.header_offset < last or start + record.compress_size > end:
                raise ZipProblem(f"its record {printable(record.filename)} lies over another")
            last = start + record.compress_size
            aligned = aligned and start % storages[key].item == 0
    return aligned


def data_offset(file: io.BufferedReader | io.FileIO, record: ZipInfo) -> int:
    """Return where the bytes of a record begin, by the header in front of them.

    Raises:
        ZipProblem: There is no such header.
    """
    file.seek(record.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise ZipProblem(f"its record {printable(record.filename)} is not where the directory says")
    _, _, flags, method, *_, name, extra = _LOCAL.unpack(header)
    if method != record.compress_type or flags & _ENCRYPTED:
        raise ZipProblem(f"its record {printable(record.filename)} is not as the directory says")
    return record.header_offset + _LOCAL.size + int(name) + int(extra)


def _read(archive: zipfile.ZipFile, record: ZipInfo, *, keep: bool = True) -> bytes:
    """Read a record with its CRC, piece by piece; nothing is returned where it need not be kept."""
    if getattr(record, "CRC", None) == 0:  # what torch writes on `set_crc32_options(False)`
        delattr(record, "CRC")
    kept, total = [], 0
    try:
        with archive.open(record) as stream:
            while piece := stream.read(_PIECE):
                total += len(piece)
                kept += [piece] if keep else []
    except _DAMAGE as error:
        raise ZipProblem(f"its record {printable(record.filename)} is damaged: {printable(error)}") from error
    if total != record.file_size:
        raise ZipProblem(f"its record {printable(record.filename)} is cut short")
    return b"".join(kept)
