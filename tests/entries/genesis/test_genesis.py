"""Models Genesis and TransVW: the authors' outputs, whose statistics norms take, every form of file, heads, records."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from caid_files import behind, filled_unet, relative_error
from genesis_files import (
    DROPPED,
    ENCODER,
    FORMS,
    KEYS,
    UNET,
    encoder_part,
    filled_network,
    genesis,
    nnunet,
    reference,
    reference_input,
    target_net,
    transvw,
    zeros,
)
from states import same
from texts import warnings

import zoo
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.entries.genesis.model import GenesisEncoder, GenesisUNet3D, StatelessNorm
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, InputContractError, OptionError
from zoo.manifest import records
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. Eighteen convolutions with sums in another order differ by some 3e-6; other statistics or axes by 0.1."""
WRONG = 0.1
"""What is not the authors' function lies at least so far from it: that the tolerance tells it apart is sure."""
FEW = (16, 8, 8)
"""The smallest volume that the network takes. Of two voxels in the last map statistics tell nothing but the sign."""
SOME = (32, 16, 16)
"""One whose last map has sixteen, so that its outputs can be compared within the tolerance."""


@pytest.fixture(scope="module")
def state():
    """The U-Net's tensors."""
    return filled_network()


@pytest.fixture(scope="module")
def published(scratch, state):
    """The published file's form, written as PyTorch before 1.6 did."""
    path = scratch / "Genesis_Chest_CT.pt"
    torch.save(genesis(state), path, _use_new_zipfile_serialization=False)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def encoder(published):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(ENCODER, checkpoint=published)


@pytest.fixture(scope="module")
def unet(published):
    """Loaded once, for tests that change nothing."""
    return zoo.load_model(UNET, checkpoint=published)


def load(name, path, **options):
    return zoo.load_model(name, checkpoint=path, mmap=True, **options)


def volumes(count=2, sides=FEW, channels=1):
    """Volumes of unequal brightness."""
    drawn = torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(0))
    return drawn / torch.arange(1, count + 1).reshape(-1, 1, 1, 1, 1)


def with_norm(model, norm):
    """The same network with other statistics."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "norm"):
            module.norm = norm
    return other


# --- the authors' outputs ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors_for_each_volume_alone(encoder, unet):
    """Two volumes in one batch give what the authors' code gives for each by itself: map, features, restored volume."""
    x, theirs = reference_input(), reference()
    last, features = encoder.forward_features(x), encoder(x)
    assert last.shape == (2, 512, 4, 6, 3)
    assert relative_error(last[:, ::4], theirs["map"]) < TOLERANCE
    assert relative_error(features, theirs["pooled"]) < TOLERANCE
    assert torch.equal(features, last.mean(dim=(2, 3, 4)))
    restored = unet(x)
    assert restored.shape == x.shape
    assert relative_error(restored[..., ::2, ::2, ::2], theirs["recon"]) < TOLERANCE
    assert relative_error(encoder(x[1:]), theirs["pooled"][1:]) < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_the_batch_is_normalised_together_where_that_is_asked_for(published):
    """`norm="batch"` is the authors' function for a batch, and not that of each volume alone."""
    x, theirs = reference_input(), reference()
    encoder, unet = (load(name, published, norm="batch") for name in (ENCODER, UNET))
    features = encoder(x)
    assert relative_error(features, theirs["pooled_batch"]) < TOLERANCE
    assert relative_error(unet(x)[..., ::2, ::2, ::2], theirs["recon_batch"]) < TOLERANCE
    assert relative_error(features, theirs["pooled"]) > WRONG
    assert relative_error(encoder(x[:1]), theirs["pooled"][:1]) < TOLERANCE  # of one volume they are the same function
    assert zoo.load_report(encoder).options == {"norm": "batch"}


@pytest.mark.slow
@torch.no_grad()
def test_stored_statistics_and_other_axes_are_other_functions(published, encoder):
    """The buffers are decoys, and (z, y, x) is not the authors' order: neither passes for their outputs."""
    x, theirs = reference_input(), reference()
    running = load(ENCODER, published, norm="running")(x)
    assert relative_error(running, theirs["pooled"]) > WRONG
    assert relative_error(running, theirs["pooled_batch"]) > WRONG
    assert relative_error(encoder(x.transpose(2, 4)), theirs["pooled"]) > WRONG


@torch.no_grad()
def test_stored_statistics_are_those_of_a_plain_batch_norm():
    """`norm="running"` is torch's norm in eval mode, in training too."""
    plain, ours = torch.nn.BatchNorm3d(4), StatelessNorm(4, "running")
    for tensor in (*plain.parameters(), plain.running_mean, plain.running_var):
        tensor.uniform_(0.5, 2)
    ours.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 4, 3, 5, 2)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), plain.eval()(x))


@pytest.mark.slow
@torch.no_grad()
def test_features_do_not_depend_on_neighbours(encoder, unet):
    """Of a volume in any batch, and of other values beside it; sums in another order differ by some 1e-6."""
    x = volumes(3, SOME)
    for model in (encoder, unet):
        together = model(x)
        for i in range(3):
            assert relative_error(together[i : i + 1], model(x[i : i + 1]).numpy()) < TOLERANCE
        assert relative_error(model(torch.stack([x[0], 9 * x[1]]))[:1], together[:1].numpy()) < TOLERANCE


@pytest.mark.parametrize("norm", ["volume", "batch", "running"])
@pytest.mark.parametrize("training", [False, True])
def test_no_forward_changes_a_buffer(norm, training, unet):
    """In neither mode, while the authors' class changes them in both."""
    model = with_norm(unet, norm).train(training)
    model(volumes())
    assert same(model.state_dict(), unet.state_dict())


def test_training_takes_the_statistics_of_the_batch(encoder):
    """As the authors train, and as their code then computes in eval mode too."""
    x = volumes()
    with torch.no_grad():
        trained, evaluated = with_norm(encoder, "volume").train()(x), with_norm(encoder, "batch")(x)
        assert torch.equal(trained, evaluated)
        assert relative_error(trained, encoder(x).numpy()) > WRONG


def test_nothing_turns_the_norms_into_others(encoder):
    """The conversion of torch for several GPUs passes them over: what it makes reads stored statistics in eval mode."""
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(encoder))
    assert not [m for m in converted.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]


@torch.no_grad()
def test_the_map_is_never_overwritten(encoder):
    """What forward_features returned, and what hooks saw of convolutions and norms, stays as it is."""
    seen = []
    layer = encoder.down_tr512.ops[1]
    hooks = [part.register_forward_hook(lambda m, i, out: seen.append((out, out.clone()))) for part in layer.children()]
    last = encoder.forward_features(volumes())
    before = last.clone()
    encoder(volumes())
    for hook in hooks:
        hook.remove()
    assert len(seen) == 4
    assert all(torch.equal(*pair) for pair in seen)
    assert torch.equal(last, before)


@pytest.mark.parametrize(("name", "options"), [(ENCODER, {}), (ENCODER, {"num_classes": 2}), (UNET, {})])
def test_every_parameter_gets_a_gradient(name, options, published):
    """Nothing lies idle, so that DistributedDataParallel works. Biases before a norm get rounding errors alone."""
    model = load(name, published, **options).train()
    (model(volumes()) ** 2).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 64, 60, 24), r"64 x 60 x 24 voxels; multiples of 8 are expected, next 64 x 64 x 24\. Pad"),
        ((1, 1, 512, 512, 133), r"next 512 x 512 x 136"),
        ((1, 1, 0, 8, 16), r"next 8 x 8 x 16"),
        ((1, 1, 8, 8, 8), r"leaves one voxel at the last stage.*at least 16"),
        ((2, 1, 8, 8, 8), r"leaves one voxel"),
        ((1, 16, 16, 16), r"volumes \(N, C, x, y, z\) are expected.*x\[None\]"),
        ((1, 3, 16, 16, 16), r"3 channel\(s\), the network takes 1.*in_channels=3"),
    ],
)
def test_sizes_that_the_network_cannot_take_are_said(shape, said):
    """With the next size that it takes, by both networks, before anything is computed."""
    with torch.device("meta"):
        for network in (GenesisEncoder(), GenesisUNet3D()):
            with pytest.raises(InputContractError, match=said):
                network.eval()(torch.empty(shape))


@pytest.mark.slow
def test_eights_are_enough():
    """Sizes that are no multiples of 16, which the authors ask for; of a batch of the smallest volumes in training."""
    with torch.device("meta"):
        for sides in ((64, 64, 24), (64, 64, 40), (512, 512, 136), FEW):
            assert GenesisUNet3D().eval()(torch.empty(1, 1, *sides)).shape == (1, 1, *sides)
            assert GenesisEncoder().eval().forward_features(torch.empty(1, 1, *sides)).shape[2] == sides[0] // 8
        assert GenesisEncoder()(torch.empty(2, 1, 8, 8, 8)).shape == (2, 512)
        assert GenesisEncoder(norm="running")(torch.empty(1, 1, 8, 8, 8)).shape == (1, 512)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_the_same(form, state, saved):
    """All 106 tensors, buffers included, whatever the file wraps around them; the rest is dropped with a reason."""
    path = saved(FORMS[form](state))
    unet = load(UNET, path)
    report = zoo.load_report(unet)
    assert same(unet.state_dict(), state)
    assert (len(report.loaded), report.adapted, report.fresh) == (106, {}, {})
    assert len(report.dropped) == DROPPED.get(form, 0)
    strangers = [why for name, why in report.dropped.items() if why == "beside the network"]
    assert len(strangers) == (form == "a Lightning attribute")
    encoder = load(ENCODER, path)
    assert same(encoder.state_dict(), encoder_part(state))
    assert len(zoo.load_report(encoder).dropped) == 50 + len(report.dropped)


def test_the_reasons_name_what_was_dropped(state, saved):
    """Visual words, heads of other pre-trainings, and the decoder of an encoder."""
    reasons = zoo.load_report(load(ENCODER, saved(transvw(state)))).dropped
    assert reasons["clc_out.fc1.weight"] == "classifier of visual words, from TransVW's pre-training"
    assert reasons["up_tr64.ops.1.bn1.running_var"] == "decoder: not part of the encoder"
    assert reasons["out_tr.final_conv.bias"] == "last convolution of the decoder: not part of the encoder"
    beside = zoo.load_report(load(UNET, saved(FORMS["heads beside the names"](state)))).dropped
    assert set(beside) == {"projection_head.0.weight", "projection_head.1.running_mean", "prototypes.weight"}


@pytest.mark.parametrize("new", [True, False])
def test_numbers_of_numpy_are_let_through(new, state, saved, tmp_path):
    """TransVW's container holds them, in the format of today and in that of PyTorch 1.3, which it was written by."""
    content = transvw(encoder_part(state))
    assert isinstance(content["best_acc"], np.float64)
    torch.save(content, tmp_path / "TransVW_chest_ct.pt", _use_new_zipfile_serialization=new)
    assert same(load(ENCODER, tmp_path / "TransVW_chest_ct.pt").state_dict(), encoder_part(state))


@pytest.mark.slow
def test_own_files_load_again_and_fit_the_authors_class(unet, encoder, saved):
    """What our networks save has the authors' names, buffers included, so that their class takes it strictly."""
    assert {name: list(tensor.shape) for name, tensor in unet.state_dict().items()} == KEYS
    assert same(load(UNET, saved(unet.state_dict())).state_dict(), unet.state_dict())
    assert same(load(ENCODER, saved(unet.state_dict())).state_dict(), encoder.state_dict())
    assert same(load(ENCODER, saved(encoder.state_dict())).state_dict(), encoder.state_dict())


@pytest.mark.slow
def test_a_header_says_whose_statistics_to_take(zoo, published, tmp_path):
    """`zoo export` of a file that says nothing leaves it unsaid; a header is obeyed, and an option goes before it."""
    out = tmp_path / "encoder.safetensors"
    code, _, err = zoo("export", ENCODER, out, "--checkpoint", published)
    assert code == 0, err
    plain = load(ENCODER, out)
    assert plain.norm == "volume"
    header = {"model": ENCODER, "options": json.dumps({"norm": "running"})}
    export_safetensors(plain, out, metadata=header)
    assert load(ENCODER, out).norm == "running"
    assert load(ENCODER, out, norm="batch").norm == "batch"
    with pytest.raises(OptionError, match="norm='instance': expected 'volume', 'batch', 'running'"):
        load(ENCODER, out, norm="instance")


def test_conversion_is_pure_and_idempotent(state):
    """What a network saved goes through unchanged; the argument is left alone."""
    for name, kept in ((ENCODER, encoder_part(state)), (UNET, state)):
        names = list(state)
        once, _ = get_entry(name).convert(state)
        assert list(state) == names
        assert same(once, kept)
        assert same(get_entry(name).convert(once)[0], kept)


@pytest.mark.parametrize("name", [ENCODER, UNET])
@pytest.mark.parametrize(
    "stray", ["down_tr64.ops.2.conv1.weight", "up_tr256.attention.weight", "clc_out.conv2.weight", "seg.weight"]
)
def test_a_tensor_that_the_network_does_not_have_is_refused(name, stray, state, saved):
    """What stands behind the network's prefix is named, not passed over, in the decoder of an encoder's file too."""
    path = saved(behind("module.", state | {stray: torch.ones(3)}))
    with pytest.raises(CheckpointMismatchError, match=rf"unexpected \(1\): {re.escape(stray)}"):
        load(name, path)


@pytest.mark.parametrize(
    "lost", ["down_tr64.ops.0.conv1.weight", "down_tr512.ops.1.bn1.running_var", "up_tr128.up_conv.bias"]
)
def test_a_file_that_lacks_a_tensor_is_refused(lost, state, saved):
    """One of 106 is enough; buffers that nobody reads count, for a file of this network has them."""
    path = saved(behind("module.", {name: tensor for name, tensor in state.items() if name != lost}))
    with pytest.raises(CheckpointMismatchError, match=rf"105 of the 10\d required .*\n.*missing \(1\): {lost}|10\d of"):
        load(UNET, path)
    with pytest.raises(CheckpointMismatchError, match="'genesis-encoder' and no more"):
        load(UNET, saved(encoder_part(state)))


@pytest.mark.slow
def test_files_of_other_networks_are_called_by_their_names(saved, tmp_path):
    """nnU-Net's, in the same repository; Keras's; and one of another family, whose file is not taken for this one."""
    path = saved(nnunet())
    for name in (ENCODER, UNET):
        with pytest.raises(CheckpointMismatchError, match=r"U-Net of nnU-Net v1 .*genesis_nnunet_luna16_006\.model"):
            load(name, path)
    assert zoo.inspect_checkpoint(path).matches == ()
    keras = tmp_path / "Genesis_Chest_CT.h5"
    keras.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(CheckpointFormatError, match=r"HDF5 file \(Keras\)"):
        load(UNET, keras)
    with pytest.raises(CheckpointMismatchError, match="load_model\\('caid-resnet50-unet'"):
        load(UNET, saved(filled_unet()))


@pytest.mark.parametrize("form", ["Genesis_Chest_CT.pt", "TransVW_chest_ct.pt, as its loader reads it"])
def test_inspection_guesses_the_right_models(form, state, saved):
    """Both of this family and no other; the U-Net first, for it takes all of the file."""
    matches = zoo.inspect_checkpoint(saved(FORMS[form](state))).matches
    assert [(match.model, match.complete, match.matched) for match in matches] == [
        (UNET, True, 106),
        (ENCODER, True, 56),
    ]
    assert set(matches[0].unclear) == {"num_classes"}


# --- heads and channels -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_one_class_keeps_the_published_convolution(published, unet, caplog):
    """Its logits are those behind the sigmoid of the restored volume; what is assumed without it is said."""
    model = load(UNET, published, num_classes=1)
    assert same(model.state_dict(), unet.state_dict())
    assert not warnings(caplog)
    x = volumes()
    assert torch.equal(model(x).sigmoid(), unet(x))
    load(UNET, published)
    assert ["num_classes=1 gives its logits" in warning for warning in warnings(caplog)] == [True]


@pytest.mark.slow
@torch.no_grad()
def test_other_classes_are_fresh_and_return_logits(published, saved, caplog):
    """The last convolution alone is dropped, and loaded again from our own file without being asked for."""
    model = load(UNET, published, num_classes=3)
    assert set(zoo.load_report(model).fresh) == {"out_tr.final_conv.weight", "out_tr.final_conv.bias"}
    assert "the head does not fit: 1x64x1x1x1 in the file, 3x64x1x1x1 in the network" in warnings(caplog)[0]
    logits = model(volumes())
    assert logits.shape == (2, 3, *FEW)
    assert logits.min() < 0
    again = load(UNET, saved(model.state_dict()))
    assert not zoo.load_report(again).fresh
    assert torch.equal(again(volumes()), logits)
    maps = load(UNET, published, num_classes=0)
    assert maps(volumes()).shape == (2, 64, *FEW)
    assert set(zoo.load_report(maps).dropped) == {"out_tr.final_conv.weight", "out_tr.final_conv.bias"}


@torch.no_grad()
def test_the_classifier_is_the_authors(published, encoder, saved):
    """Fresh it has the two layers of Models Genesis; what it saves loads again; for other classes it is all fresh."""
    model = load(ENCODER, published, num_classes=3)
    report = zoo.load_report(model)
    assert set(report.fresh) == {f"dense_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    assert (model.dense_1.out_features, model.dense_2.in_features) == (1024, 1024)
    pooled = encoder(volumes())
    assert torch.equal(model(volumes()), model.dense_2(model.dense_1(pooled).relu()))
    path = saved(model.state_dict())
    again = load(ENCODER, path)
    assert not zoo.load_report(again).fresh
    assert torch.equal(again(volumes()), model(volumes()))
    assert len(zoo.load_report(load(ENCODER, path, num_classes=5)).fresh) == 4
    assert torch.equal(load(ENCODER, path, num_classes=0)(volumes()), pooled)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_fine_tuned_classifiers_of_the_authors_load(layers, state, encoder, saved):
    """Class TargetNet of either README: two layers, or TransVW's one, without the ReLU behind its logits."""
    content = target_net(state, 2, layers)
    model = load(ENCODER, saved(content))
    pooled = encoder(volumes())
    weights = [(content[f"module.dense_{i}.weight"], content[f"module.dense_{i}.bias"]) for i in range(1, layers + 1)]
    expected = torch.nn.functional.linear(pooled, *weights[0])
    if layers == 2:
        expected = torch.nn.functional.linear(expected.relu(), *weights[1])
    assert torch.equal(model(volumes()), expected)
    assert layers == 2 or model(volumes()).min() < 0
    reasons = zoo.load_report(load(UNET, saved(content))).dropped
    assert len(reasons) == 2 * layers
    assert load(ENCODER, saved(content), num_classes=0)(volumes()).shape == (2, 512)


@torch.no_grad()
def test_channels_are_adapted(published, encoder):
    """A volume given several times over gives the same features."""
    three = load(ENCODER, published, in_channels=3)
    assert zoo.load_report(three).adapted == {"down_tr64.ops.0.conv1.weight": "1 input channels repeated to 3"}
    x = volumes(2, SOME)
    assert relative_error(three(x.expand(-1, 3, -1, -1, -1)), encoder(x).numpy()) < TOLERANCE


@pytest.mark.parametrize(("name", "count"), [(ENCODER, 4), (UNET, 7)])
def test_stages_learn_the_more_slowly_the_nearer_to_the_input(name, count, published):
    """All parameters are in a stage, in the order in which they are used; a fresh head learns at the full rate."""
    groups = zoo.param_groups(load(name, published, num_classes=2), lr=1.0, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    stages = [prefix[0].removesuffix(".") for prefix in get_entry(name).stages]
    assert rates == {**{s: 0.5 ** (count - 1 - i) for i, s in enumerate(stages)}, "fresh": 1.0}


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ENCODER, UNET])
def test_the_records_are_of_this_network(name):
    """Models Genesis is what the plain name loads; neither may be used commercially; the statistics are on record."""
    chest, words = records(name)
    assert (chest.tag, words.tag) == ("chest-ct", "transvw")
    assert zoo.model_info(name).name == f"{name}.chest-ct"
    assert (chest.bytes, chest.sha256[:8]) == (152_639_120, "62de21a0")
    assert (words.bytes, words.sha256) == (None, None)
    on_meta = {key: torch.empty(shape, device="meta") for key, shape in KEYS.items()}
    for weights in (chest, words):
        assert weights.fingerprint[name] == fingerprint(get_entry(name).convert(on_meta)[0])
        assert weights.options == {"norm": "volume"}
        assert {weights.licences[layer]["commercial"] for layer in ("code", "weights")} == {"no"}
        assert "norm" not in weights.input


@pytest.mark.slow
def test_published_weights_take_another_statistic_on_request(state, tmp_path, monkeypatch):
    """The record says the default; that is no contradiction of `norm=`, and no warning is due of either."""
    torch.save(genesis(state), tmp_path / "w.pt")
    facts = {"state": "hosted", "bytes": None, "sha256": None, "sha256_note": "none", "options": {"norm": "volume"}}
    record = {"tag": "mine", "models": [ENCODER], "sources": [f"file:{tmp_path}/w.pt"], **facts}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    said = zoo.load_report(zoo.load_model(f"{ENCODER}.mine"))
    assert (said.options, said.said_by) == ({"norm": "volume"}, {"norm": "the record of the weights"})
    asked = zoo.load_model(f"{ENCODER}.mine", norm="batch")
    assert (asked.norm, zoo.load_report(asked).said_by) == ("batch", {"norm": "as asked for"})
    assert same(asked.state_dict(), encoder_part(state))
    random = zoo.load_model(ENCODER, pretrained=False, norm="batch")
    assert random.norm == "batch"
    assert not zeros({"a": (2,)})["a"].any()
