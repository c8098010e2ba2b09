"""The pages of the documentation as they are built, without Sphinx: those in `docs`, and those made of the registry."""

import os
import re
from functools import cache
from pathlib import Path
from unittest import mock

from zoo_site import pages

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"


@cache
def all_pages():
    """Text of every page by its path in `docs`; of notebooks their prose and code."""
    with mock.patch.dict(os.environ, {"ZOO_HOME": str(DOCS / "no-such-folder")}):  # whatever this machine imported
        for name in [name for name in os.environ if name.startswith("ZOO_") and name != "ZOO_HOME"]:
            del os.environ[name]
        made = pages.made()
    written = {file.relative_to(DOCS).as_posix(): file for file in (*DOCS.rglob("*.md"), *DOCS.glob("notebooks/*.py"))}
    folders = ("_build/", "_ext/", *(f"{folder}/" for folder in pages.FOLDERS))
    kept = {path: file.read_text("utf-8") for path, file in written.items() if not path.startswith(folders)}
    return kept | made


def toctrees(path, text):
    """The documents that a page lists."""
    found = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    names = [line for block in found for line in block.splitlines() if line and not line.startswith(":")]
    folder = path.rpartition("/")[0]
    return [f"{folder}/{name}" if folder else name for name in names]


def name_of(path):
    """The name by which a toctree knows a page."""
    return path.rpartition(".")[0]


def blocks(text, language):
    """The blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
