"""Messages of a command that fails: one line for what can happen to anybody, a traceback for our own faults."""

from __future__ import annotations

import os

from zoo.errors import ZooError
from zoo.messages import install_hint

_ADVICE = {
    ("out of memory", "can't allocate memory", "not enough memory"): (
        "There is too little memory: give a smaller --batch-size, or a larger --accumulate, which computes a step in "
        "more parts"
    ),
    ("DataLoader worker (pid", "unable to open shared memory", "insufficient shared memory"): (
        "A loader process was ended, most often for want of memory: give fewer --workers"
    ),
    ("gloo/transport", "Connection closed by peer", "NCCL"): (
        "Another process of the run has ended or cannot be reached; its own message says why"
    ),
}
"""Words in PyTorch's errors, which all have one class, and what to do."""


def in_one_line(error: BaseException) -> str | None:
    """The line that a command prints for an error, with advice below it; None where a traceback is due."""
    if isinstance(error, ModuleNotFoundError):
        return _of_package(error)
    text = f"{type(error).__name__}: {of_system(error) if isinstance(error, OSError) else own_words(error)}"
    if isinstance(error, MemoryError):
        return f"{text}\n{next(iter(_ADVICE.values()))}"
    if isinstance(error, ZooError | FloatingPointError | OSError):
        return text
    for words, advice in _ADVICE.items():
        if isinstance(error, RuntimeError) and any(word in str(error) for word in words):
            return f"{text.partition(chr(10))[0]}\n{advice}"
    if "DistError" in {kind.__name__ for kind in type(error).__mro__}:  # of torch.distributed
        return text.partition("\n")[0]
    return None


def of_system(error: OSError) -> str:
    """The system's message, with the file that it is about."""
    if error.errno is None:
        return own_words(error)
    file = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
    return f"{file}{os.strerror(error.errno)}"


def own_words(error: BaseException) -> str:
    """The message of an error, without the traceback that a loader's worker process adds before it."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    last = text.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def _of_package(error: ModuleNotFoundError) -> str | None:
    if error.name is None or error.name.partition(".")[0] == "zoo":
        return None
    return f"this needs the package {error.name!r}, which is not installed: {install_hint(error.name, 'train')}"
