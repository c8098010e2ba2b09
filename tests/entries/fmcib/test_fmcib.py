"""FMCIB's network: the authors' outputs, the stride, every form of file, heads, other networks, the record."""

import re

import pytest
import torch
from caid_files import behind, relative_error
from fmcib_files import (
    FORMS,
    HEADS,
    KEYS,
    NAME,
    filled,
    head,
    is_numbered,
    lighter,
    numbered,
    reference,
    reference_input,
)
from monai.networks.nets import resnet50
from safetensors.torch import save_file
from texts import warnings

import zoo
from zoo.checkpoint import RECORD, build_network, settle
from zoo.checkpoint.coverage import compare
from zoo.checkpoint.export import fingerprint
from zoo.checkpoint.settling import silences
from zoo.entries.fmcib.model import FMCIBResNet
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.evaluation.training_ids import training_ids_of
from zoo.formats import open_checkpoint
from zoo.loading import full_state
from zoo.manifest import records
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. Fifty convolutions with sums in another order differ by some 1e-6; any wrong variant by more than 0.1."""
WRONG = 0.1
BIASES = {f"layer{i}.0.downsample.0.bias" for i in range(1, 5)}


def load(path, **options):
    return zoo.load_model(NAME, checkpoint=path, **options)


@pytest.fixture(scope="module")
def network():
    """The network with the reference values, 738 MB, made once."""
    with torch.device("meta"):
        model = FMCIBResNet()
    model.load_state_dict(filled(KEYS), strict=True, assign=True)
    return model.eval()


@pytest.fixture
def on_meta():
    """The network without values."""

    def build(**options):
        return build_network(get_entry(NAME), {**get_entry(NAME).config, **options})

    return build


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors(network):
    """Map and features; a volume's do not depend on the other one in its batch."""
    x, theirs = reference_input(), reference()
    found = network.forward_features(x)
    assert found.shape == (2, 4096, 2, 2, 2)
    assert relative_error(found[:, ::8], theirs["map"]) < TOLERANCE
    pooled = found.mean(dim=(2, 3, 4))
    assert relative_error(pooled, theirs["pooled"]) < TOLERANCE
    assert pooled.min() >= 0
    alone = network(x[:1])
    assert relative_error(alone, theirs["pooled"][:1]) < TOLERANCE
    assert torch.equal(network(x[:1]), alone)


@pytest.mark.slow
@torch.no_grad()
def test_what_is_not_the_authors_function_is_told_apart(network):
    """Axes in the order (x, y, z), the maximum for the mean, no biases in the shortcuts; all from one volume."""
    x, pooled = reference_input()[1:], reference()["pooled"][1:]
    assert relative_error(network(x.transpose(2, 4)), pooled) > WRONG
    assert relative_error(network.forward_features(x).amax(dim=(2, 3, 4)), pooled) > WRONG
    kept = {name: network.get_parameter(name).clone() for name in BIASES}
    try:
        for name in BIASES:
            network.get_parameter(name).zero_()
        assert relative_error(network(x), pooled) > 10 * TOLERANCE
    finally:
        for name, values in kept.items():
            network.get_parameter(name).copy_(values)


@pytest.mark.slow
@torch.no_grad()
def test_the_other_stride_is_another_function(network):
    """Of the same tensors, so that only the option tells: 1 is far away, in shape too."""
    x, pooled = reference_input()[1:], reference()["pooled"][1:]
    with torch.device("meta"):
        other = FMCIBResNet(stride=1).eval()
    other.load_state_dict(network.state_dict(), strict=True, assign=True)
    assert relative_error(other(x), pooled) > WRONG
    assert other.conv1.stride == (1, 1, 1)


@pytest.mark.slow
def test_the_network_is_monais():
    """Names and shapes, with a linear head too; both ways, and with the figures of the paper's network."""
    options = {"n_input_channels": 1, "widen_factor": 2, "conv1_t_stride": 2, "bias_downsample": True}
    with torch.device("meta"):
        for classes in (0, 5):
            ours = FMCIBResNet(num_classes=classes).state_dict()
            theirs = resnet50(feed_forward=bool(classes), num_classes=classes or 400, **options).state_dict()
            assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
            assert FMCIBResNet(num_classes=classes).conv1.stride == (2, 2, 2)
    assert len(KEYS) == 322


@pytest.mark.parametrize("shape", [(1, 50, 50, 50), (1, 3, 50, 50, 50), (2, 1, 0, 50, 50)])
def test_other_axes_and_channels_are_refused(shape, on_meta):
    """Before anything is computed."""
    with pytest.raises(InputContractError, match=re.escape(f"the input has the shape {shape}")):
        on_meta().eval()(torch.empty(shape, device="meta"))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(form, saved, on_meta):
    """All 322 tensors in their places and nothing else, whatever the file wraps around them."""
    state, facts = get_entry(NAME).convert(open_checkpoint(saved(FORMS[form](numbered()))).tensors)
    assert is_numbered(state)
    assert set(facts) == {"unclear"}
    assert compare(on_meta().state_dict(), state, get_entry(NAME)).complete


@pytest.mark.slow
def test_a_file_that_does_not_say_its_stride_gets_that_of_the_pretraining(saved, tmp_path, caplog):
    """With a warning that names the other; a header or an option says it, and a contradiction is refused."""
    path = saved({"trunk_state_dict": numbered()})
    model = load(path)
    report = zoo.load_report(model)
    assert is_numbered(model.state_dict())
    assert (len(report.loaded), report.adapted, report.fresh, report.dropped) == (322, {}, {}, {})
    assert model.conv1.stride == (2, 2, 2)
    assert ["does not say its stride: 2 is taken" in line for line in warnings(caplog)] == [True]
    caplog.clear()
    other = load(path, stride=1)
    assert (other.conv1.stride, warnings(caplog)) == ((1, 1, 1), [])
    told = tmp_path / "told.safetensors"
    tensors = {name: torch.empty_like(t).copy_(t) for name, t in numbered().items() if t.numel() < 10}
    save_file(tensors, told, metadata={"model": NAME, "options": '{"stride": 1}'})
    with pytest.raises(CheckpointMismatchError, match=r"stride is contradicted: 1 \(the file's header\), 2 \(as asked"):
        load(told, stride=2)
    for wrong in (3, True, "2"):
        with pytest.raises(OptionError, match=r"stride=.*: expected 1 or 2"):
            load(path, stride=wrong)


def test_conversion_is_pure_and_idempotent():
    """What a network saved goes through unchanged; the argument is left alone."""
    given = lighter(numbered(), HEADS["two"])["state_dict"]
    names = list(given)
    once, facts = get_entry(NAME).convert(given)
    assert list(given) == names
    assert set(once) == {*KEYS, *(f"fc.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias"))}
    again, same = get_entry(NAME).convert(once)
    assert (list(again), same) == (list(once), facts)


@pytest.mark.parametrize(
    ("stray", "said"),
    [
        ({"layer4.3.conv1.weight": (2, 2)}, r"unexpected \(1\): layer4\.3\.conv1\.weight"),
        ({"heads.0.1.weight": (2, 2)}, r"unexpected \(1\): heads\.0\.1\.weight"),
        ({"fc.weight": (400, 4096), "projection.weight": (2, 2)}, r"unexpected \(1\): projection\.weight"),
    ],
)
def test_a_tensor_that_the_network_does_not_have_is_refused(stray, said, saved):
    """What stands behind the network's prefix is named, not passed over as in the authors' code."""
    with pytest.raises(CheckpointMismatchError, match=said):
        load(saved(behind("module.", numbered() | {n: torch.ones(shape) for n, shape in stray.items()})))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["layer1.0.downsample.0.bias", "layer4.2.bn3.running_var", "bn1.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(lost, saved):
    """One bias of a shortcut is enough, which the authors' strict=False never notices."""
    state = numbered()
    del state[lost]
    with pytest.raises(CheckpointMismatchError, match=rf"missing \(1\): {re.escape(lost)}"):
        load(saved({"trunk_state_dict": state}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widen_factor": 1}, "3D ResNet-50 whose first convolution has 64 channels, as that of Med3D"),
        ({"widen_factor": 2, "bias_downsample": False}, r"no biases in its shortcuts \(bias_downsample=False\)"),
        ({"widen_factor": 1, "spatial_dims": 2}, "2D ResNet-50"),
    ],
)
def test_other_residual_networks_are_called_by_their_names(options, said, saved):
    """They have the same names, but for the biases; none is taken for this one by inspection either."""
    with torch.device("meta"):
        state = resnet50(n_input_channels=1, feed_forward=False, **options).state_dict()
    zeros = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}
    path = saved({"state_dict": zeros, "optimizer": torch.zeros(1_000_000)})
    with pytest.raises(CheckpointMismatchError, match=said):
        load(path)
    assert NAME not in [match.model for match in zoo.inspect_checkpoint(path).matches]


@pytest.mark.slow
def test_inspection_guesses_the_right_model(saved):
    """This one and no other, and it says that the stride is open."""
    matches = zoo.inspect_checkpoint(saved(FORMS["model_weights.torch"](numbered()))).matches
    assert [(match.model, match.matched) for match in matches if match.complete] == [(NAME, 322)]
    assert matches[0].model == NAME
    assert set(matches[0].unclear) == {"stride"}


def test_the_file_of_another_family_is_refused(unet_state, saved):
    """CAiD's ResNet-50, whose names are nearly the same."""
    encoder = {n.removeprefix("encoder."): t for n, t in unet_state.items() if n.startswith("encoder.")}
    with pytest.raises(CheckpointMismatchError, match="2D ResNet-50"):
        load(saved(encoder))


# --- heads and channels -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("layers", HEADS)
def test_heads_of_the_authors_fine_tuning_are_read(layers, on_meta):
    """Linear layers with a ReLU between them, as their `LoadModel` builds them."""
    widths = HEADS[layers]
    state, facts = get_entry(NAME).convert(lighter(numbered(), widths)["state_dict"])
    assert (facts["num_classes"], facts["hidden"]) == (widths[-1], widths[1:-1])
    model = on_meta(**facts)
    assert compare(model.state_dict(), state, get_entry(NAME)).complete
    model.load_state_dict(state, strict=True, assign=True)
    x, values = torch.rand(2, 4096, generator=torch.Generator().manual_seed(0)), list(head(widths).values())
    expected = torch.nn.functional.linear(x, *values[:2])
    for i in range(2, len(values), 2):
        expected = torch.nn.functional.linear(expected.relu(), *values[i : i + 2])
    torch.testing.assert_close(model.fc(x), expected)


@pytest.mark.slow
def test_other_classes_are_fresh(saved, caplog):
    """The whole head is dropped and made anew, with its layers."""
    model = load(saved(lighter(numbered(), HEADS["two"])), num_classes=5)
    assert model.fc[2].out_features == 5
    assert set(zoo.load_report(model).fresh) == {f"fc.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")}
    assert any("the head does not fit" in line for line in warnings(caplog))


@pytest.mark.slow
def test_channels_are_adapted(saved):
    """Three channels share the one."""
    model = load(saved(numbered()), in_channels=3)
    assert zoo.load_report(model).adapted == {"conv1.weight": "1 input channels repeated to 3"}
    torch.testing.assert_close(model.conv1.weight.sum(1, keepdim=True), numbered()["conv1.weight"])


@pytest.mark.slow
def test_stages_learn_the_more_slowly_the_nearer_to_the_input(saved):
    """All parameters are in a stage, in the order in which they are used; a fresh head learns at the full rate."""
    model = load(saved(numbered()), num_classes=2)
    assert set(zoo.load_report(model).fresh) == {"fc.weight", "fc.bias"}
    groups = zoo.param_groups(model, lr=1.0, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    names = ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert rates == {**{name: 0.5 ** (4 - i) for i, name in enumerate(names)}, "fresh": 1.0}


def test_exports_fit_the_plain_class(on_meta):
    """`zoo export --full` of a network with one linear layer loads into MONAI's strictly; with more it is refused."""
    model = on_meta(num_classes=5)
    assert full_state(NAME, model).keys() == model.state_dict().keys()
    with pytest.raises(OptionError, match="a head of one linear layer, this network one of several"):
        full_state(NAME, on_meta(num_classes=5, hidden=(2048,)))


# --- the record -------------------------------------------------------------------------------------------------------


def test_the_record_is_of_this_network():
    """Stride 2 is on record; commercial use is not allowed; the list of the training patients can be fetched."""
    (weights,) = records(NAME)
    assert zoo.model_info(NAME).name == f"{NAME}.deeplesion"
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in KEYS.items()}
    assert weights.fingerprint[NAME] == fingerprint(get_entry(NAME).convert(on_meta)[0])
    assert weights.options == {"stride": 2}
    assert weights.sources == ("zenodo:10528450/model_weights.torch",)
    assert not weights.allows("commercial")
    cohort, name = training_ids_of(weights).read("000003_01_01_004-028.nii.gz")
    assert (cohort.name, name.image, name.patient) == ("DeepLesion", "000003_01_01", "000003")


def test_published_weights_need_no_warning_of_their_stride():
    """The record says it, and what asks for another stride is refused."""
    entry = get_entry(NAME)
    said = {RECORD: records(NAME)[0].options}
    assert settle(entry, said, {}) == ({"stride": 2}, {"stride": RECORD})
    assert silences(entry.convert(numbered())[1], {"stride": RECORD}) == {}
    with pytest.raises(CheckpointMismatchError, match="stride is contradicted"):
        settle(entry, said, {"stride": 1})
