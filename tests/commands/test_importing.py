"""What `zoo import` keeps of the record of a tag, what the plain name stands for after it, and what a kill leaves."""

import hashlib
import json
import multiprocessing
import os
import signal

import pytest
import torch
from drasclr_files import NAME, filled_encoder, training_checkpoint, training_state
from safetensors.torch import save_file

import zoo
from zoo.commands.imported import lock_of, put_record
from zoo.commands.importing import import_weights
from zoo.commands.removing import remove_weights
from zoo.errors import CheckpointFormatError, CheckpointMismatchError, OfflineError, OptionError
from zoo.fetching.cache import hash_file
from zoo.fetching.download import fetch
from zoo.files import temporary_name, this_process, write_text
from zoo.manifest import find_asset, packaged_manifest, records, user_manifest
from zoo.record import RemoteFile
from zoo.registry import resolve
from zoo.settings import cache_home

pytestmark = pytest.mark.usefixtures("short_caid")

ENCODER = "caid-resnet50"
FULL = f"{NAME}.copdgene"


@pytest.fixture
def authors(saved):
    """A file in the form of the authors' DrasCLR checkpoint, of which no digest is published."""
    return saved(training_checkpoint(training_state(filled_encoder())))


@pytest.fixture(scope="module")
def classifier(short_caid, scratch):
    """CAiD's encoder with a head of three classes, as fine-tuning saves it."""
    model = zoo.load_model(f"{ENCODER}.chestxray14-800", num_classes=3)
    path = scratch / "classifier.pth"
    torch.save(model.state_dict(), path)
    return path


def published(model, tag):
    return next(r for r in records(model, imported=False) if r.tag == tag)


def test_a_path_that_is_no_file_is_called_what_it_is(tmp_path, monkeypatch):
    """A pipe and a device are there; of a folder the checkpoints in it are named, of a link where it leads."""
    monkeypatch.chdir(tmp_path)
    for name, kinds in {"folder": (), "run": ("safetensors",), "several": ("pt", "safetensors")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
        for kind in kinds:
            (torch.save if kind == "pt" else save_file)({"a": torch.ones(1)}, f"{name}/model.{kind}")
    os.mkfifo("pipe")
    for link, target in (("gone", "nowhere.pth"), ("self", "self"), ("annex", ".git/annex/objects/a/b/c.pth")):
        os.symlink(target, link)
    for name, said in {
        "absent": "absent does not exist",
        "folder": "folder is a folder, and one checkpoint is expected: there is none in it",
        "run": r"run is a folder, and one checkpoint is expected: give .*/run/model\.safetensors$",
        "several": "give one of model.pt, model.safetensors in it",
        "pipe": "pipe is not a checkpoint that can be read: pipe",
        "gone": "gone is a link to nowhere.pth, where there is no file",
        "self": "self is a link to self, where there is no file",
        "annex": "annex is a git-annex pointer",
    }.items():
        with pytest.raises(CheckpointFormatError, match=said):
            import_weights(ENCODER, name)


@pytest.mark.slow
def test_a_file_of_a_tag_on_record_keeps_what_is_known_of_it(authors):
    """Licences, citation, assets, authors of the record; that the digest is on the user's word is said everywhere."""
    record = import_weights(FULL, authors)
    ours = published(NAME, "copdgene")
    assert (record.trained_by, record.licences, record.citation) == ("authors", ours.licences, ours.citation)
    assert {n: a.sha256 for n, a in record.assets.items()} == {n: a.sha256 for n, a in ours.assets.items()}
    assert (record.input, record.options, record.fingerprint) == (ours.input, ours.options, ours.fingerprint)
    assert "on the word of the user" in record.sha256_note
    assert zoo.model_info(FULL).sha256_note == record.sha256_note
    report = zoo.load_report(zoo.load_model(NAME, offline=True))
    assert (report.tag, report.trained_by, report.sha256) == ("copdgene", "authors", hash_file(authors))
    assert record.sha256_note in str(report)


def test_the_advice_is_to_import_under_the_tag_on_record():
    """Also to those who asked by the plain name: without the tag the file would lose all that is known of it."""
    with pytest.raises(OfflineError, match=f"`zoo import {FULL} FILE`"):
        zoo.load_model(NAME, offline=True)


@pytest.mark.slow
def test_another_file_of_an_unpublished_digest_is_refused_once_one_is_kept(authors, saved):
    """The first that was imported, or downloaded, counts until the user takes it back."""
    first = import_weights(FULL, authors)
    other = saved(training_checkpoint(training_state(filled_encoder(seed=1))))
    with pytest.raises(OptionError, match=rf"{first.sha256}.*`zoo remove {FULL}`"):
        import_weights(FULL, other)
    remove_weights(FULL)
    assert import_weights(FULL, other).sha256 == hash_file(other)


@pytest.mark.slow
def test_a_file_of_other_names_is_not_what_is_on_record(classifier):
    """A fine-tuned network loads, but cannot be the authors' file."""
    with pytest.raises(CheckpointMismatchError, match=f"the file loads, but is not {ENCODER}.chestxray14"):
        import_weights(f"{ENCODER}.chestxray14", classifier)
    assert not user_manifest().exists()


@pytest.mark.slow
def test_a_file_under_any_other_tag_is_the_users(authors):
    """Even the very file that stands for the authors' under their tag."""
    import_weights(FULL, authors)
    record = import_weights(f"{NAME}.mine", authors)
    assert (record.trained_by, record.sha256_note, dict(record.assets)) == ("user", "", {})


def test_a_record_that_lists_no_assets_does_not_hide_them(authors):
    """As those that 0.1.0 wrote: the landmarks are those of the record that ships."""
    write_text(
        user_manifest(),
        json.dumps(
            {
                "schema": 1,
                "weights": [
                    {
                        **{"tag": "copdgene", "models": [NAME], "state": "hosted", "trained_by": "user"},
                        **{"sources": [f"file:{authors}"], "bytes": authors.stat().st_size},
                        "sha256": hash_file(authors),
                    }
                ],
            }
        ),
    )
    assert resolve(NAME).weights.trained_by == "user"
    assert find_asset(NAME, "landmarks").bytes == 14072


@pytest.mark.slow
def test_assets_that_lie_beside_the_file_come_with_it(authors, tmp_path, monkeypatch, caplog):
    """Without a connection: a right one is taken, a wrong one and a missing one are named with the way to get them."""
    content = b"\x93NUMPY landmarks"
    (tmp_path / "atlas_patch_loc.npy").write_bytes(content)
    shipped = json.loads(packaged_manifest().read_text("utf-8"))
    (raw,) = (r for r in shipped["weights"] if r["tag"] == "copdgene")
    raw["assets"]["landmarks"] |= {"bytes": len(content), "sha256": hash_file(tmp_path / "atlas_patch_loc.npy")}
    (tmp_path / "shipped.json").write_text(json.dumps(shipped))
    for module in ("manifest", "commands.import_rules"):
        monkeypatch.setattr(f"zoo.{module}.packaged_manifest", lambda: tmp_path / "shipped.json")
    import_weights(FULL, authors)
    assert (cache_home() / "files" / raw["assets"]["landmarks"]["sha256"]).read_bytes() == content
    assert "lung_mask" in caplog.text
    assert f"zoo download {FULL}" in caplog.text
    assert "landmarks" not in caplog.text


@pytest.mark.slow
def test_a_task_head_never_becomes_an_encoders_default(classifier, short_file):
    """A second fine-tuning run would start from the classes and the test patients of the first."""
    import_weights(f"{ENCODER}.tuned", classifier)
    assert resolve(ENCODER).weights.tag == "chestxray14-800"
    with pytest.raises(OptionError, match="a task head of 3 outputs"):
        import_weights(f"{ENCODER}.tuned", classifier, default=True)
    assert resolve(ENCODER).weights.tag == "chestxray14-800"
    import_weights(f"{ENCODER}.mine", short_file, default=True)
    assert resolve(ENCODER).weights.tag == "mine"
    with pytest.raises(OptionError, match="a task head of 3 outputs"):
        import_weights(f"{ENCODER}.mine", classifier)


@pytest.mark.slow
def test_an_import_again_keeps_or_changes_what_was_said_of_the_file(short_file, unet_file):
    """`--size` counts on a file that is known; without it the size of before stays, and so does the plain name."""
    import_weights(f"{ENCODER}.mine", short_file, default=True)
    import_weights(f"{ENCODER}.mine", short_file, size=64)
    assert zoo.load_transform(f"{ENCODER}.mine").preprocessing.size == (64, 64)
    assert import_weights(f"{ENCODER}.mine", short_file).input["size"] == [64, 64]
    assert resolve(ENCODER).weights.tag == "mine"
    import_weights(f"{ENCODER}.other", unet_file, default=True)
    import_weights(f"{ENCODER}.mine", short_file, size=96)
    assert resolve(ENCODER).weights.tag == "other"
    assert import_weights(f"{ENCODER}.chestxray14", unet_file, size=96).input["size"] == [96, 96]


def test_an_import_that_is_refused_leaves_nothing(short_file, classifier):
    """Neither a record nor a copy that no record stands for."""
    for wrong in ({"size": 0}, {"default": True}):
        with pytest.raises(OptionError):
            import_weights(f"{ENCODER}.mine", classifier, **wrong)
    assert not [path for path in cache_home().rglob("*") if path.is_file()]


def test_a_tag_of_a_further_manifest_is_not_taken_over(short_file, tmp_path, monkeypatch):
    """Its record comes first, so that an import would be reported and never loaded."""
    record = {"tag": "house", "models": [ENCODER], "state": "hosted", "sources": ["file:w"], "bytes": None}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record | {"sha256": None}]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    with pytest.raises(OptionError, match="on record in ZOO_MANIFEST"):
        import_weights(f"{ENCODER}.house", short_file)


@pytest.mark.slow
def test_many_imports_at_once_lose_no_record(tmp_path):
    """Each process reads, adds its own and writes; and one that was killed within does not stop the others."""
    cache_home().mkdir()
    lock = lock_of(user_manifest())
    dead = fork(lambda: (lock.write_text(f"{this_process()} {'0' * 16}"), os.kill(os.getpid(), signal.SIGKILL)))
    dead.join(60)
    assert lock.exists()

    def add(number):
        for i in range(5):
            facts = {"state": "hosted", "sources": ["file:w"], "bytes": 1, "sha256": "0" * 64}
            put_record({"tag": f"t{number}-{i}", "models": [ENCODER], **facts}, first=True)

    processes = [fork(add, number) for number in range(8)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    tags = {r.tag for r in records(ENCODER)} - {r.tag for r in records(ENCODER, imported=False)}
    assert tags == {f"t{number}-{i}" for number in range(8) for i in range(5)}
    assert [path.name for path in cache_home().iterdir()] == ["manifest.json"]


def fork(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def import_again(file):
    import_weights(f"{ENCODER}.mine", file)


def fetch_another(file):
    (file.parent / "other").write_bytes(b"other")
    fetch(RemoteFile((f"file:{file.parent}/other",), 5, hashlib.sha256(b"other").hexdigest()), request="other")


def convert_another(file):
    zoo.load_model(f"{ENCODER}.chestxray14-800")


def download_what_is_there(file):
    zoo.download_weights(f"{ENCODER}.chestxray14-800")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["zoo.fetching.download.copy_file", "zoo.locate.export_safetensors"])
@pytest.mark.parametrize("then", [import_again, convert_another, download_what_is_there, fetch_another])
def test_what_a_killed_import_left_is_cleared_by_what_is_next(step, then, short_file, monkeypatch):
    """Of the copy and of the conversion, which are as long as the file; a fetch clears the folder that it writes to."""

    def killed(*arguments, **named):
        if step.endswith("copy_file"):
            arguments[1].write(b"half")
            arguments[1]._file.flush()
        else:
            temporary_name(arguments[1]).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def child():
        with monkeypatch.context() as patch:
            patch.setattr(step, killed)
            import_weights(f"{ENCODER}.mine", short_file)
            zoo.load_model(f"{ENCODER}.mine")

    process = fork(child)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in cache_home().rglob("*") if path.is_file() and path.read_bytes() == b"half"]
    assert len(left) == 1
    then(short_file)
    assert left[0].exists() == (then is fetch_another and left[0].parent.name == "converted")
