"""How the command line puts things: errors, tables, and facts below each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from zoo.messages import printable

if TYPE_CHECKING:
    from zoo.entry import Preprocessing


def error_text(error: Exception, *, as_page: bool) -> str:
    """What an error says: as it is for somebody who reads it, in one line for logs and programs."""
    lines = [printable(line) for line in str(error).split("\n")]
    if as_page:
        return "zoo: " + "\n".join(lines)
    text = "zoo:"
    for line in filter(None, map(str.strip, lines)):
        glue = "" if text[-1] in ":.,;" else ";" if line.startswith("- ") else "."
        text += f"{glue} {line.removeprefix('- ')}"
    return text


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as columns of one width each, under their names; at least one row is expected."""
    table = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def fact_lines(value: Any) -> list[str]:
    """What stands behind a key of `zoo info`, line by line; what is within something is indented."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() if inner is not None for line in _under(key, inner)] or ["-"]
    if isinstance(value, list | tuple):
        return [str(v) for v in value] or ["-"]
    return [_words(value)]


def input_facts(facts: Preprocessing) -> dict[str, Any]:
    """The fields of an input as `zoo info` shows them: in words where a number alone would mislead."""
    from zoo.entry import PERCENTILES
    from zoo.slices import HIGH, LOW

    if facts.normalise != PERCENTILES:
        return asdict(facts)
    return asdict(facts) | {"value_range": f"0 and 1 at percentiles {LOW} and {HIGH}, not clipped"}


def _under(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}:", *(f"  {line}" for line in fact_lines(value))]
    return [f"{key}: {_words(value)}"]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "any"
    return str(value) if value not in (None, "") else "-"


def listed(lines: Iterable[str], *, most: int = 10) -> str:
    """Lines below each other for a message: the first ten, and how many more there are."""
    given = list(lines)
    rest = [f"... and {len(given) - most} more"] if len(given) > most else []
    return "".join(f"\n  - {printable(line)}" for line in [*given[:most], *rest])
