"""Freed memory of maps and films is kept by processes that do nothing but embed."""

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
    arrays = [numpy.ones(6_000_000, numpy.float32) for _ in range(3)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's: elsewhere nothing is set")
@pytest.mark.parametrize("how", ["keep_freed_memory", "keep_films"])
def test_freed_memory_is_used_again(how):
    """Three arrays of 24 MB take a thousand pages anew or more, some of them huge, unless they are kept: then a few."""
    command = [sys.executable, "-c", KEPT, how]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < 500
