"""`zoo pin`: a maintainer completes a record from the file itself."""

import json

import pytest
from servers import Server, prepare, redirect, sha256, some_bytes, whole

from zoo.commands.pin import pin_record
from zoo.errors import DownloadError, OptionError
from zoo.fetching import fetch
from zoo.fetching.digests import digests_of
from zoo.manifest import packaged_manifest
from zoo.record import read_manifest

DATA = some_bytes()
COMMIT = "a27ed7505712cbc12b3325c4722ffbfa5af39c35"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    return prepare(monkeypatch, tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A hub that has the file under a branch and at its commit, and states both."""
    said = {"X_Linked_Etag": f'"{sha256(DATA)}"', "X_Repo_Commit": COMMIT}
    paths = {f"/owner/name/resolve/{r}/w.safetensors": redirect("/cdn", **said) for r in ("main", COMMIT)}
    with Server({"/cdn": whole(DATA), **paths}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        yield server


def manifest(tmp_path, revision="main", note=True, source="https://host/x", **facts):
    """The shipped manifest with a record of the hub's file in the middle, laid out as the others are."""
    text = packaged_manifest().read_text("utf-8")
    facts = {"bytes": None, "sha256": None, **({"sha256_note": "not published"} if note else {}), **facts}
    lines = [f'      "{key}": {json.dumps(value)},' for key, value in facts.items()]
    record = "\n".join(
        [
            '    {\n      "tag": "drawn",\n      "models": ["caid-resnet50"],\n      "state": "hosted",',
            f'      "sources": ["hf://owner/name@{revision}/w.safetensors"],',
            *lines,
            f'      "assets": {{"list": {{"sources": ["{source}"], "bytes": null, "sha256": null}}}}\n    }},',
        ]
    )
    path = tmp_path / "weights.json"
    path.write_text(text.replace("    {\n", record + "\n    {\n", 1), "utf-8")
    return path


def test_a_record_is_completed_and_all_else_keeps_every_character(zoo, hub, tmp_path):
    """Size, digest, commit of the source, and on whose word; a second time there is nothing to do."""
    path = manifest(tmp_path)
    before = path.read_text("utf-8").splitlines()
    code, out, _ = zoo("pin", "caid-resnet50.drawn", "--manifest", path)
    assert code == 0
    after = path.read_text("utf-8").splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b.split(": ")[0].strip() for _, b in changed] == ['"sources"', '"bytes"', '"sha256"', '"sha256_note"']
    (record,) = (r for r in json.loads(path.read_text())["weights"] if r["tag"] == "drawn")
    assert record["sources"] == [f"hf://owner/name@{COMMIT}/w.safetensors"]
    assert (record["bytes"], record["sha256"]) == (len(DATA), sha256(DATA))
    assert "the first copy" not in record["sha256_note"]
    assert record["assets"]["list"] == {"sources": ["https://host/x"], "bytes": None, "sha256": None}
    assert sha256(DATA) in out
    assert "is complete" in zoo("pin", "caid-resnet50.drawn", "--manifest", path)[1]
    assert path.read_text("utf-8").splitlines() == after


def test_a_digest_on_record_must_hold(hub, tmp_path):
    """The manifest is untouched where the file is another."""
    path = manifest(tmp_path, COMMIT, sha256="0" * 64)
    before = path.read_bytes()
    with pytest.raises(Exception, match="states another file than the one on record"):
        pin_record("caid-resnet50.drawn", path)
    assert path.read_bytes() == before


def test_a_commit_must_have_the_file_that_was_fetched(hub, tmp_path):
    """The branch moved on since the file came into the cache; the hub says so, or says nothing of the file."""
    path = manifest(tmp_path)
    fetch(read_manifest(path)[0], request="caid-resnet50.drawn")
    for said in ({"X_Linked_Etag": f'"{"0" * 64}"'}, {}):
        moved = redirect("/cdn", X_Repo_Commit=COMMIT, **said)
        hub.answers |= {f"/owner/name/resolve/{r}/w.safetensors": [moved] for r in ("main", COMMIT)}
        before = path.read_bytes()
        with pytest.raises(OptionError, match=f"the one that was fetched has {sha256(DATA)}"):
            pin_record("caid-resnet50.drawn", path)
        assert path.read_bytes() == before


def test_a_record_that_is_laid_out_otherwise_is_left_as_it_is(hub, tmp_path):
    """All in one line: what to write is said."""
    path = manifest(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    before = path.read_bytes()
    with pytest.raises(OptionError, match=f'Write by hand: .*"sha256": "{sha256(DATA)}"'):
        pin_record("caid-resnet50.drawn", path)
    assert path.read_bytes() == before


def drawn(path):
    """The record that is pinned."""
    (record,) = (raw for raw in json.loads(path.read_text("utf-8"))["weights"] if raw["tag"] == "drawn")
    return record


def test_a_note_is_added_where_none_is_and_kept_where_one_is(hub, tmp_path):
    """A record without the line was refused, and what somebody had written of other copies was lost."""
    path = manifest(tmp_path, note=False)
    pin_record("caid-resnet50.drawn", path)
    assert drawn(path)["sha256_note"].startswith("of the file that hf://owner/name@main/w.safetensors gave on ")
    path = manifest(tmp_path, note=False, sha256_note="whether the copy elsewhere is the same is not known")
    pin_record("caid-resnet50.drawn", path)
    note = drawn(path)["sha256_note"]
    assert note.startswith("of the file that ")
    assert note.endswith("; before: whether the copy elsewhere is the same is not known")


@pytest.mark.parametrize("note", [True, False])
def test_line_ends_and_links_stay(hub, tmp_path, note):
    """Every line of the file changed, or two files where there was one."""
    path = manifest(tmp_path, note=note)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    link = tmp_path / "link.json"
    link.symlink_to(path.name)
    pin_record("caid-resnet50.drawn", link)
    assert link.is_symlink()
    content = path.read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")
    assert drawn(path)["sha256"] == sha256(DATA)


def test_a_source_that_does_not_answer_does_not_keep_the_others_from_being_pinned(zoo, hub, tmp_path):
    """It is named and left as it is; the command fails only where nothing could be checked."""
    path, dead = manifest(tmp_path), "hf://gone/away@main/w.safetensors"
    text = path.read_text("utf-8")
    path.write_text(text.replace('@main/w.safetensors"]', f'@main/w.safetensors", "{dead}"]'), "utf-8")
    before = path.read_bytes()
    code, out, _ = zoo("pin", "caid-resnet50.drawn", "--manifest", path)
    assert code == 0
    assert f"left as it is, for its host does not answer: {dead} (" in out
    assert drawn(path)["sources"] == [f"hf://owner/name@{COMMIT}/w.safetensors", dead]
    assert drawn(path)["sha256"] == sha256(DATA)
    path.write_bytes(before)
    hub.answers = {}
    code, _, err = zoo("pin", "caid-resnet50.drawn", "--manifest", path)
    assert code == 1
    assert "nothing can be checked: hf://owner/name@main/w.safetensors: " in err
    assert dead in err
    assert path.read_bytes() == before


def test_what_cannot_be_pinned_is_said(hub, tmp_path):
    """No tag, no such record, and a hub that does not name its commit."""
    path = manifest(tmp_path)
    with pytest.raises(OptionError, match=r"expected MODEL\.TAG"):
        pin_record("caid-resnet50", path)
    with pytest.raises(OptionError, match=r"no record of caid-resnet50\.other"):
        pin_record("caid-resnet50.other", path)
    hub.answers["/owner/name/resolve/main/w.safetensors"] = [redirect("/cdn")]
    with pytest.raises(OptionError, match="does not name the commit"):
        pin_record("caid-resnet50.drawn", path)
    hub.answers = {}
    with pytest.raises(DownloadError, match="HTTP 404"):
        pin_record("caid-resnet50.drawn", path, cache_dir=tmp_path / "new")


def test_info_says_who_stated_a_digest_that_no_record_has(zoo, hub, tmp_path, monkeypatch):
    """Once the file is here: the hub, or nobody."""
    for revision, said in ((COMMIT, "the sha256 that the hub states"), ("main", "nobody: it is the first copy's")):
        monkeypatch.setenv("ZOO_MANIFEST", str(manifest(tmp_path, revision, source=f"{hub.root}/cdn")))
        assert "pinned" not in json.loads(zoo("info", "caid-resnet50.drawn", "--json")[1])
        assert zoo("download", "caid-resnet50.drawn")[0] == 0
        monkeypatch.setenv("ZOO_OFFLINE", "1")
        facts = json.loads(zoo("info", "caid-resnet50.drawn", "--json")[1])
        assert facts["pinned"] == {"sha256": sha256(DATA), "proved_by": said}
        monkeypatch.delenv("ZOO_OFFLINE")


@pytest.mark.slow
def test_an_import_under_a_tag_must_have_the_digests_on_record(zoo, tmp_path, unet_file, unet_safetensors, monkeypatch):
    """A git blob proves it as the authors' where no sha256 is published; another file is refused."""
    known = digests_of(unet_file, ["git_blob"])
    path = packaged_copy(tmp_path, monkeypatch, chestxray14=known)
    code, out, _ = zoo("import", "caid-resnet50.chestxray14", unet_file)
    assert code == 0
    assert f"which has the git_blob {known['git_blob']} on record" in out
    code, _, err = zoo("import", "caid-resnet50.chestxray14", unet_safetensors)
    assert code == 2
    assert f"not {known['git_blob']}" in err
    assert path.is_file()


def packaged_copy(tmp_path, monkeypatch, **facts):
    """The packaged manifest with more facts in some of its records, in the place of the packaged one."""
    content = json.loads(packaged_manifest().read_text("utf-8"))
    for record in content["weights"]:
        record |= facts.get(record["tag"], {})
    path = tmp_path / "packaged.json"
    path.write_text(json.dumps(content))
    for module in ("zoo.manifest", "zoo.commands.import_rules"):
        monkeypatch.setattr(f"{module}.packaged_manifest", lambda: path)
    return path
