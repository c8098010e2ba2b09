"""Writes the pages that are made of the registry, the manifest, the cards and the command's own help."""

from __future__ import annotations

from pathlib import Path

from zoo_site import cards, catalogue, commands, weights

FOLDERS = ("cards", "weights")
"""Folders of `docs` that hold nothing else."""


def made() -> dict[str, str]:
    """Return the text of every page by its path in `docs`."""
    return {
        "catalogue.md": catalogue.page(),
        "reference/commands.md": commands.page(),
        **cards.pages(),
        **weights.pages(),
    }


def write(docs: Path) -> None:
    """Write them into `docs`, leave what has not changed as it is, and remove those of what is no longer there."""
    pages = made()
    for path, text in pages.items():
        file = docs / path
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
    for folder in FOLDERS:
        for file in (docs / folder).glob("*.md"):
            if f"{folder}/{file.name}" not in pages:
                file.unlink()
