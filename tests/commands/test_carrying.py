"""Weights go to a machine without connections: `zoo manifest`, mirrors, `zoo import FOLDER`, `zoo doctor --offline`."""

import csv
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from servers import Server, status, whole

import zoo as package
from zoo.commands.addresses import FOLDER, list_addresses
from zoo.errors import OfflineError
from zoo.fetching.cache import file_path, hash_file
from zoo.manifest import find_asset, published_records
from zoo.record import RemoteFile

MODEL = "glcl-encoder"
HOUSE, SECOND = f"{MODEL}.house", f"{MODEL}.second"
ASSET = b"where each patch lies\n" * 50


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of random weights of GLCL's encoder, `house` and `second`."""
    made = {}
    for seed, name in enumerate(("house", "second")):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp(name) / "weights.safetensors"
        save_file(package.load_model(MODEL, pretrained=False).state_dict(), path)
        made[name] = path.read_bytes()
        path.unlink()
    return made


@pytest.fixture
def on_record(files, tmp_path, monkeypatch):
    """An in-house manifest: weights with a sha256, and an asset with an md5; weights with the id of a git blob alone.

    Returns a function that writes it for some address.
    """
    path = tmp_path / "house.json"
    monkeypatch.setenv("ZOO_MANIFEST", str(path))

    def write(root="http://127.0.0.1:9"):
        house, second = files["house"], files["second"]
        asset = {"sources": [f"{root}/patches.txt"], "bytes": None, "sha256": None, "md5": md5(ASSET)}
        common = {"models": [MODEL], "state": "hosted", "default": False}
        one = {"sources": [f"{root}/gone", f"{root}/house.safetensors"], "bytes": len(house), "sha256": digest(house)}
        two = {"sources": [f"{root}/second.safetensors"], "bytes": None, "sha256": None, "git_blob": git_blob(second)}
        weights = [{"tag": "house", **one, "assets": {"patches": asset}}, {"tag": "second", **two}]
        path.write_text(json.dumps({"schema": 1, "weights": [common | record for record in weights]}))

    write()
    return write


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def no_sockets(monkeypatch):
    """A machine without a network: whoever opens a socket fails."""

    def refuse(*args, **options):
        raise AssertionError("a socket was opened")

    closed = type("Closed", (socket.socket,), {"__init__": refuse})  # a class: libraries derive from it
    for name, value in {"socket": closed, "create_connection": refuse, "getaddrinfo": refuse}.items():
        monkeypatch.setattr(socket, name, value)
    monkeypatch.setenv("ZOO_OFFLINE", "1")


def carried(zoo, files, folder):
    """A folder as `zoo manifest` asks for it, filled by somebody who has the files."""
    folder.mkdir()
    for each in json.loads(zoo("manifest", HOUSE, SECOND)[1]):
        tag = each["names"][0].partition(".")[2]
        (folder / Path(each["destination"]).name).write_bytes(ASSET if each["what"] == "patches" else files[tag])
    return folder


def load_both(files):
    """Load both weights and the asset, and hold them against the files."""
    for name, data in zip((HOUSE, SECOND), (files["house"], files["second"]), strict=True):
        report = package.load_report(package.load_model(name))
        assert (report.sha256, len(report.fresh)) == (digest(data), 0)
        assert package.download_weights(name).read_bytes() == data
    assert file_path(find_asset(MODEL, "patches")).read_bytes() == ASSET


# --- from one machine to another --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["mirror", "import", "cache"])
def test_weights_are_carried_without_a_socket(way, files, on_record, no_sockets, tmp_path, monkeypatch, zoo):
    """By a folder that ZOO_MIRROR names, by `zoo import` of that folder, and by a copy of the cache."""
    folder = carried(zoo, files, tmp_path / "stick")
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "other-machine"))
    code, out, _ = zoo("doctor", "--offline", HOUSE, SECOND)
    assert code == 1
    assert f"missing: 3 file(s), {len(files['house']) / 1e6:.2f} MB and 2 file(s) whose size is not published" in out
    with pytest.raises(OfflineError):
        package.load_model(HOUSE)
    if way == "mirror":
        monkeypatch.setenv("ZOO_MIRROR", str(folder))
    elif way == "import":
        code, out, err = zoo("import", folder)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["taken"] * 3
        shutil.rmtree(folder)
    else:
        monkeypatch.setenv("ZOO_MIRROR", str(folder))
        load_both(files)
        monkeypatch.delenv("ZOO_MIRROR")
        shutil.copytree(tmp_path / "other-machine", tmp_path / "third-machine")
        monkeypatch.setenv("ZOO_HOME", str(tmp_path / "third-machine"))
        shutil.rmtree(tmp_path / "other-machine")
    code, out, _ = zoo("doctor", "--offline", HOUSE, SECOND)
    assert code == 0, out
    load_both(files)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("sha256sum")), reason="curl or sha256sum is missing")
def test_the_curl_commands_fill_such_a_folder(files, on_record, tmp_path, zoo):
    """From the second address where the first has nothing; once more nothing is fetched; `sha256sum -c` agrees."""
    answers = {"/patches.txt": whole(ASSET)}
    answers |= {f"/{name}.safetensors": whole(data) for name, data in files.items()}
    with Server(answers) as server:
        on_record(server.root)
        script = zoo("manifest", HOUSE, SECOND, "--as", "curl")[1]
        for _ in range(2):
            done = subprocess.run(["sh"], input=script, text=True, cwd=tmp_path, capture_output=True)
            assert done.returncode == 0, done.stderr
        assert len(server.requests) == 4
        server.answers["/house.safetensors"] = [status(500)]
    (tmp_path / FOLDER / digest(files["house"])).unlink()
    done = subprocess.run(["sh"], input=script.replace("--retry 5", ""), text=True, cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    (tmp_path / FOLDER / digest(files["house"])).write_bytes(files["house"])
    code, lines, err = zoo("manifest", HOUSE, SECOND, "--as", "sha256sum")
    checked = subprocess.run(["sha256sum", "-c"], input=lines, text=True, cwd=tmp_path / FOLDER, capture_output=True)
    assert (code, checked.returncode, checked.stdout) == (0, 0, f"{digest(files['house'])}: OK\n")
    assert err.count("no sha256 is published") == 2
    assert zoo("import", tmp_path / FOLDER)[0] == 0


# --- zoo manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_has_every_file_on_record_once(zoo):
    """With an address that any client can open, or the reason why there is none: unpublished, gated, packaged."""
    rows = json.loads(zoo("manifest")[1])
    models = set(package.list_models())
    expected = {f"{m}.{r.tag}" for r in published_records() for m in r.models if m in models}
    assert {name for row in rows for name in row["names"] if row["what"] == "weights"} == expected
    paths = [row["destination"] for row in rows if row["destination"]]
    assert len(paths) == len(set(paths))
    for row in rows:
        assert bool(row["addresses"]) or row["note"]
        assert all(address.startswith("https://") for address in row["addresses"])
    said = {name: row for row in rows for name in row["names"] if row["what"] == "weights"}
    assert said["brainiac-resnet50.v1"]["addresses"] == []
    assert "owners gave access" in said["brainiac-resnet50.v1"]["note"]
    assert "withdrawn" in said["monai-ssl-unetr.tcia-covid19"]["note"]
    assert "no file is on record" in said["glcl-encoder.acdc"]["note"]
    assert said["glcl-unet.phantom"]["note"] == "it comes with the package"
    assert "by `zoo import yaware-densenet121.bhb10k FILE`" in said["yaware-densenet121.bhb10k"]["note"]
    assert said["genesis-encoder.transvw"]["addresses"][0] == (
        "https://zenodo.org/records/4625321/files/TransVW_chest_ct.pt?download=1"
    )
    (asset,) = (row for row in rows if row["what"] == "landmarks")
    assert asset["names"] == ["drasclr-cnn3d.copdgene"]


def test_withdrawn_weights_are_tried_where_their_tag_is_named():
    """And a name without a tag stands for what it loads."""
    named, _ = list_addresses(["monai-ssl-unetr.tcia-covid19"])
    assert len(named.addresses) == 1
    plain, _ = list_addresses(["monai-ssl-unetr"])
    assert (plain.addresses, plain.note) == (
        (),
        "monai-ssl-unetr loads nothing without a tag: name monai-ssl-unetr.tcia-covid19",
    )
    assert [each.names for each in list_addresses(["genesis-encoder"])] == [("genesis-encoder.chest-ct",)]


def test_an_import_is_known_to_its_own_machine_alone(files, tmp_path, zoo):
    """It is no file to fetch elsewhere; here it loads without connections."""
    (tmp_path / "own.safetensors").write_bytes(files["house"])
    assert zoo("import", f"{MODEL}.mine", tmp_path / "own.safetensors")[0] == 0
    (named,) = list_addresses([f"{MODEL}.mine"])
    assert (named.addresses, "imported on this machine alone" in named.note) == ((), True)
    assert f"{MODEL}.mine" not in {name for each in list_addresses() for name in each.names}
    assert zoo("doctor", "--offline", f"{MODEL}.mine", f"{MODEL}.mine")[0] == 0


@pytest.mark.slow
def test_the_forms_say_the_same(zoo, tmp_path):
    """CSV has the fields of JSON; in a script each file is one command or one comment, and a shell reads all of it."""
    rows = json.loads(zoo("manifest", "--as", "json")[1])
    cells = list(csv.DictReader(io.StringIO(zoo("manifest", "--as", "csv")[1])))
    assert [(c["names"].split(), c["addresses"].split(), c["sha256"]) for c in cells] == [
        (r["names"], r["addresses"], r["sha256"] or "") for r in rows
    ]
    script = zoo("manifest", "--as", "curl")[1]
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert sum(line.startswith("get ") for line in script.splitlines()) == sum(bool(r["addresses"]) for r in rows)
    assert "# glcl-encoder.acdc: weights, no file" in script
    _, lines, err = zoo("manifest", "--as", "sha256sum")
    assert len(lines.splitlines()) + len(err.splitlines()) == len(rows)
    assert zoo("manifest", "--as", "xml")[0] == 2


def test_nothing_that_a_manifest_says_is_run(zoo, tmp_path, monkeypatch):
    """A name or note with a line end stays in its comment, an address in its quotes."""
    source = "https://127.0.0.1/a;touch$IFS'pwned'"
    record = {"tag": "x\ntouch pwned #", "models": [MODEL], "state": "hosted", "sources": [source], "bytes": 1}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record | {"sha256": "0" * 64}]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    script = zoo("manifest", "--as", "curl")[1].replace("curl --fail", "true")
    subprocess.run(["sh"], input=script, text=True, cwd=tmp_path, capture_output=True)
    assert script.count("pwned") == 3  # tag, name of the file, address
    assert not list(tmp_path.glob("*pwned*"))


def test_a_policy_holds_for_what_is_carried(zoo, monkeypatch):
    """What `zoo download` would refuse has no address."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    said = {name: row for row in json.loads(zoo("manifest")[1]) for name in row["names"]}
    assert said["voco-swinvit-b.ssl"]["addresses"] == []
    assert "refused by ZOO_POLICY=commercial" in said["voco-swinvit-b.ssl"]["note"]
    assert said["anatomix-unet.anatomix"]["addresses"]


# --- zoo import FOLDER ------------------------------------------------------------------------------------------------


def verdicts(out, folder):
    """First words of the lines, by the names of the files."""
    return {line.split(str(folder) + "/")[1].split()[0]: line.split("  ")[0] for line in out.splitlines()}


def test_names_play_no_part(files, on_record, tmp_path, zoo):
    """Files are known by sha256, md5 or git blob, in folders below too; what is not known stays where it is."""
    folder = tmp_path / "downloads"
    (folder / "below").mkdir(parents=True)
    (folder / "model (1).bin").write_bytes(files["house"])
    (folder / "below" / "x").write_bytes(files["second"])
    (folder / "asset").write_bytes(ASSET)
    (folder / "letter.txt").write_text("dear")
    code, out, _ = zoo("import", folder)
    assert code == 0
    assert f"{MODEL}.house: patches" in out
    expected = {"model": "taken", "below/x": "taken", "asset": "taken", "letter.txt": "not known"}
    assert verdicts(out, folder) == expected
    assert zoo("doctor", "--offline", HOUSE, SECOND)[0] == 0
    code, out, _ = zoo("import", folder)
    assert code == 0
    assert set(verdicts(out, folder).values()) == {"here already", "not known"}


def test_damage_is_told_from_strangers(files, on_record, tmp_path, zoo):
    """The size of a record with another digest, or a digest for a name: exit code 1, and the rest is taken."""
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "flipped").write_bytes(files["house"][:-1] + b"\0")
    (folder / digest(files["house"])).write_bytes(files["house"][:1000])
    (folder / "asset").write_bytes(ASSET)
    code, out, err = zoo("import", folder)
    assert code == 1
    assert verdicts(out, folder) == {"flipped": "DAMAGED", digest(files["house"]): "DAMAGED", "asset": "taken"}
    assert f"its sha256 is {digest(files['house'][:-1] + bytes(1))}, not {digest(files['house'])}" in out
    assert f"which has {len(files['house']):,} bytes, not 1,000" in out
    assert "2 file(s) are damaged" in err
    assert not file_path(next(r for r in published_records() if r.tag == "house")).exists()


def test_a_folder_of_strangers_is_an_error(on_record, tmp_path, zoo):
    """Where nothing is known, where there is nothing, and where nobody has published a digest to know it by."""
    folder = tmp_path / "stick"
    folder.mkdir()
    assert zoo("import", folder)[0] == 1
    (folder / "model_swinvit.pt").write_bytes(b"perhaps the weights")
    code, out, err = zoo("import", folder)
    assert code == 1
    assert "perhaps monai-ssl-swinunetr.ct5050" in out
    assert "`zoo import monai-ssl-swinunetr.ct5050 FILE` takes it" in out
    assert "no record has the digest" in err
    assert zoo("import", folder, "--default")[0] == 2
    assert zoo("import", tmp_path / "nowhere")[0] == 2


# --- zoo doctor --offline ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_cannot_be_fetched_is_missed_where_it_is_named(zoo, monkeypatch):
    """Of all weights it is not: nobody could bring it. What ZOO_POLICY refuses does not load, though it is here."""
    rows = json.loads(zoo("doctor", "--offline", "--json")[1])
    assert not any(row["is_missing"] for row in rows if "glcl-encoder.acdc" in row["names"])
    assert zoo("doctor", "--offline", "glcl-encoder.acdc")[0] == 1
    assert zoo("doctor", "--offline", "glcl-encoder.phantom", "caid-resnet50")[0] == 0
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    assert zoo("doctor", "--offline", "glcl-encoder.phantom")[0] == 0
    code, out, _ = zoo("doctor", "--offline", "caid-resnet50")
    assert code == 1
    assert "CANNOT BE LOADED: refused by ZOO_POLICY=commercial" in out


def test_a_damaged_file_is_missing(files, on_record, tmp_path, monkeypatch, zoo):
    """In the cache and in a mirror alike: being there is not enough."""
    path = file_path(next(r for r in published_records() if r.tag == "house"))
    path.parent.mkdir(parents=True)
    path.write_bytes(files["house"][:-1] + b"\0")
    monkeypatch.setenv("ZOO_MIRROR", str(path.parent))
    row = next(row for row in json.loads(zoo("doctor", "--offline", HOUSE, "--json")[1]) if row["what"] == "weights")
    assert (row["here"], row["is_missing"], row["bytes"]) == (False, True, len(files["house"]))
    path.write_bytes(files["house"])
    row = next(row for row in json.loads(zoo("doctor", "--offline", HOUSE, "--json")[1]) if row["what"] == "weights")
    assert row["here"]
    assert hash_file(path) == digest(files["house"])


def test_offline_goes_with_names_alone(zoo, tmp_path):
    """An image, or --online, beside it is wrong use; so are two images."""
    assert zoo("doctor", "--offline", "--online")[0] == 2
    assert zoo("doctor", "--offline", "--for", MODEL)[0] == 2
    assert zoo("doctor", "--offline", "no-such-model")[0] == 2
    assert zoo("doctor", tmp_path, tmp_path)[0] == 2


# --- lists of training images -----------------------------------------------------------------------------------------

LIST = b"00000001_000.png\n00000002_000.png\n"


@pytest.fixture
def listed(on_record, tmp_path):
    """The record `house` with a list of its training images, of one name a line."""
    path = tmp_path / "house.json"
    house = json.loads(path.read_text())
    cohorts = [{"name": "films", "rules": [r"(?P<image>(?P<patient>\d{8})_\d{3})"], "images": 2}]
    source = {"sources": ["http://127.0.0.1:9/train.txt"], "bytes": len(LIST), "sha256": digest(LIST)}
    house["weights"][0]["training_ids"] = {**source, "cohorts": cohorts}
    path.write_text(json.dumps(house))


@pytest.mark.slow
def test_training_lists_are_carried_too(files, listed, no_sockets, tmp_path, monkeypatch, zoo):
    """A machine without connections could not say what the weights have seen."""
    ids = tmp_path / "ids.txt"
    ids.write_text("00000001_000.png\n00000003_000.png\n")
    (row,) = (each for each in json.loads(zoo("manifest", HOUSE)[1]) if each["what"] == "training list")
    assert (row["names"], row["sha256"], row["destination"]) == ([HOUSE], digest(LIST), f"files/{digest(LIST)}")
    assert f"{HOUSE}: training list" in zoo("manifest", HOUSE, "--as", "curl")[1]
    assert f"{digest(LIST)}  " in zoo("manifest", HOUSE, "--as", "sha256sum")[1]
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "other-machine"))
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "weights").write_bytes(files["house"])
    (stick / "patches").write_bytes(ASSET)
    assert zoo("import", stick)[0] == 0
    code, out, _ = zoo("doctor", "--offline", HOUSE)
    assert code == 0, "the weights load without their list"
    assert "training list, train.txt" in out
    assert "no: only `zoo overlap` and `zoo probe` look cases up in it" in out
    assert zoo("overlap", ids, "--for", HOUSE)[0] == 1
    (stick / "train").write_bytes(LIST)
    assert f"{HOUSE}: training list" in zoo("import", stick)[1]
    rows = json.loads(zoo("doctor", "--offline", HOUSE, "--json")[1])
    assert {row["what"]: row["here"] for row in rows} == {"weights": True, "patches": True, "training list": True}
    code, out, _ = zoo("overlap", ids, "--for", HOUSE)
    assert f"{HOUSE} saw 1 of the 2 ids in training" in out


@pytest.mark.slow
def test_a_damaged_list_is_told(listed, tmp_path, zoo):
    """By `zoo verify` and `zoo doctor`, as of weights: it would call seen cases unseen."""
    path = tmp_path / "list"
    path.write_bytes(LIST)
    stick = tmp_path / "stick"
    stick.mkdir()
    path.rename(stick / "train.txt")
    assert zoo("import", stick)[0] == 0
    assert zoo("verify", HOUSE)[0] == 0
    file_path(RemoteFile(("x",), None, digest(LIST), base=tmp_path)).write_bytes(LIST[:-4] + b"xxx\n")
    code, out, _ = zoo("verify", HOUSE)
    assert code == 1
    assert f"{HOUSE}  train.txt  BAD" in out
    assert re.search(rf"PROBLEM +{HOUSE} ", zoo("doctor")[1])


def test_a_list_without_a_digest_says_where_it_goes(zoo):
    """`zoo import` proves by digests and would call it unknown; by its name in the cache it is found."""
    (row,) = (each for each in json.loads(zoo("manifest", "rad-dino-vitb14")[1]) if each["what"] == "training list")
    assert row["note"] == f"nobody has published a digest: copy it to {row['destination']} in $ZOO_HOME"


@pytest.mark.slow
@pytest.mark.parametrize("said", [{"cohorts": ["films"]}, {"cohorts": 5}, {"cohorts": [], "ids": 5}])
def test_a_record_whose_training_images_are_misspelt_is_named(on_record, no_sockets, tmp_path, zoo, said):
    """One such record in a manifest of one's own ended `zoo doctor` without a single check, and `zoo verify`."""
    path = tmp_path / "house.json"
    house = json.loads(path.read_text())
    house["weights"][0]["training_ids"] = said
    path.write_text(json.dumps(house))
    code, out, _ = zoo("doctor")
    rows = {line.split()[1]: line.split()[0] for line in out.splitlines()[1:] if line.startswith(("ok", "PROBLEM"))}
    assert (code, rows[HOUSE], rows["torch"]) == (1, "PROBLEM", "ok")
    code, out, error = zoo("verify", HOUSE, "caid-resnet50.chestxray14-800")
    assert code == 1
    assert HOUSE in error
    assert "caid-resnet50.chestxray14-800" in out
    (stick := tmp_path / "stick").mkdir()
    (stick / "file").touch()
    for command in (("manifest",), ("manifest", HOUSE), ("import", stick)):
        code, _, error = zoo(*command)
        assert code
        assert f"{HOUSE}: training_ids of record" in error
