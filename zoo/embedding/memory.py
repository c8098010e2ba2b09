"""Keeps freed memory for the next images, in processes that do nothing but embed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt, from malloc.h."""
_MOST = 2**31 - 1
"""Free bytes at the end of the heap above which it shrinks: the largest number that mallopt takes."""
_LARGEST_OF_LOADERS = 2**25
"""Bytes of a film's arrays, up to 8 megapixels. A volume's are given back: there are few, and they are large."""
_MAPPINGS = 65536
"""Default of the number of blocks that are mapped one by one; loaders inherit that of their parent."""


def keep_freed_memory() -> None:
    """Have the C library keep the memory of a network's maps from one batch to the next, and not give it back.

    Linux fills fresh memory with 0 page by page, which takes up to as long as a ResNet-50 itself. It is for whole
    processes, so that a program which embeds among other things has the choice. Without glibc nothing changes.
    """
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _MOST})


def keep_films() -> None:
    """Do the same in a process that reads, for the arrays of films."""
    _set({_MMAP_MAX: _MAPPINGS, _MMAP_THRESHOLD: _LARGEST_OF_LOADERS, _TRIM_THRESHOLD: 8 * _LARGEST_OF_LOADERS})


def _set(parameters: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in parameters.items():
            mallopt(parameter, value)
