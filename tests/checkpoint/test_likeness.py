"""A file that is something else than it is loaded as: a segmenter's, another family's, or one that could be both."""

import json
from hashlib import sha256

import pytest
import torch
from brainiac_files import VIT, VIT_KEYS, pretraining, segmenter
from monai_ssl_files import ENCODER, UNETR
from monai_ssl_files import VIT_KEYS as AUTOENCODER_KEYS
from raddino_files import MODEL as RAD_DINO

import zoo.checkpoint.likeness as likeness
from zoo.checkpoint import build_network, convert, doubt, inspect_checkpoint, load_report
from zoo.errors import CheckpointMismatchError
from zoo.formats import StoredState, make_header, open_checkpoint
from zoo.loading import load_model, load_transform
from zoo.registry import entries, get_entry

RESTORING = ("caid-resnet50", "genesis-encoder", "glcl-encoder")
"""Encoders whose pre-training has a decoder itself, so that a decoder alone says nothing."""


def on_meta(name, **options):
    """Tensors of a network that take no memory."""
    entry = get_entry(name)
    return build_network(entry, {**entry.config, **options}).state_dict()


def light(shapes):
    """Tensors of these names and shapes that take no room in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def relatives():
    """Every encoder with each network of its family that segments."""
    for entry in entries().values():
        for other in entries().values():
            if entry.is_encoder and other.family == entry.family and "segmentation" in other.tasks:
                yield entry, other.name


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 5])
def test_an_encoder_says_of_a_segmenter_s_file_that_it_has_a_decoder(classes):
    """Of every family, with an output head or without; of the networks as published only that of labels."""
    told = set()
    for entry, name in relatives():
        try:
            state, facts = convert(entry, on_meta(name, num_classes=classes))
        except CheckpointMismatchError:  # of another width
            continue
        if entry.stem in state:
            remark = facts.get("remark", "")
            says = "decoder" in remark and (not classes or "head of 5 classes" in remark)
            assert says == (bool(classes) or entry.name not in RESTORING), (entry.name, name, remark)
            told.add(entry.name)
    voco = {f"voco-swinvit-{size}" for size in "blh"}
    assert told == {*RESTORING, "ct-fm-segresenc", "monai-ssl-vitb16", "monai-ssl-swinvit", *voco}


@pytest.mark.parametrize("name", ["caid-resnet50-unet", "genesis-unet3d", "monai-ssl-vitautoenc"])
def test_nothing_is_said_of_a_decoder_that_restores(name):
    """The pre-training itself, as it is published."""
    encoder = {"caid": "caid-resnet50", "gene": "genesis-encoder", "mona": ENCODER}[name[:4]]
    assert "remark" not in convert(get_entry(encoder), on_meta(name))[1]


@pytest.fixture
def unet(saved):
    """GLCL's U-Net, which segments three classes, as a file."""
    return saved(load_model("glcl-unet", pretrained=False, num_classes=3).state_dict())


@pytest.mark.slow
def test_the_report_says_so_and_the_copy_in_the_cache_too(unet, zoo):
    """The copy is without the decoder."""
    expected = "the file also has a decoder and an output head of 3 classes"
    assert expected in str(load_report(load_model("glcl-encoder", checkpoint=unet)))
    assert expected not in str(load_report(load_model("glcl-unet", checkpoint=unet)))
    torch.save({"state_dict": torch.load(unet)}, unet)
    assert zoo("import", "glcl-encoder.mine", unet)[0] == 0
    for _ in range(2):
        assert expected in load_report(load_model("glcl-encoder.mine")).note


@pytest.mark.parametrize(("task", "says"), [("classify", True), ("segment", True), ("pretrain", False)])
def test_an_encoder_says_what_the_header_of_a_run_says(task, says, saved):
    """A classifier's file has nothing else that tells its encoder from a pre-training's."""
    network = load_model("glcl-encoder", pretrained=False)
    command = "python -m zoo.entries.glcl.finetune"
    header = make_header("glcl-encoder", task, command, input={}, options={}, base={"source": "random"})
    path = saved({"model": network.state_dict(), "zoo": header})
    note = load_report(load_model("glcl-encoder", checkpoint=path)).note
    assert (f"learnt to {task} with labels" in note) == says


# --- another family's -------------------------------------------------------------------------------------------------


@pytest.fixture
def on_record(unet, tmp_path, monkeypatch):
    """Put the file on record for some models, or once for each list of them, with its digest and size, or others."""

    def put(models, **changes):
        content = unet.read_bytes()
        facts = {"bytes": len(content), "sha256": sha256(content).hexdigest(), **changes}
        records = [
            {"tag": "theirs", "models": each, "state": "hosted", "sources": [], **facts}
            for each in (models if isinstance(models[0], list) else [models])
        ]
        (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": records}))
        monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
        return unet

    return put


@pytest.mark.slow
def test_the_file_of_another_family_is_refused_by_its_digest(on_record, zoo):
    """Whatever its names fit; the message names the right model, and inspect does not say that it loads."""
    path = on_record(["brainiac-vitb16"])
    for load in (load_model, load_transform):
        with pytest.raises(CheckpointMismatchError, match=r"is the file of 'brainiac-vitb16\.theirs', by its sha256"):
            load("glcl-unet", checkpoint=path)
    found = {match.model: match for match in inspect_checkpoint(path).matches}["glcl-unet"]
    assert not found.complete
    assert "is the file of 'brainiac-vitb16.theirs'" in found.problem
    assert zoo("import", "glcl-unet.mine", path)[0] == 1


def test_an_import_knows_the_digest_where_the_size_is_not_on_record(on_record, zoo):
    """It is computed anyway; a load would have to hash every file for it."""
    path = on_record(["brainiac-vitb16"], bytes=None)
    load_model("glcl-unet", checkpoint=path)
    code, _, err = zoo("import", "glcl-unet.mine", path)
    assert code == 1
    assert "is the file of 'brainiac-vitb16.theirs'" in err


@pytest.mark.parametrize(
    ("models", "changes"),
    [
        (["brainiac-vitb16"], {"sha256": "0" * 64}),
        (["brainiac-vitb16", "glcl-encoder"], {}),
        ([["brainiac-vitb16"], ["glcl-encoder"]], {}),
        (["brainiac-vitb16"], {"sha256": None}),
    ],
)
def test_any_other_digest_is_no_obstacle(models, changes, on_record):
    """Another file of the same size, a file that this family has too, and one whose digest nobody knows."""
    load_model("glcl-unet", checkpoint=on_record(models, **changes))


@pytest.mark.parametrize(("models", "size"), [(["brainiac-vitb16"], 5), (["glcl-encoder"], None)])
def test_a_file_is_hashed_only_where_it_could_be_another_family_s(models, size, on_record, monkeypatch):
    """Hashing takes longer than loading."""
    path = on_record(models, **({"bytes": size} if size else {}))
    monkeypatch.setattr(likeness, "hash_file", lambda path: pytest.fail("hashed"))
    load_model("glcl-unet", checkpoint=path)


def test_the_header_of_another_family_is_believed(saved):
    """The names are the same: what the run was is in the header alone."""
    command = "python -m zoo.entries.caid.pretrain"
    header = make_header("caid-resnet50", "pretrain", command, input={}, options={}, base={"source": "random"})
    path = saved({"model": load_model("glcl-encoder", pretrained=False).state_dict(), "zoo": header})
    with pytest.raises(CheckpointMismatchError, match=r"for 'caid-resnet50', not for 'glcl-encoder'. Name that model"):
        load_model("glcl-encoder", checkpoint=path)


# --- one that could be both -------------------------------------------------------------------------------------------


def doubts(name, state, **metadata):
    """What is said of a file with these tensors, before a remark of the entry."""
    stored = StoredState("a.pt", "zip", state, False, metadata=metadata)
    return doubt(get_entry(name), stored, convert(get_entry(name), state)[0], "")


def test_names_that_fit_two_families_are_said_to():
    """A bare ViT is BrainIAC's or MONAI SSL's; what stands beside it tells."""
    bare = light(VIT_KEYS)
    assert doubts(ENCODER, bare) == doubts(UNETR, bare) == "names and shapes do not tell it from brainiac-vitb16"
    assert doubts(VIT, bare) == "names and shapes do not tell it from monai-ssl-vitb16"
    tuned = bare | light({"classification_head.weight": (3, 768), "classification_head.bias": (3,)})
    assert doubts(ENCODER, tuned) == doubts(ENCODER, bare)
    assert doubts(VIT, pretraining(bare)["state_dict"]) == ""
    assert doubts(ENCODER, light(AUTOENCODER_KEYS)) == ""
    theirs = {n: t for n, t in segmenter(bare, bare)["state_dict"].items() if not n.startswith("model.vit.")}
    assert doubts(UNETR, theirs) == doubts(UNETR, bare)
    assert doubts(ENCODER, bare, model=ENCODER) == ""


@pytest.mark.slow
def test_models_without_a_twin_are_not_doubted():
    """Of the whole registry; a network that the zoo does not have is named by its entry."""
    found = {name: doubts(name, on_meta(name)) for name in entries()}
    doubted = {name: text for name, text in found.items() if text and name not in (VIT, ENCODER)}
    assert doubted == {RAD_DINO: f"names and shapes do not tell it from {get_entry(RAD_DINO).namesakes[0]}"}


@pytest.mark.slow
def test_the_report_of_a_user_s_file_says_it_once(saved):
    """Not where the entry's own remark names the twin, and not of a file that is on record."""
    path = saved({name: torch.zeros(shape, dtype=torch.float16) for name, shape in VIT_KEYS.items()})
    note = load_report(load_model(ENCODER, checkpoint=path)).note
    assert note == "names and shapes do not tell it from brainiac-vitb16"
    stored = open_checkpoint(path)
    state, facts = convert(get_entry(VIT), stored.tensors)
    assert doubt(get_entry(VIT), stored, state, facts["remark"]) == ""
