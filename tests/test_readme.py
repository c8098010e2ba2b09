"""What the README shows can be typed in as it stands."""

import importlib.util
import re
from functools import reduce
from importlib import metadata
from pathlib import Path

import pytest
from fine_tuned import CAID, labels, save, with_head
from PIL import Image

import zoo
from zoo.commands.phantom import chest_phantom

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_programs_run_one_after_the_other(tmp_path, monkeypatch):
    """Every block of Python, in one session, with a film and a run where they look for one, and no connection."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 2
    (tmp_path / "films").mkdir()
    for place in ("chest.png", "films/a.png"):
        Image.fromarray(chest_phantom()).save(tmp_path / place)
    save(with_head(CAID, ["pneumonia"]), tmp_path / "run", CAID, labels(0.5), ["pneumonia"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    session = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), session)
    assert session["features"].shape == (1, 2048)
    assert session["found"].values.shape == (1, 2048)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bzoo\.([a-z_]+(?:\.[a-z_]+)*)\(", README))))
def test_what_it_calls_is_there_after_import_zoo(name):
    """Also where it is named in a sentence, and within a module that nobody imported."""
    assert callable(reduce(getattr, name.split("."), zoo))


def test_the_table_of_models_is_that_of_entries_and_manifest():
    """`python scripts/models_table.py` writes it; every model stands in it once."""
    spec = importlib.util.spec_from_file_location("models_table", CHECKOUT / "scripts" / "models_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.readme() == README
    names = re.findall(r"^\| \[`([\w-]+)`\]", README, re.MULTILINE)
    assert sorted(names) == sorted(zoo.list_models())


def test_its_first_lines_count_what_the_registry_has():
    """Networks, families, and networks with weights that load without more than a download."""
    from zoo.commands.listing import list_weights
    from zoo.registry import FAMILIES

    counted = re.search(r"(\d+) networks of (\d+) published families.*?; (\d+) of them load today", README, re.DOTALL)
    available = {line.name for line in list_weights(zoo.list_models()) if line.available}
    assert tuple(map(int, counted.groups())) == (len(zoo.list_models()), len(FAMILIES), len(available))


def test_it_names_every_extra():
    """By a command that works in a checkout: no registry has the zoo."""
    extras = metadata.metadata("medssl-zoo").get_all("Provides-Extra")
    for extra in extras:
        assert f'".[{extra}]"' in README
    assert "medssl-zoo[" not in README
