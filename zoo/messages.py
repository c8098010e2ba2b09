"""How text from outside is put into messages: what a file says of itself is shown, never obeyed."""

from __future__ import annotations


def printable(text: object) -> str:
    """A text of a file, a header or a server with everything escaped that could steer a terminal or forge a line.

    Args:
        text: Any text; control characters, line ends, surrogates and marks that turn the direction of writing come out
            as Python escapes, everything else as it is.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
