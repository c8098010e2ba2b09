"""RAD-DINO: the outputs of DINOv2's own code at two sizes, every form of file, and other networks refused."""

import copy
import json
import math

import numpy as np
import pytest
import timm
import torch
from caid_files import behind, relative_error
from dicom_files import write_dicom
from PIL import Image
from raddino_files import (
    FILMS,
    FORMS,
    MODEL,
    NARROW,
    PARITY,
    as_timm,
    as_transformers_4,
    dino_head,
    filled,
    keys,
    narrow_rad_dino,
    reference,
    reference_film,
    vit,
)
from safetensors.torch import load_file, save, save_file
from states import same
from torch.nn import functional as F

import zoo
from zoo.checkpoint import build_network, export_safetensors, fingerprint, inspect_checkpoint
from zoo.checkpoint.skeleton import without_values
from zoo.commands.examination import examine
from zoo.embedding import embed
from zoo.entries.rad_dino.model import resample_positions
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, InputContractError
from zoo.learning_rates import param_groups
from zoo.loading import full_state
from zoo.registry import get_entry

TOLERANCE = 1e-5
"""Relative. The same sums in another order differ by some 5e-7; the wrong interpolations by 1e-2 and more."""
DROPPED = "token of masked patches, which training alone uses"


@pytest.fixture(scope="module")
def state():
    """The reference values under DINOv2's names."""
    return filled()


@pytest.fixture(scope="module")
def file(state, scratch):
    """The published `backbone_compatible.safetensors`, filled."""
    path = scratch / "backbone_compatible.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def model(file):
    return zoo.load_model(MODEL, checkpoint=file, mmap=True)


@pytest.fixture(scope="module")
def outputs(model):
    """Features and maps of both films."""
    with torch.no_grad():
        return {name: both_outputs(model, reference_film(name)) for name in FILMS}


@pytest.fixture
def narrow():
    """Have the name stand for a narrow network, for tests of what is done with tensors."""
    with narrow_rad_dino():
        yield


@pytest.fixture(scope="module")
def narrow_state():
    """Its values under DINOv2's names."""
    return filled(width=NARROW)


@pytest.fixture(scope="module")
def narrow_file(narrow_state, scratch):
    """Its file in the form of `backbone_compatible.safetensors`."""
    path = scratch / "narrow.safetensors"
    save_file(narrow_state, path)
    return path


@pytest.fixture(scope="module")
def narrow_model(narrow_file):
    with narrow_rad_dino():
        return zoo.load_model(MODEL, checkpoint=narrow_file)


def both_outputs(model, film):
    """Features and the map. The blocks, which take seconds, run once: they take the same tokens both times."""
    runs, run = [], model.blocks.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.blocks, "forward", lambda tokens: runs.append((tokens, run(tokens))) or runs[-1][1])
        features = model(film)
        patch.setattr(model.blocks, "forward", lambda tokens: torch.equal(tokens, runs[0][0]) and runs[0][1])
        return features, model.forward_features(film)


# The function


@pytest.mark.slow
@pytest.mark.parametrize(("film", "step"), [("full", 9), ("small", 4)])
def test_features_and_maps_are_those_of_the_authors_code(outputs, film, step):
    """At the size of the table, and at another, for which it is interpolated along both axes by other factors."""
    features, maps = outputs[film]
    assert features.shape == (1, 768)
    assert maps.shape == (1, 768, *(side // 14 for side in FILMS[film]))
    assert relative_error(features, reference()[f"cls_{film}"]) < TOLERANCE
    assert relative_error(maps[:, :, ::step, ::step], reference()[f"map_{film}"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["cls_small_timm", "cls_small_size"])
def test_the_interpolations_of_timm_and_of_later_transformers_are_not_taken_for_it(outputs, wrong):
    """With antialiasing, or by sizes instead of factors: other features, which the tolerance must tell apart."""
    assert relative_error(outputs["small"][0], reference()[wrong]) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("film", FILMS)
def test_the_mean_of_the_patches_is_not_taken_for_the_feature(outputs, film):
    """Nor the CLS token before the norm."""
    assert relative_error(outputs[film][1].mean((2, 3)), reference()[f"cls_{film}"]) > 0.1


@pytest.mark.slow
def test_the_token_before_the_norm_is_not_taken_for_the_feature(model):
    """A network that returned it would have the same shape."""
    with torch.no_grad():
        _, prefix = model.forward_intermediates(
            reference_film("small"), indices=1, return_prefix_tokens=True, intermediates_only=True
        )[0]
    assert relative_error(prefix[:, 0], reference()["cls_small"]) > 0.1


@pytest.mark.slow
def test_timms_own_class_takes_the_tensors_and_interpolates_otherwise(state, model):
    """It loads them strictly, and differs in nothing else; its intermediate maps are of our positions too."""
    with without_values():
        plain = timm.create_model("vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict(as_timm(state), strict=True, assign=True)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert isinstance(model, type(plain))
    film = reference_film("small")
    with torch.no_grad():
        assert relative_error(plain(film), reference()["cls_small_timm"]) < TOLERANCE
        (last,) = model.forward_intermediates(film, indices=1, norm=True, intermediates_only=True)
    assert relative_error(last[:, :, ::4, ::4], reference()["map_small"]) < TOLERANCE


def test_the_table_is_interpolated_by_factors_and_without_antialiasing():
    """Against the sum of the cubic kernel's weights, written out: position x + 0.5 over the factor (n + 0.1) / m."""
    table = torch.randn(1, 1 + 37 * 37, 2, dtype=torch.float64)
    made = resample_positions(table.float(), (37, 37), (16, 40))[0, 1:].reshape(16, 40, 2)
    assert resample_positions(table, (37, 37), (37, 37)) is table
    columns = kernel(16), kernel(40)
    expected = torch.einsum("ai,bj,ijc->abc", *columns, table[0, 1:].reshape(37, 37, 2))
    assert (made - expected).abs().max() < 1e-4
    by_size = torch.einsum("ai,bj,ijc->abc", kernel(16, 0), kernel(40, 0), table[0, 1:].reshape(37, 37, 2))
    assert (made - by_size).abs().max() > 1e-2


def kernel(count, offset=0.1, grid=37):
    """Weights `(count, grid)` of Keys' cubic convolution with a = -0.75, borders repeated."""
    weights = torch.zeros(count, grid, dtype=torch.float64)
    for row in range(count):
        position = (row + 0.5) * grid / (count + offset) - 0.5
        for tap in range(math.floor(position) - 1, math.floor(position) + 3):
            d, a = abs(position - tap), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[row, min(max(tap, 0), grid - 1)] += near if d <= 1 else far
    return weights


@pytest.mark.slow
def test_a_films_features_do_not_depend_on_its_neighbours(model):
    """Alone and in a batch; sums may be ordered otherwise."""
    torch.manual_seed(0)
    films = torch.randn(3, 3, 56, 70)
    with torch.no_grad():
        together = model(films)
        alone = torch.cat([model(film[None]) for film in films])
    assert relative_error(together, alone.numpy()) < TOLERANCE


def test_another_size_may_be_set_and_gives_the_same(narrow_model, narrow):
    """The method of timm's class would leave a table behind that it interpolated its own way."""
    fixed = copy.deepcopy(narrow_model)
    fixed.set_input_size(FILMS["small"])
    assert fixed.pos_embed.shape == (1, 1 + 16 * 22, NARROW)
    film = reference_film("small")
    with torch.no_grad():
        assert relative_error(fixed(film), narrow_model(film).numpy()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 225, 224), (1, 3, 224, 225), (1, 1, 224, 224), (3, 224, 224)])
@pytest.mark.parametrize("method", ["forward", "forward_features"])
def test_what_is_no_film_is_refused(model, method, shape):
    """A side that is no multiple of 14 would be cut off without a word, or stop in an assertion."""
    with pytest.raises(InputContractError, match=r"films \(N, 3, H, W\) are expected, H and W multiples of 14"):
        getattr(model, method)(torch.zeros(shape))


@pytest.mark.slow
def test_a_map_is_not_taken_for_tokens(model, outputs):
    """The idiom `forward_head(forward_features(x))` would return the first channel of the map."""
    with pytest.raises(InputContractError, match="without the CLS token: call the network itself"):
        model.forward_head(outputs["small"][1])


def test_timm_describes_the_input(narrow_model, narrow_file, narrow):
    """Its tools read the size and the normalisation that the weights know, not ImageNet's."""
    data = timm.data.resolve_model_data_config(narrow_model)
    assert (data["input_size"], data["interpolation"], data["crop_pct"]) == ((3, 518, 518), "bicubic", 1.0)
    assert (data["mean"], data["std"]) == ((0.5307,) * 3, (0.2583,) * 3)
    one = zoo.load_model(MODEL, checkpoint=narrow_file, in_channels=1, mmap=True)
    assert timm.data.resolve_model_data_config(one)["mean"] == (0.5307,)


# Files

READ = ("DINOv2", "a Lightning attribute")
"""Bare and wrapped: the names tell nothing about how a file is read."""


@pytest.mark.parametrize(("form", "mmap"), [*((form, True) for form in FORMS), *((form, False) for form in READ)])
def test_every_form_of_file_loads_to_the_same_values(form, mmap, narrow_state, saved, narrow):
    """Query, key and value in their order, behind any prefix; nothing that was used is called dropped."""
    path = saved(FORMS[form](narrow_state))
    network = zoo.load_model(MODEL, checkpoint=path, mmap=mmap)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in as_timm(narrow_state).items())
    report = zoo.load_report(network)
    assert (len(report.loaded), report.fresh, report.adapted) == (174, {}, {})
    masks = {name: why for name, why in report.dropped.items() if name.endswith("mask_token")}
    assert set(masks.values()) == (set() if form in ("timm", "compiled in DDP") else {DROPPED})
    assert {why for name, why in report.dropped.items() if "head" in name} <= {"head of the pre-training"}
    assert set(report.dropped) - set(masks) == {name for name in report.dropped if "_head." in name}


@pytest.mark.parametrize("key_file", ["raddino_keys.json", "raddino_hf_keys.json"])
def test_the_published_files_as_safetensors(key_file, narrow_state, tmp_path, narrow):
    """Under the names of each, with the header that transformers writes."""
    path = tmp_path / "model.safetensors"
    content = narrow_state if key_file == "raddino_keys.json" else as_transformers_4(narrow_state)
    save_file(content, path, metadata={"format": "pt"})
    network = zoo.load_model(MODEL, checkpoint=path)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in as_timm(narrow_state).items())


@pytest.mark.slow
def test_the_record_has_the_size_of_the_published_file():
    """As many bytes as these names and shapes take, to the last one."""
    tensors = {name: torch.empty(shape) for name, shape in keys("raddino_hf_keys.json").items()}
    assert len(save(tensors, {"format": "pt"})) == zoo.model_info(f"{MODEL}.hf").bytes


def test_both_records_are_of_the_names_in_the_published_files():
    """The plain name is the file that transformers reads; DINOv2's is for those who name it."""
    for key_file, tag in (("raddino_keys.json", "dinov2"), ("raddino_hf_keys.json", "hf")):
        tensors = {name: torch.empty(shape, device="meta") for name, shape in keys(key_file).items()}
        network, facts = get_entry(MODEL).convert(tensors)
        assert facts == {}
        record = zoo.registry.resolve(f"{MODEL}.{tag}").record
        assert fingerprint(network) == record.fingerprint[MODEL]
        assert "882 775" in record.training_ids["note"]
    info = zoo.model_info(MODEL)
    assert (info.name, info.default, info.trained_by) == (f"{MODEL}.hf", True, "authors")
    assert info.licences["weights"]["licence"] == "MIT"
    assert not zoo.model_info(f"{MODEL}.dinov2").default


@pytest.mark.slow
def test_a_record_is_fetched_and_loads(narrow_state, saved, tmp_path, monkeypatch, narrow):
    """From transformers' names in half precision: the copy in the cache has timm's, and says what was dropped."""
    path = saved({name: tensor.half() for name, tensor in as_transformers_4(narrow_state).items()})
    facts = {"tag": "mine", "models": [MODEL], "state": "hosted", "bytes": path.stat().st_size}
    record = facts | {"sources": [f"file:{path}"], "sha256": zoo.fetching.hash_file(path)}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    for _ in range(2):
        network = zoo.load_model(f"{MODEL}.mine")
        assert all(torch.equal(network.state_dict()[n], t.half().float()) for n, t in as_timm(narrow_state).items())
        assert zoo.load_report(network).dropped == {"embeddings.mask_token": DROPPED}


def test_our_own_files_load_again(narrow_model, narrow_state, tmp_path, narrow):
    """Saved from the network, and exported with all that timm's class has, which is as much."""
    for content in (narrow_model.state_dict(), full_state(MODEL, narrow_model)):
        path = export_safetensors(content, tmp_path / "own.safetensors")
        assert set(load_file(path)) == set(as_timm(narrow_state))
        again = zoo.load_model(MODEL, checkpoint=path)
        assert torch.equal(again.pos_embed, narrow_model.pos_embed)
        path.unlink()


def test_conversion_is_pure_and_idempotent(state):
    """Names of the file stay as they are; what is converted is converted to itself."""
    for content in (dict(state), as_transformers_4(state)):
        before = dict(content)
        network, _ = get_entry(MODEL).convert(content)
        assert content == before
        again, _ = get_entry(MODEL).convert(network)
        assert {name: id(tensor) for name, tensor in again.items()} == {name: id(t) for name, t in network.items()}
        assert set(network) == set(as_timm(state))


# Heads, channels, learning rates


def test_a_head_is_fresh_or_the_files(narrow_model, narrow_file, tmp_path, narrow):
    """Started as timm does, on the CLS token; a file's own comes with its classes, and goes where others are asked."""
    fresh = zoo.load_model(MODEL, checkpoint=narrow_file, num_classes=40, mmap=True)
    assert set(zoo.load_report(fresh).fresh) == {"head.weight", "head.bias"}
    assert 0.015 < float(fresh.head.weight.std()) < 0.025
    assert torch.equal(fresh.head.bias, torch.zeros(40))
    film = reference_film("small")[..., :28, :28]
    with torch.no_grad():
        assert relative_error(fresh(film), fresh.head(narrow_model(film)).numpy()) < TOLERANCE
    path = export_safetensors(fresh, tmp_path / "tuned.safetensors")
    tuned = zoo.load_model(MODEL, checkpoint=path)
    assert torch.equal(tuned.head.weight, fresh.head.weight)
    assert (
        "the head does not fit"
        in zoo.load_report(zoo.load_model(MODEL, checkpoint=path, num_classes=3)).dropped["head.weight"]
    )
    path.unlink()


def test_the_classifier_of_transformers_is_left_out_with_a_warning(narrow_state, saved, caplog, narrow):
    """It takes CLS and the mean of the patches side by side, which is no head of this network."""
    own = behind("dinov2.", as_transformers_4(narrow_state))
    path = saved(own | {"classifier.weight": torch.zeros(4, 2 * NARROW), "classifier.bias": torch.zeros(4)})
    report = zoo.load_report(zoo.load_model(MODEL, checkpoint=path))
    assert "CLS beside the patches' mean" in report.dropped["classifier.weight"]
    assert "the file's head was dropped. classifier." in caplog.text


def test_one_channel_answers_a_grey_film_as_three_do(narrow_file, narrow_model, narrow):
    """Trained on films in three equal channels: their sum is exact."""
    film = reference_film("small")
    with torch.no_grad():
        one = zoo.load_model(MODEL, checkpoint=narrow_file, in_channels=1, mmap=True)
        assert relative_error(one(film[:, :1]), narrow_model(film).numpy()) < TOLERANCE
    assert zoo.load_report(one).adapted == {"patch_embed.proj.weight": "3 input channels summed to 1"}


def test_parameter_groups_follow_the_blocks(narrow_model, narrow):
    """Twelve stages between the first and the last rate."""
    groups = param_groups(narrow_model, 1.0, weight_decay=0.1, layer_decay=0.5)
    rates = {group["name"].removesuffix(", no decay"): group["lr"] for group in groups}
    assert list(rates)[:2] == ["patch_embed", "blocks.0"]
    assert rates["patch_embed"] == 0.5**12
    assert rates["blocks.11"] == 1.0
    assert sum(len(group["params"]) for group in groups) == 174


def test_it_is_built_without_memory():
    """On the meta device, whatever timm's constructor does to the values it starts from."""
    network = build_network(get_entry(MODEL), {"in_channels": 1, "num_classes": 2})
    assert all(parameter.is_meta for parameter in network.parameters())


def test_every_parameter_gets_a_gradient(narrow_file, narrow):
    """DistributedDataParallel refuses a parameter that none reaches."""
    network = zoo.load_model(MODEL, checkpoint=narrow_file, num_classes=2, mmap=False)
    network(torch.randn(1, 3, 28, 42)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


# What is another network


OTHERS = {
    "ViT-S/14": (vit(), r"tokens of 384 numbers \(ViT-S\), not 768"),
    "ViT-L/14": (vit(1024, 24), r"tokens of 1024 numbers \(ViT-L\), not 768; 24 blocks, not 12"),
    "with registers": (vit(768, register_tokens=(1, 4, 768)), "it has register tokens"),
    "timm's with registers": (vit(768, reg_token=(1, 4, 768)), "it has register tokens"),
    "ViT-B/16": (vit(768, patch=16, positions=197, scale=False), "patches of 16 x 16, not 14 x 14; a table of 197"),
    "at 224 pixels": (vit(768, positions=257), "a table of 257 positions, not 1370: that of 16 x 16 patches"),
    "without LayerScale": (vit(768, scale=False), "no LayerScale"),
    "behind a prefix": (behind("module.", vit(384)), "tokens of 384"),
    "a head alone": (dino_head(), r"a head of DINOv2's pre-training and no network: .*\(RAD-DINO's dino_head"),
    "a head behind a prefix": (behind("dino_head.", dino_head()), "behind 'dino_head.' and no network"),
    "the student": (behind("student.backbone.", vit(768)), "expected its teacher"),
}


@pytest.mark.slow
@pytest.mark.parametrize("students", [True, False])
def test_the_teacher_is_taken(students, narrow_state, narrow):
    """DINOv2's training saves both networks, and publishes the average; so it is also where it is alone in the file."""
    held = behind("teacher.backbone.", narrow_state)
    if students:
        held |= behind("student.backbone.", {name: tensor + 1 for name, tensor in narrow_state.items()})
    network, _ = get_entry(MODEL).convert(held)
    wanted, _ = get_entry(MODEL).convert(narrow_state)
    assert same(network, wanted)


@pytest.mark.parametrize("other", OTHERS)
def test_another_network_is_refused_by_what_it_is(other):
    """A strict check alone would list 170 shapes."""
    tensors, said = OTHERS[other]
    with pytest.raises(CheckpointMismatchError, match=said):
        get_entry(MODEL).convert(tensors)


def test_loading_the_head_says_what_it_is(saved):
    """With the request, and no model is said to fit it."""
    path = saved(dino_head())
    with pytest.raises(CheckpointMismatchError, match=r"load_model\('rad-dino-vitb14', .*scores for prototypes"):
        zoo.load_model(MODEL, checkpoint=path)
    assert inspect_checkpoint(path).matches == ()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["lost", "stray"])
@pytest.mark.parametrize("form", ["DINOv2", "transformers 4", "transformers 5"])
def test_what_is_lost_or_stray_is_an_error(form, change, narrow_state, saved, narrow):
    """A block that lacks one tensor, also one of the three of an attention; a tensor that the network does not have."""
    content = dict(FORMS[form](narrow_state))
    if change == "stray":
        content["blocks.3.attn.stray" if form == "DINOv2" else "encoder.layer.3.stray"] = torch.zeros(3)
    else:
        del content[next(name for name in content if ".3." in name and ("qkv.weight" in name or "q" in name[-14:]))]
    with pytest.raises(CheckpointMismatchError, match=r"blocks\.3\.(attn|stray)"):
        zoo.load_model(MODEL, checkpoint=saved(content))


def test_a_value_of_a_query_that_is_not_finite_is_found(narrow_state, saved, narrow):
    """It is a third of a tensor of the network: said by inspection too, and refused by a load."""
    content = as_transformers_4(narrow_state)
    name = "encoder.layer.5.attention.attention.query.bias"
    content[name][7] = torch.nan
    path = saved(content)
    (found,) = inspect_checkpoint(path).matches
    assert (found.complete, name in found.problem) == (False, True)
    with pytest.raises(CheckpointFormatError, match=r"NaN or infinite values in blocks\.5\.attn\.qkv\.bias"):
        zoo.load_model(MODEL, checkpoint=path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["DINOv2", "transformers 4", "transformers 5", "DINOv2's training"])
def test_inspection_names_the_model_and_no_other(form, narrow_state, saved, narrow):
    """Complete for this one alone, and the prefix is the file's."""
    found = inspect_checkpoint(saved(FORMS[form](narrow_state))).matches
    assert [match.model for match in found if match.complete] == [MODEL]
    assert (found[0].model, found[0].matched, found[0].needed) == (MODEL, 174, 174)
    assert found[0].prefix == ("backbone." if form == "DINOv2's training" else "")


@pytest.mark.parametrize("name", ["vit_keys.json", "unetr_keys.json", "caid_keys.json", "swin_dae_keys.json"])
def test_files_of_other_families_are_not_taken_for_it(name):
    """Nor is its file for theirs, which `test_inspection_names_the_model_and_no_other` holds."""
    shapes = json.loads((PARITY / name).read_text("utf-8"))
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    network, facts = get_entry(MODEL).convert(tensors)
    assert (network, facts) == (tensors, {})
    # BrainIAC's and other MONAI ViTs with a class token keep it under their embedding
    tensors["cls_token"] = torch.empty(1, 1, 768, device="meta")
    assert get_entry(MODEL).convert(tensors)[1] == {}


# From a film to its features


def test_a_film_is_embedded(narrow_file, narrow_model, tmp_path, monkeypatch, narrow):
    """From a file to the CLS token of what the transform makes of it, at a size that is quick."""
    contract = get_entry(MODEL).preprocessing.override({"size": [56, 70], "resize": 70})
    monkeypatch.setattr("zoo.embedding.embedder.input_of", lambda *args, **kwargs: contract)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    found = embed(MODEL, [tmp_path / "film.png"], checkpoint=narrow_file, progress=False)
    with torch.no_grad():
        expected = narrow_model(zoo.transforms.build_transform(contract)(pixels)[None])
    assert found.values.shape == (1, NARROW)
    assert relative_error(torch.as_tensor(found.values), expected.numpy()) < TOLERANCE


def test_the_contract_is_the_published_processors():
    """Size, steps and numbers of `preprocessor_config.json`; what the transform prints says them."""
    transform = zoo.load_transform(MODEL)
    for part in ("shorter side to 518, bicubic in 8 bits", "centre 518 x 518", "mean (0.5307,", "std (0.2583,"):
        assert part in repr(transform)
    made = transform(np.random.default_rng(0).integers(0, 256, (600, 700), dtype=np.uint8))
    assert made.shape == (3, 518, 518)
    assert (made.min() >= -0.5307 / 0.2583 - 1e-6, made.max() <= 0.4693 / 0.2583 + 1e-6) == (True, True)


def test_the_doctor_says_what_becomes_of_a_dicom(tmp_path):
    """It shows the values without the window, which the transform leaves out."""
    values = np.linspace(200, 3000, 4096).reshape(64, 64).astype(np.uint16)
    path = write_dicom(tmp_path / "film", values, bits=12, WindowCenter=1500, WindowWidth=101)
    found = examine(path, MODEL)
    facts = {fact.what: fact.found for fact in found.facts}
    assert found.fits
    assert facts["format"] == "DICOM, without its window"
    assert facts["values"].startswith("float32, 0.0488")  # 200 / 4095
    assert found.gives == "float32 (3, 518, 518), -2.05 to 1.82"


def test_a_volume_is_no_film():
    """A 3D array, and floats that somebody has normalised already."""
    transform = zoo.load_transform(MODEL)
    with pytest.raises(InputContractError, match="this network is 2D"):
        transform(np.zeros((40, 64, 64), np.uint8))
    with pytest.raises(InputContractError, match="before any mean and deviation"):
        transform(F.normalize(torch.randn(64, 64)))


def test_info_says_the_input_in_words(zoo):
    """Two fields that mislead as they stand."""
    said = zoo("info", MODEL)[1]
    assert "interpolation: bicubic in 8 bits, by Pillow" in said
    assert "normalise: min-max of DICOM, without its window, and of more than 8 bits; 8 bits as they are" in said
