"""The `zoo` command: what it prints, its exit codes, and that the light commands stay light."""

import hashlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from texts import one_line

from zoo.cli import main
from zoo.messages import decimal


@pytest.fixture
def in_house(tmp_path, monkeypatch):
    """A manifest of one small file, by ZOO_MANIFEST; returns the file."""
    file = tmp_path / "in-house.bin"
    file.write_bytes(b"\x80weights that only download and verify look at" * 100)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {"sources": [f"file:{file.name}"], "bytes": file.stat().st_size, "sha256": digest}
    record = {"tag": "in-house", "models": ["caid-resnet50"], "state": "hosted", **facts}
    manifest = tmp_path / "in-house.json"
    manifest.write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(manifest))
    return file


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def test_list_shows_every_model_and_tag(zoo):
    """`zoo list` has a line for each model and its weights, `--json` the same for programs."""
    code, out, _ = zoo("list")
    assert code == 0
    assert "caid-resnet50-unet" in out
    assert "no file" in out
    rows = json.loads(zoo("list", "caid-resnet50", "--json")[1])
    assert {row["name"] for row in rows} == {"caid-resnet50"}
    assert "chestxray14" in {row["tag"] for row in rows}


def test_list_with_a_pattern_that_matches_nothing(zoo):
    """A pattern without a match is wrong use, not an empty table."""
    code, _, err = zoo("list", "vgg*")
    assert code == 2
    assert "'vgg*'" in err
    assert one_line(err)


def test_info_tells_licence_state_and_input(zoo):
    """`zoo info` prints what a user must know before using weights."""
    code, out, _ = zoo("info", "caid-resnet50.chestxray14")
    assert code == 0
    for part in ("ASU", "not-published", "MIDL 2022", "size: 224, 224", "  commercial: no"):
        assert part in out
    facts = json.loads(zoo("info", "caid-resnet50.chestxray14", "--json")[1])
    assert facts["trained_by"] == "authors"
    assert facts["input"]["size"] == [224, 224]


def test_info_names_the_files_that_belong_to_weights(zoo):
    """Landmarks and the like, which `zoo download` fetches too, with their digests."""
    _, out, _ = zoo("info", "drasclr-cnn3d.copdgene")
    facts = json.loads(zoo("info", "drasclr-cnn3d.copdgene", "--json")[1])["assets"]
    assert set(facts) == {"landmarks", "lung_mask"}
    assert facts["landmarks"]["bytes"] == 14072
    for part in ("landmarks:", "lung_mask:", facts["landmarks"]["sha256"], *facts["lung_mask"]["sources"]):
        assert part in out
    assert json.loads(zoo("info", "caid-resnet50", "--json")[1])["assets"] == {}


def test_info_says_that_percentiles_do_not_clip(zoo):
    """Their range is where they come to lie; that of others, as y-Aware's maps, is what the network has seen."""
    assert "value_range: 0 and 1 at percentiles 1 and 99, not clipped" in zoo("info", "glcl-unet")[1]
    assert json.loads(zoo("info", "glcl-unet", "--json")[1])["input"]["value_range"] == [0.0, 1.0]
    assert "value_range: 0.0, 3.0" in zoo("info", "yaware-densenet121")[1]


def test_info_of_a_family_lists_its_models(zoo):
    """With the underscore of the folder or the dash of the names."""
    code, out, _ = zoo("info", "caid")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"caid-resnet50", "caid-resnet50-unet"}


@pytest.mark.parametrize(
    "wrong", [("info", "caid-resnet5"), ("download", "caid-resnet50.nonsense"), ("verify", "nonsense")]
)
def test_unknown_names_are_wrong_use(zoo, wrong):
    """An unknown model or tag: exit code 2, one line that repeats the name."""
    code, _, err = zoo(*wrong)
    assert code == 2
    assert wrong[1].split(".")[-1] in err
    assert one_line(err)


def test_wrong_flags_are_wrong_use(zoo):
    """An unknown command or flag: exit code 2 and the usage."""
    assert zoo("frobnicate")[0] == 2
    code, _, err = zoo("list", "--frobnicate")
    assert code == 2
    assert "--frobnicate" in err


def test_download_of_unpublished_weights_says_the_ways_out(zoo):
    """What cannot be downloaded fails with exit code 1 and says what to do instead."""
    code, _, err = zoo("download", "caid-resnet50.chestxray14")
    assert code == 1
    assert "zoo import" in err
    assert "checkpoint=" in err
    assert one_line(err)


def test_download_then_verify_then_damage(zoo, in_house):
    """A downloaded file verifies; with one bit flipped `verify` names it, and the next download replaces it."""
    name = "caid-resnet50.in-house"
    code, out, _ = zoo("download", name)
    assert code == 0
    path = out.split()[-1]
    assert zoo("verify", name)[0] == 0
    damaged = bytearray(in_house.read_bytes())
    damaged[17] ^= 1
    with open(path, "wb") as file:
        file.write(damaged)
    code, out, err = zoo("verify", name)
    assert code == 1
    assert "BAD" in out
    assert err.startswith("zoo: 1 file(s) were not verified: ")
    assert path in err
    assert zoo("download", name)[0] == 0
    assert Path(path).read_bytes() == in_house.read_bytes()
    assert zoo("verify", name)[0] == 0


def test_download_goes_on_after_a_failure(zoo, in_house):
    """Of several names the others are fetched; the failed ones are named at the end, with exit code 1."""
    names = ("caid-resnet50.chestxray14", "caid-resnet50.in-house", "caid-resnet50.nonsense")
    code, out, err = zoo("download", *names)
    assert code == 1
    assert Path(out.split()[-1]).read_bytes() == in_house.read_bytes()
    assert "zoo import" in err
    assert err.splitlines()[-1] == f"zoo: 2 of 3 were not downloaded: {names[0]}; {names[2]}"


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "absent.pt"),
        ("import", "caid-resnet50", "absent.pt"),
        ("export", "caid-resnet50", "out.safetensors", "--checkpoint", "absent.pt"),
        ("embed", "caid-resnet50", "absent.pt", "-o", "out.npz"),
        ("doctor", "absent.pt", "--for", "caid-resnet50"),
        ("demo", "absent.pt"),
    ],
)
def test_a_missing_file_has_one_exit_code(zoo, command, tmp_path, monkeypatch):
    """Whichever command is given it, and the file is named."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo(*command)
    assert code == 1
    assert "absent.pt" in err
    assert one_line(err)


def test_inspect_says_that_a_file_holds_features(zoo, tmp_path):
    """`.npz` is a zip archive as PyTorch's files are, and no damaged one of these."""
    import numpy as np

    np.savez(tmp_path / "features.npz", features=np.zeros((2, 3), np.float32), paths=np.array(["a", "b"]))
    code, out, _ = zoo("inspect", tmp_path / "features.npz")
    assert code == 1
    assert "NumPy archive (.npz), as `zoo embed` writes features" in out


def test_verify_tells_absent_from_bad(zoo, in_house):
    """What was never downloaded is no failure."""
    code, out, _ = zoo("verify", "caid-resnet50.in-house")
    assert code == 0
    assert "not downloaded" in out


def test_offline_download_says_where_to_put_the_file(zoo, monkeypatch, tmp_path):
    """On a machine without connections the error has size, digest, source and place."""
    digest = "ab" * 32
    facts = {"sources": ["https://example.invalid/w.pth"], "bytes": 123, "sha256": digest}
    record = {"tag": "far", "models": ["caid-resnet50"], "state": "hosted", **facts}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    code, _, err = zoo("download", "caid-resnet50.far")
    assert code == 1
    for part in ("123", digest, "https://example.invalid/w.pth", str(tmp_path / "zoo-home" / "files" / digest)):
        assert part in err


def test_an_error_is_a_page_for_a_reader_and_a_line_for_a_program(zoo, monkeypatch):
    """On a terminal the ways out stand below each other; elsewhere in one line that can be read, too."""
    command = ("download", "caid-resnet50.chestxray14")
    _, _, err = zoo(*command)
    assert one_line(err)
    assert "What you can do: your own file: " in err
    assert "; no weights at all: " in err
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(SystemExit):
        main(list(command))
    assert "\nWhat you can do:\n  - your own file" in screen.getvalue()


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path):
    """`--debug` lets the traceback through, wherever it stands."""
    done = subprocess.run([sys.executable, "-m", "zoo", "info", "nonsense", "--debug"], capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert "UnknownModelError" in done.stderr


@pytest.mark.slow
def test_light_commands_import_no_torch(tmp_path, in_house):
    """`list`, `info`, `download`, `verify` and `manifest` load neither torch nor numpy."""
    commands = (["list"], ["info", "caid-resnet50"], ["download", "caid-resnet50.in-house"], ["verify"], ["manifest"])
    code = (
        "import sys\nfrom zoo.cli import main\n"
        f"for command in {commands!r}:\n"
        "    try:\n        main(command)\n    except SystemExit as leaving:\n        assert not leaving.code, command\n"
        "print('HEAVY', [m for m in ('torch', 'numpy', 'timm', 'monai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


@pytest.mark.slow
def test_doctor_finds_nothing_wrong_here(zoo):
    """A sound installation gives exit code 0 and a line for each library, manifest and weight file."""
    code, out, _ = zoo("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 0, [c for c in checks.values() if not c["ok"]]
    assert checks["torch"]["ok"]
    assert "chestxray14" in " ".join(checks)


def test_doctor_names_a_broken_manifest(zoo, tmp_path, monkeypatch):
    """A manifest that cannot be read is a problem, with its path."""
    (tmp_path / "broken.json").write_text("{")
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "broken.json"))
    code, out, err = zoo("doctor")
    assert code != 0
    assert "broken.json" in out + err


@pytest.mark.slow
def test_inspect_reads_a_checkpoint(zoo, unet_safetensors):
    """`zoo inspect` says the format and which models the file fits."""
    code, out, _ = zoo("inspect", unet_safetensors)
    assert code == 0
    assert "safetensors" in out
    assert "caid-resnet50-unet" in out
    facts = json.loads(zoo("inspect", unet_safetensors, "--json")[1])
    assert facts["tensors"] == 380


def test_inspect_of_no_checkpoint(zoo, tmp_path):
    """A file that does not exist fails in one line."""
    code, _, err = zoo("inspect", tmp_path / "absent.pth")
    assert code == 1
    assert "absent.pth" in err
    assert one_line(err)


def test_inspect_of_a_file_that_cannot_be_read(zoo, tmp_path):
    """What `load_model` would refuse is printed, and fails."""
    (tmp_path / "notes.txt").write_text("no weights here")
    code, out, _ = zoo("inspect", tmp_path / "notes.txt")
    assert code == 1
    assert "notes.txt" in out


@pytest.mark.slow
def test_import_gives_a_file_a_name(zoo, unet_file, tmp_path):
    """After `zoo import` the full name loads the user's file, checked and under its digest; the plain one does not."""
    import zoo as package

    code, out, _ = zoo("import", "caid-resnet50", unet_file)
    assert code == 0
    assert "caid-resnet50.imported" in out
    assert "without a tag, caid-resnet50 loads caid-resnet50.chestxray14-800, trained by zoo" in out
    assert package.model_info("caid-resnet50").name == "caid-resnet50.chestxray14-800"
    info = package.model_info("caid-resnet50.imported")
    assert (info.trained_by, info.default) == ("user", False)
    report = package.load_report(package.load_model("caid-resnet50.imported"))
    assert report.sha256 == hashlib.sha256(unet_file.read_bytes()).hexdigest()
    assert report.tag == "imported"


@pytest.mark.slow
def test_import_says_what_the_plain_name_means_and_remove_undoes_it(zoo, unet_file, unet_safetensors):
    """With `--default` it moves to the import and back; the list marks it; the user's own file stays."""
    from zoo.manifest import records
    from zoo.settings import cache_home

    def default():
        rows = json.loads(zoo("list", "caid-resnet50-unet", "--json")[1])
        return [row["tag"] for row in rows if row["default"]]

    assert default() == ["chestxray14-800"]
    _, out, _ = zoo("import", "caid-resnet50-unet.mine", unet_file, "--default")
    assert "without a tag, caid-resnet50-unet loads caid-resnet50-unet.mine, trained by user" in out
    assert "undo: zoo remove caid-resnet50-unet.mine" in out
    zoo("import", "caid-resnet50.same", unet_file)
    zoo("import", "caid-resnet50-unet.other", unet_safetensors)
    assert default() == ["mine"]
    zoo("import", "caid-resnet50-unet.other", unet_safetensors, "--default")
    assert default() == ["other"]
    assert [line.split()[1] for line in zoo("list", "caid*unet")[1].splitlines() if "*" in line] == ["other*"]

    code, out, _ = zoo("remove", "caid-resnet50-unet.other")
    assert code == 0
    assert "caid-resnet50-unet loads caid-resnet50-unet.mine" in out
    assert unet_safetensors.exists()
    assert str(unet_safetensors) in out
    first = hashlib.sha256(unet_file.read_bytes()).hexdigest()
    assert {p.name.split(".")[0] for p in cache_home().rglob("*") if p.is_file()} == {"manifest", first}
    zoo("remove", "caid-resnet50-unet.mine")
    assert (cache_home() / "files" / first).exists()  # the other model has it, too
    assert records("caid-resnet50")[0].tag == "same"
    zoo("remove", "caid-resnet50.same")
    assert {p.name for p in cache_home().rglob("*") if p.is_file()} == {"manifest.json"}
    assert default() == ["chestxray14-800"]
    for wrong in ("caid-resnet50.same", "caid-resnet50", "caid-resnet50.chestxray14-800"):
        code, _, err = zoo("remove", wrong)
        assert code == 2
        assert "nothing was imported as" in err


@pytest.mark.slow
def test_import_replaces_an_earlier_one_of_the_same_tag(zoo, unet_file, unet_safetensors):
    """The tag stands for the file imported last."""
    from zoo.manifest import records

    zoo("import", "caid-resnet50-unet.mine", unet_file)
    zoo("import", "caid-resnet50-unet.mine", unet_safetensors)
    mine = [r for r in records("caid-resnet50-unet") if r.tag == "mine"]
    assert [r.sha256 for r in mine] == [hashlib.sha256(unet_safetensors.read_bytes()).hexdigest()]


@pytest.mark.slow
def test_import_knows_the_input_of_the_file(zoo, unet_file, unet_state, tmp_path):
    """`--size`, or what the recipes write into the header, is what `load_transform` then makes of an image."""
    from safetensors.torch import save_file

    import zoo as package

    zoo("import", "caid-resnet50.small", unet_file, "--size", 64)
    assert package.load_transform("caid-resnet50.small").preprocessing.size == (64, 64)
    save_file(unet_state, tmp_path / "u.safetensors", metadata={"input": '{"size": [96, 96], "resize": 110}'})
    _, out, _ = zoo("import", "caid-resnet50.exported", tmp_path / "u.safetensors")
    assert "96 x 96" in out
    assert package.model_info("caid-resnet50.exported").input.resize == 110


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["chestxray14-800", "Bad/Tag"])
def test_import_refuses_tags(zoo, unet_file, tag):
    """A tag of the zoo's own weights keeps meaning them, and a tag is no path."""
    code, _, err = zoo("import", f"caid-resnet50.{tag}", unet_file)
    assert code == 2
    assert tag in err
    assert one_line(err)


def test_export_refuses_what_it_would_not_write(zoo, tmp_path):
    """Another suffix or a folder that is not there: said before anything is loaded."""
    for out in (tmp_path / "w.pth", tmp_path / "absent" / "w.safetensors"):
        code, _, err = zoo("export", "caid-resnet50", out)
        assert code == 2
        assert str(out) in err


@pytest.mark.slow
def test_doctor_sees_a_cache_that_cannot_be(zoo, tmp_path, monkeypatch):
    """A file where the folder should be is a problem."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "file"))
    code, out, _ = zoo("doctor")
    assert code == 1
    assert "ZOO_HOME" in out


def test_import_of_a_file_that_does_not_fit(zoo, tmp_path):
    """A checkpoint of something else is refused and leaves no record."""
    import torch

    from zoo.manifest import user_manifest

    torch.save({"features.conv0.weight": torch.zeros(4)}, tmp_path / "other.pth")
    code, _, err = zoo("import", "caid-resnet50", tmp_path / "other.pth")
    assert code == 1
    assert "other.pth" in err
    assert not user_manifest().exists()


@pytest.mark.slow
def test_export_writes_the_librarys_names(zoo, unet_safetensors, tmp_path):
    """`zoo export --checkpoint` writes a file that the plain library class loads strictly."""
    import timm
    from safetensors.torch import load_file

    out = tmp_path / "encoder.safetensors"
    assert zoo("export", "caid-resnet50", out, "--checkpoint", unet_safetensors)[0] == 0
    timm.create_model("resnet50", num_classes=0).load_state_dict(load_file(out), strict=True)
    assert out.stat().st_size > 90e6


def test_the_version(zoo):
    """For a report of a fault."""
    import zoo as package

    assert zoo("--version") == (0, f"zoo {package.__version__}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_a_command_in_one_line(tmp_path, number, code, word):
    """With the shell's exit code, no traceback, and no temporary file, whatever was being written."""
    program = (
        "import pathlib, signal, sys, time\nfrom zoo import cli, loading\nfrom zoo.files import replacing\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background job begins without
        "def slow(name, cache_dir):\n"
        f"    with replacing(pathlib.Path({str(tmp_path)!r}) / 'file') as place:\n"
        "        place.write_text('half')\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "loading.download_weights = slow\ncli.main(['download', 'caid-resnet50'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, number))
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"zoo: {word}\n")
    assert list(tmp_path.iterdir()) == []


def test_signals_are_as_before_once_a_command_is_done(zoo):
    """A program that calls the command keeps its own handlers."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    zoo("list")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


HOSTILE = "\x1b]0;title\x07\x9b2J\u202eevil\nforged: line\udcff"


@pytest.mark.slow
def test_what_a_manifest_says_never_steers_the_terminal(zoo, tmp_path, monkeypatch):
    """Escapes in every text of a record are shown, by `list`, `info`, `verify`, `download` and their errors."""
    record = {
        **{"tag": f"a{HOSTILE}", "models": ["caid-resnet50"], "state": "hosted", "trained_by": HOSTILE},
        **{"sources": [f"file:/absent/{HOSTILE}"], "bytes": None, "sha256": None, "sha256_note": HOSTILE},
        **{"notes": HOSTILE, "citation": HOSTILE, "licences": {HOSTILE: {HOSTILE: [HOSTILE]}}},
        **{"provenance": {HOSTILE: HOSTILE}, "assets": {HOSTILE: {"sources": [HOSTILE], "bytes": 1, "sha256": None}}},
    }
    closed = record | {"tag": "closed", "state": "not-published", "sources": []}
    (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": [record, closed]}))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    commands = (
        *(("list",), ("info", "caid-resnet50"), ("info", "caid"), ("verify",), ("download", "caid-resnet50")),
        *(("download", "caid-resnet50.closed"), ("download", "caid-resnet50.none"), ("info", HOSTILE), ("doctor",)),
        *(("inspect", HOSTILE), ("import", "caid-resnet50", HOSTILE), ("import", HOSTILE), ("list", HOSTILE)),
        *(("manifest", "--as", form) for form in ("json", "csv", "curl", "sha256sum")),
        ("doctor", "--offline"),
    )
    for command in commands:
        _, out, err = zoo(*command)
        assert "evil" in out + err, command
        for text in (out, err):
            assert all(sign.isprintable() or sign == "\n" for sign in text), command
            assert not [line for line in text.splitlines() if line.startswith("forged")], command


def test_a_log_line_never_steers_the_terminal(zoo, capsys, tmp_path):
    """Warnings name files, and files have names like this."""
    import logging

    root = logging.getLogger()
    before = root.handlers[:]
    try:
        root.handlers[:] = []
        zoo("list")
        logging.getLogger("zoo").warning("%s is odd", HOSTILE)
    finally:
        root.handlers[:] = before
    err = capsys.readouterr().err
    assert "\\x1b]0;title" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "~nobody-here/w.pth"),
        ("import", "caid-resnet50", "~nobody-here/w.pth"),
        ("export", "caid-resnet50", "w.safetensors", "--checkpoint", "~nobody-here/w.pth"),
        ("download", "caid-resnet50", "--cache-dir", "~nobody-here/cache"),
        ("doctor", "--cache-dir", "~nobody-here/cache"),
    ],
)
def test_a_home_that_is_not_there_is_wrong_use(zoo, command, tmp_path, monkeypatch):
    """One line that names it, and no traceback of pathlib's."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo(*command)
    assert code == 2
    assert "~nobody-here" in err
    assert one_line(err)


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "caid-resnet50.chestxray14-800", "", "-o", "out"),
        ("embed", "caid-resnet50.chestxray14-800", "films", "-o", ""),
        ("predict", "run", "", "-o", "out.csv"),
        ("segment", "ct-fm-segresnet", "", "-o", "out"),
        ("doctor", ""),
        (
            "finetune",
            "caid-resnet50",
            "--task",
            "classify",
            "--table",
            "t.csv",
            "--label",
            "a",
            "--data",
            "",
            "-o",
            "x",
        ),
        ("finetune", "caid-resnet50", "--task", "classify", "--table", "t.csv", "--label", "a", "--data=", "-o", "x"),
    ],
)
def test_an_empty_argument_is_not_the_working_directory(zoo, tmp_path, monkeypatch, words):
    """It comes from a variable of the shell that is not set: the run would take whatever lies around."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo(*words)
    assert (code, "is empty: a value is expected" in err) == (2, True), err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_a_character_ends_no_command(monkeypatch, encoding):
    """The table of `zoo probe` has the minus sign of print; hours of work would end in a UnicodeEncodeError."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)

    def shown(**_):
        print(decimal(-0.25))
        print(decimal(-0.25), file=sys.stderr)

    monkeypatch.setattr("zoo.cli.app", shown)
    main([])
    for stream in streams:
        stream.flush()
        assert stream.buffer.getvalue().split() == [b"\\u22120.250"]
