"""anatomix: the authors' outputs, what a file does not tell, every form of file, heads, records."""

import copy
import hashlib
import json
import re

import pytest
import torch
from anatomix_files import (
    CLASSES,
    DEV_KEYS,
    FINE_TUNED_FORMS,
    FORMS,
    KEYS,
    NAME,
    filled_network,
    fine_tuned,
    head,
    old_dev_shapes,
    on_meta,
    reference,
    reference_input,
    transformer,
)
from caid_files import behind, filled, filled_unet, relative_error
from states import same
from texts import warnings

import zoo
from zoo.checkpoint.building import build_network
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.embedding import embed
from zoo.entries.anatomix.model import AnatomixUNet
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.manifest import records
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. Up to 24 convolutions with sums in another order differ by 1e-6, of the wide network by 8e-6."""
WRONG = 0.01
"""What is not the authors' function lies at least so far from it: that the tolerance tells it apart is sure."""
DEV = f"{NAME}.anatomix-dev"
SMALL = (32, 32, 32)
"""The smallest volume that the network takes."""
TINY = {"width": 4, "depth": 2, "outputs": 5, "norm_layer": "instance", "bias": True}
"""A form that no published file has."""


@pytest.fixture(scope="module")
def state():
    """The tensors of anatomix.pth."""
    return filled_network()


@pytest.fixture(scope="module")
def published(scratch, state):
    """The published file's form."""
    path = scratch / "anatomix.pth"
    torch.save(state, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(published):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(NAME, checkpoint=published)


@pytest.fixture(scope="module")
def dev_file(scratch):
    """The published form of anatomix-dev.pth, 378 MB."""
    path = scratch / "anatomix-dev.pth"
    torch.save(filled(DEV_KEYS), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def dev(dev_file):
    """Loaded once."""
    return zoo.load_model(NAME, checkpoint=dev_file, mmap=True)


@pytest.fixture(scope="module")
def tiny_file(scratch):
    """A small network of another form, for tests that run many."""
    torch.manual_seed(0)
    path = scratch / "tiny.pth"
    torch.save(AnatomixUNet(**TINY, pooling="average", upsampling="trilinear").state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def tiny(tiny_file):
    """Loaded once."""
    return zoo.load_model(NAME, checkpoint=tiny_file)


def load(path, **options):
    return zoo.load_model(NAME, checkpoint=path, mmap=True, **options)


def volumes(count=1, sides=(16, 8, 8)):
    """Volumes of unequal brightness."""
    drawn = torch.rand(count, 1, *sides, generator=torch.Generator().manual_seed(0))
    return drawn / torch.arange(1, count + 1).reshape(-1, 1, 1, 1, 1)


def error(model, upto=None):
    """Distance of the features of the reference's first volume, or of the map below all poolings of both."""
    with torch.no_grad():
        if upto is None:
            return relative_error(model(reference_input()[:1])[..., ::3, ::3, ::3], reference()["features"][:1])
        return relative_error(model.model[:upto](reference_input(dev=True))[:, ::4], reference(dev=True)["bottleneck"])


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors(model):
    """Features of every voxel, and the map below all poolings."""
    seen = []
    hook = model.model[36].register_forward_hook(lambda module, given, map_: seen.append(map_))
    features, theirs = model(reference_input()), reference()
    hook.remove()
    assert features.shape == (2, 16, 32, 32, 48)
    assert relative_error(features[..., ::3, ::3, ::3], theirs["features"]) < TOLERANCE
    assert relative_error(seen[0], theirs["bottleneck"]) < TOLERANCE
    assert torch.equal(model.forward_features(reference_input()), features)


@pytest.mark.slow
@torch.no_grad()
def test_outputs_of_dev_are_the_authors(dev):
    """The wide network, with other norms, poolings and interpolation, which its file does not tell.

    Their float32 outputs lie 1.6e-5 from the same network in float64, and ours about as far, processor by processor.
    """
    features, theirs = dev(reference_input(dev=True)), reference(dev=True)
    assert features.shape == (1, 32, 64, 64, 96)
    assert relative_error(features[..., ::6, ::6, ::6], theirs["features"]) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"eps": 1e-2}, {"pooling": "average"}, {"upsampling": "trilinear"}])
def test_another_choice_is_another_function(wrong, published):
    """Each of the three that no file tells, with the same tensors."""
    assert error(load(published, **wrong)) > WRONG


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"eps": 1e-5}, {"pooling": "max"}])
def test_another_choice_is_another_function_of_dev(wrong, dev, dev_file):
    """Seen below all poolings, where the right one is the authors'."""
    assert error(load(dev_file, **wrong), upto=44) > WRONG


@pytest.mark.slow
def test_zeros_around_the_volume_are_another_function(model):
    """The authors reflect it at its borders, and so at those of all maps."""
    padded = copy.deepcopy(model)
    for module in padded.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.padding_mode = "zeros"
    assert error(model) < TOLERANCE
    assert error(padded) > WRONG


@pytest.mark.slow
def test_the_skipped_map_comes_first(model, monkeypatch):
    """With the upsampled one before it the shapes fit, too."""
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors, dim=0: cat(tensors[::-1], dim=dim))
    assert error(model) > WRONG


@pytest.mark.slow
@torch.no_grad()
def test_training_mode_is_another_function_of_anatomix_alone(model, tiny):
    """Its norms take the statistics of the batch there; norms of each volume compute the same in both."""
    assert error(copy.deepcopy(model).train()) > 1
    assert torch.equal(tiny(volumes(2)), copy.deepcopy(tiny).train()(volumes(2)))


@pytest.mark.slow
@torch.no_grad()
def test_features_do_not_depend_on_neighbours(model, tiny):
    """Of a volume in any batch, and of other values beside it; sums in another order differ by some 1e-6."""
    for network, sides in ((model, SMALL), (tiny, (16, 8, 8))):
        x = volumes(3, sides)
        together = network(x)
        for i in range(3):
            assert relative_error(together[i : i + 1], network(x[i : i + 1]).numpy()) < TOLERANCE
        assert relative_error(network(torch.stack([x[0], 9 * x[1]]))[:1], together[:1].numpy()) < TOLERANCE


@torch.no_grad()
def test_features_are_normalised_over_the_channels_on_request(tiny_file, tiny):
    """Unit length, or mean 0 and deviation 1 of the channels of each voxel; never by default, never before a head."""
    x = volumes()
    raw = tiny(x)
    unit = load(tiny_file, normalise="l2")
    torch.testing.assert_close(unit(x), raw / raw.square().sum(dim=1, keepdim=True).sqrt())
    standard = load(tiny_file, normalise="standard")(x)
    torch.testing.assert_close(standard, (raw - raw.mean(dim=1, keepdim=True)) / raw.var(1, False, keepdim=True).sqrt())
    assert torch.equal(unit.forward_features(x), raw)
    unit.head = torch.nn.Conv3d(5, 2, kernel_size=1)
    assert torch.equal(unit(x), unit.head(raw))


def test_every_parameter_gets_a_gradient(tiny_file):
    """Nothing lies idle, so that DistributedDataParallel works."""
    model = load(tiny_file, num_classes=2).train()
    (model(volumes()) ** 2).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# --- sizes and options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (1, 1, 64, 60, 32),
            r"64 x 60 x 32 voxels; multiples of 16, at least 32, are expected, next 64 x 64 x 32",
        ),
        ((1, 1, 16, 16, 48), r"next 32 x 32 x 48"),
        ((2, 1, 0, 32, 512), r"next 32 x 32 x 512"),
        ((1, 32, 32, 32), r"volumes \(N, C, x, y, z\) are expected.*x\[None\]"),
        ((1, 3, 32, 32, 32), r"3 channel\(s\), the network takes 1.*in_channels=3"),
    ],
)
def test_sizes_that_the_network_cannot_take_are_said(shape, said):
    """With the next size that it takes, before anything is computed, in training too."""
    with torch.device("meta"):
        network = AnatomixUNet()
        for mode in (True, False):
            with pytest.raises(InputContractError, match=said):
                network.train(mode)(torch.empty(shape))
        assert network(torch.empty(1, 1, 32, 48, 64)).shape == (1, 16, 32, 48, 64)


def test_five_poolings_want_larger_volumes():
    """Reflection needs two voxels in the smallest map."""
    with torch.device("meta"):
        network = AnatomixUNet(depth=5)
        assert network(torch.empty(1, 1, 64, 96, 64)).shape == (1, 16, 64, 96, 64)
        with pytest.raises(InputContractError, match="multiples of 32, at least 64, are expected, next 64 x 96 x 64"):
            network(torch.empty(1, 1, 32, 80, 64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "mean"}, "pooling='mean': expected 'max', 'average'"),
        ({"upsampling": "linear"}, "upsampling='linear': expected 'nearest', 'trilinear'"),
        ({"norm_layer": "group"}, "norm_layer='group'"),
        ({"normalise": "L2"}, "normalise='L2': expected None, 'l2', 'standard'"),
        ({"eps": 0}, "eps=0: expected a number above 0"),
        ({"eps": "1e-5"}, "eps='1e-5'"),
        ({"width": 0}, "width=0: expected a whole number"),
        ({"depth": 4.0}, "depth=4.0"),
        ({"eps": float("nan")}, "eps=nan"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    """With what is expected."""
    with pytest.raises(OptionError, match=said):
        zoo.load_model(NAME, pretrained=False, **options)


# --- what a file does not tell ----------------------------------------------------------------------------------------


def facts_of(shapes):
    """What the entry reads off a file."""
    return get_entry(NAME).convert(on_meta(shapes))[1]


@pytest.mark.parametrize(
    ("shapes", "form", "assumed", "where"),
    [
        (KEYS, (16, 4, 16, "batch", False), (1e-5, "max", "nearest"), "in anatomix.pth"),
        (DEV_KEYS, (32, 5, 32, "instance", True), (1e-2, "average", "trilinear"), "since 2026-07-20"),
        (old_dev_shapes(), (20, 5, 16, "instance", True), (1e-5, "average", "trilinear"), "before 2026-07-20"),
    ],
)
def test_the_three_published_forms_are_told_apart(shapes, form, assumed, where):
    """By their tensors; eps, pooling and upsampling are those of the form."""
    facts = facts_of(shapes)
    assert tuple(facts[name] for name in ("width", "depth", "outputs", "norm_layer", "bias")) == form
    assert tuple(facts["assumed"].values()) == assumed
    assert all(where in text and f"pass {option}=" in text for option, text in facts["unclear"].items())
    assert set(facts["unclear"]) == {"eps", "pooling", "upsampling"}
    network = build_network(get_entry(NAME), {**get_entry(NAME).config, **facts, **facts["assumed"]})
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == {
        name: tuple(shape) for name, shape in shapes.items()
    }


def test_the_old_dev_network_has_its_parameters():
    """36 862 576, as it was published."""
    assert sum(tensor.numel() for tensor in on_meta(old_dev_shapes()).values()) == 36_862_576


def test_a_file_that_does_not_say_is_warned_of(published, caplog):
    """Once for each of the three; the report says what was taken, and an option settles it."""
    report = zoo.load_report(load(published))
    assert report.options == {"eps": 1e-5, "pooling": "max", "upsampling": "nearest"}
    assert set(report.said_by.values()) == {"not said, so the default was taken"}
    assert [re.search(r"does not say its (\w+): .* as in anatomix\.pth", w)[1] for w in warnings(caplog)] == [
        "eps",
        "pooling",
        "upsampling",
    ]
    caplog.clear()
    settled = load(published, eps=1e-3, pooling="max", upsampling="nearest")
    assert warnings(caplog) == []
    assert settled.model[1].eps == 1e-3


@pytest.mark.slow
def test_a_tag_of_this_form_says_it(dev, dev_file, caplog):
    """Then nothing is assumed, and nothing warned of."""
    named = zoo.load_model(DEV, checkpoint=dev_file, mmap=True)
    report = zoo.load_report(named)
    assert (
        report.options == zoo.load_report(dev).options == {"eps": 1e-2, "pooling": "average", "upsampling": "trilinear"}
    )
    assert set(report.said_by.values()) == {"the tag that was named"}
    assert warnings(caplog) == []
    assert isinstance(named.model[9], torch.nn.AvgPool3d)


@pytest.mark.slow
def test_a_tag_of_another_form_is_not_believed(published, caplog):
    """`anatomix.pth` under the name of the other network is still itself, with a warning, and not a mixture of both."""
    named = zoo.load_model(DEV, checkpoint=published)
    assert error(named) < TOLERANCE
    assert len(warnings(caplog)) == 3
    assert zoo.load_report(named).options == {"eps": 1e-5, "pooling": "max", "upsampling": "nearest"}


def test_a_tag_says_how_random_networks_are_built():
    """The whole form, as for training from scratch."""
    network = zoo.load_model(DEV, pretrained=False, width=2)
    assert (network.depth, network.outputs, network.model[1].eps) == (5, 32, 1e-2)
    assert isinstance(network.model[1], torch.nn.InstanceNorm3d)
    assert network.model[-1].bias is not None


def test_a_form_that_nobody_published_is_said_to_be_one(tiny, tiny_file, caplog):
    """It loads as its tensors say, with what comes closest assumed."""
    assert zoo.load_report(tiny).options == {"eps": 1e-5, "pooling": "average", "upsampling": "trilinear"}
    assert (tiny.depth, tiny.outputs) == (2, 5)
    load(tiny_file)
    assert all("published files with instance norms, none of which has this form" in w for w in warnings(caplog))
    assert len(warnings(caplog)) == 3


@pytest.mark.slow
def test_a_header_says_it(zoo, published, model, tmp_path, caplog):
    """`zoo export` of a file that says nothing leaves it unsaid; a header is obeyed, and not contradicted."""
    out = tmp_path / "unet.safetensors"
    code, _, err = zoo("export", NAME, out, "--checkpoint", published)
    assert code == 0, err
    assert set(zoo_report(load(out)).said_by.values()) == {"not said, so the default was taken"}
    options = {"eps": 0.5, "pooling": "average", "upsampling": "trilinear"}
    export_safetensors(model, out, metadata={"model": NAME, "options": json.dumps(options)})
    caplog.clear()
    told = load(out)
    assert zoo_report(told).options == options
    assert told.model[1].eps == 0.5
    assert isinstance(told.model[9], torch.nn.AvgPool3d)
    assert warnings(caplog) == []
    with pytest.raises(CheckpointMismatchError, match=r"eps is contradicted: 0\.5 \(the file's header\), 1e-05"):
        load(out, eps=1e-5)


def zoo_report(model):
    """The report, where a fixture has the package's name."""
    return zoo.load_report(model)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_the_same(form, state, saved):
    """All 115 tensors, buffers included, whatever the file wraps around them."""
    network = load(saved(FORMS[form](state)))
    report = zoo.load_report(network)
    assert same(network.state_dict(), state)
    assert (len(report.loaded), report.adapted, report.fresh) == (115, {}, {})
    assert len(report.dropped) == (form == "a Lightning attribute")


@pytest.mark.parametrize("form", FINE_TUNED_FORMS)
def test_every_fine_tuned_form_loads_with_its_head(form, state, saved):
    """As the authors' script saves it; without being asked, as many classes as the file has."""
    network = load(saved(FINE_TUNED_FORMS[form](state)))
    assert zoo.load_report(network).dropped == {}
    assert same(network.state_dict(), state | {f"head.{n.rpartition('.')[2]}": t for n, t in head().items()})


@torch.no_grad()
def test_the_head_is_the_authors(tiny, saved):
    """A convolution of the features as they are; for other classes it is fresh, with 0 there is none."""
    path, x = saved(fine_tuned(tiny.state_dict(), outputs=5)), volumes()
    logits = torch.nn.functional.conv3d(tiny(x), *head(5).values())
    torch.testing.assert_close(load(path)(x), logits)
    assert logits.shape == (1, CLASSES, 16, 8, 8)
    other = load(path, num_classes=2)
    assert set(zoo.load_report(other).fresh) == {"head.weight", "head.bias"}
    assert other(x).shape == (1, 2, 16, 8, 8)
    bare = load(path, num_classes=0)
    assert torch.equal(bare(x), tiny(x))
    assert set(zoo.load_report(bare).dropped) == {"head.weight", "head.bias"}


@torch.no_grad()
def test_a_fresh_head_stands_on_the_features(tiny_file, tiny, saved):
    """With a bias; what it saves loads again without being asked for."""
    network = load(tiny_file, num_classes=4)
    assert set(zoo.load_report(network).fresh) == {"head.weight", "head.bias"}
    assert (network.head.kernel_size, network.head.weight.shape) == ((1, 1, 1), (4, 5, 1, 1, 1))
    x = volumes()
    torch.testing.assert_close(network(x), network.head(tiny(x)))
    again = load(saved(network.state_dict()))
    assert not zoo.load_report(again).fresh
    assert torch.equal(again(x), network(x))


def test_a_head_of_another_kind_is_dropped_with_a_warning(tiny, saved, caplog):
    """Rather than logits that are features."""
    load(saved(tiny.state_dict() | {"head.2.weight": torch.ones(3)}))
    assert "the file's head was dropped. head.2.weight" in warnings(caplog)[-1]


def test_own_files_load_again_and_fit_the_authors_class(model, saved):
    """What our network saves has the authors' names, buffers included, so that their class takes it strictly."""
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == KEYS
    assert same(load(saved(model.state_dict())).state_dict(), model.state_dict())


def test_conversion_is_pure_and_idempotent(state):
    """What a network saved goes through unchanged; the argument is left alone."""
    names = list(state)
    once, facts = get_entry(NAME).convert(state)
    assert list(state) == names
    assert same(once, state)
    tuned, again = get_entry(NAME).convert(fine_tuned(state))
    assert same(get_entry(NAME).convert(tuned)[0], tuned)
    assert again == facts | {"num_classes": CLASSES}


@pytest.mark.parametrize("stray", ["model.2.weight", "model.66.running_mean", "netF.mlp_0.0.weight", "model.3.extra"])
def test_a_tensor_that_the_network_does_not_have_is_refused(stray, state, saved):
    """What stands behind the network's prefix is named, not passed over."""
    path = saved(behind("module.", state | {stray: torch.ones(3)}))
    with pytest.raises(CheckpointMismatchError, match=rf"unexpected \(1\): {re.escape(stray)}"):
        load(path)


@pytest.mark.parametrize("lost", ["model.0.weight", "model.31.weight", "model.63.running_var", "model.65.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(lost, state, saved):
    """One of 115 is enough."""
    path = saved(behind("module.", {name: tensor for name, tensor in state.items() if name != lost}))
    with pytest.raises(CheckpointMismatchError, match=rf"114 of the 115 required .*\n.*missing \(1\): {lost}"):
        load(path)


@pytest.mark.slow
def test_files_of_other_networks_are_called_by_their_names(saved):
    """The authors' transformer, and another family's network."""
    path = saved({"state_dict": behind("model.", transformer())})
    with pytest.raises(CheckpointMismatchError, match=r"Primus transformer .* as anatomix-dev-vit"):
        load(path)
    assert zoo.inspect_checkpoint(path).matches == ()
    with pytest.raises(CheckpointMismatchError, match="load_model\\('caid-resnet50-unet'"):
        load(saved(filled_unet()))


@pytest.mark.parametrize("content", [FORMS["compiled"], FINE_TUNED_FORMS["in DDP"]])
def test_inspection_guesses_the_right_model(content, state, saved):
    """No other, and says what the file leaves open."""
    (match,) = zoo.inspect_checkpoint(saved(content(state))).matches
    assert (match.model, match.complete) == (NAME, True)
    assert match.matched == match.needed == 115 + 2 * bool(match.head)
    assert set(match.unclear) == {"eps", "pooling", "upsampling"}


def test_two_networks_in_one_file_are_refused(state, saved):
    """Which one is meant is for the user to say."""
    with pytest.raises(CheckpointMismatchError, match=r"several copies of the network, behind 'a\.' and 'b\.'"):
        load(saved(behind("a.", state) | behind("b.", state)))


@torch.no_grad()
def test_channels_are_adapted(tiny_file, tiny):
    """A volume given several times over gives the same features."""
    three = load(tiny_file, in_channels=3)
    assert zoo.load_report(three).adapted == {"model.0.weight": "1 input channels repeated to 3"}
    x = volumes()
    assert relative_error(three(x.expand(-1, 3, -1, -1, -1)), tiny(x).numpy()) < TOLERANCE


def test_stages_learn_the_more_slowly_the_nearer_to_the_input(published):
    """All parameters are in a stage, in the order in which they are used; a fresh head learns at the full rate."""
    groups = zoo.param_groups(load(published, num_classes=2), lr=1.0, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    firsts = [f"model.{i}" for i in (0, 3, 10, 17, 24, 31, 38, 45, 52)]
    assert rates == {**{name: 0.5 ** (9 - i) for i, name in enumerate(firsts)}, "model": 1.0, "fresh": 1.0}
    assert sum(len(group["params"]) for group in groups) == 60


def test_there_are_no_pooled_features(tmp_path):
    """The authors define none: what would embed says so, and names no other model of the family."""
    with pytest.raises(OptionError, match=r"has no pooled features: .*\. No model of its family gives any"):
        embed(NAME, [tmp_path])


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_records_are_of_this_network():
    """The paper's network is what the plain name loads; what no file tells is on record of both."""
    plain, dev = records(NAME)
    assert (plain.tag, dev.tag) == ("anatomix", "anatomix-dev")
    assert zoo.model_info(NAME).name == f"{NAME}.anatomix"
    assert (plain.git_blob, plain.bytes) == ("d13b2f335850a0a3a9042dcaf9a7181631098b80", None)
    assert plain.allows("commercial")
    assert plain.allows("redistribute")
    assert not dev.allows("commercial")
    for record, shapes in ((plain, KEYS), (dev, DEV_KEYS)):
        kept, facts = get_entry(NAME).convert(on_meta(shapes))
        assert record.fingerprint[NAME] == fingerprint(kept)
        told = {name: value for name, value in facts.items() if name not in ("assumed", "unclear")}
        assert record.options == told | facts["assumed"]


@pytest.mark.slow
def test_published_weights_are_checked_by_their_digest_of_git(published, state, tmp_path, monkeypatch, caplog):
    """And loaded without a warning, for the record says what the file does not."""
    content = published.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    known = next(record for record in records(NAME))
    facts = {"tag": "anatomix", "models": [NAME], "state": "hosted", "trained_by": "authors", "bytes": None}
    facts |= {"sha256": None, "git_blob": blob, "options": dict(known.options), "sources": [f"file:{published}"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": 1, "weights": [facts]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(path))
    network = zoo.load_model(NAME)
    assert same(network.state_dict(), state)
    assert set(zoo.load_report(network).said_by.values()) == {"the record of the weights"}
    assert warnings(caplog) == []
    path.write_text(json.dumps({"schema": 1, "weights": [facts | {"git_blob": "0" * 40}]}))
    with pytest.raises(zoo.errors.IntegrityError):
        zoo.load_model(NAME, cache_dir=tmp_path / "other")


def test_weights_that_must_be_fetched_by_hand_say_where():
    """The page, and the command that takes the file."""
    with pytest.raises(zoo.errors.WeightsUnavailableError, match=r"huggingface\.co/neeldey/anatomix") as caught:
        zoo.load_model(DEV)
    assert f"`zoo import {DEV} FILE`" in str(caught.value)
