"""`zoo export --to-hub`: what huggingface_hub sends to a hub on loopback, and what comes back from there."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from fine_tuned import labels, rewritten, save, with_head
from hub import TOKEN, Hub
from safetensors.torch import load_file
from servers import prepare, sha256

import zoo as package
from zoo.commands.hub_card import hub_licence

GLCL, NAMES = "glcl-encoder.phantom", ("scar", "oedema\n## Forged")
REPO = "doctor/hearts"
YES = {"licence": "Apache-2.0", "commercial": "yes", "redistribute": "yes"}


@pytest.fixture(scope="module")
def run(scratch):
    """A run with results."""
    out = scratch / "upload"
    save(with_head(GLCL, NAMES), out, GLCL, labels(0.25, 0.5), NAMES, scale='{"by": 3}')
    results = {"test": {"auroc": 0.71}, "warnings": ["few cases"], "arguments": {"data": "/home/me/patients"}}
    results["weights"] = {"model.safetensors": sha256((out / "model.safetensors").read_bytes())}
    (out / "results.json").write_text(json.dumps(results))
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, and a token for it."""
    prepare(monkeypatch, tmp_path)
    for module in ("_commit_api", "hf_api"):  # the hub on loopback stores large files by Git LFS alone
        monkeypatch.setattr(f"huggingface_hub.{module}.is_xet_available", lambda: False, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.root, raising=False)  # 0.24 reads it at import
        yield server


def with_base(run, out, **changes):
    """The file of the run, begun with weights of which something else is stated."""
    from zoo.formats import open_checkpoint

    base = json.loads(open_checkpoint(run / "model.safetensors").metadata["base"])
    out.mkdir()
    return rewritten(run / "model.safetensors", out / "model.safetensors", base=json.dumps(base | changes))


def test_what_goes_up_comes_back(hub, run, zoo):
    """The same network by the address that is said, with all of the header, whatever the zoo knows of it."""
    code, out, err = zoo("export", run, "--to-hub", REPO)
    assert code == 0, err
    repo = hub.repos[REPO]
    address = f"hf://{REPO}@{repo.branches['main']}"
    sent = repo.commits[repo.branches["main"]]
    assert address in out
    assert sha256(sent["model.safetensors"]) in out
    model, local = package.load_model(address), load_file(run / "model.safetensors")
    assert all(torch.equal(value, local[name]) for name, value in model.state_dict().items())
    assert package.load_predictor(address, device="cpu").header["scale"] == '{"by": 3}'
    assert sent.keys() == {"model.safetensors", "README.md"}


def test_the_page_says_whose_it_is_and_from_what(hub, run, zoo):
    """Task, classes, input, base with digest and licences, results as the run's own; no folder of the user's."""
    assert zoo("export", run, "--to-hub", REPO)[0] == 0
    page = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["README.md"].decode()
    fields = huggingface_hub.ModelCard(page).data
    assert (fields.license, fields.library_name) == ("other", "medssl-zoo")
    known = package.model_info(GLCL)
    for said in (
        "that was trained to classify with medssl-zoo, and put here by doctor",
        "not weights of the model's authors",
        "- scar\n- oedema\\n",
        f"sha256: {known.sha256}",
        "trained_by: zoo",
        f"weights: {known.licences['weights']['licence']}; commercial use: yes, redistribution: yes",
        f'zoo.load_model("hf://{REPO}")',
        "auroc: 0.71",
        "few cases",
        "size: 96, 96",
    ):
        assert said in page, said
    assert "\n## Forged" not in page
    assert "/home/me" not in page


@pytest.mark.parametrize("text", ['{"test": {"auroc": 0.71}}', '{"test": {"auroc": 0.71}, "weights": {"x": "0"}}', "{"])
def test_results_of_another_file_stay_here(hub, run, zoo, tmp_path, caplog, text):
    """A file that was copied beside them, or a run that was killed before it wrote its own, must not have them."""
    file = shutil.copy(run / "model.safetensors", tmp_path)
    (tmp_path / "results.json").write_text(text)
    assert zoo("export", file, "--to-hub", REPO)[0] == 0
    page = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["README.md"].decode()
    assert "0.71" not in page
    assert "## Results" not in page
    assert "does not name the sha256 of model.safetensors" in caplog.text


def test_a_branch_and_a_private_repository(hub, run, zoo):
    """Made where they lack; the branch alone has the file."""
    code, out, err = zoo("export", run, "--to-hub", REPO, "--private", "--revision", "v2")
    assert code == 0, err
    repo = hub.repos[REPO]
    assert repo.is_private
    assert repo.branches.get("main") in ("", None)
    assert f"@{repo.branches['v2']}" in out
    assert package.load_report(package.load_model(f"hf://{REPO}@v2")).fresh == {}


def test_a_public_repository_is_not_taken_for_a_private_one(hub, run, zoo):
    """One that was there before stays as it is, and gets nothing."""
    hub.repo(REPO, {"README.md": b"before"})
    code, _, err = zoo("export", run, "--to-hub", REPO, "--private")
    assert (code, "nothing was uploaded, for the repository is public" in err) == (1, True), err
    assert len(hub.repos[REPO].commits) == 1


def test_weights_that_may_not_be_passed_on_stay_here(hub, run, zoo, tmp_path):
    """The licence is quoted, and nothing is asked of the hub; of the data, and of what nobody knows, a warning is."""
    no = {"licence": "Research alone: https://example.org/LICENSE", "redistribute": "no", "note": "by agreement"}
    for layer in ("code", "weights"):
        file = with_base(run, tmp_path / layer, licences={"code": YES, "weights": YES, "data": YES, layer: no})
        code, _, err = zoo("export", file, "--to-hub", REPO)
        assert code == 1
        said = f"{layer} the licence forbids redistribution: Research alone: https://example.org/LICENSE (by agreement)"
        assert said in err
    assert not hub.seen


def test_what_nobody_knows_is_warned_of(hub, run, zoo, tmp_path, caplog):
    """And so are the terms of data, which are not passed on themselves; random weights have no licence."""
    file = with_base(
        run, tmp_path / "a", licences={"code": YES, "data": {"licence": "by approval", "redistribute": "no"}}
    )
    assert zoo("export", file, "--to-hub", REPO)[0] == 0
    assert "the weights of glcl-encoder.phantom may be passed on is unknown: no licence is stated" in caplog.text
    assert "the data of glcl-encoder.phantom may be passed on is no: by approval" in caplog.text
    caplog.clear()
    (tmp_path / "b").mkdir()
    file = rewritten(run / "model.safetensors", tmp_path / "b" / "model.safetensors", base='{"source": "random"}')
    assert zoo("export", file, "--to-hub", REPO)[0] == 0
    assert "passed on" not in caplog.text
    page = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["README.md"].decode()
    assert "It began with random weights: the terms of the data that it was trained on alone count." in page


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("MIT", "Apache-2.0", "CC-BY-NC-4.0"), "cc-by-nc-4.0"),
        (("MIT", "Apache-2.0", "MIT"), "mit"),
        (("MIT", "as its page says", "MIT"), "other"),
        (("MIT", "Apache-2.0"), "other"),
    ],
)
def test_the_strictest_licence_counts(licences, expected):
    """And one that the hub does not know, or that is not stated, is never called free."""
    stated = {
        layer: {"licence": name}
        for layer, name in zip(("code", "weights", "data")[: len(licences)], licences, strict=True)
    }
    assert hub_licence(stated) == expected


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--to-hub", "hearts"), 2, "expected, as ORG/NAME"),
        (("--to-hub", REPO, "--onnx"), 2, "--to-hub ORG/NAME in its place"),
        (("out.safetensors", "--private"), 2, "--private and --revision go"),
        ((), 2, "expected a file OUT"),
    ],
)
def test_wrong_use(hub, run, zoo, options, code, said):
    """Before anything is asked of the hub."""
    found, _, err = zoo("export", run, *options)
    assert (found, said in err) == (code, True), err
    assert not hub.seen


def test_what_was_not_trained_here_is_not_uploaded(hub, run, zoo, tmp_path):
    """Published weights, and a file that says nothing of itself."""
    code, _, err = zoo("export", GLCL, "--to-hub", REPO)
    assert (code, "takes the file of a run of yours" in err) == (2, True), err
    bare = rewritten(run / "model.safetensors", tmp_path / "w.safetensors", recipe=None)
    code, _, err = zoo("export", "glcl-encoder", "--checkpoint", bare, "--to-hub", REPO)
    assert (code, "no header that a run of the zoo wrote" in err) == (1, True), err
    assert not hub.seen


def test_it_needs_a_token_and_a_hub(hub, run, zoo, monkeypatch):
    """Without one, with a wrong one, and offline: each said in a line."""
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, err = zoo("export", run, "--to-hub", REPO)
    assert (code, "did not take it" in err, "401" in err) == (1, True, True), err
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    code, _, err = zoo("export", run, "--to-hub", REPO)
    assert (code, "connections are forbidden" in err) == (1, True), err
    monkeypatch.delenv("ZOO_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, err = zoo("export", run, "--to-hub", REPO)
    assert (code, "hf auth login" in err, "HF_TOKEN" in err) == (2, True, True), err
    assert not hub.repos
