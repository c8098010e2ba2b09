"""What all tests share: one thread unless the environment says more, an empty cache, CAiD's reference network."""

import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
# The processes of xdist begin with these: glibc keeps freed tensors of up to 256 MB, half a gigabyte in all, for the
# next ones. Pages that the kernel clears anew took up to a tenth of the time.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**28))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**29))

import pytest


def _one_thread() -> None:
    """A forked child would wait for ever for the threads that OpenMP had in its parent."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_one_thread)
os.register_at_fork(after_in_child=gc.freeze)  # its garbage collections leave the pages of this process alone

SETTINGS = ("ZOO_", "HF_")
# Some tests are one for each record, as they are collected: none for the user's own imports.
os.environ["ZOO_HOME"] = str(Path(tempfile.gettempdir()) / "no-zoo-home")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of most slow tests: a worker takes a file as a whole, and none shall have one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module")
def one_thread():
    """One thread here too, as in forked children: the last bits depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def short_caid():
    """Have `caid-resnet50` stand for a network with a fiftieth of its parameters, from the file that ships."""
    from short_caid import short_caid as shortened

    with shortened():
        yield


@pytest.fixture(scope="module")
def short_yaware():
    """Have `yaware-densenet121` stand for a network with a hundredth of its parameters."""
    from short_yaware import short_yaware as shortened

    with shortened():
        yield


@pytest.fixture
def narrow_caid():
    """Have CAiD's names and method stand for networks with a hundredth of the parameters."""
    from narrow_caid import narrow_caid as narrowed

    with narrowed():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures of this test's runs empty files: to draw them takes longer than a run of a few steps."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: Path(path).touch())


@pytest.fixture(autouse=True)
def empty_home(monkeypatch, tmp_path):
    """Keep the user's settings out of every test, and every test out of the user's cache."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "zoo-home"))


@pytest.fixture(scope="session", autouse=True)
def common_home(scratch):
    """The cache of fixtures that several tests share, which are made before any test has its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZOO_HOME", str(scratch / "zoo-home"))
        yield scratch / "zoo-home"


@pytest.fixture
def warm_home(empty_home, common_home, monkeypatch):
    """That cache for a test that puts nothing else there: the weights that ship are hashed and converted once."""
    monkeypatch.setenv("ZOO_HOME", str(common_home))


@pytest.fixture
def zoo(capsys, monkeypatch):
    """Run the command in this process; returns (exit code, stdout, stderr)."""
    from zoo import progress
    from zoo.cli import main

    def run(*arguments):
        monkeypatch.setattr(progress._Told, "at", 0.0)  # the first minute of a process begins with its command
        with pytest.raises(SystemExit) as leaving:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return leaving.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def scratch():
    """A folder for large files that are made once; removed at the end, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-tests-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def browser(scratch):
    """A headless Chromium; without one on the machine the test is skipped."""
    from browser import MISSING, Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip(MISSING)
    with Browser(program, scratch / "browser") as started:
        yield started


@pytest.fixture(scope="session")
def unet_state():
    """The reference U-Net's tensors under the authors' names: what their best_checkpoint.pth holds."""
    from caid_files import filled_unet

    return filled_unet()


@pytest.fixture(scope="session")
def unet_file(scratch, unet_state):
    """The reference U-Net in the form of best_checkpoint.pth."""
    import torch

    path = scratch / "best_checkpoint.pth"
    torch.save(unet_state, path)
    return path


@pytest.fixture(scope="session")
def short_file(scratch):
    """What it has of the network that `short_caid` makes, 2 MB, in the same form."""
    import torch
    from short_caid import short_state

    path = scratch / "short.pth"
    torch.save(short_state(), path)
    return path


@pytest.fixture(scope="session")
def unet_safetensors(scratch, unet_state):
    """The reference U-Net as safetensors."""
    from safetensors.torch import save_file

    path = scratch / "unet.safetensors"
    save_file(unet_state, path)
    return path


@pytest.fixture
def saved(tmp_path):
    """Save content as a checkpoint; the file is removed after the test, for it may have hundreds of megabytes."""
    import torch

    path = tmp_path / "checkpoint.pth"

    def save(content):
        torch.save(content, path)
        return path

    yield save
    path.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def backward_before_pretended_gpus():
    """Have autograd count the devices while there are none but the CPU.

    At its first backward it starts a thread for each device, and processes that are forked later cannot use autograd.
    `FakeTensorMode`, with which some tests pretend a GPU, makes eight of them.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()
