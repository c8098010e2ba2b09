"""Sphinx extension: writes the pages that are made of the registry, and runs notebooks without connections."""

from __future__ import annotations

import os
import re
import sys
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config


CHECKOUT = Path(__file__).parents[3]


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook the steps into a build."""
    app.connect("config-inited", _keep_notebooks_inside, priority=100)
    app.connect("builder-inited", _prepare)
    app.connect("autodoc-process-docstring", _mark_code)
    app.connect("build-finished", _check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _keep_notebooks_inside(app: Sphinx, config: Config) -> None:
    """Keep what notebooks gave in the build's own folder, not beside it."""
    config.nb_execution_cache_path = str(Path(app.doctreedir) / "notebooks")


def _prepare(app: Sphinx) -> None:
    """Leave the builder's own settings, cache and imports out, then write the pages."""
    from zoo_site import pages

    for name in [name for name in os.environ if name.startswith("ZOO_")]:
        del os.environ[name]
    homes = Path(app.doctreedir)
    os.environ["ZOO_HOME"] = str(homes / "zoo-of-pages")  # where nothing is
    pages.write(Path(app.srcdir))
    os.environ["ZOO_HOME"] = str(homes / "zoo-of-notebooks")
    _prepare_notebooks()
    _keep_lines_whole()


def _prepare_notebooks() -> None:
    """Let their processes find this checkout and its command, without connections and on one thread."""
    os.environ["ZOO_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, which misses Jupyter's own progress bars
    before = {"PYTHONPATH": str(CHECKOUT), "PATH": str(Path(sys.executable).parent)}
    for name, first in before.items():
        os.environ[name] = os.pathsep.join(filter(None, [first, os.environ.get(name, "")]))


def _keep_lines_whole() -> None:
    """Join what commands print in pieces as it was printed: MyST-NB alone would end a line behind each piece."""
    from nbclient import NotebookClient

    NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)  # type: ignore[assignment]


def _mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make single backquotes double, for reStructuredText would take `x` for a reference, and not see it in `x`s."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``\\ ", line) for line in lines]


def _check_links(app: Sphinx, exception: Exception | None) -> None:
    """Warn of links in written HTML that lead nowhere: Sphinx does not look into raw HTML."""
    from zoo_site import links

    if exception is None and app.builder.format == "html":
        links.warn_of_broken(Path(app.outdir), ["catalogue.html", "choose.html"])
