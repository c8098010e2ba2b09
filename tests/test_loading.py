"""From a name to a network: arguments, the manifest and the cache, the report, and what fine-tuning does with it."""

import copy
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caid_files import behind, reference, reference_input, relative_error, resnet
from forked import GIVING_BACK
from safetensors.torch import save_file
from short_caid import short_caid, short_state
from torch import nn

import zoo
import zoo.locate
from zoo.checkpoint.export import export_safetensors
from zoo.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    InputContractError,
    IntegrityError,
    OptionError,
    UnknownModelError,
    WeightsUnavailableError,
)
from zoo.fetching.cache import converted_path, hash_file, read_stamp, stamp_path
from zoo.provenance import header_of_export
from zoo.registry import get_entry
from zoo.settings import cache_home
from zoo.training.finetune import load_network
from zoo.transforms.image import build_transform

NAMES = ("caid-resnet50", "caid-resnet50-unet")


@pytest.fixture
def manifest(monkeypatch, tmp_path):
    """Put records into a further manifest, which comes first."""

    def use(*weights):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"schema": 1, "weights": list(weights)}))
        monkeypatch.setenv("ZOO_MANIFEST", str(path))

    return use


def record(path, tag="mine", **facts):
    required = {"tag": tag, "models": list(NAMES), "state": "hosted", "sources": [f"file:{path}"]}
    return required | {"bytes": path.stat().st_size, "sha256": hash_file(path)} | facts


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_classes": -1}, r"num_classes=-1 for 'caid-resnet50': expected a whole number, 0 or more"),
        ({"num_classes": True}, r"num_classes=True"),
        ({"num_classes": 2.0}, r"num_classes=2\.0"),
        ({"in_channels": 0}, r"in_channels=0 for 'caid-resnet50': expected a whole number, 1 or more"),
        ({"in_channels": "3"}, r"in_channels='3'"),
        ({"classes": 3}, r"'caid-resnet50' has no option 'classes'; its options are: projection"),
        ({"projection": 1}, r"projection=1 for 'caid-resnet50': expected True or False"),
        ({"mmap": "yes"}, r"mmap='yes' for 'caid-resnet50': expected True, False or 'auto'"),
        ({"device": "gpu"}, r"device='gpu': did you mean 'cuda'\?"),
        ({"device": "gpu:1"}, r"device='gpu:1': did you mean 'cuda:1'\?"),
        ({"checkpoint": "https://example.org/x.pth"}, r"checkpoint='https://example\.org/x\.pth': expected the path"),
        ({"checkpoint": {"conv1.weight": 0}}, "^checkpoint= is a dict: expected the path of a file"),
    ],
)
def test_what_makes_no_sense_is_refused(options, expected):
    """Before anything is fetched or built, as an OptionError, which is a ValueError."""
    with pytest.raises(OptionError, match=expected) as caught:
        zoo.load_model("caid-resnet50", **options)
    assert isinstance(caught.value, ValueError)


def test_a_model_without_options_says_so():
    """The U-Net has no projection head."""
    with pytest.raises(OptionError, match=r"'caid-resnet50-unet' has no option 'projection'; its options are: none"):
        zoo.load_model("caid-resnet50-unet", projection=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_weights_need_no_file(name, manifest):
    """pretrained=False never looks for weights; options count; the report says random."""
    manifest()
    model = zoo.load_model(name, pretrained=False, num_classes=3, in_channels=1)
    report = zoo.load_report(model)
    assert not model.training
    assert not report.loaded
    assert set(report.fresh) == set(model.state_dict())
    assert (report.source, report.tag, report.sha256) == ("random", "", None)
    with torch.no_grad():
        assert model(reference_input()[:, :1]).shape[1] == 3


def test_a_file_wins_over_everything(unet_safetensors):
    """With checkpoint= neither what the tag stands for nor pretrained=False matters, as in timm."""
    model = zoo.load_model("caid-resnet50.chestxray14", checkpoint=unet_safetensors, pretrained=False)
    assert len(zoo.load_report(model).loaded) == 318
    with pytest.raises(WeightsUnavailableError, match="not-published"):
        zoo.load_model("caid-resnet50.chestxray14")


@pytest.mark.slow
def test_a_file_for_other_channels_is_warned_of_and_no_images_are_made_for_it(tmp_path, caplog):
    """Its network is loaded as it is; where the zoo makes the images, or says in a header how, it is refused.

    Adapted with in_channels it is warned of no more, and saved so it goes everywhere.
    """
    state = short_state()
    state["encoder.conv1.weight"] = state["encoder.conv1.weight"][:, :1]
    torch.save(state, path := tmp_path / "grey.pth")
    name = "caid-resnet50"
    wanted = r"grey\.pth takes images of 1 channel, and those of caid-resnet50 have 3: grey, grey, grey"
    with short_caid():
        network = zoo.load_model(name, checkpoint=path)
        assert network.conv1.in_channels == 1
        assert "takes images of 1 channel, and load_transform makes images of 3 (grey, grey, grey)" in caplog.text
        with pytest.raises(InputContractError, match=wanted):
            zoo.Embedder(name, checkpoint=path).network  # noqa: B018 -- loaded when it is asked for
        with pytest.raises(InputContractError, match=wanted):
            load_network(SimpleNamespace(model=name, checkpoint=str(path), from_scratch=False), 2)
        with pytest.raises(InputContractError, match=wanted):
            header_of_export(name, network, path)
        caplog.clear()
        adapted = zoo.load_model(name, checkpoint=path, in_channels=3)
        torch.save(adapted.state_dict(), path)
        assert zoo.Embedder(name, checkpoint=path).network.conv1.in_channels == 3
        assert header_of_export(name, zoo.load_model(name, checkpoint=path), path)["model"] == name
    assert "takes images of" not in caplog.text


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
def test_nothing_is_left_undone(mmap, unet_safetensors):
    """No tensor on the meta device, float32, eval mode, gradients on: for every part, loaded or fresh."""
    for model in (
        zoo.load_model("caid-resnet50", checkpoint=unet_safetensors, num_classes=5, in_channels=1, mmap=mmap),
        zoo.load_model("caid-resnet50-unet", checkpoint=unet_safetensors, num_classes=5, mmap=mmap),
    ):
        tensors = [*model.parameters(), *model.buffers()]
        assert not any(tensor.is_meta for tensor in tensors)
        assert all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_users_default_dtype_does_not_matter(unet_safetensors):
    """float32, even where new tensors are float64."""
    torch.set_default_dtype(torch.float64)
    try:
        model = zoo.load_model("caid-resnet50", checkpoint=unet_safetensors, num_classes=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_training_leaves_the_file_alone(tmp_path, unet_state):
    """Mapped tensors are private: a step of SGD changes the network and not a byte of the file."""
    for path, save in ((tmp_path / "x.safetensors", save_file), (tmp_path / "x.pth", torch.save)):
        save(resnet(unet_state), path)
        before = hash_file(path)
        model = zoo.load_model("caid-resnet50", checkpoint=path, mmap=True).train()
        old = model.conv1.weight.detach().clone()
        optimiser = torch.optim.SGD(zoo.param_groups(model, lr=0.1), lr=0.1)
        model(reference_input()).sum().backward()
        optimiser.step()
        assert not torch.equal(model.conv1.weight, old)
        assert hash_file(path) == before
        path.unlink()


@pytest.mark.slow
def test_half_precision_is_widened(tmp_path, unet_state):
    """The values are those of the half-precision file; the report says so; 16 bits cost some 1e-3 of accuracy."""
    path = export_safetensors(unet_state, tmp_path / "half.safetensors", half=True)
    model = zoo.load_model("caid-resnet50-unet", checkpoint=path)
    report = zoo.load_report(model)
    assert model.encoder.conv1.weight.dtype == torch.float32
    assert torch.equal(model.encoder.conv1.weight, unet_state["encoder.conv1.weight"].half().float())
    assert torch.equal(model.encoder.bn1.running_var, unet_state["encoder.bn1.running_var"])
    assert report.loaded["encoder.conv1.weight"] == "widened from float16"
    assert f"{sum(t.ndim > 1 for t in unet_state.values())} of them widened from float16" in str(report)
    with torch.no_grad():
        assert relative_error(model(reference_input()), reference()["unet"]) < 2e-3
    path.unlink()


MEASURE = """
import json, os, sys
import segmentation_models_pytorch, torch
import zoo

def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

cases = json.loads(sys.argv[1])
zoo.inspect_checkpoint(cases[0][0])  # imports the networks' libraries
for path, mmap in cases:
    if os.fork() == 0:  # every load begins in a process that holds the libraries and nothing else
        zoo.inspect_checkpoint(path)  # builds the networks without values, so that the libraries' pages are there
        open("/proc/self/clear_refs", "w").write("5")  # begin the peak anew
        before = memory("VmRSS")
        model = zoo.load_model("caid-resnet50-unet", checkpoint=path, mmap=mmap)
        for tensor in model.state_dict().values():
            tensor.sum()  # touch every page
        print((memory("VmHWM") - before) / sum(t.nbytes for t in model.state_dict().values()), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_a_load_stays_within_its_memory(scratch, unet_state, unet_file, unet_safetensors):
    """At most 1.2 times the float32 size beyond what the libraries hold: whole and half, mapped and read."""
    half = {name: t.half() if t.ndim > 1 else t for name, t in unet_state.items()}
    save_file(half, scratch / "half.safetensors")
    torch.save(half, scratch / "half.pth")
    paths = [unet_file, unet_safetensors, scratch / "half.pth", scratch / "half.safetensors"]
    cases = [(str(path), mmap) for path in paths for mmap in (True, False)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)],
        env=os.environ | GIVING_BACK,
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = dict(zip(cases, map(float, done.stdout.split()), strict=True))
    assert all(0.9 < peak < 1.2 for peak in peaks.values()), peaks


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_prints_as_a_table(unet_file):
    """Counts per group, then one line per kind of exception."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_file, num_classes=2, in_channels=1)
    assert str(zoo.load_report(model)).splitlines() == [
        f"caid-resnet50 from {unet_file}",
        "  group     loaded  adapted    fresh",
        "  bn1            5        0        0",
        "  layer1        60        0        0",
        "  layer2        78        0        0",
        "  layer3       114        0        0",
        "  layer4        60        0        0",
        "  conv1          0        1        0",
        "  fc             0        0        2",
        "  adapted  conv1.weight: 3 input channels summed to 1",
        "  fresh    fc.weight, fc.bias: not in the file",
        "  dropped  decoder.blocks.* (60): decoder: not part of the encoder",
        "  dropped  segmentation_head.0.weight, segmentation_head.0.bias: decoder: not part of the encoder",
    ]


@pytest.mark.slow
def test_the_report_survives_wrapping_and_copying(unet_safetensors):
    """DDP's and the compiler's wrappers are looked through; a copy keeps its report; other networks have none."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_safetensors)
    report = zoo.load_report(model)
    assert zoo.load_report(nn.DataParallel(model)) is report
    assert zoo.load_report(torch.compile(model)) is report
    assert zoo.load_report(nn.DataParallel(torch.compile(model))) is report
    assert zoo.load_report(copy.deepcopy(model)) == report
    with pytest.raises(OptionError, match="this Linear carries no load report"):
        zoo.load_report(nn.Linear(1, 1))


# --- files that do not fit --------------------------------------------------------------------------------------------


def test_another_familys_file_is_told_apart(tmp_path):
    """Counts, the first names of either side, and the guess that no model has such names."""
    names = ["features.conv0.weight", "features.norm0.weight", *(f"features.denseblock1.l{i}.w" for i in range(9))]
    torch.save({"model": {f"module.{name}": torch.zeros(2) for name in names}}, tmp_path / "dense.pth")
    with pytest.raises(CheckpointMismatchError) as caught:
        zoo.load_model("caid-resnet50", checkpoint=tmp_path / "dense.pth")
    message = str(caught.value)
    assert message.startswith(f"load_model('caid-resnet50', checkpoint='{tmp_path / 'dense.pth'}'): 0 of the 318")
    assert "missing (318): conv1.weight, bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var, ... " in message
    assert "unexpected (11): module.features.conv0.weight, module.features.norm0.weight" in message
    assert "guess: no model of the zoo has names like module.features.conv0.weight" in message
    assert f"`zoo inspect {tmp_path / 'dense.pth'}`" in message


@pytest.mark.slow
def test_a_resnet_of_other_widths_is_told_apart(tmp_path, unet_state):
    """The shapes that differ, and a guess that it is the same network otherwise."""
    narrow = {n: t[: max(1, len(t) // 2)] if t.ndim else t for n, t in resnet(unet_state).items()}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(CheckpointMismatchError) as caught:
        zoo.load_model("caid-resnet50", checkpoint=tmp_path / "narrow.pth")
    assert "conv1.weight is 32x3x7x7 in the file, 64x3x7x7 expected" in str(caught.value)
    assert "guess: a 'caid-resnet50' of other widths" in str(caught.value)


def test_two_networks_in_one_file_are_not_chosen_from(tmp_path, unet_state):
    """The message names both prefixes and the request."""
    encoder = resnet(unet_state)
    torch.save(behind("left.", encoder) | behind("right.", encoder), tmp_path / "two.pth")
    with pytest.raises(CheckpointMismatchError, match=r"load_model\('caid-resnet50'.*'left\.' and 'right\.'"):
        zoo.load_model("caid-resnet50", checkpoint=tmp_path / "two.pth")
    (tmp_path / "two.pth").unlink()


# --- names, tags and the cache ----------------------------------------------------------------------------------------


def test_unpublished_weights_end_with_the_ways_out():
    """The authors' tag is on record, and says what can be done."""
    with pytest.raises(
        WeightsUnavailableError, match=r"(?s)'caid-resnet50\.chestxray14'.*zoo import.*pretrained=False"
    ):
        zoo.load_model("caid-resnet50.chestxray14")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained_by", "level", "text"),
    [
        ("authors", logging.INFO, "from file:"),
        ("user", logging.WARNING, "not the authors' weights: they were trained by user"),
        ("zoo", logging.WARNING, "not the authors' weights: they were trained by zoo"),
    ],
)
def test_the_log_says_which_weights_they_are(trained_by, level, text, manifest, unet_safetensors, caplog):
    """One line, a warning where they are not the authors'; the report holds tag, source and digest."""
    manifest(record(unet_safetensors, trained_by=trained_by))
    caplog.set_level(logging.INFO, logger="zoo")
    report = zoo.load_report(zoo.load_model("caid-resnet50"))
    (line,) = [r for r in caplog.records if "tensors loaded" in r.getMessage()]
    assert line.levelno == level
    assert line.getMessage().startswith("caid-resnet50.mine: 318 tensors loaded, 0 adapted, 0 fresh")
    assert text in line.getMessage()
    assert (report.tag, report.sha256, report.trained_by) == ("mine", hash_file(unet_safetensors), trained_by)
    assert str(report).startswith(f"caid-resnet50.mine from file:{unet_safetensors} (sha256 {report.sha256[:12]}…)")


@pytest.fixture
def short():
    """CAiD's encoder is a short network, which files of the whole U-Net would take a hundred times as long to fill."""
    with short_caid():
        yield


def test_a_pickle_is_converted_once(short, manifest, tmp_path, monkeypatch):
    """The second load reads the safetensors copy; outputs and report stay the same, what was left out too."""
    path = tmp_path / "file.pth"
    torch.save({**short_state(), "decoder.blocks.0.conv1.0.weight": torch.zeros(3)}, path)
    manifest(record(path))
    first = zoo.load_model("caid-resnet50")
    copy_of = converted_path(hash_file(path), "caid-resnet50")
    stamp = read_stamp(stamp_path(copy_of))
    assert stamp.sha256 == hash_file(copy_of)
    assert stamp.zoo

    def refuse(*_, **__):
        raise AssertionError("the pickle was opened again")

    monkeypatch.setattr(torch, "load", refuse)
    second = zoo.load_model("caid-resnet50")
    with torch.no_grad():
        assert torch.equal(second(reference_input()), first(reference_input()))
    assert_holds(second, short_state())
    assert zoo.load_report(second) == zoo.load_report(first)
    assert zoo.load_report(second).dropped.keys() == {"decoder.blocks.0.conv1.0.weight"}


@pytest.mark.parametrize("damage", ["bytes", "another version", "no stamp"])
def test_a_copy_that_cannot_be_trusted_is_made_again(damage, short, manifest, short_file, monkeypatch):
    """Damaged, written by another version of the package, or without a stamp to prove it."""
    manifest(record(short_file))
    zoo.load_model("caid-resnet50")
    copy_of = converted_path(hash_file(short_file), "caid-resnet50")
    good = hash_file(copy_of)
    if damage == "bytes":
        content = bytearray(copy_of.read_bytes())
        content[-1] ^= 1
        copy_of.write_bytes(content)
    elif damage == "another version":
        monkeypatch.setattr(zoo.locate, "__version__", "99")
        copy_of.touch()
    else:
        stamp_path(copy_of).unlink()
    before = copy_of.stat().st_mtime_ns
    assert_holds(zoo.load_model("caid-resnet50"), short_state())
    assert copy_of.stat().st_mtime_ns != before
    assert hash_file(copy_of) == good


def assert_holds(network, state):
    """Assert that an encoder has the values that a file has behind `encoder.`."""
    found = network.state_dict()
    for name, tensor in state.items():
        assert torch.equal(found[name.removeprefix("encoder.")], tensor), name


def test_a_cache_that_takes_no_copy_reads_the_original(short, manifest, short_file):
    """Something in the place of the folder stands for a read-only cache, which root could write to all the same."""
    manifest(record(short_file))
    cache_home().mkdir()
    (cache_home() / "converted").write_text("in the way")
    assert_holds(zoo.load_model("caid-resnet50"), short_state())


@pytest.mark.slow
def test_safetensors_are_read_as_they_are(manifest, unet_safetensors):
    """No copy of what is right already, and none of a user's own file."""
    manifest(record(unet_safetensors))
    zoo.load_model("caid-resnet50")
    zoo.load_model("caid-resnet50", checkpoint=unet_safetensors)
    assert not (cache_home() / "converted").exists()


def test_tags_choose_among_weights(short, manifest, tmp_path):
    """The first hosted default without a tag; the others by name; demonstrations never by accident."""
    paths = {}
    for number, tag in enumerate(("first", "second", "demo")):
        paths[tag] = tmp_path / f"{tag}.safetensors"
        save_file({name: tensor + number for name, tensor in short_state().items()}, paths[tag])
    manifest(
        record(paths["demo"], "demo", default=False), record(paths["first"], "first"), record(paths["second"], "second")
    )
    for name, tag in (("caid-resnet50", "first"), ("caid-resnet50.second", "second"), ("caid-resnet50.demo", "demo")):
        model = zoo.load_model(name)
        assert zoo.load_report(model).tag == tag
        with open(paths[tag], "rb") as file:
            assert zoo.load_report(model).sha256 == hashlib.sha256(file.read()).hexdigest()
    assert zoo.model_info("caid-resnet50").name == "caid-resnet50.first"


@pytest.mark.slow
def test_a_record_sets_defaults_that_the_user_overrides(manifest, unet_safetensors):
    """The record's options lie between the entry's defaults and the user's."""
    manifest(record(unet_safetensors, options={"num_classes": 4}))
    assert zoo.load_model("caid-resnet50").fc.out_features == 4
    assert zoo.load_model("caid-resnet50", num_classes=6).fc.out_features == 6


def test_what_a_file_says_of_its_network_wins_over_the_record(manifest, tmp_path):
    """A file of two experts is loaded as such under a record of three, by its tag and beside it."""
    network = zoo.load_model("drasclr-cnn3d", pretrained=False, experts=2)
    save_file(network.state_dict(), tmp_path / "two.safetensors")
    options = {"experts": 3, "projection": False}
    manifest(record(tmp_path / "two.safetensors", models=["drasclr-cnn3d"], options=options))
    for given in ({}, {"checkpoint": tmp_path / "two.safetensors"}):
        assert zoo.load_model("drasclr-cnn3d.mine", **given).conv1.weight.shape[0] == 2


@pytest.mark.slow
def test_a_record_of_another_file_is_found_out(manifest, unet_safetensors):
    """The fingerprint on record is not the file's: said before anything is built; a user's file is not held to it."""
    manifest(record(unet_safetensors, fingerprint={"caid-resnet50": "0" * 64}))
    with pytest.raises(CheckpointMismatchError, match=r"'caid-resnet50'\): the file's names and shapes"):
        zoo.load_model("caid-resnet50")
    assert zoo.load_model("caid-resnet50-unet")
    assert zoo.load_model("caid-resnet50", checkpoint=unet_safetensors)


@pytest.mark.slow
def test_a_file_that_is_not_the_one_on_record_is_refused(manifest, unet_safetensors):
    """By its digest."""
    manifest(record(unet_safetensors, sha256="1" * 64))
    with pytest.raises(IntegrityError):
        zoo.load_model("caid-resnet50")


def test_weights_and_assets_are_downloaded(manifest, tmp_path):
    """Both are verified and in the cache; the weights' path comes back."""
    weights, asset = tmp_path / "w.safetensors", tmp_path / "landmarks.bin"
    save_file({"a": torch.ones(3)}, weights)
    asset.write_bytes(b"\x01landmarks")
    assets = {"landmarks": {"sources": [f"file:{asset}"], "bytes": asset.stat().st_size, "sha256": hash_file(asset)}}
    manifest(record(weights, assets=assets))
    path = zoo.download_weights("caid-resnet50.mine")
    assert path.read_bytes() == weights.read_bytes()
    assert path.is_relative_to(cache_home())
    assert (path.parent / hash_file(asset)).read_bytes() == asset.read_bytes()
    with pytest.raises(WeightsUnavailableError):
        zoo.download_weights("caid-resnet50.chestxray14")


def test_the_transform_follows_the_record(manifest, unet_safetensors):
    """The entry's input, with what the record of these weights says otherwise."""
    plain = get_entry("caid-resnet50").preprocessing
    assert zoo.load_transform("caid-resnet50.chestxray14") == build_transform(plain)
    manifest(record(unet_safetensors, input={"size": [96, 96], "resize": 96}))
    assert zoo.load_transform("caid-resnet50").preprocessing.size == (96, 96)
    assert zoo.load_transform("caid-resnet50")(torch.rand(1, 128, 160)).shape == (3, 96, 96)
    with pytest.raises(UnknownModelError):
        zoo.load_transform("caid-resnet50.nothing")


@pytest.mark.slow
def test_the_transform_follows_a_file_of_ones_own(manifest, unet_safetensors, unet_state, tmp_path, caplog):
    """Its header comes first, then the tag that is named, then the model; what was imported plays no part.

    A file that says nothing may be one that began with what the name loads, and is warned of where that takes another.
    """
    name = "caid-resnet50"
    manifest(record(unet_safetensors, input={"size": [96, 96], "resize": 96}))
    trained = tmp_path / "trained.safetensors"
    save_file(unet_state, trained, metadata={"input": json.dumps({"size": [64, 64], name: {"resize": 70}})})
    preprocessing = zoo.load_transform(name, checkpoint=trained).preprocessing
    assert (preprocessing.size, preprocessing.resize) == ((64, 64), 70)
    assert zoo.load_transform(f"{name}.mine", checkpoint=unet_safetensors).preprocessing.size == (96, 96)
    assert caplog.text == ""
    assert zoo.load_transform(name, checkpoint=unet_safetensors) == build_transform(get_entry(name).preprocessing)
    assert f"size (224, 224) (of {name}.mine: (96, 96))" in caplog.text
    assert f"trained on that of {name}.mine, name it so" in caplog.text
    with pytest.raises(CheckpointFormatError, match=r"nowhere\.pth"):
        zoo.load_transform(name, checkpoint=tmp_path / "nowhere.pth")


# --- looking into files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inspection_says_what_a_file_is_and_fits(tmp_path, unet_state):
    """Format, containers, prefixes, types, the models it fits and how to load it: both as fields and as a page."""
    path = tmp_path / "training.pth"
    content = {"epoch": 3, "model": behind("module.encoder_q.backbone.", unet_state), "optimizer": {}}
    torch.save(content, path)
    summary = zoo.inspect_checkpoint(path)
    assert (summary.format, summary.containers, summary.beside) == ("PyTorch zip", ("model",), ("epoch", "optimizer"))
    assert summary.tensors == 380
    assert summary.types["float32"] == 4 * sum(t.numel() for t in unet_state.values() if t.is_floating_point())
    assert summary.prefixes == ("module.encoder_q.backbone.", "module.encoder_q.backbone.encoder.")
    unet, encoder = summary.matches
    assert (unet.model, unet.matched, unet.needed, unet.complete) == ("caid-resnet50-unet", 380, 380, True)
    assert (encoder.model, encoder.matched, encoder.needed) == ("caid-resnet50", 318, 318)
    assert unet.head == "segmentation_head.0.weight 1x16x3x3"
    assert unet.call == f"load_model('caid-resnet50-unet', checkpoint='{path}')"
    for part in (
        "PyTorch zip",
        "380 under 'model'",
        "380 of 380 tensors behind 'module.encoder_q.backbone.'",
        unet.call,
    ):
        assert part in str(summary)
    assert eval(unet.call, {"load_model": zoo.load_model}) is not None
    path.unlink()


def test_inspection_of_what_cannot_be_loaded(tmp_path):
    """A page, a strange checkpoint, a broken one: the reason in place of an error."""
    page = tmp_path / "page.pth"
    page.write_text("<html>quota</html>")
    assert zoo.inspect_checkpoint(page).format == "HTML page"
    assert "HTML page" in zoo.inspect_checkpoint(page).problem
    torch.save({"a": torch.ones(2)}, tmp_path / "strange.pth")
    strange = zoo.inspect_checkpoint(tmp_path / "strange.pth")
    assert (strange.tensors, strange.matches, strange.problem) == (1, (), "")
    assert "models    none of the zoo's" in str(strange)
    broken = tmp_path / "broken.pth"
    broken.write_bytes((tmp_path / "strange.pth").read_bytes()[:200])
    assert "cut short" in zoo.inspect_checkpoint(broken).problem


# --- parameter groups -------------------------------------------------------------------------------------------------


def test_parameter_groups_follow_the_stages(unet_safetensors):
    """The rate falls towards the input; fresh parts learn at the full rate; norms and biases get no decay."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_safetensors, num_classes=3)
    groups = {group["name"]: group for group in zoo.param_groups(model, 0.1, weight_decay=0.05, layer_decay=0.5)}
    rates = {name: group["lr"] for name, group in groups.items() if "no decay" not in name}
    assert rates == {
        "conv1": 0.1 * 0.5**4,
        "layer1": 0.1 * 0.5**3,
        "layer2": 0.1 * 0.5**2,
        "layer3": 0.1 * 0.5,
        "layer4": 0.1,
        "fresh": 0.1,
    }
    for group in groups.values():
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.05) for p in group["params"])
    assert groups["fresh"]["params"][0] is model.fc.weight
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    for optimiser in (torch.optim.AdamW, torch.optim.SGD):
        assert len(optimiser(list(groups.values()), lr=1.0).param_groups) == len(groups)


def test_frozen_parameters_are_in_no_group(unet_safetensors):
    """And wrappers are looked through."""
    model = zoo.load_model("caid-resnet50", checkpoint=unet_safetensors, num_classes=3)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    groups = zoo.param_groups(nn.DataParallel(model), 0.1)
    assert [p is q for p, q in zip((p for g in groups for p in g["params"]), model.fc.parameters(), strict=True)]
    assert {g["name"] for g in groups} == {"fresh", "fresh, no decay"}


@pytest.mark.slow
def test_random_networks_learn_at_the_full_rate_everywhere():
    """Nothing is pre-trained, so nothing is held back."""
    groups = zoo.param_groups(zoo.load_model("caid-resnet50-unet", pretrained=False), 0.1, layer_decay=0.5)
    assert {group["lr"] for group in groups} == {0.1}
    assert {group["name"] for group in groups} == {"fresh", "fresh, no decay"}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"weight_decay": -1.0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}])
def test_impossible_rates_are_refused(wrong):
    """With the numbers that came."""
    model = zoo.load_model("caid-resnet50", pretrained=False)
    with pytest.raises(OptionError, match="expected lr > 0, weight_decay >= 0 and layer_decay in"):
        zoo.param_groups(model, **wrong)


@pytest.mark.slow
def test_a_loaded_file_may_be_saved_over(unet_file, tmp_path):
    """The user's own file is read, not mapped: writing the network back over it harms neither."""
    path = tmp_path / "mine.pth"
    path.write_bytes(unet_file.read_bytes())
    model = zoo.load_model("caid-resnet50-unet", checkpoint=path)
    torch.save(model.state_dict(), path)
    again = zoo.load_model("caid-resnet50-unet", checkpoint=path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("instead", [{"pretrained": False}, {"checkpoint": "x.pth"}])
def test_a_wrong_tag_is_wrong_whatever_is_loaded(instead):
    """The tag is checked even where its weights are not what is loaded."""
    with pytest.raises(UnknownModelError, match="nosuch"):
        zoo.load_model("caid-resnet50.nosuch", **instead)
