"""The header of what recipes save: read alike from both formats, obeyed, passed on, and never taken from strangers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import zoo as package
from zoo.commands.importing import import_weights
from zoo.embedding import embed
from zoo.entries.caid import PREPROCESSING
from zoo.entries.monai_ssl.segmenters import unetr
from zoo.errors import CheckpointFormatError, CheckpointMismatchError
from zoo.fetching.cache import hash_file
from zoo.formats.header import KEY, RANDOM, make_header
from zoo.formats.opening import open_checkpoint
from zoo.provenance import base_of
from zoo.registry import get_entry

pytestmark = pytest.mark.usefixtures("short_caid")

ENCODER, UNET, UNETR = "caid-resnet50", "caid-resnet50-unet", "monai-ssl-unetr"
SMALL = replace(PREPROCESSING, size=(64, 64), resize=73, mean=(0.5,) * 3, std=(0.25,) * 3)
COMMAND = "python -m zoo.entries.caid.finetune classify --size 64"
VIT = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128, "feature_size": 4}


def made(model=ENCODER, task="classify", **facts):
    facts = {"input": SMALL, "options": {}, "base": RANDOM, "classes": ("Edema", "Mass")} | facts
    return make_header(model, task, COMMAND, **facts)


def as_run(path, state, said=None, **more):
    """A file as the training loop writes it."""
    named = {f"network.{name}": value for name, value in state.items()}
    content = {"epoch": 1, "model": named, "metrics": {"loss": 1.0}} | more
    torch.save(content | ({} if said is None else {KEY: said}), path)
    return path


@pytest.fixture(scope="module")
def classifier():
    """Tensors of a ResNet-50 with two classes."""
    torch.manual_seed(0)
    return package.load_model(ENCODER, pretrained=False, num_classes=2).state_dict()


@pytest.fixture
def tuned(classifier, tmp_path):
    """`best.pt` of a run on two classes at 64 pixels."""
    yield as_run(tmp_path / "best.pt", classifier, made())
    (tmp_path / "best.pt").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def one_channel():
    """Tensors of a U-Net with one output."""
    torch.manual_seed(0)
    return package.load_model(UNET, pretrained=False).state_dict()


# --- reading


def test_both_formats_say_the_same(tmp_path):
    """Of one header, whether it stands under a key or in the metadata."""
    said, tensors = made(options={"num_heads": 4}), {"w": torch.zeros(2)}
    save_file(tensors, tmp_path / "a.safetensors", metadata=said)
    for stored in map(open_checkpoint, (as_run(tmp_path / "a.pt", tensors, said), tmp_path / "a.safetensors")):
        assert stored.metadata == said
        assert stored.options == {"num_heads": 4}
        assert stored.input["size"] == [64, 64]


@pytest.mark.parametrize(
    "there",
    [
        "a text",
        {"lion": torch.ones(2)},
        {"model": "lion", "size": "[64, 64]"},
        {"input": '{"size": [64, 64]}'},
        {"model": torch.ones(1), "recipe": torch.ones(1), "input": '{"size": [64, 64]}'},
    ],
)
def test_a_strangers_key_is_not_obeyed(tmp_path, there):
    """A file of another program may have anything under the same key."""
    stored = open_checkpoint(as_run(tmp_path / "a.pt", {"w": torch.zeros(2)}, there))
    assert (stored.metadata, stored.input, stored.options) == ({}, {}, {})


@pytest.mark.parametrize("wrong", [{"input": {"size": [64, 64]}}, {"epoch": 3}, {7: "seven"}])
def test_a_header_with_something_else_than_texts_is_refused(tmp_path, wrong):
    """One of ours that was changed by hand."""
    path = as_run(tmp_path / "a.pt", {"w": torch.zeros(2)}, made() | wrong)
    with pytest.raises(
        CheckpointFormatError, match=r"a\.pt has a header under 'zoo' .*all keys and values must be text"
    ):
        open_checkpoint(path)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    """By whoever asks for what cannot be read; its text cannot steer a terminal."""
    stored = open_checkpoint(
        as_run(tmp_path / "a.pt", {"w": torch.zeros(2)}, made() | {"options": "\x1b[2J", "input": "[" * 99999})
    )
    for key in ("options", "input"):
        with pytest.raises(CheckpointFormatError, match=f"a.pt states its {key}") as caught:
            getattr(stored, key)
        assert "\x1b" not in str(caught.value)
    assert "states its" in package.inspect_checkpoint(tmp_path / "a.pt").problem


@pytest.mark.slow
def test_an_option_that_cannot_be_is_refused(tmp_path, one_channel):
    """The header is a file's, and so checked like a user's argument."""
    path = as_run(tmp_path / "a.pt", one_channel, made(UNET, "segment", options={"num_classes": "many"}))
    with pytest.raises(CheckpointFormatError, match=r"invalid header: num_classes='many'"):
        package.load_model(UNET, checkpoint=path)
    path.unlink()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": size} for size in (64, ["a", "b"], [0, 64], [64.5, 64])),
        *({"resize": "x"}, {"mean": 0.5}, {"std": [1, 2, "c"]}, {"spacing": "x"}, {"value_range": [0]}),
        *({"window": [0, float("nan")]}, {"window": [1]}, {"thickness": 5}, {"channels": 5}, {"affine": 3}),
        *({"orientation": 5}, {"lion": 1}, {ENCODER: 5}),
    ],
)
def test_an_input_that_cannot_be_is_refused(tmp_path, wrong):
    """Of a file's header: one sentence with the file, no traceback of whoever counts with it."""
    path = as_run(tmp_path / "a.pt", {"w": torch.zeros(2)}, made(input=wrong))
    with pytest.raises(CheckpointFormatError, match=rf"a\.pt has an invalid header: .*{next(iter(wrong))}"):
        package.load_transform(ENCODER, checkpoint=path)


@pytest.mark.parametrize("text", ["2024-01-01", "[]", '{"options": 3}', '{"dropped": []}'])
def test_a_strangers_note_is_no_copy_s(tmp_path, classifier, text):
    """The entry that the cache writes into its copies may be anybody's: a sentence, no traceback."""
    save_file(classifier, tmp_path / "a.safetensors", metadata={"converted": text})
    with pytest.raises(CheckpointFormatError, match=r"a\.safetensors (states its converted|has an entry 'converted')"):
        package.load_model(ENCODER, checkpoint=tmp_path / "a.safetensors")


# --- obeying


@pytest.mark.slow
def test_a_run_s_input_is_that_of_its_files(zoo, tuned, tmp_path):
    """By load_transform, embed, doctor, import and export; pixels and normalisation."""
    film = np.random.default_rng(0).integers(0, 255, (90, 120), dtype=np.uint8)
    Image.fromarray(film).save(tmp_path / "film.png")
    expected = package.load_transform(ENCODER, checkpoint=tuned)(film)
    fraction = (expected * 0.25 + 0.5)[0]
    assert expected.shape == (3, 64, 64)
    assert 0 <= fraction.min() <= fraction.max() <= 1
    assert expected.min() < 0

    found = embed(ENCODER, [tmp_path / "film.png"], checkpoint=tuned, progress=False).values
    network = package.load_model(ENCODER, checkpoint=tuned, num_classes=0)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network(expected[None]))
    code, out, _ = zoo("doctor", tmp_path / "film.png", "--for", ENCODER, "--checkpoint", tuned)
    assert (code, "(3, 64, 64)" in out) == (0, True)

    exported = tmp_path / "out.safetensors"
    assert zoo("export", ENCODER, exported, "--checkpoint", tuned)[0] == 0
    for name, file in (("dot", tuned), ("safe", exported)):
        import_weights(f"{ENCODER}.{name}", file)
        assert package.load_transform(f"{ENCODER}.{name}").preprocessing == SMALL
        assert package.model_info(f"{ENCODER}.{name}").input == SMALL
    exported.unlink()


def test_a_run_that_did_not_note_its_input_is_warned_of(classifier, tmp_path, caplog):
    """A file of an earlier version; not one that no recipe wrote, and not one that says it."""
    old = as_run(tmp_path / "old.pt", {"conv1.weight": classifier["conv1.weight"]}, optimizer={"state": {}})
    assert package.load_transform(ENCODER, checkpoint=old).preprocessing == PREPROCESSING
    (message,) = caplog.messages
    assert f"{old} was saved by a run that did not note its input, so that of {ENCODER} is used" in message
    caplog.clear()
    torch.save({"model": {"w": torch.zeros(2)}, "epoch": 3}, tmp_path / "other.pt")
    as_run(tmp_path / "new.pt", {"w": torch.zeros(2)}, made())
    for name in ("other", "new"):
        package.load_transform(f"{ENCODER}.chestxray14", checkpoint=tmp_path / f"{name}.pt")
    assert not caplog.messages


@pytest.mark.slow
def test_heads_and_windows_that_no_shape_tells_are_obeyed(tmp_path):
    """Another number of heads is another function, which is refused; windows may be asked for; a name brings both."""
    torch.manual_seed(0)
    network = unetr(num_classes=3, num_heads=4, **VIT).eval()
    said = made(UNETR, "segment", options={"num_heads": 4, "img_size": 64, "hidden_size": 7})
    file = as_run(tmp_path / "best.pt", network.state_dict(), said)
    volume = torch.rand(1, 1, 32, 32, 32)
    import_weights(f"{UNETR}.mine", file)
    with torch.no_grad():
        expected = network(volume)
        for model in (package.load_model(UNETR, checkpoint=file), package.load_model(f"{UNETR}.mine")):
            assert torch.equal(model(volume), expected)
            assert package.load_report(model).options == {"num_heads": 4, "img_size": 64}
            assert model.vit.patch_embedding.window == (64, 64, 64)
        smaller = package.load_model(UNETR, checkpoint=file, img_size=32)
        assert smaller.vit.patch_embedding.window == (32, 32, 32)
    with pytest.raises(
        CheckpointMismatchError, match=r"num_heads is contradicted: 4 \(the file's header\), 2 \(as asked"
    ):
        package.load_model(UNETR, checkpoint=file, num_heads=2)


def test_the_encoder_of_a_tuned_network_sees_what_that_saw(tmp_path):
    """Not the input of pre-training: the header has all fields, whatever model of the family is asked for."""
    coarse = replace(get_entry(UNETR).preprocessing, spacing=(4.0, 4.0, 4.0))
    file = as_run(tmp_path / "best.pt", {"w": torch.zeros(2)}, made(UNETR, "segment", input=coarse))
    assert package.load_transform("monai-ssl-vitb16", checkpoint=file).preprocessing == coarse


# --- one output


@pytest.mark.slow
def test_a_segmentation_of_one_class_has_logits(tmp_path, one_channel, caplog, zoo):
    """Where the header says so; the reconstruction has its sigmoid, and where nothing says it, that is told."""
    image, said = torch.rand(1, 3, 32, 32), {"segment": {"num_classes": 1}, "pretrain": {"num_classes": None}}
    made_of, path = {}, tmp_path / "best.pt"
    for task, options in said.items():
        file = as_run(path, one_channel, made(UNET, task, options=options, classes=()))
        with torch.no_grad():
            made_of[task] = package.load_model(UNET, checkpoint=file)(image)
        assert package.inspect_checkpoint(file).matches[0].unclear == {}
    torch.testing.assert_close(made_of["segment"].sigmoid(), made_of["pretrain"])
    assert "num_classes" not in caplog.text

    torch.save(one_channel, path)
    with torch.no_grad():
        assert torch.equal(package.load_model(UNET, checkpoint=path)(image), made_of["pretrain"])
    assert f"{path} does not say its num_classes: its one output is taken for the reconstruction" in caplog.text
    code, out, _ = zoo("inspect", path)
    assert (code, "does not say its num_classes: its one output" in out) == (0, True)
    assert zoo("import", f"{UNET}.lungs", path, "--num-classes", 1)[0] == 0
    with torch.no_grad():
        assert torch.equal(package.load_model(f"{UNET}.lungs")(image), made_of["segment"])
    with pytest.raises(CheckpointMismatchError, match=r"num_classes=3 for .*: the file has no head of that many"):
        import_weights(f"{UNET}.three", path, num_classes=3)
    path.unlink()


# --- passing on


@pytest.mark.slow
def test_inspect_shows_what_a_file_says_of_itself(tuned, zoo):
    """Names of the classes among it."""
    _, out, _ = zoo("inspect", tuned)
    assert 'classes: ["Edema", "Mass"]' in out
    assert "task: classify" in out
    assert f"command: {COMMAND}" in out
    assert json.loads(zoo("inspect", tuned, "--json")[1])["header"]["recipe"] == "zoo.entries.caid.finetune"


def test_what_a_header_says_is_printed_harmlessly(tmp_path, zoo):
    """Control characters and lines of its own are escaped, and a novel is cut."""
    as_run(
        tmp_path / "a.pt", {"w": torch.zeros(2)}, made() | {"command": "x\x1b[31m\n  models    all", "task": "t" * 9999}
    )
    _, out, _ = zoo("inspect", tmp_path / "a.pt")
    assert r"x\x1b[31m\n  models    all" in out
    assert len(out) < 3000


def metadata(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


@pytest.mark.slow
def test_an_export_passes_the_header_on(tuned, tmp_path, zoo):
    """All of it, by a name that it was imported under too; an export of weights on record says what is on record."""
    said = made()
    for name, options in ((ENCODER, ("--checkpoint", tuned)), (f"{ENCODER}.mine", ())):
        out = tmp_path / f"{name}.safetensors"
        assert zoo("export", name, out, *options)[0] == 0
        assert metadata(out) == said
        import_weights(f"{ENCODER}.mine", out)
        out.unlink()
    out = tmp_path / "unet.safetensors"
    assert zoo("export", f"{UNET}.chestxray14-800", out)[0] == 0
    found, known = metadata(out), package.model_info(f"{UNET}.chestxray14-800")
    assert json.loads(found["input"])["size"] == [64, 64]
    assert json.loads(found["options"]) == {}
    base = json.loads(found["base"])
    assert (base["tag"], base["sha256"], base["trained_by"]) == ("chestxray14-800", known.sha256, "zoo")
    assert base["licences"] == known.licences
    out.unlink()


@pytest.mark.slow
def test_an_export_of_another_network_has_not_its_classes(tmp_path, one_channel, zoo):
    """The encoder of a network that segments; where it is from stays."""
    file = as_run(
        tmp_path / "best.pt", one_channel, made(UNET, "segment", classes=("lung",), options={"num_classes": 1})
    )
    out = tmp_path / "out.safetensors"
    assert zoo("export", ENCODER, out, "--checkpoint", file)[0] == 0
    found = metadata(out)
    assert (found["model"], found["options"]) == (ENCODER, "{}")
    assert not found.keys() & {"classes", "task"}
    assert (found["base"], found["recipe"]) == (json.dumps(dict(RANDOM)), "zoo.entries.caid.finetune")
    out.unlink()
    file.unlink()


@pytest.mark.slow
def test_licences_follow_the_weights(tuned, classifier, tmp_path):
    """From weights on record into a run, and from its file into the next; of a path the name alone is kept."""
    name = f"{ENCODER}.chestxray14-800"
    first = base_of(package.load_report(package.load_model(name)))
    assert first["licences"] == package.model_info(name).licences
    as_run(tuned, classifier, made(base=first))
    second = base_of(package.load_report(package.load_model(ENCODER, checkpoint=tuned)))
    assert (second["source"], second["sha256"], second["trained_by"]) == ("best.pt", hash_file(tuned), "user")
    assert second["licences"] == first["licences"]
    assert second["base"] == first
    assert base_of(package.load_report(package.load_model(ENCODER, pretrained=False))) == {"model": ENCODER} | RANDOM


@pytest.mark.slow
def test_the_record_of_an_import_has_what_its_header_says(zoo, classifier, tmp_path, monkeypatch):
    """Classes and their number, base weights and their licences: `zoo info` shows them without opening the file."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    licences = {"weights": {"id": "CC-BY-4.0", "commercial": "yes"}}
    base = {"model": ENCODER, "tag": "chestxray14-800", "trained_by": "zoo", "licences": licences}
    import_weights(f"{ENCODER}.mine", as_run(tmp_path / "best.pt", classifier, made(base=base)))
    info = package.model_info(f"{ENCODER}.mine")
    assert (info.trained_by, info.licences, info.options["num_classes"]) == ("user", licences, 2)
    assert info.provenance["classes"] == ["Edema", "Mass"]
    assert info.provenance["base"] == {name: base[name] for name in ("model", "tag", "trained_by")}
    out = zoo("info", f"{ENCODER}.mine")[1]
    for part in ("classes: Edema, Mass", "tag: chestxray14-800", "num_classes: 2", "CC-BY-4.0"):
        assert part in out


@pytest.mark.slow
def test_an_import_does_not_take_a_strangers_metadata_for_a_header(classifier, tmp_path, monkeypatch):
    """Other programs write keys of the same names into safetensors."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    save_file(classifier, tmp_path / "a.safetensors", metadata={"base": "resnet", "classes": "two"})
    import_weights(f"{ENCODER}.theirs", tmp_path / "a.safetensors")
    assert "classes" not in package.model_info(f"{ENCODER}.theirs").provenance
