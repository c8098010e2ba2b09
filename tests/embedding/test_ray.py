"""The Ray engine: the rows of the local one, whoever dies; signals, and clusters that are not there."""

import csv
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow
import pytest
import torch
from forked import Orphan
from PIL import Image

from zoo import read_features
from zoo.embedding import Embedder, cluster, embed_cohort, read_list
from zoo.embedding.cases import Cases
from zoo.embedding.cluster import Pool, connected, pool_of, told
from zoo.embedding.dataset import FeatureFolder
from zoo.embedding.ray import _Actor, _Deaths, _folder, _objects, _Stretch
from zoo.errors import CheckpointFormatError, OptionError, ZooError

pytestmark = pytest.mark.usefixtures("one_thread", "warm_home")

NAME = "caid-resnet50.chestxray14-800"
FATAL = "fatal.png"


class FatalReader:
    """Reads films, and takes its process with it at one of them, as a fault in a decoder does."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, case):
        if case.name == FATAL:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.plain(case)


class FatalEmbedder(Embedder):
    """Has such a reader. Processes of a cluster import this module, where a patched function would not be patched."""

    @property
    def reader(self):
        return FatalReader(super().reader)


class FatalNetwork(Embedder):
    """Has a network that takes its process with it at one film, as want of memory does.

    The first time it does so while a reader of that film starts, which is left with the connections of the process.
    """

    def embed_units(self, cases, units, *, workers):
        fatal = [unit for unit in units if any(cases.paths[case].endswith(FATAL) for case in unit)]
        if fatal and not (died := Path(cases.paths[fatal[0][0]]).with_suffix(".died")).exists():
            died.touch()
            torch.multiprocessing.Process = Orphan
        for unit, found in zip(units, super().embed_units(cases, units, workers=workers), strict=True):
            if unit in fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield found


class HereActor(_Actor):
    """What an actor does, in this process."""

    def _ask(self, method, argument):
        return getattr(self.deaths, method)(argument)


@pytest.fixture(scope="module")
def rays_folder():
    """Ray's files in a folder of their own, with a short name as sockets need it.

    One for all tests: a process keeps the first secret that Ray finds, with which a cluster that has another does not
    start.
    """
    folder = Path(tempfile.mkdtemp(prefix="zoo-ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def alone(rays_folder, monkeypatch):
    """That folder, where no other cluster is found."""
    monkeypatch.setenv("RAY_TMPDIR", str(rays_folder))
    monkeypatch.setenv("HOME", str(rays_folder))  # Ray keeps a secret there
    for folder in Path(__file__).parents[:2]:  # where actors find this module, and what it imports
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield rays_folder
    (rays_folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)


@pytest.fixture
def films(tmp_path):
    """A list of eleven films with a further column: one cannot be read, one kills who reads it, one is no text."""
    folder = tmp_path / "films"
    folder.mkdir()
    names = [f"{i}.png" for i in range(8)] + ["broken.png", FATAL, "ü=1.png"]
    for i, name in enumerate(names):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 5), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.png").write_text("no image")
    return write_list(tmp_path / "films.csv", [(name, f"films/{name}", f"ward {i}") for i, name in enumerate(names)])


def write_list(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "path", "ward"), *rows])
    return path


def workers_of(process):
    """The actors among the processes that one has started, of whatever generation."""
    alive = (child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in alive if "MapWorker" in "".join(child.cmdline())]


@pytest.mark.slow
def test_rows_are_those_of_the_local_engine_though_a_worker_is_killed(alone, films, tmp_path, monkeypatch):
    """To the bit, in the same columns, none lost or doubled; a film that kills its reader costs itself alone."""
    embedder = FatalEmbedder(NAME, device="cpu", batch_size=1)
    cases = read_list(films, volumes=False)
    embed_cohort(embedder, cases, tmp_path / "local", workers=1)
    killed, plain = [], FeatureFolder.add

    def kill_first(self, *found):
        if not killed:
            killed.extend(workers_of(psutil.Process()))
            killed[0].kill()
        plain(self, *found)

    monkeypatch.setattr(FeatureFolder, "add", kill_first)
    outcome = embed_cohort(embedder, cases, tmp_path / "ray", engine="ray", ray_address="local")
    assert killed
    assert outcome.embedded == 9
    assert sorted(outcome.failed) == ["broken.png", FATAL]
    assert "the process that read it died" in outcome.failed[FATAL]
    local, found = read_features(tmp_path / "local"), read_features(tmp_path / "ray")
    assert found.features.tobytes() == local.features.tobytes()
    assert found.features.shape == (9, 2048)
    assert found.table.equals(local.table)
    assert found.table.ward.tolist()[0] == "ward 0"
    import ray

    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_unit_that_kills_every_actor_is_given_up(alone, films, tmp_path, monkeypatch):
    """After three; Ray would start actors for it without end. All others are embedded.

    A reader that outlives an actor would hide its death from Ray, which waits for the end of its connections.
    """
    from ray.data import DataContext

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 120)
    embedder = FatalNetwork(NAME, device="cpu", batch_size=1)
    cases = read_list(films, volumes=False).take([0, 9, 1])
    outcome = embed_cohort(embedder, cases, tmp_path / "out", engine="ray", ray_address="local")
    assert outcome.failed == {FATAL: f"{FATAL}: 3 processes of Ray died at it"}
    assert sorted(read_features(tmp_path / "out").table.id) == ["0.png", "1.png"]


@pytest.mark.slow
def test_an_actor_that_dies_between_units_is_held_against_none(films):
    """Only units that were begun and not ended count, and two deaths are not yet too many."""
    cases, deaths = read_list(films, volumes=False).take([0, 1, 2]), _Deaths()
    embedder = pickle.dumps(Embedder(NAME, device="cpu", batch_size=1))
    work = pyarrow.table({"pickle": [pickle.dumps(_Stretch([range(1), range(1, 2), range(2, 3)], cases, [7, 8, 9]))]})
    for count in (0, 1, 2, 3):
        actor = HereActor(embedder, torch.get_num_threads(), {}, "", "", Pool(1, 1, 0, 0), deaths)
        found = [each for table in actor(work) for unit in _objects(table) for each in unit]
        assert {each.case: each.problem for each in found if each.features is None} == (
            {8: "3 processes of Ray died at it"} if count == 3 else {}
        )
        assert deaths.at([7, 8, 9]) == [0, count, 0]
        deaths.begin(8)


@pytest.mark.slow
def test_a_signal_keeps_what_is_done_and_leaves_no_process(alone, films, tmp_path):
    """Exit code 75 for SIGTERM, for which Ray has a handler of its own; the cluster that was started ends too."""
    listed = write_list(tmp_path / "many.csv", [(str(i), "films/0.png", "") for i in range(20_000)])
    out = tmp_path / "out"
    arguments = ["embed", NAME, "--list", listed, "-o", out, "--engine", "ray", "--device", "cpu", "--batch-size", "1"]
    code = "import sys; from zoo.cli import main; from zoo.embedding import dataset; dataset.MOST_SECONDS = 0; main()"
    with subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, text=True) as run:
        try:
            while run.poll() is None and not list(out.glob("part-*.parquet")):
                psutil.wait_procs([psutil.Process(run.pid)], timeout=0.1)
            started = psutil.Process(run.pid).children(recursive=True)
            run.send_signal(signal.SIGTERM)
            said = run.stderr.read()
        finally:
            run.kill()
    assert run.returncode == 75
    assert started
    rows = len(read_features(out).table)
    assert 0 < rows < 20_000
    assert f"stopped by SIGTERM; {rows} of 20000 images have features in {out}: the same command goes on" in said
    assert not psutil.wait_procs(started, timeout=30)[1]


@pytest.mark.slow
def test_a_run_without_progress_is_named_and_not_ray_s_settings():
    """What stalled stands first in Ray's words, what ended otherwise last."""
    import ray.data

    stalled = ray.data.exceptions.ExecutionTimeoutError("no progress for 1800s.\nOperators:\nor set it to -1.")
    with pytest.raises(ZooError, match=r"Ray has ended the run: no progress for 1800s\. The same command"), told(ray):
        raise stalled
    with pytest.raises(ZooError, match=r"Ray has ended the run: no room\. The same command"), told(ray):
        raise ray.exceptions.RayError("Traceback\nno room")


@pytest.mark.slow
def test_without_ray_the_way_to_it_is_said(tmp_path, monkeypatch):
    """Not an ImportError; so the package itself is never needed for the local engine."""
    monkeypatch.setitem(sys.modules, "ray", None)
    film = tmp_path / "a.png"
    Image.new("L", (80, 80), 7).save(film)
    with pytest.raises(OptionError, match=r"engine='ray' takes Ray Data .*: pip install .*ray\[data\]"):
        embed_cohort(Embedder(NAME), Cases([str(film)], [str(film)], {}, None), tmp_path / "out", engine="ray")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "ray", "workers": 3}, "workers=3 with engine='ray'"),
        ({"ray_address": "head:6379"}, "ray_address='head:6379' with engine='local'"),
    ],
)
def test_options_of_the_other_engine_are_refused(tmp_path, options, said):
    """Not left aside without a word."""
    with pytest.raises(OptionError, match=said):
        embed_cohort(Embedder(NAME), Cases(["a.png"], ["a.png"], {}, None), tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "refused"), ("ray://127.0.0.1:10001", "no address of this form"), ("head", "no address of this")],
)
def test_a_cluster_that_does_not_answer_is_named_at_once(alone, monkeypatch, address, said):
    """Ray itself would try for minutes; and what the environment names counts like what the command names."""
    import ray

    with (
        pytest.raises(OptionError, match=rf"no Ray cluster at {address} \(.*{said}.*HOST:PORT .* or local"),
        connected(ray, address),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(OptionError, match=f"no Ray cluster at {address}"), connected(ray, None):
        pass


@pytest.mark.parametrize("said", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_takes_a_connection_and_is_no_cluster_is_named_in_seconds(alone, monkeypatch, said):
    """A head that hangs says nothing, a proxy closes, another service answers: Ray would try for minutes."""
    import ray

    monkeypatch.setattr(cluster, "_SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection = server.accept()[0]
            if said is not None:
                connection.recv(1000)
                connection.sendall(said)
                connection.close()
            held.append(connection)

        held, address = [], f"127.0.0.1:{server.getsockname()[1]}"
        Thread(target=answer, daemon=True).start()
        expected = "timed out" if said is None else "what answers there is no Ray cluster"
        with pytest.raises(OptionError, match=rf"no Ray cluster at {address} \(.*{expected}"), connected(ray, address):
            pass


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_dead_cluster_of_ray_start_is_named_at_once(alone, address):
    """Its address stays on the machine after a crash, and Ray goes there unasked."""
    import ray

    (alone / "ray").mkdir(exist_ok=True)
    (alone / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    said = r"no Ray cluster at 127\.0\.0\.1:1 \(.*refused.* or local"
    with pytest.raises(OptionError, match=said), connected(ray, address):
        pass


@pytest.mark.slow
def test_an_actor_works_where_the_run_was_begun(films, tmp_path, monkeypatch):
    """With paths from its working directory and its settings, whatever the machine's are; an error comes back whole."""
    monkeypatch.setenv("ZOO_OFFLINE", "0")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    cases = Cases(["films/0.png"], ["films/0.png"], {}, None)
    embedder = Embedder(NAME, device="cpu")
    assert _folder(embedder, Cases([], [str(tmp_path)], {}, None)) == ""
    given = (pickle.dumps(embedder), 1, {"ZOO_OFFLINE": "1"}, _folder(embedder, cases), "", Pool(1, 1, 0, 1), _Deaths())
    monkeypatch.chdir("/")
    work = pyarrow.table({"pickle": [pickle.dumps(_Stretch([range(1)], cases, [7]))]})
    ((found,),) = [each for table in HereActor(*given)(work) for each in _objects(table)]
    assert found.case == 7
    assert found.features.shape == (1, 2048)
    assert os.environ["ZOO_OFFLINE"] == "1"
    embedder.checkpoint = "absent.pt"
    (error,) = [each for table in HereActor(pickle.dumps(embedder), *given[1:])(work) for each in _objects(table)]
    assert isinstance(error, CheckpointFormatError)
    assert "absent.pt" in str(error)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("device", "nodes", "expected"),
    [
        ("auto", [(16, 2), (8, 0), (20, 2)], (4, 8, 1, 7)),
        ("cuda", [(64, 1)], (1, 64, 1, 8)),
        ("auto", [(10, 0), (4, 0)], (3, 4, 0, 1)),
        ("cpu", [(2, 8)], (1, 2, 0, 1)),
        ("cuda", [(8, 0)], "has no GPU"),
        ("cuda:1", [(8, 2)], "device='cuda:1' with Ray: auto, cpu, cuda"),
        ("cpu", [(0, 8)], "neither a CPU nor a GPU"),
    ],
)
def test_machines_are_divided_among_actors(device, nodes, expected):
    """A GPU each with its share of the CPUs, else four CPUs each; what no machine has is refused."""
    resources = [{"Alive": True, "Resources": {"CPU": float(cpu), "GPU": float(gpu)}} for cpu, gpu in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 64.0}}
    ray = SimpleNamespace(nodes=lambda: [*resources, gone])
    if isinstance(expected, str):
        with pytest.raises(OptionError, match=expected):
            pool_of(ray, device)
    else:
        pool = pool_of(ray, device)
        assert (pool.size, pool.cpus, pool.gpus, pool.readers) == expected
