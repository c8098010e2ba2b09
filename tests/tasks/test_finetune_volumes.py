"""`zoo finetune` of volumes: slices that count alike, cubes of a CT, and lesions with their seed points."""

import csv
from dataclasses import replace

import nibabel
import numpy as np
import planted
import pytest
from glcl_volumes import draw
from small_networks import make_small

import zoo as package
from zoo.commands.finetuning import finetune
from zoo.registry import entries, get_entry
from zoo.tasks.data import Images
from zoo.tasks.labelled import read_cohort
from zoo.tasks.labels import classes_or_labels

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.slow]

QUICK = ("--epochs", 1, "--steps-per-epoch", 1, "--batch-size", 2, "--parts", 2)


def write_scans(folder, make, spacing):
    """Write nine scans `0.nii.gz`, ..., and a table with `bright` in every second one."""
    (folder / "scans").mkdir()
    rows = []
    for i in range(9):
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        nibabel.save(nibabel.Nifti1Image(make(i), affine), folder / "scans" / f"{i}.nii.gz")
        split = "train" if i < 4 else "val" if i < 6 else "test"
        rows.append((f"{i}.nii.gz", f"p{i}", i % 2, split))
    return planted.write_rows(folder / "scans.csv", rows, ("file", "patient", "bright", "split"))


def heart(i):
    image, _ = draw(i)
    return image[..., : 6 + i % 3]


def chest(i):
    rng = np.random.default_rng(i)
    image = rng.normal(-300 + 200 * (i % 2), 50, (60, 50, 40 - 16 * (i % 3 > 0)))
    return image.astype(np.int16)


@pytest.fixture
def small_genesis(monkeypatch):
    """Have the encoder's name stand for a network with a sixteenth of the parameters."""
    entry = get_entry("genesis-encoder")
    small = replace(entry, build=lambda config: make_small(entry, config))
    monkeypatch.setitem(entries(), entry.name, small)


@pytest.mark.parametrize(
    ("model", "make", "spacing", "flags"),
    [
        ("glcl-encoder.phantom", heart, (2.0, 2.0, 8.0), ()),
        ("genesis-encoder", chest, (1.0, 1.0, 1.5), ("--from-scratch",)),
    ],
)
def test_what_was_tested_is_what_predict_says(tmp_path, small_genesis, model, make, spacing, flags):
    """Scans have different numbers of slices or cubes: each is one answer, the same in the test and afterwards."""
    table = write_scans(tmp_path, make, spacing)
    data = ("--table", table, "--data", tmp_path / "scans", "--label", "bright", "--group", "patient")
    words = (model, "--task", "classify", *data, "--split", "split", "-o", tmp_path / "out", *QUICK, *flags)
    results = finetune([str(word) for word in words])
    assert results["test"]["cases"] == 3
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predictor = package.load_predictor(tmp_path / "out")
    for row in rows:
        found = predictor(tmp_path / "scans" / row["id"])
        assert found["probabilities"]["bright"] == pytest.approx(float(row["probability_bright"]), abs=2e-5)


def test_lesions_have_their_points(tmp_path):
    """Two lesions of one scan are two cases, each with its own crop: kept under one name, one would be lost."""
    from zoo.tasks.args import FinetuneArgs

    (tmp_path / "scans").mkdir()
    image = np.random.default_rng(0).normal(0, 100, (70, 70, 70)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "scans" / "a.nii.gz")
    rows = [("a.nii.gz", x, 35, 35, x % 2) for x in (30, 31, 32, 33)]
    table = planted.write_rows(tmp_path / "t.csv", rows, ("image_path", "coordX", "coordY", "coordZ", "malign"))
    args = FinetuneArgs(
        model="fmcib-resnet50",
        task="classify",
        table=str(table),
        data=str(tmp_path / "scans"),
        label="malign",
        out="",
        from_scratch=True,
    )
    cohort = read_cohort(args, classes_or_labels)
    assert len(set(cohort.cases.ids)) == 4
    given = Images(cohort.cases, cohort.contract, reader=len, folder=tmp_path)
    assert len({given._key(i) for i in range(4)}) == 4
