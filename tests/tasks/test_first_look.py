"""The first look at a run's images counts what it saw."""

from dataclasses import replace

import nibabel
import numpy as np
import planted
import pytest
from balls import write_volumes

from zoo.embedding import Cases
from zoo.tasks import first_look
from zoo.tasks.args import FinetuneArgs
from zoo.training.finetune import starting_input

NAME = "caid-resnet50.chestxray14-800"


def test_films_that_were_not_looked_at_are_not_counted_among_those_that_were(tmp_path, monkeypatch):
    """Of a large cohort some headers are read, evenly apart: 400 of 400 would be said of 800 films."""
    planted.write_films(tmp_path, side=200)
    paths = tuple(map(str, sorted((tmp_path / "images").iterdir())))
    half = len(paths) // 2
    monkeypatch.setattr(first_look, "_MOST", half)
    args = FinetuneArgs(model=NAME, task="classify", out=str(tmp_path))
    (line,) = first_look.look_at(Cases(paths, paths, {}, None), starting_input(args), args).warnings
    assert line.startswith(f"{half} of the {half} films that were looked at, of {len(paths)}, have more than 2 times")


@pytest.mark.parametrize(("model", "warned"), [("anatomix-unet", True), ("ct-fm-segresnet", False)])
def test_volumes_that_are_stored_along_several_axes_are_warned_of(model, warned, tmp_path):
    """Where the network takes them as they are stored: turned files of one scan gave other labels without a word."""
    write_volumes(tmp_path, 3, (24, 24, 24), np.eye(4), scale=(-900, 900))
    turned = tmp_path / "images" / "scan1.nii.gz"
    nibabel.save(nibabel.load(turned).as_reoriented([[0, -1], [1, -1], [2, 1]]), turned)
    paths = tuple(map(str, sorted((tmp_path / "images").iterdir())))
    args = FinetuneArgs(model=model, task="segment", out=str(tmp_path))
    said = first_look.look_at(
        Cases(paths, paths, {}, None), starting_input(replace(args, from_scratch=True)), args
    ).warnings
    assert [line for line in said if "along axes to RAS 2, LPS 1, and anatomix-unet takes them" in line] == [*said]
    assert bool(said) == warned
