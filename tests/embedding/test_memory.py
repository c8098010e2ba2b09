"""Freed memory of maps and films is kept by processes that do nothing but embed."""

import resource
import subprocess
import sys

import pytest

KEPT = """
import resource, sys
import numpy
from zoo.embedding import memory
if len(sys.argv) > 1:
    getattr(memory, sys.argv[1])()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(6_000_000, numpy.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of other systems nothing is asked")
@pytest.mark.parametrize("how", ["keep_freed_memory", "keep_films"])
def test_freed_memory_is_used_again(how):
    """An array of 24 MB takes 5 900 pages anew, unless it is kept: then some that the interpreter needs."""
    command = [sys.executable, "-c", KEPT, how]
    pages = 24_000_000 // resource.getpagesize()
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < pages / 20
