"""TensorFlow bundles in every form: a small writer of them, and GLCL's networks filled so that outputs are known."""

import json
import math

import numpy as np
import torch
from caid_files import PARITY
from parity.fill import image, tfill
from torch import nn

from zoo.formats.crc32c import crc32c, masked

KEYS = json.loads((PARITY / "glcl_keys.json").read_text("utf-8"))
INDEX = PARITY / "glcl_seg_unet.ckpt.index"
"""Written by TensorFlow's own saver, of the reference U-Net with seed 0."""
TYPE_NUMBERS = {
    **{"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8, "int64": 9},
    **{"bool": 10, "uint16": 17, "complex128": 18, "float16": 19, "uint32": 22, "uint64": 23},
}
MAGIC = bytes.fromhex("57fb808b247547db")
AVERAGE = "ExponentialMovingAverage"


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def number_field(field, number):
    return varint(field << 3) + varint(number) if number else b""


def message_field(field, message):
    return varint(field << 3 | 2) + varint(len(message)) + message


def entry(kind, shape, *, shard=0, offset=0, size=0, checksum=0, slices=0):
    """The message that an index holds of one tensor."""
    axes = b"".join(message_field(2, number_field(1, length)) for length in shape)
    facts = number_field(1, kind) + message_field(2, axes) + number_field(3, shard) + number_field(4, offset)
    tail = message_field(7, b"") * slices
    return facts + number_field(5, size) + varint(6 << 3 | 5) + checksum.to_bytes(4, "little") + tail


def header(shards=1, order=0):
    return number_field(1, shards) + number_field(2, order) + message_field(3, number_field(1, 1))


def block(pairs, interval=16):
    """A block of a sorted table; keys are stored without what they share with the one before."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % interval:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    for number in (*(restarts or [0]), len(restarts) or 1):
        out += number.to_bytes(4, "little")
    return bytes(out)


def sealed(content, compression=0):
    """A block with what follows it in the file."""
    stored = content + bytes([compression])
    return stored + masked(crc32c(stored)).to_bytes(4, "little")


def assembled(blocks, handles, compression=0):
    """An index of blocks, one after the other; `handles` are pairs of a last key and the number of a block."""
    out, places = bytearray(), []
    for content in (*blocks, block([])):  # the last is the list of meta blocks
        places.append(varint(len(out)) + varint(len(content)))
        out += sealed(content, compression)
    last = block([(key, places[number]) for key, number in handles], interval=1)
    footer = places[-1] + varint(len(out)) + varint(len(last))
    return bytes(out) + sealed(last, compression) + footer.ljust(40, b"\0") + MAGIC


def table(pairs, *, entries_a_block=20, compression=0):
    """An index from sorted pairs of key and value."""
    parts = [pairs[start : start + entries_a_block] for start in range(0, len(pairs), entries_a_block)]
    return assembled([block(part) for part in parts], [(p[-1][0], i) for i, p in enumerate(parts)], compression)


def write_bundle(prefix, tensors, *, shards=1, order=0, compression=0, extra=()):
    """Write tensors as TensorFlow's saver does; `extra` has further pairs of key and value for the index.

    Returns:
        The prefix.
    """
    data = [bytearray() for _ in range(shards)]
    pairs = {"": header(shards, order)}
    for i, name in enumerate(sorted(tensors)):
        values, shard = np.asarray(tensors[name]), i % shards
        raw = values.tobytes()
        place = {"shard": shard, "offset": len(data[shard]), "size": len(raw), "checksum": masked(crc32c(raw))}
        pairs[name] = entry(TYPE_NUMBERS[values.dtype.name], values.shape, **place)
        data[shard] += raw
    found = sorted((key.encode() if isinstance(key, str) else key, v) for key, v in {**pairs, **dict(extra)}.items())
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(found, compression=compression))
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return prefix


def filled(graph, seed=0):
    """The variables of one of the authors' graphs, with the reference values that follow from their names."""
    return {name: tfill(name, shape, seed) for name, shape in KEYS[graph].items()}


def as_trained(variables, steps, *, optimisers=1):
    """What the saver writes beside variables after training: slots of Adam, and the powers of its rates.

    Only the first of several optimisers ran.
    """
    trained = {name: values for name, values in variables.items() if AVERAGE not in name}
    slots = {f"{name}/Adam{i}": np.ones_like(values) for name, values in trained.items() for i in ("", "_1")}
    powers = {}
    for i in range(optimisers):
        t, end = (0 if i else steps), f"_{i}" if i else ""
        powers |= {f"beta1_power{end}": np.float32(0.9 ** (t + 1)), f"beta2_power{end}": np.float32(0.999 ** (t + 1))}
    return variables | slots | powers


def with_averages(variables, scale):
    """The same variables with their moving averages scaled."""
    return {n: v * np.float32(scale) if AVERAGE in n else v for n, v in variables.items()}


def stage_two(blocks, *, project=True):
    """The variables of stage 2 with so many of the decoder's blocks, and with `seg_pred` if the loss projects."""
    width = (128, 128, 64, 32, 16)[blocks - 1]
    norm = "seg_c1_a/seg_c1_a_bn"
    head = {f"seg_c1_{layer}/W": (1, 1, width, width) for layer in "ab"}
    head |= {f"{norm}/{leaf}": (width,) for leaf in ("beta", "gamma")}
    head |= {f"{norm}/{norm}/moments/{m}/{AVERAGE}": (width,) for m in ("Squeeze", "Squeeze_1")}
    head |= {"seg_pred/kernel": (9 * width, 128)} if project else {}
    layers = ("enc_", *(part for b in range(blocks) for part in (f"dec_dc{6 - b}/", f"dec_c{5 - b}_")))
    kept = {name: shape for name, shape in KEYS["seg_unet"].items() if name.startswith(layers)}
    return {name: tfill(name, shape, blocks) for name, shape in (kept | head).items()}


def rebuild(folder):
    """The authors' reference U-Net as TensorFlow saved it: its index, and its data file from the names.

    Returns:
        The prefix.
    """
    prefix = folder / "seg_unet.ckpt"
    prefix.with_name(f"{prefix.name}.index").write_bytes(INDEX.read_bytes())
    data = b"".join(values.tobytes() for _, values in sorted(filled("seg_unet").items()))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/somebody/elsewhere/seg_unet.ckpt"\n')
    return prefix


def reference(name):
    with np.load(PARITY / f"{name}.npz") as arrays:
        return dict(arrays)


def reference_slices(name="x", count=2, side=192):
    """Slices `(N, 1, side, side)` as the references were computed from, which have the channel last."""
    seed = (0,) if name == "x" else ()
    slices = np.clip(0.5 + 0.25 * image(name, (count, side, side, 1), *seed), 0, 1)
    return torch.from_numpy(np.ascontiguousarray(slices.transpose(0, 3, 1, 2)))


def share(steps):
    """Of its value that an average has after so many steps from 0."""
    return -math.expm1(steps * math.log(0.99))


class Bright(nn.Module):
    """Calls what is brighter than halfway between the percentiles 1; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.given = []

    def forward(self, image):
        self.given.append(image)
        return torch.cat([0.5 - image, image - 0.5], 1) * self.scale
