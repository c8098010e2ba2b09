"""The Swin transformer of MONAI SSL as an encoder: its files, its input, whole volumes."""

import logging

import nibabel
import numpy as np
import pytest
import torch
from caid_files import behind, relative_error
from dicom_files import write_series
from monai.networks.nets.swin_unetr import SwinTransformer
from monai_ssl_files import (
    SWIN,
    bare_swin,
    filled_swin,
    paper_swin,
    published_swin,
    ssl_head,
    swin_keys,
    swin_shapes,
)
from safetensors.torch import save_file

import zoo
from zoo.checkpoint import build_network, fingerprint
from zoo.commands.examination import examine
from zoo.embedding import embed
from zoo.entries.monai_ssl.segment import main
from zoo.entries.monai_ssl.windows import window_of
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, InputContractError, OptionError
from zoo.loading import full_state
from zoo.manifest import records
from zoo.networks.swin import patch_merging
from zoo.networks.swin_encoder import swin_encoder
from zoo.networks.swin_names import relative_positions
from zoo.registry import get_entry

NAME = "monai-ssl-swinvit"
TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 2e-6."""
WINDOW = (96, 64, 32)
"""Voxels of the windows of the test: less work than the published 96, and empty cells along the first axis."""


def load(path, **options):
    return zoo.load_model(NAME, checkpoint=path, mmap=True, **options)


def volume(*sides, channels=1):
    return torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def state():
    """A small Swin UNETR under MONAI's names."""
    return filled_swin(swin_shapes())


@pytest.fixture(scope="module")
def transformer(state):
    """Its transformer under the names of MONAI's `SwinTransformer`."""
    return {n.removeprefix("swinViT."): t for n, t in state.items() if n.startswith("swinViT.")}


@pytest.fixture
def saved(tmp_path):
    """Save content as a checkpoint."""

    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="module")
def small(scratch, transformer):
    """Weights of a small encoder, as its network saves them."""
    path = scratch / "swinvit.safetensors"
    save_file({name: tensor.clone() for name, tensor in transformer.items()}, path)
    return path


@pytest.mark.slow
@torch.no_grad()
def test_sizes_that_the_network_takes():
    """32 voxels a side and more, in multiples of 32 or not, as MONAI's own class; fewer are refused."""
    torch.manual_seed(0)
    model = zoo.load_model(NAME, pretrained=False, feature_size=12)
    assert model.forward_features(volume(32, 32, 32)).shape == (1, 192, 1, 1, 1)
    odd = volume(33, 40, 64)
    plain = SwinTransformer(1, 12, (7,) * 3, (2,) * 3, (2,) * 4, (3, 6, 12, 24), downsample=patch_merging("duplicated"))
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model.forward_features(odd), plain.eval()(odd)[-1])
    with pytest.raises(InputContractError, match="31 x 40 x 64 voxels; at least 32"):
        model(volume(31, 40, 64))
    with pytest.raises(InputContractError, match=r"in_channels=2"):
        model(volume(32, 32, 32, channels=2))
    with pytest.raises(InputContractError, match=r"x\[None\]"):
        model(volume(32, 32, 32)[0])


# --- its files --------------------------------------------------------------------------------------------------------


FILES = {
    "published": published_swin,
    "published in DDP": lambda s: {"model": behind("module.", published_swin(s)["model"])},
    "MONAI's": dict,
    "compiled": lambda s: behind("_orig_mod.", s),
    "transformer alone": bare_swin,
    "today's SSLHead": lambda s: ssl_head({n.removeprefix("swinViT."): t for n, t in s.items()}),
    "a Lightning attribute": lambda s: {"state_dict": behind("net.", s) | {"loss.weight": torch.ones(2)}},
    "its own": lambda s: {n.removeprefix("swinViT."): t for n, t in s.items() if n.startswith("swinViT.")},
}


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_file_loads(form, state, transformer, saved):
    """To the bit; what is left out has its reason."""
    model = load(saved(FILES[form](state)))
    assert model.state_dict().keys() == transformer.keys()
    assert all(torch.equal(tensor, transformer[name]) for name, tensor in model.state_dict().items())
    reasons = set(zoo.load_report(model).dropped.values())
    assert "beside the network" not in reasons or form == "a Lightning attribute"
    if form == "published":
        assert "decoder of the U-Net around the transformer" in reasons


def test_the_network_of_the_paper_loads_but_is_no_class_of_monais(state, saved):
    """Two convolutions first; no plain class is promised."""
    model = load(saved(paper_swin(state)))
    assert "patch_embed.proj.conv2.conv.weight" in model.state_dict()
    with pytest.raises(OptionError, match="two convolutions"):
        full_state(NAME, model)


def test_the_records_are_of_their_files():
    """Both are of one network; fingerprints are of the published names; the plain name loads the one with a digest."""
    found = {record.tag: record for record in records(NAME)}
    for tag, record in found.items():
        keys = on_meta(swin_keys(tag))
        for name in (NAME, SWIN):
            assert record.fingerprint[name] == fingerprint(get_entry(name).convert(keys)[0])
        assert record.options == {"merging": "duplicated"}
    assert list(found) == ["dae", "ct5050"]
    assert zoo.model_info(NAME).name == f"{NAME}.dae"
    assert (found["ct5050"].sha256, len(found["ct5050"].sources)) == (None, 1)


@pytest.mark.slow
def test_a_supervised_relative_is_told_apart(state, saved, zoo):
    """SuPreM's Swin UNETR, or the file of the hub that is called 5050: it loads, and the report says what it is.

    Under the tag of the authors' file it cannot be imported: nobody published the digest that would tell.
    """
    import zoo as package

    path = saved({"state_dict": behind("module.", state)})
    for name in (NAME, SWIN):
        report = package.load_report(package.load_model(name, checkpoint=path))
        assert "a decoder and an out head of 14 classes: a supervised relative" in report.note
        assert "a supervised relative" in str(report)
        code, _, err = zoo("import", f"{name}.ct5050", path)
        assert code == 1
        assert "is not monai-ssl-swin" in err
        assert package.load_report(package.load_model(name, checkpoint=saved(bare_swin(state), "b.pt"))).note == ""
    model = package.load_model(SWIN, checkpoint=path)
    assert not package.load_report(model).fresh
    assert torch.equal(model.state_dict()["out.conv.conv.weight"], state["out.conv.conv.weight"])
    assert zoo("import", f"{NAME}.supervised", path)[0] == 0
    assert package.load_report(package.load_model(SWIN, checkpoint=saved(published_swin(state), "d.pt"))).note == ""


def suprem(state):
    """What SuPreM's training saved: a backbone, whose last convolution did nothing if it is there, beside its heads."""
    heads = {"precls_conv.0.weight": (48,), "GAP.3.weight": (4, 4), "controller.bias": (3,), "organ_embedding": (9, 2)}
    return {"net": behind("module.", behind("backbone.", state) | {n: torch.ones(s) for n, s in heads.items()})}


def test_a_supervised_relative_is_not_on_record():
    """At the width of the published files nothing but the decoder tells them apart: names and shapes differ from it."""
    whole = on_meta(swin_shapes(48))
    headless = {name: tensor for name, tensor in whole.items() if not name.startswith("out.")}
    recorded = {record.fingerprint[name] for name in (NAME, SWIN) for record in records(name)}
    for names in (whole, behind("module.", whole), suprem(whole)["net"], suprem(headless)["net"]):
        assert fingerprint(get_entry(NAME).convert(names)[0]) not in recorded
    assert fingerprint(get_entry(SWIN).convert(whole)[0]) not in recorded


@pytest.mark.slow
@pytest.mark.parametrize("with_out", [False, True])
def test_suprem_s_supervised_swin_unetr_loads_and_is_called_so(with_out, state, saved, zoo):
    """Its decoder fills ours, its heads tell the merging, and a last convolution that nobody trained stays out."""
    import zoo as package

    path = saved(suprem({n: t for n, t in state.items() if with_out or not n.startswith("out.")}))
    for name in (SWIN, NAME):
        report = package.load_report(package.load_model(name, checkpoint=path))
        assert "a decoder and heads of SuPreM's training with labels: a supervised relative" in report.note
        assert report.said_by["merging"] == "the names in the file"
        assert report.dropped["module.controller.bias"] == "head of SuPreM's supervised training"
        assert "beside the network" not in report.dropped.values()
        assert {name.partition(".")[0] for name in report.fresh} == ({"out"} if name == SWIN else set())
        assert zoo("import", f"{name}.ct5050", path)[0] == 1
    assert torch.equal(
        package.load_model(SWIN, checkpoint=path).state_dict()["decoder1.conv_block.conv1.conv.weight"],
        state["decoder1.conv_block.conv1.conv.weight"],
    )


@pytest.mark.slow
def test_tables_of_positions_are_no_weights(state, saved):
    """One that was averaged, or filled, is refused by name; one that was cast is of another kind."""
    name = "swinViT.layers2.0.blocks.1.attn.relative_position_index"
    assert torch.equal(relative_positions(), state[name])
    for model in (NAME, SWIN):
        with pytest.raises(CheckpointFormatError, match=r"1 tables of relative positions .*layers2\.0\.blocks\.1"):
            zoo.load_model(model, checkpoint=saved(state | {name: state[name].flip(0)}))
        with pytest.raises(CheckpointMismatchError, match=r"343x343 int64 expected"):
            zoo.load_model(model, checkpoint=saved(state | {name: state[name].half()}))


@pytest.mark.parametrize(
    ("form", "stray"),
    [
        (published_swin, "encoder.absolute_pos_embed"),
        (dict, "swinViT.layers1.0.blocks.0.extra.weight"),
        (bare_swin, "module.gate.weight"),
    ],
)
def test_a_tensor_that_the_transformer_does_not_have_is_refused(form, stray, state, saved):
    """Behind its prefix nothing is passed over but what the entry names."""
    content = form(state)
    inner = next((content[key] for key in ("model", "state_dict") if key in content), content)
    inner[stray] = torch.ones(3)
    with pytest.raises(CheckpointMismatchError, match=r"unexpected \(1\)"):
        load(saved(content))


@pytest.mark.slow
@torch.no_grad()
def test_a_classifier_is_fresh_loaded_or_left_out(small, saved):
    """`num_classes` as everywhere; the head that it saved fills it again."""
    model, x = load(small, num_classes=3), volume(32, 32, 32)
    assert set(zoo.load_report(model).fresh) == {"classification_head.weight", "classification_head.bias"}
    logits = model(x)
    assert logits.shape == (1, 3)
    path = saved(model.state_dict())
    again = load(path)
    assert torch.equal(again(x), logits)
    other = load(path, num_classes=0)
    assert other(x).shape == (1, 192)
    assert "the head does not fit" in zoo.load_report(other).dropped["classification_head.weight"]
    assert load(path, num_classes=5).classification_head.out_features == 5


@pytest.mark.slow
@torch.no_grad()
def test_the_full_export_is_monais_class(small):
    """`SwinTransformer` loads it strictly and answers alike, given the merging."""
    model = load(small, num_classes=2)
    plain = SwinTransformer(1, 12, (7,) * 3, (2,) * 3, (2,) * 4, (3, 6, 12, 24), downsample=patch_merging("duplicated"))
    plain.load_state_dict(full_state(NAME, model), strict=True)
    x = volume(32, 32, 32)
    assert torch.equal(plain.eval()(x)[-1], model.forward_features(x))


@pytest.mark.slow
@torch.no_grad()
def test_channels_and_rates(small):
    """The first convolution answers three equal channels as one; the rate falls towards the input."""
    model, three = load(small), load(small, in_channels=3)
    x = volume(32, 32, 32)
    assert relative_error(three(x.expand(-1, 3, -1, -1, -1)), model(x).numpy()) < TOLERANCE
    groups = zoo.param_groups(model, 1e-2, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    assert rates == {"patch_embed": 1e-2 / 16, **{f"layers{i}": 1e-2 / 2 ** (4 - i) for i in (1, 2, 3, 4)}}


@pytest.mark.slow
@pytest.mark.parametrize("v2", [False, True])
def test_every_parameter_gets_a_gradient(v2):
    """As plain DistributedDataParallel needs it; of a Swin v2 with VoCo's own embedding too."""
    options = {"use_v2": True, "embedding": "authors"} if v2 else {}
    model = swin_encoder(feature_size=12, num_classes=2, **options)
    model(volume(64 if v2 else 32, 32, 32)).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_inspection_names_both_networks(state, saved):
    """The transformer alone is as good a file for either; no other family takes it."""
    matches = {m.model: m for m in zoo.inspect_checkpoint(saved(bare_swin(state))).matches}
    assert set(matches) == {NAME, SWIN}
    assert all(match.complete and match.matched == match.needed == 126 for match in matches.values())


def test_it_is_built_on_the_meta_device():
    """No value is drawn that the file then replaces."""
    network = build_network(get_entry(NAME), dict(get_entry(NAME).config))
    assert all(tensor.is_meta for tensor in network.state_dict().values())


# --- input and whole volumes ------------------------------------------------------------------------------------------


def write_ct(path, shape=(40, 36, 34), affine=None, spread=60):
    """Tissue and noise in a box, air around; first axis to the left."""
    values = np.full(shape, -1000.0, np.float32)
    body = tuple(slice(3, side - 2) for side in shape)
    values[body] = np.random.default_rng(0).normal(40, spread, values[body].shape)
    values[5:8, 5:8, 5:8] = 1800  # denser than the window
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.7, 0.8, 1.25, 1]) if affine is None else affine), path)
    return path, values


def test_the_input_is_that_of_the_pre_training(tmp_path):
    """RAS, voxels as they are, [-1000, 1000] HU to [0, 1], by arithmetic of its own; `zoo doctor` says the same."""
    path, values = write_ct(tmp_path / "ct.nii.gz")
    found = zoo.load_transform(NAME)(path)
    expected = (np.clip(values[::-1], -1000, 1000) + 1000) / 2000
    assert found.shape == (1, *values.shape)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    assert found.max() == 1  # reversed axes or another window would be seen
    looked = examine(path, NAME)
    assert looked.fits
    assert f"float32 {tuple(found.shape)}, {float(found.min()):.3g} to 1" in looked.gives
    for tag in ("dae", "ct5050"):
        assert zoo.load_transform(f"{NAME}.{tag}").preprocessing == zoo.load_transform(NAME).preprocessing
    segmenting = zoo.load_transform(f"{SWIN}.ct5050").preprocessing
    assert (segmenting.window, segmenting.spacing) == ((-175.0, 250.0), (1.5, 1.5, 2.0))


def test_what_is_no_ct_is_refused(tmp_path):
    """MRI, values before the rescale, pictures."""
    transform = zoo.load_transform(NAME)
    write_series(tmp_path / "mr", Modality="MR")
    _, values = write_ct(tmp_path / "ct.nii.gz")
    for wrong in (tmp_path / "mr", values[0], (values + 1000) / 2000, (values + 1024).clip(0)):
        with pytest.raises(InputContractError):
            transform(wrong)
    assert not examine(tmp_path / "mr", NAME).fits


@pytest.mark.slow
@torch.no_grad()
def test_a_ct_is_embedded_window_by_window(small, tmp_path, monkeypatch):
    """A small one is one window, of which the cells that hold some of it are averaged; the recipe's command agrees."""
    assert window_of(load(small)) == (96, 96, 96)
    for module in ("windows", "segment"):
        monkeypatch.setattr(f"zoo.entries.monai_ssl.{module}.window_of", lambda model: WINDOW)
    path, _ = write_ct(tmp_path / "ct.nii.gz", (36, 36, 34))
    found = embed(NAME, [path], checkpoint=small)
    assert found.values.shape == (1, 192)
    model, ct = load(small), zoo.load_transform(NAME)(path)
    inside = np.argwhere(ct[0].numpy() > 0)
    box = ct[0][tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))]
    before = [(whole - side) // 2 for whole, side in zip(WINDOW, box.shape, strict=True)]
    padded = torch.zeros(WINDOW)
    place = tuple(slice(low, low + side) for low, side in zip(before, box.shape, strict=True))
    padded[place] = box
    cells = tuple(slice(low // 32, -(-(low + side) // 32)) for low, side in zip(before, box.shape, strict=True))
    assert cells[0] == slice(1, 2)
    expected = model.forward_features(padded[None, None])[(0, slice(None), *cells)].mean((1, 2, 3))
    np.testing.assert_allclose(found.values[0], expected.numpy(), rtol=1e-4, atol=1e-5)
    arguments = ["--checkpoint", str(small), "--out", str(tmp_path / "out"), "--device", "cpu", "--model", NAME]
    (file,) = main(["features", "--image", str(path), *arguments])
    with np.load(file) as stored:
        np.testing.assert_allclose(stored["pooled"], expected.numpy(), rtol=1e-4, atol=1e-5)
        assert stored["map"].shape == (192, 3, 2, 1)
        assert np.abs(np.diag(stored["affine"][:3, :3])) == pytest.approx([32 * 0.7, 32 * 0.8, 32 * 1.25])


def test_a_file_that_does_not_say_its_merging_is_warned_of(state, saved, caplog):
    """As of the Swin UNETR; what the user says is taken, and a contradiction of the names refused."""
    with caplog.at_level(logging.WARNING, "zoo"):
        load(saved(state))
    assert any("does not say its merging" in record.getMessage() for record in caplog.records)
    assert zoo.load_report(load(saved(state), merging="complete")).options == {"merging": "complete"}
    with pytest.raises(CheckpointMismatchError, match="merging is contradicted"):
        load(saved(bare_swin(state)), merging="complete")
