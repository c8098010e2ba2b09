"""DrasCLR's encoder: the authors' outputs from every form of file, every arrangement of locations, atlas and assets."""

import copy
import gzip
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from caid_files import behind, relative_error
from checkout import CHECKOUT
from drasclr_files import (
    FORMS,
    LAYERS,
    NAME,
    backbone,
    filled_encoder,
    one_layer,
    plain_convolution,
    plain_loop,
    reference,
    reference_input,
    training_checkpoint,
    training_state,
)
from forked import GIVING_BACK
from states import same
from texts import warnings

import zoo
from zoo.checkpoint.export import fingerprint
from zoo.entries.drasclr.atlas import atlas_mask, load_landmarks, neighbours, normalise
from zoo.entries.drasclr.condconv import ConditionalConv3d, arrange
from zoo.entries.drasclr.model import DrasCLREncoder, check_locations
from zoo.errors import CheckpointMismatchError, InputContractError, OfflineError, OptionError
from zoo.fetching.cache import hash_file
from zoo.manifest import records
from zoo.registry import get_entry
from zoo.transforms.image import build_transform

TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 3e-7; a wrong tensor or softmax for the sigmoids by more than 0.01."""
TENSORS = 117
"""13 convolutions of 4 tensors and 13 norms of 5; the projection head has 4 more."""
CLASSIFIER = {"classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def encoder_state():
    """The authors' encoder with its projection head."""
    return filled_encoder()


@pytest.fixture(scope="module")
def encoder_file(scratch, encoder_state):
    """What the authors' training code writes."""
    path = scratch / "drasclr.pth.tar"
    torch.save(training_checkpoint(training_state(encoder_state)), path)
    return path


@pytest.fixture(scope="module")
def encoder(encoder_file):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(NAME, checkpoint=encoder_file)


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors(encoder, encoder_file):
    """Features, the map they are, and the projection; of all patches at once and of each alone."""
    patches, locations = reference_input()
    theirs = reference()
    assert relative_error(encoder(patches, locations), theirs["features"]) < TOLERANCE
    alone = torch.cat([encoder(p[None], place) for p, place in zip(patches, locations, strict=True)])
    assert relative_error(alone, theirs["features"]) < TOLERANCE
    assert torch.equal(encoder.forward_features(patches, locations).flatten(1), encoder(patches, locations))
    projecting = zoo.load_model(NAME, checkpoint=encoder_file, projection=True)
    assert relative_error(projecting(patches, locations), theirs["projection"]) < TOLERANCE
    assert encoder.num_features == projecting.num_features == 128


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_the_same(form, encoder_state, saved):
    """The query encoder, whatever the file wraps around it, with all that routes locations; its head if asked."""
    path = saved(FORMS[form](encoder_state))
    model = zoo.load_model(NAME, checkpoint=path)
    report = zoo.load_report(model)
    assert same(model.state_dict(), backbone(encoder_state))
    assert (len(report.loaded), report.adapted, report.fresh) == (TENSORS, {}, {})
    assert sum("_routing_fn.fc." in name for name in report.loaded) == 26
    assert "projection head" in report.dropped.values()
    projecting = zoo.load_model(NAME, checkpoint=path, projection=True)
    assert same(projecting.state_dict(), encoder_state)


def test_what_lies_beside_the_encoder_is_named(encoder_file):
    """In the report, with the reason; nothing else is dropped."""
    dropped = zoo.load_report(zoo.load_model(NAME, checkpoint=encoder_file)).dropped
    reasons = {name: why for name, why in dropped.items() if "encoder_k" not in name}
    assert {why for name, why in dropped.items() if "encoder_k" in name} == {"key network"}
    assert reasons == {
        "module.queue": "queue of negatives",
        "module.queue_ptr": "queue of negatives",
        **dict.fromkeys(("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"), "projection head"),
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("wrap", [FORMS["training checkpoint"], FORMS["bare"]])
def test_a_head_of_one_layer(wrap, encoder, encoder_state, saved):
    """`fc.weight` of a run without `mlp`, which no routing parameter is taken for."""
    path = saved(wrap(one_layer(encoder_state)))
    patches, locations = reference_input()
    projected = zoo.load_model(NAME, checkpoint=path, projection=True)(patches, locations)
    expected = encoder(patches, locations) @ encoder_state["fc.2.weight"].T + encoder_state["fc.2.bias"]
    assert relative_error(projected, expected.numpy()) < TOLERANCE
    assert same(zoo.load_model(NAME, checkpoint=path).state_dict(), backbone(encoder_state))


@pytest.mark.slow
@torch.no_grad()
def test_widths_are_read_from_the_file(saved):
    """Experts, points of a location, features and both widths of the head; what is asked for otherwise is refused."""
    torch.manual_seed(0)
    model = DrasCLREncoder(experts=3, coordinates=2, features=64, projection_dims=(96, 32)).eval()
    patches, locations = reference_input()[0], torch.rand(5, 6)
    path = saved(training_checkpoint(training_state(model.state_dict())))
    again = zoo.load_model(NAME, checkpoint=path, projection=True)
    assert torch.equal(again(patches, locations), model(patches, locations))
    assert again(patches, locations[0]).shape == (5, 32)
    assert zoo.load_model(NAME, checkpoint=path)(patches, locations).shape == (5, 64)
    with pytest.raises(CheckpointMismatchError, match=r"conv1\.weight is 3x8x1x3x3x3 in the file, 4x8x1x3x3x3 "):
        zoo.load_model(NAME, checkpoint=path, experts=4)


def test_conversion_is_pure_and_idempotent(encoder_state):
    """The argument is left alone; what a network saved goes through unchanged."""
    state = training_state(encoder_state)
    names = list(state)
    once, facts = get_entry(NAME).convert(state)
    assert list(state) == names
    assert facts == {"experts": 8, "coordinates": 1, "features": 128, "projection_dims": (128, 128)}
    assert same(once, encoder_state)
    assert get_entry(NAME).convert(once) == (once, facts)


# --- files that do not fit --------------------------------------------------------------------------------------------


def test_a_file_that_lost_its_routing_is_refused(encoder_state, saved):
    """Which is what leaving out every name with `fc` in it does; the message says what is missing."""
    path = saved({name: tensor for name, tensor in encoder_state.items() if "fc" not in name})
    with pytest.raises(CheckpointMismatchError) as caught:
        zoo.load_model(NAME, checkpoint=path)
    assert f"{TENSORS - 26} of the {TENSORS} required tensors of {NAME!r} match" in str(caught.value)
    assert "missing (26): conv1._routing_fn.fc.weight" in str(caught.value)


def test_a_key_network_alone_is_not_taken(encoder_state, saved):
    """It is the slow copy, and not what was trained."""
    with pytest.raises(CheckpointMismatchError, match=r"a key network alone.*module\.encoder_k\."):
        zoo.load_model(NAME, checkpoint=saved(behind("module.encoder_k.", encoder_state)))


def test_ordinary_convolutions_are_refused(encoder_state, saved):
    """Kernels that were mixed for one place, or an encoder that never had experts."""
    state = {name: t.mean(0) if t.ndim == 6 else t for name, t in encoder_state.items() if "_routing_fn" not in name}
    with pytest.raises(CheckpointMismatchError, match=r"conv1\.weight is 8x1x3x3x3 in the file"):
        zoo.load_model(NAME, checkpoint=saved(state))


def test_another_familys_network_is_told_what_it_is(encoder_file):
    """The message of another model names this one."""
    with pytest.raises(CheckpointMismatchError, match=rf"load_model\('{NAME}'"):
        zoo.load_model("yaware-densenet121", checkpoint=encoder_file)


def test_inspection_names_the_model_and_its_head(encoder_file):
    """Without building anything with values."""
    (match, *_) = zoo.inspect_checkpoint(encoder_file).matches
    assert (match.model, match.matched, match.complete) == (NAME, TENSORS, True)
    assert (match.prefix, match.head) == ("module.encoder_q.", "fc.2.weight 128x128")
    assert "projection=True" in match.call


MEASURE = """
import os, sys, zoo
from zoo.checkpoint.skeleton import without_values
def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
for mmap in (True, False):
    if os.fork() == 0:  # every load begins in a process that holds the libraries and nothing else
        zoo.load_model("drasclr-cnn3d", pretrained=False)
        without_values()  # imports more libraries with torch 2.6
        open("/proc/self/clear_refs", "w").write("5")  # begin the peak anew
        before = memory("VmRSS")
        model = zoo.load_model("drasclr-cnn3d", checkpoint=sys.argv[1], mmap=mmap)
        for tensor in model.state_dict().values():
            tensor.sum()  # touch every page
        print((memory("VmHWM") - before) / sum(t.nbytes for t in model.state_dict().values()), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_queue_and_optimiser_are_never_read(encoder_state, saved):
    """Beside a queue of 67 MB and as much momentum, a load takes what the network does, 33 MB.

    Not mapped it takes a tensor more, while that is copied: the largest has 43 % of the network.
    """
    content = training_checkpoint(training_state(encoder_state, queue=(128, 4096, 32)))
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(128, 4096, 32)
    command = [sys.executable, "-c", MEASURE, str(saved(content))]
    done = subprocess.run(command, env=os.environ | GIVING_BACK, capture_output=True, text=True, check=True)
    mapped, copied = map(float, done.stdout.split())
    assert 0.8 < mapped < 1.2
    assert 0.8 < copied < 1.6


# --- heads, channels, groups ------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_a_classifier_is_fresh_and_then_loaded(encoder, encoder_file, saved, caplog):
    """A linear layer on the features; saved, it is a form of file, whose classes are kept, dropped, or left out."""
    patches, locations = reference_input()
    model = zoo.load_model(NAME, checkpoint=encoder_file, num_classes=3)
    assert set(zoo.load_report(model).fresh) == CLASSIFIER
    assert model(patches, locations).shape == (5, 3)
    logits = model.classifier(encoder(patches, locations))
    assert torch.equal(model(patches, locations), logits)
    path = saved({"model": model.state_dict()})
    assert torch.equal(zoo.load_model(NAME, checkpoint=path)(patches, locations), logits)
    assert not warnings(caplog)
    other = zoo.load_model(NAME, checkpoint=path, num_classes=5)
    assert other(patches, locations).shape == (5, 5)
    assert set(zoo.load_report(other).fresh) == CLASSIFIER
    assert "3x128 in the file, 5x128 in the network" in warnings(caplog)[0]
    features = zoo.load_model(NAME, checkpoint=path, num_classes=0)
    assert torch.equal(features(patches, locations), encoder(patches, locations))


def test_one_network_has_one_head(encoder_file):
    """Projection or classes."""
    with pytest.raises(OptionError, match="two heads"):
        zoo.load_model(NAME, checkpoint=encoder_file, projection=True, num_classes=2)
    with pytest.raises(OptionError, match="two heads"):
        DrasCLREncoder(projection_dims=(128,), num_classes=2)


@pytest.mark.slow
@torch.no_grad()
def test_channels_are_adapted(encoder, encoder_file, saved):
    """They are the third axis of a weight with experts; a patch given several times over has the same features."""
    patches, locations = reference_input()
    three = zoo.load_model(NAME, checkpoint=encoder_file, in_channels=3)
    assert three.conv1.weight.shape == (8, 8, 3, 3, 3, 3)
    assert zoo.load_report(three).adapted == {"conv1.weight": "1 input channels repeated to 3"}
    expected = encoder(patches, locations).numpy()
    assert relative_error(three(patches.expand(-1, 3, -1, -1, -1), locations), expected) < TOLERANCE
    path = saved(three.state_dict())
    assert zoo.load_model(NAME, checkpoint=path).in_channels == 3
    one = zoo.load_model(NAME, checkpoint=path, in_channels=1)
    assert relative_error(one(patches, locations), expected) < TOLERANCE


def test_parameter_groups_follow_the_stages(encoder_file):
    """The rate falls towards the input; gates learn with their convolution, a fresh head at the full rate."""
    model = zoo.load_model(NAME, checkpoint=encoder_file, num_classes=2)
    groups = zoo.param_groups(model, 1e-2, weight_decay=1e-4, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    stages = ("conv1", "downsample1", "downsample2", "downsample3", "conv3")
    assert rates == {name: 1e-2 * 0.5 ** (4 - i) for i, name in enumerate(stages)} | {"fresh": 1e-2}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_classes": 2}, {"projection": True}])
def test_every_parameter_gets_a_gradient(options, encoder_file):
    """Nothing lies idle, so that DistributedDataParallel works without further ado."""
    model = zoo.load_model(NAME, checkpoint=encoder_file, **options).train()
    model(*reference_input()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_it_can_be_copied_pickled_and_had_from_the_hub(encoder, encoder_file):
    """With its report, and under the name with an underscore."""
    again = pickle.loads(pickle.dumps(copy.deepcopy(encoder)))
    assert same(again.state_dict(), encoder.state_dict())
    assert zoo.load_report(again) == zoo.load_report(encoder)
    repository = str(CHECKOUT)
    hub = torch.hub.load(repository, "drasclr_cnn3d", source="local", checkpoint=encoder_file)
    assert same(hub.state_dict(), encoder.state_dict())


# --- how it starts ----------------------------------------------------------------------------------------------------


def test_random_weights_start_as_the_authors_do():
    """Within 1 / sqrt(27 I O), output channels included, for weight and bias: 0.0015035 in the last layer."""
    torch.manual_seed(0)
    model = zoo.load_model(NAME, pretrained=False)
    for name, _ in LAYERS:
        layer = model.get_submodule(name)
        experts, outputs, inputs = layer.weight.shape[:3]
        bound = (27 * inputs * outputs) ** -0.5
        assert experts == 8
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() <= bound
    assert model.conv4.weight.abs().max().item() == pytest.approx(0.0015035, rel=1e-4)  # 3.5 million draws
    assert model.conv4._routing_fn.fc.weight.abs().max() <= 3**-0.5


def test_experts_may_start_as_ordinary_kernels_do():
    """Each within 1 / sqrt(27 I), if asked for by its name."""
    layer = DrasCLREncoder(expert_init="per-expert").conv4
    assert layer.weight.abs().max().item() == pytest.approx((27 * 128) ** -0.5, rel=1e-4)
    with pytest.raises(OptionError, match="expert_init='kaiming': expected one of upstream, per-expert"):
        DrasCLREncoder(expert_init="kaiming")


@pytest.mark.parametrize("option", ["experts", "coordinates", "features"])
@pytest.mark.parametrize("value", [0, "8"])
def test_sizes_must_be_positive(option, value):
    """The error says which is not."""
    with pytest.raises(OptionError, match=rf"{option}={value!r}: expected a whole number"):
        zoo.load_model(NAME, pretrained=False, **{option: value})


# --- every arrangement of locations -----------------------------------------------------------------------------------

SPOTS = torch.rand(16, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
ARRANGEMENTS = {
    "one row": (SPOTS[0], 8),
    "one row of two axes": (SPOTS[:1], 8),
    "equal rows": (SPOTS[:1].repeat(8, 1), 8),
    "an expanded row": (SPOTS[:1].expand(8, 3), 8),
    "all different": (SPOTS[:8], 8),
    "all different, many": (SPOTS, 16),
    "in turns": (SPOTS[:2].repeat(4, 1), 8),
    "in turns, seen from the shape": (SPOTS[:2].expand(4, 2, 3), 8),
    "a few in turns": (SPOTS[:4].expand(2, 4, 3), 8),
    "two axes": (SPOTS[:8].view(4, 2, 3), 8),
    "in blocks": (SPOTS[:2].repeat_interleave(4, 0), 8),
    "disorderly": (SPOTS[[3, 1, 3, 3, 1, 3, 3, 3, 1, 3, 3, 3]], 12),
    "one patch": (SPOTS[:1], 1),
}


def gradients(call, inputs, parameters):
    """The result of a call, and the gradients of its inputs and some parameters for a weighted sum of it."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = call(*inputs)
    weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin()
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [*inputs, *parameters])]


def assert_same(ours, theirs):
    """Equal to 1e-9 of each tensor's largest value, or of 1 where a bias before a norm has no gradient but rounding."""
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-9 * max(1, other.abs().max())


@pytest.mark.parametrize("side", [1, 5])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_convolution_gives_what_the_plain_loop_does(arrangement, side):
    """Maps and all gradients in float64, for small maps and larger ones, with and without stride."""
    locations, count = ARRANGEMENTS[arrangement]
    torch.manual_seed(0)
    layer = ConditionalConv3d(2, 3, 1 + side % 2, experts=4, coordinates=1).double()
    x = torch.randn(count, 2, side, side, side, dtype=torch.float64)
    rows = locations.double().reshape(-1, 3).repeat(count // (locations.numel() // 3), 1)
    places, counts, order = arrange(locations.double(), count)
    order = torch.arange(count) if order is None else order
    ours = gradients(lambda x: layer(x[order], places, counts)[order.argsort()], [x], layer.parameters())
    theirs = gradients(lambda x: plain_convolution(layer, x, rows), [x], layer.parameters())
    assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("locations", [SPOTS[:3], SPOTS[[0, 1, 0, 1]]], ids=["all different", "in turns"])
def test_the_network_gives_what_the_plain_loop_does(locations, monkeypatch):
    """Features in the order of the patches, and all gradients, in float64 and training mode."""
    monkeypatch.setattr("zoo.entries.drasclr.condconv._ENOUGH", 2)  # for the test's sake: few patches are quick
    torch.manual_seed(0)
    model = DrasCLREncoder(experts=2, features=8).double().train()
    patches, locations = torch.randn(len(locations), 1, 32, 32, 32, dtype=torch.float64), locations.double()
    ours = gradients(lambda x: model(x, locations), [patches], model.parameters())
    theirs = gradients(lambda x: plain_loop(model, x, locations), [patches], model.parameters())
    assert_same(ours, theirs)


def test_shared_locations_are_found():
    """From the shape at no cost, on a CPU from the values; where few are shared each patch is treated alone."""
    counts = {name: arrange(*arrangement)[1] for name, arrangement in ARRANGEMENTS.items()}
    for name in ("one row", "one row of two axes", "equal rows", "an expanded row"):
        assert counts[name] == [8]
    for name in ("all different", "all different, many", "a few in turns", "two axes"):
        assert counts[name] is None
    for name in ("in turns", "in turns, seen from the shape", "in blocks"):
        assert counts[name] == [4, 4]
    assert sorted(counts["disorderly"]) == [3, 9]
    assert counts["one patch"] == [1]


def test_locations_can_be_learned():
    """A location that wants a gradient gets it, row by row, though rows are equal."""
    model = DrasCLREncoder(experts=2, features=8).eval()
    locations = SPOTS[:1].repeat(3, 1).requires_grad_()
    patches = torch.randn(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    model(patches, locations)[1].sum().backward()
    assert [bool(row.any()) for row in locations.grad] == [False, True, False]


@torch.no_grad()
def test_no_patches_give_no_features(encoder):
    """As with any network of PyTorch."""
    assert encoder(torch.zeros(0, 1, 32, 32, 32), torch.zeros(0, 3)).shape == (0, 128)


@pytest.mark.slow
def test_kernels_are_mixed_once_per_location(encoder, monkeypatch):
    """Inside `cache_kernels`: the same features, to the bit; at most `limit` locations, the latest, are kept."""
    mixed = []
    mix = ConditionalConv3d.mix
    monkeypatch.setattr(ConditionalConv3d, "mix", lambda self, place: mixed.append(self) or mix(self, place))
    patches, locations = reference_input()
    with torch.no_grad():
        expected = [encoder(patches, place) for place in locations]
    mixed.clear()
    with encoder.cache_kernels(limit=2):
        for i in (0, 1, 0, 1, 2, 0):
            assert torch.equal(encoder(patches, locations[i]), expected[i])
            assert not encoder(patches, locations[i]).requires_grad
        assert len(mixed) == 4 * 13  # 0, 1, 2, and 0 again, which had to make room
        together = encoder(patches[:1].expand(8, -1, -1, -1, -1), locations[:2].repeat(4, 1))
        assert relative_error(together[:1], expected[0][:1].numpy()) < TOLERANCE
    encoder(patches, locations[0])
    assert len(mixed) > 5 * 13
    assert pickle.dumps(encoder)


def test_kernels_are_not_kept_while_they_change():
    """In training mode; and after the block a changed weight counts."""
    model = DrasCLREncoder(experts=2, features=8)
    with pytest.raises(OptionError, match=r"call model\.eval\(\)"), model.cache_kernels():
        pass
    patches, locations = reference_input()
    with model.eval().cache_kernels():
        before = model(patches, locations[0])
    torch.nn.init.zeros_(model.conv4.weight)
    assert not torch.equal(model(patches, locations[0]), before)


@pytest.mark.parametrize("shape", [(2, 1, 31, 32, 32), (2, 1, 64, 64, 64), (2, 3, 32, 32, 32), (1, 32, 32, 32)])
def test_patches_of_another_shape_are_refused(shape, encoder):
    """With the shape that is expected."""
    with pytest.raises(InputContractError, match=r"\(N, 1, 32, 32, 32\) is expected"):
        encoder(torch.zeros(shape), torch.zeros(3))


def test_patches_in_hu_are_told_how_to_be_scaled(encoder):
    """Integers, as preprocessing writes them, and arrays; floats of another width are PyTorch's to refuse."""
    stored = np.zeros((2, 1, 32, 32, 32), np.int16)
    with pytest.raises(InputContractError, match=r"patches are torch\.int16: .*data\.scale\(patches\)"):
        encoder(torch.from_numpy(stored), torch.zeros(3))
    with pytest.raises(InputContractError, match="patches are ndarray: a tensor of floats"):
        encoder(stored, torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"Input type \(double\)"):
        encoder(torch.from_numpy(stored).double(), torch.zeros(3))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (None, r"location of the patches is NoneType: a tensor \(2, 3\) of floats"),
        (np.zeros((2, 3), np.float32), r"is ndarray.*torch\.from_numpy"),
        (torch.tensor([[26, 130, 26]]), r"is torch\.int64.*normalise\(landmarks\)"),
        (torch.zeros(2, 4), r"shape \(2, 4\) for 2 patches: \(2, 3\) is expected, or \(3,\)"),
        (torch.zeros(3, 3), r"shape \(3, 3\) for 2 patches"),
        (torch.tensor(0.0), r"shape \(\)"),
        (torch.zeros(3, 2), r"shape \(3, 2\)"),
    ],
)
def test_locations_of_another_shape_are_refused(location, message, encoder):
    """Missing, no tensor, voxel indices, too few or too many."""
    with pytest.raises(InputContractError, match=message):
        encoder(torch.zeros(2, 1, 32, 32, 32), location)


def test_values_of_locations_can_be_checked():
    """NaN and voxel indices; the network itself does not look."""
    check_locations(SPOTS)
    check_locations(torch.tensor([-1.0, 0.0, 1.0]))
    with pytest.raises(InputContractError, match="from 0 to 312; from -1 to 1 is expected"):
        check_locations(torch.tensor([[0.0, 130.0, 312.0]]))
    with pytest.raises(InputContractError, match="from nan to nan"):
        check_locations(torch.tensor([[0.0, float("nan"), 0.0]]))


# --- the atlas --------------------------------------------------------------------------------------------------------

LANDMARKS = np.array([[26, 78, 0], [52, 78, 0], [26, 104, 0], [312, 286, 286], [52, 104, 0]])
"""With the smallest and largest coordinates of the authors'."""


def test_locations_are_scaled_by_the_largest_coordinate():
    """The smallest plays no part: the authors' begin at -0.8333, -0.4545 and -1."""
    scaled = normalise(LANDMARKS)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled[0], (2 * 26 / 312 - 1, 2 * 78 / 286 - 1, -1), atol=1e-7)
    assert scaled[3].tolist() == [1, 1, 1]
    check_locations(torch.from_numpy(scaled))
    with pytest.raises(OptionError, match=r"reach up to \[26, 78, 0\]"):
        normalise(LANDMARKS[:1])


def test_neighbours_are_the_nearest_and_then_the_first():
    """Ties go to the smaller index; a landmark is not its own neighbour, wherever a tie would put it."""
    assert neighbours(LANDMARKS).tolist() == [[1, 2], [0, 4], [0, 4], [4, 1], [1, 2]]
    grid = 26 * np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    table = neighbours(grid, k=6)
    for i, row in enumerate(table):
        far = np.linalg.norm(grid - grid[i], axis=1)
        others = sorted((distance, j) for j, distance in enumerate(far) if j != i)
        assert row.tolist() == [j for _, j in others[:6]]
    with pytest.raises(OptionError, match="5 neighbours among 5 landmarks: expected from 1 to 4"):
        neighbours(LANDMARKS, k=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 2), int), r"holds int64 \(4, 2\); landmarks are expected"),
        (np.zeros((4, 3)), r"holds float64 \(4, 3\)"),
        (np.zeros((0, 3), int), r"\(0, 3\)"),
        (np.full((4, 3), -1), "counted from 0"),
        (np.array([{}]), "cannot read landmarks"),
    ],
)
def test_what_holds_no_landmarks_is_refused(content, message, tmp_path):
    """With the file and what was found."""
    np.save(tmp_path / "landmarks.npy", content)
    with pytest.raises(InputContractError, match=message):
        load_landmarks(tmp_path / "landmarks.npy")
    (tmp_path / "text.npy").write_text("26 130 26")
    with pytest.raises(InputContractError, match=r"text\.npy: a whole \.npy file is expected"):
        load_landmarks(tmp_path / "text.npy")


def test_the_record_is_the_authors_file(encoder_state):
    """Without a digest and with the reason; fingerprint of the query encoder; both assets pinned to one commit."""
    (record,) = records(NAME)
    assert record.sources == ("gdrive:1C3jUUfPZDmeufy3kcH_ShdTSknFs0bih",)
    assert (record.state, record.trained_by, record.bytes, record.sha256) == ("hosted", "authors", None, None)
    assert "digest" in record.sha256_note
    assert record.fingerprint == {NAME: fingerprint(get_entry(NAME).convert(training_state(encoder_state))[0])}
    assert record.licences["code"]["licence"] == "MIT"
    assert "not stated" in record.licences["weights"]["licence"]
    commit = "899e3136e3270a6f874fc3ec4c52f0d0892af92b"
    for name, file in (("landmarks", "atlas_patch_loc.npy"), ("lung_mask", "atlas_lung_mask.nii.gz")):
        asset = record.assets[name]
        assert asset.sources == (
            f"https://raw.githubusercontent.com/batmanlab/DrasCLR/{commit}/preprocess/misc/{file}",
        )
        assert asset.bytes
        assert len(asset.sha256) == 64


def test_without_a_connection_it_says_what_to_do(monkeypatch, tmp_path):
    """Which file, how large, from where, and where to put it, in the cache that is named."""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(
        OfflineError, match=r"landmarks of drasclr-cnn3d needs atlas_patch_loc\.npy \(14,072 "
    ) as caught:
        load_landmarks()
    assert "put the file by hand at" in str(caught.value)
    with pytest.raises(OfflineError, match=r"lung mask of drasclr-cnn3d needs atlas_lung_mask\.nii\.gz"):
        atlas_mask()
    for read in (load_landmarks, atlas_mask):
        with pytest.raises(OfflineError, match=f"by hand at {tmp_path / 'cache'}"):
            read(cache_dir=tmp_path / "cache")


@pytest.mark.slow
def test_a_download_brings_the_atlas_along(tmp_path, encoder_state, monkeypatch):
    """Weights, landmarks and mask in one go; then all of them load without a connection, though a record lists none."""
    mask = nibabel.Nifti1Image(np.full((4, 5, 6), 50, np.int16), np.diag([-1.0, 1.0, 1.0, 1.0]))
    (tmp_path / "mask.nii.gz").write_bytes(gzip.compress(mask.to_bytes()))
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    torch.save(training_checkpoint(training_state(encoder_state)), tmp_path / "weights.pth")

    def facts(name):
        path = tmp_path / name
        return {"sources": [f"file:{path}"], "bytes": path.stat().st_size, "sha256": hash_file(path)}

    record = {"models": [NAME], "state": "hosted"} | facts("weights.pth")
    assets = {"landmarks": facts("landmarks.npy"), "lung_mask": facts("mask.nii.gz")}
    manifest = [record | {"tag": "mine"}, record | {"tag": "theirs", "assets": assets}]
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": manifest}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    zoo.download_weights(f"{NAME}.theirs", progress=False)
    for path in ("weights.pth", "landmarks.npy", "mask.nii.gz"):
        (tmp_path / path).unlink()
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert same(zoo.load_model(NAME).state_dict(), backbone(encoder_state))
    found = load_landmarks()
    assert found.dtype == np.int64
    assert np.array_equal(found, LANDMARKS)
    lungs = atlas_mask()
    assert np.array_equal(np.asarray(lungs.dataobj), np.asarray(mask.dataobj))
    assert np.array_equal(lungs.affine, mask.affine)


# --- the input --------------------------------------------------------------------------------------------------------


def scan(codes="LAS", spacing=1.0):
    """A CT of 40 x 36 x 44 mm in HU whose values tell x, y and z, and one bright voxel at (30, 20, 10) mm."""
    x, y, z = np.meshgrid(*(np.arange(0, side, spacing) for side in (40, 36, 44)), indexing="ij")
    values = np.asarray(-1000 + 5 * x + 10 * y + 3 * z, np.float32)
    values[tuple(int(mm / spacing) for mm in (30, 20, 10))] = 3000
    image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-spacing, spacing, spacing, 1.0]))
    start = nibabel.orientations.axcodes2ornt("LAS")
    return image.as_reoriented(nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(codes)))


@pytest.mark.parametrize("codes", ["LAS", "LPS", "RAI", "SPR"])
def test_a_scan_becomes_an_array_on_the_axes_of_the_atlas(codes):
    """(z, y, x), whichever way the file has them: x to the left, y to the front, z to the top."""
    volume = zoo.load_transform(NAME)(scan(codes))
    assert volume.shape == (1, 44, 36, 40)
    assert volume.dtype == torch.float32
    assert (volume[0] == volume.max()).nonzero().tolist() == [[10, 20, 30]]
    # HU are clipped to [-1024, 240], raised by 1024, divided by 632 and lowered by 1.
    assert volume.max() == 1
    expected = (-1000 + 5 * 7 + 10 * 6 + 3 * 5 + 1024) / 632 - 1
    assert volume[0, 5, 6, 7].item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_patches_of_a_scan_go_in(encoder):
    """Cut at an index (x, y, z), reversed; features are finite and differ between places."""
    volume = zoo.load_transform(NAME)(scan(spacing=2.0))[0]
    assert volume.shape == (43, 35, 39)
    corners = [(0, 0, 0), (7, 3, 11)]
    patches = torch.stack([volume[z : z + 32, y : y + 32, x : x + 32] for x, y, z in corners])[:, None]
    features = encoder(patches, SPOTS[:2])
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])


def test_scans_are_resampled_by_cubic_splines():
    """As ITK does, which cut the authors' patches; clipped after, for splines overshoot."""
    itk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).normal(-400, 400, (28, 24, 26)).astype(np.float32)
    values = values.clip(-1024)  # what lies below is padding, which is made air before
    volume = zoo.load_transform(NAME)(nibabel.Nifti1Image(values, np.diag([-1.5, 1.5, 1.5, 1.0])))[0].numpy()
    image = itk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing([1.5] * 3)
    size, direction = volume.shape[::-1], image.GetDirection()
    theirs = itk.Resample(image, size, itk.Transform(), itk.sitkBSpline, image.GetOrigin(), [1.0] * 3, direction, -1024)
    expected = (itk.GetArrayFromImage(theirs).clip(-1024, 240) + 1024) / 632 - 1
    inside = (slice(12, -12),) * 3  # the two continue the volume otherwise at its edges, which fades by 0.27 a voxel
    assert np.abs(volume - expected)[inside].max() < 1e-4
    linear = build_transform(replace(get_entry(NAME).preprocessing, spline=None))
    assert np.abs(linear(nibabel.Nifti1Image(values, np.diag([-1.5, 1.5, 1.5, 1.0])))[0].numpy() - volume).max() > 0.1


def test_what_is_no_ct_in_hu_is_refused(caplog):
    """A window of 0 to 255, NaN, an array of unknown voxels; thick slices are warned of."""
    transform = zoo.load_transform(NAME)
    windowed = nibabel.Nifti1Image(np.linspace(0, 255, 40**3).reshape(40, 40, 40).astype(np.uint8), np.eye(4))
    with pytest.raises(InputContractError, match="values from 0 to 255: HU are expected, where air is -1000"):
        transform(windowed)
    broken = np.asarray(scan().dataobj, np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputContractError, match="1 NaN or infinite"):
        transform(nibabel.Nifti1Image(broken, np.diag([-1.0, 1.0, 1.0, 1.0])))
    with pytest.raises(InputContractError, match="without the size and direction of its voxels"):
        transform(np.asarray(scan().dataobj))
    transform(nibabel.Nifti1Image(np.asarray(scan().dataobj)[:, :, ::4], np.diag([-1.0, 1.0, 5.0, 1.0])))
    assert "5 mm" in warnings(caplog)[0]


@pytest.mark.parametrize("stray", ["downsample1.queue", "conv2.encoder_k.weight", "conv5.weight"])
def test_a_tensor_that_the_network_does_not_have_is_refused(stray, encoder_state, saved):
    """What stands behind the network's prefix is named, not passed over, whatever its name ends with."""
    with pytest.raises(CheckpointMismatchError, match=rf"unexpected \(1\): {re.escape(stray)}"):
        zoo.load_model(NAME, checkpoint=saved(behind("module.encoder_q.", encoder_state | {stray: torch.ones(3)})))
