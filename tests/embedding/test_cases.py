"""The cases of a cohort: files, folders, tables; what is carried, what is refused, and what a large one costs."""

import os
import pickle
import re
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from dicom_files import write_series
from pyarrow import parquet
from texts import warnings

from zoo.embedding import paths as presence
from zoo.embedding.cases import Cases, find_cases, read_list
from zoo.embedding.lesions import Lesion
from zoo.errors import OptionError, PathNotFoundError
from zoo.images import find_images
from zoo.tables import ArrowColumn, TextColumn


@pytest.fixture
def films(tmp_path):
    """Three empty files that are called films, one of them below."""
    folder = tmp_path / "films"
    (folder / "ward").mkdir(parents=True)
    for name in ("b.png", "ward/c.jpg", "a.png"):
        (folder / name).touch()
    return folder


def write(path, *rows, columns="path,label", encoding="utf-8"):
    path.write_text("\n".join([columns, *rows, ""]), encoding=encoding)
    return path


def refusal(table, **options):
    """What `read_list` says of a table, in one printable line."""
    with pytest.raises(OptionError) as caught:
        read_list(table, **{"volumes": False, **options})
    assert str(caught.value).isprintable()
    return str(caught.value)


# Paths


def test_files_and_folders_are_called_by_their_paths(films):
    """In their order, each once; nothing is carried."""
    cases = find_cases([films / "b.png", films], volumes=False)
    assert list(cases.ids) == list(cases.paths) == [str(films / name) for name in ("b.png", "a.png", "ward/c.jpg")]
    assert (dict(cases.carried), cases.points, len(cases)) == ({}, None, 3)
    assert cases.case(1) == films / "a.png"


def test_no_paths_are_refused(tmp_path):
    """Of images and of lesions, before a network is loaded for nothing."""
    with pytest.raises(OptionError, match="no images: name files or folders"):
        find_cases([], volumes=False)
    with pytest.raises(OptionError, match="no lesions: name tables"):
        find_cases([], volumes=True, lesions=True)
    with pytest.raises(PathNotFoundError, match=r"the path does not exist: .*absent"):
        find_cases([tmp_path / "absent"], volumes=False)


# Tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_a_text_table_gives_its_rows_in_order(films, suffix):
    """Paths from the table's folder; cells as texts, none guessed; rows of any length; Excel's mark is no name."""
    rows = [
        "ward/c.jpg,007,3.10,",
        "b.png,'=1",
        "",
        f'{films / "a.png"},"x, y",nan,1e5, ,',
    ]
    rows = [row.replace(",", "\t").replace("x\t", "x,") if suffix == ".tsv" else row for row in rows]
    header = "path,label,age,score".replace(",", "\t" if suffix == ".tsv" else ",")
    table = write(films / f"list{suffix}", *rows, columns=header, encoding="utf-8-sig")
    cases = read_list(table, volumes=False)
    assert tuple(cases.ids) == ("ward/c.jpg", "b.png", str(films / "a.png"))
    assert tuple(cases.paths) == tuple(str(films / name) for name in ("ward/c.jpg", "b.png", "a.png"))
    assert cases.carried == {"label": ["007", "'=1", "x, y"], "age": ["3.10", "", "nan"], "score": ["", "", "1e5"]}


def test_parquet_keeps_the_types_of_its_columns(films):
    """Also where a share of the rows has nothing but nulls: parts that are written one by one must have one schema."""
    columns = {
        "path": ["a.png", "b.png"],
        "age": pyarrow.array([61, None], pyarrow.int16()),
        "when": pyarrow.array([1, None], pyarrow.timestamp("ns")),
        "site": pyarrow.array(["north", "south"]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(columns), films / "list.parquet")
    cases = read_list(films / "list.parquet", volumes=False)
    assert tuple(cases.ids) == ("a.png", "b.png")
    assert list(cases.carried["age"]) == [61, None]
    assert (cases.carried["age"][0], cases.carried["age"][0:1]) == (61, [61])
    share = pickle.loads(pickle.dumps(cases.take([1])))
    assert list(share.carried["age"]) == [None]
    assert {name: column.array.type for name, column in share.carried.items()} == {
        name: columns[name].type for name in ("age", "when", "site")
    }


def test_ids_come_from_their_column(films):
    """Then a path may come twice; numbers become texts; another column is named, and neither is carried."""
    table = write(films / "l.csv", "1,a.png,x", "2,a.png,y", columns="id,file,scan")
    cases = read_list(table, volumes=False)
    assert (tuple(cases.ids), cases.carried) == (("1", "2"), {"scan": ["x", "y"]})
    parquet.write_table(pyarrow.table({"n": [7, 8], "path": ["a.png", "b.png"]}), films / "l.parquet")
    cases = read_list(films / "l.parquet", volumes=False, id_column="n")
    assert (tuple(cases.ids), cases.carried) == (("7", "8"), {})
    assert "no column 'patient' with the ids; its columns are 'id', 'file', 'scan'" in refusal(
        table, id_column="patient"
    )


def test_the_column_of_paths_is_found_or_named(films):
    """`path` before `image_path` before `file`; what is not taken is carried; none of them is an error that lists."""
    table = write(films / "l.csv", "a.png,b.png,ward/c.jpg", columns="file,image_path,other")
    cases = read_list(table, volumes=False)
    assert (tuple(cases.ids), cases.carried) == (("b.png",), {"file": ["a.png"], "other": ["ward/c.jpg"]})
    cases = read_list(table, volumes=False, path_column="other")
    assert (tuple(cases.ids), list(cases.carried)) == (("ward/c.jpg",), ["file", "image_path"])
    other = write(films / "m.csv", "a.png", columns="filename")
    assert "no column 'path' or 'image_path' or 'file' with the paths; its columns are 'filename'" in refusal(other)
    assert "no column 'no' with the paths" in refusal(table, path_column="no")


@pytest.mark.parametrize(("mark", "said"), [(";", "';'"), ("\t", "'\\t'")])
def test_a_table_with_other_separators_is_told_from_one_without_the_column(films, mark, said):
    """As spreadsheets of many countries write it: one column with a long name is what the reader sees."""
    table = write(films / "l.csv", f"a.png{mark}1", columns=f"path{mark}label")
    assert f"it is separated by {said}; save it with commas, or with tabs as .tsv" in refusal(table)


def test_names_without_their_folders_are_found_below_the_root(films):
    """Where the first one lies; a file of that name anywhere else is not looked for."""
    table = write(films / "l.csv", "c.jpg", "d.jpg", columns="path")
    found = ", where ward/c.jpg has the name of the first: each row needs the path from there"
    assert f"lead from the table's folder {films}, or from --root where it is given{found}" in refusal(table)
    assert f"lead from the root {films}{found}" in refusal(table, root=films)
    assert "has the name" not in refusal(write(films / "m.csv", "absent.jpg", columns="path"))


def test_relative_paths_lead_from_the_root_or_the_tables_folder(films, tmp_path, monkeypatch):
    """Never from the working directory unasked; where they would lead from there alone, the error says so."""
    monkeypatch.chdir(films)
    lists = tmp_path / "lists"
    lists.mkdir()
    table = write(lists / "l.csv", "a.png,x", "ward/c.jpg,y", "z.png,")
    said = refusal(table)
    assert "3 of 3 paths do not exist: a.png, ward/c.jpg, z.png. " in said
    assert f"lead from the table's folder {lists}" in said
    assert "2 of them exist from the working directory, which --root ." in said
    table = write(lists / "l.csv", "a.png,x", "ward/c.jpg,y")
    assert tuple(read_list(table, volumes=False, root=".").paths) == ("a.png", "ward/c.jpg")
    paths = read_list(table, volumes=False, root=films).paths
    assert tuple(paths) == (str(films / "a.png"), str(films / "ward/c.jpg"))
    said = refusal(table, root=lists)
    assert f"lead from the root {lists}" in said
    assert "working directory" not in said
    assert "the root nowhere of the table's paths is no folder" in refusal(table, root="nowhere")


def test_control_characters_survive_and_are_escaped_in_messages(films):
    """A path and a cell with a line end and an escape sequence."""
    name = "a\n\x1b[31mb.png"
    (films / name).touch()
    table = films / "l.csv"
    with table.open("w", newline="") as file:
        file.write(f'path,la\x1bbel\n"{name}","x\r\ny"\n')
    cases = read_list(table, volumes=False)
    assert tuple(cases.paths) == (str(films / name),)
    assert cases.carried == {"la\x1bbel": ["x\r\ny"]}
    (films / name).unlink()
    assert r"a\n\x1b[31mb.png" in refusal(table)


def test_lesions_of_a_table_have_points(films):
    """Called by path and point or by their ids, several in one volume; a lesion twice is refused, columns carried."""
    rows = ["a.png,1,2,3,n", "a.png,1,2,4.5,m", "b.png,-1,0,1e2,n"]
    columns = "image_path,coordX,coordY,coordZ,label"
    cases = read_list(write(films / "l.csv", *rows, columns=columns), volumes=True, lesions=True)
    assert tuple(cases.ids) == ("a.png (1.0, 2.0, 3.0)", "a.png (1.0, 2.0, 4.5)", "b.png (-1.0, 0.0, 100.0)")
    assert cases.case(1) == Lesion(films / "a.png", (1.0, 2.0, 4.5))
    assert cases.take([2]).points == ((-1.0, 0.0, 100.0),)
    assert cases.carried["label"] == ["n", "m", "n"]
    table = write(films / "l.csv", *rows, f"./{rows[0]}", columns=columns)
    assert "1 paths more than once: " in (said := refusal(table, volumes=True, lesions=True))
    assert "(1.0, 2.0, 3.0)" in said
    table = write(films / "l.csv", "9,a.png,1,2,3", "8,a.png,1,2,x", columns=f"id,{columns[:-6]}")
    assert "line 3: image_path 'a.png'" in refusal(table, volumes=True, lesions=True)
    table = write(films / "l.csv", "9,a.png,1,2,3", "8,a.png,1,2,3", columns=f"id,scan,{columns[11:-6]}")
    cases = read_list(table, volumes=True, lesions=True, path_column="scan")
    assert tuple(cases.ids) == ("9", "8")
    table = write(films / "l.csv", "a.png")
    assert "lacks columns coordX" in refusal(table, volumes=True, lesions=True, path_column="path")


def test_lesions_of_several_tables_are_listed_once(films, monkeypatch):
    """From tables that are given as paths, whose own paths lead from the working directory; Parquet is one, too."""
    monkeypatch.chdir(films)
    lists = films / "lists"
    lists.mkdir()
    columns = "image_path,coordX,coordY,coordZ"
    first = write(lists / "1.csv", "a.png,1,2,3", "a.png,1,2,3", columns=columns)
    cells = {"image_path": ["a.png", "b.png"], "coordX": [1, 5], "coordY": [2.0, 6.0], "coordZ": [3, 7]}
    parquet.write_table(pyarrow.table(cells), lists / "2.parquet")
    cases = find_cases([first, lists / "2.parquet"], volumes=True, lesions=True)
    assert tuple(cases.ids) == ("a.png (1.0, 2.0, 3.0)", "b.png (5.0, 6.0, 7.0)")
    assert cases.case(1) == Lesion(Path("b.png"), (5.0, 6.0, 7.0))
    parquet.write_table(pyarrow.table(cells | {"coordX": [1, None]}), lists / "2.parquet")
    with pytest.raises(OptionError, match=r"row 2: image_path 'b\.png', coordX 'None'"):
        find_cases([lists / "2.parquet"], volumes=True, lesions=True)


# Folders in a table


def test_a_folder_of_dicom_in_a_row_is_one_volume(tmp_path):
    """Directly in it, whatever else is there; of films a folder is an error, as is one without DICOM."""
    write_series(tmp_path / "p1")
    (tmp_path / "p1" / "0.txt").write_text("notes")
    (tmp_path / "p2").mkdir()
    write_series(tmp_path / "p2" / "ct")
    (tmp_path / "p3.nii").touch()
    table = write(tmp_path / "l.csv", "p1/,x", "p3.nii,y")
    cases = read_list(table, volumes=True)
    assert tuple(cases.ids) == ("p1/", "p3.nii")
    assert tuple(cases.paths) == (str(tmp_path / "p1"), str(tmp_path / "p3.nii"))
    said = refusal(table)
    assert f"1 of 2 paths of {table} are folders: {tmp_path / 'p1'}. In each row a film's file is expected" in said
    said = refusal(write(tmp_path / "l.csv", "p1,x", "p2,y", "p3.nii,z"), volumes=True)
    assert f"are folders without DICOM in them: {tmp_path / 'p2'}" in said


# What is refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no columns with a name"),
        ("path,label\n", "has no rows"),
        (",\n1,2\n", "has no columns with a name"),
        ("path,x,x\na.png,1,2\n", "has several columns called x"),
        ("path,x\na.png,1,2\n", r"line 2: 3 cells for 2 columns \(path, x\)"),
        ("path,x\na.png,1\n,2\n\n ,3\n", "has 2 rows without path in column 'path': line 3, line 5. Fill them in"),
        ("id,path\n1,a.png\n,b.png\n", "has 1 rows without id in column 'id': line 3. Fill them in"),
        ("id,path\n" + "1,a.png\n2,b.png\n" * 2, "2 ids more than once in column 'id': 1, 2. Each row"),
        ("path\na.png\nb.png\n./a.png\n", "1 paths more than once: .*a.png. Drop"),
        ("path,slice,f0,score\na.png,1,2,3\n", "has columns called 'slice', 'f0', which .* rename them"),
        ("file,path_,path,id\na.png,1,2,3\n", "the path does not exist: 2"),
        ("file,id,Feature,feature\na.png,1,2,3\n", "has columns called 'feature', which"),
        ("path\na\0.png\n", r"the path does not exist: a\\x00.png"),
        (f"path\n{'a' * 300}.png\n", "the path does not exist"),
        ("path\na.png/b.png\n", "the path does not exist"),
    ],
)
def test_a_wrong_table_is_refused(films, content, said):
    """Rows, columns and ids are named, by the line of the file."""
    (films / "l.csv").write_text(content)
    assert re.search(said, refusal(films / "l.csv"))


def test_blank_cells_and_ids_are_counted_and_ten_are_named(films):
    """A table of thousands is not printed whole; a cell over several lines does not shift the numbers."""
    blank = refusal(write(films / "l.csv", 'a.png,"x\ny"', *[f",{i}" for i in range(30)]))
    assert "has 30 rows without path in column 'path': line 4, " in blank
    assert "line 13, ... (30 in all)" in blank
    twice = refusal(write(films / "l.csv", *[f"a.png,{i % 30}" for i in range(60)], columns="path,id"))
    assert "has 30 ids more than once in column 'id': 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (30 in all)" in twice


def test_what_is_no_table_is_refused(films, tmp_path):
    """A folder, another suffix, nothing, bytes that are no text, no Parquet, paths that are numbers or null."""
    assert "is no table: a file is expected whose name ends in .csv, .tsv, .parquet" in refusal(films)
    assert "is no table" in refusal(films / "a.png")
    with pytest.raises(PathNotFoundError, match=r"the table .*absent\.csv does not exist"):
        read_list(films / "absent.csv", volumes=False)
    for name in ("l.csv", "l.parquet"):
        (films / name).write_bytes(b"path\n\xff.png\n")
        assert f"cannot read {films / name} as " in refusal(films / name)
    parquet.write_table(pyarrow.table({"path": [1.5]}), films / "l.parquet")
    assert "column 'path' holds float, such as 1.5: paths as texts" in refusal(films / "l.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.png", None, ""]}), films / "l.parquet")
    assert "has 2 rows without path in column 'path': row 2, row 3" in refusal(films / "l.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.png"], "feature": [[0.5]]}), films / "l.parquet")
    assert "has columns called 'feature'" in refusal(films / "l.parquet")


def test_a_column_without_a_name_is_left_out_with_a_word(films, caplog):
    """The index that pandas writes; one that a spreadsheet left behind holds nothing, and goes without."""
    cases = read_list(write(films / "l.csv", "0,a.png,", "1,b.png,", columns=",path, "), volumes=False)
    assert (tuple(cases.ids), cases.carried) == (("a.png", "b.png"), {})
    (said,) = warnings(caplog)
    assert "has a column without a name" in said


def test_missing_paths_are_counted_and_ten_are_named(films):
    """Whatever folder they are in, and whether few or many are; broken links are cases that fail by themselves."""
    (films / "many").mkdir()
    names = [f"many/{i}.png" for i in range(290)] + [f"ward/{i}.png" for i in range(10)]
    for name in names:
        (films / name).touch()
    (films / "many" / "link.png").symlink_to("nowhere")
    (films / "many" / "real.png").symlink_to("0.png")
    table = write(films / "l.csv", *names, "many/link.png", "many/real.png", columns="path")
    assert len(read_list(table, volumes=False)) == 302
    gone = names[5:290:3] + names[-5:]
    for name in gone:
        (films / name).unlink()
    with pytest.raises(PathNotFoundError) as caught:
        read_list(table, volumes=False)
    assert f"{len(gone)} of 302 paths do not exist: {', '.join(gone[:10])}, ... ({len(gone)} in all)" in str(
        caught.value
    )


# Large ones


def test_texts_come_back_from_a_column_as_they_were():
    """Letters of several bytes, bytes that are no text, empty ones; a column is a sequence like any other."""
    texts = ["a.png", "", "Ä/胸部.png", os.fsdecode(b"\xff.png"), "\U0001fac1"]
    column = TextColumn.of(iter(texts))
    assert list(column) == list(pickle.loads(pickle.dumps(column))) == texts
    assert (len(column), column[-1], column[1:3], texts[3] in column) == (5, texts[-1], texts[1:3], True)
    assert column == TextColumn.of(texts) != TextColumn.of(texts[1:])
    with pytest.raises(IndexError):
        column[5]


def test_a_share_of_the_cases_is_a_row_of_each_column():
    """All shares together are the whole, and a share is pickled without the rest."""
    count = 1000
    texts = [f"{i}" for i in range(count)]
    columns = {"label": texts, "n": ArrowColumn(pyarrow.chunked_array([range(600), range(600, count)]))}
    cases = Cases(texts, [f"{i}.png" for i in range(count)], columns, None)
    shares = [cases.take(range(rank, count, 3)) for rank in range(3)]
    assert sorted(int(name) for share in shares for name in share.ids) == list(range(count))
    for share in shares:
        assert [f"{i}.png" for i in share.ids] == list(share.paths)
        assert list(share.carried["label"]) == list(share.ids)
        assert list(map(str, share.carried["n"])) == list(share.ids)
    assert len(pickle.dumps(shares[0])) < 0.5 * len(pickle.dumps(cases))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with 20 000 empty films and a list of them with a label."""
    folder = tmp_path_factory.mktemp("many")
    names = [f"a-name-of-the-length-that-radiographs-have-in-hospitals-{i:05}.png" for i in range(20_000)]
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT))
    rows = [f"{name},{('normal', 'nodule')[i % 2]},CT of the chest" for i, name in enumerate(names)]
    yield folder, write(folder / "list.csv", *rows, columns="path,label,study")
    for name in names:
        (folder / name).unlink()


def calls(monkeypatch):
    """A count of what is asked of the disk for a single path."""
    counts = Counter()

    def counting(name):
        real = getattr(os, name)

        def counted(*args, **options):
            counts[name] += 1
            return real(*args, **options)

        return counted

    for name in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, name, counting(name))
    return counts


@pytest.mark.slow
def test_many_paths_are_not_asked_for_one_by_one(many, monkeypatch):
    """On a network's disk each question takes a millisecond: folders are listed, which says what is there."""
    folder, table = many
    counts = calls(monkeypatch)
    assert len(read_list(table, volumes=False)) == 20_000
    assert sum(counts.values()) < 100
    assert len(find_images([folder], volumes=False)) == 20_000
    assert sum(counts.values()) < 200


def test_a_path_in_other_letters_is_asked_for(many, monkeypatch):
    """Where the listing lacks it: disks that do not tell cases of letters apart list one of them."""
    _, table = many
    monkeypatch.setattr(presence, "_listed", lambda *_: {})
    assert len(read_list(table, volumes=False)) == 20_000


@pytest.mark.slow
def test_a_large_list_is_small_and_quick(many):
    """A fifth of 100 000 cases: below 1.5 MB beyond the letters of ids and paths, and a fraction of a second."""
    _, table = many
    begun = time.process_time()
    cases = read_list(table, volumes=False)
    spent = time.process_time() - begun
    texts = sum(len(text) for column in (cases.ids, cases.paths) for text in column)
    del cases
    tracemalloc.start()
    cases = read_list(table, volumes=False)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(cases) == 20_000
    assert held - texts < 1.5e6  # 0.7 MB, pointers above all; 3.0 MB where each label is a text of its own
    assert spent < 1.5  # seconds of the processor: 0.13, and 3 where each case is sought among all others


def test_a_quote_that_does_not_end_is_an_error(tmp_path):
    """It would take the rows below it into its cell, and their cases would be missing without a word."""
    (tmp_path / "list.csv").write_text('path,sex\na.png,"f\nb.png,m\n')
    with pytest.raises(OptionError, match=r"cannot read .*list\.csv as a table"):
        read_list(tmp_path / "list.csv", volumes=False)
