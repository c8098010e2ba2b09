"""`zoo overlap`: where ids are read from, what is printed, and which exit code says what."""

import csv
import json

import pandas as pd
import pytest
from PIL import Image

NAME = "caid-resnet50.chestxray14-800"
UNSEEN = ["00039998_000.png", "00039999_000.png"]
"""Numbers that no patient of ChestX-ray14 has, so that nobody was trained on them."""
SEEN = "00000061_012.png"
"""One of the films that the shipped weights were trained on."""


@pytest.fixture
def overlap(zoo):
    """Run the command for the shipped weights."""
    return lambda *arguments: zoo("overlap", *arguments, "--for", NAME)


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def test_nothing_seen_is_code_0(overlap, tmp_path):
    """Where every id could be looked up."""
    code, out, _ = overlap(write(tmp_path / "ids.txt", "\n".join(UNSEEN) + "\n\n"))
    assert code == 0
    assert out.startswith(f"{NAME} saw none of the 2 ids in training\n")
    assert "sha256 dff82474" in out


def test_something_seen_is_code_1(overlap, tmp_path):
    """And it is named."""
    code, out, _ = overlap(write(tmp_path / "ids.txt", "\n".join([*UNSEEN, SEEN])))
    assert code == 1
    assert "saw 1 of the 3 ids in training, 1 by image and 1 by patient" in out
    assert f"seen        {SEEN}" in out


def test_what_is_not_read_is_code_1_and_ten_are_named(overlap, tmp_path):
    """A script that asks for the code must not take a renamed cohort for a clean one."""
    code, out, _ = overlap(write(tmp_path / "ids.txt", "\n".join([*UNSEEN, *(f"scan-{i:02}" for i in range(12))])))
    assert code == 1
    assert "of the other 12 nothing is known" in out
    assert "scan-09, ... (12 in all)" in out
    assert "scan-10" not in out


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_are_read_by_a_column(suffix, overlap, tmp_path):
    """`path` or what --column names; zeros in front of a number stay."""
    frame = pd.DataFrame({"path": UNSEEN, "patient": ["00000061", "00039998"]})
    table = tmp_path / f"cases.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(table)
    else:
        frame.to_csv(table, index=False, sep="\t" if suffix == "tsv" else ",")
    assert overlap(table)[0] == 0
    code, out, _ = overlap(table, "--column", "patient")
    assert (code, "saw 1 of the 2 ids in training, 1 by patient" in out) == (1, True)
    code, _, err = overlap(table, "--column", "film")
    assert (code, "no column 'film'" in err, "'path', 'patient'" in err) == (2, True, True)


def test_folders_stand_for_the_images_in_them(overlap, tmp_path):
    """By their names; other files are passed over."""
    (tmp_path / "films").mkdir()
    for name in (SEEN, UNSEEN[0]):
        Image.new("L", (4, 4)).save(tmp_path / "films" / name)
    write(tmp_path / "films" / "notes.md", "")
    code, out, _ = overlap(tmp_path / "films")
    assert (code, "saw 1 of the 2 ids in training" in out) == (1, True)


def test_rows_are_written_for_each_id(overlap, tmp_path):
    """Empty cells where nothing tells, so that no row says no by mistake."""
    code, _, _ = overlap(
        write(tmp_path / "ids.txt", f"{SEEN}\n{UNSEEN[0]}\nscan\n00000061\n"), "-o", tmp_path / "o.csv"
    )
    assert code == 1
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_seen"], row["patient_seen"]) for row in rows] == [
        ("yes", "yes"), ("no", "no"), ("", ""), ("", "yes")
    ]  # fmt: skip
    assert rows[0]["patient"] == "00000061"


def test_json_has_both_counts(overlap, tmp_path):
    """What was seen, and of how many anything is known."""
    code, out, _ = overlap(write(tmp_path / "ids.txt", f"{SEEN}\nscan\n"), "--json")
    facts = json.loads(out)
    assert code == 1
    assert (facts["ids"], facts["looked_up"], facts["seen_by_image"], facts["seen_by_patient"]) == (2, 1, 1, 1)
    assert (facts["examples"], facts["not_read"], facts["not_read_examples"]) == ([SEEN], 1, ["scan"])
    assert facts["list"]["images"] == 638


def test_wrong_use_is_code_2_and_says_so(zoo, overlap, tmp_path):
    """Before anything is fetched or written."""
    ids = write(tmp_path / "ids.txt", SEEN)
    for arguments, said in (
        ((ids, "-o", tmp_path / "o.xlsx"), "ends in .csv"),
        ((ids, "--column", "x"), "without a table"),
        ((ids, tmp_path), "one list is expected, or images"),
        ((write(tmp_path / "none.txt", "\n"),), "has no ids"),
        ((write(tmp_path / "t.csv", 'path\n""\n'),), "1 rows without an id in column 'path': line 2"),
    ):
        code, _, err = overlap(*arguments)
        assert (code, said in err) == (2, True), err
    assert overlap(tmp_path / "gone.txt")[0] == 1
    code, _, err = zoo("overlap", ids, "--for", "drasclr-cnn3d")
    assert (code, "is not on record" in err, "9179 subjects" in err) == (2, True, True)


def test_info_says_whether_there_is_a_list(zoo):
    """Of a file, in the record, of cohorts alone, or none."""
    for name, said in (
        (NAME, "list: package:caid-resnet50-unet.chestxray14-800.ids.csv (sha256 dff82474"),
        ("glcl-encoder.acdc", "list: 52 patients, in the record"),
        ("yaware-densenet121", "list: none"),
        ("rad-dino-vitb14", "cohorts: ChestX-ray14 (112120 images), all of it; CheXpert"),
        ("drasclr-cnn3d", "training_ids  no list of the training images is on record"),
    ):
        assert said in zoo("info", name)[1]
