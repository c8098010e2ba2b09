"""Says what is missing on this machine to load models without connections, for `zoo doctor --offline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.commands.carrying import LIST, find_needed
from zoo.fetching import is_ready_offline
from zoo.messages import first_names, printable

_LOOKED_UP = "only `zoo overlap` and `zoo probe` look cases up in it"


@dataclass(frozen=True)
class Ready:
    """One file, and whether this machine has it."""

    names: tuple[str, ...]
    """The weights that need it, as MODEL.TAG."""
    what: str
    """`weights`, `training list`, or the name of an asset."""
    filename: str
    bytes: int | None
    here: bool
    """Whether it would be loaded now without a connection; what is here is proved by its digest."""
    is_missing: bool
    """Whether it is to be brought here: it is not, and it was asked for, or everybody can fetch it."""
    is_barred: bool
    """Whether it was asked for and would not be loaded, even if it were here."""
    why: str
    """Why it cannot be loaded or fetched; empty where it can."""

    def row(self) -> dict[str, Any]:
        """A line of the table."""
        return {
            "weights": first_names(self.names, 2),
            "file": self.filename if self.what == "weights" else f"{self.what}, {self.filename}",
            "MB": "-" if self.bytes is None else f"{self.bytes / 1e6:.2f}",
            "": "here" if self.here else f"{self._state}{self.why and f': {self.why}'}",
        }

    @property
    def _state(self) -> str:
        return "MISSING" if self.is_missing else "CANNOT BE LOADED" if self.is_barred else "no"


def find_ready(names: Sequence[str] = (), cache_dir: str | Path | None = None) -> list[Ready]:
    """Return the files that weights need, with whether they would be loaded here without a connection.

    Files in the cache, in the package, and in folders that ZOO_MIRROR or a record names count.

    Args:
        names: As for `find_needed`. What is named must be here; of all weights, what everybody can fetch. Lists of
            training images need not: networks load without them.
        cache_dir: Cache folder; default `$ZOO_HOME`.
    """
    found = []
    for needed in find_needed(names, cache_dir):
        here = not needed.is_barred and is_ready_offline(needed.file, cache_dir)
        is_list = needed.what == LIST
        asked = not here and not is_list and (bool(names) or not needed.obstacle)
        found.append(
            Ready(
                names=needed.names,
                what=needed.what,
                filename=printable(needed.file.filename),
                bytes=needed.file.bytes,
                here=here,
                is_missing=asked and not needed.is_barred,
                is_barred=asked and needed.is_barred,
                why="" if here else _LOOKED_UP if is_list else needed.obstacle,
            )
        )
    return found


def summary_of(found: Sequence[Ready]) -> str:
    """Say how much is missing, and how to get it."""
    missing = [each for each in found if each.is_missing]
    if not missing and any(each.is_barred for each in found):
        return "no file is missing, but not all of these can be loaded"
    if not missing:
        return "nothing is missing: what can be fetched by everybody loads without connections"
    known = sum(each.bytes or 0 for each in missing)
    unknown = sum(each.bytes is None for each in missing)
    sizes = f"{known / 1e6:,.2f} MB" + (f" and {unknown} file(s) whose size is not published" if unknown else "")
    return (
        f"missing: {len(missing)} file(s), {sizes}. On a machine with connections: `zoo download NAME...` and copy "
        "$ZOO_HOME, or `zoo manifest NAME... --as curl` and `zoo import FOLDER`"
    )
