"""How text from outside is put into messages and tables: what a file says of itself is shown, never obeyed."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What spreadsheets take a cell that begins so for, the last four where they read East Asian text."""


def printable(text: object) -> str:
    """A text of a file, a header or a server with everything escaped that could steer a terminal or forge a line.

    Args:
        text: Any text; control characters, line ends, surrogates and marks that turn the direction of writing come out
            as Python escapes, everything else as it is.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


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
