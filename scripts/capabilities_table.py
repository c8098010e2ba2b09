"""Writes CONTRIBUTING's table of what each network can do, from the tests': `python scripts/capabilities_table.py`."""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from capabilities import CAPABILITIES, EXCEPTIONS  # noqa: E402

from zoo.registry import entries  # noqa: E402

CONTRIBUTING = CHECKOUT / "CONTRIBUTING.md"
BEGIN, END = "<!-- capabilities -->\n", "<!-- end of capabilities -->\n"


def table() -> str:
    """Return what the columns stand for, the table, and a note for each reason why a cell says no."""
    reasons = list(dict.fromkeys(no.reason for no in EXCEPTIONS.values()))
    legend = [f"- {name}: {meaning}" for name, meaning in CAPABILITIES.items()]
    head = [f"| network | {' | '.join(CAPABILITIES)} |", f"|---|{'---|' * len(CAPABILITIES)}"]
    rows = []
    for name in entries():
        found = (EXCEPTIONS.get((name, capability)) for capability in CAPABILITIES)
        cells = (f"no ({reasons.index(no.reason) + 1})" if no else "yes" for no in found)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*legend, "", *head, *rows, "", *notes, ""])


def contributing() -> str:
    """Return CONTRIBUTING.md with the table as it must be."""
    before, rest = CONTRIBUTING.read_text("utf-8").split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    CONTRIBUTING.write_text(contributing(), "utf-8")
