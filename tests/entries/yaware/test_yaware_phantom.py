"""The synthetic cohort: its labels are what was done to the maps, and it follows from its seed."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.entries.yaware import phantom
from zoo.entries.yaware.cohort import read_cohort
from zoo.entries.yaware.phantom import (
    COLUMNS,
    DISEASE_REGIONS,
    SITES,
    Site,
    build_anatomy,
    draw_map,
    draw_site,
    draw_subject,
    grid,
    log_loss,
    main,
)
from zoo.errors import OptionError
from zoo.files import this_machine
from zoo.training.args import run_command

CENTRES = [(side * x, y, z) for (x, y, z), _, _ in DISEASE_REGIONS for side in (1, -1)]
TABLES = {"healthy": "130d5581230f1949", "clinical": "03cbe6def3eb79c1"}
MEANS = {
    "healthy": [0.133104, 0.1267375, 0.0993475, 0.1119469, 0.1385616],
    "clinical": [0.1258767, 0.1188488, 0.1296929, 0.1157985, 0.1272334, 0.1199673],
}
CLEAN = Site(blur=0.1, gamma=1.0, bias=np.zeros(6), noise=0.0, age=(50.0, 10.0))


@pytest.fixture(scope="module")
def anatomy():
    """The template and the maps of atrophy at 6 mm."""
    return build_anatomy(6)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with five healthy and six clinical subjects."""
    out = tmp_path_factory.mktemp("cohorts") / "first"
    main(["--out", str(out), "--healthy", "5", "--clinical", "6"])
    return out


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def voxel(place, spacing=6):
    """Index of the voxel nearest to an MNI coordinate."""
    _, affine = grid(spacing)
    return tuple(np.round(np.linalg.inv(affine) @ (*place, 1))[:3].astype(int))


@pytest.mark.slow
def test_the_folder_holds_maps_tables_and_facts(cohort):
    """Nothing else; the maps are densities, the tables have a row for each, and the facts say that it is synthetic."""
    assert sorted(p.name for p in cohort.iterdir()) == [
        "clinical.csv",
        "clinical.ids.txt",
        "clinical.npy",
        "cohort.json",
        "healthy.csv",
        "healthy.ids.txt",
        "healthy.npy",
    ]
    for name, count in (("healthy", 5), ("clinical", 6)):
        maps, rows = np.load(cohort / f"{name}.npy"), table(cohort / f"{name}.csv")
        assert (maps.shape, maps.dtype) == ((count, 1, 31, 37, 31), np.float32)
        assert maps.min() == 0
        assert 0.5 < maps.max() < 2.5
        assert (maps.reshape(count, -1).std(1) > 0.1).all()
        assert [tuple(row) for row in rows] == [COLUMNS] * count
        assert [row["participant_id"] for row in rows] == [f"{name}{i:05d}" for i in range(count)]
        assert (cohort / f"{name}.ids.txt").read_text().split() == [row["participant_id"] for row in rows]
    facts = json.loads((cohort / "cohort.json").read_text())
    assert (facts["synthetic"], facts["generator"], facts["seed"]) == (True, 1, 0)
    assert (facts["spacing"], facts["shape"], facts["healthy"], facts["clinical"]) == (6, [31, 37, 31], 5, 6)
    assert facts["affine"] == grid(6)[1].tolist()


@pytest.mark.slow
def test_the_old_name_of_the_command_still_runs_it(cohort, monkeypatch, tmp_path):
    """Scripts say `python -m zoo.entries.yaware.synthetic`."""
    arguments = ["--out", str(tmp_path / "same"), "--healthy", "1", "--clinical", "2"]
    monkeypatch.setattr(sys, "argv", ["synthetic", *arguments])
    runpy.run_module("zoo.entries.yaware.synthetic", run_name="__main__")
    for name, count in (("healthy", 1), ("clinical", 2)):
        assert np.array_equal(np.load(tmp_path / "same" / f"{name}.npy"), np.load(cohort / f"{name}.npy")[:count])


@pytest.mark.slow
def test_the_recipes_read_it(cohort):
    """Ages are numbers, diagnoses can be chosen by, and a map becomes what the network takes."""
    healthy = read_cohort(str(cohort / "healthy.npy"), str(cohort / "healthy.csv"), labels=["age"])
    assert healthy.labels.shape == (5, 1)
    volume = healthy.volume(4)
    assert volume.shape == (1, 31, 37, 31)
    assert volume.mean() == pytest.approx(0, abs=1e-5)
    assert volume.std() == pytest.approx(1, abs=1e-5)
    patients = read_cohort(str(cohort / "clinical.npy"), str(cohort / "clinical.csv"), rows="diagnosis=1")
    assert patients.names == ("clinical00001", "clinical00003", "clinical00005")


@pytest.mark.slow
def test_the_generator_has_not_changed(cohort):
    """Comparisons were made on what version 1 draws: another draw is another version.

    Tables bit for bit. Of maps the mean, to what another SciPy or processor may round differently.
    """
    digests = {name: hashlib.sha256((cohort / f"{name}.csv").read_bytes()).hexdigest()[:16] for name in SITES}
    assert phantom.VERSION == 1
    assert digests == TABLES
    for name, expected in MEANS.items():
        assert np.load(cohort / f"{name}.npy").mean((1, 2, 3, 4)) == pytest.approx(expected, rel=1e-5)


def subjects(cohort, count, seed=0, acceleration=0.0):
    """Rows of a cohort as large as one likes, without its maps."""
    part = list(SITES).index(cohort)
    sites = [draw_site(np.random.default_rng([seed, part, 1, i]), cohort) for i in range(SITES[cohort])]
    return [
        draw_subject(np.random.default_rng([seed, part, 0, i]), cohort, i, sites, acceleration) for i in range(count)
    ]


def test_labels_are_as_said():
    """Ages 18 to 88, every second clinical subject a patient of the same ages as the controls, sites disjoint."""
    healthy, clinical = subjects("healthy", 600), subjects("clinical", 400)
    ages = np.array([s["age"] for s in healthy])
    assert ages.min() >= 18
    assert ages.max() <= 88
    assert ages.std() > 12
    assert not any(s["diagnosis"] or s["severity"] for s in healthy)
    assert [s["diagnosis"] for s in clinical] == [0, 1] * 200
    assert all((0.5 <= s["severity"] <= 1.5) == bool(s["diagnosis"]) for s in clinical)
    groups = [np.array([s["age"] for s in clinical if s["diagnosis"] == d]) for d in (0, 1)]
    assert abs(groups[0].mean() - groups[1].mean()) < 3 * 7 * np.sqrt(2 / 200)  # three standard errors
    assert all(g.min() >= 55 and g.max() <= 88 for g in groups)
    sites = [{s["site"] for s in rows} for rows in (healthy, clinical)]
    assert [len(names) for names in sites] == [SITES["healthy"], SITES["clinical"]]
    assert not sites[0] & sites[1]
    assert all(abs(np.mean([s["diagnosis"] for s in clinical if s["site"] == name]) - 0.5) < 0.2 for name in sites[1])
    assert 0.5 < np.median([s["ageing_speed"] for s in healthy]) < 1.5


def test_acceleration_is_of_patients_alone():
    """Their brains age faster by it times their severity; nothing else of anyone changes."""
    for name in SITES:
        for without, with_ in zip(subjects(name, 20), subjects(name, 20, acceleration=0.5), strict=True):
            expected = without["ageing_speed"] * (1 + 0.5 * without["severity"])
            assert with_["ageing_speed"] == pytest.approx(expected, abs=0.002)  # three digits are kept
            assert with_ | {"ageing_speed": 0} == without | {"ageing_speed": 0}


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        (1, (181, 217, 181)),
        (1.5, (121, 145, 121)),
        (2, (91, 109, 91)),
        (3, (61, 73, 61)),
        (4, (46, 55, 46)),
        (4.5, (41, 49, 41)),
        (6, (31, 37, 31)),
    ],
)
def test_every_grid_spans_the_published_one(spacing, shape):
    """First and last voxel lie where those of the published grid lie, and x runs from right to left."""
    found, affine = grid(spacing)
    assert found == shape
    corners = affine @ [[0, found[0] - 1], [0, found[1] - 1], [0, found[2] - 1], [1, 1]]
    assert np.allclose(corners[:3].T, [[90, -126, -72], [-90, 90, 108]])
    assert np.allclose(np.abs(np.diag(affine)[:3]), spacing)


def test_the_fine_grid_is_the_input_contracts():
    """At 1.5 mm shape and affine are those of the published weights' input."""
    shape, affine = grid(1.5)
    published = zoo.model_info("yaware-densenet121").input
    assert shape == published.size
    assert np.array_equal(affine, published.affine)


def test_the_template_lies_where_brains_lie(anatomy):
    """Grey matter in cortex and hippocampus, none in white matter, ventricles and outside; left and right alike."""
    density = anatomy.template
    assert density.shape == (31, 37, 31)
    assert 0.9 < density.max() <= 1
    assert density.min() >= 0
    for place in ((26, -20, -16), (-26, -20, -16), (8, -58, 30), (38, 5, 0)):
        assert density[voxel(place)] > 0.4, place
    for place in ((26, -30, 28), (90, -126, -72), (0, 0, 104), (0, -120, 0)):
        assert density[voxel(place)] < 0.1, place
    assert np.abs(density - density[::-1]).mean() < 0.01


def test_the_disease_lowers_the_density_where_it_sits(anatomy):
    """The same subject with and without it, by a scanner that changes nothing: each voxel loses what the map says.

    The map is deformed with the subject, so the loss is that of a place up to 4 mm away (1.2 mm an axis on average),
    over which a Gaussian of 9 mm and height 0.22 changes by 0.06 at most.
    """
    subject = {"age": 70.0, "ageing_speed": 1.0, "severity": 0.0}
    loss = log_loss(anatomy, subject | {"severity": 1.0}) - log_loss(anatomy, subject)
    assert loss.max() == pytest.approx(0.22, abs=0.03)
    without, with_ = (
        draw_map(anatomy, CLEAN, np.random.default_rng(3), log_loss(anatomy, subject | {"severity": severity}))
        for severity in (0.0, 1.0)
    )
    grey = without > 0.2
    lost = np.log(without[grey] / with_[grey])
    assert lost.min() >= -1e-6
    assert np.abs(lost - loss[grey]).max() < 0.06
    assert np.corrcoef(lost, loss[grey])[0, 1] > 0.98
    for place in CENTRES:
        here = voxel(place)
        assert with_[here] < 0.93 * without[here], place
    assert lost[loss[grey] < 0.005].max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("scanner", range(3))
def test_the_disease_shows_through_a_scanner(anatomy, scanner):
    """Blur, contrast, bias and noise of any clinical site leave less grey matter in a patient's regions."""
    site = draw_site(np.random.default_rng([0, 1, 1, scanner]), "clinical")
    subject = {"age": 70.0, "ageing_speed": 1.0, "severity": 0.0}
    maps = [
        draw_map(anatomy, site, np.random.default_rng(5), log_loss(anatomy, subject | {"severity": severity}))
        for severity in (0.0, 0.5, 1.5)
    ]
    region = anatomy.disease > 0.08
    means = [float(m[region].mean()) for m in maps]
    assert means[0] > means[1] > means[2]
    assert means[2] < 0.93 * means[0]


def test_ageing_lowers_the_density_faster_with_the_years(anatomy):
    """From 20 to 80 years all grey matter, some regions more; the later half more than the earlier; speed counts."""
    grey = anatomy.template > 0.2
    losses = {
        age: log_loss(anatomy, {"age": age, "ageing_speed": 1.0, "severity": 0.0})[grey] for age in (18, 20, 50, 80)
    }
    assert not losses[18].any()
    assert not losses[20].any()
    assert losses[80].min() > 0.09
    assert losses[80].max() > 2 * losses[80].min()
    assert (losses[80] - losses[50] > losses[50]).all()
    fast = log_loss(anatomy, {"age": 80, "ageing_speed": 1.5, "severity": 0.0})[grey]
    assert np.allclose(fast, 1.5 * losses[80])
    everywhere = np.ones_like(anatomy.template)
    young, old = (draw_map(anatomy, CLEAN, np.random.default_rng(1), x * everywhere) for x in (0, 0.1))
    assert old.sum() == pytest.approx(np.exp(-0.1) * young.sum(), rel=1e-5)


@pytest.mark.slow
def test_everything_follows_from_the_seed_and_the_number(cohort, tmp_path):
    """Again the same bytes; a subject does not depend on how many there are; another seed draws others."""
    main(["--out", str(tmp_path / "more"), "--healthy", "1", "--clinical", "7"])
    main(["--out", str(tmp_path / "other"), "--healthy", "1", "--clinical", "2", "--seed", "1"])
    for name, count in (("healthy", 1), ("clinical", 6)):
        first, more, other = (np.load(d / f"{name}.npy") for d in (cohort, tmp_path / "more", tmp_path / "other"))
        assert np.array_equal(first[:count], more[:count])
        assert table(cohort / f"{name}.csv")[:count] == table(tmp_path / f"more/{name}.csv")[:count]
        assert not np.array_equal(first[0], other[0])


@pytest.mark.slow
def test_subjects_and_cohorts_differ(cohort):
    """No two maps are alike, within a cohort or between the two, though both are the same brain underneath."""
    maps = np.concatenate([np.load(cohort / f"{name}.npy").reshape(-1, 31 * 37 * 31) for name in SITES])
    correlation = np.corrcoef(maps) - np.eye(len(maps))
    assert correlation.max() < 0.995
    assert (correlation + np.eye(len(maps))).min() > 0.7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--spacing 5", r"--spacing 5: 1, 1.5, 2, 3, 4, 4.5 or 6 mm, which fill"),
        ("--spacing 12", r"--spacing 12: 1, 1.5"),
        ("--spacing 0", r"--spacing 0: 1, 1.5"),
        ("--spacing nan", r"--spacing nan: 1, 1.5"),
        ("--healthy 0", r"--healthy 0 --clinical 400: expected at least 1 and 2 subjects"),
        ("--clinical 1", r"--healthy 600 --clinical 1: expected"),
        ("--acceleration -0.5", r"--acceleration -0\.5: expected 0 or more"),
        ("--acceleration nan", r"--acceleration nan: expected 0 or more"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, flags, message):
    """A grid that does not fit, or nobody; nothing is made."""
    with pytest.raises(OptionError, match=message):
        main(["--out", str(tmp_path / "cohort"), *flags.split()])
    assert not (tmp_path / "cohort").exists()


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    """On the command line an error is one line and exit code 1."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: main(["--out", str(tmp_path), "--healthy", "1", "--clinical", "2"]))
    assert str(stopped.value) == f"OptionError: {tmp_path} is not empty (thesis.txt): name a new folder"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_nilearn_it_says_what_to_install(tmp_path, monkeypatch):
    """The template comes with that package, which only training needs."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nilearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(OptionError, match=r"template of nilearn .*: pip install .*'nilearn>="):
        main(["--out", str(tmp_path / "cohort"), "--healthy", "1", "--clinical", "2"])


def killed(flags):
    """Run the generator in a process that a patch kills, and return what it left: whole files, temporary files."""
    process = multiprocessing.get_context("fork").Process(target=main, args=(flags,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = sorted(p.name for p in Path(flags[1]).iterdir())
    parts = [n.split(f".{this_machine()}-")[0] for n in left if n.endswith(".tmp")]
    return [n for n in left if not n.endswith(".tmp")], parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies_at", "whole", "part"),
    [(2, [], ".healthy.npy"), (5, ["healthy.csv", "healthy.ids.txt", "healthy.npy"], ".clinical.npy")],
)
def test_what_a_kill_leaves_does_not_look_finished(tmp_path, monkeypatch, dies_at, whole, part):
    """Killed while it draws: only whole files have their names, the facts come last, and the folder is not reused."""
    drawn = []

    def draw(*arguments):
        drawn.append(arguments)
        if len(drawn) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw_map(*arguments)

    monkeypatch.setattr(phantom, "draw_map", draw)
    flags = ["--out", str(tmp_path), "--healthy", "3", "--clinical", "4"]
    assert killed(flags) == (whole, [part])
    with pytest.raises(OptionError, match="is not empty"):
        main(flags)


@pytest.mark.slow
def test_a_table_is_whole_or_absent(tmp_path, monkeypatch):
    """Killed after its first row is on disk."""

    def write(table, rows):
        table.writerow(rows[0])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(csv.DictWriter, "writerows", write)
    assert killed(["--out", str(tmp_path), "--healthy", "2", "--clinical", "2"]) == (
        ["healthy.ids.txt", "healthy.npy"],
        [".healthy.csv"],
    )
