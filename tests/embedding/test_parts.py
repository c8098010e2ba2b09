"""What embedding keeps in memory: rows on their way to a folder's parts, and freed memory of maps and films."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

from zoo.embedding import dataset
from zoo.embedding.cases import Cases
from zoo.embedding.dataset import describe, opening
from zoo.embedding.embedder import Embedded

WIDTH = 1000
IDS = tuple(f"film-{i}.png" for i in range(12))
CASES = Cases(IDS, IDS, {"ward": list("abcabcabcabc")}, None)
VALUES = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float32)


def facts(half=False):
    return describe({"model": "toy"}, CASES, "", half=half)


def found(*cases):
    """What became of some cases; the third failed."""
    return [Embedded(i, None, "it is damaged") if i == 2 else Embedded(i, VALUES[i : i + 1]) for i in cases]


@pytest.fixture
def small_groups(monkeypatch):
    """Groups of 4 rows."""
    monkeypatch.setattr(dataset, "_GROUP_BYTES", 4 * (4 * WIDTH + dataset._CASE_BYTES))


@pytest.mark.parametrize("half", [False, True])
def test_a_part_grows_by_groups_and_has_no_name_before_it_is_whole(tmp_path, small_groups, half):
    """All rows in their order with their columns; no more of them wait than a group has."""
    with opening(tmp_path / "out", facts(half)) as folder:
        for i in range(0, 12, 2):
            folder.add(CASES, found(i, i + 1))
            assert sum(len(rows) for _, rows in folder._waiting) < 5
            assert not list(folder.out.glob("part-*"))
            assert not folder.done
        folder.flush()
        assert folder.done == set(IDS) - {IDS[2]}
        assert "it is damaged" in folder.failed[IDS[2]]
    (part,) = folder.out.glob("part-*")
    file = pyarrow.parquet.ParquetFile(part)
    assert file.num_row_groups > 1
    table = file.read()
    good = [i for i in range(12) if i != 2]
    assert table.column("path").to_pylist() == [IDS[i] for i in good]
    assert table.column("ward").to_pylist() == [CASES.carried["ward"][i] for i in good]
    kind = np.float16 if half else np.float32
    values = table.column("feature").combine_chunks().values.to_numpy(zero_copy_only=False)
    assert values.dtype == kind
    assert np.array_equal(values.reshape(-1, WIDTH), VALUES[good].astype(kind))


def test_a_part_that_cannot_be_written_leaves_nothing_and_its_cases_to_do(tmp_path, small_groups, monkeypatch):
    """Neither a file nor a case that counts as done, of the groups before either; the next run does them all."""
    original = pyarrow.parquet.ParquetWriter.write_table
    calls = []

    def fail(self, table):
        calls.append(table)
        if len(calls) > 1:
            raise OSError("no space left on device")
        original(self, table)

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", fail)

    def run():
        with opening(tmp_path / "out", facts()) as folder:
            for i in range(12):
                folder.add(CASES, found(i))

    with pytest.raises(OSError, match="no space left"):
        run()
    assert len(calls) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"zoo.json"}
    monkeypatch.undo()
    with opening(tmp_path / "out", facts()) as folder:
        assert folder.left(CASES, range(12), retry_failed=False) == list(range(12))


KEPT = """
import resource, sys
import numpy
from zoo.embedding import memory
if len(sys.argv) > 1:
    getattr(memory, sys.argv[1])()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [numpy.ones(6_000_000, numpy.float32) for _ in range(3)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of other systems nothing is asked")
@pytest.mark.parametrize("how", ["keep_freed_memory", "keep_films"])
def test_freed_memory_is_used_again(how):
    """Three arrays of 24 MB take a thousand pages anew or more, some of them huge, unless they are kept: then a few."""
    command = [sys.executable, "-c", KEPT, how]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < 100
