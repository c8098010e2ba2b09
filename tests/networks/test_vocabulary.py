"""Every network of the registry answers timm's vocabulary, and can be copied, trained, compiled and exported.

The networks are small where fewer layers of a kind or narrower ones do, with random values; shapes are those of whole
networks without values. A cell of the table that says no is one whose error is clear.
"""

import copy
import importlib.util
import io
import pickle
import re
import weakref
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import torch._dynamo  # first: torch 2.6 failed when a checkpoint or an export was what imported it
import torch.distributed as dist
from capabilities import CAPABILITIES, EXCEPTIONS
from small_networks import ALIKE, SMALL, build_small, inputs_of, on_meta
from states import same
from torch import nn
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel

import zoo
from zoo.errors import OptionError
from zoo.networks.vocabulary import Vocabulary, stages_wanted
from zoo.registry import entries, get_entry
from zoo.training import distributed

CHECKOUT = Path(__file__).parents[2]
TIMMS = ("caid-resnet50", "rad-dino-vitb14")
"""timm's own classes, which have timm's own methods."""
ROUNDING = 1e-5
"""Relative to the largest number: a graph, and onnxruntime, sum in another order."""
HALF = 0.08
"""bfloat16 has 8 bits, and the least of these networks 10 layers; a network that computes something else is 1 away."""


def difference(ours, theirs):
    """Largest difference, relative to the largest number."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


def first(outputs):
    """The output, or the finest of several levels."""
    return outputs[0] if isinstance(outputs, list) else outputs


@cache
def network_of(name):
    """One network in eval mode for all tests that do not change it."""
    return build_small(name)


def fresh(name):
    """A network that a test may change."""
    return copy.deepcopy(network_of(name))


@cache
def outputs_of(name, count, shape=None):
    with torch.no_grad():
        return network_of(name)(*inputs_of(name, count, shape))


# --- the capabilities -------------------------------------------------------------------------------------------------


def features(name):
    """Maps are those that the modules of `feature_info` return, whichever are asked for."""
    network, inputs = network_of(name), inputs_of(name)
    modules, seen = [stage["module"] for stage in network.feature_info], {}
    hooks = [
        network.get_submodule(module).register_forward_hook(lambda _, __, out, at=module: seen.update({at: out}))
        for module in modules
    ]
    with torch.no_grad():
        try:
            maps = network.forward_intermediates(*inputs, intermediates_only=True)
        finally:
            for hook in hooks:
                hook.remove()
        for module, found in zip(modules, maps, strict=True):
            assert torch.equal(found, as_map(seen[module], found))
        ends = network.forward_intermediates(*inputs, indices=[-1, 0], intermediates_only=True)
        early = network.forward_intermediates(*inputs, indices=[0], stop_early=True, intermediates_only=True)
        assert all(torch.equal(*pair) for pair in zip([*ends, *early], (maps[0], maps[-1], maps[0]), strict=True))
        last = network.forward_intermediates(*inputs, indices=1, norm=True, intermediates_only=True)
        whole, _ = network.forward_intermediates(*inputs, indices=1, intermediates_only=False)
        features = network.forward_features(*inputs)
    if get_entry(name).is_encoder:
        assert torch.equal(last[0], features)
    if name == "rad-dino-vitb14":  # timm's tuple has what its `forward_head` takes: all tokens
        whole = as_map(whole, maps[-1])
    assert torch.equal(whole, features)


def as_map(found, like):
    """Tokens `(N, ..., C)`, a class token first or none, as the map that they are."""
    if found.ndim == like.ndim:
        return found
    return found[:, -like[0, 0].numel() :].transpose(1, 2).reshape(like.shape)


def head(name):
    """A new one gives that many outputs and no other features; none gives what it took."""
    network, inputs = fresh(name), inputs_of(name)
    width, names = network.num_features, set(network.state_dict())
    body = {n: t.clone() for n, t in network.state_dict().items() if not n.startswith(get_entry(name).head)}
    network.train().reset_classifier(3)
    assert network.num_classes == 3
    assert all(module.training for module in network.modules())
    assert same({n: t for n, t in network.state_dict().items() if n in body}, body)
    network.eval()
    with torch.no_grad():
        assert network(*inputs).shape[:2] == (2, 3)
        network.reset_classifier(0, *(() if name in TIMMS else (None,)))  # the pooling that it has
        assert isinstance(network.get_classifier(), nn.Identity)
        assert network(*inputs).shape[:2] == (2, width)
    assert network.num_features == width
    network.reset_classifier(2)
    assert names <= set(network.state_dict())


def recompute(name):
    """The same losses and gradients from fewer kept numbers; batch norms count a batch once, timm's own do it twice."""
    plain = fresh(name).train()
    frugal = copy.deepcopy(plain)
    frugal.set_grad_checkpointing()
    kept = [kept_for_backward(network, inputs_of(name)) for network in (plain, frugal)]
    assert kept[1] < 0.9 * kept[0]
    for (at, ours), theirs in zip(frugal.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), at
    if name not in TIMMS:
        assert same(frugal.state_dict(), plain.state_dict())
    frugal.set_grad_checkpointing(False)
    assert kept_for_backward(frugal, inputs_of(name)) == kept[0]


def kept_for_backward(network, inputs):
    """Train for a step; returns how many numbers autograd kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        loss = loss_of(network(*inputs))
    loss.backward()  # outside, for timm before 1.0.13 keeps there what it computes again
    return sum(kept)


def loss_of(outputs):
    """A weighted mean: that of squares would have no gradient behind a norm over channels."""
    every = outputs if isinstance(outputs, list) else [outputs]
    return sum((found.flatten() * torch.linspace(-1, 1, found.numel())).mean() for found in every)


def no_decay(name):
    """Names of positions and class tokens, all of them, and of nothing else that the network has."""
    network = network_of(name)
    own = {n for n, _ in network.named_parameters()}
    words = ("position_embeddings", "relative_position_bias_table", "pos_embed", "cls_token")
    assert network.no_weight_decay() & own == {n for n in own if n.endswith(words)}
    assert name in TIMMS or network.no_weight_decay() <= own


def copies(name):
    """They give the same numbers, and share nothing."""
    network, inputs = network_of(name), inputs_of(name)
    second = fresh(name)
    for parameter in second.parameters():
        nn.init.constant_(parameter, 0.1)
    second.load_state_dict(network.state_dict(), strict=True)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), second):
        with torch.no_grad():
            assert torch.equal(other(*inputs), outputs_of(name, 2))
    addresses = {parameter.data_ptr() for parameter in network.parameters()}
    assert not any(parameter.data_ptr() in addresses for parameter in second.parameters())


def ddp(name):
    """A second forward pass raises where the first step left a parameter out."""
    network = fresh(name).train()
    wrapped = DistributedDataParallel(network)
    loss_of(wrapped(*inputs_of(name))).backward()
    wrapped(*inputs_of(name))
    assert not [at for at, parameter in network.named_parameters() if parameter.grad is None]


def per_sample(name):
    """The second image's gradient is that of a batch which it is alone in."""
    network, inputs = network_of(name), inputs_of(name)
    parameters = {at: parameter.detach() for at, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(values, *one):
        return loss_of(torch.func.functional_call(network, (values, buffers), tuple(t[None] for t in one)))

    each = torch.func.vmap(torch.func.grad(loss), (None, *(0 for _ in inputs)))(parameters, *inputs)
    alone = torch.func.grad(loss)(parameters, *(t[1] for t in inputs))
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    other, own = (max(float((each[at][i] - alone[at]).abs().max()) for at in alone) for i in (0, 1))
    # Small maps have norms of few voxels, which amplify the rounding of what they divide.
    assert own < 1e-3 * largest
    assert other > 10 * own


@cache
def exported(name):
    inputs = inputs_of(name)
    images = Dim("images", min=2, max=64)
    return export(name, tuple({0: images} for _ in inputs))


def export(name, shapes):
    """By running the network, as torch does by default since 2.8 at the latest."""
    return torch.export.export(network_of(name), inputs_of(name), dynamic_shapes=shapes, strict=False)


def batch(name):
    """A graph made of two images takes three."""
    with torch.no_grad():
        assert difference(exported(name).module()(*inputs_of(name, 3)), outputs_of(name, 3)) < ROUNDING


def sizes(name):
    """A graph made of one size takes another."""
    small, inputs = SMALL[name], inputs_of(name)
    images = Dim("images", min=2, max=64)
    open_sides = {
        axis: small.step * Dim(f"cells{axis}", max=64)
        if small.step > 1
        else Dim(f"side{axis}", min=small.least, max=512)
        for axis in range(2, inputs[0].ndim)
    }
    shapes = ({0: images, **open_sides}, *({0: images} for _ in inputs[1:]))
    graph = export(name, shapes).module()
    larger = (small.shape[0], *(side + (small.step if small.step > 1 else 5) for side in small.shape[1:]))
    with torch.no_grad():
        assert difference(graph(*inputs_of(name, 3, larger)), outputs_of(name, 3, larger)) < ROUNDING


def compiled(name):
    """One graph, without a break."""
    torch._dynamo.reset()
    graph = torch.compile(network_of(name), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert difference(graph(*inputs_of(name)), outputs_of(name, 2)) < ROUNDING


def onnx(name):
    """Onnxruntime has the numbers of torch for one image and for three."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [test] has it")
    program = torch.onnx.export(exported(name), inputs_of(name), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for count in (1, 3):
        given = {slot.name: t.numpy() for slot, t in zip(session.get_inputs(), inputs_of(name, count), strict=True)}
        found = torch.from_numpy(session.run(None, given)[0])
        assert difference(found, outputs_of(name, count)) < 10 * ROUNDING  # another convolution, not only another order


def bf16(name):
    """As a network of bfloat16, and under autocast."""
    network = fresh(name).bfloat16()
    with torch.no_grad():
        found = network(*(t.bfloat16() for t in inputs_of(name)))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network_of(name)(*inputs_of(name))
    assert found.dtype == torch.bfloat16
    assert max(difference(found, outputs_of(name, 2)), difference(mixed, outputs_of(name, 2))) < HALF


def one(name):
    """Outputs of a single image are finite."""
    assert first(fresh(name).train()(*inputs_of(name, 1))).isfinite().all()


CHECKS = {
    "features": features,
    "head": head,
    "recompute": recompute,
    "no decay": no_decay,
    "copies": copies,
    "DDP": ddp,
    "per sample": per_sample,
    "batch": batch,
    "sizes": sizes,
    "compile": compiled,
    "ONNX": onnx,
    "bf16": bf16,
    "one": one,
}


def lacking_in_torch(name, capability):
    """What keeps torch 2.6 from exporting a network."""
    small = SMALL[name]
    if capability == "sizes" and name == "brainiac-vitb16":
        return "the axes of its positions are taken for constants"
    if capability == "sizes" and small.step in small.shape[1:]:
        return "an open axis may not have one cell in the example"
    if capability == "sizes" and name in ("brainiac-resnet50", "caid-resnet50", "fmcib-resnet50", "yaware-densenet121"):
        return "whether a side is even becomes a condition"
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    if capability == "ONNX" and any(isinstance(module, norms) for module in network_of(name).modules()):
        return "norms over maps fail with onnxscript 0.7"
    return None


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A process group of this process alone, for DistributedDataParallel."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.stop()
    for kept in (network_of, outputs_of, exported):
        kept.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "capability"), [*product(SMALL, CAPABILITIES)])
def test_a_cell_of_the_table(name, capability):
    """A network can, or says by the error on record why it cannot."""
    if torch.__version__ < "2.7" and (lacking := lacking_in_torch(name, capability)):
        pytest.skip(f"torch 2.6: {lacking}")
    no = EXCEPTIONS.get((name, capability))
    if no is None:
        return CHECKS[capability](name)
    with pytest.raises(Exception, match=no.said) as caught:
        CHECKS[capability](name)
    assert caught.type.__name__ == no.error
    return None


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_in_contributing_is_that_of_the_tests():
    """`python scripts/capabilities_table.py` writes it."""
    path = CHECKOUT / "scripts" / "capabilities_table.py"
    spec = importlib.util.spec_from_file_location("capabilities_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.contributing() == script.CONTRIBUTING.read_text("utf-8")
    assert CHECKS.keys() == CAPABILITIES.keys()


def test_every_network_of_the_registry_has_a_row():
    """A new entry is small somewhere, or like one that is."""
    assert {*SMALL, *ALIKE} == set(entries())
    assert all(EXCEPTIONS.get((name, c)) == EXCEPTIONS.get((ALIKE[name], c)) for name in ALIKE for c in CAPABILITIES)


@pytest.mark.parametrize("name", ALIKE)
def test_networks_that_differ_in_width_alone_are_built_of_the_same_modules(name):
    """So that what the small one can, they can: the same classes under the same names, but for a v2's convolutions.

    The small one has layers of every kind that the whole one has.
    """
    whole = classes_in(on_meta(name))
    assert whole == classes_in(on_meta(ALIKE[name]))
    assert {kind for _, kind in whole} <= {kind for _, kind in classes_in(network_of(ALIKE[name]))}


def classes_in(network):
    return [(at, type(module)) for at, module in network.named_modules() if not re.search(r"layers\dc", at)]


@pytest.mark.parametrize("name", entries())
def test_a_whole_network_says_what_its_maps_are(name):
    """Channels and strides of each stage, and the width of what the head takes, at the published size."""
    network, inputs = on_meta(name), [t.to("meta") for t in inputs_of(name)]
    maps = network.forward_intermediates(*inputs, intermediates_only=True)
    sides = inputs[0].shape[2:]
    for found, stage in zip(maps, network.feature_info, strict=True):
        assert tuple(found.shape[1:]) == (stage["num_chs"], *(-(-side // stage["reduction"]) for side in sides))
    assert network.num_features in (get_entry(name).num_features, network.forward_features(*inputs).shape[1])
    assert get_entry(name).num_features in (None, network.num_features)


# --- what is asked for wrongly, and what a head leaves behind ---------------------------------------------------------


@pytest.mark.parametrize("indices", [0, 7, [6], [-7], []])
def test_stages_that_are_not_there_are_refused(indices):
    """With those that are, for a network of six."""
    network, x = network_of("glcl-encoder"), inputs_of("glcl-encoder")[0]
    with pytest.raises(OptionError, match=r"1 to 6|-6 to 5"):
        network.forward_intermediates(x, indices)
    with pytest.raises(OptionError, match="output_fmt='NLC'"):
        network.forward_intermediates(x, output_fmt="NLC")
    assert stages_wanted(None, 3) == stages_wanted(3, 3) == stages_wanted([-1, 0, 1], 3) == {0, 1, 2}


@pytest.mark.parametrize("name", [name for name in SMALL if name != "monai-ssl-vitautoenc"])  # which takes no head
@pytest.mark.parametrize("outputs", [-1, True, 2.0, None])
def test_a_number_of_outputs_that_cannot_be_is_refused_by_all(name, outputs):
    """A ResNet of timm's makes a layer without an output of -1, its ViT no head; and the network stays as it is."""
    network = network_of(name)
    before = network.get_classifier()
    with pytest.raises(OptionError, match=re.escape(f"num_classes={outputs!r}: expected a whole number")):
        network.reset_classifier(outputs)
    assert network.get_classifier() is before


@pytest.mark.parametrize(("given", "said"), [((2, "max"), "'avg' or None")])
def test_heads_that_cannot_be_are_refused(given, said):
    """And the network stays as it is."""
    network = network_of("glcl-encoder")
    with pytest.raises(OptionError, match=said):
        network.reset_classifier(*given)
    assert isinstance(network.get_classifier(), nn.Identity)


def test_a_decoder_of_fewer_blocks_takes_no_head():
    """As where it is built; a U-Net has no pooling to name."""
    network = build_small("glcl-unet", blocks=2, num_classes=0)
    with pytest.raises(OptionError, match="blocks=5"):
        network.reset_classifier(2)
    with pytest.raises(OptionError, match="outputs are maps"):
        network.reset_classifier(0, "avg")


@pytest.mark.parametrize("name", [n for n in SMALL if "projection" in get_entry(n).config])
def test_a_classifier_takes_the_place_of_a_projection_head(name):
    """And nothing of that head stays in the state dict."""
    network, inputs = build_small(name, projection=True), inputs_of(name)
    network.reset_classifier(5)
    assert network(*inputs).shape == (2, 5)
    network.reset_classifier(0)
    assert network.state_dict().keys() == build_small(name).state_dict().keys()


def as_loaded(name, **options):
    """A network whose report says that all of it came from a file."""
    network = zoo.load_model(name, pretrained=False, **options)
    report = zoo.load_report(network)
    report.loaded.update(dict.fromkeys(network.state_dict(), "as stored"))
    report.fresh.clear()
    return network


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("caid-resnet50", "fc"), ("rad-dino-vitb14", "head")])
def test_the_report_of_timms_networks_says_that_a_head_is_new(name, head, caplog):
    """Not that it was loaded; without a head the old one is left out, which was asked for and is no warning."""
    network = as_loaded(name, num_classes=3)
    second = copy.deepcopy(network)
    network.reset_classifier(4)
    after = zoo.load_report(network)
    names = (f"{head}.weight", f"{head}.bias")
    assert after.fresh == dict.fromkeys(names, "reset_classifier")
    assert after.loaded.keys() == network.state_dict().keys() - after.fresh.keys()
    network = second
    network.reset_classifier(0)
    assert zoo.load_report(network).dropped == dict.fromkeys(names, "reset_classifier")
    assert "leaves out" not in caplog.text


@pytest.mark.slow
def test_a_copy_of_timms_network_resets_its_own_head():
    """Not that of the network which it is a copy of; and a network that is deleted is gone, without a cycle."""
    network = as_loaded("caid-resnet50", num_classes=3)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        copied.reset_classifier(5)
        assert (copied.fc.out_features, network.fc.out_features) == (5, 3)
        assert zoo.load_report(copied).fresh
        assert not zoo.load_report(network).fresh
    alive = weakref.ref(network)
    del network
    assert alive() is None


def test_a_norm_that_was_trained_stays_under_a_new_head_and_goes_with_a_word(caplog):
    """y-Aware's last norm: with other classes it is what was loaded, without a head it is warned of and reported."""
    network = as_loaded("yaware-densenet121", num_classes=2)
    norm = network.features.norm5
    network.reset_classifier(3)
    assert network.features.norm5 is norm
    assert set(zoo.load_report(network).fresh) == {"class_layers.out.weight", "class_layers.out.bias"}
    network.reset_classifier(0)
    gone = {name for name in zoo.load_report(network).dropped if name.startswith("features.norm5.")}
    assert len(gone) == 5
    assert (
        "reset_classifier(0) of yaware-densenet121 leaves out, beside the head, what was loaded: features"
        in caplog.text
    )


def test_the_report_says_that_a_head_is_new():
    """Its tensors are not what was loaded, and the number of classes is no longer that of the file."""
    network = as_loaded("genesis-unet3d")
    network.reset_classifier(4)
    after = zoo.load_report(network)
    assert after.fresh == dict.fromkeys(("out_tr.final_conv.weight", "out_tr.final_conv.bias"), "reset_classifier")
    assert after.loaded.keys() == network.state_dict().keys() - after.fresh.keys()
    assert (after.options["num_classes"], after.said_by["num_classes"]) == (4, "reset_classifier")
    network.reset_classifier(0)
    assert zoo.load_report(network).fresh == {}


def test_checkpoints_leave_a_cumulative_average_alone():
    """A batch norm without momentum divides by the batches that it counts."""
    network = build_small("glcl-encoder").train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    frugal = copy.deepcopy(network)
    frugal.set_grad_checkpointing()
    for other in (network, frugal):
        loss_of(other(*inputs_of("glcl-encoder"))).backward()
    assert same(network.state_dict(), frugal.state_dict())
    assert frugal.enc_c1_a_bn.momentum is None


def test_a_new_head_is_of_the_networks_kind():
    """In bfloat16 as the rest, and saved with it."""
    network = build_small("ct-fm-segresnet").bfloat16()
    network.reset_classifier(2)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    assert network.up_layers[3]["head"] is network.get_classifier()
    assert isinstance(network, Vocabulary)
