"""`zoo probe`: a report and a page in a folder, baselines beside every encoder, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zoo.commands import probing
from zoo.evaluation import probes
from zoo.evaluation.report import ProbeReport

pytestmark = pytest.mark.usefixtures("short_caid", "warm_home")

MODEL = "caid-resnet50.chestxray14-800"
PATIENTS = 16
COLUMNS = ("--column", "ill", "--group", "patient", "--split", "part")


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch):
    """Most of the time would go into the choice among them."""
    monkeypatch.setattr(probes, "PENALTIES", (1e-2,))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two noisy films of each patient, those of ill ones brighter: their mean alone tells."""
    folder = tmp_path_factory.mktemp("probed")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2 * PATIENTS):
        ill = i // 2 % 2
        pixels = rng.normal(100 + 60 * ill + 10 * rng.normal(), 30, (64, 64)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"film{i:02}.png")
        rows.append(
            {
                "file": f"film{i:02}.png",
                "patient": f"p{i // 2}",
                "ill": "ny"[ill],
                "part": "test" if i % 8 < 4 else "train",
            }
        )
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def features(films):
    """Features of some model of which nothing is known."""
    table = pd.read_csv(films / "labels.csv")
    values = np.random.default_rng(1).standard_normal((len(table), 6)).astype(np.float32)
    file = films / "features.csv"
    pd.DataFrame({"path": table["file"], **{f"f{i}": values[:, i] for i in range(6)}}).to_csv(file, index=False)
    return file


def asked(films, *more):
    return ["probe", films / "labels.csv", *COLUMNS, "--device", "cpu", *more]


@pytest.mark.slow
def test_a_name_is_embedded_and_has_its_baselines(zoo, films, tmp_path):
    """The random twin of three seeds and plain intensities; a second run embeds nothing again and finds the same."""
    out = tmp_path / "out"
    command = asked(films, MODEL, "-o", out, "--workers", 0)
    code, said, _ = zoo(*command)
    assert code == 0
    report = ProbeReport.read(out / "report.json")
    assert [each.role for each in report.encoders] == ["encoder", "random", "intensities"]
    encoder, random, plain = report.encoders
    assert (encoder.name, encoder.twin) == (MODEL, random.name)
    assert random.facts["seeds"] == [0, 1, 2]
    assert plain.dimensions == 16 * 16 + 16
    assert plain.measures["linear"]["auroc"].value > 0.9
    linear = {each.to: each.name for each in encoder.differences if each.probe == "linear"}
    assert linear == {"random": random.name, "intensities": plain.name}
    assert report.shown[0].path == str(films / "film00.png")
    assert [each.encoder for each in report.overlaps] == [MODEL]
    assert report.repeat.command.startswith(f"zoo probe {films / 'labels.csv'} {MODEL} --column ill --group patient")
    for text in (*report.verdict, MODEL, random.name, plain.name, str(out / "report.json")):
        assert text in said
    assert "<table" in (out / "report.html").read_text()
    assert "probing" in (out / "probe.log").read_text()
    parts = {path: path.stat().st_mtime_ns for path in out.glob("features/*/part-*")}
    assert len(parts) == 4
    code, said, _ = zoo(*command, "--json")
    again = json.loads(said)
    assert {path: path.stat().st_mtime_ns for path in out.glob("features/*/part-*")} == parts
    assert again["encoders"] == json.loads((out / "report.json").read_text())["encoders"]
    assert ProbeReport.from_json(said).encoders == report.encoders


@pytest.mark.slow
def test_features_alone_have_plain_intensities_where_the_images_are(zoo, films, features, tmp_path):
    """The table lies beside its films; a file that does not say its network has no random twin, which is said."""
    code, said, _ = zoo(*asked(films, "--features", features, "-o", tmp_path / "out"))
    assert code == 0
    report = ProbeReport.read(tmp_path / "out" / "report.json")
    assert [each.role for each in report.encoders] == ["encoder", "intensities"]
    assert "no random weights beside features.csv" in said


@pytest.mark.slow
def test_a_case_that_only_a_baseline_lacks_is_said_to_be_so(zoo, films, features, tmp_path):
    """One image of 32 without plain intensities is taken from the encoders, too: the report must not blame these."""
    copy = tmp_path / "films"
    shutil.copytree(films, copy)
    (copy / "film00.png").write_text("no image")
    code, said, _ = zoo(*asked(copy, "--features", features, "-o", tmp_path / "out"))
    report = ProbeReport.read(tmp_path / "out" / "report.json")
    assert (code, report.cohort.cases, report.cohort.without_features) == (0, 2 * PATIENTS - 1, 1)
    assert f"Of 1 of {2 * PATIENTS} images plain intensities could not be computed" in said
    assert "no features of some encoder or baseline" in said


@pytest.mark.slow
def test_a_baseline_takes_no_more_than_a_twentieth_of_the_cases(zoo, films, features, tmp_path):
    """Where every eighth image cannot be read for plain intensities, these are left out, not the cases."""
    copy = tmp_path / "films"
    shutil.copytree(films, copy)
    for i in range(0, 2 * PATIENTS, 8):
        (copy / f"film{i:02}.png").write_text("no image")
    code, said, _ = zoo(*asked(copy, "--features", features, "-o", tmp_path / "out"))
    report = ProbeReport.read(tmp_path / "out" / "report.json")
    assert (code, report.cohort.cases, [each.role for each in report.encoders]) == (0, 2 * PATIENTS, ["encoder"])
    assert f"There are no plain intensities: of 4 of {2 * PATIENTS} images they could not be computed" in said


@pytest.mark.slow
def test_features_without_images_say_what_to_give(zoo, films, features, tmp_path):
    """A table elsewhere."""
    table = tmp_path / "labels.csv"
    table.write_text((films / "labels.csv").read_text())
    command = ["probe", table, *COLUMNS, "--features", features, "-o", tmp_path / "out"]
    code, said, _ = zoo(*command)
    assert code == 0
    assert "note: There are no baselines" in said
    assert "--data FOLDER" in said
    code, said, _ = zoo(*command, "--data", films)
    assert "no baselines" not in said
    assert "plain intensities" in said


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["caid-resnet51"], 2, "caid-resnet51"),
        (["--features", "nowhere.npz"], 1, "no features at nowhere.npz"),
        ([], 2, "nothing to probe"),
        ([MODEL, MODEL], 2, "asked for twice"),
        ([MODEL, "--kind", "ordinal"], 2, "binary, classes, numbers"),
        ([MODEL, "--split", "side"], 2, "no such column"),
        (["caid-resnet50-unet"], 2, "no pooled features"),
    ],
)
def test_wrong_use_is_said(zoo, films, tmp_path, more, code, said):
    """Before anything is embedded."""
    found, _, error = zoo(*asked(films, *more, "-o", tmp_path / "out"))
    assert (found, said in error) == (code, True), error
    assert not (tmp_path / "out").exists(), "a refused probe leaves an empty folder"


@pytest.mark.slow
def test_a_refused_probe_leaves_nothing(zoo, films, features, tmp_path):
    """Refused late, once features are read, also below folders that were made for it; what was there stays."""
    out = tmp_path / "deep" / "out"
    lines = (films / "labels.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(lines[:5]))
    command = ["probe", tmp_path / "one.csv", *COLUMNS[:4], "--features", features, "-o"]
    assert zoo(*command, out)[0] == 2
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert zoo(*command, out)[0] == 2
    assert list(out.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(zoo, films, features):
    """`-o .` among images."""
    code, _, error = zoo(*asked(films, "--features", features, "-o", films))
    assert code == 2
    assert "give a new folder" in error
    assert not (films / "report.json").exists()


def test_a_folder_called_features_makes_no_report_of_its_neighbours(zoo, films, features, tmp_path):
    """A project's own folder of that name, beside its code."""
    (tmp_path / "features").mkdir()
    (tmp_path / "code.py").touch()
    code, _, error = zoo(*asked(films, "--features", features, "-o", tmp_path))
    assert (code, "holds code.py and no report" in error) == (2, True)


def test_a_folder_that_has_features_alone_is_anothers(zoo, films, features, tmp_path):
    """A project's own folder of that name, with nothing beside it."""
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.txt").touch()
    code, _, error = zoo(*asked(films, "--features", features, "-o", tmp_path))
    assert (code, "holds features and no report" in error) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


def test_a_probe_that_was_killed_while_embedding_is_known_by_its_log(films, features, tmp_path, monkeypatch):
    """It has features and no report; without a log the same command would refuse its own folder."""

    def killed(*_, out, **__):
        (out / "model").mkdir(parents=True)
        (out / "model" / "part-00000.parquet").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(probing, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        probing.probe_into(films / "labels.csv", [features], [], tmp_path / "out")
    probing.check_folder(tmp_path / "out")


def test_a_report_answers_nothing(zoo, tmp_path):
    """`zoo predict OUT` of a probe: who takes it for a training learns what does train."""
    (tmp_path / "report.json").write_text("{}")
    code, _, error = zoo("predict", tmp_path, tmp_path, "-o", tmp_path / "answers.csv")
    assert code == 2
    assert "it holds a report of `zoo probe`, which keeps no network that answers" in error
