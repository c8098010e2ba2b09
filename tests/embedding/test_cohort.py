"""A folder of features that runs go on with: kills, signals, ranks, other requests, bad folders, failed cases."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from forked import wait_for
from PIL import Image

from zoo.embedding import Cases, Embedder, embed_cohort, read_list
from zoo.embedding import cohort as module
from zoo.embedding.cohort import cases_at
from zoo.embedding.dataset import describe, opening
from zoo.embedding.embedder import Embedded
from zoo.errors import InputContractError, OptionError
from zoo.features import read_features
from zoo.files import this_process
from zoo.stopping import Stopped
from zoo.transforms.image import ImageTransform

pytestmark = pytest.mark.usefixtures("one_thread", "short_caid", "warm_home")

NAME = "caid-resnet50.chestxray14-800"
FORK = multiprocessing.get_context("fork")
FILMS = 17
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Whatever started the tests, a run in them is one process unless it says otherwise."""
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def each_unit_at_once(monkeypatch):
    """Rows do not wait."""
    monkeypatch.setattr("zoo.embedding.dataset.MOST_SECONDS", 0.0)


@pytest.fixture(scope="module")
def embedder():
    """With its network, which processes that are forked have too."""
    made = Embedder(NAME, device="cpu", batch_size=2)
    made.facts()
    return made


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films, one of which is none."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(FILMS):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 5), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 70), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def cases(embedder, films):
    return cases_at(embedder, [films])


@pytest.fixture(scope="module")
def unbroken(embedder, cases, tmp_path_factory):
    """What an unbroken run leaves."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    embed_cohort(embedder, cases, out, workers=0)
    return rows_of(out)


def rows_of(out):
    """Path -> bytes of its features, straight from the files; a row that is there twice is an error."""
    rows = {}
    for part in sorted(out.glob("part-*.parquet")):
        table = pyarrow.parquet.ParquetFile(part).read()
        for path, row in zip(table["path"].to_pylist(), table["feature"].to_pylist(), strict=True):
            assert path not in rows, f"{path} twice"
            rows[path] = np.array(row, np.float32).tobytes()
    return rows


def names_in(out):
    return sorted(path.name for path in out.iterdir())


def started(embedder, cases, out, *, environment=None, **options):
    """A run in a process of its own."""

    def run():
        os.environ.update(environment or {})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            embed_cohort(embedder, cases, out, **{"workers": 0, **options})
        except Stopped as stop:
            out.with_suffix(".said").write_text(stop.words)
            raise

    process = FORK.Process(target=run)
    process.start()
    return process


def ended(process, seconds=60):
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def children_of(pid):
    with suppress(FileNotFoundError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
    return []


# Killed and stopped


def killed_again_and_again(embedder, cases, out, kills, seed, workers, longest):
    """Kill runs at random moments, see that no row is lost, and let the last one end; how many were killed."""
    draws, killed, before = random.Random(seed), 0, {}
    while killed < kills:
        process = started(embedder, cases, out, workers=workers)
        process.join(draws.uniform(0.0, longest))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        now = rows_of(out) if out.exists() else {}
        assert {path: now[path] for path in before} == before
        before = now
        if process.exitcode == 0:
            return killed
    assert ended(started(embedder, cases, out, workers=workers)) == 0
    return killed


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(embedder, cases, unbroken, tmp_path, monkeypatch):
    """A row lost, there twice, or of another batch; a temporary file or a lock that stays."""
    plain = Embedder.embed

    def slowly(self, unit):
        time.sleep(0.02)
        return plain(self, unit)

    monkeypatch.setattr(Embedder, "embed", slowly)
    assert killed_again_and_again(embedder, cases, tmp_path / "out", 4, seed=4, workers=0, longest=0.4) >= 2
    assert rows_of(tmp_path / "out") == unbroken
    strange = [n for n in names_in(tmp_path / "out") if not n.startswith("part-")]
    assert strange == [".rank-0-of-1.done", "embed.log", "failed.csv", "zoo.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_what_is_done(embedder, cases, unbroken, tmp_path, number, monkeypatch):
    """Exit code 75, how far it came and how to go on, no reading process left; what waits for its minute is written."""
    out, plain = tmp_path / "out", Embedder.embed
    monkeypatch.setattr("zoo.embedding.dataset.MOST_SECONDS", 1e6)

    def slowly(self, unit):
        (tmp_path / f"unit {unit.cases[0].case}").touch()
        time.sleep(0.1)
        return plain(self, unit)

    monkeypatch.setattr(Embedder, "embed", slowly)
    process = started(embedder, cases, out, workers=1)
    wait_for((tmp_path / "unit 6").exists)
    readers = children_of(process.pid)
    assert readers
    assert rows_of(out) == {}
    os.kill(process.pid, number)
    assert ended(process) == 75
    done = rows_of(out)
    assert 2 < len(done) < len(cases) - 1
    said = (tmp_path / "out.said").read_text()
    assert f"stopped by {number.name}; {len(done)} of {len(cases)} images have features in {out}, 1 failed" in said
    assert "the same command goes on" in said
    assert "--resume" not in said
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in readers), 15)
    assert not list(out.glob("*.lock"))
    assert embed_cohort(embedder, cases, out, workers=0).before == len(done)
    assert rows_of(out) == unbroken


def test_a_signal_while_readers_start_leaves_none(embedder, cases, tmp_path, monkeypatch):
    """Of a loader that is half built the processes never end, and the run waits for them at its exit."""

    class Process(multiprocessing.Process):
        def start(self):
            super().start()
            time.sleep(0.5)  # until it ignores signals
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("torch.multiprocessing.Process", Process)
    process = started(embedder, cases, tmp_path / "out", workers=2)
    assert ended(process, 40) == 75
    assert not list((tmp_path / "out").glob(".*.lock"))


@pytest.mark.slow
def test_an_old_signal_stops_nothing_new(embedder, cases, tmp_path, monkeypatch):
    """In a program that goes on after a stopped run."""
    plain = Embedder.embed

    def stop(self, unit):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, unit)

    monkeypatch.setattr(Embedder, "embed", stop)
    with pytest.raises(Stopped):
        embed_cohort(embedder, cases, tmp_path / "out", workers=0)
    monkeypatch.setattr(Embedder, "embed", plain)
    assert len(list(embedder.stream(cases, workers=1))) == len(cases)


# Several processes


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
@pytest.mark.parametrize(
    "environments",
    [
        [{"RANK": str(i), "WORLD_SIZE": "2"} for i in range(2)],
        [
            {"SLURM_ARRAY_TASK_ID": str(3 + i), "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"}
            for i in (0, 1)
        ],
    ],
    ids=["torchrun", "array"],
)
def test_processes_share_a_cohort(embedder, cases, unbroken, tmp_path, environments, caplog):
    """Started at once on a new folder: disjoint, complete, to the bit; none takes another for a stranger."""
    out = tmp_path / "out"
    processes = [started(embedder, cases, out, environment=each) for each in environments]
    assert [ended(process) for process in processes] == [0, 0]
    assert rows_of(out) == unbroken
    assert {path.name[:10] for path in out.glob("part-*")} == {"part-00000", "part-00001"}
    assert len(read_features(out).table) == len(unbroken)
    assert not caplog.records
    assert ["embedding" in (out / name).read_text() for name in ("embed.log", "embed-00001.log")] == [True, True]


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
def test_one_process_finishes_what_several_left(embedder, cases, unbroken, tmp_path, monkeypatch, caplog):
    """Array and torchrun together are four shares; two of them run, one of those killed; failures are all kept."""
    out, plain = tmp_path / "out", Embedder.embed
    shares = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        for task in range(2)
        for rank in range(2)
    ]
    failing = next(i for i in range(4) if any(5 in unit for unit in embedder.units(range(len(cases)))[i::4]))
    assert ended(started(embedder, cases, out, environment=shares[failing])) == 0
    assert "05.png" in (out / f"failed-{failing:05d}.csv").read_text()

    def dying(self, unit):
        if list(out.glob(f"part-{3:05d}*")):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", dying)
        assert ended(started(embedder, cases, out, environment=shares[3])) == -signal.SIGKILL
    assert set(rows_of(out)) < set(unbroken)
    read_features(out)
    assert "rows may be missing" in caplog.text
    caplog.clear()
    done = embed_cohort(embedder, cases, out, workers=0)
    assert (done.embedded, len(done.failed)) == (len(cases) - 1, 1)
    assert rows_of(out) == unbroken
    assert [n for n in names_in(out) if "lock" in n or n.startswith("failed")] == ["failed.csv"]
    assert "05.png" in (out / "failed.csv").read_text()
    read_features(out)
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
def test_a_process_that_was_killed_goes_on_beside_the_other(embedder, cases, unbroken, tmp_path, monkeypatch):
    """It takes over its own lock and goes on with its own parts; what the other one is writing is left alone."""
    out, plain = tmp_path / "out", Embedder.embed
    ranks = [{"RANK": str(i), "WORLD_SIZE": "2"} for i in range(2)]

    def dying(self, unit):
        if list(out.glob("part-00001-000001*")):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, unit)

    def waiting(self, unit):
        wait_for((tmp_path / "go").exists)
        return plain(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", waiting)
        other = started(embedder, cases, out, environment=ranks[0])
        patch.setattr(Embedder, "embed", dying)
        assert ended(started(embedder, cases, out, environment=ranks[1])) == -signal.SIGKILL
    wait_for((out / "embed.log").exists)
    unfinished = out / f".zoo.json.{this_process()}.00000000.tmp"
    unfinished.touch()
    assert ended(started(embedder, cases, out, environment=ranks[1])) == 0
    assert unfinished.exists()  # this process lives
    unfinished.unlink()
    (tmp_path / "go").touch()
    assert ended(other) == 0
    assert rows_of(out) == unbroken
    assert sorted(path.name for path in out.glob(".*")) == [".rank-0-of-2.done", ".rank-1-of-2.done"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, "without gaps"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 with WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': a whole number"),
        ({"SLURM_ARRAY_TASK_ID": ""}, "SLURM_ARRAY_TASK_ID='': a whole number"),
    ],
)
def test_shares_that_cannot_be_are_refused(embedder, cases, tmp_path, monkeypatch, environment, said):
    """Each would embed nothing, or what another does, and say that all is well."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=said):
        embed_cohort(embedder, cases, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_file_is_not_shared(zoo, films, tmp_path, monkeypatch):
    """Each of two processes would write all of it, and the last one counts."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("f.npz", "f.csv"):
        code, _, err = zoo("embed", NAME, films, "-o", tmp_path / name)
        assert (code, "one of 2 processes" in err) == (2, True)
    assert not list(tmp_path.glob("f.*"))


# Another request for the same folder


@pytest.fixture(scope="module")
def finished(embedder, cases, tmp_path_factory):
    """A folder of the first two films."""
    out = tmp_path_factory.mktemp("finished") / "out"
    embed_cohort(embedder, cases.take([0, 1]), out, workers=0)
    return out


@pytest.mark.parametrize(
    ("fact", "value", "said"),
    [
        ("sha256", "0" * 64, "weights"),
        ("network", "yaware-densenet121", "weights"),
        ("input", {"size": [224, 224]}, r"input: .*224"),
        ("options", {"fold": 3}, "options"),
        ("precision", "bf16", 'precision: "fp32" there, "bf16" asked for'),
        ("layer", 2, "layer: null there, 2 asked for"),
        ("tokens", True, "tokens: false there, true asked for"),
    ],
)
def test_features_of_two_kinds_do_not_mix(embedder, cases, finished, monkeypatch, fact, value, said):
    """Rows of other weights or of another input beside the first ones, which nobody could tell apart."""
    before, facts = names_in(finished), embedder.facts()
    monkeypatch.setattr(Embedder, "facts", lambda _: facts | {fact: value})
    with pytest.raises(OptionError, match=f"{finished} holds features that differ in {said}"):
        embed_cohort(embedder, cases, finished, workers=0)
    assert [n for n in names_in(finished) if n not in before] == []


def test_columns_of_two_kinds_do_not_mix(embedder, cases, finished):
    """`--half`, other columns of the list or other types of theirs, ids where there were paths."""
    few = cases.take([0, 1, 2])
    numbers = arrow_column(pyarrow.array([1, 2, 3]))
    for asked, options, said in (
        (few, {"half": True}, 'type: "float32" there, "float16"'),
        (Cases(few.paths, few.paths, {"age": ["1", "2", "3"]}, None), {}, r'columns: {} there, {"age": "string"}'),
        (Cases(few.paths, few.paths, {"age": numbers}, None), {}, r'columns: {} there, {"age": "int64"}'),
        (Cases(("a", "b", "c"), few.paths, {}, None), {}, 'key: "path" there, "id"'),
    ):
        with pytest.raises(OptionError, match=said):
            embed_cohort(embedder, asked, finished, workers=0, **options)
    assert embed_cohort(embedder, few, finished, workers=0).before == 2


def arrow_column(array):
    from zoo.tables import ArrowColumn

    return ArrowColumn(pyarrow.chunked_array([array]))


@pytest.mark.slow
def test_the_command_refuses_another_input_by_name(zoo, films, tmp_path, unet_state):
    """A checkpoint whose header says other pixels, and options of the command; exit code 2."""
    from safetensors.torch import save_file

    tensors = {n.removeprefix("encoder."): t for n, t in unet_state.items() if n.startswith("encoder.")}
    for side in (64, 96):
        save_file(tensors, tmp_path / f"{side}.safetensors", metadata={"input": f'{{"size": [{side}, {side}]}}'})
    asked = ["embed", "caid-resnet50", films / "00.png", "-o", tmp_path / "out", "--workers", 0, "--checkpoint"]
    assert zoo(*asked, tmp_path / "64.safetensors")[0] == 0
    for more, said in (
        (["96.safetensors"], "differ in"),
        (["64.safetensors", "--precision", "bf16"], "differ in precision"),
        (["64.safetensors", "--layer", "-1"], "differ in layer"),
        (["64.safetensors", "--half"], "differ in type"),
    ):
        code, _, err = zoo(*asked, tmp_path / more[0], *more[1:])
        assert (code, said in err) == (2, True), err


# Folders that are none, or are spoilt


def test_a_folder_of_something_else_is_refused(embedder, cases, films, tmp_path):
    """`-o .` in a folder of images; a file; nothing is written there."""
    (tmp_path / "file").write_text("mine")
    for out, said in ((films, "no folder of features"), (tmp_path / "file", "is a file")):
        before = films.stat().st_mtime_ns
        with pytest.raises(OptionError, match=said):
            embed_cohort(embedder, cases, out, workers=0)
        assert films.stat().st_mtime_ns == before


@pytest.mark.usefixtures("each_unit_at_once")
@pytest.mark.parametrize("which", ["part", "failed", "facts"])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
def test_a_full_disk_ends_a_run_with_what_fitted(embedder, cases, unbroken, tmp_path, monkeypatch, which, once):
    """The system's own error, no row twice when it is run again; above all where rows were written and reasons not."""
    from zoo.files import write_atomically as plain

    out, full = tmp_path / "out", []

    def write(path, *more):
        starts = {"part": "part-00000-000002", "failed": "failed", "facts": "zoo.json"}
        if path.name.startswith(starts[which]) and (not full or not once):
            full.append(path)
            raise OSError(28, "No space left on device", str(path))
        return plain(path, *more)

    with monkeypatch.context() as patch:
        for name in ("zoo.embedding.parts", "zoo.embedding.failures", "zoo.files"):
            patch.setattr(f"{name}.write_atomically", write)
        with pytest.raises(OSError, match="No space left") as said:
            embed_cohort(embedder, cases, out, workers=0)
    assert full
    assert which != "part" or f"cannot write {out}/part-00000-000002.parquet" in str(said.value)
    assert set(rows_of(out)) < set(unbroken)
    assert not list(out.glob(".*.tmp")) + list(out.glob(".*.lock"))
    embed_cohort(embedder, cases, out, workers=0)
    assert rows_of(out) == unbroken
    assert "05.png" in (out / "failed.csv").read_text()


def test_an_error_of_the_run_is_not_hidden_by_a_full_disk(embedder, cases, tmp_path, monkeypatch):
    """What ended the run is what is said."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    def run():
        with opening(tmp_path / "out", facts_of(embedder, cases), cases) as folder:
            folder.add([Embedded(0, np.ones((1, 3), np.float32))])
            monkeypatch.setattr("zoo.embedding.parts.write_atomically", fail)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def facts_of(embedder, cases, **options):
    return describe(embedder.facts(), cases, "", **{"half": False, **options})


def test_an_interruption_at_any_point_of_writing_leaves_no_row_twice(embedder, cases, tmp_path, monkeypatch):
    """A second Ctrl-C comes at once, also just behind the renaming of a part, before it is noted as written."""
    from zoo.files import write_atomically as plain

    asked = []

    def write(path, *more):
        plain(path, *more)
        if not asked:
            asked.append(path)
            raise KeyboardInterrupt

    monkeypatch.setattr("zoo.embedding.parts.write_atomically", write)

    def run():
        with opening(tmp_path / "out", facts_of(embedder, cases), cases) as folder:
            folder.add([Embedded(i, np.full((1, 3), i, np.float32)) for i in range(3)])
            folder.flush()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(rows_of(tmp_path / "out")) == set(cases.ids[:3])


@pytest.mark.usefixtures("each_unit_at_once")
def test_two_runs_do_not_write_to_one_folder(embedder, cases, unbroken, tmp_path, monkeypatch):
    """The second is refused by the name of the first, whether it divides the cases alike or not."""
    out, plain = tmp_path / "out", Embedder.embed

    def waiting(self, unit):
        wait_for((tmp_path / "go").exists)
        return plain(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", waiting)
        first = started(embedder, cases, out)
    wait_for((out / "embed.log").exists)
    for world in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(OptionError, match=f"another run writes to {out} .process {first.pid} on "):
            embed_cohort(embedder, cases, out, workers=0)
    assert sorted(path.name for path in out.glob(".rank-*")) == [".rank-0-of-1.lock"]
    (tmp_path / "go").touch()
    assert ended(first) == 0
    assert rows_of(out) == unbroken


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_run_on_another_machine_lives_while_it_records(embedder, cases, tmp_path, is_silent):
    """Its process cannot be looked up; one that has recorded nothing for longer than an hour is dead."""
    out, two_hours_ago = tmp_path / "out", time.time() - 7200
    out.mkdir()
    (out / "zoo.json").write_text(json.dumps(facts_of(embedder, cases)))
    lock, log = out / ".rank-1-of-2.lock", out / "embed-00001.log"
    lock.write_text("0123456789ab-17-42 process 17 on elsewhere")
    log.touch()
    for path in (lock, log) if is_silent else (lock,):
        os.utime(path, (two_hours_ago, two_hours_ago))
    few = cases.take([0])
    if is_silent:
        assert embed_cohort(embedder, few, out, workers=0).embedded == 1
        return
    with pytest.raises(OptionError, match=rf"process 17 on elsewhere.*remove {lock}"):
        embed_cohort(embedder, few, out, workers=0)


def test_a_folder_that_another_process_of_the_run_has_just_made_is_no_strangers(embedder, cases, tmp_path, monkeypatch):
    """It writes its facts while this one looks at what is there."""
    out, plain = tmp_path / "out", type(tmp_path).iterdir
    out.mkdir()

    def listed(self):
        (out / "zoo.json").write_text(json.dumps(facts_of(embedder, cases)))
        return plain(self)

    monkeypatch.setattr(type(tmp_path), "iterdir", listed)
    assert embed_cohort(embedder, cases.take([0]), out, workers=0).embedded == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_part_that_is_damaged_is_put_aside_and_done_again(embedder, cases, unbroken, tmp_path, caplog, damage):
    """With a warning by name; the number of the part is not given again."""
    out = tmp_path / "out"
    embed_cohort(embedder, cases, out, workers=0)
    part = out / "part-00000-000000.parquet"
    whole = part.read_bytes()
    part.write_bytes({"cut": whole[:-100], "empty": b"", "noise": whole[:-900] + bytes(892) + whole[-8:]}[damage])
    with pytest.raises(InputContractError, match=f"{part} cannot be read .* remove it"):
        read_features(out)
    done = embed_cohort(embedder, cases, out, workers=0)
    assert (done.before, done.embedded) == (0, len(unbroken))
    assert f"{part} is damaged" in caplog.text
    assert [n for n in names_in(out) if n.startswith("part")] == [f"{part.name}.damaged", "part-00000-000001.parquet"]
    assert rows_of(out) == unbroken


def test_a_part_that_the_system_cannot_read_is_no_damaged_one(embedder, cases, finished, monkeypatch):
    """A file system that is away for a while would cost all rows, which are whole."""
    parquet = pyarrow.parquet.ParquetFile
    monkeypatch.setattr(parquet, "read", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        embed_cohort(embedder, cases.take([0, 1]), finished, workers=0)
    assert not list(finished.glob("*.damaged"))


def test_values_that_a_disk_spoilt_are_not_read(finished, tmp_path):
    """One bit of a feature, with which the file still looks whole."""
    import shutil

    out = shutil.copytree(finished, tmp_path / "out")
    part = out / "part-00000-000000.parquet"
    group = pyarrow.parquet.ParquetFile(part).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    values = next(column for column in columns if column.path_in_schema.startswith("feature"))
    data = bytearray(part.read_bytes())
    data[(values.dictionary_page_offset or values.data_page_offset) + values.total_compressed_size // 2] ^= 4
    part.write_bytes(data)
    with pytest.raises(InputContractError, match="cannot be read"):
        read_features(out)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"schema": 2}', b"\xff\xfe", "{}"])
def test_facts_that_are_damaged_are_an_error_that_names_them(embedder, cases, finished, tmp_path, text):
    """Without them nobody knows what the rows are; they are not made up anew."""
    import shutil

    out = shutil.copytree(finished, tmp_path / "out")
    if text is None:
        (out / "zoo.json").unlink()
    else:
        (out / "zoo.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = names_in(out)
    with pytest.raises((InputContractError, OptionError), match=r"zoo\.json"):
        embed_cohort(embedder, cases, out, workers=0)
    assert [n for n in names_in(out) if n not in before] == []


def test_a_folder_that_cannot_be_written_says_so_in_one_line(zoo, films, tmp_path, monkeypatch):
    """A read-only file system: the system's words and the path, exit code 1."""

    def refuse(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("zoo.locks._create", refuse)
    code, _, err = zoo("embed", NAME, films / "00.png", "-o", tmp_path / "out", "--workers", 0)
    assert code == 1
    assert err.splitlines()[-1].startswith("zoo: [Errno 30] Read-only file system")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no OUT"),
        (["-o", "f.npz", "--half"], "--half with -o f.npz: a folder is expected"),
        (["-o", "f.csv", "--retry-failed"], "--retry-failed with -o f.csv"),
        (["-o", "out.h5"], "or a folder"),
        (["-o", "out", "--list", "absent.csv"], "one of the two is expected"),
        (["-o", "out", "--root", "."], "--root without --list"),
    ],
)
def test_wrong_use_is_told_before_anything_is_made(zoo, films, tmp_path, monkeypatch, more, said):
    """Exit code 2, and no folder."""
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo("embed", NAME, films / "00.png", *more)
    assert (code, said in err) == (2, True), err
    assert [path.name for path in tmp_path.iterdir() if path.name != "zoo-home"] == []


def test_a_folder_may_be_called_parquet(zoo, films, tmp_path):
    """As other programs call such data sets; the message says how it is read."""
    out = tmp_path / "out.parquet"
    code, said, _ = zoo("embed", NAME, films / "00.png", "-o", out, "--workers", 0)
    assert (code, f"zoo.read_features({str(out)!r})" in said) == (0, True)
    assert read_features(out).features.shape == (1, 512)


# Cases that fail


def test_cases_that_failed_are_tried_again_only_when_asked(embedder, films, tmp_path, monkeypatch):
    """Names that are formulas or have line ends are safe in `failed.csv`, and the next run knows them there."""
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|'x'!A1.png", "a\nb.png", "good.png", "-1.png"]
    for name in names:
        (tmp_path / name).write_text("no image")
    (tmp_path / "good.png").write_bytes((films / "00.png").read_bytes())
    listed, out, tried = cases_at(embedder, names), tmp_path / "out", []
    plain = ImageTransform.__call__

    def call(self, image):
        tried.append(image.name)
        return plain(self, image)

    monkeypatch.setattr(ImageTransform, "__call__", call)
    assert set(embed_cohort(embedder, listed, out, workers=0).failed) == {n for n in names if n != "good.png"}
    lines = (out / "failed.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["path", "'-1.png", "'=cmd|'x'!A1.png", "a\\nb.png"]
    del tried[:]
    again = embed_cohort(embedder, listed, out, workers=0)
    assert (tried, len(again.failed), again.before) == ([], 3, 1)
    (tmp_path / names[0]).write_bytes((films / "01.png").read_bytes())
    assert set(embed_cohort(embedder, listed, out, workers=0, retry_failed=True).failed) == {"a\nb.png", "-1.png"}
    assert sorted(tried) == sorted({*names} - {"good.png"})
    assert "cmd" not in (out / "failed.csv").read_text()
    for name in names:
        (tmp_path / name).write_bytes((films / "01.png").read_bytes())
    assert not embed_cohort(embedder, listed, out, workers=0, retry_failed=True).failed
    assert not (out / "failed.csv").exists()
    assert sorted(read_features(out).table["path"]) == sorted(names)


@pytest.mark.parametrize("content", [b"\xff\x00\x01", b'path,reason\n"a', b"path,reason\na,b,c\n", b""])
def test_a_list_of_failures_that_is_damaged_is_put_aside(embedder, cases, tmp_path, caplog, content):
    """Its cases are tried again; the run does not end with a traceback."""
    out = tmp_path / "out"
    embed_cohort(embedder, cases.take([4, 5]), out, workers=0)
    (out / "failed.csv").write_bytes(content)
    assert len(embed_cohort(embedder, cases.take([4, 5]), out, workers=0).failed) == 1
    assert f"{out / 'failed.csv'} is damaged" in caplog.text
    assert (out / "failed.csv.damaged").read_bytes() == content
    assert "05.png" in (out / "failed.csv").read_text()


def test_many_failures_are_one_short_message(zoo, films, tmp_path, monkeypatch):
    """Ten are named, all are counted and in `failed.csv`."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        (folder / f"{i}.png").touch()
    code, _, err = zoo("embed", NAME, folder, films / "00.png", "-o", tmp_path / "out", "--workers", 0)
    assert code == 1
    last = err.splitlines()[-1]
    assert "300 image(s) have no features" in last
    assert "and 290 more" in last
    assert len(last) < 3000
    assert len((tmp_path / "out" / "failed.csv").read_text().splitlines()) == 301


def test_what_parquet_cannot_hold_fails_by_name(embedder, films, tmp_path, monkeypatch):
    """A name of bytes that are no text, and values beyond float16, end no run and are not written as something else."""
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(b"\xff.png"), "a.png"]
    for name in names:
        (tmp_path / name).write_bytes((films / "00.png").read_bytes())
    done = embed_cohort(embedder, cases_at(embedder, names), tmp_path / "out", workers=0)
    assert done.embedded == 1
    assert "rename it" in done.failed[names[0]]
    few = Cases(("a", "b"), ("a", "b"), {}, None)
    with opening(tmp_path / "half", facts_of(embedder, few, half=True), few) as folder:
        folder.add([Embedded(0, np.full((1, 3), 65504, np.float32)), Embedded(1, np.full((1, 3), 7e4, np.float32))])
    assert list(folder.reasons([[0, 1]])) == ["b"]
    assert "70000, more than float16 holds" in folder.failed["b"]
    assert read_features(tmp_path / "half").features.tolist() == [[65504.0] * 3]


# What goes on meanwhile


@pytest.mark.slow
@pytest.mark.usefixtures("each_unit_at_once")
def test_a_reader_that_dies_while_the_network_computes_ends_no_run(embedder, cases, unbroken, tmp_path, monkeypatch):
    """Torch tells of such a death wherever the process is, so also amid the writing of rows; batches stay the same."""
    plain_call, plain_embed = ImageTransform.__call__, Embedder.embed

    def call(self, image):
        if image.name == "09.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain_call(self, image)

    def patiently(self, unit):
        if unit.cases[0].case == 4:  # the reader is ahead, and dies in this time
            time.sleep(1.5)
        return plain_embed(self, unit)

    monkeypatch.setattr(ImageTransform, "__call__", call)
    monkeypatch.setattr(Embedder, "embed", patiently)
    done = embed_cohort(embedder, cases, tmp_path / "out", workers=1)
    assert {os.path.basename(id) for id in done.failed} == {"05.png", "09.png"}
    assert "the process that read it died" in next(why for id, why in done.failed.items() if id.endswith("09.png"))
    rows = rows_of(tmp_path / "out")
    beside = {id for id in rows if id.endswith(("08.png",))}  # its neighbour is missing
    assert {id: row for id, row in rows.items() if id not in beside} == {
        id: row for id, row in unbroken.items() if id in rows and id not in beside
    }
    assert len(rows) == len(cases) - 2


def test_a_line_a_minute_is_recorded_by_every_process(embedder, cases, tmp_path, monkeypatch, capsys):
    """By it other machines see that a process lives; only the first one prints it."""
    monkeypatch.setattr("zoo.progress.MINUTE", 0.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    embed_cohort(embedder, cases, tmp_path / "out", workers=0)
    text = (tmp_path / "out" / "embed-00001.log").read_text()
    assert "share 2 of 2" in text
    assert text.count(" a second, ") > 2
    assert " a second, " not in capsys.readouterr().err


def test_readers_are_one_less_than_processors(monkeypatch):
    """At most eight, and never more than there is to read."""
    for processors, units, readers in ((1, 9, 1), (4, 9, 3), (64, 99, 8), (64, 2, 2), (4, 0, 0)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: range(n), raising=False)
        assert module.workers_for(units) == readers


def test_a_trial_writes_nothing(zoo, films, tmp_path, monkeypatch):
    """It counts, times, and names what would be refused."""
    monkeypatch.setattr("zoo.embedding.trial._SECONDS", 3600.0)  # all are tried, however busy the machine
    code, said, _ = zoo("embed", NAME, films, "-o", tmp_path / "out", "--dry-run", "--workers", 1)
    assert code == 0
    assert f"{FILMS} image(s) for {NAME}; {FILMS} were read" in said
    assert f"1 of {FILMS} would be refused" in said
    assert "05.png" in said
    assert "with 1 reading process(es)" in said
    assert not (tmp_path / "out").exists()


def test_a_trial_of_images_that_are_all_refused_ends(embedder, tmp_path, monkeypatch):
    """After half a minute, not when a million images are read."""
    from zoo.embedding import try_cases

    monkeypatch.setattr("zoo.embedding.trial._SECONDS", 0.0)
    paths = tuple(str(tmp_path / f"{i}.png") for i in range(500))
    assert try_cases(embedder, Cases(paths, paths, {}, None)).read == 16


def test_rows_of_other_files_under_the_same_ids_are_refused(tmp_path, films):
    """The old features under a new film's id would be wrong; a moved folder and a corrected label are warned of."""
    names = sorted(path.name for path in films.iterdir() if path.suffix == ".png")[:2]

    def listed(*rows):
        path = tmp_path / "list.csv"
        path.write_text("\n".join(["id,path,label", *(f"{i},{film},{label}" for i, film, label in rows), ""]))
        return read_list(path, volumes=False)

    embedder = Embedder(NAME, device="cpu", batch_size=2)
    embed_cohort(embedder, listed((1, films / names[0], 0)), tmp_path / "out", workers=0)
    with pytest.raises(OptionError, match=f"1 cases in .* have rows of other files.*as 1: .*{names[0]} there"):
        embed_cohort(embedder, listed((1, films / names[1], 0)), tmp_path / "out", workers=0)
    embed_cohort(embedder, listed((1, films / names[0], 1)), tmp_path / "out", workers=0)
    assert "another label than the list has now, as 1" in (tmp_path / "out" / "embed.log").read_text()


def test_an_image_in_the_place_of_another_is_warned_of_and_done_again_on_request(embedder, films, tmp_path, caplog):
    """Its old row would be another image's; the rows beside it in the same file stay, to the bit."""
    out, own = tmp_path / "out", tmp_path / "films"
    shutil.copytree(films, own, ignore=lambda _, names: sorted(names)[3:])
    some, film = cases_at(embedder, [own]), own / "01.png"
    embed_cohort(embedder, some, out, workers=0)
    before = read_features(out)
    embed_cohort(embedder, some, out, workers=0)
    assert "changed after" not in caplog.text
    Image.effect_noise((80, 80), 60).save(film)
    later = max(part.stat().st_mtime for part in out.glob("part-*")) + 5
    os.utime(film, (later, later))
    assert embed_cohort(embedder, some, out, workers=0).before == 3
    assert f"1 cases in {out} have files that were changed after their rows were written, as {film}" in caplog.text
    assert "--redo-changed does such cases again" in (out / "embed.log").read_text()
    assert np.array_equal(read_features(out).features, before.features)
    assert embed_cohort(embedder, some, out, workers=0, redo_changed=True).before == 2
    after = read_features(out)
    assert after.table.path.tolist() == before.table.path.tolist()
    assert [np.array_equal(*rows) for rows in zip(before.features, after.features, strict=True)] == [True, False, True]


def test_rows_go_only_where_one_process_runs(embedder, cases, tmp_path, monkeypatch):
    """Another one has counted them as done."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="redo_changed with 2 processes: start one first"):
        embed_cohort(embedder, cases, tmp_path / "out", workers=0, redo_changed=True)


@pytest.mark.slow
def test_a_trial_says_what_a_folder_has_and_changes_nothing_in_it(zoo, films, tmp_path, caplog):
    """Those that are done are not tried again; a folder that a run would refuse is refused with the run's error."""
    out = tmp_path / "out"
    ask = ("embed", NAME, films, "-o", out, "--workers", 0)
    assert zoo(*ask)[0] == 1  # one film is broken
    part = next(out.glob("part-*.parquet"))
    (out / "part-00000-000009.parquet").write_bytes(part.read_bytes()[:-9])
    (out / "failed-00003.csv").write_text("path,reason\na.png,x\n")
    there = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    code, said, _ = zoo(*ask, "--dry-run")
    assert code == 0
    assert f"{FILMS - 1} of {FILMS} images have features in {out}, 1 failed; 0 are left to do" in said
    assert "part-00000-000009.parquet is damaged" in caplog.text
    code, said, _ = zoo(*ask, "--dry-run", "--retry-failed")
    assert "; 1 are left to do" in said
    assert f"1 image(s) for {NAME}; 1 were read to see" in said
    code, _, errors = zoo(*ask, "--dry-run", "--half")
    assert code == 2
    assert "holds features that differ in type" in errors
    assert there == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}


def test_a_folder_without_rows_is_not_offered_for_reading(zoo, films, tmp_path):
    """Reading it would fail."""
    code, said, errors = zoo("embed", NAME, films / "05.png", "-o", tmp_path / "out", "--workers", 0)
    assert code == 1
    assert "features of 0 image(s)" in said
    assert "read_features" not in said
    assert "the others" not in errors


def test_no_images_are_refused_with_all_the_ways_to_name_them(zoo, tmp_path):
    """By paths, or by a table."""
    code, _, errors = zoo("embed", NAME, "-o", tmp_path / "out")
    assert code == 2
    assert "no images: name files or folders, or a table of them by --list" in errors
