"""Formats what the command line prints: errors, tables, and lists of facts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputContractError, ZooError
from zoo.messages import escaped, listed, printable

if TYPE_CHECKING:
    from zoo.entry import Preprocessing


def error_text(error: Exception, *, as_page: bool) -> str:
    """The text of an error: as it is for a reader, in one line for logs and programs."""
    if as_page:
        return escaped(f"zoo: {error}")
    text = "zoo:"
    for line in filter(None, map(str.strip, str(error).split("\n"))):
        glue = "" if text[-1] in ":.,;" else ";" if line.startswith("- ") else "."
        text += f"{glue} {line.removeprefix('- ')}"
    return printable(text)


def raise_for_failed(failed: Collection[str], what: str, kind: type[ZooError] = InputContractError) -> None:
    """Raise an error where something was left out, so that a command that has done the rest ends with exit code 1.

    Args:
        failed: A line for each thing that was left out, with the reason.
        what: What they are and lack, said after their number: `"image(s) have no features"`.
        kind: Class of the error.
    """
    if failed:
        raise kind(f"{len(failed)} {what}:{listed(failed)}")


def rest_in(out: Path, is_any: bool) -> str:
    """Say what became of the others, where something was left out."""
    return f"the others are in {out}" if is_any else "nothing was written"


def start_log(debug: bool) -> None:
    """Write warnings, or with `debug` all of the log, to stderr, each as its message alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if debug else logging.WARNING)


class _EscapingFormatter(logging.Formatter):
    """Says what the plain one does, without what could steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Escape the text of a record."""
        return escaped(super().format(record))


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as columns of one width each, under their names; at least one row is expected."""
    table = [list(rows[0]), *([printable(v) for v in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def fact_lines(value: Any) -> list[str]:
    """The value of a key of `zoo info` as lines; nested values are indented."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() if inner is not None for line in _under(key, inner)] or ["-"]
    if isinstance(value, list | tuple):
        return [printable(v) for v in value] or ["-"]
    return [_words(value)]


def input_facts(contract: Preprocessing) -> dict[str, Any]:
    """The fields of an input as `zoo info` shows them: in words where a number alone would mislead."""
    from zoo.entry import AREA, BICUBIC, MIN_MAX, PERCENTILES, TRILINEAR
    from zoo.transforms import HIGH, LOW

    facts = asdict(contract)
    if contract.normalise == PERCENTILES:
        facts["value_range"] = f"0 and 1 at percentiles {LOW} and {HIGH}, not clipped"
    if contract.interpolation in (TRILINEAR, AREA):
        facts["value_range"] = "any: each volume is scaled by its own values"
    elif contract.normalise == MIN_MAX:
        facts["normalise"] = f"{MIN_MAX} of DICOM, without its window, and of more than 8 bits; 8 bits as they are"
    if contract.interpolation == BICUBIC:
        facts["interpolation"] = f"{BICUBIC} in 8 bits, by Pillow"
    return facts


def training_facts(training_ids: Mapping[str, Any]) -> dict[str, Any] | str:
    """What is on record of the training images, as `zoo info` shows it: the list, if there is one, and cohorts."""
    if not training_ids:
        return "no list of the training images is on record"
    sources, ids = training_ids.get("sources"), training_ids.get("ids", ())
    digest = training_ids.get("sha256") or "not known"
    listed = f"{sources[0]} (sha256 {digest})" if sources else f"{len(ids)} patients, in the record" if ids else "none"
    return {
        "list": listed,
        "cohorts": "; ".join(_cohort_words(cohort) for cohort in training_ids.get("cohorts", ())),
        "note": training_ids.get("note"),
        "use": "`zoo overlap IDS --for NAME` says which of your images were trained on",
    }


def _cohort_words(cohort: Mapping[str, Any]) -> str:
    counts = [f"{cohort[what]} {what}" for what in ("images", "patients") if cohort.get(what)]
    whole = ", all of it" if cohort.get("all") else ""
    return f"{cohort['name']}{f' ({size})' if (size := ' of '.join(counts)) else ''}{whole}"


def _under(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{printable(key)}:", *(f"  {line}" for line in fact_lines(value))]
    return [f"{printable(key)}: {_words(value)}"]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(printable, value)) or "any"
    return printable(value) if value not in (None, "") else "-"
