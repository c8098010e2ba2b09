"""Finds links of built pages that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from sphinx.util import logging

log = logging.getLogger(__name__)


def warn_of_broken(out: Path, names: list[str]) -> None:
    """Warn, which `-W` makes an error, of each relative link of some pages whose page or anchor is not there."""
    for name in names:
        page = out / name
        for target in sorted(set(re.findall(r'href="([^"#:]+(?:#[^"]*)?)"', page.read_text("utf-8")))):
            path, _, anchor = unquote(target).partition("#")
            found = page.parent / path.partition("?")[0]
            anchor = "" if "=" in anchor else anchor  # what the catalogue is to be filtered by
            if not found.is_file():
                log.warning("%s links to %s, which is not there", name, target)
            elif anchor and found.suffix == ".html" and f'id="{anchor}"' not in found.read_text("utf-8"):
                log.warning("%s links to %s, which has no such anchor", name, target)
