"""`zoo predict` and `zoo info FILE`: a row for each image whatever becomes of it, and what a file says in words."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from fine_tuned import CAID, labels, rewritten, save, with_head
from PIL import Image

import zoo as package
from zoo.commands.phantom import chest_phantom
from zoo.tasks.outputs import Outputs

pytestmark = pytest.mark.usefixtures("short_caid", "warm_home")

NAMES = ("=effusion", "pneumonia")
"""The first would be a formula as the head of a column, were it not for the word before it."""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two phantoms, and one file that is no film."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(2):
        Image.fromarray(chest_phantom(96, seed=i)).save(folder / f"{i}.png")
    (folder / "1a.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def run(scratch):
    out = scratch / "predicting"
    save(with_head(CAID, NAMES, scale=0.02), out, CAID, labels(0.0, 1.0), NAMES)
    return out


def table_of(file):
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ","))


def test_each_image_has_a_row_and_one_that_failed_its_reason(zoo, run, films, tmp_path):
    """Exit code 1, its cells empty, all others as the predictor has them."""
    out = tmp_path / "out.csv"
    code, said, error = zoo("predict", run, films, "-o", out, "--device", "cpu", "--workers", 0)
    assert code == 1
    assert f"{out}: answers for 2 image(s)" in said
    assert "labels hold from these probabilities on: =effusion 0, pneumonia 1" in said
    assert "1a.png" in error
    rows = table_of(out)
    columns = [f"{what}_{name}" for what in ("probability", "predicted") for name in NAMES]
    assert list(rows[0]) == ["path", *columns, "error"]
    assert [row["path"] for row in rows] == [str(films / name) for name in ("0.png", "1.png", "1a.png")]
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    assert [rows[2][column] for column in columns] == ["", "", "", ""]
    predict = package.load_predictor(run, device="cpu")
    for row in rows[:2]:
        for name, probability in predict(row["path"])["probabilities"].items():
            assert float(row[f"probability_{name}"]) == pytest.approx(probability, rel=1e-4)
        assert (row[f"predicted_{NAMES[0]}"], row[f"predicted_{NAMES[1]}"]) == ("1", "0")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_warning_that_holds_of_each_image_is_said_once(zoo, run, tmp_path, caplog, workers):
    """By `predict` and `embed`, whoever reads the images."""
    for i in range(3):
        Image.fromarray(chest_phantom(96, seed=i) // 20).save(tmp_path / f"{i}.png")
    for command in (("predict", run), ("embed", CAID)):
        caplog.clear()
        code, _, error = zoo(*command, tmp_path, "-o", tmp_path / "out.csv", "--device", "cpu", "--workers", workers)
        assert code == 0, error
        said = [r.getMessage() for r in caplog.records if "hardly any contrast" in r.getMessage()]
        assert len(said) == (2 if workers == 0 else 1)  # what another process says is on the screen alone
        assert said[-1].startswith("3 images have this warning (--debug names each), the first is ")


@pytest.mark.slow
def test_a_table_of_images_keeps_its_columns(zoo, run, films, tmp_path):
    """Ids, the label that is already known under its own name, and a cell that a spreadsheet would run."""
    listed, out = tmp_path / "list.csv", tmp_path / "out.tsv"
    listed.write_text("file,id,pneumonia,note\n0.png,a,1,=1+1\n1.png,b,0,\n")
    code, _, error = zoo("predict", run, "--list", listed, "--root", films, "-o", out, "--device", "cpu")
    assert code == 0, error
    rows = table_of(out)
    assert list(rows[0])[:4] == ["id", "path", "pneumonia", "note"]
    assert [(row["id"], row["pneumonia"], row["note"]) for row in rows] == [("a", "1", "'=1+1"), ("b", "0", "")]
    assert rows[0]["path"] == str(films / "0.png")


@pytest.mark.slow
def test_the_column_of_ids_may_have_any_name(zoo, run, films, tmp_path):
    """The name goes by that column then; without --list the option has no meaning, and a wrong one is named."""
    listed, out = tmp_path / "list.csv", tmp_path / "out.csv"
    listed.write_text("file,patient\n0.png,a\n1.png,b\n")
    words = ("predict", run, "--list", listed, "--root", films, "-o", out, "--device", "cpu", "--id-column")
    code, _, error = zoo(*words, "patient")
    assert code == 0, error
    assert [(row["id"], row["path"]) for row in table_of(out)] == [
        ("a", str(films / "0.png")),
        ("b", str(films / "1.png")),
    ]
    code, _, error = zoo(*words, "person")
    assert (code, "no column 'person' with the ids" in error, "--id-column" in error) == (2, True, True), error
    code, _, error = zoo("predict", run, films, "-o", out, "--id-column", "patient")
    assert (code, "--id-column without --list" in error) == (2, True), error


def test_the_table_of_images_is_not_replaced(zoo, run, films, tmp_path):
    """The user's labels would be gone, or become those of the network."""
    listed = tmp_path / "cases.csv"
    listed.write_text("path\n0.png\n")
    code, _, error = zoo("predict", run, "--list", listed, "--root", films, "-o", tmp_path / "." / "cases.csv")
    assert code == 2
    assert "is the table of --list" in error
    assert listed.read_text() == "path\n0.png\n"


@pytest.mark.slow
def test_a_number_of_the_list_keeps_all_its_digits(zoo, run, films, tmp_path):
    """Answers are rounded; a patient's number that Parquet has as a fraction would be another patient's."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    listed, out = tmp_path / "list.parquet", tmp_path / "out.csv"
    parquet.write_table(arrow.table({"path": ["0.png", "1.png"], "patient": [12345678.0, None]}), listed)
    code, _, error = zoo("predict", run, "--list", listed, "--root", films, "-o", out, "--device", "cpu")
    assert code == 0, error
    assert [row["patient"] for row in table_of(out)] == ["12345678.0", ""]


@pytest.mark.slow
def test_a_table_in_parquet_has_the_columns_of_the_csv(zoo, run, films, tmp_path):
    """Read by plain pandas: numbers are numbers, a gap is null, and columns of the list keep their types."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    cells = {"path": ["0.png", "1a.png", "1.png"], "id": ["007", "=8", "9"], "dose": [1.5, None, 2.5]}
    parquet.write_table(arrow.table(cells), tmp_path / "list.parquet")
    for suffix in ("csv", "parquet"):
        words = ("--list", tmp_path / "list.parquet", "--root", films, "-o", tmp_path / f"out.{suffix}")
        assert zoo("predict", run, *words, "--device", "cpu")[0] == 1
    frame, rows = pandas.read_parquet(tmp_path / "out.parquet"), table_of(tmp_path / "out.csv")
    assert list(frame) == list(rows[0])
    assert frame["id"].tolist() == ["007", "=8", "9"]
    assert frame["dose"].tolist()[::2] == [1.5, 2.5]
    assert frame["error"].isna().tolist() == [True, False, True]
    for name in NAMES:
        found = frame[f"probability_{name}"]
        assert found.dtype == "float64"
        assert found.isna().tolist() == [False, True, False]
        assert found.tolist()[::2] == pytest.approx([float(rows[i][f"probability_{name}"]) for i in (0, 2)], rel=1e-5)
    alone = ("predict", run, films / "1a.png", "-o", tmp_path / "none.parquet", "--device", "cpu")
    assert zoo(*alone)[0] == 1
    types = parquet.read_schema(tmp_path / "none.parquet")
    assert {str(types.field(f"predicted_{name}").type) for name in NAMES} == {"int64"}
    assert str(types.field("error").type) == "string"


def test_a_name_that_parquet_cannot_hold_is_refused_at_once(zoo, run, films, tmp_path, monkeypatch):
    """Names of files are bytes; hours later, the whole table could not be written."""
    pytest.importorskip("pyarrow")
    odd = tmp_path / "odd\udcff.png"
    odd.write_bytes((films / "0.png").read_bytes())
    monkeypatch.setattr("zoo.commands.predicting.embed_each", None)
    code, _, error = zoo("predict", run, odd, "-o", tmp_path / "out.parquet", "--device", "cpu")
    assert (code, "is no text in UTF-8" in error) == (2, True), error


def test_a_column_called_like_an_answer_is_refused(zoo, run, films, tmp_path):
    """One of them would be lost."""
    listed = tmp_path / "list.csv"
    listed.write_text("path,probability_pneumonia\n0.png,1\n")
    code, _, error = zoo("predict", run, "--list", listed, "--root", films, "-o", tmp_path / "out.csv")
    assert code == 2
    assert "'probability_pneumonia'" in error
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (None, "no OUT"),
        ("out.json", ".csv, .tsv, .parquet"),
        (".", ".csv, .tsv, .parquet"),
        ("nowhere/out.csv", "folder does not exist"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(zoo, run, films, tmp_path, monkeypatch, out, said):
    """Before the network is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.embedding.embedder.load_model", None)
    code, _, error = zoo("predict", run, films, *(["-o", out] if out else []))
    assert code != 0
    assert said in error


def test_an_earlier_table_stays_where_a_run_fails(zoo, run, films, tmp_path, monkeypatch):
    """Whole or not at all."""
    from zoo.commands import predicting

    out = tmp_path / "out.csv"
    out.write_text("before")
    monkeypatch.setattr(predicting, "_answer", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(predicting.predict(run, [films], out, None, {}, {"device": "cpu"}, workers=0))
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "zoo-home" not in path.name] == ["out.csv"]


@pytest.mark.slow
def test_classes_and_numbers_have_columns_of_their_own(zoo, run, films, tmp_path):
    """The class that is decided on by its name; numbers without probabilities."""
    film, out = films / "0.png", tmp_path / "out.csv"
    said = {"outputs": json.dumps(Outputs("classes").as_header()), "classes": '["no", "yes"]'}
    file = rewritten(run / "model.safetensors", tmp_path / "classes.safetensors", **said)
    assert zoo("predict", file, film, "-o", out, "--device", "cpu")[0] == 0
    (row,) = table_of(out)
    assert list(row) == ["path", "probability_no", "probability_yes", "predicted", "error"]
    assert row["predicted"] == ("yes" if float(row["probability_yes"]) > 0.5 else "no")
    numbers = Outputs("numbers", means=(0.0, 0.0), deviations=(1.0, 1.0))
    said = {"outputs": json.dumps(numbers.as_header()), "classes": '["age", "height"]', "task": "regress"}
    file = rewritten(run / "model.safetensors", tmp_path / "numbers.safetensors", **said)
    assert zoo("predict", file, film, "-o", out, "--device", "cpu")[0] == 0
    assert list(table_of(out)[0]) == ["path", "predicted_age", "predicted_height", "error"]


@pytest.mark.slow
def test_pictures_lie_beside_the_table(zoo, run, films, tmp_path):
    """One for each image that has answers."""
    out = tmp_path / "out.csv"
    code, said, error = zoo("predict", run, films, "-o", out, "--device", "cpu", "--picture")
    assert code == 1, error
    assert sorted(path.name for path in (tmp_path / "out-pictures").iterdir()) == ["0.png", "1.png"]
    assert "pictures of 2 image(s), by occlusion" in said


def test_pictures_of_files_of_one_name_are_told_apart():
    """By their folders; and of lesions in one volume by their number."""
    from zoo.commands.predicting import picture_names
    from zoo.embedding import Cases

    paths = ("a/1.png", "b/1.png", "b/2.png", "b/2.png")
    assert picture_names(Cases(paths, paths, {}, None)) == ["a_1", "b_1", "2", "2-2"]


# zoo info FILE


def test_info_says_what_a_file_is(zoo, run):
    """Task, thresholds, input, base with its digest and licences, command and version; the same as JSON."""
    code, out, _ = zoo("info", run)
    assert code == 0
    known = package.model_info(CAID)
    for text in (
        "caid-resnet50",
        "classify: labels that may hold together or not at all",
        "=effusion: from probability 0 on",
        "pneumonia: from probability 1 on",
        "size: 64, 64",
        known.sha256,
        "commercial: unknown",
        "python -m zoo finetune by hand",
        f"zoo {package.__version__}",
    ):
        assert text in out
    facts = json.loads(zoo("info", run / "model.safetensors", "--json")[1])
    assert facts["outputs"] == [{"name": NAMES[0], "threshold": 0.0}, {"name": NAMES[1], "threshold": 1.0}]
    assert facts["base"]["licences"] == json.loads(json.dumps(known.licences))


def test_info_says_whose_input_it_shows(zoo, run, tmp_path):
    """That of the model, where a file says nothing, may be another than the images had that it was trained on."""
    assert "from: this file" in zoo("info", run)[1]
    silent = rewritten(run / "model.safetensors", tmp_path / "silent.safetensors", input=None)
    out = zoo("info", silent)[1]
    assert "from: the model's own: this file does not say" in out
    assert "size: 224, 224" in out
    assert json.loads(zoo("info", silent, "--json")[1])["input_from"] == "model"


def test_info_of_a_published_run_says_that_it_does_not_predict(zoo, run, tmp_path):
    """Its header is shown none the less."""
    file = rewritten(run / "model.safetensors", tmp_path / "published.safetensors", outputs=None)
    code, out, _ = zoo("info", file)
    assert code == 0
    assert "pneumonia" in out
    assert "does not say how its outputs become answers" in out
    code, _, error = zoo("predict", file, tmp_path, "-o", tmp_path / "out.csv")
    assert code == 1
    assert "zoo finetune" in error


def test_info_of_a_file_without_a_header_names_inspect(zoo, tmp_path):
    """Nothing is made up."""
    file = tmp_path / "bare.pth"
    torch.save({"weight": torch.zeros(2)}, file)
    code, _, error = zoo("info", file)
    assert code == 1
    assert f"zoo inspect {file}" in error
    code, _, error = zoo("info", tmp_path / "run.safetensors")
    assert code == 1
    assert "run.safetensors does not exist" in error


@pytest.mark.slow
def test_what_a_file_says_cannot_steer_a_terminal(zoo, run, tmp_path):
    """Escaped in the page, in the columns' names and in errors."""
    said = {"classes": json.dumps(["a\x1b[2J", "b\nforged"]), "command": "python -m zoo \x1b]0;x\x07"}
    file = rewritten(run / "model.safetensors", tmp_path / "odd.safetensors", **said)
    code, out, _ = zoo("info", file)
    assert code == 0
    assert "\x1b" not in out
    assert "\nforged" not in out
    assert "\\x1b[2J" in out
    image = tmp_path / "film.png"
    Image.fromarray(np.asarray(chest_phantom(96))).save(image)
    assert zoo("predict", file, image, "-o", tmp_path / "out.csv", "--device", "cpu")[0] == 0
    assert "\x1b" not in (tmp_path / "out.csv").read_text()


# Labels of pixels and voxels


@pytest.fixture(scope="module")
def segmenter(scratch):
    """A U-Net for slices with a drawn head, and a heart's volume on a turned grid."""
    network = package.load_model("glcl-unet", pretrained=False, num_classes=3)
    out = scratch / "segmenting"
    save(network, out, "glcl-unet", Outputs("voxels"), ("background", "left", "right"))
    draws = np.random.default_rng(0)
    image = nibabel.Nifti1Image(draws.random((60, 50, 3), np.float32), np.diag([-1.4, 1.4, 8.0, 1]))
    nibabel.save(image, scratch / "heart.nii.gz")
    return out, scratch / "heart.nii.gz"


@pytest.mark.slow
def test_labels_go_into_a_folder_on_their_own_grid(zoo, segmenter, tmp_path):
    """As the predictor finds them, with a picture beside; what is no volume is named at the end."""
    run, volume = segmenter
    out, broken = tmp_path / "labels", tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no volume")
    code, said, error = zoo("predict", run, volume, broken, "-o", out, "--picture", "--device", "cpu")
    assert code == 1
    assert "labels of 1 image(s) (0 background, 1 left, 2 right)" in said
    assert "broken.nii.gz" in error
    (file,) = out.iterdir()
    found, expected = nibabel.load(file), package.load_predictor(run, device="cpu")(volume)
    assert (file.name, expected["classes"]) == ("heart_labels.nii.gz", ["background", "left", "right"])
    np.testing.assert_array_equal(found.get_fdata(), expected["labels"])
    np.testing.assert_allclose(found.affine, np.diag([-1.4, 1.4, 8.0, 1]))
    assert [path.name for path in (tmp_path / "labels-pictures").iterdir()] == ["heart.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "o.csv"), "a folder"),
        (("-o", "o", "--workers", 2), "--workers"),
        (("-o", "o", "--precision", "fp8"), "precision='fp8'"),
    ],
)
def test_what_has_no_meaning_for_labels_is_refused(zoo, segmenter, tmp_path, monkeypatch, words, said):
    """A table, processes that read, and a precision that would be another one without a word."""
    monkeypatch.chdir(tmp_path)
    code, _, error = zoo("predict", segmenter[0], segmenter[1], *words)
    assert code == 2
    assert said in error


def test_a_head_for_other_labels_is_not_made_fresh(zoo, segmenter, tmp_path):
    """Nor are labels found by random weights."""
    names = json.dumps(["background", "left", "right", "both"])
    file = rewritten(segmenter[0] / "model.safetensors", tmp_path / "four.safetensors", classes=names)
    code, _, error = zoo("predict", file, segmenter[1], "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "no head with 4 outputs" in error
    assert "have no labels" not in error, "it is said once, not of each image"


def test_segment_takes_the_windows_of_a_run(zoo, tmp_path, monkeypatch):
    """As `zoo predict` does, not those of the entry, in which the same network finds other labels."""
    network = package.load_model("anatomix-unet", pretrained=False, num_classes=3)
    outputs = Outputs("voxels", window=(32, 32, 32))
    save(network, tmp_path / "run", "anatomix-unet", outputs, ("background", "left", "right"))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    seen = []

    def label(*given, window=(), **options):
        seen.append(window)
        return np.zeros((4, 4, 4), np.uint8), np.eye(4)

    monkeypatch.setattr("zoo.tasks.labelling.label_image", label)
    how = ("--checkpoint", tmp_path / "run" / "model.safetensors", "-o", tmp_path / "out", "--device", "cpu")
    code, _, error = zoo("segment", "anatomix-unet", tmp_path / "scan.nii.gz", *how)
    assert (code, seen) == (0, [(32, 32, 32)]), error
