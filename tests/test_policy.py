"""`ZOO_POLICY` refuses weights by their licences, on every way to them, and says which licence stands in the way."""

import json

import pytest
import torch
from safetensors.torch import save_file

import zoo as package
from zoo.commands.importing import import_weights
from zoo.embedding import Embedder
from zoo.errors import OptionError, PolicyError
from zoo.fetching.cache import hash_file
from zoo.formats.header import RANDOM, make_header
from zoo.manifest import records
from zoo.policy import began_at_random, in_force
from zoo.provenance import base_of
from zoo.record import LAYERS
from zoo.training.base_weights import find_weights

MODEL = "glcl-encoder"
FREE = f"{MODEL}.phantom"
BOUND = "caid-resnet50.chestxray14-800"
YES = {"licence": "CC0-1.0", "commercial": "yes", "redistribute": "yes"}


def house_record(tmp_path, monkeypatch, licences, **facts):
    """An in-house record of GLCL's encoder, tag `house`, whose source must never be opened."""
    required = {"tag": "house", "models": [MODEL], "state": "hosted", "bytes": 5, "sha256": "0" * 64}
    sources = {"sources": ["https://127.0.0.1:9/never"]}
    record = required | sources | {"licences": licences} | facts
    (tmp_path / "house.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "house.json"))
    return f"{MODEL}.house"


@pytest.fixture(scope="module")
def state():
    """Tensors of GLCL's encoder, random."""
    torch.manual_seed(0)
    return package.load_model(MODEL, pretrained=False).state_dict()


def tuned(path, state, base):
    """A file of a recipe that began with `base`."""
    save_file(
        dict(state), path, metadata=make_header(MODEL, "pretrain", "python -m any", input={}, options={}, base=base)
    )
    return path


@pytest.mark.parametrize("word", ["both", "commercial,redistribute", "Commercial"])
def test_any_other_word_is_refused(monkeypatch, word, zoo):
    """Where it would be obeyed, naming both words: a typo must not mean no policy."""
    monkeypatch.setenv("ZOO_POLICY", word)
    with pytest.raises(OptionError, match="expected commercial or redistribute"):
        package.load_model(FREE)
    assert zoo("download", FREE)[0] == 2
    assert zoo("doctor")[0] == 1


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("said", ["no", "unknown", None])
def test_each_licence_must_say_yes(monkeypatch, tmp_path, layer, said):
    """Of code, weights and data; what is unknown or not on record counts as no. The licence is named with its text."""
    one = {"licence": f"the {layer}'s: https://example.org/terms", "commercial": said, "note": "ask them"}
    licences = dict.fromkeys(LAYERS, YES) | {layer: one}
    licences = {name: value for name, value in licences.items() if said or name != layer}
    name = house_record(tmp_path, monkeypatch, licences)
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    text = rf"the {layer}'s: https://example.org/terms \(ask them\)" if said else "no licence is on record"
    with pytest.raises(PolicyError, match=rf"In the way: {layer} \({said or 'unknown'}\): {text}\. "):
        package.download_weights(name)


def test_the_two_policies_ask_for_their_own_use(monkeypatch, tmp_path):
    """Weights that may be passed on, and not used commercially, are refused by one alone."""
    name = house_record(tmp_path, monkeypatch, dict.fromkeys(LAYERS, YES | {"commercial": "no"}))
    for use, expected in (("commercial", PolicyError), ("redistribute", package.errors.OfflineError)):
        monkeypatch.setenv("ZOO_POLICY", use)
        with pytest.raises(expected):
            package.download_weights(name, offline=True)


def test_every_way_to_weights_on_record_asks(monkeypatch, tmp_path):
    """Before a byte is fetched: the source of this record is closed, and no error speaks of it."""
    monkeypatch.setenv("ZOO_RETRY_WAIT", "0")
    name = house_record(tmp_path, monkeypatch, {})
    ways = {
        "load_model": lambda: package.load_model(name),
        "download_weights": lambda: package.download_weights(name),
        "Embedder": lambda: Embedder(name),
        "--init": lambda: find_weights(name, MODEL),
    }
    for way, call in ways.items():
        monkeypatch.setenv("ZOO_POLICY", "commercial")
        with pytest.raises(PolicyError):
            call()
        monkeypatch.delenv("ZOO_POLICY")
        if way != "Embedder":  # which loads later
            with pytest.raises(package.errors.DownloadError):
                call()


@pytest.mark.slow
def test_what_is_allowed_loads(monkeypatch):
    """Weights all of whose licences say yes, and random ones of any model."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    assert package.load_report(package.load_model(FREE)).tag == "phantom"
    assert package.load_report(package.load_model(BOUND.split(".")[0], pretrained=False)).source == "random"


def test_the_plain_name_does_not_change_its_weights(monkeypatch):
    """It is refused, by the name of the tag that it stands for: other weights are not taken in its stead."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    with pytest.raises(PolicyError, match=r"refuses caid-resnet50 \(chestxray14-800\)"):
        package.load_model("caid-resnet50")


def test_a_file_is_held_against_what_its_header_says_of_its_base(monkeypatch, tmp_path, state):
    """Of the weights that the run began with, however deep they stand below; where nothing is said, it is refused.

    A base with licences is pre-trained whatever is below it, and a file may be called as random weights are.
    """
    bound = {"licences": dict.fromkeys(LAYERS, YES | {"commercial": "no"})}
    free = {"licences": dict.fromkeys(LAYERS, YES)}
    bases = {
        "free": (free, ""),
        "free at depth": ({"licences": {}, "base": free}, ""),
        "bound": (bound, "In the way: code"),
        "bound at depth": (free | {"base": {"licences": {}, "base": bound}}, "In the way: code"),
        "silent": ({"licences": {}}, "its header states none"),
        "a file called random": ({"licences": {}, "sha256": None} | RANDOM, "its header states none"),
        "random at depth": (bound | {"base": dict(RANDOM)}, "In the way: code"),
    }
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    for number, (base, problem) in enumerate(bases.values()):
        file = tuned(tmp_path / f"{number}.safetensors", state, base)
        if problem:
            for call in (package.load_model, Embedder):
                with pytest.raises(PolicyError, match=problem):
                    call(MODEL, checkpoint=file)
        else:
            package.load_model(MODEL, checkpoint=file)


@pytest.mark.slow
def test_what_began_with_random_weights_is_the_users_own(monkeypatch, tmp_path, state, caplog):
    """Nothing pre-trained is in it: its file loads, so does what began from that, and an import."""
    first = tuned(tmp_path / "first", state, dict(RANDOM))
    package.load_model(MODEL, checkpoint=first)
    base = base_of(package.load_report(package.load_model(MODEL, checkpoint=first)))
    second = tuned(tmp_path / "second", state, base)
    import_weights(f"{MODEL}.first", first)
    third = tuned(tmp_path / "third", state, base_of(package.load_report(package.load_model(f"{MODEL}.first"))))
    import_weights(f"{MODEL}.third", third)
    monkeypatch.setenv("ZOO_POLICY", "redistribute")
    for file in (first, second, third):
        caplog.clear()
        package.load_model(MODEL, checkpoint=file)
        assert "it began with random weights, so that the terms of the data" in caplog.text
    for tag in ("first", "third"):
        caplog.clear()
        package.load_model(f"{MODEL}.{tag}")
        assert f"lets {MODEL}.{tag} pass: it began with random weights" in caplog.text


def test_a_file_called_random_is_not_random(monkeypatch, tmp_path, state):
    """Its tensors are somebody's: what is trained from it must not say that it began with nothing."""
    monkeypatch.chdir(tmp_path)
    save_file(dict(state), "random")
    base = base_of(package.load_report(package.load_model(MODEL, checkpoint="random")))
    assert "sha256" in base
    assert not began_at_random(base)
    random = package.load_report(package.load_model(MODEL, pretrained=False))
    assert began_at_random(base_of(random))


@pytest.mark.slow
def test_an_export_says_enough(monkeypatch, tmp_path, zoo):
    """`zoo export` of allowed weights gives a file that loads under the policy, of others one that does not."""
    for name in (FREE, BOUND):
        assert zoo("export", name, tmp_path / f"{name}.safetensors")[0] == 0
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    package.load_model(MODEL, checkpoint=tmp_path / f"{FREE}.safetensors")
    with pytest.raises(PolicyError, match="patent pending"):
        package.load_model("caid-resnet50", checkpoint=tmp_path / f"{BOUND}.safetensors")


def test_a_file_without_a_word_gets_by_with_a_record(monkeypatch, tmp_path, state):
    """One way out of the error: a record in ZOO_MANIFEST that states its digest and licences."""
    file = tmp_path / "silent.safetensors"
    save_file(dict(state), file)
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    with pytest.raises(PolicyError, match="its header states none"):
        package.load_model(MODEL, checkpoint=file)
    facts = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    house_record(tmp_path, monkeypatch, dict.fromkeys(LAYERS, YES), **facts)
    package.load_model(MODEL, checkpoint=file)


def test_an_import_keeps_the_licences_of_its_header(monkeypatch, tmp_path, state):
    """Importing is no use of a file, so any is recorded; what its header says counts when it is loaded."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    import_weights(f"{MODEL}.mine", tuned(tmp_path / "a", state, {"licences": dict.fromkeys(LAYERS, YES)}))
    import_weights(f"{MODEL}.other", tuned(tmp_path / "b", state, {"licences": {}}))
    assert in_force() == "commercial"  # it was lifted for the import alone
    package.load_model(f"{MODEL}.mine")
    with pytest.raises(PolicyError, match=r"refuses glcl-encoder\.other.*code \(unknown\): no licence is on record"):
        package.load_model(f"{MODEL}.other")


@pytest.mark.slow
def test_an_import_under_a_tag_on_record_has_its_licences(monkeypatch, unet_safetensors):
    """The other way out of the error: CAiD's authors allow redistribution, and no commercial use."""
    monkeypatch.setenv("ZOO_POLICY", "redistribute")
    name = "caid-resnet50-unet.chestxray14"
    with pytest.raises(PolicyError, match=r"Import it under a tag on record .*`zoo import MODEL\.TAG FILE`"):
        package.load_model("caid-resnet50-unet", checkpoint=unet_safetensors)
    import_weights(name, unet_safetensors)
    package.load_model(name)
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    with pytest.raises(PolicyError, match="License Text for ASU GitHub Project"):
        package.load_model(name)


def test_the_list_offers_nothing_that_is_refused(monkeypatch, zoo):
    """`zoo list --available` under a policy has what `--commercial` has without one."""
    free = {(r["name"], r["tag"]) for r in json.loads(zoo("list", "--available", "--commercial", "--json")[1])}
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    assert {(r["name"], r["tag"]) for r in json.loads(zoo("list", "--available", "--json")[1])} == free
    assert ("glcl-encoder", "phantom") in free
    assert len(free) < sum(len(records(name)) for name in package.list_models())


def test_the_command_says_it_in_one_line(monkeypatch, zoo, tmp_path):
    """`zoo embed` too, before it looks for images: exit code 1."""
    monkeypatch.setenv("ZOO_POLICY", "redistribute")
    for words in (["download", "voco-swinvit-b"], ["embed", "voco-swinvit-b", tmp_path, "-o", tmp_path / "out"]):
        code, _, err = zoo(*words)
        assert code == 1
        assert err.startswith("zoo: ZOO_POLICY=redistribute refuses voco-swinvit-b (ssl)")
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
