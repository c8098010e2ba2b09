"""Makes texts safe for messages and tables: control characters are escaped, lists and reasons cut short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zoo.errors import ZooError

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Starts of a cell that spreadsheets take for a formula, the last four in East Asian text."""
_LONGEST_REASON = 300
_MOST_LISTED = 10


def printable(text: object) -> str:
    """A text of a file, a header or a server with everything escaped that could steer a terminal or forge a line.

    Args:
        text: Any text; control characters, line ends, surrogates and marks that turn the direction of writing come out
            as Python escapes, everything else as it is.
    """
    given = str(text)
    if given.isprintable():  # as nearly all are, and cohorts have millions
        return given
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in given)


def csv_cell(text: object) -> str:
    """A text of a file, or its name, as a cell of a `.csv` that no spreadsheet takes for a formula.

    Args:
        text: Any text. What begins like a formula, with one of = + - @ or a control character, gets an apostrophe
            before it, which spreadsheets take as the mark of a text; a number does not. All is `printable`, and so on
            one line.
    """
    is_formula = str(text).startswith(_FORMULA) and not _is_number(str(text))
    return f"'{printable(text)}" if is_formula else printable(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable()


def decimal(value: float, form: str = ".3f") -> str:
    """A number for readers, with the minus sign of print rather than a hyphen.

    Args:
        value: The number.
        form: As `format` takes it, `+.3f` with a plus before what is above 0.
    """
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def lengths(sizes: Iterable[float]) -> str:
    """Sizes along the axes, in mm or voxels, as messages and tables name them: `0.7 x 0.7 x 5`."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def with_path(path: object, error: object) -> str:
    """The message of an error about a file, after the path where the message lacks it."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def first_names(names: Iterable[str], count: int = 5) -> str:
    """The first few names, for a message; names from a file are never printed raw."""
    listed = list(names)
    return (
        ", ".join(map(printable, listed[:count])) + (f", ... ({len(listed)} in all)" if len(listed) > count else "")
        or "none"
    )


def counted(number: int, one: str) -> str:
    """A number with its noun: `1 case`, `1,200 cases`."""
    return f"{number:,} {one if number == 1 else f'{one}s'}"


def said_of_missing(missing: Iterable[str], given: int) -> str:
    """Say that of so many given paths some lead to no file or folder; ten are named."""
    names = list(missing)
    subject = "the path does" if given == 1 else f"{len(names)} of {given} paths {'does' if len(names) == 1 else 'do'}"
    return f"{subject} not exist: {first_names(names, _MOST_LISTED)}"


def escaped(text: str) -> str:
    """A text of several lines with everything else in it escaped that could steer a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def listed(lines: Iterable[str]) -> str:
    """Lines below each other for a message: the first ten, and how many more there are."""
    given = list(lines)
    rest = [f"... and {len(given) - _MOST_LISTED} more"] if len(given) > _MOST_LISTED else []
    return "".join(f"\n  - {printable(line)}" for line in [*given[:_MOST_LISTED], *rest])


def in_steps(name: str, steps: Mapping[str, str]) -> str:
    """What a transform does, for printing it: each step in a line, with its name."""
    return f"{name}(\n" + "".join(f"    {step:<10}{text}\n" for step, text in steps.items()) + ")"


def reason_of(error: BaseException) -> str:
    """The message of a library's error in one line that no file can forge or make long, else the name of the error."""
    text = printable(" ".join(str(error).split()))
    short = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
    return short if len(short.split()) > 1 else f"{type(error).__name__}{f': {short}' if short else ''}"


def problem_of(error: Exception) -> str:
    """The text of an error of the zoo or the system as it is, which says what to do; of any other `reason_of`."""
    return str(error) if isinstance(error, (ZooError, OSError)) else reason_of(error)


def install_hint(package: str, extra: str) -> str:
    """Return the command that installs an extra, for a message about one of its packages that is missing.

    The packages are named themselves: the zoo is installed from a checkout or an address, and a registry that
    `pip install 'medssl-zoo[extra]'` would ask does not have it.

    Args:
        package: The missing one, which is all that is named where the zoo was not installed.
        extra: One of `[project.optional-dependencies]`.
    """
    import re
    import shlex
    from importlib import metadata

    try:
        lines = metadata.requires("medssl-zoo") or []
    except metadata.PackageNotFoundError:
        lines = []
    parts = (line.partition(";") for line in lines)
    wanted = [need.strip() for need, _, marker in parts if re.search(rf"""extra == ["']{extra}["']""", marker)]
    return f"pip install {shlex.join(wanted or [package])}"
