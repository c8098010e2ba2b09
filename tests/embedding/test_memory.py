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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's: elsewhere nothing is set")
@pytest.mark.parametrize("how", ["keep_freed_memory", "keep_films"])
def test_freed_memory_is_used_again(how):
    """Three arrays of 24 MB take a thousand pages anew or more, some of them huge, unless they are kept: then a few."""
    command = [sys.executable, "-c", KEPT, how]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < 500


UNSHARED = """
import gc, sys
from pathlib import Path
import psutil, torch
from zoo.embedding import Cases
from zoo.embedding.reading import read_units
from zoo.entry import Parts

def reader(path):
    return Parts((torch.zeros(1, 1),))

def unshared():
    (loader,) = psutil.Process().children()
    lines = Path(f"/proc/{loader.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("Private"))

kept = [[i] for i in range(300_000)]
names = [f"{i}.png" for i in range(8)]
units = read_units(Cases(names, names, {}, None), [[i] for i in range(8)], reader, 1)
next(units)
before = unshared()
gc.collect()
print(unshared() - before)
list(units)
print(gc.get_freeze_count())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked, or their pages not counted")
def test_a_collection_of_garbage_leaves_pages_shared_with_loaders():
    """It writes to each of 300 000 lists, 25 MB, of which the loader would keep its own copy; all is as before then."""
    command = [sys.executable, "-c", UNSHARED]
    unshared, frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(unshared) < 5
    assert frozen == "0"
