"""What a message looks like to somebody who reads a log."""

from __future__ import annotations


def one_line(err):
    return len(err.strip().splitlines()) == 1 and "Traceback" not in err
