"""BrainIAC: the authors' outputs, files of both versions and of fine-tuned networks, and what is another network."""

import json
import re
from dataclasses import replace

import pytest
import torch
from brainiac_files import (
    RESNET,
    RESNET_FORMS,
    RESNET_KEYS,
    VIT,
    VIT_FORMS,
    VIT_KEYS,
    brain_input,
    classifier,
    downstream,
    pretraining,
    reference,
    resnet_input,
    segmenter,
)
from caid_files import behind, filled, relative_error
from monai.networks.nets import ViT, resnet50
from monai_ssl_files import UNETR_KEYS, written_by
from monai_ssl_files import VIT_KEYS as AUTOENCODER_KEYS
from states import same

import zoo
from zoo.checkpoint import build_network, convert, left_out
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.entries.brainiac.model import BrainResNet50, BrainViT
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.formats import open_checkpoint
from zoo.loading import full_state
from zoo.manifest import records
from zoo.networks.vit import ViTEncoder
from zoo.registry import entries, get_entry

TOLERANCE = 1e-5
"""Relative. Sums in another order differ by 1e-6; the mean of the tokens is 0.06 from the first one."""
NARROW = 36
"""Numbers of a token of `NarrowViT`."""
VERSIONS = r"version 1, a ResNet-50 .* version 2, a ViT-B/16"


@pytest.fixture(scope="module")
def vit_state():
    return filled(VIT_KEYS)


@pytest.fixture(scope="module")
def resnet_state():
    return filled(RESNET_KEYS)


@pytest.fixture(scope="module")
def vit_file(scratch, vit_state):
    """What the authors' pre-training writes."""
    path = scratch / "BrainIAC.ckpt"
    torch.save(pretraining(vit_state), path)
    return path


@pytest.fixture(scope="module")
def vit(vit_file):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(VIT, checkpoint=vit_file, mmap=True)


@pytest.fixture(scope="module")
def resnet(scratch, resnet_state):
    """Version 1, as the hub has it."""
    path = scratch / "pytorch_model.bin"
    torch.save(behind("resnet.", resnet_state), path)
    return zoo.load_model(RESNET, checkpoint=path, mmap=True)


@pytest.fixture(scope="module")
def features(vit, resnet):
    """Of the reference inputs."""
    with torch.no_grad():
        return {VIT: vit(brain_input()), RESNET: resnet(resnet_input())}


@pytest.fixture
def narrow(monkeypatch):
    """Have the ViT's name stand for one with narrow tokens, for tests of what is done with tensors."""
    entry = get_entry(VIT)
    monkeypatch.setitem(entries(), VIT, replace(entry, num_features=NARROW, build=NarrowViT))


class NarrowViT(BrainViT):
    """Of three numbers for each head."""

    def __init__(self, config):
        ViTEncoder.__init__(
            self,
            config["in_channels"],
            (96, 96, 96),
            NARROW,
            4 * NARROW,
            12,
            12,
            num_classes=config["num_classes"],
            pooling=config["pooling"],
        )


@pytest.fixture(scope="module")
def narrow_state():
    """Its tensors."""
    widths = {768: NARROW, 3 * 768: 3 * NARROW, 4 * 768: 4 * NARROW}
    return filled({name: [widths.get(side, side) for side in shape] for name, shape in VIT_KEYS.items()})


def tensors_of(content):
    """The tensors of a file's content, as `open_checkpoint` finds them."""
    return content.get("state_dict", content)


def converted(name, content):
    return convert(get_entry(name), tensors_of(content))


def shapes_only(keys):
    """Tensors of these names and shapes that take no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in keys.items()}


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_of_version_2_are_the_authors(vit, features):
    """First token, all tokens as a map in the order of the array, and their mean where that is asked for."""
    x, theirs = brain_input(), reference("brainiac")
    tokens = vit.forward_features(x).flatten(2).transpose(1, 2)
    assert relative_error(features[VIT], theirs["features"]) < TOLERANCE
    assert relative_error(tokens[:, ::8], theirs["tokens"]) < TOLERANCE
    assert torch.equal(features[VIT], tokens[:, 0])
    vit.pooling = "mean"
    mean = vit(x)
    vit.pooling = "first"
    assert relative_error(mean, theirs["mean"]) < TOLERANCE
    assert relative_error(mean, theirs["features"]) > 0.05
    assert relative_error(mean[1:], theirs["features"][1:]) > 0.05
    report = zoo.load_report(vit)
    assert (len(report.loaded), report.adapted, report.fresh, report.note) == (137, {}, {}, "")
    assert list(report.dropped.values()) == ["projection head of the pre-training"] * 12
    assert report.options == {"pooling": "first"}


@pytest.mark.slow
@torch.no_grad()
def test_a_feature_does_not_depend_on_the_neighbours_in_the_batch(vit, resnet, features):
    """Alone and beside another, of both versions."""
    for name, model, x in ((VIT, vit, brain_input(1)), (RESNET, resnet, resnet_input()[:1])):
        assert relative_error(model(x), features[name][:1].numpy()) < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_outputs_of_version_1_are_the_authors(resnet, features):
    """Map and pooled features, of volumes that are no cube; with MONAI's own first stride they are others."""
    x, theirs = resnet_input(), reference("brainiac_resnet50")
    last = resnet.forward_features(x)
    assert relative_error(last[:, ::4], theirs["map"]) < TOLERANCE
    assert relative_error(features[RESNET], theirs["features"]) < TOLERANCE
    assert torch.equal(features[RESNET], last.mean(dim=(2, 3, 4)))
    assert resnet.num_features == 2048
    resnet.conv1.stride = (1, 1, 1)
    other = resnet(x[:1])
    resnet.conv1.stride = (2, 2, 2)
    assert relative_error(other, theirs["features"][:1]) > 0.01


# --- forms of file ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", VIT_FORMS)
def test_every_form_of_version_2_holds_the_same(form, vit_state):
    """137 tensors, whatever is around them; where names do not tell whose they are, a remark says so."""
    network, facts = converted(VIT, VIT_FORMS[form](vit_state))
    assert same(network, vit_state)
    expected = "" if "pre-training" in form else "timm" if "timm" in form else "monai-ssl-vitb16 too"
    assert expected in facts.get("remark", "")
    assert bool(expected) == ("remark" in facts)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.9", "1.4", "1.6"])
def test_the_names_of_any_monai_load(version, vit_state):
    """1.4 and 1.5 wrote 84 names more, later ones 24, which no forward pass uses and the report names."""
    written = written_by(version, vit_state)
    assert len(written) == {"0.9": 137, "1.4": 221, "1.6": 161}[version]
    content = pretraining(written)["state_dict"]
    network, _ = converted(VIT, content)
    assert same(network, vit_state)
    reasons = set(left_out(content, network, get_entry(VIT).unused).values())
    assert reasons <= {
        "projection head of the pre-training",
        "cross attention, which no forward pass used (MONAI 1.4 and later)",
    }


@pytest.mark.parametrize("form", RESNET_FORMS)
def test_every_form_of_version_1_holds_the_same(form, resnet_state):
    """322 tensors behind each prefix."""
    network, facts = converted(RESNET, RESNET_FORMS[form](resnet_state))
    assert same(network, resnet_state)
    assert ("stride" in facts.get("remark", "")) == (form == "bare")


@pytest.mark.slow
def test_a_fine_tuned_file_brings_its_classifier_and_says_what_it_is(narrow_state, saved, zoo, narrow):
    """Two copies of everything: one is kept, and the report says that the features are not the published ones."""
    import zoo as package

    path = saved(downstream(narrow_state, NARROW, classes=3))
    model = package.load_model(VIT, checkpoint=path)
    report = package.load_report(model)
    assert (len(report.loaded), report.fresh) == (139, {})
    assert report.note.startswith("fine-tuned, with a classifier: its features are not those of the published")
    assert report.note in str(report)
    assert list(report.dropped.values()) == ["second copy of the fine-tuned network"] * 139
    weights = classifier(NARROW, 3)
    assert torch.equal(model.classification_head.weight, weights["classifier.fc.weight"])
    x = brain_input(1)
    with torch.no_grad():
        head = torch.nn.functional.linear(model.forward_features(x)[:, :, 0, 0, 0], *weights.values())
        assert relative_error(model(x), head.numpy()) < TOLERANCE
    with pytest.raises(CheckpointMismatchError, match="several copies"):
        converted("monai-ssl-vitb16", downstream(narrow_state, NARROW))
    code, out, _ = zoo("inspect", path)
    assert code == 0
    assert [line.split(":")[0].split()[-1] for line in out.splitlines() if " tensors" in line and "of" in line] == [VIT]


@pytest.mark.slow
def test_the_copy_in_the_cache_keeps_the_remark(narrow_state, saved, zoo, caplog, narrow):
    """An imported fine-tuned file is converted once, and its report says what it is each time."""
    import zoo as package

    path = saved(downstream(narrow_state, NARROW))
    assert zoo("import", f"{VIT}.tuned", path)[0] == 0
    path.unlink()
    for _ in range(2):
        report = package.load_report(package.load_model(f"{VIT}.tuned"))
        assert "fine-tuned, with a classifier" in report.note
        assert list(report.dropped.values()) == ["second copy of the fine-tuned network"] * 139


@pytest.mark.slow
def test_copies_that_differ_are_not_chosen_from(vit_state):
    """Two networks in one file, which Lightning never writes."""
    content = downstream(vit_state)["state_dict"]
    content["model.backbone.backbone.norm.weight"] = content["model.backbone.backbone.norm.weight"] + 1
    with pytest.raises(CheckpointMismatchError, match=r"two networks that differ.*backbone.backbone.norm.weight first"):
        converted(VIT, content)


@pytest.mark.slow
def test_of_a_segmenter_the_trained_vit_is_kept(vit_state):
    """The other one is what training began with; the authors' forward pass does not use it."""
    begun = {name: tensor + 1 for name, tensor in vit_state.items()}
    content = segmenter(vit_state, begun)["state_dict"]
    network, facts = converted(VIT, content)
    assert same(network, vit_state)
    assert "fine-tuned, by segmenting" in facts["remark"]
    reasons = left_out(content, network, get_entry(VIT).unused)
    assert reasons["model.vit.norm.weight"].startswith("encoder that the fine-tuning began with")
    assert reasons["model.unetr.out.conv.conv.weight"] == "decoder of a UNETR"


def test_fine_tuned_files_of_version_1_bring_their_classifier(resnet_state):
    """As the authors' older training saved them, under `model_state_dict`."""
    content = behind("backbone.resnet.", resnet_state) | classifier(2048, 2)
    network, facts = converted(RESNET, content)
    assert same({n: t for n, t in network.items() if not n.startswith("fc.")}, resnet_state)
    assert (facts["num_classes"], network["fc.weight"].shape) == (2, (2, 2048))
    assert facts["remark"].startswith("fine-tuned, with a classifier")


@pytest.mark.slow
def test_conversion_is_pure_and_idempotent(vit_state, resnet_state):
    """What a network saved goes through unchanged; the argument is left alone."""
    for name, content in ((VIT, downstream(vit_state)["state_dict"]), (RESNET, behind("resnet.", resnet_state))):
        names = list(content)
        once, facts = get_entry(name).convert(content)
        assert list(content) == names
        again, known = get_entry(name).convert(once)
        assert same(again, once)
        assert known.get("num_classes") == facts.get("num_classes")


# --- what is another network ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_version_is_refused_under_the_others_name(vit_state, resnet_state):
    """By a message that names the two, whatever is around them."""
    for form in RESNET_FORMS.values():
        with pytest.raises(CheckpointMismatchError, match=rf"version 1 .* is: .*{VERSIONS}.*'brainiac-resnet50'"):
            converted(VIT, form(resnet_state))
    for content in (*(VIT_FORMS[form](vit_state) for form in ("bare", "the pre-training")), downstream(vit_state)):
        with pytest.raises(CheckpointMismatchError, match=rf"version 2 .* is: .*{VERSIONS}.*'brainiac-vitb16'"):
            converted(RESNET, content)


@pytest.mark.slow
def test_files_of_monai_ssl_are_not_taken_where_that_can_be_told(vit_state):
    """An auto-encoder, a UNETR; and BrainIAC's pre-training is not taken by MONAI SSL's networks."""
    autoencoder = written_by("0.9", shapes_only(AUTOENCODER_KEYS))
    unetr = written_by("0.9", shapes_only(UNETR_KEYS))
    for content in (autoencoder, behind("module.", autoencoder), unetr, behind("net.", unetr)):
        with pytest.raises(CheckpointMismatchError, match=r"learnt from CT.*'monai-ssl-vitb16'"):
            converted(VIT, content)
    for name in ("monai-ssl-vitb16", "monai-ssl-vitautoenc", "monai-ssl-unetr"):
        with pytest.raises(CheckpointMismatchError, match=r"learnt from brain MRI.*'brainiac-vitb16'"):
            converted(name, pretraining(vit_state))


@pytest.mark.slow
def test_other_networks_are_refused(vit_state):
    """A ViT with a class token, a ResNet for images, one of twice the width, a port with a tensor more."""
    with pytest.raises(CheckpointMismatchError, match="class token"):
        converted(VIT, behind("backbone.", vit_state | {"cls_token": torch.zeros(1, 1, 768)}))
    flat = {n: torch.empty(s[:2] + s[3:] if len(s) == 5 else s, device="meta") for n, s in RESNET_KEYS.items()}
    with pytest.raises(CheckpointMismatchError, match="for images"):
        converted(RESNET, {n: t for n, t in flat.items() if "downsample.0.bias" not in n})
    wide = shapes_only({n: [2 * s[0], *s[1:]] if s else s for n, s in RESNET_KEYS.items()})
    assert converted(VIT, wide)[0].keys() == wide.keys()


@pytest.mark.slow
def test_a_tensor_too_many_or_too_few_is_an_error(narrow_state, saved, narrow):
    """Nothing is passed over."""
    path = saved(pretraining(narrow_state | {"blocks.12.norm1.weight": torch.ones(NARROW)}))
    with pytest.raises(CheckpointMismatchError, match=r"unexpected \(1\): blocks.12.norm1.weight"):
        zoo.load_model(VIT, checkpoint=path)
    path = saved(pretraining({n: t for n, t in narrow_state.items() if n != "blocks.3.norm1.bias"}))
    with pytest.raises(CheckpointMismatchError, match=r"missing \(1\): blocks.3.norm1.bias"):
        zoo.load_model(VIT, checkpoint=path)


@pytest.mark.slow
def test_inspection_names_the_right_model_and_no_other(vit_file, resnet_state, saved):
    """The pre-training of either version loads as one model of the zoo."""
    for path, model in ((vit_file, VIT), (saved(behind("resnet.", resnet_state)), RESNET)):
        matches = zoo.inspect_checkpoint(path).matches
        assert [(match.model, match.complete) for match in matches if match.complete] == [(model, True)]


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_heads_of_96_voxels_go_in(vit):
    """The positions are tied to them: other sizes are not interpolated, unlike in MONAI SSL's network."""
    for shape, problem in (
        ((1, 1, 112, 96, 96), "112 x 96 x 96 voxels; 96 x 96 x 96 are expected"),
        ((1, 1, 32, 32, 32), "32 x 32 x 32 voxels; 96 x 96 x 96"),
        ((1, 2, 96, 96, 96), "in_channels=2"),
        ((1, 96, 96, 96), "makes a batch"),
    ):
        with pytest.raises(InputContractError, match=re.escape(problem)):
            vit(torch.zeros(shape))


def test_there_are_two_poolings():
    """One that nobody has is an error before anything is built."""
    with pytest.raises(OptionError, match=r"pooling='max'.*'mean' or 'first'"):
        zoo.load_model(VIT, pretrained=False, pooling="max")
    assert build_network(get_entry(VIT), dict(get_entry(VIT).config)).pooling == "first"
    assert build_network(get_entry(VIT), {**get_entry(VIT).config, "pooling": "mean"}).pooling == "mean"


@pytest.mark.slow
def test_a_new_classifier_is_fresh_and_channels_are_adapted(vit_file, vit_state):
    """And `num_classes=0` of a file with a classifier asks for the features."""
    model = zoo.load_model(VIT, checkpoint=vit_file, mmap=True, num_classes=4, in_channels=2)
    report = zoo.load_report(model)
    assert set(report.fresh) == {"classification_head.weight", "classification_head.bias"}
    stem = "patch_embedding.patch_embeddings.weight"
    assert list(report.adapted) == [stem]
    assert relative_error(model.state_dict()[stem].sum(1, keepdim=True), vit_state[stem].numpy()) < TOLERANCE


@pytest.mark.slow
def test_monais_plain_classes_load_a_full_export(vit, resnet):
    """Strictly: the ViT with the norms that MONAI has and never uses, the ResNet as it is."""
    with torch.device("meta"):  # values that would be drawn only to be replaced
        plain = ViT(1, (96,) * 3, (16,) * 3, 768, 3072, 12, 12)
        other = resnet50(n_input_channels=1, conv1_t_stride=2, feed_forward=False)
    plain.load_state_dict(full_state(VIT, vit), strict=True, assign=True)
    x = brain_input(1)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x)[0][:, 0], vit(x))
    other.load_state_dict(full_state(RESNET, resnet), strict=True, assign=True)
    x = resnet_input()[:1]
    with torch.no_grad():
        assert torch.equal(other.eval()(x), resnet(x))


def test_an_export_keeps_its_pooling(narrow_state, tmp_path, narrow):
    """The header says it, since names and shapes do not; who asks for another gets that."""
    path = tmp_path / "mean.safetensors"
    export_safetensors(dict(narrow_state), path, metadata={"model": VIT, "options": json.dumps({"pooling": "mean"})})
    model = zoo.load_model(VIT, checkpoint=path, mmap=True)
    assert model.pooling == "mean"
    assert zoo.load_report(model).said_by == {"pooling": "the file's header"}
    assert zoo.load_model(VIT, checkpoint=path, mmap=True, pooling="first").pooling == "first"


def test_records_are_of_these_networks():
    """Fingerprints, and licences that allow nothing commercial."""
    for name in (VIT, RESNET):
        network = build_network(get_entry(name), dict(get_entry(name).config))
        for record in records(name):
            assert record.fingerprint == {name: fingerprint(network.state_dict())}
            assert {record.licences[layer]["commercial"] for layer in ("code", "weights")} == {"no"}
    assert zoo.model_info(VIT).sha256.startswith("f22bdbca")
    assert (zoo.model_info(VIT).state, zoo.model_info(f"{RESNET}.v1").state) == ("hosted", "on-request")


@pytest.mark.slow
@pytest.mark.parametrize("network", [BrainViT, BrainResNet50])
def test_every_parameter_is_in_the_forward_pass(network):
    """So that DistributedDataParallel takes it: none of MONAI's dead ones is left."""
    with torch.device("meta"):
        model = network(num_classes=2)
        side = 96 if network is BrainViT else 32
        model.eval()(torch.empty(1, 1, side, side, side)).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_param_groups_name_every_stage():
    """13 stages of the ViT, from the patches to the last norm; 5 of the ResNet."""
    for name, stages in ((VIT, 13), (RESNET, 5)):
        entry = get_entry(name)
        network = build_network(entry, dict(entry.config))
        assert len(entry.stages) == stages
        prefixes = tuple(prefix for stage in entry.stages for prefix in stage)
        assert all(n.startswith(prefixes) for n, _ in network.named_parameters())


@pytest.mark.slow
def test_the_file_opens_without_running_anything(vit_file):
    """Lightning's file is read as plain tensors."""
    assert len(open_checkpoint(vit_file).tensors) == 149
