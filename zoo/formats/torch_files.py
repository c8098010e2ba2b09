"""Checks a file of torch.save, then lets torch read its tensors and plain values; nothing in it is run."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from threading import Lock
from typing import Any

from zoo.errors import CheckpointFormatError
from zoo.formats.pickle_nodes import PickleProblem
from zoo.formats.safety import allow_list, refusal
from zoo.formats.sniffing import TORCH_ZIP
from zoo.formats.torch_legacy import check_legacy
from zoo.formats.torch_zip import TorchScriptError, TorchZip, ZipProblem, open_torch_zip
from zoo.messages import printable

_DAMAGE = (
    pickle.UnpicklingError,
    *(RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, EOFError, OSError, MemoryError),
    struct.error,
)
"""Errors of torch's reader on a damaged file."""
_LOADING = Lock()  # torch's allow-list is one for all threads


def check_torch(path: Path, kind: str) -> TorchZip | None:
    """Check a file of torch.save before torch reads it; return a zip archive's records, None for the older format."""
    try:
        if kind == TORCH_ZIP:
            return open_torch_zip(path)
        check_legacy(path)
    except PickleProblem as problem:
        raise refusal(path, problem) from None
    except TorchScriptError:
        raise CheckpointFormatError(
            f"{path} is a TorchScript archive: a program with its weights, which the zoo does not run. Where you trust "
            "its origin, save the weights by themselves there: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        ) from None
    except ZipProblem as problem:
        raise damage(path, kind, problem) from None
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror}") from error
    return None


def load_torch(path: Path, kind: str, *, mapped: bool) -> Any:
    """Return the content of a checked file."""
    import torch

    try:
        with _LOADING, torch.serialization.safe_globals(allow_list()):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except _DAMAGE as error:
        raise damage(path, kind, _reason(error)) from error


def _reason(error: BaseException) -> str:
    """The message of torch's reader, without its advice to read the file in a way that runs code."""
    line = str(error).strip().partition("\n")[0][:200]
    return type(error).__name__ if not line or "weights_only" in line or "safe_globals" in line else line


def damage(path: Path, kind: str, reason: object) -> CheckpointFormatError:
    """The error for a file that is not whole; `reason` may quote it."""
    return CheckpointFormatError(
        f"{path} begins like a {kind}, but is cut short, damaged or not written by torch.save ({printable(reason)}). "
        "Fetch or copy it again"
    )
