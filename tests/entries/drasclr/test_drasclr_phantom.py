"""DrasCLR's synthetic cohort: its files agree with each other, and a seed says all that is in them."""

import csv
import json

import numpy as np
import pytest

from zoo.entries.drasclr import phantom
from zoo.entries.drasclr.atlas import PATCH
from zoo.entries.drasclr.patches import open_patches
from zoo.errors import OptionError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two subjects, of whom the second, who is ill, keeps the whole chest."""
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    phantom.main(["--out", str(out), "--subjects", "2", "--volumes", "1"])
    return out


def rows_of(cohort):
    with (cohort / "subjects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_patches_are_what_lies_at_the_landmarks(cohort):
    """Of the chest that was kept, (x, y, z) against axes (z, y, x); each box has some lung of the atlas."""
    landmarks, lungs = np.load(cohort / "landmarks.npy"), np.load(cohort / "lung_mask.npy")
    volume = np.load(cohort / "volume" / "phantom0001.npy")
    patches = open_patches(cohort / "patch" / "phantom0001_patch.npy")
    assert patches.dtype == volume.dtype == np.int16
    for patch, (x, y, z) in zip(patches, landmarks, strict=True):
        box = tuple(slice(start, start + PATCH) for start in (z, y, x))
        assert np.array_equal(patch, volume[box])
        assert lungs[box].mean() > phantom.LEAST_LUNG
    assert json.loads((cohort / "cohort.json").read_text())["landmarks"] == len(landmarks) == len(patches)


@pytest.mark.slow
def test_the_truth_is_where_the_holes_are(cohort):
    """In HU, and as large as the table says; the first subject is healthy, and only the second's truth is kept."""
    volume, truth = (np.load(cohort / name / "phantom0001.npy") for name in ("volume", "truth"))
    healthy, ill = rows_of(cohort)
    assert volume.shape == truth.shape == phantom.SHAPE
    assert np.median(volume[truth > 0]) < -930 < -900 < np.median(volume[(volume > -950) & (volume < -600)])
    assert (healthy["severity"], healthy["share"]) == ("0.0", "0.0")
    severity, share = float(ill["severity"]), float(ill["share"])
    assert share == pytest.approx(phantom.WORST * severity, abs=0.01)  # whole clusters of holes
    assert [file.name for file in (cohort / "truth").iterdir()] == ["phantom0001.npy"]


@pytest.mark.slow
def test_a_subject_follows_from_seed_and_number(cohort):
    """Alone as in its cohort, and another with another seed."""
    again = phantom.draw_subject(np.random.default_rng([0, 1]), 1)
    assert np.array_equal(again.volume, np.load(cohort / "volume" / "phantom0001.npy"))
    assert {name: str(value) for name, value in again.row.items()} == rows_of(cohort)[1]
    other = phantom.draw_survival(np.random.default_rng([1, 1]), 0.5)
    assert other != phantom.draw_survival(np.random.default_rng([0, 1]), 0.5)


@pytest.mark.slow
def test_the_command_overwrites_nothing(cohort, tmp_path):
    """Nor does it begin where there is nothing to draw."""
    with pytest.raises(OptionError, match=r"is not empty \(cohort\.json, .*name a new folder"):
        phantom.main(["--out", str(cohort)])
    with pytest.raises(OptionError, match="--subjects 0 --volumes 5: at least 1 and 0 are expected"):
        phantom.main(["--out", str(tmp_path / "new"), "--subjects", "0"])
    assert not (tmp_path / "new").exists()
