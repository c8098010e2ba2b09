"""Features are read back as they were computed: folders, `.npz` and `.csv`, maps, float16, types of carried columns."""

import datetime
import errno

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zoo.embedding import Cases
from zoo.embedding.dataset import opening
from zoo.embedding.embedder import Embedded
from zoo.errors import InputContractError, OptionError, PathNotFoundError
from zoo.features import FINISHED, Features, read_features, write_features
from zoo.tables import ArrowColumn

FACTS = {"schema": 1, "model": "m", "key": "path", "rows": "", "type": "float32", "columns": {}}
LONG = 2**53 + 1
"""A whole number that float64 rounds."""


def column(values, kind=None):
    return ArrowColumn(pyarrow.chunked_array([pyarrow.array(values, kind)]))


def cases_of(ids, **carried):
    return Cases(tuple(ids), tuple(ids), carried, None)


def written(out, cases, found, **facts):
    """A folder with a part for each case."""
    with opening(out, {**FACTS, "columns": {name: "" for name in cases.carried}, **facts}, cases) as folder:
        for case, features in enumerate(found):
            folder.add([Embedded(case, np.array(features, np.float32))])
            folder.flush()
    return out


def parts_of(out):
    return [pyarrow.parquet.ParquetFile(part).read() for part in sorted(out.glob("part-*"))]


def test_rows_come_sorted_whatever_the_order_of_parts(tmp_path, caplog):
    """As engines and ranks write them in orders of their own; features stay beside their paths."""
    out = written(tmp_path / "out", cases_of("cab"), [[[3.0, 3.5]], [[1.0, 1.5]], [[2.0, 2.5]]])
    features, table = read_features(out)
    assert table["path"].tolist() == ["a", "b", "c"]
    assert features.tolist() == [[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]
    assert features.dtype == np.float32
    assert (table.attrs["model"], table.attrs["shape"]) == ("m", [2])
    assert not caplog.records


def test_maps_keep_their_shape_and_slices_their_order(tmp_path):
    """A case of ten slices: 10 comes behind 9, not behind 1."""
    maps = np.arange(10 * 2 * 3 * 4, dtype=np.float32).reshape(10, 2, 3, 4)
    out = written(tmp_path / "out", cases_of("ba"), [maps, maps[:3] + 1000], rows="slice")
    features, table = read_features(out)
    assert table["slice"].tolist() == [0, 1, 2, *range(10)]
    assert np.array_equal(features, np.concatenate([maps[:3] + 1000, maps]))


def test_half_is_read_as_float32(tmp_path):
    """Rounded to eleven bits, as it was asked for, and to nothing less."""
    values = np.array([[1 + 2**-10, 1 + 2**-12, 60000.0]])
    out = written(tmp_path / "out", cases_of("a"), [values], type="float16")
    assert parts_of(out)[0].schema.field("feature").type == pyarrow.list_(pyarrow.float16(), 3)
    features, _ = read_features(out)
    assert features.dtype == np.float32
    assert features.tolist() == [[1 + 2**-10, 1.0, 60000.0]]


def test_carried_columns_keep_types_and_values(tmp_path):
    """Also in a part whose cells are all null; whole numbers beside nulls are not rounded to floats."""
    day, when = datetime.date(2020, 2, 29), datetime.datetime(2020, 2, 29, 1, 2, 3, 4)
    carried = {
        "number": column([None, LONG, 3]),
        "small": column([1, None, 3], pyarrow.int8()),
        "day": column([None, day, day]),
        "when": column([None, when, when], pyarrow.timestamp("ns")),
        "word": column([None, "x", "y"], pyarrow.large_string()),
        "kind": column(["u", "v", "u"]).array.cast(pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
        "list": column([None, [1, 2], []]),
        "nothing": column([None, None, None]),
        "text": ["007", "", "=1"],
    }
    carried["kind"] = ArrowColumn(carried["kind"])
    out = written(tmp_path / "out", cases_of("abc", **carried), [[[1.0]], [[2.0]], [[3.0]]])
    for part in parts_of(out):
        for name, cells in carried.items():
            expected = cells.array.type if isinstance(cells, ArrowColumn) else pyarrow.string()
            assert part.schema.field(name).type == expected, name
        assert part.column_names == ["path", *carried, "feature"]
    _, table = read_features(out)
    assert table["number"].tolist() == [None, LONG, 3]
    assert table["small"].tolist() == [1, None, 3]
    assert table["day"].tolist() == [None, day, day]
    assert table["when"][1:].tolist() == [when, when]
    assert table["kind"].tolist() == ["u", "v", "u"]
    assert table["text"].tolist() == ["007", "", "=1"]
    assert [list(cell) for cell in table["list"][1:]] == [[1, 2], []]


@pytest.mark.parametrize(("group_bytes", "groups"), [(2**20, 1), (9, 2), (1, 3)])
def test_cells_stay_beside_their_rows_where_a_case_has_several(tmp_path, monkeypatch, group_bytes, groups):
    """And where one between them failed, or they come out of order, or a row group ends between them."""
    cases = cases_of("abcxy", age=["1", "2", "3", "8", "9"])
    monkeypatch.setattr("zoo.embedding.parts._GROUP_BYTES", group_bytes)
    with opening(tmp_path / "out", {**FACTS, "rows": "slice", "columns": {"age": "string"}}, cases) as folder:
        folder.add([Embedded(0, np.full((2, 1), 1, np.float32)), Embedded(1, None, "bad")])
        folder.add([Embedded(4, np.full((3, 1), 9, np.float32)), Embedded(2, np.full((1, 1), 3, np.float32))])
    part = pyarrow.parquet.ParquetFile(tmp_path / "out" / "part-00000-000000.parquet")
    assert part.num_row_groups == groups
    features, table = read_features(tmp_path / "out")
    assert list(map(float, table["age"])) == features[:, 0].tolist() == [1, 1, 3, 9, 9, 9]
    assert table["path"].tolist() == ["a", "a", "c", "y", "y", "y"]


def test_other_programs_read_the_files(tmp_path):
    """By the names of the parts, as the docstring of `embed_cohort` says."""
    import pandas

    out = written(tmp_path / "out", cases_of("ab"), [[[1.0, 2.0]], [[3.0, 4.0]]])
    frame = pandas.read_parquet(sorted(out.glob("part-*.parquet")))
    assert frame["path"].tolist() == ["a", "b"]
    assert np.stack(frame["feature"]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_case_that_is_there_twice_is_refused(tmp_path):
    """A copy of a part would count some people double."""
    out = written(tmp_path / "out", cases_of("ab"), [[[1.0]], [[2.0]]])
    (out / "part-00007-000000.parquet").write_bytes((out / "part-00000-000001.parquet").read_bytes())
    with pytest.raises(InputContractError, match="rows of b more than once"):
        read_features(out)


@pytest.mark.parametrize(
    ("marks", "is_finished"),
    [
        ((), False),
        (("0-of-1",), True),
        (("0-of-2",), False),
        (("0-of-2", "1-of-2"), True),
        (("0-of-2", "1-of-3"), False),
        (("0-of-3", "2-of-3"), False),
    ],
)
def test_a_folder_without_all_of_its_shares_is_read_with_a_warning(tmp_path, caplog, marks, is_finished):
    """Killed, stopped, or one task of an array that never began: part of a cohort looks like all of it."""
    out = written(tmp_path / "out", cases_of("ab"), [[[1.0]], [[2.0]]])
    (out / f".rank-0-of-1{FINISHED}").unlink()
    for mark in marks:
        (out / f".rank-{mark}{FINISHED}").touch()
    assert len(read_features(out).table) == 2
    assert ("rows may be missing" in caplog.text) is not is_finished


def test_a_run_that_fails_unmarks_what_one_before_had_finished(tmp_path):
    """The list has grown, and the second run was stopped."""
    out = written(tmp_path / "out", cases_of("ab"), [[[1.0]], [[2.0]]])
    assert list(out.glob(f".*{FINISHED}"))
    with pytest.raises(ZeroDivisionError), opening(out, FACTS, cases_of("abc")):
        raise ZeroDivisionError
    assert not list(out.glob(f".*{FINISHED}"))


@pytest.mark.slow
def test_writing_holds_a_few_row_groups_whatever_the_part(tmp_path):
    """8 MB of rows: Arrow takes below 4 MB for them, and 12 where it writes them as one group."""
    names = [f"{i}.png" for i in range(4096)]
    values = np.random.default_rng(0).standard_normal((len(names), 1, 512), np.float32)
    usual = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(pool)
    try:
        with opening(tmp_path / "out", FACTS, cases_of(names)) as folder:
            folder.add([Embedded(i, each) for i, each in enumerate(values)])
        assert 2**20 < pool.max_memory() < 4 * 2**20
    finally:
        pyarrow.set_memory_pool(usual)
    assert len(parts_of(tmp_path / "out")) == 1
    assert np.array_equal(read_features(tmp_path / "out").features[0], values[0, 0])


def test_a_case_that_has_rows_has_not_failed_whatever_the_list(tmp_path):
    """Another process noted it before a run with a longer list came to it."""
    out = written(tmp_path / "out", cases_of("ab"), [[[1.0]], [[2.0]]])
    (out / "failed-00001.csv").write_text("path,reason\nb,was away\nc,is no film\n")
    with opening(out, FACTS, cases_of("ac")) as folder:
        assert folder.left([0, 1], retry_failed=True) == [1]
    assert (out / "failed.csv").read_text().splitlines() == ["path,reason", "c,is no film"]


def features_of(paths, slices=None, **carried):
    values = np.arange(2 * len(paths), dtype=np.float32).reshape(-1, 2) / 3
    return Features(values, tuple(paths), slices, {}, {"model": "m"}, carried)


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_a_file_gives_what_was_written(tmp_path, suffix):
    """To the last bit; texts that look like numbers or like nothing stay texts."""
    out = tmp_path / f"f.{suffix}"
    wrote = features_of(["001", "NA"], (0, 1), patient=["007", "1e5"], note=["", "NA"])
    write_features(wrote, out)
    features, table = read_features(out)
    assert features.dtype == np.float32
    assert np.array_equal(features, wrote.values)
    assert table["path"].tolist() == ["001", "NA"]
    assert table["slice"].tolist() == [0, 1]
    assert table["patient"].tolist() == ["007", "1e5"]
    assert table["note"].tolist() == ["", "NA"]
    assert table.attrs == ({"model": "m"} if suffix == "npz" else {})


def test_nothing_in_a_csv_is_a_formula(tmp_path):
    """Names of columns too, which come from a table of the user's collaborators."""
    write_features(features_of(["=a", "b"], **{"@SUM(1)": ["+1+1", "-2"]}), tmp_path / "f.csv")
    first, second, third = (tmp_path / "f.csv").read_text().splitlines()
    assert first.split(",")[:2] == ["path", "'@SUM(1)"]
    assert second.split(",")[:2] == ["'=a", "'+1+1"]
    assert third.split(",")[:2] == ["b", "-2"]


def test_a_cell_that_is_no_number_is_named(tmp_path):
    """By column, row and what stands there: a spreadsheet left it."""
    write_features(features_of(["a", "b"]), tmp_path / "f.csv")
    lines = (tmp_path / "f.csv").read_text().splitlines()
    cut = [*lines[:2], lines[2].rpartition(",")[0] + ","]
    (tmp_path / "f.csv").write_text("\n".join(cut))
    with pytest.raises(InputContractError, match=r"f\d+ of row 2 is '', and 1 cells of that column are no numbers"):
        read_features(tmp_path / "f.csv")


def test_cells_of_parquet_lists_are_kept_in_npz(tmp_path):
    """Numbers as numbers, a null as an empty text, not as the word None."""
    wrote = features_of(["a", "b"], age=[3, 4], word=["x", None], day=[datetime.date(2020, 1, 2), None])
    write_features(wrote, tmp_path / "f.npz")
    _, table = read_features(tmp_path / "f.npz")
    assert table["age"].tolist() == [3, 4]
    assert table["word"].tolist() == ["x", ""]
    assert table["day"].tolist() == ["2020-01-02", ""]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("absent", None, PathNotFoundError),
        ("f.txt", b"", OptionError),
        ("f.npz", b"no archive", InputContractError),
        ("f.csv", b"", InputContractError),
        ("f.csv", b"path,age\na,3\n", InputContractError),
        ("f.csv", b"path,f0\na,x\n", InputContractError),
        ("f.csv", b"path,f0\n\xff,1\n", InputContractError),
    ],
)
def test_what_is_no_file_of_features_is_refused_by_name(tmp_path, name, content, kind):
    """An array without columns, or an error of a library."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=name):
        read_features(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path):
    """Nothing was embedded there, which zero rows would hide."""
    with pytest.raises(InputContractError, match="nothing was embedded there"):
        read_features(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_full_disk_is_said_with_the_file(tmp_path, monkeypatch, suffix):
    """The system names none, or a temporary one; what was there stays."""
    out = tmp_path / f"f{suffix}"
    out.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo.files.sync", full)
    features = Features(np.ones((1, 2), np.float32), ("a.png",), None, {}, {})
    with pytest.raises(OSError, match=f"cannot write {out} .No space left on device.: nothing was written") as caught:
        write_features(features, out)
    assert caught.value.errno == errno.ENOSPC
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
