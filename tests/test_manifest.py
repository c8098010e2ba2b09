"""The manifest that ships holds what is promised, and manifests of the user's come before it."""

import json
import os
from pathlib import Path

import jsonschema
import pytest

import zoo
import zoo.record
from zoo.checkpoint.export import fingerprint
from zoo.entry import Preprocessing
from zoo.errors import OptionError, UnknownModelError, WeightsUnavailableError
from zoo.fetching.cache import hash_file, read_stamp
from zoo.manifest import manifests, packaged_manifest, records, user_manifest
from zoo.record import read_manifest
from zoo.registry import entries, get_entry, resolve

SCHEMA = json.loads((Path(__file__).parent / "manifest.schema.json").read_text("utf-8"))
SHIPPED = json.loads(packaged_manifest().read_text("utf-8"))


def record(tag, **facts):
    required = {"tag": tag, "models": ["caid-resnet50"], "state": "hosted", "sources": [f"file:{tag}.pth"]}
    return required | {"bytes": 5, "sha256": "0" * 64} | facts


def write(path, *weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "weights": list(weights)}))
    return path


@pytest.mark.slow
def test_the_shipped_manifest_keeps_to_its_schema():
    """And the schema refuses what it must."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(SHIPPED, SCHEMA)
    good = SHIPPED["weights"][0]
    listed = good["training_ids"]
    breaks = (
        {"state": "hosted"},
        {"sha256_note": ""},
        {"sources": ["ftp://host/file"]},
        {"sources": ["http://example.org/file"]},
        {"sha256": "abc"},
        {"md5": "abc"},
        {"git_blob": "0" * 64},
        {"training_ids": listed | {"cohorts": []}},
        {"training_ids": listed | {"form": "table"}},
        {"training_ids": listed | {"form": "datalist"}},
        {"training_ids": listed | {"cohorts": [{"name": "x", "rules": ["no group"]}]}},
        {"training_ids": {name: value for name, value in listed.items() if name != "sha256"}},
        {"licences": good["licences"] | {"code": good["licences"]["code"] | {"commercial": True}}},
        {"licences": {}},
        {"surprise": 1},
        {"tag": "With.Dot"},
    )
    for change in breaks:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"schema": 1, "weights": [good | change]}, SCHEMA)


def test_every_record_fits_the_entries():
    """Its models exist, each with a fingerprint; tags are unique per model; input and options are known ones."""
    seen = set()
    for weights in read_manifest(packaged_manifest()):
        assert set(weights.fingerprint) == set(weights.models), weights.tag
        for model in weights.models:
            entry = get_entry(model)
            assert (model, weights.tag) not in seen
            seen.add((model, weights.tag))
            assert set(weights.options) <= set(entry.config)
            assert isinstance(entry.preprocessing.override(weights.input), Preprocessing)


def test_every_model_has_a_record():
    """A name without one would say nothing of where its weights are."""
    assert all(records(name) for name in entries())


def test_packaged_files_are_there_and_right():
    """Each `package:` source lies in the package with the size and digest on record."""
    for weights in read_manifest(packaged_manifest()):
        for source in weights.sources:
            if source.startswith("package:"):
                path = Path(zoo.__file__).parent / "weights" / source.removeprefix("package:")
                assert (path.stat().st_size, hash_file(path)) == (weights.bytes, weights.sha256)


def test_the_authors_fingerprints_are_of_their_names(unet_state):
    """The record of the unpublished weights says what names and shapes the authors' file will have."""
    (weights,) = (w for w in read_manifest(packaged_manifest()) if w.tag == "chestxray14")
    for model, expected in weights.fingerprint.items():
        assert fingerprint(get_entry(model).convert(unet_state)[0]) == expected


def test_manifests_come_in_order_of_preference(tmp_path, monkeypatch):
    """ZOO_MANIFEST, then what was imported, then ours; of two records with one tag the first counts."""
    mine = write(tmp_path / "mine.json", record("a"), record("chestxray14", trained_by="zoo"))
    imported = write(user_manifest(), record("c"), record("b", default=True), record("a", bytes=6))
    monkeypatch.setenv("ZOO_MANIFEST", str(mine))
    assert list(manifests()) == [mine, imported, packaged_manifest()]
    tags = [weights.tag for weights in records("caid-resnet50")]
    assert tags[:4] == ["a", "chestxray14", "c", "b"]
    assert len(tags) == len(set(tags))
    assert resolve("caid-resnet50").weights.tag == "a"
    assert resolve("caid-resnet50.a").weights.bytes == 5
    assert resolve("caid-resnet50.b").weights.tag == "b"
    monkeypatch.delenv("ZOO_MANIFEST")
    assert resolve("caid-resnet50").weights.tag == "b"
    assert resolve("caid-resnet50.a").weights.bytes == 6


def test_the_users_manifest_follows_the_cache(tmp_path):
    """It lies in the cache that is asked for."""
    write(tmp_path / "other" / "manifest.json", record("mine"))
    assert resolve("caid-resnet50.mine", tmp_path / "other").weights.tag == "mine"
    assert "mine" not in [weights.tag for weights in records("caid-resnet50")]


@pytest.mark.slow
def test_what_was_imported_is_no_default_until_somebody_says_so(tmp_path, monkeypatch):
    """A record that says nothing, as those of 0.1.0 do, leaves the plain name as it is, with its input and options."""
    before = zoo.model_info("glcl-encoder")
    write(user_manifest(), record("mine", models=["glcl-encoder"], input={"size": [64, 64]}))
    assert zoo.model_info("glcl-encoder").input == before.input
    assert zoo.load_transform("glcl-encoder").preprocessing == before.input
    with pytest.raises(WeightsUnavailableError, match=r"load glcl-encoder\.mine by its full name"):
        _ = resolve("glcl-encoder").weights
    write(user_manifest(), record("mine", models=["glcl-encoder"], input={"size": [64, 64]}, default=True))
    assert zoo.model_info("glcl-encoder").input.size == (64, 64)


def test_an_import_of_a_tag_on_record_is_what_the_plain_name_loads_where_it_is_of_this_tag(tmp_path, monkeypatch):
    """The plain name keeps its tag: of two hosted ones the second, imported, does not come before the first."""
    name = "yaware-densenet121"
    assert resolve(name).weights.tag == "bhb10k"
    write(user_manifest(), record("bhb10k-2021", models=[name]))
    assert resolve(name).weights.tag == "bhb10k"
    assert resolve(f"{name}.bhb10k-2021").weights.bytes == 5
    write(user_manifest(), record("bhb10k", models=[name]))
    assert (resolve(name).weights.tag, resolve(name).weights.bytes) == ("bhb10k", 5)
    monkeypatch.setenv("ZOO_MANIFEST", str(write(tmp_path / "m.json", record("bhb10k", models=[name], default=False))))
    assert resolve(name).weights.tag == "bhb10k-2021"


def test_a_manifest_of_absurd_depth_is_refused(tmp_path, monkeypatch):
    """Deeper than Python's parser goes, or only deeper than any record: an error that names it, not a recursion."""
    path = tmp_path / "m.json"
    monkeypatch.setenv("ZOO_MANIFEST", str(path))
    path.write_text('{"schema": 1, "weights": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(OptionError, match=r"m\.json cannot be read"):
        zoo.model_info("caid-resnet50")
    deep = {}
    for _ in range(200):
        deep = {"d": deep}
    write(path, record("x", provenance=deep))
    with pytest.raises(OptionError, match="nested more than 20 deep"):
        zoo.model_info("caid-resnet50")


def test_an_input_can_be_of_one_model_alone(tmp_path, monkeypatch):
    """What stands under a model's name is that model's, beside what is all's; another name is a mistake."""
    models = ["caid-resnet50", "caid-resnet50-unet"]
    facts = {"units": "all", "caid-resnet50": {"size": [96, 96], "resize": 110}}
    path = write(tmp_path / "m.json", record("mine", models=models, input=facts))
    monkeypatch.setenv("ZOO_MANIFEST", str(path))
    first, second = (zoo.load_transform(f"{model}.mine").preprocessing for model in models)
    assert (first.size, first.resize, first.units) == ((96, 96), 110, "all")
    assert (second.size, second.units) == (get_entry(models[1]).preprocessing.size, "all")
    assert zoo.model_info("caid-resnet50.mine").input == first
    write(path, record("mine", input={"caid-resnet50-unet": {"size": [96, 96]}}))
    with pytest.raises(OptionError, match=r"input has caid-resnet50-unet, which is not one of its models"):
        zoo.model_info("caid-resnet50")


def test_only_hosted_default_weights_are_taken_without_a_tag(tmp_path, monkeypatch):
    """On request, withdrawn and non-default ones need their tag; what is not published has none to give."""
    weights = [
        record("demo", default=False),
        record("gone", state="withdrawn"),
        record("asked", state="on-request"),
        record("none", state="not-published", sources=[]),
        record("plain"),
    ]
    monkeypatch.setenv("ZOO_MANIFEST", str(write(tmp_path / "m.json", *weights)))
    assert resolve("caid-resnet50").weights.tag == "plain"
    for tag in ("demo", "gone", "asked"):
        assert resolve(f"caid-resnet50.{tag}").weights.tag == tag
    with pytest.raises(WeightsUnavailableError, match=r"'caid-resnet50\.none'.*\n.*not-published"):
        _ = resolve("caid-resnet50.none").weights


def test_unavailable_weights_come_with_the_ways_out(tmp_path, monkeypatch):
    """What is known of each tag, and what to do: a file, an import, no weights, the recipe."""
    empty = write(
        tmp_path / "shipped.json", record("chestxray14", state="not-published", sources=[], notes="Ask them.")
    )
    monkeypatch.setattr("zoo.manifest.packaged_manifest", lambda: empty)
    with pytest.raises(WeightsUnavailableError) as caught:
        _ = resolve("caid-resnet50").weights
    message = str(caught.value)
    assert "no weights can be loaded for 'caid-resnet50'" in message
    assert "chestxray14 (not-published, trained by user). Ask them." in message
    for way in ("checkpoint='FILE'", "`zoo import caid-resnet50 FILE`", "pretrained=False", "recipe"):
        assert way in message


def test_a_wrong_tag_names_the_right_ones():
    """The message lists the tags of the model."""
    with pytest.raises(UnknownModelError, match=r"'caid-resnet50' has no weights with the tag 'imagenet'.*chestxray14"):
        resolve("caid-resnet50.imagenet")
    with pytest.raises(UnknownModelError, match=r"'chestxray-14'; did you mean 'chestxray14'"):
        resolve("caid-resnet50.chestxray-14")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read"),
        ('{"schema": 2, "weights": []}', '"schema": 1'),
        (json.dumps({"schema": 1, "weights": [{"tag": "x", "state": "hosted"}]}), "'x'.*missing.*bytes.*models"),
        (json.dumps({"schema": 1, "weights": [record("x", sha265="typing error")]}), "unknown.*sha265"),
        (json.dumps({"schema": 1, "weights": [record("x", state="lost")]}), "state 'lost'"),
    ],
)
def test_a_broken_manifest_is_named(content, expected, tmp_path, monkeypatch):
    """With the file, the record and what is wrong in it."""
    path = tmp_path / "mine.json"
    path.write_text(content)
    monkeypatch.setenv("ZOO_MANIFEST", str(path))
    with pytest.raises(OptionError, match=expected) as caught:
        zoo.model_info("caid-resnet50")
    assert str(path) in str(caught.value)


def test_a_manifest_that_is_not_there_is_an_error(monkeypatch):
    """Rather than the weights that would be taken without it."""
    monkeypatch.setenv("ZOO_MANIFEST", "/no/such/manifest.json")
    with pytest.raises(OptionError, match=r"ZOO_MANIFEST=/no/such/manifest\.json does not exist"):
        list(manifests())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sources", None, "sources must be a list"),
        ("sources", "file:w.pth", "sources must be a list"),
        ("sources", ["package:../../w.pth"], "bare name"),
        ("sources", ["package:/etc/w.pth"], "bare name"),
        ("models", "caid-resnet50", "models must be a list"),
        ("bytes", "12", "bytes must be a whole number"),
        ("sha256", "../../elsewhere", "64 hexadecimal digits"),
        ("assets", {"landmarks": {}}, "sources is missing"),
        ("options", ["x"], "options must be a dict"),
    ],
)
def test_a_hand_written_record_is_checked(tmp_path, field, value, said):
    """What is wrong in a further manifest is one error that names record and field, never a crash or a stray path."""
    facts = {"tag": "t", "models": ["caid-resnet50"], "state": "hosted", "sources": [], "bytes": None, "sha256": None}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"schema": 1, "weights": [facts | {field: value}]}))
    with pytest.raises(OptionError, match=said):
        read_manifest(path)


def test_digests_are_compared_in_lower_case(tmp_path):
    """A digest in capitals, as some tools print it, is the same digest."""
    facts = {"tag": "t", "models": ["m"], "state": "hosted", "sources": [], "bytes": 1, "sha256": "AB" * 32}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [facts]}))
    assert read_manifest(tmp_path / "m.json")[0].sha256 == "ab" * 32


@pytest.mark.slow
def test_what_ships_fills_its_models():
    """The packaged weights fill every model of their record; the plain name stands for those that are a default."""
    shipped = [r for r in read_manifest(packaged_manifest()) if any(s.startswith("package:") for s in r.sources)]
    assert shipped
    for record in shipped:
        for model in record.models:
            name = model if record.default else f"{model}.{record.tag}"
            report = zoo.load_report(zoo.load_model(name))
            assert (report.tag, report.sha256) == (record.tag, record.sha256)
            assert (report.trained_by, bool(report.fresh)) == ("zoo", False)
            assert list(zoo.load_transform(name).preprocessing.size) == record.input["size"]


def test_a_pipe_in_the_place_of_the_imports_is_named_and_not_waited_for(tmp_path, monkeypatch):
    """`zoo list` waited for a writer that never comes."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path))
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(OptionError, match=r"manifest\.json cannot be read: .*a pipe or a device"):
        zoo.model_info("glcl-unet")
    os.mkfifo(tmp_path / "stamp.json")
    assert read_stamp(tmp_path / "stamp.json") is None


@pytest.mark.slow
def test_two_loads_read_each_manifest_once(monkeypatch, tmp_path):
    """A load parsed its name four times and read the manifests twice; a file that changes is read again."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path))
    read = []
    monkeypatch.setattr("zoo.record.read_text", lambda path: read.append(path) or path.read_text("utf-8"))
    write(tmp_path / "manifest.json", record("mine"))
    zoo.record._read.cache_clear()
    for _ in range(2):
        zoo.load_model("caid-resnet50", pretrained=False)
    assert sorted(read) == sorted([tmp_path / "manifest.json", packaged_manifest()])
    write(tmp_path / "manifest.json", record("other"), record("mine"))
    assert resolve("caid-resnet50.other").record.tag == "other"
