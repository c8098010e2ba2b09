"""TensorFlow's checkpoints without TensorFlow: one that it wrote, ones of the tests' own making, and damaged ones."""

import json
import time
import tracemalloc

import numpy as np
import pytest
import torch
from glcl_files import (
    KEYS,
    TYPE_NUMBERS,
    assembled,
    block,
    entry,
    filled,
    header,
    rebuild,
    sealed,
    table,
    varint,
    write_bundle,
)

import zoo
from zoo.errors import CheckpointFormatError, ZooError
from zoo.formats.crc32c import crc32c, masked
from zoo.formats.opening import open_checkpoint
from zoo.formats.sniffing import sniff
from zoo.formats.tensorflow_bundle import find_bundle, open_bundle
from zoo.formats.tensorflow_index import IndexProblem, decode_index

DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """The prefix of the checkpoint that TensorFlow wrote."""
    return rebuild(tmp_path_factory.mktemp("genuine"))


@pytest.fixture
def small():
    """Tensors of every kind that a saver may write."""
    shapes = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (2, 3, 1, 5), "empty": (0, 7), "step": ()}
    return {name: DRAW.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def prefix(tmp_path, small):
    return write_bundle(tmp_path / "model.ckpt", small)


def index_of(prefix):
    return prefix.with_name(f"{prefix.name}.index")


def shard_of(prefix, shard=0, shards=1):
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# --- the checksum -----------------------------------------------------------------------------------------------------


def plain_crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_checksums_are_those_of_the_standard():
    """RFC 3720, appendix B.4, and the usual check value; the masked form as in LevelDB's tests."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
    assert masked(crc32c(b"foo")) != crc32c(b"foo")
    assert (masked(0), masked(0xFFFFFFFF)) == (0xA282EAD8, 0xA282EAD7)


@pytest.mark.parametrize("length", [1, 3, 4, 255, 256, 257, 319, 320, 1000, 16_383, 16_384, 16_385, 40_001])
def test_the_vector_sum_is_the_plain_loop(length):
    """At lengths around those where another way is taken, and where pieces are odd in number or not full."""
    data = DRAW.bytes(length)
    assert crc32c(data) == plain_crc32c(data)


def test_sections_are_joined():
    """Data beyond four megabytes is summed in parts; zeros at the front count."""
    tail = DRAW.bytes(1000)
    data = bytes(4 << 20) + tail
    shifted = crc32c(bytes(4 << 20)) ^ 0xFFFFFFFF
    for byte in tail:
        shifted ^= byte
        for _ in range(8):
            shifted = (shifted >> 1) ^ (0x82F63B78 if shifted & 1 else 0)
    assert crc32c(data) == shifted ^ 0xFFFFFFFF
    assert crc32c(b"\0" + tail) != crc32c(tail)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_genuine_checkpoint_is_read_to_the_last_bit(genuine):
    """Names, shapes, values and checksums of all 169 variables, as TensorFlow wrote them."""
    bundle = open_bundle(genuine)
    assert {name: list(v.shape) for name, v in bundle.variables.items()} == KEYS["seg_unet"]
    for name, values in filled("seg_unet").items():
        found = bundle.read(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, values), name


@pytest.mark.parametrize("shards", [1, 3])
def test_every_type_of_number_is_read(tmp_path, shards):
    """From one shard or several, scalars and empty tensors too; more names than one block of the index takes."""
    tensors = {f"of/{kind}": (DRAW.random((3, 5)) * 100).astype(kind) for kind in TYPE_NUMBERS}
    tensors |= {"scalar": np.float32(3), "empty": np.zeros((0, 4), np.int64)}
    tensors |= {f"block/{i:03d}/{'long' * i}": np.full(i, i, np.int16) for i in range(60)}
    bundle = open_bundle(write_bundle(tmp_path / "all", tensors, shards=shards))
    assert bundle.variables.keys() == tensors.keys()
    assert len(bundle.files) == 1 + shards
    for name, values in tensors.items():
        found = bundle.read(name)
        assert found.dtype == values.dtype
        assert found.shape == values.shape
        assert np.array_equal(found, values)


def test_a_bundle_goes_by_prefix_index_and_folder(prefix, small):
    """What the text file `checkpoint` says of other places is not looked at."""
    (prefix.parent / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/other.ckpt"')
    for path in (prefix, index_of(prefix), prefix.parent):
        assert find_bundle(path) == prefix
        stored = open_checkpoint(path)
        assert stored.tensors.keys() == small.keys()
        assert stored.files == (index_of(prefix), shard_of(prefix))
    assert [sniff(p) for p in (prefix, index_of(prefix), prefix.parent)] == [
        "TensorFlow checkpoint",
        "TensorFlow checkpoint index",
        "TensorFlow checkpoint folder",
    ]
    (prefix.parent / "checkpoint").unlink()
    assert sniff(prefix.parent) == "TensorFlow checkpoint folder"


def test_a_folder_with_several_bundles_names_them(prefix, small):
    """None is preferred; files of other programs that end in .index are none."""
    write_bundle(prefix.with_name("other.ckpt"), small)
    (prefix.parent / "faiss.index").write_bytes(bytes(100))
    with pytest.raises(CheckpointFormatError, match=r"holds 2 TensorFlow checkpoints: model\.ckpt, other\.ckpt\. Pass"):
        open_checkpoint(prefix.parent)
    assert open_checkpoint(prefix).files[0] == index_of(prefix)


def test_parts_lead_to_the_whole(prefix):
    """A shard or the graph is answered with the path to pass."""
    graph = prefix.with_name("model.ckpt.meta")
    graph.write_bytes(b"\x0a\x05hello")
    for part in (shard_of(prefix), graph):
        with pytest.raises(CheckpointFormatError, match=r"is a part of a TensorFlow checkpoint: pass .*model\.ckpt$"):
            open_checkpoint(part)


def test_what_is_no_bundle(tmp_path):
    """A folder without one, a path to nothing."""
    with pytest.raises(CheckpointFormatError, match="is not a TensorFlow checkpoint: expected a prefix"):
        open_bundle(tmp_path)
    with pytest.raises(CheckpointFormatError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")


def test_values_are_read_through_views(prefix, small):
    """Under new names, transposed, under inference mode or not; nothing else is read."""
    for mode in (torch.inference_mode, torch.enable_grad):
        with mode():
            stored = open_checkpoint(prefix)
            kernel = stored.tensors["b/kernel"]
            assert kernel.is_meta
            wanted = {"new": kernel.permute(3, 2, 0, 1), "bias": stored.tensors["a/bias"]}
            values = stored.read(wanted)
        assert wanted == {}
        assert torch.equal(values["new"], torch.from_numpy(small["b/kernel"].transpose(3, 2, 0, 1).copy()))
        assert values["new"].is_contiguous()
        assert torch.equal(values["bias"], torch.from_numpy(small["a/bias"]))
        assert float(open_checkpoint(prefix).tensors["step"]) == float(small["step"])


def test_inspection_compares_checksums(prefix, small):
    """Names, sizes of all files; a flipped bit in a value is the problem that a load would have."""
    flip(shard_of(prefix), 3)
    assert "is damaged: the checksum of the values of 'a/bias'" in zoo.inspect_checkpoint(prefix).problem
    flip(shard_of(prefix), 3)
    summary = zoo.inspect_checkpoint(prefix)
    assert (summary.format, summary.tensors, summary.problem) == ("TensorFlow checkpoint", len(small), "")
    assert summary.size == index_of(prefix).stat().st_size + shard_of(prefix).stat().st_size
    assert summary.types == {"float32": sum(values.nbytes for values in small.values())}
    assert "model.ckpt" in str(summary)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_value_is_found(prefix, small):
    """In the tensor that it is in, and in no other."""
    places = open_bundle(prefix).variables
    flip(shard_of(prefix), places["b/kernel"].offset + 17, bit=5)
    bundle = open_bundle(prefix)
    with pytest.raises(CheckpointFormatError, match=r"00000-of-00001 is damaged: .*'b/kernel' is wrong"):
        bundle.read("b/kernel")
    assert np.array_equal(bundle.read("a/kernel"), small["a/kernel"])


@pytest.mark.slow
def test_every_flipped_bit_of_the_index_is_found_or_harmless(prefix, small):
    """The checksums of its blocks, its footer, its magic: an error that names it, or the same content as before."""
    index, content = index_of(prefix), index_of(prefix).read_bytes()
    before = open_bundle(prefix).variables
    found = 0
    for place in range(len(content)):
        flip(index, place, bit=place % 8)
        try:
            assert open_bundle(prefix).variables == before, place
        except CheckpointFormatError:
            found += 1
        index.write_bytes(content)
    assert found > len(content) - 64  # but for the padding of the footer, and the list of meta blocks


def test_a_shard_cut_short_or_missing(prefix):
    """Known before anything is read; a shard without values may be missing."""
    shard = shard_of(prefix)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointFormatError, match=f"has {len(content) - 1} bytes where the index expects"):
        open_bundle(prefix)
    assert "cut short" in zoo.inspect_checkpoint(prefix).problem
    shard.unlink()
    with pytest.raises(CheckpointFormatError, match=r"data-00000-of-00001 is missing, which holds the values"):
        open_bundle(prefix)


@pytest.mark.parametrize("is_there", [True, False])
def test_shards_without_their_index(prefix, is_there):
    """The index is named, by whichever path the bundle is given; the files of others play no part."""
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(index.read_bytes()[:-4])
    if not is_there:
        index.unlink()
    what = "cut short or damaged" if is_there else "missing"
    paths = [shard_of(prefix), prefix.parent, *([index] if is_there else [prefix])]
    for path in paths:
        with pytest.raises(CheckpointFormatError, match=rf"model\.ckpt\.index is {what}: .* which model\.ckpt\.data"):
            open_checkpoint(path)
    with pytest.raises(CheckpointFormatError, match="does not exist"):
        open_checkpoint(prefix.with_name("model"))


@pytest.mark.parametrize("left", [0, 7, 8, 47, 48, 100, -1, -8, -48])
def test_an_index_cut_short(prefix, left):
    """Down to nothing."""
    index = index_of(prefix)
    index.write_bytes(index.read_bytes()[:left])
    with pytest.raises(CheckpointFormatError):
        open_checkpoint(index)
    with pytest.raises(CheckpointFormatError, match=r"cannot be read|no TensorFlow"):
        open_bundle(prefix)


def test_big_endian_and_compressed_indexes_are_refused(tmp_path, small):
    """With what they are."""
    with pytest.raises(CheckpointFormatError, match="big-endian"):
        open_bundle(write_bundle(tmp_path / "big", small, order=1))
    with pytest.raises(CheckpointFormatError, match=r"compressed \(Snappy\)"):
        open_bundle(write_bundle(tmp_path / "snappy", small, compression=1))
    with pytest.raises(CheckpointFormatError, match=r"compressed \(number 7\)"):
        open_bundle(write_bundle(tmp_path / "seven", small, compression=7))


def test_a_partitioned_variable_is_refused_by_name_where_it_is_needed(tmp_path, small):
    """Its pieces have names that begin with a zero byte."""
    extra = {"parted": entry(1, (6, 4), slices=2), b"\0parted\0\1": entry(1, (3, 4), size=48)}
    stored = open_checkpoint(write_bundle(tmp_path / "model", small, extra=extra))
    assert stored.tensors.keys() == small.keys() | {"parted"}
    assert stored.read({"a": stored.tensors["a/bias"]})["a"].shape == (4,)
    stored = open_checkpoint(tmp_path / "model")
    with pytest.raises(CheckpointFormatError, match=r"'parted' of .*model cannot be read: it is stored in slices"):
        stored.read({"a": stored.tensors["parted"]})


@pytest.mark.parametrize("shape", [(1 << 24, 1 << 25), (0, 1 << 47, 1 << 47), (1 << 49,)])
@pytest.mark.parametrize("facts", [{"kind": 14}, {"kind": 1, "slices": 2}, {"kind": 1}])
def test_a_shape_that_no_memory_holds_is_refused(shape, facts, tmp_path, small):
    """Whatever the type, and where the size in bytes is not compared with it."""
    facts = dict(facts)
    index = write_bundle(tmp_path / "model", small, extra={"huge": entry(facts.pop("kind"), shape, size=0, **facts)})
    with pytest.raises(CheckpointFormatError, match="cut short or damaged"):
        open_checkpoint(index)


def test_an_index_has_as_many_variables_as_a_checkpoint(tmp_path, small, monkeypatch):
    """More would take gigabytes in memory for megabytes in the file."""
    monkeypatch.setattr("zoo.formats.tensorflow_index._MOST_VARIABLES", len(small) - 1)
    with pytest.raises(CheckpointFormatError, match="more than 4 variables"):
        open_checkpoint(write_bundle(tmp_path / "model", small))


def test_an_unknown_type_is_refused_where_it_is_needed(tmp_path, small):
    """Strings beside the tensors, as TensorFlow 2 writes them, do no harm."""
    extra = {"_CHECKPOINTABLE_OBJECT_GRAPH": entry(7, (), size=0), "half": entry(14, (4,), size=0)}
    stored = open_checkpoint(write_bundle(tmp_path / "model", small, extra=extra))
    assert stored.read({"a": stored.tensors["a/bias"]})["a"].shape == (4,)
    stored = open_checkpoint(tmp_path / "model")
    with pytest.raises(CheckpointFormatError, match=r"'half' .* its type, number 14 of TensorFlow's, is not one of"):
        stored.read({"a": stored.tensors["half"]})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (entry(1, (4,), size=12), "cut short or damaged"),
        (entry(1, (4,), size=16, shard=3), "cut short or damaged"),
        (entry(1, (1 << 62,), size=1 << 64), "cut short or damaged"),
        (entry(1, ((1 << 64) - 1,), size=16), "cut short or damaged"),
        (entry(1, (1,) * 40, size=4), "cut short or damaged"),
        (entry(1, (4,), size=16, offset=1 << 40), "bytes where the index expects 1099511627792"),
        (b"\x0f", "cut short or damaged"),
        (b"\x12\x7f", "cut short or damaged"),
        (b"\x10\x01", "cut short or damaged"),
        (b"\xff" * 11, "cut short or damaged"),
    ],
    ids=["size", "shard", "huge", "negative", "axes", "outside", "wire type", "short", "number for message", "varint"],
)
def test_entries_that_cannot_be(tmp_path, small, fault, message):
    """Sizes that are not the shape's, places outside the files, messages that end in the middle."""
    prefix = write_bundle(tmp_path / "model", small, extra={"zz": fault})
    with pytest.raises(CheckpointFormatError, match=message):
        open_bundle(prefix)


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"a", entry(1, ()))],
        [],
        [(b"", b"")],
        [(b"", header(shards=0))],
        [(b"", header(shards=100_000))],
        [(b"", header()), (b"b", entry(1, ())), (b"a", entry(1, ()))],
        [(b"", header()), (b"a", entry(1, ())), (b"a", entry(1, ()))],
        [(b"", header()), (b"a" * 5000, entry(1, ()))],
    ],
    ids=["no header", "empty", "empty header", "no shards", "shards", "order", "twice", "name"],
)
def test_tables_that_no_saver_writes(pairs):
    """Right checksums alone do not make an index."""
    with pytest.raises(IndexProblem):
        decode_index(table(pairs))


def test_shared_prefixes_cannot_fill_the_memory():
    """A small file whose names, written out, would take 160 MB; and one whose blocks all lie at one place."""
    value = entry(1, ())
    first = (
        varint(0) + varint(0) + varint(len(header())) + header() + varint(0) + varint(4000) + varint(0) + b"n" * 4000
    )
    rest = b"".join(varint(4000) + varint(3) + varint(len(value)) + i.to_bytes(3, "big") + value for i in range(40_000))
    content = first + rest + bytes(4) + (1).to_bytes(4, "little")
    data = assembled([content], [(b"o", 0)])
    assert len(data) < 1 << 20
    same = block([(b"", header()), (b"a", value)])
    again = assembled([same], [(i.to_bytes(4, "big"), 0) for i in range(5000)])
    tracemalloc.start()
    for index in (data, again):
        with pytest.raises(IndexProblem, match="cut short or damaged"):
            decode_index(index)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def resealed(data):
    """The same index with the checksums of its blocks set right: what it takes to get past them."""
    at, out = 0, b""
    for size in BLOCKS:
        out, at = out + sealed(bytes(data[at : at + size]), data[at + size]), at + size + 5
    return out + bytes(data[at:])


PAIRS = sorted(
    {
        b"": header(),
        **{f"layer/{i}/kernel".encode(): entry(1, (2, 2), size=16, offset=16 * i) for i in range(30)},
    }.items()
)
BLOCKS = [len(block(PAIRS[:20])), len(block(PAIRS[20:]))]


@pytest.mark.slow
@pytest.mark.parametrize("seal", [False, True], ids=["as it is", "checksums set right"])
def test_damaged_indexes_never_do_worse_than_an_error(tmp_path, seal):
    """Random flips, cuts and insertions: an error of the zoo or a bundle, at once, and no huge memory."""
    draw, good = np.random.default_rng(1), table(PAIRS)
    prefix = tmp_path / "model"
    shard_of(prefix).write_bytes(bytes(16 * 30))
    tracemalloc.start()
    begin, opened, refused = time.monotonic(), 0, 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.integers(1, 4)):
            data[draw.integers(len(data) - 8)] = draw.integers(256)
        if not seal and draw.random() < 0.3:
            del data[draw.integers(len(data)) : draw.integers(len(data))]
        index_of(prefix).write_bytes(resealed(data) if seal else data)
        try:
            bundle = open_bundle(prefix)
            for name in bundle.variables:
                assert len(bundle.variables[name].shape) < 33
            opened += 1
        except ZooError:
            refused += 1
    assert refused > 150
    assert opened + refused == 300
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert time.monotonic() - begin < 30


def test_only_the_files_of_the_bundle_are_opened(tmp_path, small, monkeypatch):
    """Whatever its names and its text file say; their places follow from the prefix."""
    tensors = {"../../secret": small["a/bias"], "/etc/passwd": small["a/bias"], **small}
    prefix = write_bundle(tmp_path / "model", tensors)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/etc/passwd"')
    opened = set()
    original = type(prefix).open
    monkeypatch.setattr(type(prefix), "open", lambda path, *a, **k: (opened.add(path), original(path, *a, **k))[1])
    stored = open_checkpoint(tmp_path)
    stored.read(dict(stored.tensors))
    assert {path for path in opened if path.parts[1] != "proc"} == {index_of(prefix), shard_of(prefix)}


def test_the_report_of_inspection_is_json(prefix, capsys):
    """The command takes a prefix, too."""
    from zoo.cli import main

    with pytest.raises(SystemExit) as end:
        main(["inspect", str(prefix), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 5
