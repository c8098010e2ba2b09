"""y-Aware's DenseNet: the authors' outputs from every form of file, both modes, channels, and MONAI's plain class."""

import copy
import json
import pickle
import re

import pytest
import torch
from caid_files import behind, filled, filled_unet, relative_error
from checkout import CHECKOUT
from monai.networks.nets import DenseNet121
from short_yaware import short_yaware
from small_networks import on_meta
from states import same
from texts import warnings
from yaware_files import (
    FORMS,
    NAME,
    early_monai,
    features,
    filled_classifier,
    filled_encoder,
    monai,
    reference,
    reference_input,
    training_checkpoint,
    unet,
)

import zoo
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.errors import CheckpointMismatchError, OptionError
from zoo.fetching.cache import file_path
from zoo.loading import full_state
from zoo.manifest import records
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. The same convolutions with sums in another order differ by some 3e-7, a default norm5 by 5e-6 and is caught
by comparing bit for bit; a wrong tensor differs by more than 0.1."""
NORM5 = {f"features.norm5.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
HEAD = {"class_layers.out.weight", "class_layers.out.bias"}


@pytest.fixture(scope="module")
def encoder_state():
    """The authors' encoder mode under their names."""
    return filled_encoder()


@pytest.fixture(scope="module")
def classifier_state():
    """The same features in their classifier mode, two classes."""
    return filled_classifier()


@pytest.fixture(scope="module")
def encoder_file(scratch, encoder_state):
    """What the authors' training code writes."""
    path = scratch / "yaware.pth"
    torch.save(training_checkpoint(behind("module.", encoder_state)), path)
    return path


@pytest.fixture(scope="module")
def classifier_file(scratch, classifier_state):
    """A fine-tuned network, bare."""
    path = scratch / "tuned.pth"
    torch.save(classifier_state, path)
    return path


@pytest.fixture(scope="module")
def encoder(encoder_file):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(NAME, checkpoint=encoder_file)


@pytest.fixture(scope="module")
def classifier(classifier_file):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(NAME, checkpoint=classifier_file)


@pytest.fixture
def short():
    """Have the name stand for a short network, for tests of what is done with tensors."""
    with short_yaware():
        yield


def filled_short(seed=0, **options):
    """Its tensors under the authors' names."""
    with short_yaware():
        shapes = {name: tensor.shape for name, tensor in on_meta(NAME, **options).state_dict().items()}
    names = (name.replace(".layers.", ".").replace("class_layers.out", "classifier") for name in shapes)
    return filled(dict(zip(names, shapes.values(), strict=True)), seed)


def load(path, **options):
    """Mapped, which is several times as fast as reading a file of many small tensors."""
    return zoo.load_model(NAME, checkpoint=path, mmap=True, **options)


def small(count=2):
    """Volumes as small as the network takes."""
    return torch.randn(count, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors(encoder, encoder_file):
    """Map, pooled features and projection; pooled is the mean of the map's ReLU, to the bit."""
    x, theirs = reference_input(), reference()
    last = encoder.forward_features(x)
    assert relative_error(last, theirs["map"]) < TOLERANCE
    assert relative_error(encoder(x), theirs["pooled"]) < TOLERANCE
    assert torch.equal(encoder(x), last.relu().mean(dim=(2, 3, 4)))
    report = zoo.load_report(encoder)
    assert (len(report.loaded), report.adapted, report.fresh) == (720, {}, {})
    assert list(report.dropped.values()) == ["projection head"] * 4
    projecting = load(encoder_file, projection=True)
    assert relative_error(projecting(x), theirs["projection"]) < TOLERANCE
    assert projecting.num_features == encoder.num_features == encoder(x).shape[1] == 1024


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_encoder_loads_the_same(form, saved, short):
    """All tensors and the projection head under MONAI's names, whatever the file wraps around them."""
    state = filled_short(projection=True)
    model = load(saved(FORMS[form](state)), projection=True)
    report = zoo.load_report(model)
    assert same(model.state_dict(), monai(state))
    assert (len(report.loaded), report.adapted, report.fresh) == (len(state), {}, {})


@pytest.mark.parametrize("form", ["training checkpoint", "MONAI", "MONAI before 0.4", "the zoo's pre-training"])
def test_every_form_of_the_classifier_loads_the_same(form, saved, short):
    """Its mode and its classes are told by what is in the file, under each spelling of the names."""
    state = filled_short(num_classes=2)
    model = load(saved(FORMS[form](state)))
    report = zoo.load_report(model)
    assert same(model.state_dict(), monai(state))
    assert (len(report.loaded), report.adapted, report.fresh) == (len(state), {}, {})


@pytest.mark.slow
def test_the_classifier_answers_as_monais_class(classifier, classifier_state):
    """Bit for bit; that class with these names is the authors' classifier mode."""
    plain = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    plain.load_state_dict(monai(classifier_state), strict=True)
    with torch.no_grad():
        assert torch.equal(classifier(small()), plain(small()))


@pytest.mark.slow
def test_a_name_that_says_the_other_mode_deceives_nobody(encoder_state, classifier_state, tmp_path):
    """A classifier under the published encoder's name, an encoder under a fine-tuned one's."""
    published, tuned = tmp_path / "DenseNet121_BHB-10K_yAwareContrastive.pth", tmp_path / "classifier.pth"
    torch.save({"model": behind("module.", classifier_state)}, published)
    torch.save({"model": encoder_state}, tuned)
    assert load(published)(small()).shape == (2, 2)
    assert load(tuned)(small()).shape == (2, 1024)
    published.unlink()
    tuned.unlink()


def test_conversion_is_pure_and_idempotent(encoder_state, classifier_state):
    """What a network saved goes through unchanged; the argument is left alone."""
    convert = get_entry(NAME).convert
    for state, facts in ((encoder_state, {}), (classifier_state, {"num_classes": 2})):
        names = list(state)
        once, known = convert(state)
        assert (list(state), known) == (names, facts)
        assert same(convert(once)[0], once)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 3])
def test_a_new_classifier_has_a_fresh_norm(classes, encoder_file, caplog):
    """The encoder's file has neither norm nor head: both start as the authors start them, and the report says so."""
    model = load(encoder_file, num_classes=classes)
    report = zoo.load_report(model)
    assert len(report.loaded) == 720
    assert set(report.fresh) == NORM5 | HEAD
    assert {why for name, why in report.fresh.items() if "num_batches" not in name} == {"not in the file"}
    assert "features.norm5.* (4): not in the file" in str(report)
    assert not warnings(caplog)
    norm, head = model.features.norm5, model.class_layers.out
    assert norm.weight.unique().tolist() == norm.running_var.unique().tolist() == [1.0]
    assert norm.bias.unique().tolist() == norm.running_mean.unique().tolist() == [0.0]
    assert head.bias.unique().tolist() == [0.0]
    assert 0 < head.weight.abs().max() <= 1024**-0.5  # nn.Linear draws within 1/sqrt(inputs)
    assert model(small()).shape == (2, classes)


@pytest.mark.slow
def test_one_output_keeps_its_axis(saved):
    """The authors squeeze it away; here logits are (N, 1)."""
    model = load(saved(filled_classifier(classes=1)))
    assert model(small()).shape == (2, 1)
    assert not zoo.load_report(model).fresh


def test_other_classes_keep_the_trained_norm(classifier_file, classifier_state, caplog):
    """The norm belongs to the fine-tuned features and is loaded; only the last layer is dropped, with a warning."""
    model = load(classifier_file, num_classes=5)
    report = zoo.load_report(model)
    assert torch.equal(model.features.norm5.weight, classifier_state["features.norm5.weight"])
    assert torch.equal(model.features.norm5.running_var, classifier_state["features.norm5.running_var"])
    assert len(report.loaded) == 725
    assert set(report.fresh) == set(report.dropped) == HEAD
    assert report.fresh["class_layers.out.bias"] == "the file's head does not fit"
    expected = "the head does not fit: 2x1024 in the file, 5x1024 in the network"
    assert report.dropped["class_layers.out.weight"] == expected
    (warning,) = warnings(caplog)
    assert expected in warning


@pytest.mark.slow
def test_no_classes_asks_for_the_features_before_the_norm(classifier_file, caplog):
    """num_classes=0 on a fine-tuned file: the same features as the encoder's, norm and head dropped, no warning."""
    model = load(classifier_file, num_classes=0)
    with torch.no_grad():
        assert relative_error(model(reference_input()), reference()["pooled"]) < TOLERANCE
    report = zoo.load_report(model)
    assert set(report.dropped) == NORM5 | HEAD
    assert all(why.startswith("the head does not fit") for why in report.dropped.values())
    assert not warnings(caplog)


@pytest.mark.slow
def test_a_norm_without_a_head(classifier_state, saved, caplog):
    """The norm is loaded beside a fresh head; without classes it is dropped, which is said."""
    path = saved({name: t for name, t in classifier_state.items() if not name.startswith("classifier.")})
    model = load(path, num_classes=2)
    assert torch.equal(model.features.norm5.bias, classifier_state["features.norm5.bias"])
    assert zoo.load_report(model).fresh == dict.fromkeys(sorted(HEAD, reverse=True), "not in the file")
    assert not warnings(caplog)
    assert set(zoo.load_report(load(path)).dropped) == NORM5
    assert "head was dropped" in warnings(caplog)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    ["features.conv0.weight", "features.transition3.conv.weight", "features.denseblock4.denselayer16.norm2.bias"],
)
def test_a_file_that_lacks_one_tensor(lost, encoder_state, saved):
    """It is told from a file of another network: that one tensor is named, under the name that is sought."""
    state = {f"module.{name}": tensor for name, tensor in encoder_state.items() if name != lost}
    assert len(state) == len(encoder_state) - 1
    named = re.escape(re.sub(r"(denselayer\d+)\.(?!layers)", r"\1.layers.", lost))
    with pytest.raises(CheckpointMismatchError, match=rf"719 of the 720 .*\n.*missing \(1\): {named}\n") as caught:
        load(saved(state))
    assert "with parts missing" in str(caught.value)


def test_no_projection_head_in_the_file(classifier_file, encoder_file):
    """A fine-tuned file has none, which is said and not made up for; one network has one head."""
    with pytest.raises(CheckpointMismatchError, match=r"none \(hidden_rep.*zoo\.entries\.yaware\.pretrain") as caught:
        load(classifier_file, projection=True)
    assert "guess" not in str(caught.value)
    with pytest.raises(OptionError, match="two heads"):
        load(encoder_file, projection=True, num_classes=2)


def test_random_weights_start_as_the_authors_network_does():
    """Kaiming normal over the inputs, linear biases at zero, with the projection head too."""
    torch.manual_seed(0)
    model = zoo.load_model(NAME, pretrained=False, projection=True)
    assert abs(model.features.conv0.weight.std().item() / (2 / 7**3) ** 0.5 - 1) < 0.02  # 22 000 draws: 0.5 % each
    assert not model.hidden_representation.bias.any()
    assert not model.head_projection.bias.any()
    assert "features.norm5.weight" not in model.state_dict()


# --- maps, modes of training, gradients -------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("network", ["encoder", "classifier"])
def test_the_map_is_never_overwritten(network, request):
    """What forward_features returned, and what a hook saw in forward, stay as they are: no ReLU works on them."""
    model = request.getfixturevalue(network)
    seen = []
    hook = model.features.denseblock4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    last = model.forward_features(small())
    before = last.clone()
    model(small())
    model.class_layers(last)
    hook.remove()
    assert before.min() < 0
    assert torch.equal(last, before)
    assert all(torch.equal(one, before) for one in seen)
    assert len(seen) == 2


@pytest.mark.slow
@torch.no_grad()
def test_training_mode_does_not_touch_the_missing_norm(encoder, classifier):
    """The encoder's features in training are those before the norm; forward_features leaves the norm alone."""
    first, second = copy.deepcopy(encoder).train(), copy.deepcopy(classifier).train()
    pooled = first(small())
    assert torch.equal(pooled, copy.deepcopy(encoder).train().forward_features(small()).relu().mean(dim=(2, 3, 4)))
    assert not torch.equal(pooled, encoder(small()))  # training it is: the other norms use the batch
    assert torch.equal(second.forward_features(small()).relu().mean(dim=(2, 3, 4)), pooled)
    assert torch.equal(second.features.norm5.running_mean, classifier.features.norm5.running_mean)
    second(small())
    assert not torch.equal(second.features.norm5.running_mean, classifier.features.norm5.running_mean)
    assert not any("norm5" in name for name, _ in first.named_modules())


@pytest.mark.parametrize("options", [{}, {"num_classes": 2}, {"projection": True}])
def test_every_parameter_gets_a_gradient(options, saved, short):
    """Nothing lies idle, so that DistributedDataParallel works without further ado."""
    model = load(saved(filled_short(projection=True)), **options).train()
    (model(small()) ** 2).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
def test_the_network_can_be_copied_and_pickled(encoder):
    """With its report, as `torch.save(model)` and worker processes do."""
    again = pickle.loads(pickle.dumps(encoder))
    assert same(again.state_dict(), encoder.state_dict())
    assert zoo.load_report(again) == zoo.load_report(encoder)


# --- channels, groups, the plain class --------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_channels_are_adapted(encoder, encoder_file, saved):
    """A map given several times over gives the same features, and one channel of such a network is the first again."""
    three = load(encoder_file, in_channels=3)
    assert three.features.conv0.weight.shape == (64, 3, 7, 7, 7)
    assert zoo.load_report(three).adapted == {"features.conv0.weight": "1 input channels repeated to 3"}
    expected = encoder(small()).numpy()
    assert relative_error(three(small().expand(-1, 3, -1, -1, -1)), expected) < TOLERANCE
    path = saved(three.state_dict())
    assert load(path).features.conv0.in_channels == 3
    one = load(path, in_channels=1)
    assert relative_error(one(small()), expected) < TOLERANCE


def test_parameter_groups_follow_the_stages(encoder_file, classifier):
    """The rate falls towards the input; norm and head learn at the full rate, whether they are fresh or trained."""
    model = load(encoder_file, num_classes=2)
    groups = zoo.param_groups(model, 1e-2, weight_decay=5e-5, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    assert rates == {
        "features.conv0": 1e-2 * 0.5**4,
        "features.denseblock1": 1e-2 * 0.5**3,
        "features.denseblock2": 1e-2 * 0.5**2,
        "features.denseblock3": 1e-2 * 0.5,
        "features.denseblock4": 1e-2,
        "fresh": 1e-2,
    }
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    (fresh,) = (group["params"] for group in groups if group["name"] == "fresh, no decay")
    assert {id(p) for p in fresh} == {id(model.features.norm5.weight), id(model.features.norm5.bias)} | {
        id(model.class_layers.out.bias)
    }
    tuned = {group["name"]: group["lr"] for group in zoo.param_groups(classifier, 1e-2, layer_decay=0.5)}
    assert tuned["head"] == tuned["features.denseblock4"] == 1e-2
    assert "fresh" not in tuned


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("projection", [False, True])
def test_the_full_export_is_monais_class(projection, encoder, encoder_file, tmp_path):
    """The plain class loads it strictly and returns the pooled features to the bit; loaded here, it is the encoder."""
    model = load(encoder_file, projection=projection)
    plain = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024).eval()
    full = full_state(NAME, model)
    plain.load_state_dict(full, strict=True)
    assert torch.equal(plain(small()), encoder(small()))
    path = export_safetensors(full, tmp_path / "full.safetensors", half=True)
    report = zoo.load_report(load(path))
    assert (len(report.loaded), report.fresh) == (720, {})
    assert set(report.dropped) == NORM5 | HEAD
    path.unlink()


def test_the_full_export_of_a_classifier_is_what_it_is(classifier):
    """Nothing is missing from it."""
    assert same(full_state(NAME, classifier), classifier.state_dict())


@pytest.mark.slow
def test_a_classifier_of_as_many_classes_as_features_stays_one(saved):
    """Only neutral values are taken out again."""
    model = load(saved(filled_classifier(classes=1024)))
    assert len(zoo.load_report(model).loaded) == 727


@pytest.mark.slow
def test_the_hub_loads_it(encoder, encoder_file):
    """By the name with an underscore."""
    repository = str(CHECKOUT)
    model = torch.hub.load(repository, "yaware_densenet121", source="local", checkpoint=encoder_file)
    assert same(model.state_dict(), encoder.state_dict())


# --- files that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["simCLR", "classif", "encoder"])
def test_the_authors_unet_is_called_by_its_name(mode, saved):
    """In each of its modes: what the file is, and what to do with it."""
    path = saved(training_checkpoint(behind("module.", unet(mode))))
    with pytest.raises(CheckpointMismatchError, match=r"3D U-Net of y-Aware's authors.*behind 'module\.'.*DenseNet"):
        load(path)
    assert zoo.inspect_checkpoint(path).matches == ()


@pytest.mark.slow
def test_a_file_of_another_family_is_told_apart(saved):
    """The message says which model it is."""
    path = saved(filled_unet())
    with pytest.raises(CheckpointMismatchError) as caught:
        load(path)
    message = str(caught.value)
    assert f"0 of the 720 required tensors of {NAME!r} match" in message
    assert "load_model('caid-resnet50-unet'" in message
    with pytest.raises(CheckpointMismatchError, match=rf"load_model\('{NAME}'"):
        zoo.load_model("caid-resnet50", checkpoint=saved(filled_encoder()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "matched"),
    [
        (lambda name: name == "features.denseblock3.denselayer7.norm2.running_var", 719),
        (lambda name: name.startswith("features.denseblock4."), 528),
        (lambda name: name == "features.conv0.weight", 719),
    ],
)
def test_a_truncated_file_is_refused(lost, matched, encoder_state, saved):
    """One tensor of 720 is enough, be it the first convolution."""
    path = saved(behind("module.", {name: t for name, t in encoder_state.items() if not lost(name)}))
    with pytest.raises(CheckpointMismatchError) as caught:
        load(path)
    assert f"{matched} of the 720 required tensors of {NAME!r} match; nothing was loaded" in str(caught.value)


@pytest.mark.slow
def test_the_2d_densenet_is_refused(encoder_state, saved):
    """The one of torchvision has the same names; the shapes that differ are listed."""
    flat = {name: tensor[..., 0] if tensor.ndim == 5 else tensor for name, tensor in features(encoder_state).items()}
    with pytest.raises(CheckpointMismatchError, match=r"features\.conv0\.weight is 64x1x7x7 in the file, 64x1x7x7x7 "):
        load(saved(flat))


@pytest.mark.slow
def test_two_spellings_of_one_tensor_are_refused(encoder_state, saved):
    """Nothing is chosen from when a file has a layer under the authors' names and under MONAI's."""
    names = [name for name in encoder_state if ".denselayer3." in name]
    path = saved(encoder_state | monai({name: encoder_state[name] for name in names}))
    with pytest.raises(CheckpointMismatchError, match=r"layers\.layers"):
        load(path)
    both = early_monai(filled_classifier()) | filled_classifier()
    with pytest.raises(CheckpointMismatchError, match="the same name"):
        load(saved(both))


# --- input and records ------------------------------------------------------------------------------------------------


def test_the_transform_is_of_the_grid_the_network_knows():
    """The template's left-handed grid at 1.5 mm, and z-scores over the whole volume."""
    transform = zoo.load_transform(NAME)
    facts = transform.preprocessing
    assert facts == get_entry(NAME).preprocessing == zoo.model_info(NAME).input
    assert torch.linalg.det(torch.tensor(facts.affine)).item() == pytest.approx(-(1.5**3))
    density = torch.zeros(facts.size)
    density[40:80, 50:90, 40:80] = torch.linspace(0.2, 1.2, 40)
    volume = transform(density)
    assert (volume.shape, volume.dtype) == ((1, 121, 145, 121), torch.float32)
    expected = (density - density.mean()) / (density.std(unbiased=False) + 1e-8)
    assert relative_error(volume[0], expected.numpy()) < TOLERANCE


def test_the_records_are_the_authors_two_files(encoder_state):
    """Newest first, without a digest and with the reason; the fingerprint is of the authors' names and shapes."""
    newest, oldest = records(NAME)
    assert (newest.tag, oldest.tag) == ("bhb10k", "bhb10k-2021")
    assert newest.sources == ("gdrive:1BmDC4USdZmX0ZSi-jQyUVmKHaDFIJFo2",)
    assert oldest.sources == ("gdrive:1e75JYkaXvLQJhn0Km99iVTzB28AvErh5",)
    expected = fingerprint(get_entry(NAME).convert(encoder_state)[0])
    for weights in (newest, oldest):
        assert (weights.state, weights.trained_by, weights.bytes, weights.sha256) == ("hosted", "authors", None, None)
        assert "digest" in weights.sha256_note
        assert weights.fingerprint == {NAME: expected}
        assert "none stated" in weights.licences["code"]["licence"]
        assert "none stated" in weights.licences["weights"]["licence"]
    assert zoo.model_info(NAME).name == f"{NAME}.bhb10k"
    assert file_path(newest) != file_path(oldest)


@pytest.mark.slow
def test_two_files_of_unknown_digest_do_not_collide(tmp_path, monkeypatch, short):
    """Each is fetched, pinned and converted for itself."""
    sources = {tag: filled_short(seed, projection=True) for seed, tag in enumerate(("first", "second"))}
    for tag, state in sources.items():
        torch.save({"model": behind("module.", state)}, tmp_path / f"{tag}.pth")
    facts = {"models": [NAME], "state": "hosted", "bytes": None, "sha256": None, "sha256_note": "none published"}
    found = [{"tag": tag, "sources": [f"file:{tmp_path / tag}.pth"], **facts} for tag in sources]
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": found}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    for _ in ("fetched", "from the cache"):
        for tag, state in sources.items():
            assert same(zoo.load_model(f"{NAME}.{tag}").state_dict(), monai(features(state)))
    assert zoo.load_report(zoo.load_model(NAME)).tag == "first"
    assert len({zoo.load_report(zoo.load_model(f"{NAME}.{tag}")).sha256 for tag in sources}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "stray", ["features.norm6.weight", "features.denseblock1.denselayer1.head_projection.weight", "attention.weight"]
)
def test_a_tensor_that_the_network_does_not_have_is_refused(stray, encoder_state, saved):
    """What stands behind the network's prefix is named, not passed over, whatever its name ends with."""
    with pytest.raises(
        CheckpointMismatchError, match=rf"unexpected \(1\): .*{stray.rpartition('.')[0].split('.')[-1]}"
    ):
        load(saved(behind("module.", encoder_state | {stray: torch.ones(3)})))
