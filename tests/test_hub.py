"""`hf://owner/name@revision`: the model that the file's header names, from one commit and proved."""

import json

import pytest
import torch
from fine_tuned import labels, rewritten, save, with_head
from hub import TOKEN, Hub
from servers import prepare, sha256

import zoo as package
from zoo.errors import CheckpointFormatError, DownloadError, IntegrityError, OfflineError, OptionError
from zoo.fetching import fetch_hub
from zoo.loading import input_of
from zoo.provenance import base_of
from zoo.tasks.outputs import Outputs

GLCL, NAMES = "glcl-encoder.phantom", ("scar", "oedema")
REPO, ADDRESS = "doctor/hearts", "hf://doctor/hearts"


@pytest.fixture(scope="module")
def runs(scratch):
    """Two runs of equal form and other values."""
    for seed in (0, 1):
        save(with_head(GLCL, NAMES, seed=seed), scratch / f"hub{seed}", GLCL, labels(0.25, 0.5), NAMES)
    return [scratch / f"hub{seed}" / "model.safetensors" for seed in (0, 1)]


@pytest.fixture
def hub(monkeypatch, tmp_path, runs):
    """A hub with the first run."""
    prepare(monkeypatch, tmp_path)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        server.repo(REPO, {"model.safetensors": runs[0].read_bytes()})
        yield server


def weights_of(model):
    return model.get_classifier().weight


def test_an_address_stands_for_a_model_and_its_weights(hub, runs):
    """The report has the full commit and the digest that the hub states; the branch is `main` where none is named."""
    commit = hub.repos[REPO].branches["main"]
    for address in (ADDRESS, f"{ADDRESS}@main", f"{ADDRESS}@{commit}", f"{ADDRESS}@{commit}/model.safetensors"):
        model = package.load_model(address)
        report = package.load_report(model)
        assert torch.equal(weights_of(model), weights_of(package.load_model("glcl-encoder", checkpoint=runs[0])))
        assert report.source == f"{ADDRESS}@{commit}/model.safetensors"
        assert report.sha256 in hub.stored
        assert "the sha256 that the hub states" in str(report)
        assert (report.model, report.trained_by, report.fresh) == ("glcl-encoder", "user", {})
    base = base_of(report)
    assert (base["source"], base["sha256"]) == (report.source, report.sha256)
    assert base["base"]["tag"] == "phantom"


@pytest.mark.slow
def test_segmenters_and_encoders_come_back(hub, zoo, tmp_path):
    """The head of the one with its classes, and none of the other, which `zoo export` wrote of weights on record."""
    classes = ("background", "heart")
    unet = package.load_model("glcl-unet.phantom", num_classes=len(classes))
    segmenter = save(unet, tmp_path / "unet", "glcl-unet.phantom", Outputs("voxels"), classes)
    assert zoo("export", GLCL, tmp_path / "encoder.safetensors")[0] == 0
    encoder = package.load_model(GLCL)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, file, network in (("s", segmenter, unet), ("e", tmp_path / "encoder.safetensors", encoder)):
        hub.repo(f"a/{name}", {"model.safetensors": file.read_bytes()})
        with torch.no_grad():
            assert torch.equal(package.load_model(f"hf://a/{name}")(images), network.eval()(images))
    predictor = package.load_predictor("hf://a/s", device="cpu", cache_dir=tmp_path / "cache")
    assert predictor.classes == classes
    assert predictor.saved.path.is_relative_to(tmp_path / "cache")


@pytest.mark.slow
def test_what_takes_a_file_takes_an_address(hub, runs, zoo, tmp_path):
    """Transform, features, inspection, facts, import, and an export with all of the header."""
    assert input_of(ADDRESS) == input_of("glcl-encoder", runs[0])
    assert package.load_transform(ADDRESS).preprocessing == input_of("glcl-encoder", runs[0])
    assert package.inspect_checkpoint(ADDRESS).matches[0].model == "glcl-encoder"
    assert package.Embedder(ADDRESS, device="cpu").name == "glcl-encoder"
    code, out, err = zoo("info", ADDRESS, "--json")
    assert code == 0, err
    assert [each["name"] for each in json.loads(out)["outputs"]] == list(NAMES)
    assert zoo("inspect", ADDRESS)[0] == 0
    assert zoo("export", ADDRESS, tmp_path / "o.safetensors")[0] == 0
    assert zoo("info", tmp_path / "o.safetensors", "--json")[1].replace(str(tmp_path / "o.safetensors"), "") == (
        zoo("info", runs[0], "--json")[1].replace(str(runs[0]), "")
    )
    code, _, err = zoo("import", "glcl-encoder.hearts", ADDRESS)
    assert code == 0, err
    assert torch.equal(weights_of(package.load_model("glcl-encoder.hearts")), weights_of(package.load_model(ADDRESS)))


def test_a_predictor_of_an_address(hub, monkeypatch):
    """It has the classes and thresholds of the header, and needs no hub once the file was there."""
    for offline in ("0", "1"):
        monkeypatch.setenv("ZOO_OFFLINE", offline)
        saved = package.load_predictor(ADDRESS, device="cpu")
        assert (saved.classes, saved.outputs.thresholds) == (NAMES, (0.25, 0.5))
        assert torch.equal(weights_of(saved.embedder.network), weights_of(package.load_model(ADDRESS)))


def test_a_branch_that_moved_is_an_error_that_names_both(hub, runs):
    """The same name never gives other weights without a word; each commit is there by its own address."""
    first = package.load_model(ADDRESS)
    before = hub.repos[REPO].branches["main"]
    after = hub.repos[REPO].commit({"model.safetensors": runs[1].read_bytes()})
    with pytest.raises(IntegrityError, match=f"has moved: .*{before}.*{after}"):
        package.load_model(ADDRESS)
    assert torch.equal(weights_of(package.load_model(f"{ADDRESS}@{before}")), weights_of(first))
    assert not torch.equal(weights_of(package.load_model(f"{ADDRESS}@{after}")), weights_of(first))


def test_other_bytes_than_the_hub_states_are_refused(hub, runs):
    """And nothing of them stays in the cache."""
    fetched = runs[0].read_bytes()
    hub.stored[sha256(fetched)] = runs[1].read_bytes()
    with pytest.raises(IntegrityError, match="every source sent another file"):
        package.load_model(ADDRESS)
    hub.stored.clear()
    assert package.load_report(package.load_model(ADDRESS)).loaded


@pytest.mark.slow
def test_offline_it_comes_from_the_cache(hub, monkeypatch):
    """By the branch and by the commit, with no request; what was never used is an error that says so."""
    model = package.load_model(ADDRESS)
    commit, asked = hub.repos[REPO].branches["main"], len(hub.seen)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    for address in (ADDRESS, f"{ADDRESS}@{commit}"):
        assert torch.equal(weights_of(package.load_model(address)), weights_of(model))
    with pytest.raises(OfflineError, match="hf://doctor/other@main was never used on this machine"):
        package.load_model("hf://doctor/other")
    assert len(hub.seen) == asked
    monkeypatch.delenv("ZOO_OFFLINE")
    package.load_model(f"{ADDRESS}@{commit}")
    assert len(hub.seen) == asked, "a commit in the cache needs no connection"


def test_a_mirror_is_asked_first(hub, runs, monkeypatch, tmp_path):
    """By the digest that the hub states: the bytes come from the folder."""
    digest = sha256(runs[0].read_bytes())
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / digest).write_bytes(runs[0].read_bytes())
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path / "mirror"))
    package.load_model(ADDRESS)
    assert fetch_hub(ADDRESS).sha256 == digest
    assert package.load_report(package.load_model(ADDRESS)).sha256 == digest


@pytest.mark.parametrize(("status", "said"), [(401, "HTTP 401"), (403, "HTTP 403")])
def test_a_closed_repository_needs_a_token(hub, monkeypatch, status, said):
    """The error says how to get in; with the token it loads."""
    hub.repos[REPO].closed = status
    with pytest.raises(DownloadError, match=f"{said}.*private or gated.*HF_TOKEN"):
        package.load_model(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert package.load_report(package.load_model(ADDRESS)).loaded


@pytest.mark.slow
def test_a_repository_that_the_zoo_did_not_write(hub, runs, tmp_path):
    """Without the file, without a header, of another zoo: each error says how to load it all the same."""
    hub.repo("a/pickles", {"pytorch_model.bin": b"x"})
    with pytest.raises(DownloadError, match=r"404.*model\.safetensors is looked for.*checkpoint=FILE"):
        package.load_model("hf://a/pickles")
    for model, said in ((None, "has no header"), ("other-net", "'other-net', which the zoo does not have")):
        bare = rewritten(runs[0], tmp_path / "bare.safetensors", model=model)
        hub.repo(f"a/{model}", {"model.safetensors": bare.read_bytes()})
        with pytest.raises(CheckpointFormatError, match=f"{said}.*checkpoint='hf://a/{model}@0+1'"):
            package.load_model(f"hf://a/{model}")
    model = package.load_model("glcl-encoder", checkpoint="hf://a/None")
    assert torch.equal(weights_of(model), weights_of(package.load_model(ADDRESS)))


@pytest.mark.parametrize(
    ("address", "options", "said"),
    [
        ("hf://doctor", {}, "hf://owner/name@revision"),
        (f"{ADDRESS}/weights.bin", {}, "hf://owner/name@revision"),
        (f"{ADDRESS}@refs/pr/1", {}, "hf://owner/name@revision"),
        (ADDRESS, {"checkpoint": "w.pt"}, "is a second one"),
        (ADDRESS, {"pretrained": False}, "pretrained=False"),
    ],
)
def test_wrong_use(hub, address, options, said):
    """Before any request."""
    with pytest.raises(OptionError, match=said):
        package.load_model(address, **options)
    assert not hub.seen
