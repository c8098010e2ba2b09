"""MONAI SSL's networks: MONAI 0.8.1's outputs from every version's and every form of file, sizes, channels, heads."""

import copy
import json
import re

import nibabel
import numpy as np
import pytest
import torch
from caid_files import behind, relative_error
from checkout import CHECKOUT
from monai.networks.nets import UNETR as MonaiUNETR
from monai.networks.nets import SwinUNETR, ViT, ViTAutoEnc
from monai_ssl_files import (
    AUTOENCODER,
    ENCODER,
    FORMS,
    NAMES,
    SMALL,
    SWIN,
    UNETR,
    UNETR_KEYS,
    VERSIONS,
    VIT_KEYS,
    alive,
    bare_swin,
    encoder_part,
    filled_autoencoder,
    filled_swin,
    filled_unetr,
    published_swin,
    reference,
    reference_input,
    small,
    swin_shapes,
    training_checkpoint,
    with_perceptron,
    written_by,
)
from safetensors.torch import save_file
from states import same
from texts import warnings

import zoo
from zoo.checkpoint.building import build_network
from zoo.checkpoint.export import export_safetensors, fingerprint
from zoo.checkpoint.skeleton import without_values
from zoo.entries.monai_ssl import FINE_TUNING, PRETRAINING
from zoo.entries.monai_ssl.model import vit_autoencoder, vit_encoder
from zoo.entries.monai_ssl.segmenters import swin_unetr, unetr
from zoo.entries.monai_ssl.windows import window_of
from zoo.errors import CheckpointMismatchError, InputContractError, IntegrityError, OfflineError, OptionError
from zoo.fetching.cache import hash_file
from zoo.loading import full_state
from zoo.manifest import records
from zoo.networks.swin import patch_merging
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. Twelve blocks with sums in another order differ by some 2e-6; a wrong tensor differs by more than 0.01."""
COUNTS = {"0.8": (142, 174), "0.9": (141, 170), "1.4": (225, 254), "1.6": (165, 194)}
"""Tensors of the auto-encoder and of the UNETR that the classes of each version have."""
PARAMETERS = {
    "0.8": (89_128_977, 92_790_958),
    "0.9": (89_128_209, 92_784_046),
    "1.4": (117_467_409, 121_123_246),
    "1.6": (89_146_641, 92_802_478),
}
VIT_SHAPES, UNETR_SHAPES = small(VIT_KEYS), small(UNETR_KEYS)


@pytest.fixture(scope="module")
def published(scratch):
    """The two files at full size: the auto-encoder as the tutorial saves it, and a UNETR as best_metric_model.pth."""
    files = {AUTOENCODER: scratch / "best_model.pt", UNETR: scratch / "best_metric_model.pth"}
    state = filled_autoencoder()
    torch.save(training_checkpoint(behind("module.", state)), files[AUTOENCODER])
    torch.save(filled_unetr(state), files[UNETR])
    yield files
    for path in files.values():
        path.unlink()


@pytest.fixture(scope="module")
def vit_state():
    """A small auto-encoder of MONAI 0.8.1."""
    return filled_autoencoder(shapes=VIT_SHAPES)


@pytest.fixture(scope="module")
def unetr_state(vit_state):
    """A small UNETR of MONAI 0.8.1 around the same ViT."""
    return filled_unetr(vit_state, shapes=UNETR_SHAPES)


@pytest.fixture(scope="module")
def swin_state():
    """A small Swin UNETR under MONAI's names."""
    return filled_swin(swin_shapes())


@pytest.fixture
def saved(tmp_path):
    """Save content as a checkpoint."""

    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def load(name, path, **options):
    return zoo.load_model(name, checkpoint=path, mmap=True, **options)


def volume(*sides, channels=1):
    return torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))


# --- the outputs of MONAI 0.8.1 ---------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_those_of_the_version_that_trained_it(published):
    """Blocks 3 and 11 and the reconstruction; the encoder's features are the mean of its map."""
    x, theirs, hidden = reference_input(), reference(), {}
    model = load(AUTOENCODER, published[AUTOENCODER])
    for i in (3, 11):
        model.blocks[i].register_forward_hook(lambda module, inputs, output, i=i: hidden.update({i: output}))
    reconstruction = model(x)
    assert reconstruction.shape == x.shape
    assert relative_error(reconstruction[..., ::8, ::8, ::8], theirs["recon"]) < TOLERANCE
    assert relative_error(hidden[3][:, ::8], theirs["hidden3"]) < TOLERANCE
    assert relative_error(hidden[11][:, ::8], theirs["hidden11"]) < TOLERANCE
    encoder = load(ENCODER, published[AUTOENCODER])
    features = encoder.forward_features(x)
    expected = model.norm(hidden[11]).transpose(1, 2).reshape(1, 768, 6, 6, 6)
    assert torch.equal(features, expected)
    pooled = encoder(x)
    assert relative_error(pooled, expected.mean(dim=(2, 3, 4)).numpy()) < TOLERANCE
    assert encoder.num_features == pooled.shape[1] == 768


@pytest.mark.slow
@torch.no_grad()
def test_the_unetr_answers_as_that_versions(published):
    """From the fine-tuned file, in which the shortcuts that nobody used still lie."""
    model = load(UNETR, published[UNETR])
    logits = model(reference_input())
    assert logits.shape == (1, 14, 96, 96, 96)
    assert relative_error(logits[..., ::8, ::8, ::8], reference()["logits"]) < TOLERANCE
    report = zoo.load_report(model)
    assert (len(report.loaded), report.adapted, report.fresh) == (170, {}, {})
    assert len(report.dropped) == 4


@pytest.mark.parametrize("version", VERSIONS)
def test_the_key_sets_are_those_of_each_version(version):
    """As many tensors and parameters as its classes were counted to have."""
    on_meta = {name: torch.empty(shape, device="meta") for name, shape in VIT_KEYS.items()}
    whole = {name: torch.empty(shape, device="meta") for name, shape in UNETR_KEYS.items()}
    written = [written_by(version, state) for state in (on_meta, whole)]
    assert tuple(map(len, written)) == COUNTS[version]
    assert tuple(sum(t.numel() for t in state.values()) for state in written) == PARAMETERS[version]


@pytest.mark.slow
def test_the_newest_key_set_is_the_installed_classes():
    """What this MONAI would save today, under the names and shapes of the rules."""
    with torch.device("meta"):
        classes = ViTAutoEnc(1, 96, 16).state_dict(), MonaiUNETR(1, 14, 96).state_dict()
    for keys, state in zip((VIT_KEYS, UNETR_KEYS), classes, strict=True):
        filled = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
        shapes = [{n: tuple(t.shape) for n, t in written_by(v, filled).items()} for v in ("1.4", "1.6")]
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} in shapes


@pytest.mark.slow
@pytest.mark.parametrize("perceptron", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_every_version_load_the_same(version, perceptron, vit_state, unetr_state, saved):
    """All three networks from an auto-encoder's and a UNETR's file, whichever projection it has, to the bit."""
    project = with_perceptron if perceptron else dict
    vit_file = saved(training_checkpoint(project(written_by(version, vit_state))), "vit.pt")
    unetr_file = saved(project(written_by(version, unetr_state)), "unetr.pth")
    encoder = alive(encoder_part(vit_state))
    assert same(load(AUTOENCODER, vit_file).state_dict(), alive(vit_state))
    assert same(load(ENCODER, vit_file).state_dict(), encoder)
    assert same(load(ENCODER, unetr_file).state_dict(), encoder)
    assert same(load(UNETR, unetr_file).state_dict(), alive(unetr_state))
    filled = load(UNETR, vit_file)
    assert same({n: t for n, t in filled.state_dict().items() if n.startswith("vit.")}, behind("vit.", encoder))
    report = zoo.load_report(filled)
    stem = {"vit.patch_embedding.patch_embeddings.weight": "a linear layer's weight as a convolution's"}
    assert report.adapted == (stem if perceptron else {})
    assert len(report.loaded) + len(report.adapted) == 137
    assert not any(
        "beside the network" in why and "patch_embeddings.1" not in name for name, why in report.dropped.items()
    )


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, form) for kind in ("an auto-encoder", "a UNETR") for form in FORMS),
        *(("a ViT", form) for form in ("bare", "in DDP")),  # it has an auto-encoder's names, without the decoder
    ],
)
def test_every_form_of_file_loads(form, kind, vit_state, unetr_state, saved):
    """Whatever stands around the names, and in front of them."""
    state = {"an auto-encoder": vit_state, "a ViT": encoder_part(vit_state), "a UNETR": unetr_state}[kind]
    path = saved(FORMS[form](state))
    assert same(load(ENCODER, path).state_dict(), alive(encoder_part(vit_state)))
    model = load(UNETR, path)
    if kind == "a UNETR":
        assert same(model.state_dict(), alive(unetr_state))
    else:
        assert {name.partition(".")[0] for name in zoo.load_report(model).loaded} == {"vit"}
    if kind == "an auto-encoder":
        assert same(load(AUTOENCODER, path).state_dict(), alive(vit_state))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_a_perceptron_is_the_convolution_it_was(channels, saved):
    """MONAI's own network with that projection, exactly: what it saves gives what it returns."""
    torch.manual_seed(0)
    theirs = ViT(channels, 32, 16, 64, 128, 2, 1, proj_type="perceptron").eval()
    ours = load(ENCODER, saved(theirs.state_dict()))
    x = volume(32, 32, 32, channels=channels)
    tokens = theirs(x)[0]
    assert relative_error(ours.forward_features(x), tokens.transpose(1, 2).reshape(1, 64, 2, 2, 2).numpy()) < TOLERANCE
    assert ours.patch_embedding.patch_embeddings.in_channels == channels


@pytest.mark.slow
@torch.no_grad()
def test_what_monai_saves_today_loads(saved):
    """Each of its own classes with random weights, to the bit."""
    torch.manual_seed(0)
    x = volume(32, 32, 32)
    plain = ViTAutoEnc(1, 32, 16, out_channels=2, hidden_size=64, mlp_dim=128, num_layers=2, num_heads=1).eval()
    path = saved(plain.state_dict())
    assert torch.equal(load(AUTOENCODER, path)(x), plain(x)[0])
    plain = ViT(1, 32, 16, 64, 128, 2, 1).eval()
    path = saved(plain.state_dict())
    assert torch.equal(load(ENCODER, path)(x), plain(x)[0].mean(dim=1))
    plain = MonaiUNETR(1, 5, 32, 16, 64, 128, 1).eval()
    path = saved(plain.state_dict())
    assert torch.equal(load(UNETR, path)(x), plain(x))
    plain = SwinUNETR(in_channels=1, out_channels=5, feature_size=12).eval()
    ours = load(SWIN, saved(plain.state_dict()), merging="complete")  # since 1.5 MONAI merges all eight voxels
    assert torch.equal(ours(volume(64, 32, 32)), plain(volume(64, 32, 32)))
    assert same(full_state(SWIN, ours), plain.state_dict())


@pytest.mark.parametrize("name", [ENCODER, AUTOENCODER, UNETR])
def test_conversion_is_pure_and_idempotent(name, vit_state, unetr_state):
    """What a network saved goes through unchanged; the argument is left alone."""
    convert = get_entry(name).convert
    for state in (vit_state, unetr_state):
        names = list(state)
        once, facts = convert(state)
        again, known = convert(once)
        assert list(state) == names
        assert same(again, once)
        assert known == {name: fact for name, fact in facts.items() if name != "remark"}
        assert ("remark" in facts) == (name == ENCODER and state is unetr_state)
        assert facts["positions"] == 8


# --- Swin UNETR -------------------------------------------------------------------------------------------------------


def test_the_swin_unetr_is_built_on_the_meta_device(swin_state, saved):
    """Though MONAI's constructor reads values and computes buffers; a file has these, and nothing else is drawn."""
    network = build_network(get_entry(SWIN), dict(get_entry(SWIN).config))
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    model = load(SWIN, saved(swin_state))
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert same(model.state_dict(), swin_state)
    assert "swinViT.layers1.0.blocks.0.attn.relative_position_index" in dict(model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "filled"),
    [
        ("published", 157),
        ("published in DDP", 157),
        ("MONAI's", 159),
        ("in DDP", 159),
        ("transformer alone", 126),
        ("swinViT.", 126),
    ],
)
def test_every_form_of_the_swin_unetr_loads(form, filled, swin_state, saved):
    """The transformer always; the decoder where it is there, its last convolution only where it segments."""
    published_names = published_swin(swin_state)["model"]
    content = {
        "published": published_swin(swin_state),
        "published in DDP": {"model": behind("module.", published_names)},
        "MONAI's": swin_state,
        "in DDP": {"state_dict": behind("module.", swin_state)},
        "transformer alone": bare_swin(swin_state),
        "swinViT.": {name: tensor for name, tensor in swin_state.items() if name.startswith("swinViT.")},
    }[form]
    model = load(SWIN, saved(content))
    report, state = zoo.load_report(model), model.state_dict()
    assert len(report.loaded) == filled
    assert len(report.fresh) == 159 - filled
    assert all(torch.equal(state[name], swin_state[name]) for name in report.loaded)
    if form in ("published", "transformer alone"):  # whose last convolution or whole decoder is fresh
        with torch.no_grad():
            assert model(volume(64, 32, 32)).shape == (1, 14, 64, 32, 32)
    if form.startswith("published"):
        assert set(report.fresh) == {"out.conv.conv.weight", "out.conv.conv.bias"}
        assert any("head that restored" in why for why in report.dropped.values())


def test_the_record_of_the_swin_unetr_is_of_the_names_monai_reads(swin_state):
    """All of MONAI's class but the last convolution, 157 of 159, at the width on record."""
    weights, ct5050 = records(SWIN)
    shapes = swin_shapes(feature=48)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted, facts = get_entry(SWIN).convert(published_swin(state)["model"])
    assert set(shapes) - set(converted) == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert weights.fingerprint[SWIN] == fingerprint(converted)
    assert facts == {"feature_size": 48, "merging": "duplicated", "in_file": {"feature_size": 48}}
    assert (weights.bytes, weights.options) == (753973445, {"merging": "duplicated"})
    assert weights.sha256.startswith("c3564f40a6a051d3")
    assert (weights.state, zoo.model_info(SWIN).default) == ("hosted", True)
    assert weights.sources[0].endswith("/0.8.1/ssl_pretrained_weights.pth")
    assert all(re.search(r"@[0-9a-f]{40}/\w+50000\.pth$", source) for source in weights.sources[1:])
    assert (len(weights.sources), ct5050.tag) == (3, "ct5050")


@pytest.mark.slow
def test_a_record_with_a_digest_and_no_size_is_fetched_and_loaded(swin_state, saved, tmp_path, monkeypatch):
    """As the Swin UNETR's is: proved by its digest, converted once, and what was left out is still reported then."""
    path = saved(published_swin(swin_state))
    facts = {"tag": "mine", "models": [SWIN], "state": "hosted", "sources": [f"file:{path}"], "bytes": None}
    record = facts | {"sha256": hash_file(path)}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    for _ in ("fetched", "from the cache"):
        model = zoo.load_model(SWIN)
        report = zoo.load_report(model)
        assert (report.tag, report.sha256, len(report.loaded)) == ("mine", record["sha256"], 157)
        assert set(report.dropped) == {
            *("encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias"),
            *("out.conv.conv.weight", "out.conv.conv.bias"),
        }
    record["sha256"] = "0" * 64
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    with pytest.raises(IntegrityError):
        zoo.load_model(SWIN)


# --- fresh parts, heads, channels -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fresh_parts_follow_the_seed_and_are_reported(vit_state, saved, caplog):
    """From an auto-encoder the decoder of a UNETR starts as MONAI starts it, the same for the same seed."""
    path = saved(vit_state)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(load(UNETR, path, num_classes=14).state_dict())
    assert same(states[0], states[1])
    name = "decoder5.conv_block.conv1.conv.weight"
    assert not torch.equal(states[0][name], states[2][name])
    bound = (states[0][name].shape[1] * 27) ** -0.5  # uniform over +-1/sqrt(inputs), as PyTorch starts convolutions
    assert states[0][name].abs().max() <= bound
    assert states[0][name].std().item() == pytest.approx(bound / 3**0.5, rel=0.02)  # 55 000 draws: 0.2 %
    assert not warnings(caplog)
    report = zoo.load_report(load(UNETR, path))
    groups = {name.partition(".")[0] for name in report.fresh}
    assert groups == {*(f"encoder{i}" for i in (1, 2, 3, 4)), *(f"decoder{i}" for i in (5, 4, 3, 2)), "out"}
    assert {n: why for n, why in report.dropped.items() if n.startswith("conv3d")}.keys() == {
        f"conv3d_transpose{i}.{leaf}" for i in ("", "_1") for leaf in ("weight", "bias")
    }
    assert "untrained: encoder1.layer.conv1.conv.weight" in warnings(caplog)[0]


@pytest.mark.slow
def test_heads_follow_the_file_unless_others_are_asked_for(unetr_state, vit_state, saved, caplog):
    """Loaded when it fits or nothing is said, dropped with a warning when it does not, absent when 0 is asked for."""
    path = saved(unetr_state)
    assert load(UNETR, path).out.conv.conv.out_channels == 14
    assert not warnings(caplog)
    other = load(UNETR, path, num_classes=3)
    assert set(zoo.load_report(other).fresh) == {"out.conv.conv.weight", "out.conv.conv.bias"}
    assert "head was dropped" in warnings(caplog)[0]
    assert load(UNETR, path, num_classes=0)(volume(32, 32, 32)).shape == (1, 16, 32, 32, 32)
    classifier = load(ENCODER, path, num_classes=2)
    assert classifier(volume(32, 32, 32)).shape == (1, 2)
    again = load(ENCODER, saved(classifier.state_dict(), "tuned.pth"))
    assert same(again.state_dict(), classifier.state_dict())
    assert load(ENCODER, path.with_name("tuned.pth"), num_classes=0).num_features == 64
    with pytest.raises(OptionError, match="restores the volume and has no classes"):
        load(AUTOENCODER, saved(vit_state, "vit.pt"), num_classes=4)
    with pytest.raises(OptionError, match="no option 'projection'"):
        load(ENCODER, path, projection=True)


@pytest.mark.slow
@torch.no_grad()
def test_channels_are_adapted_wherever_the_volume_is_read(unetr_state, swin_state, saved):
    """A volume given several times over gives the same, and one channel of such a network is the first again."""
    x = volume(32, 32, 32)
    path = saved(unetr_state)
    one = load(UNETR, path)
    three = load(UNETR, path, in_channels=3)
    assert set(zoo.load_report(three).adapted) == {
        "vit.patch_embedding.patch_embeddings.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    }
    expected = one(x).numpy()
    assert relative_error(three(x.expand(-1, 3, -1, -1, -1)), expected) < TOLERANCE
    again = load(UNETR, saved(three.state_dict(), "three.pth"))
    assert again.vit.patch_embedding.patch_embeddings.in_channels == 3
    back = load(UNETR, path.with_name("three.pth"), in_channels=1)
    assert relative_error(back(x), expected) < TOLERANCE
    swin = load(SWIN, saved(swin_state, "swin.pth"), in_channels=2)
    assert len(zoo.load_report(swin).adapted) == 3
    assert load(AUTOENCODER, saved(filled_autoencoder(shapes=VIT_SHAPES), "v.pt"), in_channels=2)(
        x.expand(-1, 2, -1, -1, -1)
    ).shape == (1, 1, 32, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes"),
    [(ENCODER, 0), (ENCODER, 3), (AUTOENCODER, None), *((name, n) for name in (UNETR, SWIN) for n in (0, 3))],
)
def test_every_parameter_gets_a_gradient(name, classes):
    """Nothing lies idle in any mode, so that DistributedDataParallel works without further ado."""
    options = {"feature_size": 12} if name == SWIN else SMALL
    torch.manual_seed(0)
    model = zoo.load_model(name, pretrained=False, num_classes=classes, **options).train()
    model(volume(*((64, 32, 32) if name == SWIN else (32, 32, 32)))).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- sizes ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_at_the_built_size_the_positions_are_untouched(vit_state, saved):
    """Bit for bit MONAI's own network, into which nothing was interpolated."""
    plain = ViTAutoEnc(1, 32, 16, hidden_size=64, mlp_dim=128, num_heads=1).eval()
    ours = load(AUTOENCODER, saved(vit_state))
    plain.load_state_dict(full_state(AUTOENCODER, ours), strict=True)
    assert torch.equal(ours(volume(32, 32, 32)), plain(volume(32, 32, 32))[0])


@pytest.mark.slow
@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes(vit_state, unetr_state, saved):
    """Trilinearly, with the tokens' centres where they were; a map that does not vary stays as it is."""
    encoder = load(ENCODER, saved(vit_state))
    seen = {}
    encoder.patch_embedding.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    projected = encoder.patch_embedding.patch_embeddings(torch.zeros(1, 1, 64, 32, 48))
    assert encoder(torch.zeros(1, 1, 64, 32, 48)).shape == (1, 64)
    assert encoder.forward_features(torch.zeros(1, 1, 64, 32, 48)).shape == (1, 64, 4, 2, 3)
    added = (seen["tokens"].transpose(1, 2).unflatten(2, (4, 2, 3)) - projected)[0]
    table = encoder.patch_embedding.position_embeddings.transpose(1, 2).unflatten(2, (2, 2, 2))[0]
    assert torch.allclose(added[:, 0, :, 0], table[:, 0, :, 0], atol=1e-6)
    assert torch.allclose(added[:, 1, :, 1], 0.75 * table.mean(3)[:, 0] + 0.25 * table.mean(3)[:, 1], atol=1e-6)
    model = load(UNETR, saved(unetr_state, "unetr.pth"))
    assert model(volume(48, 32, 64)).shape == (1, 14, 48, 32, 64)


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_do_not_divide_are_refused(name):
    """Each wrong axis by its name, instead of voxels cut off without a word."""
    options = {"feature_size": 12} if name == SWIN else SMALL
    model = zoo.load_model(name, pretrained=False, **options)
    step = 32 if name == SWIN else 16
    with pytest.raises(InputContractError, match=rf"multiples of {step} are expected, and axis H has 40"):
        model(torch.zeros(1, 1, 64, 40, 64))
    with pytest.raises(InputContractError, match=r"volumes \(N, C, D, H, W\) are expected"):
        model(torch.zeros(1, 64, 64, 64))


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_are_refused(name):
    """With what the network takes and how to get one that takes these; one volume without its batch axis too."""
    options = {"feature_size": 12} if name == SWIN else SMALL
    sides = (64, 32, 32)
    for channels, wrong in ((1, 3), (3, 1)):
        model = zoo.load_model(name, pretrained=False, in_channels=channels, **options)
        with pytest.raises(
            InputContractError, match=rf"have {wrong} channel\(s\), the network takes {channels}.*in_channels={wrong}"
        ):
            model(torch.zeros(1, wrong, *sides))
    with pytest.raises(InputContractError, match=r"x\[None\] makes a batch"):
        model(torch.zeros(3, *sides))


@pytest.mark.slow
@torch.no_grad()
def test_the_checks_can_be_compiled():
    """In one graph, without a break: what they look at is known when the graph is made."""
    model = vit_encoder(**SMALL, num_layers=1).eval()
    x = volume(32, 48, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    swin = swin_unetr(feature_size=12)
    assert swin._check_input_size((33, 1, 1)) is None, "MONAI's own check by numpy breaks the graph"


def test_one_voxel_is_no_map_for_the_swin_unetr():
    """Its last map of 32 x 32 x 32 voxels would be one voxel, whose norm is nothing."""
    with pytest.raises(InputContractError, match="64 on one axis"):
        swin_unetr(feature_size=12)(torch.zeros(1, 1, 32, 32, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"img_size": 40}, "multiples of 16 voxels, axis 0 has 40"),
        ({"img_size": (32, 32)}, "three, one per axis"),
        ({"img_size": (32, 0, 48)}, "axis 1 has 0"),
        ({"img_size": 32.0}, "whole number"),
        ({"hidden_size": 100}, "give num_heads"),
        ({"hidden_size": 100, "num_heads": 3}, "does not divide"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"mlp_dim": True}, "mlp_dim=True"),
        ({"num_heads": -1}, "num_heads=-1"),
    ],
)
def test_impossible_networks_are_refused(options, said):
    """Before anything is built."""
    with pytest.raises(OptionError, match=said):
        zoo.load_model(ENCODER, pretrained=False, **{**SMALL, **options})


def test_impossible_decoders_are_refused():
    """Widths that MONAI's classes cannot have."""
    with pytest.raises(OptionError, match="multiple of 12"):
        swin_unetr(feature_size=16)
    with pytest.raises(OptionError, match="feature_size=0"):
        unetr(img_size=32, hidden_size=64, mlp_dim=128, feature_size=0)


def test_widths_come_from_the_file(saved):
    """Blocks, tokens, perceptrons, maps, classes; the heads are one for each 64 channels unless said."""
    torch.manual_seed(0)
    first = vit_autoencoder(img_size=48, hidden_size=128, mlp_dim=96, num_layers=3)
    path = saved(first.state_dict())
    again = load(AUTOENCODER, path)
    assert same(again.state_dict(), first.state_dict())
    assert again.patch_embedding.grid == (3, 3, 3)
    assert again.blocks[0].attn.num_heads == 2
    assert load(ENCODER, path, num_heads=4).blocks[0].attn.num_heads == 4
    wide = unetr(img_size=32, hidden_size=64, mlp_dim=96, feature_size=8, num_classes=2)
    assert same(load(UNETR, saved(wide.state_dict())).state_dict(), wide.state_dict())


@pytest.mark.slow
def test_a_table_of_no_cube_is_what_the_user_says_it_is(saved):
    """A file holds the number of its positions alone; for a cube it needs no word, for others the size."""
    torch.manual_seed(0)
    flat = vit_encoder(img_size=(16, 48, 32), hidden_size=64, mlp_dim=96, num_layers=1)
    path = saved(flat.state_dict())
    for wrong in (None, 96):
        with pytest.raises(CheckpointMismatchError, match=r"has 6 positions, which make no cube.*img_size=\(D, H, W\)"):
            load(ENCODER, path, img_size=wrong)
    (match, *_) = zoo.inspect_checkpoint(path).matches
    assert not match.complete
    assert "6 positions, which make no cube" in str(match)
    again = load(ENCODER, path, img_size=(16, 48, 32))
    x = volume(16, 48, 32)
    with torch.no_grad():
        assert torch.equal(again(x), flat(x))


@torch.no_grad()
def test_a_network_is_for_the_windows_that_are_asked_for(saved, caplog):
    """Its table stays the file's, and is interpolated; by default windows are of the table's size."""
    path = saved(vit_encoder(**SMALL, num_layers=1).state_dict())
    plain, wide = load(ENCODER, path), load(ENCODER, path, img_size=(96, 64, 64))
    assert (window_of(plain), window_of(wide)) == ((32, 32, 32), (96, 64, 64))
    assert wide.patch_embedding.grid == (2, 2, 2)
    x = volume(96, 64, 64)
    assert torch.equal(wide.forward_features(x), plain.forward_features(x))
    assert wide.forward_features(x).shape == (1, 64, 6, 4, 4)
    assert not warnings(caplog)
    assert window_of(zoo.load_model(ENCODER, pretrained=False, hidden_size=64, mlp_dim=96, num_layers=1)) == (96,) * 3


def test_a_table_that_may_be_a_cube_s_or_another_s_is_warned_of(saved, caplog):
    """Eight positions are 2 x 2 x 2 or 4 x 2 x 1; what the user says counts."""
    flat = vit_encoder(img_size=(64, 32, 16), hidden_size=64, mlp_dim=96, num_layers=1)
    model = load(ENCODER, saved(flat.state_dict()), img_size=(64, 32, 16))
    assert model.patch_embedding.grid == (4, 2, 1)
    (message,) = warnings(caplog)
    assert "8 positions of the file are taken to be 4 x 2 x 1" in message
    assert "a cube of 32 voxels has as many" in message


@pytest.mark.parametrize(
    ("name", "kind", "options", "said"),
    [
        (ENCODER, "vit", {"hidden_size": 128}, r"hidden_size=128 \(the file: 64\).*leave hidden_size out"),
        (AUTOENCODER, "vit", {"num_layers": 3}, r"num_layers=3 \(the file: 12\)"),
        (UNETR, "vit", {"mlp_dim": 64}, r"mlp_dim=64 \(the file: 128\)"),
        (
            UNETR,
            "unetr",
            {"feature_size": 8, "mlp_dim": 8},
            r"mlp_dim=8 \(the file: 128\), feature_size=8 \(the file: 16\)",
        ),
        (SWIN, "swin", {"feature_size": 24}, r"feature_size=24 \(the file: 12\)"),
    ],
)
def test_options_that_contradict_the_file_are_refused(
    name, kind, options, said, vit_state, unetr_state, swin_state, saved
):
    """By the option's name, the file's value and the way out, not by a hundred shapes."""
    state = {"vit": vit_state, "unetr": unetr_state, "swin": swin_state}[kind]
    with pytest.raises(CheckpointMismatchError, match=rf"load_model\('{name}', checkpoint=.*{said}"):
        load(name, saved(state), **options)


def test_options_that_agree_with_the_file_or_are_free_are_taken(vit_state, unetr_state, saved):
    """The widths it has, and the decoder's where it has none."""
    widths = {"hidden_size": 64, "mlp_dim": 128}
    model = load(UNETR, saved(vit_state), **widths, feature_size=8)
    assert model.out.conv.conv.in_channels == 8
    assert same(load(UNETR, saved(unetr_state), **widths, feature_size=16).state_dict(), alive(unetr_state))


def test_a_file_that_an_option_must_explain_is_inspected(saved):
    """Heads of another width than the published: inspection says so, and the other models are still compared."""
    odd = vit_encoder(img_size=32, hidden_size=100, num_heads=4, mlp_dim=96, num_layers=2)
    path = saved(odd.state_dict())
    match = next(m for m in zoo.inspect_checkpoint(path).matches if m.model == ENCODER)
    assert (match.matched, match.complete, match.call) == (27, False, "")
    assert "does not load: hidden_size=100" in str(match)
    assert "give num_heads" in str(match)
    assert same(load(ENCODER, path, num_heads=4).state_dict(), odd.state_dict())


# --- the plain classes, groups, copies --------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.skipif(not hasattr(ViT, "load_old_state_dict"), reason="MONAI before 1.6 builds unused cross attention")
def test_the_full_export_is_monais_classes(vit_state, unetr_state, swin_state, saved, tmp_path):
    """Each plain class loads it strictly and answers alike to the bit; loaded here, it is the network again."""
    x, vit = volume(32, 32, 32), saved(vit_state, "vit.pt")
    plain = ViT(1, 32, 16, 64, 128, 12, 1).eval()
    encoder = load(ENCODER, vit, num_classes=2)
    plain.load_state_dict(full_state(ENCODER, encoder), strict=True)
    assert torch.equal(plain(x)[0].transpose(1, 2).reshape(1, 64, 2, 2, 2), encoder.forward_features(x))
    whole = load(UNETR, saved(unetr_state))
    segmenting = MonaiUNETR(1, 14, 32, 16, 64, 128, 1).eval()
    segmenting.load_state_dict(full_state(UNETR, whole), strict=True)
    assert torch.equal(segmenting(x), whole(x))
    headless = load(UNETR, saved(unetr_state), num_classes=0)
    maps = MonaiUNETR(1, 16, 32, 16, 64, 128, 1).eval()
    maps.load_state_dict(full_state(UNETR, headless), strict=True)
    assert torch.equal(maps(x), headless(x))
    swin = load(SWIN, saved(swin_state, "swin.pth"), num_classes=0, merging="duplicated")
    with without_values():
        theirs = SwinUNETR(1, 12, feature_size=12, downsample=patch_merging("duplicated")).eval()
    theirs.load_state_dict(full_state(SWIN, swin), strict=True, assign=True)
    assert torch.equal(theirs(volume(64, 32, 32)), swin(volume(64, 32, 32)))
    path = export_safetensors(full_state(UNETR, whole), tmp_path / "full.safetensors")
    assert same(load(UNETR, path).state_dict(), whole.state_dict())


def test_parameter_groups_follow_the_blocks(vit_state, saved):
    """The rate falls from block to block towards the input; what is fresh learns at the full rate."""
    model = load(UNETR, saved(vit_state), num_classes=2)
    groups = zoo.param_groups(model, 1e-2, weight_decay=1e-5, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    assert rates["vit.blocks.11"] == 1e-2 * 0.5**4  # four stages of the decoder come after it
    assert rates["vit.blocks.0"] == 1e-2 * 0.5**15
    assert rates["vit.patch_embedding"] == 1e-2 * 0.5**16
    assert rates["fresh"] == 1e-2
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


@pytest.mark.slow
def test_the_network_can_be_copied(unetr_state, saved):
    """With its report, and with its interpolation."""
    model = load(UNETR, saved(unetr_state))
    again = copy.deepcopy(model)
    assert same(again.state_dict(), model.state_dict())
    assert zoo.load_report(again) == zoo.load_report(model)
    with torch.no_grad():
        assert torch.equal(again(volume(32, 48, 32)), model(volume(32, 48, 32)))


@pytest.mark.slow
def test_the_hub_loads_it(vit_state, saved):
    """By the names with an underscore."""
    path = saved(vit_state)
    for name in (ENCODER, AUTOENCODER, UNETR):
        model = torch.hub.load(str(CHECKOUT), name.replace("-", "_"), source="local", checkpoint=path, num_classes=0)
        assert type(model) is type(load(name, path))


def test_a_half_precision_file_of_a_perceptron_is_widened(vit_state, saved, tmp_path):
    """Read into memory, with the layout of a convolution's weight, from a file that is not mapped."""
    state = {n: t.half().contiguous() for n, t in with_perceptron(vit_state).items()}
    save_file(state, tmp_path / "half.safetensors")
    model = zoo.load_model(ENCODER, checkpoint=tmp_path / "half.safetensors")
    weight = model.patch_embedding.patch_embeddings.weight
    assert weight.is_contiguous()
    assert torch.equal(weight, vit_state["patch_embedding.patch_embeddings.weight"].half().float())


# --- files that do not fit --------------------------------------------------------------------------------------------


def test_a_class_token_is_refused(saved):
    """A ViT that was trained to read the class token has other features, which is said and not glossed over."""
    plain = ViT(1, 32, 16, 64, 128, 2, 1, classification=True, num_classes=2)
    path = saved(behind("module.", plain.state_dict()))
    with pytest.raises(CheckpointMismatchError, match=r"trained with a class token \(module\.cls_token"):
        load(ENCODER, path)
    assert zoo.inspect_checkpoint(path).matches == ()


def test_a_vit_of_other_depth_makes_no_unetr(saved):
    """A UNETR has twelve blocks."""
    path = saved(vit_encoder(**SMALL, num_layers=3).state_dict())
    with pytest.raises(CheckpointMismatchError, match=r"38 of the 137 required tensors of 'monai-ssl-unetr' match"):
        load(UNETR, path)


def test_files_without_a_decoder_make_no_auto_encoder(unetr_state, saved):
    """What is missing is named, and what the file is."""
    with pytest.raises(CheckpointMismatchError) as caught:
        load(AUTOENCODER, saved(unetr_state))
    assert "conv3d_transpose.weight" in str(caught.value)
    assert f"That loads with load_model('{UNETR}'" in str(caught.value)


@pytest.mark.slow
def test_a_file_of_another_family_is_told_apart(vit_state, saved, narrow_caid):
    """In both directions."""
    unet = zoo.load_model("caid-resnet50-unet", pretrained=False)
    with pytest.raises(CheckpointMismatchError, match=r"load_model\('caid-resnet50-unet'"):
        load(ENCODER, saved(unet.state_dict()))
    with pytest.raises(CheckpointMismatchError, match=rf"load_model\('{AUTOENCODER}'|load_model\('{ENCODER}'"):
        zoo.load_model("caid-resnet50", checkpoint=saved(vit_state))


@pytest.mark.parametrize(
    ("name", "kind", "front", "stray"),
    [
        (ENCODER, "vit", "", "register_tokens"),
        (ENCODER, "vit", "module.", "patch_embedding.norm.weight"),
        (ENCODER, "vit", "", "blocks.0.adapter.patch_embedding.cls_token"),
        (ENCODER, "unetr", "", "vit.blocks.3.adapter.weight"),
        (ENCODER, "unetr", "module.", "vit.blocks.3.adapter.weight"),
        (AUTOENCODER, "vit", "", "conv3d_transpose_2.weight"),
        (AUTOENCODER, "vit", "module.", "norm_pre.weight"),
        (UNETR, "vit", "", "register_tokens"),
        (UNETR, "vit", "module.", "register_tokens"),
        (UNETR, "unetr", "", "vit.pos_norm.weight"),
        (UNETR, "unetr", "", "decoder1.conv_block.conv1.conv.weight"),
        (UNETR, "unetr", "module.", "encoder1.layer.norm1.weight"),
        (UNETR, "unetr", "", "attention.weight"),
        (UNETR, "unetr", "module.", "attention.weight"),
    ],
)
def test_a_tensor_that_the_network_does_not_have_is_refused(name, kind, stray, front, vit_state, unetr_state, saved):
    """Behind the network's prefix, or beside its parts: what the file's own network used there, ours cannot."""
    state = {"vit": vit_state, "unetr": unetr_state}[kind] | {stray: torch.ones(3)}
    with pytest.raises(CheckpointMismatchError, match=rf"unexpected \(1\): .*{re.escape(stray.removeprefix('vit.'))}"):
        load(name, saved(behind(front, state)))


def test_a_classifier_is_no_part_of_a_unetr(vit_state, saved):
    """A fine-tuned ViT fills it all the same, and the report says what stayed behind."""
    head = {"classification_head.weight": torch.ones(2, 64), "classification_head.bias": torch.ones(2)}
    model = load(UNETR, saved(encoder_part(vit_state) | head))
    assert [zoo.load_report(model).dropped[name] for name in head] == ["classifier on the ViT"] * 2


@pytest.mark.slow
def test_a_truncated_file_is_refused(vit_state, unetr_state, saved):
    """One tensor is enough, in the ViT or inside a part of the decoder."""
    lacking = {name: t for name, t in vit_state.items() if name != "blocks.7.attn.out_proj.bias"}
    with pytest.raises(CheckpointMismatchError, match=r"136 of the 137 required.*\n.*blocks\.7\.attn\.out_proj\.bias"):
        load(ENCODER, saved(lacking))
    lacking = {n: t for n, t in unetr_state.items() if n != "decoder4.conv_block.conv2.conv.weight"}
    with pytest.raises(CheckpointMismatchError, match=r"missing \(1\): decoder4\.conv_block\.conv2\.conv\.weight"):
        load(UNETR, saved(lacking))


@pytest.mark.slow
@pytest.mark.parametrize("name", [ENCODER, UNETR])
def test_inspection_names_the_models_that_a_file_fits(name, vit_state, unetr_state, saved):
    """Whatever its projection is."""
    for state in (vit_state, with_perceptron(vit_state), unetr_state):
        summary = zoo.inspect_checkpoint(saved(behind("module.", state)))
        match = next(match for match in summary.matches if match.model == name)
        assert match.complete
        whole = name == UNETR and state is unetr_state
        assert (match.matched, match.needed) == ((170, 170) if whole else (137, 137))


# --- input and records ------------------------------------------------------------------------------------------------


def test_the_two_windows_are_kept_apart():
    """Features are of the pre-training's window and voxels, segmentation of the fine-tuning's."""
    for name in (ENCODER, AUTOENCODER):
        assert zoo.load_transform(name).preprocessing == PRETRAINING == zoo.model_info(name).input
    for name in (UNETR, SWIN):
        assert zoo.load_transform(name).preprocessing == FINE_TUNING == zoo.model_info(name).input
    hu = np.broadcast_to(np.linspace(-1000, 400, 40, dtype=np.float32), (40, 40, 40))
    for name, facts in ((ENCODER, PRETRAINING), (UNETR, FINE_TUNING)):
        scan = nibabel.Nifti1Image(hu, np.diag([*facts.spacing, 1.0]))
        low, high = facts.window
        scaled = ((hu - low) / (high - low)).clip(0, 1)
        assert relative_error(zoo.load_transform(name)(scan)[0], scaled) < TOLERANCE
        assert (hu[0, 0, 36] - low) / (high - low) > 1  # the window is narrower than the scan


def test_a_withdrawn_link_is_called_so(tmp_path):
    """Whoever is told to fetch a file by hand must know that it may be gone."""
    with pytest.raises(OfflineError, match="publishers withdrew them"):
        zoo.load_model(f"{ENCODER}.tcia-covid19", cache_dir=tmp_path, offline=True)


def test_the_record_of_the_vit_is_the_withdrawn_file():
    """No digest and why, its fingerprint that of MONAI 0.8's names, and never taken without its tag."""
    state = {name: torch.empty(shape, device="meta") for name, shape in VIT_KEYS.items()}
    for name in (ENCODER, AUTOENCODER, UNETR):
        (weights,) = records(name)
        assert weights.sources == ("gdrive:1D7G1FhgZfBhql4djMfiSy0xODVXnLlpd",)
        assert (weights.state, weights.bytes, weights.sha256) == ("withdrawn", None, None)
        assert "2023-01-20" in weights.sha256_note
        assert weights.fingerprint[name] == fingerprint(get_entry(name).convert(state)[0])
        assert re.search("none stated", weights.licences["weights"]["licence"])
        assert zoo.model_info(name).default is False
