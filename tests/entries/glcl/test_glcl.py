"""GLCL's networks: the authors' outputs, their checkpoints of all three stages, moving averages, slices as input."""

import copy
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from caid_files import behind, relative_error
from checkout import CHECKOUT
from glcl_files import (
    AVERAGE,
    KEYS,
    as_trained,
    entry,
    filled,
    rebuild,
    reference,
    reference_slices,
    share,
    stage_two,
    with_averages,
    write_bundle,
)
from parity.fill import tfill
from texts import warnings
from torch.nn import functional as F

import zoo
from zoo.checkpoint.export import fingerprint
from zoo.entries.glcl.convert import ENCODER, from_tensorflow, trained_steps
from zoo.entries.glcl.model import GLCLDecoder, GLCLEncoder, GLCLUNet
from zoo.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    InputContractError,
    OptionError,
    WeightsUnavailableError,
)
from zoo.manifest import packaged_manifest
from zoo.record import read_manifest
from zoo.registry import get_entry
from zoo.transforms.slices import build_slice_transform, crop_or_pad, normalise_percentiles, resample_in_plane

ENCODER_NAME, UNET = "glcl-encoder", "glcl-unet"
TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 1e-6; padding on the other side or another flatten by above 0.1."""
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def unet_bundle(tmp_path_factory):
    """The prefix of the fine-tuned U-Net as TensorFlow saved it."""
    return rebuild(tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def encoder_bundle(scratch):
    """The encoder with its projection head, as after stage 1."""
    return write_bundle(scratch / "train_encoder_wgts_acdc_epochs_10000.ckpt", filled("encoder_pretrain", 3))


@pytest.fixture(scope="module")
def unet(unet_bundle):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(UNET, checkpoint=unet_bundle)


@pytest.fixture
def bundle(tmp_path):
    """Write variables as a bundle, which is removed after the test."""
    yield lambda variables, **options: write_bundle(tmp_path / "model.ckpt", variables, **options)
    for file in tmp_path.glob("model.ckpt*"):
        file.unlink()


def uncounted(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}


def same(ours, theirs):
    """Whether two state dicts have the same names and the same bits, counters of batches aside."""
    ours, theirs = uncounted(ours), uncounted(theirs)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def fresh(model):
    return {name for name in zoo.load_report(model).fresh if not name.endswith(COUNTER)}


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_the_authors(unet):
    """And their Dice loss of all classes, from the checkpoint that TensorFlow wrote."""
    theirs = reference("glcl_seg_0")
    logits = unet(reference_slices())
    assert relative_error(logits.permute(0, 2, 3, 1)[:, ::4, ::4], theirs["logits"]) < TOLERANCE
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 192, 192)))
    target, found = F.one_hot(labels).permute(0, 3, 1, 2).float(), logits.softmax(1)
    overlap = 2 * (target * found).sum((2, 3)) / (target.sum((2, 3)) + found.sum((2, 3)) + 1e-10)
    assert float(1 - overlap.mean()) == pytest.approx(float(theirs["dice_loss_with_background"]), rel=TOLERANCE)


@pytest.mark.slow
@torch.no_grad()
def test_projections_are_the_authors(encoder_bundle):
    """Of the global head; the encoder's features are the mean of the map that it takes."""
    slices = reference_slices("g14", 12)
    projecting = zoo.load_model(ENCODER_NAME, checkpoint=encoder_bundle, projection=True)
    assert relative_error(projecting(slices), reference("glcl_enc_3")["projection"]) < TOLERANCE
    encoder = zoo.load_model(ENCODER_NAME, checkpoint=encoder_bundle)
    last = encoder.forward_features(slices[:2])
    assert last.shape == (2, 128, 6, 6)
    assert torch.equal(encoder(slices[:2]), last.mean((2, 3)))
    assert encoder.num_features == 128
    assert torch.equal(projecting.forward_features(slices[:2]), last)


@pytest.mark.slow
def test_networks_have_the_published_sizes():
    """Numbers of trained values of each stage's network."""

    def count(model, *, without=()):
        return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(without))

    assert count(GLCLEncoder()) == 885_552
    assert [count(GLCLEncoder(size=s, projection=True)) for s in (192, 160)] == [5_735_216, 4_293_424]
    assert [count(GLCLUNet(classes)) for classes in (4, 3, 8)] == [2_095_760, 2_095_616, 2_096_336]
    trained = {b: [count(GLCLDecoder(b, project=p), without="enc_") for p in (True, False)] for b in range(1, 6)}
    assert trained == {
        1: [689_536, 542_080],
        2: [1_198_592, 1_051_136],
        3: [1_244_096, 1_170_368],
        4: [1_237_152, 1_200_288],
        5: [1_223_904, 1_205_472],
    }


@torch.no_grad()
def test_even_kernels_are_padded_at_the_end():
    """A kernel of 2 x 2 looks one pixel down and to the right, as TensorFlow's SAME has it."""
    network = GLCLUNet(0, blocks=1).eval()
    layer = network.dec_dc6
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[:, :, 1, 1] = torch.eye(128)
    seen = {}
    layer.register_forward_hook(lambda _, inputs, output: seen.update(given=inputs[0], made=output))
    network(torch.rand(1, 1, 64, 64))
    given = seen["given"][:, :, :-1, :-1]
    assert torch.equal(seen["made"][:, :, :-1, :-1], given[:, :, 1:, 1:])
    assert not seen["made"][:, :, -1].any()
    assert not seen["made"][:, :, :, -1].any()


@pytest.mark.slow
@torch.no_grad()
def test_slices_of_160_pixels(bundle):
    """The width of the projection head says the size; its weights are in the order row, column, channel."""
    shapes = KEYS["encoder_pretrain"] | {"reg_nn1/kernel": [3200, 1024]}
    variables = {name: tfill(name, shape, 3) for name, shape in shapes.items()}
    path = bundle(variables)
    model = zoo.load_model(ENCODER_NAME, checkpoint=path, projection=True)
    assert model.size == 160
    slices = reference_slices("small", 2, 160)
    flat = model.forward_features(slices).permute(0, 2, 3, 1).reshape(2, -1).numpy()
    expected = np.maximum(flat @ variables["reg_nn1/kernel"], 0) @ variables["reg_pred/kernel"]
    assert relative_error(model(slices), expected) < TOLERANCE
    with pytest.raises(InputContractError, match="192 x 192 pixels: the projection head is for 160 x 160"):
        model(torch.zeros(1, 1, 192, 192))
    with pytest.raises(CheckpointMismatchError, match=r"reg_nn1\.weight is 1024x3200 in the file, 1024x4608 expected"):
        zoo.load_model(ENCODER_NAME, checkpoint=path, projection=True, size=192)


# --- checkpoints of all stages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prefix", "index", "folder"])
def test_every_way_to_name_a_checkpoint(form, unet, unet_bundle):
    """All tensors are loaded, nothing is fresh, nothing dropped."""
    index = unet_bundle.with_name(f"{unet_bundle.name}.index")
    path = {"prefix": unet_bundle, "index": index, "folder": unet_bundle.parent}[form]
    model = zoo.load_model(UNET, checkpoint=path)
    assert same(model.state_dict(), unet.state_dict())
    report = zoo.load_report(model)
    assert (len(report.loaded), fresh(model), report.adapted, report.dropped) == (169, set(), {}, {})


def test_the_encoder_of_every_stage(bundle, unet, unet_bundle):
    """Without what is not its own, of which the report says what it is."""
    encoder = zoo.load_model(ENCODER_NAME, checkpoint=unet_bundle)
    ours = {name: tensor for name, tensor in unet.state_dict().items() if name.startswith("enc_")}
    assert same(encoder.state_dict(), ours)
    assert set(zoo.load_report(encoder).dropped.values()) == {"decoder: not part of the encoder"}
    variables = stage_two(2)
    again = zoo.load_model(ENCODER_NAME, checkpoint=bundle(variables))
    assert np.array_equal(again.enc_c6_b.weight.detach(), variables["enc_c6_b/W"].transpose(3, 2, 0, 1))


@pytest.mark.parametrize("blocks", range(1, 6))
@pytest.mark.parametrize("project", [True, False])
def test_decoders_fill_what_they_have(blocks, project, bundle, caplog):
    """Encoder and first blocks from stage 2; the rest of the U-Net, which the local head is no part of, is fresh."""
    variables = stage_two(blocks, project=project)
    model = zoo.load_model(UNET, checkpoint=bundle(variables))
    layers = [layer for layer in from_tensorflow_layers(variables) if not layer.startswith("seg_")]
    state = model.state_dict()
    assert {name.partition(".")[0].removesuffix("_bn") for name in fresh(model)} == {
        name.partition(".")[0].removesuffix("_bn") for name in state
    } - set(layers)
    for layer in layers:
        assert np.array_equal(state[f"{layer}.weight"], variables[f"{layer}/W"].transpose(3, 2, 0, 1))
    assert {why for name, why in zoo.load_report(model).dropped.items()} == {
        "head, which was not asked for or is that of the local loss"
    }
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 4, 32, 32)
    assert "not in the file, so untrained" in warnings(caplog)[0]
    assert COUNTER not in warnings(caplog)[0]


def from_tensorflow_layers(variables):
    return {name.split("/")[0] for name in variables}


@torch.no_grad()
def test_decoders_without_a_head(bundle):
    """The map of the last block in the file, or of the one that is asked for."""
    path = bundle(stage_two(3))
    slices = reference_slices(side=96)
    pretrained = zoo.load_model(UNET, checkpoint=path, num_classes=0)
    assert pretrained.blocks == 3
    assert fresh(pretrained) == set()
    assert pretrained(slices).shape == (2, 64, 24, 24)
    shorter = zoo.load_model(UNET, checkpoint=path, num_classes=0, blocks=1)
    assert shorter(slices).shape == (2, 128, 6, 6)
    assert "block of the decoder that is not asked for" in zoo.load_report(shorter).dropped.values()
    with pytest.raises(OptionError, match="blocks=3, num_classes=4"):
        zoo.load_model(UNET, checkpoint=path, blocks=3)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_the_network_of_the_local_loss_takes_its_names(blocks):
    """`GLCLDecoder` has the tensors of stage 2, neither more nor fewer."""
    state = {name: torch.from_numpy(values) for name, values in stage_two(blocks).items()}
    network = GLCLDecoder(blocks)
    expected = uncounted(network.state_dict())
    converted = from_tensorflow(state)
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in expected.items()}
    network.load_state_dict(converted | {n: t for n, t in network.state_dict().items() if n.endswith(COUNTER)})
    side = 64 // (16, 8, 4, 2, 1)[blocks - 1]
    assert network.eval()(torch.rand(1, 1, 64, 64)).shape == (1, network.num_features, side, side)


@pytest.mark.parametrize("gone", ["dec_c5_b/", "dec_dc6/dec_dc6_bn/", "seg_c1_b/"])
def test_half_a_block_is_refused(gone, bundle):
    """A decoder that lost a layer or a norm is not filled up with fresh ones."""
    variables = {name: values for name, values in filled("seg_unet").items() if not name.startswith(gone)}
    with pytest.raises(CheckpointMismatchError, match=r"the decoder in the file is incomplete: .*dec_dc6\+dec_c5_a"):
        zoo.load_model(UNET, checkpoint=bundle(variables))


def test_an_encoder_that_lost_a_layer_is_refused(bundle):
    """With its name."""
    variables = {name: values for name, values in filled("seg_unet").items() if name != "enc_c3_a/b"}
    with pytest.raises(CheckpointMismatchError, match=r"missing \(1\): enc_c3_a\.bias"):
        zoo.load_model(ENCODER_NAME, checkpoint=bundle(variables))


def test_the_projection_must_be_in_the_file(unet_bundle):
    """It is never made up."""
    with pytest.raises(
        CheckpointMismatchError, match=r"the file has none \(reg_nn1\.weight, reg_pred\.weight expected\)"
    ):
        zoo.load_model(ENCODER_NAME, checkpoint=unet_bundle, projection=True)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_classes_come_from_the_file(classes, bundle, caplog):
    """Another number drops the file's head, with a warning, and keeps all before it."""
    variables = filled("seg_unet") | {"seg_fin_layer/W": tfill("seg_fin_layer/W", (3, 3, 16, classes))}
    path = bundle(variables)
    model = zoo.load_model(UNET, checkpoint=path)
    assert model.seg_fin_layer.weight.shape == (classes, 16, 3, 3)
    assert not warnings(caplog)
    other = zoo.load_model(UNET, checkpoint=path, num_classes=5)
    assert fresh(other) == {"seg_fin_layer.weight"}
    assert f"{classes}x16x3x3 in the file, 5x16x3x3 in the network" in warnings(caplog)[0]
    assert torch.equal(other.seg_c1_b.weight, model.seg_c1_b.weight)


@pytest.mark.slow
def test_optimiser_state_is_left_out_unread(bundle, unet):
    """Slots and powers of three optimisers; a damaged slot does no harm, a damaged weight is found."""
    variables = as_trained(filled("seg_unet"), 10_001, optimisers=3)
    prefix = bundle(variables)
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    content = data.read_bytes()
    at = content.index(variables["enc_c4_b/W/Adam"].tobytes())
    data.write_bytes(content[:at] + bytes([1]) + content[at + 1 :])
    model = zoo.load_model(UNET, checkpoint=prefix)
    assert same(model.state_dict(), unet.state_dict())
    dropped = zoo.load_report(model).dropped
    assert set(dropped.values()) == {"optimiser state"}
    assert len(dropped) == 2 * 113 + 6
    at = content.index(variables["enc_c4_b/W"].tobytes())
    data.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    with pytest.raises(zoo.errors.CheckpointFormatError, match=r"load_model\('glcl-unet'.*'enc_c4_b/W' is wrong"):
        zoo.load_model(UNET, checkpoint=prefix)


# --- moving averages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "optimisers"), [(1, 1), (2, 1), (50, 1), (50, 3), (300, 1), (1200, 3)])
def test_young_averages_become_what_they_estimate(steps, optimisers, bundle, unet):
    """They lack 0.99^t of their value after t steps, which the optimiser has counted."""
    variables = with_averages(filled("seg_unet"), share(steps))
    model = zoo.load_model(UNET, checkpoint=bundle(as_trained(variables, steps, optimisers=optimisers)))
    report = zoo.load_report(model)
    assert len(report.adapted) == 56
    assert f"after {steps} steps" in report.adapted["enc_c1_a_bn.running_var"]
    for name, expected in unet.state_dict().items():
        assert torch.allclose(model.state_dict()[name], expected, rtol=1e-5, atol=0), name


@pytest.mark.parametrize("steps", [2000, 10_001, 30_000])
def test_old_averages_are_taken_as_they_are(steps, bundle, unet):
    """To the last bit."""
    model = zoo.load_model(UNET, checkpoint=bundle(as_trained(filled("seg_unet"), steps)))
    assert same(model.state_dict(), unet.state_dict())
    assert zoo.load_report(model).adapted == {}


def test_steps_are_read_from_the_powers():
    """Of the optimiser that ran longest; powers that belong to no number of steps say nothing."""

    def steps(**powers):
        return trained_steps({name: torch.tensor(value) for name, value in powers.items()})

    assert steps(beta1_power=0.9**8, beta2_power=0.999**8) == 7
    assert steps(beta1_power=0.9, beta2_power=0.999, beta1_power_1=0.9**43, beta2_power_1=0.999**43) == 42
    assert steps(beta1_power=0.0, beta2_power=float(np.float32(0.999) ** 5001)) == 5000
    assert steps(beta1_power=0.9, beta2_power=0.999) is None
    assert steps(beta1_power=0.5**8, beta2_power=0.999**8) is None
    assert steps(beta1_power=0.9, beta2_power=0.0) is None
    assert steps() is None


@torch.no_grad()
def test_averages_that_were_never_updated(bundle, caplog):
    """All zero, as in a checkpoint saved before the first step: as in a new network, with a warning."""
    variables = with_averages(filled("seg_unet"), 0)
    model = zoo.load_model(UNET, checkpoint=bundle(variables))
    assert model(reference_slices(side=64)).isfinite().all()
    assert (model.enc_c3_a_bn.running_var == 1).all()
    assert len(zoo.load_report(model).adapted) == 56
    assert "averages of 28 norms were never updated" in warnings(caplog)[0]


@torch.no_grad()
def test_a_channel_without_variance_is_left_alone(bundle, caplog):
    """A dead channel is no norm that was never updated."""
    variables = filled("seg_unet")
    name = f"enc_c2_a/enc_c2_a_bn/enc_c2_a/enc_c2_a_bn/moments/Squeeze_1/{AVERAGE}"
    variables[name] = np.zeros_like(variables[name])
    model = zoo.load_model(UNET, checkpoint=bundle(variables))
    assert not model.enc_c2_a_bn.running_var.any()
    assert not warnings(caplog)


# --- files in PyTorch's form ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_saved_is_loaded(unet, encoder_bundle, tmp_path):
    """Bare, behind a wrapper, from the recipes' training state; with the projection if asked."""
    path = tmp_path / "model.pth"
    torch.save(unet.state_dict(), path)
    assert same(zoo.load_model(UNET, checkpoint=path).state_dict(), unet.state_dict())
    torch.save({"model": behind("module.network.", unet.state_dict()), "epoch": 3}, path)
    again = zoo.load_model(UNET, checkpoint=path)
    assert same(again.state_dict(), unet.state_dict())
    assert zoo.load_report(again).dropped == {}
    assert set(zoo.load_report(zoo.load_model(ENCODER_NAME, checkpoint=path)).dropped.values()) == {
        "decoder: not part of the encoder"
    }
    encoder = zoo.load_model(ENCODER_NAME, checkpoint=encoder_bundle, projection=True)
    torch.save({"state_dict": behind("encoder.", encoder.state_dict())}, path)
    assert same(zoo.load_model(ENCODER_NAME, checkpoint=path, projection=True).state_dict(), encoder.state_dict())
    unfinished = zoo.load_model(UNET, checkpoint=path)
    assert all(name.startswith(("dec_", "seg_")) for name in fresh(unfinished))
    torch.save({"model": behind("network.", GLCLDecoder(2).state_dict())}, path)
    assert {name[:6] for name in fresh(zoo.load_model(UNET, checkpoint=path))} == {
        *("dec_dc", "dec_c3", "dec_c2", "dec_c1", "seg_c1", "seg_fi")
    }


def test_conversion_is_pure_and_idempotent(unet_bundle):
    """The argument is left alone; no value is read; what a network saved goes through unchanged."""
    state = {name: torch.empty(shape, device="meta") for name, shape in KEYS["seg_unet"].items()}
    names = list(state)
    once, facts = get_entry(UNET).convert(state)
    assert list(state) == names
    assert facts == {"steps": None, "stored_blocks": 5, "num_classes": 4}
    assert all(tensor.is_meta for tensor in once.values())
    twice, again = get_entry(UNET).convert(once)
    assert (twice, again) == (once, facts)
    assert get_entry(UNET).convert({"other": torch.zeros(1)})[1] == {}


@torch.no_grad()
def test_a_classifier_is_fresh_and_then_loaded(encoder_bundle, tmp_path):
    """On the pooled features; saved, it is a form of file."""
    slices = reference_slices(side=64)
    encoder = zoo.load_model(ENCODER_NAME, checkpoint=encoder_bundle)
    model = zoo.load_model(ENCODER_NAME, checkpoint=encoder_bundle, num_classes=3)
    assert fresh(model) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model(slices), model.classifier(encoder(slices)))
    torch.save(model.state_dict(), tmp_path / "classes.pth")
    again = zoo.load_model(ENCODER_NAME, checkpoint=tmp_path / "classes.pth")
    assert torch.equal(again(slices), model(slices))
    assert torch.equal(
        zoo.load_model(ENCODER_NAME, checkpoint=tmp_path / "classes.pth", num_classes=0)(slices), encoder(slices)
    )


@torch.no_grad()
def test_channels_are_adapted(unet, unet_bundle):
    """A slice given three times over has the same logits."""
    slices = reference_slices(side=64)
    model = zoo.load_model(UNET, checkpoint=unet_bundle, in_channels=3)
    assert zoo.load_report(model).adapted == {"enc_c1_a.weight": "1 input channels repeated to 3"}
    assert relative_error(model(slices.expand(-1, 3, -1, -1)), unet(slices).numpy()) < TOLERANCE


def test_sizes_and_shapes_that_cannot_be(unet):
    """Sides that do not halve five times, channels, no pixels."""
    for shape in ((1, 1, 100, 96), (1, 2, 64, 64), (1, 64, 64), (1, 1, 0, 64)):
        with pytest.raises(InputContractError, match=r"\(N, 1, H, W\) is expected, with H and W multiples of 32"):
            unet(torch.zeros(shape))
    with pytest.raises(OptionError, match="two heads"):
        GLCLEncoder(projection=True, num_classes=2)
    with pytest.raises(OptionError, match="multiple of 32"):
        GLCLEncoder(size=100)
    with pytest.raises(OptionError, match="blocks=6"):
        GLCLDecoder(6)
    with pytest.raises(OptionError, match="blocks=0"):
        GLCLUNet(0, blocks=0)


def test_random_networks_start_as_the_authors():
    """He's normal, biases at 0, Glorot's uniform for dense layers; layers of equal shape differ."""
    torch.manual_seed(0)
    encoder = zoo.load_model(ENCODER_NAME, pretrained=False, projection=True)
    kernel = encoder.enc_c5_a.weight
    assert float(kernel.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert not encoder.enc_c5_a.bias.any()
    assert not torch.equal(kernel, encoder.enc_c5_b.weight)
    bound = (6 / (4608 + 1024)) ** 0.5
    assert 0.999 * bound < float(encoder.reg_nn1.weight.detach().abs().max()) <= bound
    assert (encoder.enc_c1_a_bn.eps, encoder.enc_c1_a_bn.momentum) == (1e-3, 0.01)


def test_fresh_parts_start_the_same_way(encoder_bundle):
    """In a U-Net whose encoder is loaded."""
    model = zoo.load_model(UNET, checkpoint=encoder_bundle)
    assert float(model.dec_c5_a.weight.detach().std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not model.dec_c5_a.bias.any()
    assert (model.dec_c5_a_bn.running_var == 1).all()


@pytest.mark.parametrize(("name", "options"), [(UNET, {}), (ENCODER_NAME, {"projection": True, "size": 64})])
def test_every_parameter_gets_a_gradient(name, options):
    """Nothing lies idle, so that DistributedDataParallel works without further ado."""
    torch.manual_seed(0)
    model = zoo.load_model(name, pretrained=False, **options).train()
    model(reference_slices(side=64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_parameter_groups_follow_the_levels(unet_bundle):
    """The rate falls towards the input, over six levels, five blocks and the head."""
    model = zoo.load_model(UNET, checkpoint=unet_bundle)
    rates = {g["name"]: g["lr"] for g in zoo.param_groups(model, 1.0, weight_decay=0.1, layer_decay=0.5)}
    assert rates["enc_c1_a"] == 0.5**11
    assert rates["seg_c1_a"] == 1
    assert sum(len(g["params"]) for g in zoo.param_groups(model)) == 113


@torch.no_grad()
def test_it_can_be_copied_pickled_and_had_from_the_hub(unet, unet_bundle):
    """With its report, and under the name with an underscore."""
    again = pickle.loads(pickle.dumps(copy.deepcopy(unet)))
    assert same(again.state_dict(), unet.state_dict())
    hub = torch.hub.load(str(CHECKOUT), "glcl_unet", source="local", checkpoint=unet_bundle)
    assert same(hub.state_dict(), unet.state_dict())


# --- inspect, import --------------------------------------------------------------------------------------------------


def test_inspection_names_the_models(unet_bundle, encoder_bundle):
    """Both, with how to load them; the projection head where there is one."""
    matches = {match.model: match for match in zoo.inspect_checkpoint(unet_bundle).matches}
    assert matches[UNET].complete
    assert matches[ENCODER_NAME].complete
    assert matches[UNET].head == "seg_fin_layer.weight 4x16x3x3"
    summary = zoo.inspect_checkpoint(encoder_bundle)
    match = next(match for match in summary.matches if match.model == ENCODER_NAME)
    assert "projection=True" in match.call
    assert summary.types == {"float32": sum(values.nbytes for values in filled("encoder_pretrain").values())}


def test_inspection_names_what_cannot_be_read(tmp_path):
    """A partitioned weight of the decoder: the U-Net does not load, as the loader says too; the encoder does."""
    variables = filled("seg_unet")
    shape, pieces = variables.pop("dec_dc5/W").shape, {"dec_dc5/W": entry(1, (2, 2, 128, 128), slices=2)}
    assert shape == (2, 2, 128, 128)
    path = write_bundle(tmp_path / "model.ckpt", variables, extra=pieces)
    matches = {match.model: match for match in zoo.inspect_checkpoint(path).matches}
    assert matches[ENCODER_NAME].complete
    assert zoo.load_model(ENCODER_NAME, checkpoint=path).num_features == 128
    unet = matches[UNET]
    assert (unet.complete, unet.call) == (False, "")
    assert unet.problem.startswith("dec_dc5/W cannot be read: it is stored in slices, as a partitioned variable")
    assert f"(does not load: {unet.problem})" in str(unet)
    with pytest.raises(CheckpointFormatError, match=r"'dec_dc5/W' .* cannot be read: it is stored in slices"):
        zoo.load_model(UNET, checkpoint=path)


def test_a_partitioned_head_is_not_offered(tmp_path):
    """The encoder loads, but not with `projection=True`."""
    variables = filled("encoder_pretrain", 3)
    pieces = {"reg_pred/kernel": entry(1, variables.pop("reg_pred/kernel").shape, slices=2)}
    path = write_bundle(tmp_path / "model.ckpt", variables, extra=pieces)
    match = next(match for match in zoo.inspect_checkpoint(path).matches if match.model == ENCODER_NAME)
    assert match.complete
    assert "projection" not in match.call


@pytest.mark.slow
def test_an_import_makes_one_file(bundle, unet, unet_bundle, caplog):
    """Of safetensors, with averages set right, that loads by name when the bundle is gone."""
    from zoo.commands.importing import import_weights

    steps = 200
    path = bundle(as_trained(with_averages(filled("seg_unet"), share(steps)), steps))
    record = import_weights(f"{UNET}.mine", path)
    assert record.provenance == {"file": str(path)}
    assert Path(record.sources[0].removeprefix("file:")).is_file()
    assert record.trained_by == "user"
    for file in path.parent.glob("model.ckpt*"):
        file.unlink()
    model = zoo.load_model(f"{UNET}.mine", offline=True)
    for name, expected in unet.state_dict().items():
        assert torch.allclose(model.state_dict()[name], expected, rtol=1e-5, atol=0), name
    report = zoo.load_report(model)
    assert (report.sha256, report.source) == (record.sha256, f"file:{path}")
    assert not list(path.parent.rglob("import.*"))


@pytest.mark.slow
def test_an_imported_encoder_keeps_its_projection(encoder_bundle):
    """Under a tag on record it has that one's input, authors and licences; the plain name loads nothing, as before."""
    from zoo.commands.importing import import_weights

    record = import_weights(f"{ENCODER_NAME}.prostate", encoder_bundle)
    assert (record.trained_by, record.provenance["file"]) == ("authors", str(encoder_bundle))
    assert set(record.licences) == {"code", "weights", "data"}
    assert "repository" in record.provenance
    with pytest.raises(WeightsUnavailableError, match=f"load {ENCODER_NAME}.prostate by its full name"):
        zoo.load_model(ENCODER_NAME)
    assert zoo.load_transform(f"{ENCODER_NAME}.prostate").preprocessing.spacing == (0.625, 0.625)
    model = zoo.load_model(f"{ENCODER_NAME}.prostate", projection=True, offline=True)
    assert torch.equal(model.reg_pred.weight, torch.from_numpy(filled("encoder_pretrain", 3)["reg_pred/kernel"].T))


@pytest.mark.slow
def test_a_tag_says_the_classes_of_a_new_network(bundle):
    """With random values, and for a file without a head; what the file has, or the user asks for, counts more."""
    assert zoo.load_model(f"{UNET}.mmwhs", pretrained=False).num_classes == 8
    assert zoo.load_model(f"{UNET}.mmwhs", pretrained=False, num_classes=2).num_classes == 2
    assert zoo.load_model(UNET, pretrained=False).num_classes == 4
    assert zoo.load_model(f"{ENCODER_NAME}.mmwhs", pretrained=False, projection=True).size == 160
    path = bundle(stage_two(1))
    assert zoo.load_model(f"{UNET}.prostate", checkpoint=path).num_classes == 3
    path = bundle(filled("seg_unet"))
    assert zoo.load_model(f"{UNET}.prostate", checkpoint=path).num_classes == 4


def test_the_report_of_many_layers_is_short(unet, unet_bundle, caplog):
    """Layers are counted by the first word of their names, and names with one reason have one line."""
    lines = str(zoo.load_report(unet)).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        *(["enc", "72", "0", "12"], ["dec", "84", "0", "14"], ["seg", "13", "0", "2"])
    ]
    assert lines[5:] == [
        "  fresh    enc_c1_a_bn.num_batches_tracked, enc_c1_b_bn.num_batches_tracked, ... (28 in all): counts from 0"
    ]
    with caplog.at_level(logging.INFO, "zoo"):
        encoder = zoo.load_model(ENCODER_NAME, checkpoint=unet_bundle)
    assert "72 tensors loaded, 0 adapted, 0 fresh" in caplog.text
    assert str(zoo.load_report(encoder)).endswith(" (97 in all): decoder: not part of the encoder")


# --- slices as input --------------------------------------------------------------------------------------------------


def stack(shape=(150, 140, 9), spacing=(1.8, 1.7, 8.0)):
    """An image like a cine MRI: an ellipse that is bright, on faint noise."""
    draw = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij"))
    heart = ((grid / np.array([0.5, 0.3])[:, None, None]) ** 2).sum(0) < 1
    values = 40 + 10 * draw.standard_normal(shape) + 300 * heart[..., None]
    return nibabel.Nifti1Image(values.astype(np.float32), np.diag([-1, -1, 1, 1]) @ np.diag([*spacing, 1.0]))


def test_a_volume_becomes_a_batch_of_slices(unet):
    """Percentiles of the whole volume, pixels of the data set, centre; ready for the network."""
    image = stack()
    transform = zoo.load_transform(UNET)
    batch = transform(image)
    assert batch.shape == (9, 1, 192, 192)
    assert batch.dtype == torch.float32
    assert unet(batch[:1]).shape == (1, 4, 192, 192)
    values = np.asarray(image.dataobj)
    low, high = np.percentile(values, (1, 99))
    factors = (1.8 / 1.36719, 1.7 / 1.36719)
    lengths = [round(n * f) for n, f in zip((150, 140), factors, strict=True)]
    assert lengths == [197, 174]
    expected = crop_or_pad(resample_in_plane((values - low) / (high - low), factors), (192, 192))
    assert np.allclose(batch[:, 0].numpy().transpose(1, 2, 0), expected, atol=1e-5)
    assert not batch[..., :9].any()  # 174 pixels are padded by 9 on either side
    assert batch[..., 9].any()
    assert batch.min() < 0
    assert "percentiles 1 and 99" in repr(transform)


def test_data_sets_have_their_own_pixels():
    """By tag: size and spacing of each."""
    sizes = {tag: zoo.load_transform(f"{UNET}.{tag}").preprocessing for tag in ("acdc", "prostate", "mmwhs")}
    assert {tag: facts.size for tag, facts in sizes.items()} == {
        **{"acdc": (192, 192), "prostate": (192, 192), "mmwhs": (160, 160)}
    }
    assert {tag: facts.spacing for tag, facts in sizes.items()} == {
        **{"acdc": (1.36719, 1.36719), "prostate": (0.625, 0.625), "mmwhs": (1.5, 1.5)}
    }
    assert zoo.load_transform(f"{ENCODER_NAME}.mmwhs")(stack()).shape == (9, 1, 160, 160)
    assert {tag: zoo.model_info(f"{UNET}.{tag}").options["num_classes"] for tag in sizes} == {
        **{"acdc": 4, "prostate": 3, "mmwhs": 8}
    }
    assert zoo.model_info(f"{ENCODER_NAME}.mmwhs").options["size"] == 160


def test_arrays_must_have_the_networks_grid():
    """They say nothing of their pixels; a slice alone gives one."""
    transform = zoo.load_transform(UNET)
    values = np.random.default_rng(0).random((192, 192, 5)).astype(np.float32)
    batch = transform(values)
    assert np.allclose(batch[:, 0].numpy().transpose(1, 2, 0), normalise_percentiles(values))
    one = transform(torch.from_numpy(values[..., 0]))
    assert one.shape == (1, 192, 192)
    assert np.allclose(one[0], normalise_percentiles(values[..., 0]))
    with pytest.raises(InputContractError, match="comes without the size of its pixels"):
        transform(values[:100])


def test_slices_say_what_was_cut_off():
    """A place for what is found in them; percentiles come to lie at 0 and 1 and nowhere else."""
    transform, image = zoo.load_transform(UNET), stack()
    placed = transform.place(image)
    assert torch.equal(placed.tensor, transform(image))
    assert placed.resampled == (197, 174)
    with pytest.raises(OptionError, match=r"value_range \(-1.0, 1.0\) with normalise='percentile'"):
        build_slice_transform(replace(transform.preprocessing, value_range=(-1.0, 1.0)))


def test_volumes_that_cannot_be(caplog, tmp_path):
    """Masks, NaN, slices along another axis, four axes, odd pixels."""
    transform = zoo.load_transform(UNET)
    image = stack()
    values = np.asarray(image.dataobj)
    mask = np.zeros_like(values)
    mask[70, 70] = 1
    broken = values.copy()
    broken[0, 0, 0] = np.nan
    organs = np.repeat(np.arange(5.0)[None, :, None], 150, 0).repeat(28, 1).repeat(9, 2)
    cases = {
        "has 5 different values: an image is expected, not a mask": nibabel.Nifti1Image(organs, image.affine),
        "the same value, 0, at 98 of 100 voxels": nibabel.Nifti1Image(mask, image.affine),
        "1 NaN or infinite": nibabel.Nifti1Image(broken, image.affine),
        "slices are expected along the third axis": nibabel.Nifti1Image(
            np.moveaxis(values, 2, 1).repeat(4, 1), np.diag([1.8, 8, 1.7, 1])
        ),
        "pass one at a time": nibabel.Nifti1Image(np.stack([values, values], -1), image.affine),
        "at least 32 x 32 x 1 voxels": nibabel.Nifti1Image(values[:20], image.affine),
    }
    for message, wrong in cases.items():
        with pytest.raises(InputContractError, match=message):
            transform(wrong)
    assert transform(nibabel.Nifti1Image(values[..., :1], image.affine)).shape == (1, 1, 192, 192)
    transform(nibabel.Nifti1Image(values, np.diag([0.5, 0.5, 8, 1])))
    assert "far from the 1.37 x 1.37 mm" in warnings(caplog)[0]


def test_resampling_is_scikit_images():
    """Its `rescale` for images and masks, smoothed before they shrink."""
    rescale = pytest.importorskip("skimage.transform").rescale
    draw = np.random.default_rng(0)
    image, mask = draw.random((50, 61, 2)), draw.integers(0, 4, (50, 61, 2)).astype(np.uint8)
    for factors in ((1.13, 1.2), (0.61, 0.7), (1.5, 0.8)):
        for i in range(2):
            theirs = rescale(image[..., i], factors, order=1, preserve_range=True, mode="constant")
            assert np.allclose(resample_in_plane(image, factors)[..., i], theirs, atol=1e-12)
            labels = rescale(mask[..., i], factors, order=0, preserve_range=True, mode="constant", anti_aliasing=False)
            assert np.array_equal(resample_in_plane(mask, factors, order=0)[..., i], labels)


def test_cropping_and_padding_as_the_authors():
    """By axis: cut from (n - S) // 2, padded from (S - n) // 2."""
    volume = np.arange(5 * 2 * 1).reshape(5, 2, 1) + 1
    fitted = crop_or_pad(volume, (2, 5))
    assert np.array_equal(fitted[..., 0], [[0, 3, 4, 0, 0], [0, 5, 6, 0, 0]])
    assert np.array_equal(crop_or_pad(volume, (5, 2)), volume)


# --- what is on record ------------------------------------------------------------------------------------------------


def test_records_describe_the_files():
    """The authors have published nothing; the fingerprints are those of their graphs."""
    for record in read_manifest(packaged_manifest()):
        for model in record.models:
            if not model.startswith("glcl") or record.trained_by == "zoo":
                continue
            assert (record.state, record.trained_by) == ("not-published", "authors")
            assert record.fingerprint.keys() == {model}
    graphs = {ENCODER_NAME: "encoder_pretrain", UNET: "seg_unet"}
    for model, graph in graphs.items():
        state = {name: torch.empty(shape, device="meta") for name, shape in KEYS[graph].items()}
        record = next(r for r in read_manifest(packaged_manifest()) if model in r.models and r.tag == "acdc")
        assert record.fingerprint[model] == fingerprint(get_entry(model).convert(state)[0])
    assert len(ENCODER) == 12


@pytest.mark.parametrize("name", [ENCODER_NAME, UNET])
@pytest.mark.parametrize("stray", ["enc_c1_a/gate", "enc_c2_b/enc_c2_b_bn/offset", "enc_c7_a/W"])
def test_a_variable_that_the_network_does_not_have_is_refused(name, stray, bundle):
    """Under a layer of the network, in a bundle too, nothing is passed over but what optimisers keep."""
    variables = filled("seg_unet") | {stray: np.ones((1, 1, 16, 16), np.float32)}
    with pytest.raises(CheckpointMismatchError, match=rf"unexpected \(1\): {stray.replace('/W', '.weight')}"):
        zoo.load_model(name, checkpoint=bundle(variables))


@pytest.mark.slow
def test_a_decoder_s_own_stray_is_refused_by_the_unet_alone(bundle, unet, tmp_path):
    """In a bundle and under PyTorch's names; the encoder has nothing to do with it."""
    gate = np.ones((3,), np.float32)
    torch.save(unet.state_dict() | {"dec_c5_a.gate": torch.from_numpy(gate)}, tmp_path / "unet.pth")
    for path in (bundle(filled("seg_unet") | {"dec_c5_a/gate": gate}), tmp_path / "unet.pth"):
        with pytest.raises(CheckpointMismatchError, match=r"unexpected \(1\): dec_c5_a[./]gate"):
            zoo.load_model(UNET, checkpoint=path)
        assert (
            "decoder: not part of the encoder"
            in zoo.load_report(zoo.load_model(ENCODER_NAME, checkpoint=path)).dropped.values()
        )


def test_other_optimisers_state_is_left_out(bundle):
    """A network that was fine-tuned with momentum is the same network."""
    variables = filled("seg_unet")
    slots = {f"{name}/{slot}": value for name, value in variables.items() for slot in ("Momentum", "RMSProp_1")}
    report = zoo.load_report(zoo.load_model(UNET, checkpoint=bundle(variables | slots)))
    assert set(report.dropped.values()) == {"optimiser state"}
    assert set(report.fresh.values()) == {"counts from 0"}
