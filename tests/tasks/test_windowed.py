"""`zoo finetune` of CT by every encoder whose weights have a window of HU: what was tested is what `zoo predict` says.

Scans are drawn, and in the place of each network is one of a few values that averages blocks of its input, so that the
reading, the window and the parts of each entry are its own and a run takes seconds.
"""

import csv
from dataclasses import replace
from importlib import import_module

import nibabel
import numpy as np
import planted
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo as package
from zoo.commands.finetuning import finetune
from zoo.formats import open_checkpoint
from zoo.loading import input_of
from zoo.registry import entries, get_entry

CELLS = {"voco": 32}
"""Voxels a side of a cell of an encoder's map, where windows of a CT are put together from maps; 16 for others."""
LUNGS = ("drasclr-cnn3d",)
"""Takes its patches at landmarks of lungs, which drawn noise has not: its own tests have phantoms."""
FEATURES = 2


class Thin(nn.Module):
    """An encoder that averages blocks of its input, and powers of it."""

    def __init__(self, cell, classes):
        super().__init__()
        self.cell, self.num_features, self.num_classes = cell, FEATURES, classes
        self.scale = nn.Parameter(torch.linspace(5, 15, FEATURES)[:, None, None, None])
        self.classifier = nn.Linear(FEATURES, classes) if classes else nn.Identity()

    def forward_features(self, x):
        powers = torch.cat([x.abs() ** (1 + k / 3) for k in range(FEATURES)], 1)
        return F.avg_pool3d(powers, self.cell) * self.scale

    def forward(self, x):
        return self.classifier(self.forward_features(x).mean((2, 3, 4)))

    def get_classifier(self):
        return self.classifier


def is_windowed(entry):
    """Whether the input is HU between two limits: `window`, or what `mean` and `std` make 0 and 1."""
    return entry.dimension == 3 and entry.is_encoder and entry.preprocessing.units == "HU"


WINDOWED = [name for name, entry in entries().items() if is_windowed(entry) and name not in LUNGS]
KINDS = {(get_entry(name).family, get_entry(name).preprocessing, get_entry(name).windows): name for name in WINDOWED}
"""One encoder of each family and input: those that differ in width alone are the same thin network here."""


@pytest.fixture
def thin(monkeypatch):
    """Puts a thin network in the place of a model's."""
    done = []

    def put(name):
        entry = get_entry(name)
        family, cell = import_module(f"zoo.entries.{entry.family}"), CELLS.get(entry.family, 16)
        none = dict.fromkeys(("correct", "reset", "complete"))
        made = replace(
            entry,
            build=lambda config: Thin(cell, config["num_classes"]),
            convert=lambda state: (dict(state), {}),
            config={"num_classes": 0, "in_channels": 1},
            required=("scale",),
            head=("classifier.",),
            stem="scale",
            stages=(("scale",),),
            settled=(),
            unused={},
            **none,
        )
        ours = tuple(made if own.name == name else own for own in family.ENTRIES)
        monkeypatch.setattr(family, "ENTRIES", ours)
        entries.cache_clear()
        done.append(name)
        return made

    yield put
    monkeypatch.undo()
    entries.cache_clear()


def write_scans(folder):
    """Write drawn CTs, every second one denser, between air and bone that most windows end before; and their table."""
    (folder / "scans").mkdir()
    rows = []
    for i in range(14):
        rng = np.random.default_rng(i)
        scan = rng.normal(-60 + 120 * (i % 2), 60, (60, 56, 50)).round()
        scan[:, :4] = 900
        scan[:6], scan[-6:] = rng.normal(-1000, 8, (2, 6, 56, 50)).round()
        affine = np.diag([-1.5, -1.5, 1.5, 1.0])
        nibabel.save(nibabel.Nifti1Image(scan.astype(np.int16), affine), folder / "scans" / f"{i}.nii.gz")
        split = "train" if i < 6 else "val" if i < 10 else "test"
        middle = (affine @ (30, 28, 25, 1))[:3] * (-1, -1, 1)  # LPS, as published coordinates of lesions are
        rows.append((f"{i}.nii.gz", f"p{i}", i % 2, split, *(f"{x:g}" for x in middle)))
    header = ("image_path", "patient", "dense", "split", "coordX", "coordY", "coordZ")
    return planted.write_rows(folder / "scans.csv", rows, header)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", KINDS.values())
def test_the_window_goes_with_the_network(name, thin, tmp_path, zoo):
    """A file without it would be given HU, or another model's window: its answers would be of other images."""
    entry, table = thin(name), write_scans(tmp_path)
    data = ("--table", table, "--data", tmp_path / "scans", "--label", "dense", "--group", "patient")
    run = ("--epochs", 2, "--steps-per-epoch", 2, "--batch-size", 2, "--parts", 2, "--from-scratch")
    results = finetune(list(map(str, (name, "--task", "classify", *data, "--split", "split", "-o", tmp_path, *run))))
    saved = tmp_path / "model.safetensors"
    assert "input" in open_checkpoint(saved).metadata, "else the model's own stands in its place"
    found = input_of(name, saved)
    assert found == entry.preprocessing
    assert found.window is not None or found.std is not None
    out = tmp_path / "answers.csv"
    code, _, said = zoo("predict", saved, "--list", table, "--root", tmp_path / "scans", "-o", out)
    assert code == 0, said
    answers = {row["id"]: row for row in rows_of(out)}
    tested = rows_of(tmp_path / "predictions.csv")
    assert len(tested) == results["test"]["cases"] == 4
    for row in tested:
        answer = answers[row["id"]]
        assert float(answer["probability_dense"]) == pytest.approx(float(row["probability_dense"]), abs=2e-6)
        assert answer["predicted_dense"] == row["predicted_dense"]
    assert len({row["probability_dense"] for row in tested}) > 1
    assert package.load_predictor(saved).input == found


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_window_is_looked_at():
    """A new entry for CT is among them by itself."""
    assert {"voco-swinvit-h", "ct-fm-segresenc", "genesis-encoder", "fmcib-resnet50", "monai-ssl-vitb16"} <= {
        *KINDS.values()
    }
    assert (len(WINDOWED), len(KINDS)) == (8, 6)
