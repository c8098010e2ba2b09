"""Hostile and damaged images: each is refused in one line, soon, and without the memory that it asks for."""

import bz2
import gzip
import os
import resource
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

from zoo.commands.printing import error_text
from zoo.entries.glcl.volumes import read_image
from zoo.errors import InputContractError, OptionError
from zoo.images import dicom_bounds
from zoo.images.finding import find_images
from zoo.images.pictures import read_dicom, read_picture
from zoo.images.reading import MOST_VOXELS
from zoo.images.volumes import read_volume
from zoo.messages import csv_cell, listed, reason_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 372098432\n"
LITTLE = 2**30
"""Bytes that a refusal may add to the address space of a test: a quarter of the bound, above what NumPy maps itself."""


def scan(shape=(9, 10, 11), dtype=np.int16):
    """Different values everywhere, with a place."""
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    made = nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0]), dtype=dtype)
    made.header.set_data_dtype(dtype)
    return made


def nifti(tmp_path, *, edit=lambda header: None, name="scan.nii", order="<", kind=nibabel.Nifti1Image, tail=b""):
    """Write a NIfTI whose header was edited behind nibabel's back."""
    made = kind(np.asarray(scan().dataobj), scan().affine)
    made.header.set_data_dtype(np.int16)
    header = kind.header_class(made.header.binaryblock).as_byteswapped(order) if order == ">" else made.header
    raw = header.structarr.copy()
    raw["vox_offset"] = header.single_vox_offset
    edit(raw)
    values = np.asarray(scan().dataobj).astype(f"{order}i2").tobytes("F")
    content = raw.tobytes() + bytes(4) + values + tail
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def set_to(**fields):
    def edit(raw):
        for name, value in fields.items():
            raw[name] = value

    return edit


@pytest.fixture
def little_memory():
    """Let the process have little more address space than it has: what asks for gigabytes gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + LITTLE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# What is no file


@pytest.mark.parametrize("name", ["scan.nii.gz", "film.png", "film.dcm", "array.npy", "scan.hdr"])
def test_pointers_of_git_lfs_are_named(tmp_path, name):
    """Instead of "cannot identify image file", from which nobody learns what to do."""
    path = tmp_path / name
    path.write_bytes(POINTER)
    for read in (read_volume, read_picture, read_dicom):
        with pytest.raises(InputContractError, match=r"(?s)Git LFS.*`git lfs pull`"):
            read(path)
    path.write_bytes(b"/annex/objects/MD5E-s1--0.nii.gz\n")
    with pytest.raises(InputContractError, match="`git annex get`"):
        read_volume(path)
    path.unlink()
    path.symlink_to(".git/annex/objects/MD5E-s1--0.nii.gz")
    with pytest.raises(FileNotFoundError, match="`git annex get`"):
        read_picture(path)


@pytest.mark.parametrize("name", ["pipe.nii.gz", "pipe.png", "pipe.npy", "pipe.hdr"])
def test_pipes_and_devices_are_not_opened(tmp_path, name):
    """A pipe blocks whoever opens it, a device never ends; a walk through folders names them."""
    os.mkfifo(tmp_path / name)
    device = tmp_path / "device.nii"
    device.symlink_to("/dev/zero")
    for read in (read_volume, read_picture, read_dicom):
        with pytest.raises(InputContractError, match="is a named pipe: one file"):
            read(tmp_path / name)
        with pytest.raises(InputContractError, match="is a device: one file"):
            read(device)
    assert device in find_images([tmp_path], volumes=True)
    assert find_images([tmp_path / name], volumes=False) == [tmp_path / name]


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    """`zoo.embed` and whoever else looks for images would take all that lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.png").touch()
    for paths in ("", [""]):
        with pytest.raises(OptionError, match="is not a path: it is empty"):
            find_images(paths, volumes=False)
    assert find_images(["."], volumes=False) == [Path("film.png")]


def test_an_empty_or_forbidden_file_is_said(tmp_path):
    """And a name that no file system takes."""
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputContractError, match="the file is empty"):
        read_picture(tmp_path / "empty.png")
    for path in (Path("a" * 300), Path("a\0b")):
        with pytest.raises((InputContractError, FileNotFoundError)):
            read_picture(path)


# Folders


def test_links_are_followed_once(tmp_path):
    """To the folder itself, to one above it, to a neighbour twice: each image is found once, under its real name."""
    (tmp_path / "beside.png").touch()
    top = tmp_path / "films"
    (top / "ward").mkdir(parents=True)
    for name in ("a.png", "ward/b.png", "ward/c.nii"):
        (top / name).touch()
    for name, target in {"1": ".", "2": ".", "up": "..", "0ward": "ward", "ward/back": ".."}.items():
        (top / name).symlink_to(target)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").touch()
    (top / "other").symlink_to("../elsewhere")
    (top / "lost.png").symlink_to("nowhere")
    (top / "round").symlink_to("round")
    expected = [top / name for name in ("a.png", "lost.png", "other/d.png", "ward/b.png")]
    assert find_images([top], volumes=False) == expected
    assert find_images([top], volumes=True) == [top / "ward" / "c.nii"]


def test_a_folder_of_pointers_is_not_empty(tmp_path):
    """Slices that were not fetched are found, so that the reason is said."""
    (tmp_path / "0001.dcm").write_bytes(POINTER)
    (tmp_path / "notes.txt").write_bytes(POINTER)
    assert find_images([tmp_path], volumes=False) == [tmp_path / "0001.dcm"]
    with pytest.raises(InputContractError, match="git lfs pull"):
        read_volume(find_images([tmp_path], volumes=True)[0])


def mixed(folder):
    """Three pictures, a volume, a format that nothing reads, a text, a hidden picture."""
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.png", "ct.nii.gz", "t1.nrrd", "notes.txt", "labels.csv", ".hidden.png"):
        (folder / name).write_bytes(b"any")
    return folder


@pytest.mark.parametrize(
    ("volumes", "found", "said"),
    [
        (False, ["a.png", "b.jpg", "c.png"], ("2 image(s)", "1 .nii.gz, 1 .nrrd", "pictures are", "t1.nrrd")),
        (True, ["ct.nii.gz"], ("4 image(s)", "2 .png, 1 .jpg, 1 .nrrd", "volumes are", "a.png")),
    ],
)
def test_images_of_another_kind_in_a_folder_are_said(tmp_path, caplog, volumes, found, said):
    """Passed over without a word; texts and hidden files go silently, so does what was named itself."""
    folder = mixed(tmp_path / "mixed")
    assert [path.name for path in find_images([folder], volumes=volumes)] == found
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in said)
    assert "notes.txt" not in caplog.text
    assert ".hidden" not in caplog.text
    caplog.clear()
    assert len(find_images([folder, *folder.glob("[a-z]*.*g"), folder / "ct.nii.gz", folder / "t1.nrrd"], volumes=True))
    find_images([folder], volumes=volumes, quiet=True)
    assert not caplog.records


def test_ten_of_another_kind_are_named_and_a_folder_of_them_alone_says_what_it_has(tmp_path, caplog):
    """Thousands of paths in a line; a series beside its preview."""
    folder = mixed(tmp_path / "many")
    for i in range(12):
        (folder / f"{i:02d}.nii").touch()
    find_images([folder], volumes=False)
    assert "12 .nii, 1 .nii.gz, 1 .nrrd" in caplog.text
    assert "09.nii, ... (14 in all)" in caplog.text
    assert "10.nii" not in caplog.text
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "a.png").touch()
    with pytest.raises(OptionError, match=r"DICOM series are expected, and it has 1 \.png"):
        find_images([tmp_path / "previews"], volumes=True)


# NIfTI


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_to(vox_offset=np.nan), "byte nan"),
        (set_to(vox_offset=np.inf), "byte inf"),
        (set_to(vox_offset=-352), "byte -352"),
        (set_to(vox_offset=100), "byte 100"),
        (set_to(vox_offset=1e9), r"byte 1e\+09"),
        (set_to(vox_offset=352.5), "byte 352.5"),
        (set_to(vox_offset=4000), "its header declares"),
        (set_to(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "3.52e"),
        (set_to(dim=[3, 9, -10, 11, 1, 1, 1, 1]), "dimensions"),
        (set_to(dim=[3, 9, 0, 11, 1, 1, 1, 1]), "dimensions"),
        (set_to(dim=[0, 9, 10, 11, 1, 1, 1, 1]), "dimensions"),
        (set_to(dim=[8, 9, 10, 11, 1, 1, 1, 1]), "dimensions"),
        (set_to(dim=[3, 9, 10, 12, 1, 1, 1, 1]), "its header declares"),
        (set_to(datatype=999), "not recognized|999"),
        (set_to(bitpix=32), "int16 and 32 bits"),
        (set_to(scl_slope=np.inf), "slope of inf"),
        (set_to(scl_slope=1, scl_inter=np.nan), "intercept of nan"),
        (set_to(magic=b"ni1"), "second file"),
        (set_to(magic=b"xyz"), "Analyze"),
        (set_to(sizeof_hdr=349), "not NIfTI"),
    ],
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_headers_that_contradict_themselves_or_the_file(tmp_path, little_memory, name, edit, said):
    """Offsets, sizes, types and scalings that cannot be; none takes the memory that it declares."""
    said = said.replace("its header declares", "its header declares|before the end of its voxels")
    with pytest.raises(InputContractError, match=f"scan.nii.*({said})"):
        read_volume(nifti(tmp_path, edit=edit, name=name))


def test_a_slope_that_is_not_a_number_is_none(tmp_path):
    """As nibabel writes it; and 0, as nifti1.h has it: intercepts are then nothing either."""
    for slope in (0, np.nan):
        found = read_volume(nifti(tmp_path, edit=set_to(scl_slope=slope, scl_inter=7)))
        assert np.array_equal(found.values, np.asarray(scan().dataobj))
    scaled = read_volume(nifti(tmp_path, edit=set_to(scl_slope=2, scl_inter=-7)))
    assert np.array_equal(scaled.values, 2.0 * np.asarray(scan().dataobj) - 7)


@pytest.mark.parametrize(
    ("size", "fine"), [(0, False), (-16, False), (8, False), (15, False), (2**30, False), (24, True), (32, True)]
)
@pytest.mark.parametrize("order", "<>")
def test_extensions_end_before_the_voxels(tmp_path, order, size, fine):
    """One of no size made nibabel read on for ever, one below none raised what nobody catches."""
    plain = nifti(tmp_path, order=order).read_bytes()
    header = np.frombuffer(plain[:348], nibabel.Nifti1Header.template_dtype.newbyteorder(order)).copy()
    header["vox_offset"] = 352 + 32
    extension = struct.pack(f"{order}2i", size, 6) + bytes(24)
    path = tmp_path / "extended.nii"
    path.write_bytes(header.tobytes() + b"\1\0\0\0" + extension + plain[352:])
    if fine:
        assert np.array_equal(read_volume(path).values, np.asarray(scan().dataobj))
    else:
        with pytest.raises(InputContractError, match=f"extension of {size} bytes"):
            read_volume(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_form_of_nifti_is_read(tmp_path, kind, order):
    """Both versions and byte orders, packed or not, whatever the name says of it."""
    plain = nifti(tmp_path, kind=kind, order=order)
    (tmp_path / "noname").write_bytes(plain.read_bytes())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "packed.nii.bz2").write_bytes(bz2.compress(plain.read_bytes()))
    half = len(plain.read_bytes()) // 2
    members = gzip.compress(plain.read_bytes()[:half]) + gzip.compress(plain.read_bytes()[half:])
    (tmp_path / "members.nii.gz").write_bytes(members + bytes(100))
    for name in ("scan.nii", "noname", "packed.nii", "packed.nii.bz2", "members.nii.gz"):
        found = read_volume(tmp_path / name)
        assert np.array_equal(found.values, np.asarray(scan().dataobj))
        assert np.array_equal(found.affine, scan().affine)
        assert found.values.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_values_are_nibabels_to_the_bit(tmp_path, monkeypatch, dtype):
    """Of every type, scaled, and read in so small parts that rows are split: a part in a wrong place is found."""
    monkeypatch.setattr("zoo.images.reading._AT_ONCE", 64)
    made = nibabel.Nifti1Image(
        (np.random.default_rng(1).normal(0, 60, (9, 10, 11))).astype(dtype), np.eye(4), dtype=dtype
    )
    made.header.set_slope_inter(0.1, 3.0)
    for name in ("a.nii", "a.nii.gz", "a.img"):
        nibabel.save(made, tmp_path / name)
        expected = np.asarray(nibabel.load(tmp_path / name).dataobj, dtype=np.float32)
        assert np.array_equal(read_volume(tmp_path / name).values, expected)


def test_pairs(tmp_path):
    """By either name, packed or not; without the other file, or with a short one, a sentence."""
    nibabel.save(nibabel.Nifti1Pair(np.asarray(scan().dataobj), scan().affine), tmp_path / "pair.img")
    for name in ("pair.hdr", "pair.img"):
        assert np.array_equal(read_volume(tmp_path / name).values, np.asarray(scan().dataobj))
    content = (tmp_path / "pair.img").read_bytes()
    (tmp_path / "pair.img").write_bytes(content[:-5])
    with pytest.raises(InputContractError, match=r"pair.hdr.*its header declares 1980 bytes, the file has 1975"):
        read_volume(tmp_path / "pair.hdr")
    (tmp_path / "pair.img").unlink()
    with pytest.raises(InputContractError, match=r"pair\.img, is missing"):
        read_volume(tmp_path / "pair.hdr")
    (tmp_path / "pair.img.gz").write_bytes(gzip.compress(content))
    assert np.array_equal(read_volume(tmp_path / "pair.hdr").values, np.asarray(scan().dataobj))
    (tmp_path / "pair.hdr").unlink()
    with pytest.raises(InputContractError, match=r"pair\.hdr, is missing"):
        read_volume(tmp_path / "pair.img.gz")


@pytest.mark.slow
def test_a_damaged_gzip_never_gives_another_image(tmp_path):
    """One byte changed at 300 places: nibabel, which does not read the checksum, gives a wrong image for a third."""
    content, expected = nifti(tmp_path, name="scan.nii.gz").read_bytes(), np.asarray(scan().dataobj)
    rng, path, refused = np.random.default_rng(2), tmp_path / "damaged.nii.gz", 0
    for place in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = read_volume(path)
        except InputContractError:
            refused += 1
        else:
            assert np.array_equal(found.values, expected)
            assert np.array_equal(found.affine, scan().affine)
    assert refused > 280  # but for the ten bytes of its header, every one counts


@pytest.mark.parametrize("cut", [1, 4, 8, 100, 600])
def test_a_gzip_cut_short_is_refused(tmp_path, cut):
    """Without its last byte, without its checksum, without voxels."""
    path = nifti(tmp_path, name="scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputContractError, match="damaged or was cut short"):
        read_volume(path)


def test_what_follows_the_voxels(tmp_path):
    """A filled-up block is no harm; a second volume, a bomb and garbage behind the gzip are refused."""
    assert read_volume(nifti(tmp_path, tail=bytes(512))).values.shape == (9, 10, 11)
    for name in ("scan.nii", "scan.nii.gz"):
        with pytest.raises(InputContractError, match=r"continues after the voxels|its header declares"):
            read_volume(nifti(tmp_path, name=name, tail=bytes(2**17)))
    path = nifti(tmp_path, name="scan.nii.gz")
    path.write_bytes(path.read_bytes() + b"garbage")
    with pytest.raises(InputContractError, match="damaged"):
        read_volume(path)


@pytest.mark.slow
def test_a_bomb_is_not_unpacked(tmp_path, little_memory):
    """Zeros in a thousandth of their bytes, behind a small header, or behind one that declares gigabytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    header = nifti(tmp_path).read_bytes()[:352]
    zeros = b"".join(packer.compress(part) for part in [header, *[bytes(2**24)] * 8])
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(zeros + packer.flush())
    with pytest.raises(InputContractError, match="continues after the voxels"):
        read_volume(path)
    side = round(MOST_VOXELS ** (1 / 3)) - 1
    with pytest.raises(InputContractError, match=r"declares \d+ bytes, to which \d+ compressed ones cannot unpack"):
        read_volume(nifti(tmp_path, name="a.nii.gz", edit=set_to(dim=[3, side, side, side, 1, 1, 1, 1])))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(512), "MINC 2"),
        (b"CDF\1" + bytes(512), "MINC 1"),
        (b"# === DATA DESCRIPTION FILE ===\n" * 20, "Philips PAR"),
        (b"type = integer-attribute\nname = DATASET_RANK\n" * 20, "not NIfTI"),
        (b"\0\0\0\1" + bytes(400), "MGH"),
        (struct.pack("<i", 348) + bytes(344), "Analyze"),
        (b"<!DOCTYPE html>" * 40, "web page"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["x.mnc", "x.PAR", "x+orig.HEAD", "x.BRIK", "x.mgz", "x.nii", "x.nii.gz", "x.hdr"])
def test_other_formats_never_get_to_a_reader(tmp_path, name, content, said):
    """Nibabel's own readers of them end in ImportError, KeyError and what else; the message says what to run."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputContractError, match=f"cannot read .*{said}") as error:
        read_volume(tmp_path / name)
    assert "\n" not in str(error.value)


def test_glcls_own_reader_has_the_same_bounds(tmp_path):
    """It reads files with a fourth axis, too."""
    with pytest.raises(InputContractError, match="byte nan"):
        read_image(nifti(tmp_path, edit=set_to(vox_offset=np.nan)), "LP")
    image = read_image(nifti(tmp_path), "LP")
    assert np.array_equal(image.values, np.asarray(scan().dataobj))
    assert image.grid.spacing == (1, 2, 3)


def test_a_scan_of_coarse_voxels_is_not_blown_up(tmp_path, little_memory):
    """A header with voxels of 20 mm makes a hundred million of a million; the message says what became of it."""
    from zoo.loading import load_transform

    values = np.random.default_rng(0).integers(-1000, 1000, (100, 100, 100)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([20.0, 20, 20, 1])), tmp_path / "coarse.nii")
    with pytest.raises(InputContractError, match=r"coarse.nii, resampled .* declares 1321 x 1321 x 991 voxels"):
        load_transform("monai-ssl-unetr")(tmp_path / "coarse.nii")


# NumPy


def npy(path, shape, *, descr="'|u1'", header=None, size=None, version=1):
    """Write a header without values, and make the file as long as it says, of holes."""
    text = (header or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape!r}, }}").encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + (int(np.prod(shape, dtype=object)) if size is None else size))
    return path


def test_arrays_that_declare_too_much(tmp_path, little_memory):
    """Of holes that take no disk, without the values, with products beyond 64 bits, with a header of gigabytes."""
    cases = {
        "declares|Cannot allocate": npy(tmp_path / "a.npy", (1500, 1500, 1500)),
        "cannot read": npy(tmp_path / "b.npy", (2**20, 2**20, 2**24), size=100),
        "cannot read .*": npy(tmp_path / "c.npy", (100, 100, 100), size=10),
        "1 bytes more than its header": npy(tmp_path / "d.npy", (10, 10, 10), size=1001),
        "real numbers": npy(tmp_path / "e.npy", (10, 10, 10), descr="'|V1'"),
        "Array can't be|[Oo]bject": npy(tmp_path / "f.npy", (10, 10, 10), descr="'|O'", size=8000),
        "cannot read  *": npy(tmp_path / "g.npy", (10,), header="(" * 9000),
    }
    long = tmp_path / "h.npy"
    long.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31))
    os.truncate(long, 2**31 + 100)
    (tmp_path / "i.npy").write_bytes(b"PK\3\4" + bytes(100))
    for said, path in cases.items() | {"header is longer": long, "not a .npy file": tmp_path / "i.npy"}.items():
        with pytest.raises(InputContractError, match=said) as error:
            read_volume(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<f8", "?", "f2"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_form_of_npy_is_read(tmp_path, monkeypatch, dtype, order, version):
    """All types, orders and versions, in parts as in one."""
    monkeypatch.setattr("zoo.images.reading._AT_ONCE", 100)
    values = np.random.default_rng(0).integers(0, 2, (1, 9, 10, 11)).astype(dtype)
    values = np.asarray(values, order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version)
    found = read_volume(tmp_path / "a.npy").values
    assert np.array_equal(found, values[0].astype(np.float32))
    assert found.flags.c_contiguous


# Pictures


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *more):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", head), *more, chunk(b"IEND", b"")])


def many_frames(path, count):
    """A TIFF with directories of nothing behind its first: each takes six bytes."""
    Image.new("L", (64, 64)).save(path)
    content = bytearray(path.read_bytes())
    place = struct.unpack_from("<I", content, 4)[0]
    following = place + 2 + 12 * struct.unpack_from("<H", content, place)[0]
    struct.pack_into("<I", content, following, len(content))
    first = len(content)
    content += b"".join(struct.pack("<HI", 0, first + 6 * (i + 1)) for i in range(count))
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_pictures_that_declare_too_much(tmp_path, little_memory):
    """Pixels, text, frames: as small files; the warning of PIL's own bound is not another line."""
    text = b"key\0\0" + zlib.compress(bytes(2**27))
    pictures = {"declares 9000 x 8000 pixels": png(8000, 9000), "cannot read": png(64, 64, chunk(b"zTXt", text))}
    for said, content in (pictures | {"cannot read .*bomb|declares": png(60000, 60000)}).items():
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputContractError, match=said) as error:
            read_picture(tmp_path / "a.png")
        assert "\n" not in str(error.value)
    with pytest.raises(InputContractError, match=r"frames|cannot read"):
        read_picture(many_frames(tmp_path / "a.tif", 500_000))


def test_a_jpeg_of_many_scans_is_not_decoded(tmp_path):
    """A few bytes for each, and a pass over all pixels; an ordinary progressive one is read, alone and in DICOM."""
    path = tmp_path / "film.jpg"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(path, progressive=True)
    content = path.read_bytes()
    first = content.index(b"\xff\xda")
    (tmp_path / "bomb.jpg").write_bytes(content[:first] + content[first:-2] * 90 + content[-2:])
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", np.zeros((64, 64), np.uint8), bits=8))
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    for name in ("film", "bomb"):
        stream = (tmp_path / f"{name}.jpg").read_bytes()
        dataset.PixelData = pydicom.encaps.encapsulate([stream])
        dataset.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    assert read_picture(path).shape == read_dicom(tmp_path / "film.dcm").shape == (64, 64)
    scans = 90 * content.count(b"\xff\xda")
    for read, suffix in ((read_picture, "jpg"), (read_dicom, "dcm")):
        with pytest.raises(InputContractError, match=f"JPEG of {scans} scans, at most 100 an image"):
            read(tmp_path / f"bomb.{suffix}")


def test_a_tiff_without_its_tags_is_no_negative(tmp_path):
    """Without the tag that says whether 0 is black PIL takes it for white, and only warns."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(path)
    content = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", content, 4)[0] + 2
    tags = range(first, first + 12 * struct.unpack_from("<H", content, first - 2)[0], 12)
    place = next(tag for tag in tags if struct.unpack_from("<H", content, tag)[0] == 262)
    struct.pack_into("<II", content, place + 4, 10_000, 10_000)
    path.write_bytes(content)
    with pytest.raises(InputContractError, match=r"Skipping tag 262|cannot identify image file"):
        read_picture(path)


def tiff(values, *, order="<", compressed=False, photometric=1):
    """The bytes of a TIFF of one strip of numbers of 16 or 32 bits."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if compressed else strip
    tags = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.itemsize, 259: 8 if compressed else 1}
    tags |= {262: photometric, 273: 8, 277: 1, 278: values.shape[0], 279: len(strip), 339: kind}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(strip))
    return start + strip + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_tiffs_whose_numbers_come_out_otherwise_are_refused(tmp_path):
    """PIL does not turn floats over whose white is zero, and swaps the bytes of some: another film, without a word."""
    floats = np.random.default_rng(0).random((6, 5)).astype(np.float32)
    signed = np.arange(30, dtype=np.int16).reshape(6, 5)
    path = tmp_path / "a.tif"
    for order, compressed in (("<", False), ("<", True), (">", False)):
        path.write_bytes(tiff(floats, order=order, compressed=compressed))
        assert np.array_equal(read_picture(path), floats)
    for content, said in (
        (tiff(floats, photometric=0), "white is not expected to be zero"),
        (tiff(floats, order=">", compressed=True), "big-endian"),
        (tiff(signed, order=">", compressed=True), "big-endian"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputContractError, match=said):
            read_picture(path)


@pytest.mark.slow
def test_damaged_pictures_are_refused_or_read(tmp_path):
    """Bytes changed or cut in every format: a picture or one sentence, never another error."""
    film = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8))
    rng, read = np.random.default_rng(0), 0
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp", "a.pgm", "a.jp2"):
        path = tmp_path / name
        film.save(path)
        content = path.read_bytes()
        for i in range(60):
            damaged = bytearray(content[: int(rng.integers(len(content)))] if i % 3 == 0 else content)
            for place in rng.integers(0, min(len(damaged), 400), 3) if damaged else ():
                damaged[place] = int(rng.integers(256))
            path.write_bytes(damaged)
            with suppress(InputContractError):
                read += read_picture(path).size > 0
    assert 0 < read < 360


# DICOM


@pytest.mark.slow
def test_a_deflated_bomb_is_not_inflated(tmp_path, little_memory):
    """Half a megabyte that unpacks to 512; one that is honest is read."""
    path = write_dicom(tmp_path / "a.dcm", np.arange(1024, dtype=np.uint16).reshape(32, 32), bits=16)
    honest = pydicom.dcmread(path)
    honest.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    expected = read_dicom(path)
    honest.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.array_equal(read_dicom(tmp_path / "b.dcm"), expected)
    content = (tmp_path / "b.dcm").read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 2**29)
    bomb = b"".join(packer.compress(part) for part in [head, *[bytes(2**24)] * 32]) + packer.flush()
    (tmp_path / "c.dcm").write_bytes(content[:end] + bomb)
    with pytest.raises(InputContractError, match="deflated and unpacks to more than"):
        read_dicom(tmp_path / "c.dcm")


def test_sequences_that_are_too_deep_or_too_many(tmp_path):
    """Eight bytes an item, and a kilobyte in memory; a depth at which Python ends."""
    content = write_dicom(tmp_path / "a.dcm", np.zeros((32, 32), np.uint16), bits=16).read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    opening = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    (tmp_path / "many.dcm").write_bytes(content[:end] + opening + item * 300_000)
    with pytest.raises(InputContractError, match="300000 items"):
        read_dicom(tmp_path / "many.dcm")
    (tmp_path / "deep.dcm").write_bytes(content[:end] + (opening + item[:4] + b"\xff" * 4) * 5000)
    with pytest.raises(InputContractError, match=r"cannot read .*deep\.dcm as DICOM"):
        read_dicom(tmp_path / "deep.dcm")


@pytest.mark.parametrize("keyword", ["WindowCenter", "BodyPartExamined", "PatientOrientation", "ImageType"])
def test_a_long_list_is_not_taken_apart(tmp_path, keyword):
    """Two bytes a number or word, and a kilobyte in memory."""
    path = write_dicom(tmp_path / "a.dcm", np.zeros((32, 32), np.uint16), bits=16, syntax=ImplicitVRLittleEndian)
    content = path.read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    tag = pydicom.datadict.tag_for_keyword(keyword)
    head = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, 2**21)
    path.write_bytes(content[:end] + head + b"1\\" * 2**20 + content[end:])
    with pytest.raises(InputContractError, match="has 2097152 bytes, at most 1048576 are read"):
        read_dicom(path)


def tiny(count):
    """Return as many elements without value, explicit, with ascending private tags."""
    numbers = np.arange(count)
    heads = np.zeros(count, [("group", "<u2"), ("element", "<u2"), ("kind", "S2"), ("length", "<u2")])
    heads["group"], heads["element"], heads["kind"] = 9 + 2 * (numbers // 60000), 0x1000 + numbers % 60000, b"LO"
    return heads.tobytes()


def test_headers_of_tiny_elements_are_not_taken_apart(tmp_path, monkeypatch):
    """Eight bytes each, and a kilobyte in memory: at the top, in an item without end, of group 2, deflated."""
    monkeypatch.setattr(dicom_bounds, "_MOST_READS", 3000)
    path = write_dicom(tmp_path / "a.dcm", np.arange(1024, dtype=np.uint16).reshape(32, 32), bits=16)
    content = path.read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    opening = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    syntax = b"1.2.840.10008.1.2.1\0"
    deflated = (
        content[:140]
        + struct.pack("<I", end - 144 + 2)
        + content[144:end].replace(struct.pack("<H", 20) + syntax, struct.pack("<H", 22) + b"1.2.840.10008.1.2.1.99")
    )
    for kind, written in {
        "top": content[:end] + tiny(4000) + content[end:],
        "item": content[:end] + opening + tiny(4000),
        "meta": content[:132] + struct.pack("<HH2sH", 2, 0x100, b"UI", 0) * 4000,
        "deflated": deflated + packer.compress(tiny(4000)) + packer.flush(),
    }.items():
        (tmp_path / f"{kind}.dcm").write_bytes(written)
        with pytest.raises(InputContractError, match="too many elements: more than 3000 reads"):
            read_dicom(tmp_path / f"{kind}.dcm")
    assert read_dicom(path).shape == (32, 32)


def test_items_of_either_byte_order_are_counted(tmp_path):
    """Big-endian items take as much memory."""
    content = write_dicom(tmp_path / "a.dcm", np.zeros((32, 32), np.uint16), bits=16).read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    head = content[:end].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")
    opening = struct.pack(">HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    (tmp_path / "many.dcm").write_bytes(head + opening + struct.pack(">HHI", 0xFFFE, 0xE000, 0) * 300_000)
    with pytest.raises(InputContractError, match="300000 items"):
        read_dicom(tmp_path / "many.dcm")


@pytest.mark.parametrize("kind", [b"SQ", b"UN"])
def test_a_long_sequence_is_not_taken_apart(tmp_path, monkeypatch, kind):
    """One that says its length is read when it is asked for, then all of it; any other element may be as long."""
    monkeypatch.setattr(dicom_bounds, "_MOST_SEQUENCE", 2**17)
    monkeypatch.setattr(dicom_bounds, "_MOST_TEXT", 2**16)
    content = write_dicom(tmp_path / "a.dcm", np.zeros((512, 512), np.uint16), bits=16).read_bytes()
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    inner = struct.pack("<HHI", 0xFFFE, 0xE000, 2**17) + tiny(2**14)
    for tag, fine in (((8, 0x2218), False), ((9, 0x2218), kind == b"UN")):
        (tmp_path / "b.dcm").write_bytes(
            content[:end] + struct.pack("<HH2sHI", *tag, kind, 0, len(inner)) + inner + content[end:]
        )
        if fine:
            assert read_dicom(tmp_path / "b.dcm").shape == (512, 512)
            continue
        with pytest.raises(InputContractError, match="131080 bytes, at most 131072"):
            read_dicom(tmp_path / "b.dcm")


def test_dicom_that_declares_too_much(tmp_path, little_memory, caplog):
    """Rows, columns and frames without the bytes for them, encoded or not; a file of holes."""
    path = write_dicom(tmp_path / "a.dcm", np.zeros((32, 32), np.uint16), bits=16)
    for edit in (
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 65535, "Columns": 1000},
        {"Rows": 0},
        {"BitsAllocated": 64},
    ):
        dataset = pydicom.dcmread(path)
        for name, value in edit.items():
            setattr(dataset, name, value)
        dataset.save_as(tmp_path / "b.dcm")
        with pytest.raises(InputContractError, match=r"b\.dcm"):
            read_dicom(tmp_path / "b.dcm")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.Rows = dataset.Columns = 8000
    dataset.save_as(tmp_path / "c.dcm")
    caplog.clear()
    with pytest.raises(
        InputContractError, match=r"(?s)cannot read the pixels of .*c\.dcm.*doesn't match the expected amount"
    ):
        read_dicom(tmp_path / "c.dcm")
    assert not caplog.records  # pydicom logs the traceback of what it raises
    with path.open("r+b") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(InputContractError, match="at most 1342177280 are read"):
        read_dicom(path)


@pytest.mark.slow
def test_damaged_dicom_is_refused_or_read(tmp_path):
    """Bytes changed or cut anywhere: an image or one sentence, never another error."""
    path = write_dicom(tmp_path / "a.dcm", np.arange(1024, dtype=np.uint16).reshape(32, 32), bits=16)
    dataset = pydicom.dcmread(path)
    inner = Dataset()
    inner.CodeValue = "1"
    dataset.ProcedureCodeSequence = Sequence([inner])
    dataset.save_as(path)
    content, rng, read = path.read_bytes(), np.random.default_rng(0), 0
    for i in range(300):
        damaged = bytearray(content[: int(rng.integers(132, len(content)))] if i % 3 == 0 else content)
        for place in rng.integers(132, min(len(damaged), 900), 3) if len(damaged) > 132 else ():
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        with suppress(InputContractError):
            read += read_dicom(path).size > 0
    assert 0 < read < 300


# Messages and tables


def test_cells_are_no_formulas():
    """What a spreadsheet would run gets an apostrophe, what would break a row is escaped; numbers stay numbers."""
    for text in ("=1+1", "+1+1", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"):
        assert csv_cell(text).startswith("'")
    assert csv_cell("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"
    assert [csv_cell(text) for text in ("films/a.png", "-1.5", "", 7, "a=b")] == ["films/a.png", "-1.5", "", "7", "a=b"]


def test_lists_end_after_ten():
    """100 000 bad images make a message of a screen; names in it forge no line."""
    message = listed([f"scan {i}" for i in range(100_000)])
    assert message.count("\n") == 11
    assert message.endswith("\n  - ... and 99990 more")
    assert listed(["a\nb"]) == "\n  - a\\nb"
    assert error_text(ValueError("a\x1b[2Jb"), as_page=True) == "zoo: a\\x1b[2Jb"


def test_reasons_are_short_and_of_one_line():
    """Also of errors that say nothing."""
    assert reason_of(MemoryError()) == "MemoryError"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert len(reason_of(ValueError("a b " * 10_000))) < 400
    assert reason_of(ValueError("a\nb\x1b")) == "a b\\x1b"


@pytest.mark.slow
def test_the_command_line_has_no_traceback(tmp_path):
    """From a fresh process, as a user has it: MINC, a bomb of holes, a pointer, a pipe."""
    (tmp_path / "a.mnc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(512))
    (tmp_path / "b.nii.gz").write_bytes(POINTER)
    code = (
        "import sys\nfrom zoo.cli import main\nfor path in sys.argv[1:]:\n"
        " try: main(['doctor', path, '--for', 'monai-ssl-unetr'])\n except SystemExit as leaving: print(leaving.code)"
    )
    names = [str(tmp_path / name) for name in ("a.mnc", "b.nii.gz")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("does not fit: ") == 2
    assert "Traceback" not in done.stdout + done.stderr
