"""A cache that several users share: nobody's umask locks the others out, nor stops what ships with the package."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch

import zoo
from zoo.commands.importing import import_weights
from zoo.manifest import user_manifest
from zoo.settings import cache_home

pytestmark = pytest.mark.usefixtures("short_caid")

MODEL = "caid-resnet50.chestxray14-800"
NOBODY = 65534
PRIVATE = 77
"""Exit code of a child that cannot read the environment."""


@pytest.fixture
def shared(monkeypatch):
    """An empty cache in a folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="zoo-shared-") as folder:
        os.chmod(folder, 0o755)
        home = Path(folder) / "home"
        home.mkdir()
        monkeypatch.setenv("ZOO_HOME", str(home))
        yield home


@pytest.fixture
def strict():
    """A user who keeps everything to himself."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "folder", "file"), [(0o2775, 0o2775, 0o664), (0o700, 0o700, 0o600)])
def test_what_is_put_into_a_cache_is_as_open_as_the_cache(shared, strict, short_file, mode, folder, file):
    """Copies, conversions, stamps and the manifest, whatever the umask; a private cache stays private."""
    shared.chmod(mode)
    import_weights("caid-resnet50.mine", short_file)
    zoo.load_model("caid-resnet50.mine")
    zoo.load_model(MODEL)
    found = list(shared.rglob("*"))
    assert {path.suffix for path in found if path.is_file()} == {"", ".json", ".safetensors"}
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def as_nobody(check):
    """Run a check in a child as another user; 0 if it passed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = PRIVATE if not os.access(torch.__file__, os.R_OK) else 1
            if code == 1:
                check()
                code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == PRIVATE:
        pytest.skip("this environment is closed to other users, who cannot import torch from it")
    return code


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@needs_root
def test_another_user_loads_what_the_first_put_there(shared, strict, short_file):
    """From a cache that is open to all, with a manifest and files written under a strict umask."""
    shared.chmod(0o755)
    import_weights("caid-resnet50.mine", short_file)
    assert as_nobody(lambda: zoo.load_model("caid-resnet50.mine", offline=True)) == 0


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("where", ["home", "within"])
def test_what_cannot_be_read_counts_as_absent(shared, short_file, where, caplog):
    """Private stamps, copies, folders and manifest of another user: what ships with the package loads even so."""
    import_weights("caid-resnet50.mine", short_file, default=True)
    zoo.load_model(MODEL)
    zoo.load_model("caid-resnet50.mine")
    if where == "home":
        shared.chmod(0o700)
    for path in shared.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)

    def check():
        assert zoo.model_info("caid-resnet50").name == MODEL
        assert zoo.load_report(zoo.load_model(MODEL)).tag == "chestxray14-800"
        assert "cannot be read by this user: imports recorded there are passed over" in caplog.text

    assert as_nobody(check) == 0


@pytest.mark.slow
@needs_root
def test_a_private_stamp_or_file_does_not_stop_another_user(shared, short_file):
    """Each file alone: it is hashed anew, converted anew, or fetched anew from where it came."""
    import_weights("caid-resnet50.mine", short_file)
    zoo.load_model("caid-resnet50.mine")
    os.chmod(short_file, 0o644)
    os.chmod(short_file.parent, 0o755)
    private = [path for path in shared.rglob("*") if path.is_file() and path != user_manifest()]
    assert len(private) == 4
    for path in private:
        for other in (shared, *shared.rglob("*")):
            os.chown(other, 0, 0)
            other.chmod(0o777 if other.is_dir() else 0o666)
        path.chmod(0o600)
        assert as_nobody(lambda: zoo.load_model("caid-resnet50.mine", offline=True)) == 0, path


def test_a_stamp_of_absurd_depth_counts_as_none(short_file):
    """It only means that the file is hashed again."""
    import_weights("caid-resnet50.mine", short_file)
    for stamp in cache_home().glob("files/*.json"):
        stamp.write_text("[" * 100_000)
    assert zoo.load_report(zoo.load_model("caid-resnet50.mine")).tag == "mine"
