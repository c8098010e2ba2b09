"""Files of torch.save: every container form gives torch's values, and what is damaged or hostile is refused at once."""

import argparse
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.errors import CheckpointFormatError, UnsafeCheckpointError
from zoo.formats.opening import open_checkpoint
from zoo.formats.pickles import outline
from zoo.formats.torch_zip import ZipProblem, open_torch_zip

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def content():
    """Tensors of every layout and type that a state dict may have."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "plain": torch.randn(3, 4, 5),
        "shared": base,
        "part": base[2:4, 1:],
        "turned": base.T,
        "every other": base[::2, ::3],
        "repeated": torch.randn(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(5, dtype=torch.float64),
        "bytes": torch.arange(-3, 4, dtype=torch.int8),
        "truth": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "small": torch.randn(9).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "ä name": torch.ones(1),
    }


def save_zip(path):
    torch.save(content(), path)


def save_legacy(path):
    known = {name: tensor for name, tensor in content().items() if name != "small"}  # a newer type than the format
    torch.save(known, path, _use_new_zipfile_serialization=False)


def zipped_again(method=zipfile.ZIP_DEFLATED, folders=False, name="archive", zip64=False):
    """What `unzip` and `zip -r` make of a checkpoint."""

    def save(path):
        stream = io.BytesIO()
        torch.save(content(), stream)
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", method) as new:
            for folder in (f"{name}/", f"{name}/data/") if folders else ():
                new.writestr(zipfile.ZipInfo(folder), b"")
            for info in old.infolist():
                renamed = zipfile.ZipInfo(f"{name}/{info.filename.partition('/')[2]}")
                renamed.compress_type = method
                with new.open(renamed, "w", force_zip64=zip64) as record:
                    record.write(old.read(info))

    return save


def save_without_crc(path):
    options = torch.serialization.set_crc32_options
    options(False)
    try:
        torch.save(content(), path)
    finally:
        options(True)


def save_big_endian(path):
    """The same values, in the other byte order, with the record that says so."""
    stream = io.BytesIO()
    torch.save({"plain": torch.randn(4, 5), "count": torch.tensor(7)}, stream)
    items = {"0": 4, "1": 8}
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data, name = old.read(info), info.filename.rpartition("/")[2]
            if name == "byteorder":
                data = b"big"
            elif name in items:
                data = np.frombuffer(data, f"V{items[name]}").view(f"<u{items[name]}").byteswap().tobytes()
            new.writestr(info.filename, data)


FORMS = {
    "torch.save": save_zip,
    "before 1.6": save_legacy,
    "deflated": zipped_again(),
    "deflated with folders": zipped_again(folders=True, name="another"),
    "stored anew": zipped_again(zipfile.ZIP_STORED),
    "zip64": zipped_again(zipfile.ZIP_STORED, zip64=True),
    "without CRC": save_without_crc,
    "big-endian": save_big_endian,
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_container_gives_the_values_of_torch(form, mmap, tmp_path):
    """Compressed records that are mapped, or read past their end, would give others."""
    path = tmp_path / "x.pth"
    FORMS[form](path)
    expected = torch.load(path, weights_only=True)
    stored = open_checkpoint(path, mmap=mmap)
    assert list(stored.tensors) == list(expected)
    for name, values in stored.read(dict(stored.tensors)).items():
        wanted = expected[name].detach()
        wanted = wanted.float() if wanted.is_floating_point() else wanted
        assert values.dtype == wanted.dtype, name
        assert torch.equal(values, wanted), name


@pytest.mark.slow
def test_a_network_loads_from_an_archive_that_was_packed_again(tmp_path):
    """From the file to the features, as from the file that torch wrote."""
    network = zoo.load_model("caid-resnet50", pretrained=False)
    for number, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, number)  # packed in no time
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    loaded = zoo.load_model("caid-resnet50", checkpoint=tmp_path / "b.pth")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


@pytest.mark.slow
def test_what_training_scripts_store_beside_is_let_through(tmp_path):
    """Optimisers, schedulers, arguments, numbers of NumPy, sets, bytes, complex numbers, deep settings."""
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99))
    network(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 5])
    marked = torch.ones(2)
    marked.origin = "a note"
    beside = {
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
        "args": argparse.Namespace(lr=0.1, sizes=(1, 2), deep={"a": [{"b": (None, True)}]}),
        "loss": np.float32(1.5),
        "best": np.float64(2.5),
        "steps": np.int64(3),
        "raw": b"\0\xff",
        "buffer": bytearray(b"abc"),
        "set": {1, 2},
        "wave": 1 + 2j,
        "votes": Counter("abca"),
        "order": OrderedDict(a=1),
        "shape": torch.Size([1, 2]),
        "type": torch.float16,
        "device": torch.device("cpu"),
        "marked": marked,
        "random": torch.get_rng_state(),
        "history": [(i, i / 7) for i in range(2000)],
        ("tuple", 1): 2,
        -1: 10**30,
    }
    for new in (True, False):
        torch.save({"state_dict": network.state_dict()} | beside, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        assert list(open_checkpoint(tmp_path / "a.pt").tensors) == list(network.state_dict())


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def network_file(tmp_path):
    """A file that fills a model, and the place of one of its records."""
    network = zoo.load_model("caid-resnet50", pretrained=False)
    path = tmp_path / "net.pth"
    torch.save(network.state_dict(), path)
    return path


def flip(path, key="5"):
    """Change one bit in the middle of a record; its name in the archive."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(f"data/{key}"))
    with path.open("r+b") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<2H", file.read(4))
        place = info.header_offset + 30 + name + extra + info.file_size // 2 // 4 * 4
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))  # the last bit of a mantissa: a finite value still


@pytest.mark.slow
def test_one_flipped_bit_is_refused(network_file, tmp_path, request):
    """By a load that reads, an import and inspect, each naming the record; only a mapped load does not look."""
    command = request.getfixturevalue("zoo")
    flip(network_file)
    with pytest.raises(CheckpointFormatError, match=r"record net/data/5 is damaged: Bad CRC-32"):
        zoo.load_model("caid-resnet50", checkpoint=network_file)
    code, _, said = command("import", "caid-resnet50.flipped", network_file, "--cache-dir", tmp_path / "c")
    assert code == 1
    assert "net/data/5 is damaged" in said
    assert "net/data/5 is damaged" in zoo.inspect_checkpoint(network_file).problem
    zoo.load_model("caid-resnet50", checkpoint=network_file, mmap=True)


def test_records_that_are_not_read_are_not_compared(tmp_path):
    """A damaged moment of the optimiser does not cost the weights."""
    moments = {"state": {0: {"exp_avg": torch.ones(999)}}}
    torch.save({"state_dict": {"a": torch.ones(99)}, "optimizer": moments}, tmp_path / "a.pth")
    flip(tmp_path / "a.pth", "1")
    stored = open_checkpoint(tmp_path / "a.pth", mmap=False)
    assert torch.equal(stored.read(dict(stored.tensors))["a"], torch.ones(99))
    computed = {"sum": torch.ones(1)}  # of tensors that cannot be told
    with pytest.raises(CheckpointFormatError, match="data/1 is damaged"):
        open_checkpoint(tmp_path / "a.pth").check_records(computed)


def repacked(change, method=zipfile.ZIP_STORED):
    """Write an archive of two tensors again, with `change(name, data)` in place of each record, left out where None."""

    def write(path):
        stream = io.BytesIO()
        torch.save({"a": torch.ones(64), "b": torch.full((64,), 2.0)}, stream)
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", method) as new:
            for info in old.infolist():
                name = info.filename.partition("/")[2]
                data = change(name, old.read(info))
                if data is not None:
                    new.writestr(f"archive/{name}", data)

    return write


def twice(path):
    repacked(lambda name, data: data)(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"x")


def with_tail(path):
    repacked(lambda name, data: data)(path)
    path.write_bytes(path.read_bytes() + b"tail")


def encrypted(path):
    repacked(lambda name, data: data)(path)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"archive/data/0") - 46
    data[place + 8] |= 1
    path.write_bytes(data)


def overlapping(path):
    repacked(lambda name, data: data)(path)
    data = bytearray(path.read_bytes())
    place, other = (data.rindex(f"archive/data/{key}".encode()) - 46 for key in (1, 0))
    data[place + 42 : place + 46] = data[other + 42 : other + 46]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (repacked(lambda n, d: d[:-4] if n == "data/0" else d), r"data/0 has 252 bytes where its tensors need 256"),
        (repacked(lambda n, d: d[:-4] if n == "data/0" else d, zipfile.ZIP_DEFLATED), "data/0 has 252 bytes"),
        (repacked(lambda n, d: None if n == "data/1" else d), "data/1 is missing"),
        (repacked(lambda n, d: None if n == "data.pkl" else d), "without a record archive/data.pkl"),
        (repacked(lambda n, d: d[:40] if n == "data.pkl" else d), "pickle is cut short or damaged"),
        (repacked(lambda n, d: d, zipfile.ZIP_BZIP2), "compressed in a way that torch does not read"),
        (twice, "several records of one name"),
        (with_tail, "something stands behind it|directory is cut short"),
        (encrypted, "encrypted"),
        (overlapping, "lies over another"),
    ],
)
def test_a_damaged_archive_is_refused_by_name(write, expected, tmp_path):
    """A short record would be filled from its neighbour; torch itself notices few of these."""
    write(tmp_path / "a.pth")
    for mmap in (True, False):
        with pytest.raises(CheckpointFormatError, match=expected):
            open_checkpoint(tmp_path / "a.pth", mmap=mmap)


def cut_legacy(at):
    def write(path):
        torch.save({"a": torch.ones(64)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:at])

    return write


def of_another_count(path):
    torch.save({"a": torch.ones(64)}, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[-64 * 4 - 8] = 63
    path.write_bytes(data)


def without_a_storage(path):
    """The list of storages is empty: torch would hand out memory that nobody wrote to."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    made = b"\x80\2}" + text(b"a") + tensor(b"K\4", b"K\4\x85", b"K\1\x85") + b"s."
    path.write_bytes(b"".join([*parts, made, pickle.dumps([], 2), struct.pack("<q", 4), bytes(16)]))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (cut_legacy(-1), "storage '.*' is cut short"),
        (cut_legacy(-64 * 4 - 9), "cut short|damaged"),
        (of_another_count, "storage '.*' is cut short"),
        (without_a_storage, "list of storages is not that of its tensors"),
    ],
)
def test_a_damaged_file_of_the_older_format_is_refused(write, expected, tmp_path, untouched):
    """Before torch takes memory for what is not there."""
    write(tmp_path / "a.pth")
    with pytest.raises(CheckpointFormatError, match=expected):
        open_checkpoint(tmp_path / "a.pth")


def test_only_plain_and_aligned_records_are_mapped(tmp_path):
    """Bytes that lie at odd places are read: a mapped tensor there is no tensor that every processor reads."""
    for form, mapped in (("torch.save", True), ("deflated", False), ("stored anew", False)):
        FORMS[form](tmp_path / "a.pth")
        assert open_torch_zip(tmp_path / "a.pth").can_be_mapped == mapped
        assert open_checkpoint(tmp_path / "a.pth").in_memory != mapped
    values = torch.arange(99, dtype=torch.uint8)  # bytes are aligned anywhere
    stream = io.BytesIO()
    torch.save({"a": values}, stream)
    for method, mapped in ((zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_STORED, True)):
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", method) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
        assert open_torch_zip(tmp_path / "b.pth").can_be_mapped == mapped
        assert torch.equal(open_checkpoint(tmp_path / "b.pth").tensors["a"], values)


@pytest.mark.slow
def test_changed_bytes_never_give_other_values_in_silence(tmp_path):
    """300 draws: an archive with changed bytes is refused, or gives what was written."""
    good = torch.load(io.BytesIO(saved := _bytes_of({"a": torch.randn(300), "b": torch.randn(40)})), weights_only=True)
    draw, path, refused = random.Random(0), tmp_path / "a.pth", 0
    for _ in range(300):
        data = bytearray(saved)
        for _ in range(draw.choice((1, 1, 4))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            stored = open_checkpoint(path, mmap=False)
            values = stored.read(dict(stored.tensors))
        except (CheckpointFormatError, UnsafeCheckpointError):
            refused += 1
            continue
        assert all(torch.equal(values[name], good[name]) for name in values)
    assert refused > 150


def _bytes_of(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


# --- hostile pickles --------------------------------------------------------------------------------------------------

CALL = b"c%s\n%s\n"


def call(module, name, arguments):
    return CALL % (module, name) + arguments + b"\x85R"


def towers(levels):
    """A tuple of a tuple of ... twice each, which has 2^levels ends and takes as long to hash."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def storage(count, key=b"0"):
    return b"(" + text(b"storage") + CALL % (b"torch", b"FloatStorage") + text(key) + text(b"cpu") + count + b"tQ"


def tensor(count, shape, strides, offset=b"K\0"):
    return (
        CALL % (b"torch._utils", b"_rebuild_tensor_v2")
        + b"("
        + storage(count)
        + offset
        + shape
        + strides
        + b"\x89"
        + CALL % (b"collections", b"OrderedDict")
        + b")RtR"
    )


def colliding_tuples(count):
    return b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"K\1\x86N" for i in range(count)) + b"u"


BOMBS = {
    "bytearray of a size": call(b"builtins", b"bytearray", number(1 << 33)),
    "tensor of a size": call(b"torch", b"Tensor", number(1 << 31)),
    "storage of a size": call(b"torch", b"FloatStorage", number(1 << 31)),
    "storage": storage(number(1 << 31)),
    "negative storage": storage(b"J\xff\xff\xff\xff"),
    "storage that is too short": tensor(b"K\4", b"K\5\x85", b"K\1\x85"),
    "offset beyond the storage": tensor(b"K\4", b"K\2\x85", b"K\1\x85", b"K\x03"),
    "negative stride": tensor(b"K\4", b"K\2\x85", b"J\xff\xff\xff\xff\x85"),
    "one value repeated": tensor(b"K\1", number(1 << 40) + b"\x85", b"K\0\x85"),
    "empty, of endless axes": tensor(b"K\1", b"K\0" + number(1 << 62) + b"\x86", number(1 << 62) + b"K\1\x86"),
    "tuples that take years to hash": b"}" + towers(90) + b"K\1s",
    "tuples in a set": call(b"builtins", b"set", b"]" + towers(90) + b"a"),
    "tuples that overflow the stack": b"}" + b")" + b"\x85" * 200_000 + b"K\1s",
    "tuples as keys": colliding_tuples(40_000),
    "numbers that hash alike": b"}(" + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(5, 999)) + b"u",
    "complex numbers as keys": b"}" + call(b"builtins", b"complex", b"G" + bytes(8)) + b"K\1s",
    "bytes doubled": text(b"ab") + (b"q\0" + CALL % (b"_codecs", b"encode") + b"h\0" + text(b"hex") + b"\x86R") * 40,
    "copies of a text": text(b"a" * 99_999) + b"q\0" + call(b"_codecs", b"encode", b"h\0") * 9_999,
    "copies of a list": b"](" + b"N" * 99_999 + b"eq\0" + call(b"builtins", b"set", b"h\0") * 9_999,
    "a type of NumPy of a size": call(b"numpy", b"dtype", text(b"V2000000000")),
    "a number of NumPy of a size": CALL % (b"numpy.core.multiarray", b"scalar")
    + call(b"numpy", b"dtype", text(b"f8"))
    + b"\x85R",
    "a quantised tensor": CALL % (b"torch._utils", b"_rebuild_qtensor") + b")R",
    "a layout named by a tower": call(b"torch.serialization", b"_get_layout", towers(60)),
    "a call of a tower": towers(60) + b")R",
    "a text of four gigabytes": b"X\xff\xff\xff\xffabc",
    "a number of two gigabytes": b"\x8b\xff\xff\xff\x7fabc",
    "a step of another protocol": b"\x96" + struct.pack("<Q", 1 << 40),
    "a dictionary with another get": CALL % (b"collections", b"OrderedDict")
    + b")R}" + text(b"get") + CALL % (b"builtins", b"bytearray") + b"sb",
    "a tensor with another detach": CALL % (b"torch._tensor", b"_rebuild_from_type_v2")
    + b"(" + CALL % (b"torch._utils", b"_rebuild_tensor_v2") + CALL % (b"torch", b"Tensor") + b")"
    + b"}" + text(b"detach") + CALL % (b"builtins", b"bytearray") + b"stR",
}  # fmt: skip
SURE = {
    "storage that is too short": "reaches beyond its storage",
    "bytearray of a size": "bytearray of a size",
    "a dictionary with another get": "replaces 'get' of a OrderedDict",
    "a tensor with another detach": "replaces 'detach' of a Parameter",
    "a quantised tensor": "holds a quantised tensor",
    "tuples that take years to hash": "nested tuples as keys",
}


@pytest.fixture
def untouched(monkeypatch):
    """Fails the test as soon as torch is asked to read a file."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was asked to read the file"))


def as_zip(pickled, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")


def as_legacy(pickled, path):
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps(["0"], 2), struct.pack("<q", 4), bytes(16)]))


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_zip, as_legacy, lambda pickled, path: path.write_bytes(pickled)])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(bomb, write, tmp_path, untouched):
    """Within seconds and without memory, where torch would allocate gigabytes or hash for ever."""
    path = tmp_path / "bomb.pth"
    inner = b"}" + text(b"state_dict") + BOMBS[bomb] + b"s."
    write(b"\x80\2" + inner, path)
    start = time.process_time()
    with pytest.raises(CheckpointFormatError, match=SURE.get(bomb) if write is as_zip else None) as caught:
        open_checkpoint(path)
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 600
    assert "weights_only" not in str(caught.value)


@pytest.mark.slow
def test_bombs_need_no_memory(tmp_path):
    """The pickles above in one process that may take a quarter of a gigabyte beyond what torch does."""
    for name, pickled in BOMBS.items():
        as_legacy(b"\x80\2}" + text(b"state_dict") + pickled + b"s.", tmp_path / f"{name}.pth")
    with zipfile.ZipFile(tmp_path / "zeros.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w") as record:
            for _ in range(20):
                record.write(bytes(16 << 20))
        archive.writestr(
            "archive/data.pkl", b"\x80\2}" + text(b"a") + tensor(number(20 << 22), *[b"K\1\x85"] * 2) + b"s."
        )
    script = """
import resource, sys, pathlib, torch, zoo
zoo.inspect_checkpoint
import zoo.formats.opening
limit = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 28)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pth")):
    try:
        zoo.formats.opening.open_checkpoint(path)
    except zoo.errors.CheckpointFormatError:
        continue
    sys.exit(f"{path} was read")
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.slow
def test_drawn_pickles_are_no_surprise(tmp_path):
    """Pieces of the pickles above in any order, and real ones with changed bytes: refused or read, soon."""
    draw, pieces, path = (
        random.Random(1),
        [*BOMBS.values(), b"}", b"]", b")", b"(", b"t", b"s", b"b", b"R"],
        tmp_path / "a",
    )
    real = _bytes_of({"a": torch.ones(3), "b": (1, [2.0, "c"])})
    with zipfile.ZipFile(io.BytesIO(real)) as archive:
        real = archive.read("archive/data.pkl")
    pieces = [piece for piece in pieces if len(piece) < 2000]
    for i in range(400):
        if i % 2:
            pickled = b"".join(draw.choice(pieces) for _ in range(draw.randrange(1, 9))) + b"."
        else:
            pickled = bytearray(real)
            for _ in range(3):
                pickled[draw.randrange(2, len(real))] = draw.randrange(256)
            pickled = bytes(pickled[2:])
        (as_zip if draw.randrange(2) else as_legacy)(b"\x80\2" + pickled, path)
        try:
            open_checkpoint(path)
        except (CheckpointFormatError, UnsafeCheckpointError):
            continue


def test_a_pickle_has_as_many_steps_as_a_checkpoint(tmp_path):
    """More are refused, not walked for hours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.formats.pickles.MOST_STEPS", 50)
        as_zip(b"\x80\2](" + b"N" * 60 + b"e.", tmp_path / "a.pth")
        with pytest.raises(CheckpointFormatError, match="more than 50 steps"):
            open_checkpoint(tmp_path / "a.pth")


def test_tensors_of_other_kinds_are_named(tmp_path):
    """Sparse, quantised, and those without values: what a network cannot take is said by name."""
    for made, kind in (
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), r"without values \(of the meta device\)"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    ):
        torch.save({"a": torch.ones(2), "b": made}, tmp_path / "a.pth")
        with pytest.raises(CheckpointFormatError, match=f"it holds a {kind}|it holds a tensor {kind}"):
            open_checkpoint(tmp_path / "a.pth")


def test_the_walk_knows_the_storages(tmp_path):
    """By which records are compared with their CRC: those under the containers that led to the tensors."""
    stream = io.BytesIO()
    torch.save({"net": {"state_dict": {"a": torch.ones(2), "b": torch.ones(3)}}, "c": torch.ones(4)}, stream)
    with zipfile.ZipFile(stream) as archive:
        made = outline(io.BytesIO(archive.read("archive/data.pkl")), 10_000)
    assert made.storage_keys(("net", "state_dict")) == {"a": "0", "b": "1"}
    assert {key: storage.size for key, storage in made.storages.items()} == {"0": 8, "1": 12, "2": 16}


def test_a_directory_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    """Its size is said by the file, and bounded."""
    monkeypatch.setattr("zoo.formats.torch_zip._MOST_DIRECTORY", 200)
    save_zip(tmp_path / "a.pth")
    with pytest.raises(ZipProblem, match="directory has"):
        open_torch_zip(tmp_path / "a.pth")


# --- other programs' files --------------------------------------------------------------------------------------------


def test_torchscript_is_named(tmp_path):
    """With what to do, and without torch's advice to run it."""
    network = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(network, tmp_path / "a.pt")
    with pytest.raises(CheckpointFormatError, match=r"TorchScript.*torch\.jit\.load\(FILE\)\.state_dict\(\)") as caught:
        zoo.load_model("caid-resnet50", checkpoint=tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)
    assert "TorchScript" in zoo.inspect_checkpoint(tmp_path / "a.pt").problem


def test_an_old_tar_is_named(tmp_path):
    """Torch would advise to read it in a way that runs code."""
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(CheckpointFormatError, match="tar archive"):
        open_checkpoint(tmp_path / "a.tar")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_pointers_to_large_files_are_named(suffix, tmp_path):
    """Of Git LFS and git-annex, as a file and as a link: what fetches the file stands in the message."""
    path, link = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    link.symlink_to(".git/annex/objects/xx/MD5E-s12--0/MD5E-s12--0")
    for content_, command in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s12--0.pth\n", "git annex get"),
    ):
        path.write_bytes(content_)
        for place, fetches in ((path, command), (link, "git annex get")):
            for read in (open_checkpoint, zoo.inspect_checkpoint):
                with pytest.raises(CheckpointFormatError, match=fetches):
                    read(place)


@pytest.mark.parametrize("name", ["pipe", "pipe.index", "/dev/zero", "socket", "folder.pth"])
def test_what_is_no_file_is_not_opened(name, tmp_path, monkeypatch):
    """A pipe without a writer would be waited for, a device read for ever."""
    import socket

    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkfifo("pipe.index")
    (tmp_path / "folder.pth").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(CheckpointFormatError, match=r"pipe, socket or device|folder"):
            zoo.load_model("caid-resnet50", checkpoint=name)
        assert zoo.inspect_checkpoint(name).problem


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    """A sentence in place of a traceback."""
    from pathlib import Path

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    save_zip(tmp_path / "a.pth")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointFormatError, match=r"a\.pth cannot be read: Permission denied"):
        open_checkpoint(tmp_path / "a.pth")


# --- what a file says of itself ---------------------------------------------------------------------------------------


def test_names_cannot_forge_lines(tmp_path):
    """A tensor's name with line ends and escapes is shown as text, in the summary and in the errors."""
    forged = "a\n  models    caid-resnet50: 318 of 318\x1b[2K\u202e"
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {forged: torch.ones(2)}, f"beside{forged}": 1}, path)
    page = str(zoo.inspect_checkpoint(path))
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert len(page.splitlines()) == 4
    with pytest.raises(zoo.errors.CheckpointMismatchError) as caught:
        zoo.load_model("caid-resnet50", checkpoint=path)
    assert "\x1b" not in str(caught.value)
    torch.save({f"x{forged}": 1}, path)
    with pytest.raises(CheckpointFormatError) as refused:
        open_checkpoint(path)
    assert "\x1b" not in str(refused.value)
    path.write_bytes(b"\x80\2cev\x1bil\nrun\n)R.")
    assert "\x1b" not in str(zoo.inspect_checkpoint(path))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Half of a character can neither be printed nor stored."""
    torch.save({"a\udc80": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointFormatError, match=r"not text: a\\udc80"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("said", ["[" * 100_000, json.dumps({"channels": "\ud800"}), "[1]", "1" * 9999])
def test_an_input_that_is_none_is_refused(said, tmp_path):
    """Nested beyond what Python reads, with half a character, of another kind."""
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"input": said})
    with pytest.raises(CheckpointFormatError, match="states its input"):
        _ = open_checkpoint(tmp_path / "a.safetensors").input


def test_a_header_of_safetensors_is_bounded(tmp_path):
    """Lengths, places and nesting beyond the file or the reader: our error."""
    path = tmp_path / "a.safetensors"
    for header, size in (
        (b"{" + b'"a":{' * 5000, None),
        (b'{"a":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,8]}}', None),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}', None),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', None),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
         None),
        (b'{"a":1}', 1 << 31),
        (b"{}", (1 << 62)),
    ):  # fmt: skip
        path.write_bytes(struct.pack("<Q", size or len(header)) + header + bytes(8))
        with pytest.raises(CheckpointFormatError):
            open_checkpoint(path)
