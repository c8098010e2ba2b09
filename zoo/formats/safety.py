"""Lists what may stand beside tensors in a pickle, and what a refused one asked for. Nothing in a file is ever run."""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections import deque
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from zoo.errors import CheckpointFormatError, UnsafeCheckpointError
from zoo.formats.pickle_calls import is_harmless, plain_name
from zoo.formats.pickle_nodes import Damage, PickleProblem
from zoo.formats.pickles import MOST_STEPS, Stream
from zoo.formats.torch_legacy import Within
from zoo.formats.torch_zip import MOST_PICKLE, ZipProblem, open_archive
from zoo.messages import first_names, printable


def allow_list() -> list[Any]:
    """The allow-list beyond torch's own: numbers of NumPy and `argparse.Namespace`, which training scripts store."""
    import argparse

    import numpy as np
    import torch

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    wanted = [np.dtype, argparse.Namespace, *dtypes]
    wanted += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    present = torch.serialization.get_safe_globals()
    return [item for item in wanted if item not in present]


def refusal(path: Path, problem: PickleProblem) -> CheckpointFormatError | UnsafeCheckpointError:
    """The right exception for a file with a pickle that is not read."""
    if refused := refused_globals(path):
        return UnsafeCheckpointError(
            f"{path} was refused: opening it would run code from the file ({first_names(refused, 8)}). Nothing "
            "was run. A checkpoint for the zoo holds tensors and plain values only; where you trust its origin, save "
            "the state dict by itself there: torch.save(model.state_dict(), FILE)"
        )
    if isinstance(problem, Damage):
        return CheckpointFormatError(
            f"{path} begins like what torch.save writes, but is cut short, damaged or not written by it "
            f"({printable(problem)}). Fetch or copy it again"
        )
    return CheckpointFormatError(
        f"{path} is a pickle that cannot be read safely ({printable(problem)}). Save its state dict again with "
        "torch.save"
    )


def refused_globals(path: Path) -> tuple[str, ...]:
    """Names of the functions and classes that a file asks for beyond tensors and plain values. Runs nothing.

    Args:
        path: A zip archive or a pickle; any other file asks for nothing.
    """
    found: set[str] = set()
    try:
        with open_archive(path) as archive:
            for record in archive.infolist():
                if record.filename.endswith("/data.pkl") and record.file_size <= MOST_PICKLE:
                    found |= _pickled_globals(archive.open(record))
    except (ZipProblem, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, OSError):  # none, or a damaged one
        with path.open("rb") as file:
            stream = Within(file, path.stat().st_size)
            for _ in range(4):  # three small pickles of torch.save stand before the object
                found |= _pickled_globals(stream)
    return tuple(sorted(name for name in found if not is_harmless(name)))


def _pickled_globals(stream: Stream) -> set[str]:
    """Disassemble one pickle and collect what it would import, up to its end or to where it is broken."""
    found: set[str] = set()
    memo: dict[object, str] = {}
    strings = deque([""], maxlen=2)
    try:
        for opcode, argument, _ in islice(pickletools.genops(cast("IO[bytes]", stream)), MOST_STEPS):
            if opcode.name in ("GLOBAL", "INST"):
                found.add(plain_name(str(argument)))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings))
            elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = strings[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(argument, ""))
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile):
        return found
    return found
