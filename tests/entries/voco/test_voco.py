"""VoCo: the authors' arrays, forms of its files, its three sizes told apart, its two inputs, whole volumes."""

import nibabel
import numpy as np
import pytest
import torch
from caid_files import PARITY, behind, filled, relative_error
from dicom_files import write_series
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from monai_ssl_files import filled_form, filled_swin, published_swin, swin_keys, swin_shapes
from parity.fill import image

import zoo
from zoo.checkpoint import build_network, fingerprint, load_into
from zoo.checkpoint.skeleton import without_values
from zoo.commands.examination import examine
from zoo.embedding import embed
from zoo.entries.voco import windows
from zoo.entries.voco.convert import WIDTHS
from zoo.errors import CheckpointMismatchError, InputContractError, OptionError
from zoo.loading import full_state
from zoo.manifest import records
from zoo.networks.swin import patch_merging
from zoo.networks.swin_names import relative_positions
from zoo.registry import entries, get_entry
from zoo.tasks.labelling import label_image

ENCODER, SEGMENTER = "voco-swinvit-b", "voco-swinunetr-b"
ENCODERS, SEGMENTERS = (tuple(f"voco-{kind}-{size}" for size in WIDTHS) for kind in ("swinvit", "swinunetr"))
TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 2e-6; every wrong variant below by more than 0.02."""
CROP = (64, 32, 32)
"""Voxels of the crops of the test: a quarter of the work."""
V2 = "swinViT.layers{}c.0.layer.conv{}.conv.weight"


def load(name, path, **options):
    return zoo.load_model(name, checkpoint=path, mmap=True, **options)


def fill(name, names, **options):
    """Fill a network, as `load_model` does, with the names of a file."""
    entry = get_entry(name)
    state, facts = entry.convert(names)
    return load_into(build_network(entry, {**entry.config, **facts, **options}), state, entry)


def on_meta(shapes):
    return {name: torch.empty(s, device="meta", dtype=_kind(name)) for name, s in shapes.items()}


def _kind(name):
    return torch.int64 if name.endswith("_index") else torch.float32


def reference_input():
    """The volumes that the arrays were computed from, `(2, 1, 64, 32, 96)` in [0, 1]."""
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (2, 1, 64, 32, 96), 0), 0, 1).astype(np.float32))


@pytest.fixture(scope="module")
def published(scratch):
    """VoCo_B_SSL_head.pt at full size, bare."""
    path = scratch / "VoCo_B_SSL_head.pt"
    torch.save(filled_form("voco_b"), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def arrays():
    """What the authors' code makes of it."""
    with np.load(PARITY / "swin_voco_b_0.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def encoder(published):
    return load(ENCODER, published)


# --- the authors' arrays ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_the_maps_are_those_of_the_authors_network(encoder, arrays):
    """Every stage on record, the last map, its mean; other ways to pool do not pass.

    Each volume alone, whatever lay beside it in the authors' batch.
    """
    x, raw = reference_input(), []
    maps = encoder.forward_intermediates(x[:1], norm=True)
    for i, step in ((1, 2), (2, 2), (3, 1)):
        assert relative_error(maps[i][:, ::4, ::step, ::step, ::step], arrays[f"stage{i}"]) < TOLERANCE
    assert relative_error(maps[4], arrays["map"][:1]) < TOLERANCE
    hook = encoder.layers4[0].register_forward_hook(lambda module, inputs, output: raw.append(output))
    pooled = encoder(x[1:])
    hook.remove()
    assert pooled.shape == (1, encoder.num_features) == (1, 768)
    assert relative_error(pooled, arrays["pooled"][1:]) < TOLERANCE
    last = encoder.normalised(raw[0])
    assert relative_error(last, arrays["map"][1:]) < TOLERANCE
    for wrong in (last.amax((2, 3, 4)), last[:, :, 0, 0, 0], raw[0].mean((2, 3, 4))):
        assert relative_error(wrong, arrays["pooled"][1:]) > 0.02


@pytest.mark.slow
@torch.no_grad()
def test_with_all_eight_slices_it_is_another_network(published, arrays):
    """That of MONAI 1.6.1, to the digit, and not theirs."""
    other = load(ENCODER, published)
    for place in ("layers1", "layers2", "layers3", "layers4"):
        getattr(other, place)[0].downsample.offsets = patch_merging("complete").keywords["offsets"]
    found = other.forward_features(reference_input()[1:])
    assert relative_error(found, arrays["map_complete"][1:]) < TOLERANCE
    assert relative_error(found, arrays["map"][1:]) > 0.1


@pytest.mark.slow
@torch.no_grad()
def test_their_own_embedding_is_five_means(published, arrays):
    """1152 numbers, made with convolutions that the file has and the plain encoder leaves out."""
    model = load(ENCODER, published, embedding="authors")
    found = model(reference_input()[:1])
    assert found.shape == (1, model.num_features) == (1, 1152)
    assert relative_error(found, arrays["embedding"][:1]) < TOLERANCE
    assert relative_error(found[:, -768:], arrays["pooled"][:1]) > 0.5  # the mean of encoder10 is not that of the map
    assert not zoo.load_report(model).fresh
    assert load(ENCODER, published, embedding="authors", num_classes=2).classification_head.in_features == 1152
    with pytest.raises(InputContractError, match="no norm can take"):
        model(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(OptionError, match=r"embedding='mean': expected 'pooled' or 'authors'"):
        load(ENCODER, published, embedding="mean")


@pytest.mark.slow
@torch.no_grad()
def test_the_swin_unetr_answers_as_the_authors(published, arrays):
    """With the decoder that the reference was made with; of the file's own tensors none is left out."""
    model, unet = load(SEGMENTER, published), swin_keys("unet")
    report = zoo.load_report(model)
    assert (len(report.loaded), report.dropped) == (145, {})
    fresh = {name for name in model.state_dict() if name.startswith(("decoder", "out."))}
    assert set(report.fresh) == fresh
    model.load_state_dict(model.state_dict() | filled({name: unet[name] for name in fresh}))
    logits = model(reference_input()[:1])
    assert relative_error(logits[..., ::8, ::8, ::8], arrays["logits"]) < TOLERANCE


# --- its files --------------------------------------------------------------------------------------------------------


def training(state):
    """What pre-training saved around the names: heads of student and teacher beside the backbone."""
    heads = {"student.layers.0.weight": torch.ones(3), "teacher.layers.0.weight": torch.ones(3)}
    return {"global_step": 1, "state_dict": behind("module.", behind("backbone.", state) | heads)}


def tuned(state):
    """What fine-tuning saved: with decoder and head."""
    unet = {n: s for n, s in swin_keys("unet").items() if n.startswith(("decoder", "out."))}
    return {"epoch": 3, "best_acc": 0.8, "state_dict": state | {n: torch.zeros(s) for n, s in unet.items()}}


FORMS = {
    "bare": lambda state: state,
    "in DDP": lambda state: {"state_dict": behind("module.", state)},
    "compiled": lambda state: behind("_orig_mod.", state),
    "training": training,
    "fine-tuned": tuned,
    "student": lambda state: {"state_dict": behind("student.", state)},
}


@pytest.fixture(scope="module")
def light():
    """VoCo B's names and shapes, each with memory for one number only, but for the tables of positions."""
    shapes = swin_keys("voco_b").items()
    return {n: relative_positions() if n.endswith("_index") else torch.zeros(()).expand(s) for n, s in shapes}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_tensors(form, light):
    """Whatever stands in front of the names and beside the network."""
    content = FORMS[form](light)
    names = content.get("state_dict", content)
    encoder, facts = get_entry(ENCODER).convert(names)
    assert {name: id(t) for name, t in encoder.items()} == {
        name.removeprefix("swinViT."): id(t) for name, t in light.items()
    }
    assert facts["convolutions"] is True
    whole, facts = get_entry(SEGMENTER).convert(names)
    assert {name: id(whole[name]) for name in light} == {name: id(t) for name, t in light.items()}
    assert len(whole) == (145 if form != "fine-tuned" else 145 + len(tuned({})["state_dict"]))
    assert facts.get("num_classes") == (14 if form == "fine-tuned" else None)
    assert ("merging" in facts, "unclear" in facts) == ((False, True) if form == "fine-tuned" else (True, False))


@pytest.mark.slow
def test_what_stands_beside_the_network_is_left_out_with_a_reason(light, saved):
    """Heads of the pre-training, the U-Net around an encoder."""
    small = {name: tensor.contiguous() for name, tensor in light.items()}
    path = saved(training(small))
    model = load(ENCODER, path)
    dropped = zoo.load_report(model).dropped
    assert dropped["module.student.layers.0.weight"] == "head of the pre-training, which told where a crop lies"
    assert dropped["encoder10.layer.conv1.conv.weight"] == "convolution of the U-Net around the transformer"
    assert "beside the network" not in dropped.values()
    assert len(model.state_dict()) == 134
    matches = {m.model: m for m in zoo.inspect_checkpoint(path).matches if m.complete}
    assert set(matches) == {ENCODER, SEGMENTER}
    assert all(match.matched == match.needed for match in matches.values())


@pytest.mark.slow
def test_what_it_saves_loads_again(published, saved, tmp_path):
    """Under the names of MONAI's `SwinTransformer`, with VoCo's convolutions beside them where it has these."""
    model = load(ENCODER, published, embedding="authors", num_classes=3)
    path = saved(model.state_dict())
    again = load(ENCODER, path, embedding="authors")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    state, _ = get_entry(SEGMENTER).convert(model.state_dict())
    assert {f"swinViT.{n}" for n in model.state_dict() if n.startswith(("patch", "layers"))} <= state.keys()
    assert "encoder10.layer.conv1.conv.weight" in state
    assert not any("classification_head" in name for name in state)


def test_their_own_embedding_needs_its_convolutions(light):
    """A file of the transformer alone would leave them random."""
    alone = {name: t for name, t in light.items() if name.startswith("swinViT.")}
    entry = get_entry(ENCODER)
    _, facts = entry.convert(alone)
    assert facts["convolutions"] is False
    with pytest.raises(CheckpointMismatchError, match=r"embedding='authors' is made by convolutions .* encoder10\."):
        entry.build({**entry.config, **facts, "embedding": "authors"})
    part = {name: tensor for name, tensor in light.items() if name != "encoder3.layer.conv2.conv.weight"}
    with pytest.raises(CheckpointMismatchError, match=r"missing \(1\): encoder3\.layer\.conv2"):
        fill(ENCODER, part, embedding="authors")


# --- one size for another, one version for another --------------------------------------------------------------------


@pytest.mark.parametrize("size", WIDTHS)
def test_each_size_fits_its_own_networks_alone(size):
    """On the meta device: names, shapes, the fingerprint on record; the other sizes refuse it and name it."""
    keys = on_meta(swin_keys(f"voco_{size}"))
    for entry in entries().values():
        if entry.family != "voco":
            continue
        if not entry.name.endswith(f"-{size}"):
            with pytest.raises(CheckpointMismatchError, match=rf"'voco-swinunetr-{size}' and 'voco-swinvit-{size}'"):
                entry.convert(keys)
            continue
        state, _ = entry.convert(keys)
        for record in records(entry.name):
            assert record.fingerprint[entry.name] == fingerprint(state)
        network = build_network(entry, dict(entry.config))
        own = network.state_dict()
        assert all(tensor.is_meta for tensor in own.values())
        inside = {name: tensor for name, tensor in own.items() if name.startswith(entry.required)}
        assert {n: t.shape for n, t in inside.items()} == {n: state[n].shape for n in inside}
        if entry.is_encoder:
            assert network.num_features == entry.num_features == 16 * WIDTHS[size]
            assert build_network(entry, {**entry.config, "embedding": "authors"}).num_features == 24 * WIDTHS[size]


@pytest.mark.parametrize("form", ["dae", "ct5050", "MONAI's", "v2 without its convolutions"])
def test_a_swin_that_is_no_v2_is_refused(form, light):
    """The same transformer, but another network, in which VoCo's convolutions would be random."""
    state = {
        "dae": lambda: on_meta(swin_keys("dae")),
        "ct5050": lambda: on_meta(swin_keys("ct5050")),
        "MONAI's": lambda: on_meta(swin_shapes(48)),
        "v2 without its convolutions": lambda: {n: t for n, t in light.items() if "c.0." not in n},
    }[form]()
    for name in (ENCODER, SEGMENTER):
        with pytest.raises(CheckpointMismatchError, match=r"expected a Swin v2.*'monai-ssl-swinunetr'"):
            get_entry(name).convert(state)


def test_the_wrong_file_is_said_by_name_when_it_is_loaded(saved):
    """Through `load_model`: the request, the file, and the right model."""
    path = saved(published_swin(filled_swin(swin_shapes())))
    with pytest.raises(CheckpointMismatchError, match=r"load_model\('voco-swinvit-l', checkpoint=.*monai-ssl-swinvit'"):
        zoo.load_model("voco-swinvit-l", checkpoint=path)
    narrow = {name: torch.zeros(1, 1, 1, 1, 1) for name in swin_keys("voco_b")}
    narrow["swinViT.patch_embed.proj.weight"] = torch.zeros(24, 1, 2, 2, 2)
    with pytest.raises(CheckpointMismatchError, match=r"width 24, expected 48\. VoCo has the widths 48 \(B\)"):
        zoo.load_model(ENCODER, checkpoint=saved(narrow))


@pytest.mark.parametrize("stray", ["swinViT.layers5c.0.layer.conv1.conv.weight", "swinViT.norm1.weight", "encoder5.w"])
def test_a_tensor_that_the_network_does_not_have_is_refused(stray, light):
    """Under the network's prefix, and beside its parts."""
    with pytest.raises(CheckpointMismatchError, match=r"unexpected \(1\)"):
        fill(SEGMENTER, light | {stray: torch.ones(1)})


def test_a_missing_convolution_of_a_stage_is_named(light):
    """It would be fresh, and all features wrong."""
    lacking = {name: tensor for name, tensor in light.items() if name != V2.format(3, 2)}
    for name, kept in ((ENCODER, "layers3c"), (SEGMENTER, "swinViT.layers3c")):
        with pytest.raises(CheckpointMismatchError, match=rf"missing \(1\): {kept}\.0\.layer\.conv2"):
            fill(name, lacking)


# --- plain classes, channels, groups ----------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_the_full_export_is_monais_class(encoder):
    """`SwinTransformer(use_v2=True)` loads it strictly and answers alike; `SwinUNETR` has the same names and shapes."""
    merging = patch_merging("duplicated")
    sides = ((7,) * 3, (2,) * 3, (2,) * 4, (3, 6, 12, 24))
    with without_values():
        plain = SwinTransformer(1, 48, *sides, downsample=merging, use_v2=True)
        theirs = SwinUNETR(1, 14, feature_size=48, downsample=merging, use_v2=True).state_dict()
    plain.load_state_dict(full_state(ENCODER, encoder), strict=True, assign=True)
    x = torch.rand(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(x)[-1], encoder.forward_features(x))
    own = build_network(get_entry(SEGMENTER), dict(get_entry(SEGMENTER).config)).state_dict()
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in theirs.items()}
    ours = get_entry(SEGMENTER)
    headless = build_network(ours, {**ours.config, "num_classes": 0}).state_dict()
    assert ours.complete(headless)["out.conv.conv.weight"].shape == (48, 48, 1, 1, 1)


@pytest.mark.slow
@torch.no_grad()
def test_channels_and_rates(published, encoder):
    """Every convolution that reads the volume is adapted; the rate falls towards the input."""
    three = load(ENCODER, published, in_channels=3, embedding="authors")
    assert len(zoo.load_report(three).adapted) == 3
    x = reference_input()[:1, :, :32, :32, :64]
    one = load(ENCODER, published, embedding="authors")
    # sums in another order, which norms over the two voxels of the last map make larger: 6e-5; another scale: 0.36
    assert relative_error(three(x.expand(-1, 3, -1, -1, -1)), one(x).numpy()) < 1e-3
    groups = zoo.param_groups(encoder, 1e-2, layer_decay=0.5)
    rates = {group["name"]: group["lr"] for group in groups if "no decay" not in group["name"]}
    assert rates == {"patch_embed": 1e-2 / 16, **{f"layers{i}c": 1e-2 / 2 ** (4 - i) for i in (1, 2, 3, 4)}}


# --- input and whole volumes ------------------------------------------------------------------------------------------


def write_ct(path, spacing=(1.5, 1.5, 1.5), shape=(30, 26, 28)):
    """Tissue and noise in a box, air around, dense bone; first axis to the left."""
    values = np.full(shape, -1000.0, np.float32)
    body = tuple(slice(3, side - 2) for side in shape)
    values[body] = np.random.default_rng(0).normal(40, 60, values[body].shape)
    values[5:8, 5:8, 5:8] = 1800
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-spacing[0], *spacing[1:], 1])), path)
    return path, values


@pytest.mark.parametrize(
    ("tag", "spacing", "window"),
    [("", (1.5, 1.5, 1.5), (-175, 250)), (".ssl-chest", (1.25, 1.25, 5.0), (-1000, 500))],
)
@pytest.mark.parametrize("name", [ENCODER, SEGMENTER, "voco-swinvit-h"])
def test_abdomen_and_chest_are_two_inputs(name, tag, spacing, window, tmp_path):
    """By the plain name that of the abdomen, by the tag that of chests; the window by arithmetic, axes to RAS."""
    path, values = write_ct(tmp_path / "ct.nii.gz", spacing)
    low, high = window
    found = zoo.load_transform(f"{name}{tag}")(path)
    expected = (np.clip(values[::-1], low, high) - low) / (high - low)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    looked = examine(path, f"{name}{tag}")
    assert looked.fits
    assert f"float32 {tuple(found.shape)}, 0 to 1" in looked.gives
    assert zoo.model_info(name).name == f"{name}.ssl"
    other = zoo.load_transform(f"{name}{'' if tag else '.ssl-chest'}")(path)
    assert other.shape != found.shape
    assert zoo.model_info(f"{name}.ssl-chest").sha256 == zoo.model_info(name).sha256


def test_what_is_no_ct_is_refused(tmp_path):
    """MRI, values before the rescale, pictures."""
    transform = zoo.load_transform(ENCODER)
    write_series(tmp_path / "mr", Modality="MR")
    _, values = write_ct(tmp_path / "ct.nii.gz")
    for wrong in (tmp_path / "mr", values[0], (values + 1000) / 2000, (values + 1024).clip(0)):
        with pytest.raises(InputContractError):
            transform(wrong)
    assert not examine(tmp_path / "mr", ENCODER).fits


@pytest.mark.slow
@torch.no_grad()
def test_a_ct_is_embedded_crop_by_crop(published, encoder, tmp_path, monkeypatch):
    """A small one is one crop, of which the cells that hold some of it are averaged; of 64 voxels by default."""
    assert windows.CROP == (64, 64, 64)
    monkeypatch.setattr(windows, "CROP", CROP)
    path, _ = write_ct(tmp_path / "ct.nii.gz")
    found = embed(ENCODER, [path], checkpoint=published)
    ct = zoo.load_transform(ENCODER)(path)[0]
    inside = np.argwhere(ct.numpy() > 0)
    box = ct[tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))]
    before = [(whole - side) // 2 for whole, side in zip(CROP, box.shape, strict=True)]
    padded = torch.zeros(CROP)
    inside = tuple(slice(low, low + side) for low, side in zip(before, box.shape, strict=True))
    padded[inside] = box
    expected = encoder(padded[None, None])  # both cells hold some of it
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-4, atol=1e-5)
    theirs = load(ENCODER, published, embedding="authors")
    with pytest.raises(OptionError, match="of one crop"):
        get_entry(ENCODER).parts(theirs, zoo.load_transform(ENCODER), None, None)


def test_a_ct_is_segmented_on_its_own_grid(tmp_path):
    """Labels of the window put where the scan has it: here each voxel's class is told by its HU."""
    path, values = write_ct(tmp_path / "ct.nii.gz", shape=(50, 40, 36))

    class ByValue(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.num_classes = torch.nn.Parameter(torch.zeros(1)), 3

        def forward(self, x):
            assert tuple(x.shape[2:]) == (96, 96, 96)
            return torch.cat([0.01 - x, x - 0.01, (x - 0.9) * 1e3], 1)

    labels, affine = label_image(get_entry(SEGMENTER), ByValue(), zoo.load_transform(SEGMENTER), path)
    assert labels.dtype == np.uint8
    expected = np.digitize((np.clip(values, -175, 250) + 175) / 425, [0.01, 0.9])
    near = np.abs((np.clip(values, -175, 250) + 175) / 425 - 0.9) < 0.01  # between the last two the slope decides
    assert np.array_equal(labels[~near], expected[~near])
    assert np.allclose(affine, nibabel.load(path).affine)
