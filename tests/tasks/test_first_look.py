"""The first look at a run's images counts what it saw."""

import planted

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
