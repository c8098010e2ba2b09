"""Sphinx extension: writes the pages that are made of the registry, and runs notebooks without connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook the steps into a build."""
    app.connect("builder-inited", _prepare)
    app.connect("build-finished", _check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _prepare(app: Sphinx) -> None:
    """Leave the builder's own settings, cache and imports out, then write the pages."""
    for name in [name for name in os.environ if name.startswith("ZOO_")]:
        del os.environ[name]
    os.environ["ZOO_HOME"] = str(Path(app.doctreedir) / "zoo-home")
    from zoo_site import pages

    pages.write(Path(app.srcdir))
    os.environ["ZOO_OFFLINE"] = "1"  # for the notebooks; the catalogue is of a machine with connections


def _check_links(app: Sphinx, exception: Exception | None) -> None:
    """Warn of links in written HTML that lead nowhere: Sphinx does not look into raw HTML."""
    from zoo_site import links

    if exception is None and app.builder.format == "html":
        links.warn_of_broken(Path(app.outdir), ["catalogue.html", "choose.html"])
