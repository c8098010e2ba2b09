"""Writes requirements/oldest.txt, the floors of pyproject.toml as pins: `python scripts/oldest_pins.py`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

CHECKOUT = Path(__file__).parents[1]
OLDEST = CHECKOUT / "requirements" / "oldest.txt"
HEAD = """\
# The floors of all that the tests need: `pip install -c requirements/oldest.txt ".[test]"`, with Python 3.11.
# `python scripts/oldest_pins.py` writes them from pyproject.toml.
"""


def oldest() -> str:
    """Return the file: a pin, without extras as in all constraints, for each requirement that has a floor."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    pins: dict[str, str] = {}
    for requirement in _requirements(project, project["optional-dependencies"]["test"]):
        for floor in (each.version for each in requirement.specifier if each.operator == ">="):
            pins[requirement.name] = max(floor, pins.get(requirement.name, floor), key=Version)
    return HEAD + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins, key=str.lower))


def _requirements(project: dict[str, Any], texts: list[str]) -> Iterator[Requirement]:
    """Yield those of an extra; the project's own name in it stands for the project with other extras."""
    for requirement in map(Requirement, texts):
        if requirement.name != project["name"]:
            yield requirement
            continue
        yield from _requirements(project, project["dependencies"])
        for extra in sorted(requirement.extras):
            yield from _requirements(project, project["optional-dependencies"][extra])


if __name__ == "__main__":
    OLDEST.parent.mkdir(exist_ok=True)
    OLDEST.write_text(oldest(), "utf-8")
