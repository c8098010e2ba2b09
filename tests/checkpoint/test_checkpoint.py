"""Reading files safely, finding names in them, and filling a network strictly."""

import importlib
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import zoo
from zoo.checkpoint.building import build_network
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.checkpoint.filling import adapt_input_channels, load_into
from zoo.checkpoint.keys import convert, left_out
from zoo.entry import Entry, Preprocessing
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError, UnsafeCheckpointError
from zoo.formats import opening
from zoo.formats.mounts import is_on_network
from zoo.formats.opening import open_checkpoint
from zoo.formats.sniffing import sniff
from zoo.locate import write_converted
from zoo.tensor_names import find_prefix, rename_keys, strip_prefix


def tensors(*names):
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)}


class Net(nn.Module):
    """A network of four groups: stem, norm, an optional neck, and a head."""

    def __init__(self, classes=2, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.neck = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, classes)


def entry(**changes):
    facts = {
        "name": "net",
        "summary": "a test",
        "family": "test",
        "modalities": ("xray",),
        "anatomy": "chest",
        "dimension": 2,
        "parameters": 144,
        "num_features": None,
        "build": lambda config: Net(config["num_classes"]),
        "convert": lambda state: (dict(state), {}),
        "config": {"num_classes": 2, "in_channels": 3},
        "required": ("stem.", "norm."),
        "head": ("head.",),
        "stem": "stem.weight",
        "stages": (("stem.", "norm."), ("neck.",)),
        "preprocessing": Preprocessing(("grey",), (8, 8)),
    }
    return Entry(**facts | changes)


def empty_net(**sizes):
    with torch.device("meta"):
        return Net(**sizes)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.encoder_q.", "anything.at.all."])
def test_the_prefix_is_found_from_the_names(prefix):
    """Whatever stands in front of the anchors, and only at a dot."""
    state = tensors(f"{prefix}conv1.weight", f"{prefix}fc.weight", "queue")
    assert find_prefix(state, ("conv1.weight", "fc.weight")) == prefix


def test_no_prefix_where_an_anchor_is_missing():
    """Most anchors must stand behind the same prefix, and a part of a word is none."""
    assert find_prefix(tensors("a.conv1.weight", "b.fc.weight"), ("conv1.weight", "fc.weight")) is None
    assert find_prefix(tensors("my_conv1.weight"), ("conv1.weight",)) is None
    assert find_prefix({}, ("conv1.weight",)) is None


def test_prefix_of_a_network_that_lacks_a_tensor():
    """Most of the anchors tell it, in favour of nothing that has all of them, and only where it is the only one."""
    anchors = ("conv1.weight", "layer1.weight", "fc.weight")
    partial = [f"net.{anchor}" for anchor in anchors[1:]]
    assert find_prefix(tensors(*partial), anchors) == "net."
    assert find_prefix(tensors(*partial, *anchors), anchors) == ""
    assert find_prefix(tensors(*partial, *(f"encoder_k.{anchor}" for anchor in anchors)), anchors) == "net."
    assert find_prefix(tensors(*partial, "other.conv1.weight", "other.fc.weight"), anchors) is None
    assert find_prefix(tensors("net.conv1.weight"), anchors) is None


@pytest.mark.parametrize(
    "key", ["encoder_k", "momentum_encoder", "momentum_backbone", "backbone_momentum", "target_net", "teacher", "ema"]
)
def test_the_key_network_is_passed_over(key):
    """Of query and key network the query is taken; a key network alone is refused."""
    state = tensors("encoder_q.conv1.weight", f"{key}.conv1.weight")
    assert find_prefix(state, ("conv1.weight",)) == "encoder_q."
    with pytest.raises(CheckpointMismatchError, match=rf"key network alone.*'{key}\.'"):
        find_prefix(tensors(f"{key}.conv1.weight"), ("conv1.weight",))


def test_two_copies_are_not_chosen_from():
    """The message names both."""
    with pytest.raises(CheckpointMismatchError, match=r"several copies.*'left\.' and 'right\.'"):
        find_prefix(tensors("left.conv1.weight", "right.conv1.weight"), ("conv1.weight",))


def test_stripping_keeps_what_stands_behind_the_prefix():
    """Only at the start, and without touching the argument."""
    state = tensors("module.conv.module.weight", "queue")
    assert list(strip_prefix(state, "module.")) == ["conv.module.weight"]
    assert list(state) == ["module.conv.module.weight", "queue"]
    assert strip_prefix(state, "") == state


def test_renaming_is_anchored_and_whole():
    """Leading parts alone, whole words alone, the longest rule first; two names never become one."""
    state = tensors("fc.weight", "fc2.weight", "block.fc.weight", "fc.bias")
    renamed = rename_keys(state, {"fc": "head", "fc.bias": "shift"})
    assert list(renamed) == ["head.weight", "fc2.weight", "block.fc.weight", "shift"]
    assert renamed["head.weight"] is state["fc.weight"]
    with pytest.raises(CheckpointMismatchError, match="the same name"):
        rename_keys(tensors("a.w", "b.w"), {"a": "b"})


def test_what_was_left_out_has_a_reason():
    """The entry's patterns match whole names; anything else stands beside the network."""
    state = tensors("net.a", "module.queue", "requeue", "other")
    kept = strip_prefix(state, "net.")
    reasons = left_out(state, kept, {r"(.*\.)?queue": "queue of negatives"})
    assert reasons == {
        "module.queue": "queue of negatives",
        "requeue": "beside the network",
        "other": "beside the network",
    }


def test_the_fingerprint_is_of_names_and_shapes():
    """The documented lines, sorted, whatever the values and the order."""
    import hashlib

    state = {"b": torch.zeros(64, 3, 7, 7), "a": torch.tensor(1)}
    expected = hashlib.sha256(b"a \nb 64x3x7x7\n").hexdigest()
    assert fingerprint(state) == expected
    assert fingerprint({"a": torch.tensor(5), "b": torch.ones(64, 3, 7, 7)}) == expected
    assert fingerprint({"a": torch.tensor(1), "b": torch.zeros(64, 3, 7, 1)}) != expected


@pytest.mark.parametrize("kernel", [(7, 7), (3, 3, 3)])
def test_input_channels_keep_the_response_to_grey(kernel):
    """In two and three dimensions the filters' sum over the channels stays: one, six, and back from one to three."""
    weight = torch.randn(8, 3, *kernel)
    total = weight.sum(dim=1)
    assert torch.equal(adapt_input_channels(weight, 1)[:, 0], total)
    six = adapt_input_channels(weight, 6)
    assert six.shape == (8, 6, *kernel)
    assert torch.allclose(six.sum(dim=1), total, atol=1e-5)
    assert torch.allclose(adapt_input_channels(weight[:, :1], 3).sum(dim=1), weight[:, 0], atol=1e-6)
    with pytest.raises(OptionError, match="in_channels=0"):
        adapt_input_channels(weight, 0)


# --- filling a network ------------------------------------------------------------------------------------------------


def test_a_complete_file_fills_everything():
    """Values are assigned, not copied; nothing stays on the meta device."""
    state = Net().state_dict()
    model = empty_net()
    report = load_into(model, dict(state), entry())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(report.loaded) == set(state)
    assert model.stem.weight.data_ptr() == state["stem.weight"].data_ptr()
    assert model.stem.weight.requires_grad


def test_an_optional_group_is_filled_wholly_or_not_at_all():
    """Without the neck it is fresh; with a part of it the file is refused."""
    state = Net().state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.startswith("neck.")}
    model = empty_net()
    report = load_into(model, dict(without), entry())
    assert set(report.fresh) == {name for name in state if name.startswith("neck.")}
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert model.neck[0].weight.std() > 0
    with pytest.raises(CheckpointMismatchError, match=r"missing \(3\): neck\.0\.bias, neck\.1\.weight, neck\.1\.bias"):
        load_into(empty_net(), without | {"neck.0.weight": state["neck.0.weight"]}, entry())


def test_a_required_group_must_be_there():
    """Counts, the names that are missing, the names that are too many, the shapes that differ."""
    state = Net().state_dict()
    del state["stem.bias"]
    state["stem.extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(5)
    state["norm.running_mean"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_into(empty_net(), state, entry())
    assert str(caught.value).splitlines() == [
        "4 of the 7 required tensors of 'net' match; nothing was loaded.",
        "  missing (1): stem.bias",
        "  unexpected (1): stem.extra",
        "  shapes that differ (2): norm.weight is 5 in the file, 4 expected, "
        "norm.running_mean is 4 int64 in the file, 4 expected",
    ]


def test_only_the_first_names_are_listed():
    """Five of each kind and how many there are."""
    with pytest.raises(CheckpointMismatchError, match=r"unexpected \(9\): x0, x1, x2, x3, x4, \.\.\. \(9 in all\)"):
        load_into(empty_net(), Net().state_dict() | tensors(*(f"x{i}" for i in range(9))), entry())


def test_what_the_entry_names_may_be_left_out():
    """A pattern must match the whole name; what it does not match is an error."""
    state = Net().state_dict() | tensors("aux.weight")
    report = load_into(empty_net(), dict(state), entry(unused={r"aux\..*": "auxiliary head"}))
    assert report.dropped == {"aux.weight": "auxiliary head"}
    with pytest.raises(CheckpointMismatchError, match=r"unexpected.*aux\.weight"):
        load_into(empty_net(), dict(state), entry(unused={"aux": "auxiliary head"}))


def test_files_without_batch_counters_load():
    """Before PyTorch 0.4.1 there were none."""
    state = {n: t for n, t in Net().state_dict().items() if not n.endswith("num_batches_tracked")}
    model = empty_net()
    report = load_into(model, dict(state), entry())
    assert report.fresh == {"norm.num_batches_tracked": "counts from 0"}
    assert model.norm.num_batches_tracked.item() == 0
    assert torch.equal(model.norm.running_var, state["norm.running_var"])


def test_a_head_of_another_kind_is_dropped():
    """Other names, a missing bias, more classes: the head is fresh, the rest loaded."""
    for head in ({"head.fc.weight": torch.ones(2, 4)}, {"head.weight": torch.ones(2, 4)}, Net(classes=7).state_dict()):
        state = {n: t for n, t in Net().state_dict().items() if not n.startswith("head.")}
        state |= {n: t for n, t in head.items() if n.startswith("head.")}
        report = load_into(empty_net(), state, entry())
        assert set(report.fresh) == {"head.weight", "head.bias"}
        assert all(why.startswith("the head does not fit") for why in report.dropped.values())


def test_other_types_become_float32():
    """Half, bfloat16 and double arrive as float32 with their values; counters stay integers."""
    state = Net().state_dict()
    stored = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    stored["stem.weight"] = state["stem.weight"].double()
    stored["stem.bias"] = state["stem.bias"].bfloat16()
    model = empty_net()
    report = load_into(model, dict(stored), entry())
    assert report.loaded["stem.weight"] == "narrowed from float64"
    assert report.loaded["stem.bias"] == "widened from bfloat16"
    assert report.loaded["norm.num_batches_tracked"] == "as stored"
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(model.norm.weight, stored["norm.weight"].float())


@pytest.mark.parametrize("cast", [torch.Tensor.half, torch.Tensor.double, lambda t: t * 0.5 + t * 0.5])
def test_counters_that_were_cast_with_the_weights_are_counted_again(cast, tmp_path):
    """A state dict that was cast or averaged as a whole loads, from memory and from a file, and the report says so."""
    net = Net()
    net.norm.num_batches_tracked.fill_(41)
    state = {name: cast(tensor) for name, tensor in net.state_dict().items()}
    model = empty_net()
    report = load_into(model, dict(state), entry())
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert model.norm.num_batches_tracked.item() == 41
    assert report.loaded["norm.num_batches_tracked"].startswith("a count, rounded from float")
    torch.save(state, tmp_path / "a.pth")
    stored = open_checkpoint(tmp_path / "a.pth")
    converted = tmp_path / "copy.safetensors"
    write_converted(entry(), stored, *convert(entry(), stored.tensors), converted)
    assert open_checkpoint(converted).tensors["norm.num_batches_tracked"].dtype == torch.int64


def test_corrections_of_a_copy_know_what_the_file_does_not_say(tmp_path):
    """The entry's defaults stand beside the facts, as when the file is loaded: a correction may ask for any option."""
    seen = {}
    asking = entry(correct=lambda _, config: seen.update(config) or {}, convert=lambda state: (state, {"blocks": 3}))
    torch.save(Net().state_dict(), tmp_path / "a.pth")
    stored = open_checkpoint(tmp_path / "a.pth")
    write_converted(asking, stored, *convert(asking, stored.tensors), tmp_path / "copy.safetensors")
    assert seen == {"num_classes": 2, "in_channels": 3, "blocks": 3}


@pytest.mark.parametrize(("stored", "counted"), [(2.4, 2), (2.6, 3), (float("inf"), 0), (float("nan"), 0), (1e30, 0)])
def test_what_can_be_no_count_is_zero(stored, counted):
    """float16 ends at 65504: a longer run's counter became infinite when it was cast."""
    model = empty_net()
    load_into(model, Net().state_dict() | {"norm.num_batches_tracked": torch.tensor(stored)}, entry())
    assert model.norm.num_batches_tracked.item() == counted


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stem.weight", torch.int32),
        ("stem.weight", torch.complex64),
        ("stem.weight", torch.bool),
        ("norm.num_batches_tracked", torch.complex64),
        ("norm.num_batches_tracked", torch.bool),
    ],
)
def test_other_sorts_of_numbers_stay_errors(name, kind):
    """Weights that are whole or complex numbers, and counters that are complex or truth values, are another file's."""
    state = Net().state_dict()
    with pytest.raises(CheckpointMismatchError, match=rf"shapes that differ \(1\): {name} is"):
        load_into(empty_net(), state | {name: state[name].to(kind)}, entry())


def test_a_counter_of_another_shape_is_an_error():
    """Cast or not."""
    with pytest.raises(CheckpointMismatchError, match="num_batches_tracked is 3 in the file"):
        load_into(empty_net(), Net().state_dict() | {"norm.num_batches_tracked": torch.ones(3)}, entry())


def test_values_beyond_float32_are_refused():
    """float64 that would become infinite, by name; what float32 holds is taken, and infinity is not blamed on it."""
    state = Net().state_dict()
    large = torch.full((4,), 3e38, dtype=torch.float64)
    load_into(empty_net(), state | {"norm.bias": large}, entry())
    with pytest.raises(CheckpointFormatError, match=r"norm\.bias has values beyond the range of float32.*3\.6e\+38"):
        load_into(empty_net(), state | {"norm.bias": large * 1.2}, entry())
    load_into(empty_net(), state | {"norm.bias": large / 0}, entry())


# --- building a network -----------------------------------------------------------------------------------------------


class Stubborn(Net):
    """Computes with values while it is built, and holds a buffer that no state dict has."""

    def __init__(self, refuses, computes):
        super().__init__()
        if refuses:
            self.rate = torch.ones(3)[1].item()
        if computes:
            self.register_buffer("positions", torch.arange(4.0).mul_(2), persistent=False)


@pytest.mark.parametrize(("refuses", "computes"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_the_meta_device_cannot_build_is_built_on_the_cpu(refuses, computes):
    """Filled all the same; what was computed is right, and fresh parts start as they should."""
    stubborn = entry(build=lambda config: Stubborn(refuses, computes))
    model = build_network(stubborn, {})
    assert model.stem.weight.is_meta == (not refuses and not computes)
    state = {n: t for n, t in Net().state_dict().items() if not n.startswith("neck.")}
    report = load_into(model, dict(state), stubborn)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(model.stem.weight, state["stem.weight"])
    assert len(report.fresh) == 4
    assert model.neck[1].weight.std() > 0
    if computes:
        assert model.positions.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("named", [{}, {"device": "cpu"}])
def test_real_tensors_are_computed_with_even_on_the_meta_device(named):
    """Only meta tensors are skipped: what a constructor makes on the CPU has its values, and steps are made there."""
    model = build_network(entry(build=lambda config: RateNet(named)), {})
    assert model.stem.weight.is_meta
    assert model.rates == [1.0, 1.5, 2.0]
    assert model.steps == [2, 1, 0]


class RateNet(Net):
    """Computes a schedule while it is built."""

    def __init__(self, named):
        super().__init__()
        self.rates = torch.linspace(0, 1, 3, **named).add_(1).tolist()
        self.steps = (torch.full((3,), 2, device="cpu") - torch.arange(3, **named)).tolist()


class TableNet(Net):
    """Computes a table of positions while it is built, and a part of it, as a Swin transformer does."""

    def __init__(self):
        super().__init__()
        rows = torch.arange(300)
        self.register_buffer("table", (rows[:, None] - rows.int()[None]).contiguous())
        self.register_buffer("mean", (self.table - torch.zeros(300)).mean(1))
        self.zeros = torch.zeros(2, out=torch.ones(2, device="cpu")).tolist()


def test_a_network_without_values_has_the_shapes_and_types_of_one_with_them():
    """Of parameters, of buffers that a constructor fills, and of tables, whose differences are not computed."""
    model, real = build_network(entry(build=lambda config: TableNet()), {}), TableNet()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    kinds, expected = (
        {name: (tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in state.items()}
        for state in (model.state_dict(keep_vars=True), real.state_dict(keep_vars=True))
    )
    assert kinds == expected
    assert model.zeros == [0, 0]


def test_networks_of_other_threads_keep_their_values():
    """What is left out of a build is left out in its thread alone: a network made meanwhile is a real one."""
    made = []
    torch.manual_seed(0)

    def build(config):
        thread = Thread(target=lambda: made.append(Net()))
        thread.start()
        thread.join()
        return Net()

    assert build_network(entry(build=build), {}).stem.weight.is_meta
    assert 0.05 < made[0].stem.weight.std() < 0.2  # uniform within 1 / 27 ** 0.5, not what memory had
    assert made[0].norm.running_var.tolist() == [1.0] * 4


def test_how_a_fresh_part_starts_is_the_entrys_to_say():
    """`reset` comes after the module's own reset_parameters, for fresh modules alone."""
    state = {n: t for n, t in Net().state_dict().items() if not n.startswith("head.")}
    model = empty_net()
    load_into(model, dict(state), entry(reset=lambda module: nn.init.constant_(module.weight, 3.0)))
    assert model.head.weight.unique().tolist() == [3.0]
    assert model.head.bias.abs().sum() > 0
    assert torch.equal(model.stem.weight, state["stem.weight"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path):
    """A file that appears as soon as anything is run."""
    return tmp_path / "canary"


class Command:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.canary}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", ["zip", "legacy", "plain pickle", "old plain pickle"])
def test_code_in_a_pickle_is_refused_and_named(way, canary, tmp_path):
    """os.system in every form of pickle: nothing runs, the message and inspect name it."""
    path = tmp_path / "evil.pth"
    content = {"state_dict": {"conv1.weight": torch.ones(2)}, "extra": Command(canary)}
    if "pickle" in way:
        path.write_bytes(pickle.dumps(Command(canary), protocol=2 if "old" in way else 5))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system") as caught:
        zoo.load_model("caid-resnet50", checkpoint=path)
    assert "Nothing was run" in str(caught.value)
    assert "load_model('caid-resnet50', checkpoint=" in str(caught.value)
    summary = zoo.inspect_checkpoint(path)
    assert summary.refused == ("posix.system",)
    assert "refused   posix.system" in str(summary)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Command(canary)))
    assert canary.exists()  # the command does work where unpickling is not guarded


def test_a_whole_network_in_a_pickle_is_refused(tmp_path):
    """torch.save(model) stores classes, not tensors; the message says what to save in its place."""
    torch.save(Net(), tmp_path / "net.pth")
    with pytest.raises(
        UnsafeCheckpointError, match=r"test_checkpoint\.Net.*torch\.save\(model\.state_dict\(\), FILE\)"
    ):
        open_checkpoint(tmp_path / "net.pth")


def test_plain_values_beside_the_tensors_are_fine(tmp_path):
    """Numbers of NumPy and a Namespace of arguments, as training scripts store them."""
    from argparse import Namespace

    content = {"model": tensors("a"), "loss": np.float32(1.5), "n": np.int64(3), "args": Namespace(lr=0.1)}
    torch.save(content, tmp_path / "c.pth")
    before = set(map(str, torch.serialization.get_safe_globals()))
    stored = open_checkpoint(tmp_path / "c.pth")
    assert stored.containers == ("model",)
    assert stored.beside == ("loss", "n", "args")
    assert set(map(str, torch.serialization.get_safe_globals())) == before


def write_html(path):
    path.write_text("<!DOCTYPE html><html><title>Quota exceeded</title></html>")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def cut(save, share):
    """A file of which only the beginning is there."""

    def write(path):
        save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def save_zip(path):
    torch.save({"a": torch.randn(4000)}, path)


def save_safetensors(path):
    save_file({"a": torch.randn(4000)}, path)


def save_legacy(path):
    torch.save({"a": torch.randn(4000)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (write_html, "HTML page"),
        (lambda path: path.write_text("Not found"), "text file"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
        (lambda path: path.write_bytes(bytes(range(200, 256)) * 9), "unknown format"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: None, "does not exist"),
        (write_zip, "cut short, damaged or not written by torch.save"),
        (cut(save_zip, 0.7), "cut short"),
        (cut(save_safetensors, 0.7), "begins like safetensors, but is cut short"),
        (cut(save_legacy, 0.7), "cut short"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "cannot be read safely|cut short"),
        (lambda path: torch.save([torch.ones(2)], path), "holds a list, expected a dictionary"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "holds no state dict: found the keys 'epoch', 'lr'"),
        (lambda path: torch.save({"enc": {"a": torch.ones(1)}, "dec": {}}, path), "found the keys 'enc', 'dec'"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(write, expected, tmp_path):
    """The message repeats the request and says what the file is."""
    path = tmp_path / "file.bin"
    write(path)
    with pytest.raises(CheckpointFormatError, match=expected) as caught:
        zoo.load_model("caid-resnet50", checkpoint=path)
    assert str(caught.value).startswith(f"load_model('caid-resnet50', checkpoint='{path}'): {path}")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [save_zip, save_safetensors, save_legacy])
def test_damage_is_never_a_surprise(save, tmp_path):
    """Cut at any place or with bytes changed, a file opens or is refused with one of our errors, read or inspected."""
    save(tmp_path / "good.bin")
    good, bad, draw = (tmp_path / "good.bin").read_bytes(), tmp_path / "bad.bin", random.Random(0)
    refused = 0
    for i in range(150):
        content = bytearray(good[: draw.randrange(len(good))] if i % 3 == 0 else good)
        for _ in range(i % 3 * 4):
            content[draw.randrange(600) if i % 2 else draw.randrange(len(content))] = draw.randrange(256)
        bad.write_bytes(content)
        try:
            stored = open_checkpoint(bad)
            stored.read(dict(stored.tensors))
        except (CheckpointFormatError, UnsafeCheckpointError):
            refused += 1
            assert zoo.inspect_checkpoint(bad).problem
    assert refused > 50


def test_a_million_tensors_are_not_read(tmp_path, monkeypatch):
    """Each takes its time, however small: a file of 80 MB would take minutes."""
    monkeypatch.setattr(opening, "_MOST_TENSORS", 2)
    for count in (2, 3):
        save_file({f"t{i}": torch.zeros(1) for i in range(count)}, tmp_path / f"{count}.safetensors")
    assert len(open_checkpoint(tmp_path / "2.safetensors").tensors) == 2
    with pytest.raises(CheckpointFormatError, match=r"3\.safetensors has 3 tensors: at most 2 are read"):
        open_checkpoint(tmp_path / "3.safetensors")


def test_a_wrong_suffix_does_not_mislead(tmp_path):
    """Safetensors named .pth are read; a pickle named .safetensors gets a clear answer."""
    save_file(tensors("a"), tmp_path / "a.pth")
    assert list(open_checkpoint(tmp_path / "a.pth").tensors) == ["a"]
    torch.save(tensors("a"), tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointFormatError, match=r"named like safetensors, but is a PyTorch zip.*rename it to a\.pth"
    ):
        open_checkpoint(tmp_path / "a.safetensors")


def test_a_tensorflow_checkpoint_is_recognised(tmp_path):
    """By its index, by its prefix, by its folder."""
    (tmp_path / "model.index").write_bytes(bytes(40) + bytes.fromhex("57fb808b247547db"))
    (tmp_path / "checkpoint").write_text("model_checkpoint_path: 'model'")
    assert sniff(tmp_path / "model.index") == "TensorFlow checkpoint index"
    assert sniff(tmp_path / "model") == "TensorFlow checkpoint"
    assert sniff(tmp_path) == "TensorFlow checkpoint folder"
    assert "TensorFlow" in zoo.inspect_checkpoint(tmp_path / "model.index").format


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("mmap", [True, False])
def test_reading_gives_the_values_as_float32(suffix, mmap, tmp_path):
    """Whole, half and whole-number tensors, under new names and through views, mapped and read."""
    made = {f"t{i}": torch.randn(300, 100).half() for i in range(4)}  # more than one piece when pieces are small
    made |= {"f": torch.randn(7, 3), "n": torch.arange(5), "b": torch.randn(6).bfloat16()}
    path = tmp_path / f"x.{suffix}"
    save_file(made, path) if suffix == "safetensors" else torch.save(made, path)
    stored = open_checkpoint(path, mmap=mmap)
    wanted = {f"new.{name}": tensor for name, tensor in stored.tensors.items()}
    wanted["turned"] = stored.tensors["f"].T
    values = stored.read(wanted)
    assert wanted == {}
    for name, tensor in made.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        assert torch.equal(values[f"new.{name}"], expected)
        assert values[f"new.{name}"].dtype == expected.dtype
    assert torch.equal(values["turned"], made["f"].T)


def test_network_file_systems_are_told_by_the_mount_table(tmp_path):
    """The longest mount point counts; blanks in it are escaped; no table means local."""
    table = tmp_path / "mountinfo"
    nested = tmp_path / "data set" / "local"
    nested.mkdir(parents=True)
    escaped = str(tmp_path / "data set").replace(" ", "\\040")
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:9 / {escaped} rw shared:1 - nfs4 server:/x rw\n"
        f"3 2 0:9 / {escaped}/local rw - tmpfs none rw\n"
    )
    assert is_on_network(tmp_path / "data set" / "file", table)
    assert not is_on_network(nested / "file", table)
    assert not is_on_network(tmp_path / "file", table)
    assert not is_on_network(tmp_path / "data set" / "file", tmp_path / "none")


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_writes_what_was_asked(tmp_path):
    """Half precision leaves vectors and integers alone; the header holds the metadata; wrappers are seen through."""
    model = Net()
    path = export_safetensors(
        nn.DataParallel(model), tmp_path / "net.safetensors", half=True, metadata={"model": "net"}
    )
    with safe_open(path, framework="pt") as file:
        types = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"model": "net"}
    assert set(types) == set(model.state_dict())
    assert types["stem.weight"] == torch.float16
    assert types["stem.bias"] == types["norm.running_var"] == torch.float32
    assert types["norm.num_batches_tracked"] == torch.int64
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    """So that processes which convert a file at once write one and the same copy."""
    state = Net().state_dict()
    paths = [export_safetensors(state, tmp_path / f"{i}.safetensors", metadata={"one": "entry"}) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_export_is_whole_or_not_at_all(tmp_path):
    """An impossible value, a missing folder: an error, and no file under the name or beside it."""
    with pytest.raises(OptionError, match=r"w has values beyond the range of float16"):
        export_safetensors({"w": torch.full((2, 2), 1e5)}, tmp_path / "a.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="missing"):
        export_safetensors({"w": torch.zeros(2)}, tmp_path / "missing" / "a.safetensors")


def test_tensors_that_share_memory_are_exported(tmp_path):
    """Tied and transposed tensors become files of their own."""
    base = torch.arange(6.0).reshape(2, 3)
    export_safetensors({"a": base, "b": base, "c": base.T}, tmp_path / "a.safetensors")
    stored = open_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(stored.tensors["b"], base)
    assert torch.equal(stored.tensors["c"], base.T)


def test_the_checkpoint_modules_import_no_torch():
    """Only their functions do: entries import them when models are listed."""
    names = (
        "checkpoint",
        "checkpoint.building",
        "checkpoint.coverage",
        "checkpoint.report",
        "formats",
        "formats.safety",
    )
    for name in names:
        module = importlib.import_module(f"zoo.{name}")
        assert "torch" not in vars(module), name
        assert Path(module.__file__).is_file()


@pytest.mark.slow
def test_a_fresh_process_builds_without_values():
    """What MONAI's constructors import for the first time, einops and torch's compiler, is not imported in the mode.

    With torch 2.6 that failed, and so did the first load of a checkpoint in every process.
    """
    program = """
import os, torch
from zoo.checkpoint import build_network
from zoo.registry import get_entry

for name in ("monai-ssl-vitb16", "brainiac-vitb16"):
    if (child := os.fork()) == 0:  # with nothing but torch imported
        entry = get_entry(name)
        assert all(p.is_meta for p in build_network(entry, entry.config).parameters())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
