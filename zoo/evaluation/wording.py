"""Numbers and names of a report as a page has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from zoo.evaluation.report import Estimate, Point
from zoo.messages import counted, decimal, printable
from zoo.progress import duration

_LEAST_P = 0.001


def shown(value: Any) -> Any:
    """What a template puts out for a value: texts with their control characters visible; markup as it is."""
    return printable(value) if type(value) is str else value


def number(value: float | None, measure: str = "", *, sign: bool = False) -> str:
    """A value of a measure: three decimals, or three digits where it has the units of the column.

    Args:
        value: None where it is not defined.
        measure: Key of `MEASURES`.
        sign: Whether a plus is written, too.
    """
    if value is None:
        return "not defined"
    plus = "+" if sign else ""
    return decimal(value, f"{plus}.3g" if measure == "mean_absolute_error" else f"{plus}.3f")


def interval(estimate: Estimate | Point, measure: str = "", *, sign: bool = False) -> str:
    """The 95 % interval of an estimate; see `number`."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{number(estimate.low, measure, sign=sign)} to {number(estimate.high, measure, sign=sign)}"


def p_value(p: float | None) -> str:
    """A p as readers expect it: two digits, and no more than can be known of few resamples."""
    if p is None:
        return "p not known"
    return f"p < {_LEAST_P:g}" if p < _LEAST_P else f"p = {p:.2g}"


def breakable(name: str) -> Any:
    """A name that a narrow column breaks where its parts end."""
    from markupsafe import Markup, escape

    return Markup(str(escape(printable(name))).replace(".", ".<wbr>").replace("_", "_<wbr>").replace("/", "/<wbr>"))


def on_day(date: str) -> str:
    """An ISO 8601 time as `2 March 2026, 14:05`; any other text as it is."""
    try:
        time = datetime.fromisoformat(date)
    except ValueError:
        return date
    return f"{time.day} {time:%B %Y, %H:%M}"


def facts(given: Mapping[str, Any]) -> list[str]:
    """Facts of features, a line for each; what is not set is left out."""
    return [
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in _set(given).items()
    ]


def _set(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping is set, in the mappings within it, too."""
    inner = {name: _set(value) if isinstance(value, Mapping) else value for name, value in given.items()}
    return {name: value for name, value in inner.items() if value is not None and value not in ("", {}, [])}


FILTERS: Mapping[str, Callable[..., Any]] = {
    "breakable": breakable,
    "count": counted,
    "duration": duration,
    "facts": facts,
    "interval": interval,
    "number": number,
    "on_day": on_day,
    "p_value": p_value,
}
