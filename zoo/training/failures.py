"""What a command says when it fails: one line for what can happen to anybody, a traceback for what is our fault."""

from __future__ import annotations

import os

from zoo.errors import ZooError

_PEERS = ("gloo/transport", "Connection closed by peer", "NCCL")
_LOADERS = ("DataLoader worker (pid", "unable to open shared memory", "insufficient shared memory")


def in_one_line(error: BaseException) -> str | None:
    """What a command says of an error instead of a traceback; None where the traceback is due."""
    if isinstance(error, ModuleNotFoundError):
        return _of_package(error)
    text = f"{type(error).__name__}: {own_words(error)}"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return f"{text.partition(chr(10))[0]}\nThere is too little memory: give a smaller --batch-size, or a larger "\
            "--accumulate, which computes a step in parts"
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {of_system(error)}"
    if isinstance(error, ZooError | FloatingPointError):
        return text
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _LOADERS):
        return f"{text.partition(chr(10))[0]}\nA loader process was ended, most often for want of memory: give fewer --workers"
    if _is_of_peers(error):
        return f"{text.partition(chr(10))[0]}\nAnother process of the run has ended, or cannot be reached; its own message says why"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory for a tensor, on a GPU or not."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def of_system(error: OSError) -> str:
    """What the system said, and of which file."""
    if error.errno is None:
        return own_words(error)
    file = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
    return f"{file}{os.strerror(error.errno)}"


def own_words(error: BaseException) -> str:
    """What an error says, without the traceback that a loader's worker process puts before it."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    last = text.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def _of_package(error: ModuleNotFoundError) -> str | None:
    if error.name is None or error.name.partition(".")[0] == "zoo":
        return None
    return f"this needs the package {error.name!r}, which is not installed: pip install 'medssl-zoo[train]'"


def _is_of_peers(error: BaseException) -> bool:
    is_known = "DistError" in {kind.__name__ for kind in type(error).__mro__}
    return is_known or (isinstance(error, RuntimeError) and any(word in str(error) for word in _PEERS))
