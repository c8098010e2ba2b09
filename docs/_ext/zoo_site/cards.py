"""Makes a page of each family's card, and finds the results in it. A card's home is beside its entries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import zoo
from zoo.registry import FAMILIES, entries

PACKAGE = Path(zoo.__file__).parent
RESULTS = re.compile(r"(Published results|Results|Tried on .+|What `([\w-]+)` is and is not)$")
"""Headings under which a card has results; the second group is the tag of the weights that they are of."""
_HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)]*)?\))")


@dataclass(frozen=True)
class Section:
    """A part of a card, up to the next heading of its level or above."""

    heading: str
    level: int
    body: str

    @property
    def title(self) -> str:
        """The heading without marks of code."""
        return self.heading.replace("`", "")

    @property
    def anchor(self) -> str:
        """Its id on the page of the card."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def tag(self) -> str:
        """Of which weights it speaks alone; empty where the heading names none."""
        found = RESULTS.fullmatch(self.heading)
        return (found[2] or "") if found else ""


def card(family: str) -> Path:
    """The card of a family."""
    return PACKAGE / "entries" / family / "README.md"


def pages() -> dict[str, str]:
    """Return the text of the page of each card, and of their list."""
    texts = {f"cards/{family}.md": linked(card(family).read_text("utf-8"), family) for family in FAMILIES}
    return {"cards/index.md": _index(), **texts}


def results(family: str) -> list[Section]:
    """The sections of a card that hold results."""
    return [section for section in sections(card(family).read_text("utf-8")) if RESULTS.fullmatch(section.heading)]


def sections(text: str) -> list[Section]:
    """The sections of a card. A `#` inside a block of code is no heading."""
    blank = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    found = list(_HEADING.finditer(blank))
    made = []
    for i, heading in enumerate(found):
        level = len(heading[1])
        end = next((later.start() for later in found[i + 1 :] if len(later[1]) <= level), len(text))
        made.append(Section(heading[2], level, text[heading.end() : end].strip()))
    return made


def linked(text: str, family: str, depth: int = 0) -> str:
    """Return the text of a card with its links as they must be on a page of the site.

    Args:
        text: Of the card, or of a part of it.
        family: Whose card it is; targets are relative to its folder.
        depth: By how much headings are lowered.
    """
    lower = _HEADING.sub(lambda heading: f"{'#' * depth}{heading[0]}", text) if depth else text
    return _TARGET.sub(lambda target: f"{target[1]}{_on_site(target[2], family)}{target[3]}", lower)


def _on_site(target: str, family: str) -> str:
    """Where a target of a card is, seen from a page in a folder of `docs`."""
    if found := re.fullmatch(r"\.\./(\w+)/README\.md", target):
        return f"../cards/{found[1]}.md"
    return f"../../zoo/entries/{family}/{target}"


def title(family: str) -> str:
    """The first heading of a card."""
    return sections(card(family).read_text("utf-8"))[0].heading


def _index() -> str:
    """The list of the cards, with the models that each is of."""
    rows = []
    for family in FAMILIES:
        names = ", ".join(f"`{name}`" for name, entry in entries().items() if entry.family == family)
        rows.append(f"| [{title(family)}]({family}.md) | {names} |")
    toctree = ["```{toctree}", ":hidden:", "", *FAMILIES, "```"]
    head = ["| card | models |", "|---|---|"]
    lead = (
        "A card says of a family what it is, what goes in and comes out, where the weights are and who trained them, "
        "what came out when it was tried, what its licences allow, and what it is not good for."
    )
    return "\n".join(["# Cards", "", lead, "", *head, *rows, "", *toctree, ""])
