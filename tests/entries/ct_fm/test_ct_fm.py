"""CT-FM's networks: the authors' outputs, every form of file, heads, what is refused, MONAI's plain classes."""

import json
import subprocess
import sys

import pytest
import torch
from caid_files import behind, relative_error
from ctfm_files import (
    ENCODER,
    ENCODER_FORMS,
    FEATURES,
    FILTERS,
    SEGMENTER,
    SEGMENTER_FORMS,
    filled_as,
    lightning,
    narrow_ct_fm,
    shapes_of,
)
from monai.networks.nets import SegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS, SegResNetDS2
from safetensors.torch import save_file
from states import same
from texts import warnings

import zoo
from zoo.checkpoint.building import build_network
from zoo.checkpoint.export import fingerprint
from zoo.entry import UNTRAINED
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.learning_rates import param_groups
from zoo.loading import full_state
from zoo.manifest import record_with_tag
from zoo.registry import get_entry

pytestmark = pytest.mark.usefixtures("narrow")

TOLERANCE = 1e-5
"""Relative. The same convolutions with sums in another order differ by some 1e-6."""
LEVELS = range(4)
DECODER = {name for name in shapes_of("segresnet") if name.startswith("up_layers.")}


@pytest.fixture(scope="module")
def narrow():
    """Have the names stand for narrow networks: `test_ct_fm_outputs` holds the numbers of those at full size."""
    with narrow_ct_fm():
        yield


@pytest.fixture(scope="module")
def files(scratch):
    """The three published files of narrow networks, safetensors with bare names."""
    paths = {kind: scratch / f"narrow-ctfm-{kind}.safetensors" for kind in ("encoder", "wholebody", "segresnet")}
    for kind, path in paths.items():
        save_file(filled_as("" if kind == "encoder" else kind), path)
    return paths


@pytest.fixture(scope="module")
def encoder(narrow, files):
    return zoo.load_model(ENCODER, checkpoint=files["encoder"], mmap=True)


@pytest.fixture(scope="module")
def segmenter(narrow, files):
    return zoo.load_model(SEGMENTER, checkpoint=files["wholebody"], mmap=True)


def load(name, path, **options):
    return zoo.load_model(name, checkpoint=path, mmap=True, **options)


def small(*shape):
    return torch.rand(shape or (1, 1, 16, 32, 16), generator=torch.Generator().manual_seed(0))


def converted(name, state):
    """State and facts, with nothing left that the network has not."""
    entry = get_entry(name)
    return entry.convert(dict(state))


# --- maps and outputs ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_do_not_depend_on_the_batch(encoder):
    """Running statistics are used: alone and beside another volume the same, sums in another order."""
    x = small(2, 1, 32, 48, 64)
    assert relative_error(encoder(x[1:]), encoder(x)[1:].numpy()) < TOLERANCE


@torch.no_grad()
def test_a_map_is_never_overwritten(encoder):
    """MONAI's ReLU and additions work in place: neither the input nor a map that was returned changes."""
    x = small()
    given, last = x.clone(), encoder.forward_features(x)
    before = last.clone()
    encoder(x)
    assert torch.equal(x, given)
    assert torch.equal(last, before)


@torch.no_grad()
def test_sides_of_the_encoders_map_are_rounded_up(encoder):
    """Any size: tiles of the authors have 24 slices."""
    assert encoder.forward_features(small(1, 1, 24, 33, 16)).shape == (1, FEATURES, 2, 3, 1)


def test_in_training_there_is_a_list():
    """As of MONAI's class: finest first, one for each head, and of one head a tensor."""
    four = zoo.load_model(SEGMENTER, pretrained=False, num_classes=3).train()
    assert [tuple(found.shape[1:]) for found in four(small(2, 1, 16, 16, 16))] == [(3, n, n, n) for n in (16, 8, 4, 2)]
    one = zoo.load_model(SEGMENTER, pretrained=False, dsdepth=1, num_classes=3).train()
    assert one(small(2, 1, 16, 16, 16)).shape == (2, 3, 16, 16, 16)


# --- forms of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ENCODER_FORMS)
def test_every_form_of_the_encoder_is_found(form):
    """For both models: the encoder's 161 tensors alone, the segmenter's in their place."""
    state, facts = converted(ENCODER, ENCODER_FORMS[form]())
    assert same(state, filled_as())
    assert facts == {}
    inside, facts = converted(SEGMENTER, ENCODER_FORMS[form]())
    assert same(inside, behind("encoder.", filled_as()))
    assert facts == {}


@pytest.mark.parametrize("form", SEGMENTER_FORMS)
def test_every_form_of_the_segmenter_is_found(form):
    """Classes and heads are read off it; the encoder takes its own part."""
    state, facts = converted(SEGMENTER, SEGMENTER_FORMS[form]())
    assert same(state, filled_as("wholebody"))
    assert facts == {"num_classes": 118, "dsdepth": 4}
    part, facts = converted(ENCODER, SEGMENTER_FORMS[form]())
    assert set(part) == set(filled_as())
    assert list(facts) == ["remark"]
    assert "an output head of 118 classes" in facts["remark"]
    assert same(converted(SEGMENTER, state)[0], state)  # idempotent


def test_the_pre_trainings_checkpoint_loads(saved):
    """With its projection head dropped, and why."""
    model = load(ENCODER, saved(lightning(filled_as())))
    assert same(model.state_dict(), filled_as())
    assert set(zoo.load_report(model).dropped.values()) == {"projection head of the pre-training"}


def test_a_segmenters_encoder_is_an_encoder(files, encoder):
    """Its decoder is dropped, and said to be; names that differ between the files have values that do."""
    model = load(ENCODER, files["wholebody"])
    state = filled_as("wholebody")
    assert all(torch.equal(tensor, state[f"encoder.{name}"]) for name, tensor in model.state_dict().items())
    report = zoo.load_report(model)
    assert len(report.dropped) == 60
    assert set(report.dropped.values()) == {"decoder, which is no part of the encoder"}


def test_an_encoders_file_leaves_the_decoder_fresh(files, caplog):
    """Which the report and a warning say; without classes the maps of a fresh decoder come back."""
    model = load(SEGMENTER, files["encoder"])
    report = zoo.load_report(model)
    assert len(report.loaded) == 161
    assert set(report.fresh) == {n for n in model.state_dict() if n.startswith("up_layers.")}
    assert set(report.fresh.values()) == {"not in the file", "counts from 0"}
    assert any("not in the file, so untrained: up_layers.0" in line for line in warnings(caplog))


def test_records_are_of_these_names():
    """Fingerprints of the names and shapes of the published files."""
    kinds = {f"{ENCODER}.idc": "", f"{SEGMENTER}.totalseg": "wholebody", f"{SEGMENTER}.init": "segresnet"}
    for name, kind in kinds.items():
        model, _, tag = name.partition(".")
        tensors = {tensor: torch.empty(shape, device="meta") for tensor, shape in shapes_of(kind).items()}
        record = record_with_tag(model, tag)
        assert record.fingerprint == {model: fingerprint(converted(model, tensors)[0])}


def test_what_the_plain_names_load():
    """The published segmentation; the initialisation only where it is named."""
    assert zoo.model_info(ENCODER).name == f"{ENCODER}.idc"
    assert zoo.model_info(SEGMENTER).name == f"{SEGMENTER}.totalseg"
    info = zoo.model_info(f"{SEGMENTER}.init")
    assert (info.default, info.options["num_classes"], info.options["decoder"]) == (False, 2, "untrained")


def test_the_classes_are_those_of_totalsegmentator_2():
    """Background and 117 structures; points that tell version 2 from version 1, where the aorta is 7."""
    classes = zoo.model_info(f"{SEGMENTER}.totalseg").provenance["classes"]
    anchors = {
        0: "background", 1: "spleen", 2: "kidney_right", 3: "kidney_left", 5: "liver", 7: "pancreas",
        22: "prostate", 26: "vertebrae_S1", 50: "vertebrae_C1", 51: "heart", 52: "aorta", 79: "spinal_cord",
        90: "brain", 92: "rib_left_1", 103: "rib_left_12", 104: "rib_right_1", 116: "sternum", 117: "costal_cartilages",
    }  # fmt: skip
    assert {i: classes[i] for i in anchors} == anchors
    assert len(classes) == len(set(classes)) == get_entry(SEGMENTER).config["num_classes"] == 118


# --- an untrained decoder ---------------------------------------------------------------------------------------------


def new_decoder(state):
    """The same file with a decoder as the class initialises it."""
    torch.manual_seed(0)
    plain = SegResNetDS(init_filters=FILTERS, out_channels=2, blocks_down=(1, 2, 2, 4, 4), dsdepth=1).state_dict()
    return {name: plain[name] if name.startswith("up_layers.") else tensor for name, tensor in state.items()}


def test_a_decoder_that_was_never_trained_is_told_by_its_norms(tmp_path, caplog):
    """Of a file that nothing is said of: the values stay, the report calls them fresh, and a line warns."""
    path = tmp_path / "init.safetensors"
    state = new_decoder(filled_as("segresnet"))
    save_file(state, path)
    model = load(SEGMENTER, path)
    report = zoo.load_report(model)
    assert same(model.state_dict(), state)
    assert set(report.fresh) == DECODER
    assert set(report.fresh.values()) == {UNTRAINED}
    assert not set(report.loaded) & DECODER
    assert any(f"{UNTRAINED}, so untrained: up_layers.0" in line for line in warnings(caplog))
    assert f"up_layers.* ({len(DECODER)}): {UNTRAINED}" in str(report)
    groups = {group["name"]: group["lr"] for group in param_groups(model, lr=1.0, layer_decay=0.5)}
    assert groups["fresh"] == 1.0
    path.unlink()


def test_one_trained_norm_is_enough(files):
    """Filled norms are not new, so that a fine-tuned file of two classes is believed."""
    assert not zoo.load_report(load(SEGMENTER, files["segresnet"])).fresh


def test_the_record_says_it_whatever_the_norms_are(files):
    """As where the authors had run the network before they saved it."""
    model = load(f"{SEGMENTER}.init", files["segresnet"])
    assert set(zoo.load_report(model).fresh) == DECODER
    with pytest.raises(OptionError, match="decoder='trained': expected 'untrained'"):
        load(SEGMENTER, files["segresnet"], decoder="trained")


@pytest.mark.parametrize("name", [SEGMENTER, f"{SEGMENTER}.init"])
def test_it_segments_nothing(name, files, tmp_path, zoo):
    """`zoo segment` refuses before it reads a volume, with exit code 2, and names no recipe that is not there."""
    file = files["segresnet" if name.endswith("init") else "encoder"]
    (tmp_path / "ct.nii.gz").touch()
    code, _, err = zoo("segment", name, tmp_path / "ct.nii.gz", "--checkpoint", file, "-o", tmp_path / "out")
    assert code == 2
    assert "has not learned to segment. Fine-tune it first" in err
    assert "python -m" not in err
    assert not (tmp_path / "out").exists()


# --- heads and channels -----------------------------------------------------------------------------------------------


def test_other_classes_have_fresh_heads(files, caplog):
    """All four, with a warning; the decoder stays."""
    model = load(SEGMENTER, files["wholebody"], num_classes=5)
    report = zoo.load_report(model)
    heads = {f"up_layers.{i}.head.{leaf}" for i in LEVELS for leaf in ("weight", "bias")}
    assert set(report.fresh) == set(report.dropped) == heads
    assert model(small()).shape == (1, 5, 16, 32, 16)
    assert "the head does not fit: 118 in the file, 5 in the network" in warnings(caplog)[0]


def test_fewer_heads_can_be_asked_for(files):
    """Those of the coarser levels are dropped; more levels than there are cannot."""
    model = load(SEGMENTER, files["wholebody"], dsdepth=1)
    assert set(zoo.load_report(model).dropped) == {
        f"up_layers.{i}.head.{x}" for i in range(3) for x in ("weight", "bias")
    }
    for wrong in (0, 5, True, "1"):
        with pytest.raises(OptionError, match=r"dsdepth=.*expected 1 to 4"):
            zoo.load_model(SEGMENTER, pretrained=False, dsdepth=wrong)


@torch.no_grad()
def test_without_classes_the_decoders_maps_come_back(files, segmenter, tmp_path):
    """What the head is a linear map of; MONAI's class returns them with the head that `--full` adds."""
    model = load(SEGMENTER, files["wholebody"], num_classes=0)
    x = small()
    maps = model(x)
    assert maps.shape == (1, FILTERS, 16, 32, 16)
    head = segmenter.up_layers[3]["head"]
    assert relative_error(head(maps), segmenter(x).numpy()) < TOLERANCE
    plain = SegResNetDS(init_filters=FILTERS, out_channels=FILTERS, blocks_down=(1, 2, 2, 4, 4)).eval()
    plain.load_state_dict(full_state(SEGMENTER, model), strict=True)
    assert relative_error(plain(x), maps.numpy()) < TOLERANCE
    assert "up_layers.3.head.weight" not in model.state_dict()


@torch.no_grad()
def test_an_encoder_that_classifies(files, saved, encoder):
    """A fresh linear layer on the features, which is loaded again, and has no place in MONAI's class."""
    model = load(ENCODER, files["encoder"], num_classes=3)
    assert set(zoo.load_report(model).fresh) == {"classifier.weight", "classifier.bias"}
    x = small()
    assert torch.allclose(model(x), model.classifier(encoder(x)))
    path = saved({"model": model.state_dict()})
    again = load(ENCODER, path)
    assert torch.equal(again(x), model(x))
    assert not zoo.load_report(again).fresh
    plain = SegResEncoder(init_filters=FILTERS, blocks_down=(1, 2, 2, 4, 4)).eval()
    plain.load_state_dict(full_state(ENCODER, model), strict=True)
    assert torch.equal(plain(x)[-1].mean((2, 3, 4)), encoder(x))
    segmenter = load(SEGMENTER, path)
    assert set(zoo.load_report(segmenter).dropped.values()) == {"head of the encoder, which classifies"}


@torch.no_grad()
@pytest.mark.parametrize("name", [ENCODER, SEGMENTER])
def test_channels_are_adapted(name, files, encoder, segmenter):
    """A volume given twice over gives what it gives once."""
    one, file = (encoder, "encoder") if name == ENCODER else (segmenter, "wholebody")
    two = load(name, files[file], in_channels=2)
    x = small()
    assert relative_error(two(x.expand(-1, 2, -1, -1, -1)), one(x).numpy()) < TOLERANCE
    with pytest.raises(InputContractError, match=r"have 1 channel\(s\), the network takes 2"):
        two(x)


def test_stages_cover_the_networks():
    """Every parameter but a classifier's belongs to one."""
    for name in (ENCODER, SEGMENTER):
        entry = get_entry(name)
        prefixes = tuple(prefix for stage in entry.stages for prefix in stage)
        assert all(n.startswith(prefixes) for n, _ in build_network(entry, dict(entry.config)).named_parameters())


@pytest.mark.parametrize("name", [ENCODER, SEGMENTER])
def test_every_parameter_gets_a_gradient(name):
    """So that DistributedDataParallel works without further ado; the segmenter by all of its outputs."""
    model = zoo.load_model(name, pretrained=False, **({"num_classes": 3} if name == SEGMENTER else {})).train()
    found = model(small(2, 1, 16, 16, 32))
    sum((part**2).sum() for part in (found if isinstance(found, list) else [found])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 2, 16, 16, 16), (1, 1, 16, 24, 16), (1, 1, 16, 0, 16)])
def test_volumes_that_the_segmenter_cannot_take(shape, segmenter):
    """By a contract error that says what is expected, not MONAI's ValueError."""
    with pytest.raises(InputContractError, match=r"expected|takes 1"):
        segmenter(torch.zeros(shape))


def test_other_networks_are_refused_by_name():
    """MONAI's SegResNet, a second decoder, and norms without statistics, which would compute something else."""
    other = SegResNet(blocks_down=(1, 2, 2, 4), init_filters=8).state_dict()
    instance = SegResEncoder(blocks_down=(1, 2, 2, 4, 4), init_filters=FILTERS, norm="instance").state_dict()
    for name in (ENCODER, SEGMENTER):
        with pytest.raises(CheckpointMismatchError, match=r"MONAI's SegResNet \(convInit"):
            converted(name, other)
        with pytest.raises(CheckpointMismatchError, match="no running statistics"):
            converted(name, behind("encoder.", instance))
    with torch.device("meta"):
        second = SegResNetDS2(init_filters=FILTERS, out_channels=2, blocks_down=(1, 2, 2, 4, 4)).state_dict()
    with pytest.raises(CheckpointMismatchError, match=r"SegResNetDS2.*image_encoder\.up_layers_auto"):
        converted(SEGMENTER, behind("image_encoder.", second))


@pytest.mark.slow
@pytest.mark.parametrize("name", [ENCODER, SEGMENTER])
def test_files_with_a_tensor_too_much_or_too_few(name, saved):
    """Beside the network, one of the decoder or the encoder alone, and other widths: all an error, with the names."""
    state = dict(filled_as("" if name == ENCODER else "wholebody"))
    last = [name for name in state if name.endswith("norm2.bias")][-1]
    stem = get_entry(name).stem
    for wrong, said in (
        (state | {"layers.9.weight": torch.zeros(1)}, "layers.9.weight"),
        ({n: t for n, t in state.items() if n != last}, last),
        (state | {stem: torch.zeros(2, 1, 3, 3, 3)}, stem),
    ):
        with pytest.raises(CheckpointMismatchError, match=said):
            load(name, saved(wrong))


def test_inspect_guesses_the_right_model(files):
    """The file's own model first, and no other family's; what it may be besides is of this family."""
    for kind, best in (("encoder", ENCODER), ("wholebody", SEGMENTER), ("segresnet", SEGMENTER)):
        matches = zoo.inspect_checkpoint(files[kind]).matches
        assert matches[0].model == best
        assert matches[0].complete
        assert {match.model for match in matches} == {ENCODER, SEGMENTER}


def test_exports_say_what_the_record_says(files, tmp_path, monkeypatch):
    """Task and classes stand in the header of an export, though the published file has none."""
    record = {"tag": "totalseg", "models": [SEGMENTER], "state": "hosted", "sources": [f"file:{files['wholebody']}"]}
    classes = zoo.model_info(f"{SEGMENTER}.totalseg").provenance["classes"]
    record |= {"bytes": None, "sha256": None, "provenance": {"task": "segment", "classes": classes}}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    from zoo.provenance import header_of_export

    model = zoo.load_model(f"{SEGMENTER}.totalseg")
    header = header_of_export(f"{SEGMENTER}.totalseg", model, None)
    assert json.loads(header["classes"]) == classes
    assert (header["task"], header["model"]) == ("segment", SEGMENTER)
    assert json.loads(header["input"])["orientation"] == "SPL"


def test_the_family_is_listed_without_its_libraries():
    """Neither torch nor MONAI is imported for the entries."""
    code = "import sys, zoo.entries.ct_fm; print({'torch', 'monai', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
