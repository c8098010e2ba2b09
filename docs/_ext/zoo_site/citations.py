"""Finds the BibTeX of what a record says is to be cited: the entries of `citations.bib` whose titles it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BIB = Path(__file__).parents[2] / "citations.bib"


@dataclass(frozen=True)
class Reference:
    """One entry of the file."""

    text: str
    """As it is written there."""
    fields: dict[str, str]
    """Its fields without braces and backslashes."""


def bibtex(citation: str) -> str:
    """Return the entries whose titles a citation has, in its order; the test of this page holds their other fields.

    Raises:
        LookupError: It has none: `citations.bib` lacks an entry.
    """
    found = [(at, each.text) for each in references() if (at := _position(each.fields["title"], citation)) >= 0]
    if not found:
        raise LookupError(f"docs/citations.bib has no entry whose title is in {citation!r}")
    return "\n\n".join(text for _, text in sorted(found))


@cache
def references() -> tuple[Reference, ...]:
    """All entries of the file."""
    texts = re.findall(r"^@.*?^}$", BIB.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return tuple(Reference(text, _fields(text)) for text in texts)


def _position(title: str, citation: str) -> int:
    """Where a sentence of a citation is a title; -1 where none is."""
    found = re.search(rf"(?:^|[.:] ){re.escape(title)}[.,]", citation)
    return found.start() if found else -1


def _fields(text: str) -> dict[str, str]:
    found = re.findall(r"^ +(\w+) *= \{(.*)\},$", text, re.MULTILINE)
    return {name: re.sub(r"[{}\\]", "", value) for name, value in found}
