"""The folder that the processes of one torchrun share on this machine; they agree on it without a word."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir

from zoo.settings import local_rank, processes_of_torchrun

_NAME = re.compile(r"zoo-(\d+)-(\d+)-\d+-\d+")
"""The parent of the processes, when that began, its attempt, and the number of the folder."""
_numbers = count(1)


def shared_folder() -> Path | None:
    """Make the next folder of all processes that one torchrun started here; None for a process of its own.

    They agree on its name by their parent and by when that began, for the number of a process comes back.

    Raises:
        OSError: It cannot be made, or is another user's.
    """
    if processes_of_torchrun() < 2 or not (since := began(os.getppid())):
        return None
    if not local_rank():
        _sweep()
    number = next(_numbers)  # one process may be in its next block while another is in this one
    run = (os.getppid(), since, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), number)
    folder = Path(gettempdir()) / f"zoo-{'-'.join(map(str, run))}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} is another user's")
    return folder


def _sweep() -> None:
    """Remove this user's folders of runs that are gone: where all processes were killed, none was left to do it."""
    for folder in Path(gettempdir()).glob("zoo-*"):
        if (name := _NAME.fullmatch(folder.name)) and began(int(name[1])) != name[2]:
            with suppress(OSError):
                if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                    rmtree(folder, ignore_errors=True)


def began(process: int) -> str:
    """When a process began, in ticks of the machine; empty where it is dead, or the system does not say it."""
    try:
        facts = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""
