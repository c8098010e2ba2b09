"""How to install what a part of the zoo needs beside the zoo itself."""

from __future__ import annotations

import re
import shlex
from importlib import metadata


def install_hint(package: str, extra: str) -> str:
    """Return the command that installs an extra, for a message about one of its packages that is missing.

    The packages are named themselves: the zoo is installed from a checkout or an address, and a registry that
    `pip install 'medssl-zoo[extra]'` would ask does not have it.

    Args:
        package: The missing one, which is all that is named where the zoo was not installed.
        extra: One of `[project.optional-dependencies]`.
    """
    try:
        lines = metadata.requires("medssl-zoo") or []
    except metadata.PackageNotFoundError:
        lines = []
    parts = (line.partition(";") for line in lines)
    wanted = [need.strip() for need, _, marker in parts if re.search(rf"""extra == ["']{extra}["']""", marker)]
    return f"pip install {shlex.join(wanted or [package])}"
