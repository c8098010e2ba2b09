"""y-Aware's data: tables and volumes are matched, identifiers checked, each volume z-scored; bad input is named."""

import logging
import pickle

import nibabel
import numpy as np
import pytest
import torch

from zoo.entries.yaware import MODEL, PREPROCESSING
from zoo.entries.yaware.cohort import check_apart, read_cohort
from zoo.entries.yaware.data import Volumes
from zoo.errors import InputContractError, OptionError
from zoo.loading import load_transform
from zoo.registry import get_entry
from zoo.training.data import seed_of

SHAPE = (30, 33, 29)


def maps(count, seed=0):
    """Positive volumes that differ, with values as densities have them."""
    return np.random.default_rng(seed).gamma(2.0, 0.1, size=(count, *SHAPE)).astype(np.float32)


def scored(volume):
    """The z-score by its definition."""
    values = volume.astype(np.float64)
    return (values - values.mean()) / (values.std() + 1e-8)


def write(folder, text, name="table.csv"):
    """A table of lines with commas."""
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.fixture
def array(tmp_path):
    """Four volumes in the authors' layout, and their table."""
    values = maps(4)
    np.save(tmp_path / "maps.npy", values[:, None])
    table = "participant_id,age,split,diagnosis\na,20,train,0\nb,31.5,test,1\nc,44,train,1\nd,60,train,0\n"
    write(tmp_path, table)
    return values, str(tmp_path / "maps.npy"), str(tmp_path / "table.csv")


def save_nifti(path, values, affine, code=4):
    """A NIfTI file that says where it lies."""
    image = nibabel.Nifti1Image(values.astype(np.float32), affine)
    image.set_sform(affine, code)
    nibabel.save(image, path)


@pytest.fixture
def folder(tmp_path):
    """Three NIfTI files on a grid of their own, axes as in SPM's maps."""
    values, affine = maps(3, seed=1), np.diag([-6.0, 6.0, 6.0, 1.0])
    (tmp_path / "maps").mkdir()
    for name, volume in zip(("sub-1", "sub-10", "sub-2"), values, strict=True):
        save_nifti(tmp_path / "maps" / f"mwp1_{name}_T1w.nii.gz", volume, affine)
    return values, str(tmp_path / "maps")


# An array


def test_an_array_is_read_in_the_order_of_its_table(array):
    """Rows, labels, names and volumes agree; a volume is z-scored over all of it."""
    values, data, table = array
    cohort = read_cohort(data, table, labels=["age", "diagnosis"])
    assert (len(cohort), cohort.shape, cohort.names) == (4, SHAPE, ("a", "b", "c", "d"))
    assert cohort.labels.tolist() == [[20, 0], [31.5, 1], [44, 1], [60, 0]]
    for i in range(4):
        assert cohort.volume(i).dtype == np.float32
        np.testing.assert_allclose(cohort.volume(i)[0], scored(values[i]), atol=1e-5)  # float32 of numbers up to 10


@pytest.mark.parametrize(
    ("scale", "dtype", "words"),
    [(100, "uint8", "whole numbers from 0 to"), (100, "float32", "percentages"), (-1, "float32", "no negative values")],
)
def test_an_array_of_something_else_is_refused(tmp_path, scale, dtype, words):
    """What `load_transform` refuses of a file, training refuses of an array, unless it is told to take it as it is."""
    np.save(tmp_path / "maps.npy", (maps(2) * scale).astype(dtype))
    table = write(tmp_path, "age\n20\n30\n")
    with pytest.raises(InputContractError, match=f"volume 1 in .*{words}"):
        read_cohort(str(tmp_path / "maps.npy"), table).volume(1)
    assert read_cohort(str(tmp_path / "maps.npy"), table, grid="any").volume(1).std() == pytest.approx(1, abs=1e-4)


def test_what_is_odd_about_a_volume_is_said_once(tmp_path, caplog):
    """Not once a pass, nor once a part it is in, nor by each loader process."""
    np.save(tmp_path / "maps.npy", maps(2) * np.float32(0.05))
    cohort = read_cohort(str(tmp_path / "maps.npy"), write(tmp_path, "age\n20\n30\n"), labels=["age"])
    for part in (cohort, cohort.take([1, 0]), cohort.take([0])):
        for _ in range(2):
            loaded = torch.utils.data.DataLoader(Volumes(part), sampler=[(0, i) for i in range(len(part))])
            assert len(list(loaded)) == len(part)
    assert [record.getMessage().count("the largest lie between 1 and 3") for record in caplog.records] == [1, 1]
    assert cohort.told.is_shared()


def test_rows_are_chosen_by_their_columns(array):
    """All conditions must hold; names and volumes stay together."""
    values, data, table = array
    cohort = read_cohort(data, table, labels=["age"], rows="split=train, diagnosis=0")
    assert cohort.names == ("a", "d")
    assert cohort.labels.tolist() == [[20], [60]]
    np.testing.assert_allclose(cohort.volume(1)[0], scored(values[3]), atol=1e-5)
    assert cohort.take([1]).names == ("d",)
    np.testing.assert_array_equal(cohort.take([1]).volume(0), cohort.volume(1))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "uint8", "int32"])
def test_any_real_dtype_is_read(tmp_path, dtype):
    """Also without the channel axis; the values are those stored."""
    values = (maps(2) * 100).astype(dtype)
    np.save(tmp_path / "maps.npy", values)
    cohort = read_cohort(str(tmp_path / "maps.npy"), write(tmp_path, "age\n20\n30\n"), grid="any")
    assert cohort.names == ("volume 0", "volume 1")
    assert cohort.labels.shape == (2, 0)
    np.testing.assert_allclose(cohort.volume(1)[0], scored(values[1]), atol=1e-5)


def test_an_array_larger_than_memory_is_only_mapped(tmp_path):
    """66 GB of holes: what is read is one volume."""
    shape = (2**14, 1, 100, 100, 100)
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), np.float32)) | {"shape": shape}
    with (tmp_path / "maps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + 4 * int(np.prod(shape, dtype=np.int64)))
        file.seek(start + 4 * 10**6 * 7)
        file.write(np.ones(16, np.float32).tobytes())
    cohort = read_cohort(str(tmp_path / "maps.npy"), write(tmp_path, "age\n" + "20\n" * 2**14))
    assert cohort.volume(7).shape == (1, 100, 100, 100)
    assert cohort.volume(7)[0, 0, 0, 0] > 0


def test_identifiers_beside_the_array_are_compared(array, tmp_path):
    """The same order passes, another one names the first row that differs."""
    _, data, table = array
    (tmp_path / "maps.ids.txt").write_text("a\nb\nc\nd\n")
    assert len(read_cohort(data, table, rows="split=train")) == 3
    (tmp_path / "maps.ids.txt").write_text("a\nc\nb\nd\n")
    with pytest.raises(OptionError, match=r"2 of 4 rows differ, the first is row 2, 'b' where the array has 'c'"):
        read_cohort(data, table)
    (tmp_path / "maps.ids.txt").write_text("a\nb\nc\n")
    with pytest.raises(OptionError, match=r"maps.ids.txt has 3 identifiers, .*table.csv has 4 rows"):
        read_cohort(data, table)
    with pytest.raises(OptionError, match="no column participant_id"):
        read_cohort(data, write(tmp_path, "age\n1\n2\n3\n4\n", "other.csv"))
    (tmp_path / "maps.ids.txt").write_text("a\nb b\n\nc\nd\n")
    assert read_cohort(data, write(tmp_path, "participant_id\na\nb b\nc\nd\n")).names[1] == "b b"


def test_an_order_that_cannot_be_checked_is_said_once(array, tmp_path, caplog):
    """However often the array and the table are read; a table without identifiers has nothing to compare."""
    _, data, table = array
    with caplog.at_level(logging.INFO, "zoo"):
        for rows in ("split=train", "split=test"):
            read_cohort(data, table, rows=rows)
        read_cohort(data, write(tmp_path, "age\n1\n2\n3\n4\n", "other.csv"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "nothing shows whether the rows" in record.message
    assert "maps.ids.txt" in record.message


def test_sessions_tell_rows_of_one_subject_apart(array, tmp_path):
    """Without them a repeated subject is an error, as is an empty one."""
    _, data, _ = array
    twice = "participant_id,session\na,1\na,2\nb,1\nb,2\n"
    (tmp_path / "maps.ids.txt").write_text("a_1\na_2\nb_1\nb_2\n")
    assert read_cohort(data, write(tmp_path, twice)).names == ("a_1", "a_2", "b_1", "b_2")
    with pytest.raises(OptionError, match=r"1 identifiers \(participant_id, session\) are in several rows.*a_1"):
        read_cohort(data, write(tmp_path, twice.replace("a,2", "a,1")))
    with pytest.raises(OptionError, match=r"1 identifiers \(participant_id\) .*: b"):
        read_cohort(data, write(tmp_path, "participant_id\na\nb\nb\nc\n"))
    for empty in ("", "n/a"):
        with pytest.raises(OptionError, match=r"1 rows have no participant_id \(first: row 3"):
            read_cohort(data, write(tmp_path, f"participant_id,age\na,1\nb,2\n{empty},3\nc,4\n"))


def test_rows_need_no_session_or_run(array, tmp_path):
    """BIDS has n/a where there is none: it is no part of the name, and the ids file does not have it either."""
    _, data, _ = array
    table = write(tmp_path, "participant_id,session,run\na,n/a,n/a\nb,,2\nc,1,n/a\nd,1,1\n")
    (tmp_path / "maps.ids.txt").write_text("a\nb_2\nc_1\nd_1_1\n")
    assert read_cohort(data, table).names == ("a", "b_2", "c_1", "d_1_1")


# A folder


def test_files_are_found_by_their_subject(folder, tmp_path):
    """As a whole word: sub-1 is not in sub-10. On a grid of their own they are read as they are."""
    values, data = folder
    table = write(tmp_path, "participant_id\tage\nsub-10\t30\nsub-1\t20\n", "participants.tsv")
    cohort = read_cohort(data, table, labels=["age"], grid="any")
    assert cohort.shape == SHAPE
    np.testing.assert_allclose(cohort.volume(0)[0], scored(values[1]), atol=1e-5)
    np.testing.assert_allclose(cohort.volume(1)[0], scored(values[0]), atol=1e-5)


@pytest.mark.parametrize("prefix", ["mwp1", "m0wp1", "mwc1", "smwp1", "s8mwp1", "wp1", "wc1", "c1", "mwp1_", ""])
def test_files_of_cat12_and_spm_are_found(tmp_path, prefix):
    """They put their prefix before the scan's name, with nothing between: still sub-01 is not sub-010."""
    values = maps(2)
    for name, volume in zip(("sub-010_ses-1", "sub-01_ses-1"), values, strict=True):
        save_nifti(tmp_path / f"{prefix}{name}_T1w.nii", volume, np.diag([-6.0, 6.0, 6.0, 1.0]))
    table = write(tmp_path, "participant_id,session\nsub-01,ses-1\nsub-010,n/a\n")
    cohort = read_cohort(str(tmp_path), table, grid="any")
    assert [path.name for path in cohort.origins] == [f"{prefix}{n}_T1w.nii" for n in ("sub-01_ses-1", "sub-010_ses-1")]
    for row in ("ub-01", "sub-0", "b-01"):
        with pytest.raises(InputContractError, match=f"1 of 1 volumes are not in .*: {row}$"):
            read_cohort(str(tmp_path), write(tmp_path, f"participant_id\n{row}\n"), grid="any")


def test_numbers_are_found_behind_a_prefix_that_ends(tmp_path):
    """mwp107 is the map of 07; c17 may be subject 17's, or of the group c."""
    for name in ("mwp107.nii", "c17.nii"):
        save_nifti(tmp_path / name, maps(1)[0], np.diag([-6.0, 6.0, 6.0, 1.0]))
    found = read_cohort(str(tmp_path), write(tmp_path, "participant_id\n07\n"), grid="any").origins
    assert [place.name for place in found] == ["mwp107.nii"]
    with pytest.raises(InputContractError, match="1 of 1 volumes are not in"):
        read_cohort(str(tmp_path), write(tmp_path, "participant_id\n7\n"), grid="any")


def test_files_are_found_by_their_name(folder, tmp_path):
    """A column `file` says it, of the rows that are used."""
    values, data = folder
    text = "file,split\nmwp1_sub-2_T1w.nii.gz,train\nabsent.nii,test\nmwp1_sub-1_T1w.nii.gz,train\n"
    cohort = read_cohort(data, write(tmp_path, text), grid="any", rows="split=train")
    assert cohort.names == ("mwp1_sub-2_T1w.nii.gz", "mwp1_sub-1_T1w.nii.gz")
    np.testing.assert_allclose(cohort.volume(0)[0], scored(values[2]), atol=1e-5)
    with pytest.raises(InputContractError, match=r"1 of 3 volumes are not in .*: absent.nii"):
        read_cohort(data, write(tmp_path, text), grid="any")


@pytest.mark.slow
def test_files_of_the_published_grid_keep_its_contract(tmp_path):
    """What the transform of the entry makes of the file; what it refuses names the subject."""
    target = get_entry(MODEL).preprocessing
    affine, size = np.array(target.affine), target.size
    values = np.zeros(size, np.float32)
    values[30:90, 40:110, 30:90] = np.random.default_rng(0).uniform(0, 0.8, (60, 70, 60))
    save_nifti(tmp_path / "a.nii", values, affine)
    save_nifti(tmp_path / "b.nii", values * 1000, affine)
    cohort = read_cohort(str(tmp_path), write(tmp_path, "participant_id\na\nb\n"))
    assert cohort.shape == size
    np.testing.assert_array_equal(cohort.volume(0), load_transform(MODEL)(tmp_path / "a.nii").numpy())
    np.testing.assert_allclose(cohort.volume(0)[0], scored(values), atol=1e-4)
    with pytest.raises(InputContractError, match=r"^b in .*b.nii"):
        cohort.volume(1)


def test_files_are_brought_to_the_grid_of_a_contract(tmp_path, monkeypatch):
    """That of the weights they are for; by one transform, that nothing is looked up for anew."""
    affine = np.array([[-6.0, 0, 0, 90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])
    shape = (31, 37, 31)
    values = np.zeros(shape, np.float32)
    values[8:23, 10:28, 8:23] = np.random.default_rng(0).uniform(0, 0.8, (15, 18, 15))
    for name, turn in (("a", 1), ("b", -1)):  # b's first axis runs the other way
        start = np.array([[turn, 0, 0, 0 if turn > 0 else 30], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        save_nifti(tmp_path / f"{name}.nii", values[::turn], affine @ start)
    contract = PREPROCESSING.override({"size": list(shape), "affine": affine.tolist()})
    table = write(tmp_path, "participant_id\na\nb\n")
    cohort = read_cohort(str(tmp_path), table, contract=contract)
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "absent.json"))  # reading any manifest would fail
    assert (cohort.shape, cohort.affine) == (shape, None)
    for i in range(2):
        np.testing.assert_allclose(cohort.volume(i)[0], scored(values), atol=1e-5)
    with pytest.raises(OptionError, match=r"the position of these weights' input \(\(31, 37, 31\) voxels\) is not on"):
        read_cohort(str(tmp_path), table, contract=contract.override({"affine": None}))


def test_files_that_differ_in_grid_or_handedness_are_named(folder, tmp_path):
    """One of another shape, one mirrored: the brain would be too."""
    values, data = folder
    save_nifti(f"{data}/x-other.nii", maps(1)[0, :29], np.diag([-6.0, 6.0, 6.0, 1.0]))
    save_nifti(f"{data}/y-mirrored.nii", values[0], np.diag([6.0, 6.0, 6.0, 1.0]))
    cohort = read_cohort(data, write(tmp_path, "participant_id\nsub-1\nother\nmirrored\n"), grid="any")
    with pytest.raises(
        InputContractError, match=r"^other in .*x-other.nii has \(29, 33, 29\) voxels.*: \(30, 33, 29\)"
    ):
        cohort.volume(1)
    with pytest.raises(InputContractError, match=r"^mirrored in .*axes RAS, .* axes LAS, .* are expected"):
        cohort.volume(2)


@pytest.mark.parametrize(
    ("scale", "origin", "said"),
    [(1.5, 0, r"voxels of 1.5 x 6 x 6 mm.*voxels of 6 x 6 x 6 mm"), (6, 2, r"\(2, 0, 0\) mm: .*\(0, 0, 0\) mm")],
)
def test_files_of_one_cohort_lie_at_one_place(folder, tmp_path, scale, origin, said):
    """Another size of the voxels or another origin names the file; a header's rounding does not matter."""
    values, data = folder
    affine = np.diag([-6.0, 6.0, 6.0, 1.0])
    save_nifti(f"{data}/x-near.nii", values[0], affine + np.eye(4, k=3) * 5e-4)
    affine[0, 0], affine[0, 3] = -scale, origin
    save_nifti(f"{data}/y-other.nii", values[0], affine)
    cohort = read_cohort(data, write(tmp_path, "participant_id\nsub-1\nnear\nother\n"), grid="any")
    np.testing.assert_array_equal(cohort.affine, np.diag([-6.0, 6.0, 6.0, 1.0]))
    np.testing.assert_array_equal(cohort.volume(1), cohort.volume(0))
    with pytest.raises(InputContractError, match=rf"^other in .*y-other.nii has .*{said}"):
        cohort.volume(2)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("participant_id\nsub-1\nsub-3\n", InputContractError, "1 of 2 volumes are not in .*: sub-3"),
        ("participant_id\nsub-1\nT1w\n", OptionError, "3 files in .* fit T1w: mwp1_sub-10_T1w.nii.gz.*column 'file'"),
        ("participant_id\nsub-1\nmwp1_sub-1\n", OptionError, "1 files belong to several rows"),
        ("age\n20\n", OptionError, "has neither a column file nor participant_id"),
    ],
)
def test_files_that_cannot_be_told_are_named(folder, tmp_path, text, error, message):
    """No file for a row, several files, one file for several rows, nothing to go by."""
    with pytest.raises(error, match=message):
        read_cohort(folder[1], write(tmp_path, text), grid="any")


# Bad tables


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["Age"]}, "table.csv lacks columns Age; it has participant_id, age, split, diagnosis"),
        ({"labels": ["split"]}, "4 of 4 rows have no finite number in column 'split' .first: a 'train', b 'test'"),
        ({"rows": "site=1"}, "lacks columns site"),
        ({"rows": "split=val"}, "none of 4 rows has split=val"),
        ({"rows": "split"}, "rows 'split': expected column=value"),
        ({"grid": "mni"}, "grid must be one of published, any, not 'mni'"),
    ],
)
def test_wrong_requests_are_refused(array, arguments, message):
    """The message repeats the request and says what there is."""
    _, data, table = array
    with pytest.raises(OptionError, match=message):
        read_cohort(data, table, **arguments)


@pytest.mark.parametrize("cell", ["", "nan", "n/a", "inf", "old"])
def test_missing_ages_are_counted_and_named(array, tmp_path, cell):
    """Of the rows that are used; columns that are no label may have holes."""
    _, data, _ = array
    table = write(tmp_path, f"participant_id,age,split\na,20,1\nb,{cell},1\nc,40,1\nd,{cell},2\n")
    with pytest.raises(OptionError, match=rf"2 of 4 rows have no finite number in column 'age' \(first: b '{cell}', d"):
        read_cohort(data, table, labels=["age"])
    with pytest.raises(OptionError, match="1 of 3 rows"):
        read_cohort(data, table, labels=["age"], rows="split=1")
    assert len(read_cohort(data, table)) == 4


def test_text_columns_have_no_holes(array, tmp_path):
    """What is needed must be there; the absent column's message lists the others."""
    _, data, _ = array
    cohort = read_cohort(data, write(tmp_path, "participant_id,group\na,x\nb, \nc,y\nd,NaN\n"))
    with pytest.raises(OptionError, match=r"2 of 4 rows have no value in column 'group' \(first: b ' ', d 'NaN'\)"):
        cohort.column("group")
    with pytest.raises(OptionError, match="lacks columns site; it has participant_id, group"):
        cohort.column("site")
    assert cohort.take([0, 2]).column("group") == ["x", "y"]
    cohort = read_cohort(array[1], write(tmp_path, "medication\nnone\nsome\nNone\nsome\n"))
    assert cohort.column("medication") == ["none", "some", "None", "some"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age\n1\n2\n3\n", r"maps.npy has 4 volumes, .*table.csv has 3 rows"),
        ("age\n", "table.csv has no rows"),
        ("", "table.csv has no rows"),
        ("age,sex\n1,f\n2,m\n3,4,f\n", r"table.csv, line 4: 3 cells for 2 columns \(age, sex\)"),
        ("age,sex,age\n1,f,2\n", "table.csv has several columns called age"),
    ],
)
def test_tables_of_another_length_are_refused(array, tmp_path, text, message):
    """One row a volume; one cell a column; one name a column."""
    with pytest.raises(OptionError, match=message):
        read_cohort(array[1], write(tmp_path, text))


def test_what_spreadsheets_leave_behind_is_no_column(array, tmp_path):
    """Commas at the ends of lines, with nothing between them."""
    text = "age,group,,\n1,a,,\n2,b,,,,\n3,a\n4,b,,\n"
    assert read_cohort(array[1], write(tmp_path, text)).column("group") == ["a", "b", "a", "b"]


def test_tables_that_are_none_are_refused(array, tmp_path):
    """No file, and no text."""
    with pytest.raises(OptionError, match=r"none.csv does not exist"):
        read_cohort(array[1], str(tmp_path / "none.csv"))
    (tmp_path / "table.csv").write_bytes(b"age\n\xff\xfe\n")
    with pytest.raises(OptionError, match=r"cannot read .*table.csv as a table"):
        read_cohort(array[1], str(tmp_path / "table.csv"))


# Bad volumes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 30, 30), np.float32), r"shape \(2, 30, 30\): \(n, 1, D, H, W\) or \(n, D, H, W\) is expected"),
        (np.ones((2, 3, 30, 30, 30), np.float32), r"shape \(2, 3, 30, 30, 30\)"),
        (np.ones((2, 28, 30, 30), np.float32), r"volumes of \(28, 30, 30\) voxels; at least 29"),
        (np.ones((2, 30, 30, 30), np.complex64), "holds complex64: one array of real numbers"),
        (np.array([{}, {}]), "cannot read an array of volumes from .*maps.npy"),
    ],
)
def test_arrays_that_are_no_volumes_are_refused(tmp_path, values, message):
    """Before anything is trained."""
    np.save(tmp_path / "maps.npy", values)
    with pytest.raises(InputContractError, match=message):
        read_cohort(str(tmp_path / "maps.npy"), write(tmp_path, "age\n1\n2\n"))


def test_files_that_are_no_arrays_are_refused(array, tmp_path):
    """Cut short, several arrays in one, not there."""
    _, data, table = array
    np.savez(tmp_path / "several.npz", a=maps(1))
    with pytest.raises(InputContractError, match="holds several arrays"):
        read_cohort(str(tmp_path / "several.npz"), table)
    with pytest.raises(OptionError, match=r"none.npy is neither an array of volumes .* nor a folder"):
        read_cohort(str(tmp_path / "none.npy"), table)
    whole = (tmp_path / "maps.npy").read_bytes()
    (tmp_path / "maps.npy").write_bytes(whole[:-100])
    with pytest.raises(InputContractError, match=r"cannot read .*maps.npy"):
        read_cohort(data, table)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [((2, 3, 4, 5), np.nan, "NaN"), ((2, 3, 4, 5), np.inf, "infinite"), (2, 7, "constant")],
)
def test_volumes_without_a_z_score_are_named(array, where, value, message):
    """One voxel that is no number, or all the same: named by subject and file."""
    values, data, table = array
    values[where] = value
    np.save(data, values)
    cohort = read_cohort(data, table)
    with pytest.raises(InputContractError, match=rf"^c in .*maps.npy: .*{message}"):
        cohort.volume(2)
    cohort.volume(3)


# Two cohorts


def test_cohorts_that_share_volumes_or_subjects_are_told(array, tmp_path):
    """By their place in an array or a folder, whatever the table calls them; and by subject, wherever they lie."""
    values, data, table = array
    train, test = (read_cohort(data, table, rows=f"split={part}") for part in ("train", "test"))
    check_apart(train, test)
    with pytest.raises(OptionError, match=r"share 1 volumes and 1 subjects \(first: c\), of .*table.csv"):
        check_apart(train, train.take([1]))
    unnamed = read_cohort(data, write(tmp_path, "split\ntest\ntest\ntrain\ntrain\n", "x.csv"), rows="split=train")
    with pytest.raises(OptionError, match=r"share 2 volumes and 0 subjects \(first: volume 2, volume 3\)"):
        check_apart(train, unnamed)
    np.save(tmp_path / "later.npy", values)
    sessions = "participant_id,session\nb,2\nx,2\nb,3\ny,2\n"
    later = read_cohort(str(tmp_path / "later.npy"), write(tmp_path, sessions, "later.csv"))
    check_apart(train, later)
    with pytest.raises(OptionError, match=r"share 0 volumes and 1 subjects \(first: b\)"):
        check_apart(later, test)


# The data set


def test_items_hold_the_seeds_of_their_views(array):
    """They follow from seed, pass, index and view; label and volume from the index alone."""
    _, data, table = array
    cohort = read_cohort(data, table, labels=["age", "diagnosis"])
    volumes = Volumes(cohort, seed=5)
    item, later = volumes[3, 1], volumes[4, 1]
    assert len(volumes) == 4
    assert {name: (tuple(x.shape), x.dtype) for name, x in item.items()} == {
        "image": ((1, *SHAPE), torch.float32),
        "label": ((2,), torch.float32),
        "draws": ((2,), torch.int64),
    }
    assert item["label"].tolist() == [31.5, 1]
    assert item["draws"].tolist() == [seed_of(5, 3, 1, 0), seed_of(5, 3, 1, 1)]
    assert torch.equal(item["image"], later["image"])
    draws = [tuple(Volumes(cohort, seed=s)[p, i]["draws"].tolist()) for s in (0, 1) for p in (0, 1) for i in range(4)]
    assert len({draw for pair in draws for draw in pair}) == 32


def test_a_cohort_travels_to_loader_processes(array):
    """Pickled it is small, whatever the array's size, and reads the same."""
    _, data, table = array
    cohort = read_cohort(data, table, labels=["age"])
    packed = pickle.dumps(cohort)
    assert len(packed) < 5000
    np.testing.assert_array_equal(pickle.loads(packed).volume(2), cohort.volume(2))
