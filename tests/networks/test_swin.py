"""The published Swin UNETR: its merging, its first layer, and what is no part of it; small, under its names."""

import json

import pytest
import torch
from caid_files import behind, relative_error
from monai_ssl_files import (
    SWIN,
    bare_swin,
    dead_shortcuts,
    filled_swin,
    paper_swin,
    published_swin,
    ssl_head,
    swin_keys,
    swin_shapes,
)
from safetensors import safe_open
from safetensors.torch import save_file
from states import same_network
from texts import warnings

import zoo
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OptionError
from zoo.fetching.cache import hash_file
from zoo.formats.opening import open_checkpoint
from zoo.loading import full_state
from zoo.manifest import records
from zoo.networks.swin import MERGINGS, patch_merging
from zoo.registry import get_entry

ENCODER = "monai-ssl-swinvit"
TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 2e-6 after eight blocks and the decoder."""
OUT = ("out.conv.conv.weight", "out.conv.conv.bias")


def load(path, **options):
    return zoo.load_model(SWIN, checkpoint=path, mmap=True, **options)


def volume(*sides):
    return torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def state():
    """A small Swin UNETR under MONAI's names."""
    return filled_swin(swin_shapes())


@pytest.fixture
def saved(tmp_path):
    """Save content as a checkpoint."""

    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.slow
def test_the_heads_of_today_s_pre_training_are_no_part_of_it(state, saved):
    """`SSLHead` of the authors' code: the same transformer under MONAI's names, beside other heads."""
    transformer = {name: tensor for name, tensor in state.items() if name.startswith("swinViT.")}
    again = load(saved(ssl_head({n.removeprefix("swinViT."): t for n, t in transformer.items()})))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in transformer.items())
    dropped = zoo.load_report(again).dropped
    assert set(dropped.values()) == {"head of a task of the pre-training"}
    assert len(dropped) == 3


@torch.no_grad()
@pytest.mark.parametrize("merging", MERGINGS)
def test_a_merging_lays_the_slices_side_by_side_in_its_order(merging):
    """Each voxel of a cube by its place; odd sides are filled up with zeros, as MONAI does."""
    layer = patch_merging(merging)(dim=1, norm_layer=torch.nn.LayerNorm, spatial_dims=3)
    layer.norm, layer.reduction = torch.nn.Identity(), torch.nn.Identity()
    cube = torch.tensor([[[0.0, 1.0], [10.0, 11.0]], [[100.0, 101.0], [110.0, 111.0]]])[None, ..., None]
    order = {
        "duplicated": [0, 100, 10, 1, 101, 10, 1, 111],
        "complete": [0, 100, 10, 1, 110, 101, 11, 111],
    }
    assert layer(cube).flatten().tolist() == order[merging]
    assert layer(torch.ones(1, 3, 1, 2, 1)).shape == (1, 2, 1, 1, 8)
    assert layer(torch.ones(1, 1, 1, 1, 1)).sum() == 1


# --- who says the merging ---------------------------------------------------------------------------------------------


def said(model):
    report = zoo.load_report(model)
    return report.options["merging"], report.said_by["merging"]


def offsets(model):
    return model.swinViT.layers1[0].downsample.offsets


@pytest.mark.parametrize("form", [published_swin, paper_swin, bare_swin], ids=["dae", "paper", "ct5050"])
def test_the_authors_names_say_their_merging(form, state, saved, caplog):
    """They are from before there was another; nothing is warned of, and another is not built."""
    path = saved(form(state))
    model = load(path)
    assert said(model) == ("duplicated", "the names in the file")
    assert offsets(model) == MERGINGS["duplicated"]
    assert not [text for text in warnings(caplog) if "merging" in text]
    with pytest.raises(
        CheckpointMismatchError, match=r"merging is contradicted: 'duplicated' \(the names in the file\)"
    ):
        load(path, merging="complete")


@pytest.mark.slow
def test_a_file_that_does_not_say_its_merging_is_warned_of(state, saved, caplog):
    """It is built as the published ones are, which the report says; what the user says is taken without a word."""
    path = saved(state)
    model = load(path)
    assert said(model) == ("duplicated", "not said, so the default was taken")
    (text,) = warnings(caplog)
    assert "does not say its merging" in text
    assert "merging='duplicated' is taken" in text
    assert "option   merging='duplicated': not said" in str(zoo.load_report(model))
    caplog.clear()
    other = load(path, merging="complete")
    assert said(other) == ("complete", "as asked for")
    assert offsets(other) == MERGINGS["complete"]
    assert not warnings(caplog)
    with torch.no_grad():
        last = [network.swinViT(volume(32, 32, 32))[4] for network in (other, model)]
    assert not torch.allclose(*last, atol=1e-3)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_header_says_the_merging(kind, state, tmp_path, saved, caplog):
    """Of safetensors its metadata, of what torch.save wrote the texts under `zoo`; another is refused."""
    header = {"options": json.dumps({"merging": "complete", "of_another_model": 1})}
    if kind == "torch":
        path = saved({"model": state, "zoo": {"model": SWIN, "recipe": "mine", **header}})
    else:
        path = tmp_path / "file.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, path, metadata=header)
    assert open_checkpoint(path).options == {"merging": "complete", "of_another_model": 1}
    assert said(load(path)) == ("complete", "the file's header")
    assert said(load(path, merging="complete")) == ("complete", "as asked for")
    assert said(zoo.load_model(f"{SWIN}.dae", checkpoint=path)) == ("complete", "the file's header")
    assert not warnings(caplog)
    with pytest.raises(
        CheckpointMismatchError, match=r"'complete' \(the file's header\), 'duplicated' \(as asked for\)"
    ):
        load(path, merging="duplicated")


def test_a_header_that_contradicts_the_names_is_refused(state, saved):
    """Of two words one is wrong, and nobody can tell which."""
    content = published_swin(state) | {"zoo": {"model": SWIN, "recipe": "mine", "options": '{"merging": "complete"}'}}
    with pytest.raises(CheckpointMismatchError, match=r"'complete' \(the file's header\), 'duplicated' \(the names"):
        load(saved(content))


@pytest.mark.parametrize("text", ["[]", "{", '"complete"'])
def test_a_header_that_is_no_json_object_is_refused(text, state, saved):
    """By the file's name and what stands there."""
    with pytest.raises(CheckpointFormatError, match=r"checkpoint\.pth states its options"):
        load(saved({"model": state, "zoo": {"model": SWIN, "recipe": "mine", "options": text}}))


@pytest.mark.slow
def test_a_tag_says_the_merging_of_a_file_that_does_not(state, saved, caplog):
    """Whoever names published weights means their network, for a file of their own and for random weights too."""
    model = zoo.load_model(f"{SWIN}.dae", checkpoint=saved(state))
    assert said(model) == ("duplicated", "the tag that was named")
    random = zoo.load_model(f"{SWIN}.dae", pretrained=False, feature_size=12)
    assert said(random) == ("duplicated", "the tag that was named")
    assert said(zoo.load_model(SWIN, pretrained=False, feature_size=12)) == (
        "duplicated",
        "not said, so the default was taken",
    )
    assert not [text for text in warnings(caplog) if "merging" in text]


@pytest.mark.parametrize(("form", "options"), [(published_swin, {}), (dict, {"merging": "complete"})])
def test_what_a_record_or_a_file_says_survives_the_copy_in_the_cache(
    form, options, state, saved, tmp_path, monkeypatch
):
    """The copy has MONAI's names, which say nothing: what the file's own said is carried along."""
    path = saved(form(state))
    facts = {"tag": "mine", "models": [SWIN], "state": "hosted", "sources": [f"file:{path}"], "bytes": None}
    record = facts | {"sha256": hash_file(path), "options": options}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    expected = options.get("merging", "duplicated")
    for _ in ("fetched", "from the cache"):
        model = zoo.load_model(SWIN)
        assert said(model) == (expected, "the record of the weights" if options else "the file's header")
        assert offsets(model) == MERGINGS[expected]
    other = next(name for name in MERGINGS if name != expected)
    with pytest.raises(CheckpointMismatchError, match="merging is contradicted"):
        zoo.load_model(SWIN, merging=other)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_an_export_says_its_merging(full, state, saved, tmp_path, zoo, caplog):
    """Where the file does. A default that was taken is not written down as a fact: it is warned of again."""
    out, flags = tmp_path / "out.safetensors", ["--full"] if full else []
    said_so = saved({"model": state, "zoo": {"model": SWIN, "recipe": "mine", "options": '{"merging": "complete"}'}})
    assert zoo("export", SWIN, out, "--checkpoint", said_so, *flags)[0] == 0
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["options"]) == {"merging": "complete"}
    assert said(load(out)) == ("complete", "the file's header")
    assert not warnings(caplog)
    assert zoo("export", SWIN, out, "--checkpoint", saved(state), *flags)[0] == 0
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["options"]) == {}


def test_no_other_merging_is_built(state, saved):
    """By the option's name and what there is; of `mergingv2` of MONAI too, which is a third order."""
    for wrong in ("mergingv2", "Complete", None, ["complete"]):
        with pytest.raises(OptionError, match=r"expected 'duplicated' or 'complete'"):
            load(saved(state), merging=wrong)


@pytest.mark.slow
def test_inspection_says_what_the_file_does_not(state, saved):
    """The call that it prints loads the file, but perhaps not the network that was trained."""
    for content, unsaid in ((state, ("merging",)), (bare_swin(state), ())):
        summary = zoo.inspect_checkpoint(saved(content))
        match = next(match for match in summary.matches if match.model == SWIN)
        assert (match.complete, tuple(match.unclear)) == (True, unsaid)
        assert ("does not say its merging" in str(summary)) == bool(unsaid)
    content = published_swin(state) | {"zoo": {"model": SWIN, "recipe": "mine", "options": '{"merging": "complete"}'}}
    matches = zoo.inspect_checkpoint(saved(content)).matches
    assert {match.model for match in matches} == {SWIN, ENCODER}
    for match in matches:
        assert (match.complete, tuple(match.unclear)) == (False, ())
        assert "merging is contradicted" in str(match)


def test_records_say_what_names_do_not():
    """The zoo's own weights are never built by guess. None stands for what the shapes of published files imply."""
    silent = [
        f"{name}.{record.tag}: {option}"
        for name in zoo.list_models()
        for record in records(name)
        for option in get_entry(name).settled
        if option not in record.options and get_entry(name).config[option] is not None
    ]
    assert silent == []
    assert zoo.model_info(f"{SWIN}.dae").options["merging"] == "duplicated"


# --- the first layer, and what is no part of the network --------------------------------------------------------------


@pytest.mark.slow
def test_the_network_of_the_paper_is_built(state, saved, tmp_path):
    """Its first layer is in no class of MONAI's: for other channels it is adapted, and no plain class is promised."""
    path = saved(paper_swin(state))
    model = load(path)
    assert set(zoo.load_report(model).fresh) == set(OUT)
    x = volume(64, 32, 32)
    with torch.no_grad():
        expected = model(x)
        saved(model.state_dict(), "again.pth")
        again = load(tmp_path / "again.pth", merging="duplicated")
        assert same_network(again, model)
        assert offsets(again) == offsets(model)
        two = load(path, in_channels=2)
        two.load_state_dict(two.state_dict() | {name: model.state_dict()[name] for name in OUT})  # fresh in both
        assert relative_error(two(x.expand(-1, 2, -1, -1, -1)), expected.numpy()) < TOLERANCE
    assert len(zoo.load_report(two).adapted) == 3
    with pytest.raises(OptionError, match="two convolutions"):
        full_state(SWIN, model)


def test_the_network_of_the_paper_is_converted_once(state, saved, tmp_path, monkeypatch):
    """Into the cache, as every other file that is not safetensors."""
    path = saved(paper_swin(state))
    facts = {"tag": "mine", "models": [SWIN], "state": "hosted", "sources": [f"file:{path}"], "bytes": None}
    (tmp_path / "mine.json").write_text(json.dumps({"schema": 1, "weights": [facts | {"sha256": hash_file(path)}]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    zoo.load_model(SWIN)
    assert list((tmp_path / "zoo-home").rglob(f"*{SWIN}*.safetensors"))


@pytest.mark.slow
def test_shortcuts_that_nobody_used_are_left_out(state, saved):
    """MONAI 0.8 made them; they are in the report with the reason, whatever the form."""
    for form in (dict, lambda names: published_swin(names)["model"]):
        model = load(saved(form(state) | dead_shortcuts(12)), merging="duplicated")
        dropped = zoo.load_report(model).dropped
        assert [dropped[name] for name in dead_shortcuts(12)] == [
            "shortcut, which no forward pass used (MONAI 0.8)"
        ] * 4
        assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items() if n not in OUT)


@pytest.mark.slow
def test_a_voco_file_is_refused_by_name(saved):
    """Its convolutions before the stages make another network; without them it would load and be wrong."""
    names = {name: torch.zeros(1) for name in swin_keys("voco_b")}
    training = behind("module.backbone.", names) | {"module.teacher.layer.0.weight": torch.zeros(1)}
    for content in (names, {"global_step": 1, "state_dict": training}):
        with pytest.raises(CheckpointMismatchError, match=r"a Swin v2 network .*layers1c\.0\.layer\.conv1.*VoCo"):
            load(saved(content))
        assert not [m for m in zoo.inspect_checkpoint(saved(content)).matches if m.model in (SWIN, ENCODER)]
    for size, width in (("b", 48), ("l", 96), ("h", 192)):
        shapes = {name: torch.zeros(shape, device="meta") for name, shape in swin_keys(f"voco_{size}").items()}
        for name in (SWIN, ENCODER):
            with pytest.raises(CheckpointMismatchError, match=rf"'voco-swinunetr-{size}' and 'voco-swinvit-{size}'"):
                get_entry(name).convert(shapes)
        assert shapes["swinViT.patch_embed.proj.weight"].shape[0] == width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "stray"),
    [
        (lambda s: s, "swinViT.patch_embed.norm.weight"),
        (lambda s: s, "swinViT.layers1.0.blocks.0.extra.norm.weight"),
        (lambda s: s, "swinViT.layers5.0.blocks.0.norm1.weight"),
        (lambda s: s, "decoder6.conv_block.conv1.conv.weight"),
        (lambda s: s, "encoder2.layer.conv4.conv.weight"),
        (lambda s: behind("module.", s), "module.encoder1.layer.norm1.weight"),
        (lambda s: published_swin(s)["model"], "encoder.absolute_pos_embed"),
        (lambda s: published_swin(s)["model"], "encoder2.layer.attention.weight"),
        (lambda s: bare_swin(s)["state_dict"], "module.gate.weight"),
    ],
)
def test_a_tensor_that_the_network_does_not_have_is_refused(form, stray, state, saved):
    """Under the network's own prefix nothing is passed over but what the entry names, as it would be used there."""
    with pytest.raises(CheckpointMismatchError) as caught:
        load(saved(form(state) | {stray: torch.ones(3)}))
    name = stray.removeprefix("module.").removeprefix("encoder.").removeprefix("swinViT.")
    assert f"unexpected (1): {stray if stray.startswith('swinViT.') else ''}" in str(caught.value)
    assert name in str(caught.value)
