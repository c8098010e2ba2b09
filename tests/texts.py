"""What a message looks like to somebody who reads a log, and what was logged."""

from __future__ import annotations

import logging


def one_line(err):
    return len(err.strip().splitlines()) == 1 and "Traceback" not in err


def warnings(caplog):
    """What the zoo warned of, in order."""
    return [r.getMessage() for r in caplog.records if r.name == "zoo" and r.levelno == logging.WARNING]
