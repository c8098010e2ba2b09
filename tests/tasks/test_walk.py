"""The README's walk from a table of labels to predictions, typed in as it stands."""

import re
import shlex
from pathlib import Path

import planted
import pytest
from PIL import Image

from zoo.commands.phantom import chest_phantom

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("short_caid")
def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, zoo):
    """On generated films, with a run of two steps; each finds what the one before it wrote."""
    block = re.search(r"<!-- own labels -->\n```\n(.*?)```", README, re.DOTALL)[1]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["finetune", "predict", "predict", "info"]
    header = tuple("pneumonia" if name == "disc" else name for name in planted.HEADER)
    planted.write_films(tmp_path, header=header)
    (tmp_path / "new").mkdir()
    for place in ("chest.png", "new/a.png", "new/b.png"):
        Image.fromarray(chest_phantom()).save(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    commands[0] += ["--epochs", "1", "--steps-per-epoch", "2"]
    said = []
    for command in commands:
        code, out, err = zoo(*command)
        assert code == 0, err
        said.append(out)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 3
    assert list((tmp_path / "chest-pictures").iterdir())
    assert "pneumonia" in said[3]
