"""Refuses weights whose licences do not allow the use that `ZOO_POLICY` names.

Weights on record are held against it where a name is resolved, before anything is fetched; a user's file where it is
opened. The random weights of `pretrained=False` are nobody's, so they pass. So does what a run of the user's began from
them: nothing pre-trained is in it, and the terms of the user's own data, which alone count, are the user's to know.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import PolicyError
from zoo.messages import printable
from zoo.record import in_the_way
from zoo.settings import policy

if TYPE_CHECKING:
    from zoo.record import WeightsFile

log = logging.getLogger("zoo")

_USES = {"commercial": "commercial use", "redistribute": "redistribution"}
_lifted: ContextVar[bool] = ContextVar("lifted", default=False)


@contextmanager
def lifted() -> Iterator[None]:
    """Apply no policy inside the block: of what is only recorded, or was checked before under its own name."""
    token = _lifted.set(True)
    try:
        yield
    finally:
        _lifted.reset(token)


def in_force() -> str:
    """The policy that applies here, `commercial` or `redistribute`; empty where none does.

    Raises:
        OptionError: `ZOO_POLICY` is another word.
    """
    return "" if _lifted.get() else policy()


def refuses(record: WeightsFile) -> bool:
    """Whether the policy in force refuses the weights of a record."""
    use = in_force()
    return bool(use) and not record.allows(use) and not _is_own(record)


def check_record(request: str, record: WeightsFile) -> None:
    """Refuse weights on record, before anything of them is fetched.

    Args:
        request: What the user asked for.
        record: What it stands for.

    Raises:
        PolicyError: The licence of their code, weights or training data does not say `yes`.
    """
    if refuses(record):
        raise _refused(f"{request} ({record.tag})" if record.tag not in request else request, record.licences)
    if in_force() and _is_own(record):
        _say_own(request)


def check_base(path: Path, base: Mapping[str, Any]) -> None:
    """Refuse a user's file by the licences that its header states of the weights it began with, and these with.

    Args:
        path: The file, of which nothing is on record.
        base: The header's `base`; see `zoo.formats.header`.

    Raises:
        PolicyError: One of them does not say `yes`, or the header states none.
    """
    use = in_force()
    if not use:
        return
    stated = _stated(base)
    for licences in stated:
        if in_the_way(licences, use):
            raise _refused(f"{path}, by the weights that it began with", licences)
    if began_at_random(base):
        _say_own(path)
    elif not stated:
        raise PolicyError(
            f"ZOO_POLICY={use} refuses {path}: a file that states the licences of its code, weights and training data "
            "is expected, and its header states none. Import it under a tag on record if it is the file of one (`zoo "
            "import MODEL.TAG FILE`), give it a record with licences in ZOO_MANIFEST, or unset ZOO_POLICY"
        )


def began_at_random(base: Any) -> bool:
    """Whether nothing pre-trained is in weights that began with `base`: that, or the base below it, was random.

    A base that states licences, or does not say what it began with, is taken for pre-trained.
    """
    from zoo.formats import RANDOM

    while isinstance(base, Mapping) and not base.get("licences"):
        if base.get("source") == RANDOM["source"] and "sha256" not in base:  # a file may have this name
            return True
        base = base.get("base")
    return False


def _is_own(record: WeightsFile) -> bool:
    """Whether weights on record are the user's alone: imported, and with nothing pre-trained in them."""
    is_users = record.trained_by == "user" and not record.licences
    return is_users and began_at_random(record.provenance.get("base"))


def _say_own(request: str | Path) -> None:
    log.warning(
        "ZOO_POLICY=%s lets %s pass: it began with random weights, so that the terms of the data that it was trained "
        "on alone count, and those are yours to know",
        in_force(),
        printable(str(request)),
    )


def _stated(base: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The licences that a base and the bases below it state, those that state none left out."""
    found = []
    below: Any = base
    while isinstance(below, Mapping):
        licences = below.get("licences")
        if isinstance(licences, Mapping) and licences:
            found.append(licences)
        below = below.get("base")
    return found


def _refused(request: str, licences: Mapping[str, Any]) -> PolicyError:
    use = in_force()
    said = "; ".join(_obstacle(layer, licences.get(layer), use) for layer in in_the_way(licences, use))
    listing = "`zoo list --commercial` shows weights that pass" if use == "commercial" else "`zoo info NAME` says all"
    return PolicyError(
        f"ZOO_POLICY={use} refuses {printable(request)}: the licences of code, weights and data must all say yes to "
        f"{_USES[use]}. In the way: {said}. {listing}; unset ZOO_POLICY if you have the right by other means"
    )


def _obstacle(layer: str, licence: Any, use: str) -> str:
    """A licence that does not allow a use, with its text, which has the link to its source."""
    if not isinstance(licence, Mapping):
        return f"{layer} (unknown): no licence is on record"
    note = f" ({licence['note']})" if licence.get("note") else ""
    return printable(f"{layer} ({licence.get(use, 'unknown')}): {licence.get('licence', 'no text')}{note}")
