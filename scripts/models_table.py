"""Writes the README's table of models from the entries and the manifest: `python scripts/models_table.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zoo.entry import Entry
from zoo.manifest import records
from zoo.record import WeightsFile
from zoo.registry import entries

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- models -->\n", "<!-- end of models -->\n"
GROUPS: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    ("A chest film", lambda entry: "xray" in entry.modalities),
    ("A CT", lambda entry: entry.modalities == ("ct",)),
    ("A brain MRI", lambda entry: "mri" in entry.modalities and entry.anatomy == "brain"),
    ("A heart MRI", lambda entry: "mri" in entry.modalities and entry.anatomy == "heart"),
    ("Any volume", lambda entry: True),
)
"""What a user has, and which models are for it; a model stands in the first group that takes it."""
WHOSE = {"authors": "authors'", "zoo": "this zoo's own", "user": "a user's"}
STATES = {"on-request": "ask the authors", "withdrawn": "withdrawn", "not-published": "never published"}


def table() -> str:
    """Return the table: a part for each group, in it what can be loaded today first."""
    left, lines = list(entries().values()), []
    for title, takes in GROUPS:
        group = [entry for entry in left if takes(entry)]
        left = [entry for entry in left if entry not in group]
        if not group:
            continue
        head = ["| name | network | parameters | weights | commercial use |", "|---|---|---|---|---|"]
        rows = [_row(entry) for entry in sorted(group, key=lambda entry: not _is_available(entry))]
        lines += [f"**{title}**", "", *head, *rows, ""]
    return "\n".join(lines)


def _is_available(entry: Entry) -> bool:
    return any(record.state == "hosted" for record in records(entry.name, imported=False))


def _row(entry: Entry) -> str:
    known = sorted(records(entry.name, imported=False), key=lambda record: record.state != "hosted")
    card = f"[`{entry.name}`](zoo/{entry.card})"
    weights = "; ".join(_in_words(record, entry.name) for record in known)
    count = entry.parameters / 1e6
    return f"| {card} | {entry.summary} | {count:.3g} M | {weights} | {known[0].verdict('commercial')} |"


def _in_words(record: WeightsFile, model: str) -> str:
    """One of the weights: tag, who trained it, where it is, how large, whether anybody published a digest, its head."""
    said = [WHOSE[record.trained_by]]
    fresh = ["its head untrained"] if model in record.fresh else []
    if record.state != "hosted":
        return f"`{record.tag}` ({', '.join(said + fresh)}): {STATES[record.state]}"
    where = [source.split(":")[0] for source in record.sources]
    said += ["in the package"] if "package" in where else ["on Google Drive"] if set(where) == {"gdrive"} else []
    said += [f"{record.bytes / 1e6:,.0f} MB"] if record.bytes else []
    said += [] if record.digests else ["no digest published"]
    said += fresh
    said += [] if record.default else ["by its tag alone"]
    return f"**`{record.tag}`** ({', '.join(said)})"


def readme() -> str:
    """Return the README with the table as it must be."""
    before, rest = README.read_text("utf-8").split(BEGIN)
    return f"{before}{BEGIN}{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(readme(), "utf-8")
