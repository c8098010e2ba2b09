"""What may stand beside tensors in a pickle, and what a refused one asked for. Nothing in a file is ever run."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from zoo.errors import CheckpointFormatError, UnsafeCheckpointError

_HARMLESS = re.compile(
    r"torch\.(\w*Storage|storage\.\w*Storage|Size|Tensor|device|u?int\d+|b?float\d+\w*|complex\d+|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|builtins\.(set|bytearray|complex)|__builtin__\.(set|bytearray|complex)"
    r"|numpy\.(_?core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+DType|argparse\.Namespace"
)


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


def refusal(path: Path, error: pickle.UnpicklingError) -> CheckpointFormatError | UnsafeCheckpointError:
    """The right exception for a file that the safe reader refused."""
    refused = refused_globals(path)
    if not refused:
        reason = next((line for line in str(error).splitlines() if "WeightsUnpickler" in line), str(error)).strip()
        return CheckpointFormatError(
            f"{path} is a pickle that cannot be read safely ({reason}). Save its state dict again with torch.save"
        )
    return UnsafeCheckpointError(
        f"{path} was refused: to open it, code from outside would have to run ({', '.join(refused)}). Nothing was "
        "run. A checkpoint for the zoo holds tensors and plain values only; where you trust its origin, save the state "
        "dict by itself there: torch.save(model.state_dict(), FILE)"
    )


def refused_globals(path: Path) -> tuple[str, ...]:
    """Names of the functions and classes that a file asks for beyond tensors and plain values. Runs nothing.

    Args:
        path: A zip archive or a pickle; any other file asks for nothing.
    """
    found: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as stream:
                        found |= _pickled_globals(stream)
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError):  # not a zip archive, or a damaged one
        with path.open("rb") as stream:
            for _ in range(4):  # three small pickles of torch.save stand before the object
                found |= _pickled_globals(stream)
    return tuple(sorted(name for name in found if not _HARMLESS.fullmatch(name)))


def _pickled_globals(stream: IO[bytes]) -> set[str]:
    """Disassemble one pickle and collect what it would import, up to its end or to where it is broken."""
    found: set[str] = set()
    memo: dict[object, str] = {}
    strings = [""]
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                found.add(str(argument).replace(" ", ".", 1))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else argument] = strings[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                strings.append(memo.get(argument, ""))
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile):
        return found
    return found
