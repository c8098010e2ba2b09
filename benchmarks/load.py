"""What loading costs, as ratios inside one run: `python benchmarks/load.py [NAME...] [--repeats 15] [--json]`.

- `import zoo` against bare Python, each in processes of their own; which heavy modules it brings.
- For each model a cached `load_model` against what a script does without the zoo: build the class, `torch.load` the
  same weights, copy them in. Libraries are imported before either is timed; the two take turns. The weights are random,
  written by `torch.save` in float32: what they are has no effect on the time.
- Peak memory of its loads beyond what the libraries and one build hold, against the bytes of the network, floats in
  float32 and tables of whole numbers as they are: of the first load, which converts the file, and of a cached one after
  which every value was read. Also as MB more than those bytes: most of them are pages of the libraries' machine code
  that the first load of a process calls for the first time, whatever the size of the network.

Names are those of `zoo list`, without tags.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import cached_against_by_hand, file_on_record, machine, print_facts

import zoo
from zoo.manifest import plain_record, records
from zoo.registry import get_entry

DEFAULT = ("caid-resnet50-unet", "yaware-densenet121")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("zoo").setLevel(logging.ERROR)  # each load says whose weights it has
    results = {"machine": machine()} | import_time(args.repeats)
    for name in args.names:
        results |= load_time(name, args.repeats) | peak_memory(name)
    print_facts(results, as_json=args.json)


def import_time(repeats: int) -> dict[str, Any]:
    """Seconds that `import zoo` adds to starting Python, and what it imports."""
    probe = "import sys, time; t = time.perf_counter(); import zoo; print(time.perf_counter() - t, *sys.modules)"
    seconds, modules = [], set[str]()
    for _ in range(repeats):
        first, *names = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(first))
        modules |= set(names)
    heavy = sorted(modules & {"torch", "numpy", "timm", "monai", "requests", "torchvision"})
    return {"import zoo, s": statistics.median(seconds), "import zoo brings": ", ".join(heavy) or "nothing heavy"}


def options_of(name: str) -> dict[str, Any]:
    """What the record of a model says of the function that its weights compute."""
    known = plain_record(name) or next(iter(records(name)), None)
    return dict(known.options) if known else {}


def load_time(name: str, repeats: int) -> dict[str, Any]:
    """Medians of a cached `load_model` and of building, `torch.load` and copying."""
    entry, options = get_entry(name), options_of(name)

    def by_hand(path: Path) -> object:
        network = entry.build({**entry.config, **options})  # not on the meta device: as the class is built by itself
        return network.load_state_dict(torch.load(path, weights_only=True))

    content = zoo.load_model(name, pretrained=False, **options).state_dict()
    return cached_against_by_hand(name, name, content, by_hand, repeats, options)


PROBE = """
import ctypes, gc, json, sys, safetensors.torch, torch, zoo
torch.ones(2).sum()  # as the tensors are read below
name, options = sys.argv[1], json.loads(sys.argv[3])
model = zoo.load_model(name, pretrained=False, **options)
size = sum(t.nbytes for t in model.state_dict().values())
del model
gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = status("VmRSS")
model = zoo.load_model(f"{name}.benchmark")
if sys.argv[2] == "read":
    for tensor in model.state_dict().values():
        tensor.sum()
print(status("VmHWM") - before, size)
"""


def peak_memory(name: str) -> dict[str, Any]:
    """Peak of resident memory beyond what the libraries and one build hold: over the network's bytes, and beyond."""
    options, facts = options_of(name), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        content = zoo.load_model(name, pretrained=False, **options).state_dict()
        environment = os.environ | file_on_record(Path(folder), name, content, options)
        del content
        for what, label in (("load", "the first load"), ("read", "a cached load, read")):
            command = [sys.executable, "-W", "ignore", "-c", PROBE, name, what, json.dumps(options)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            peak, size = map(int, done.stdout.split())
            facts |= {f"{name}, peak of {label}": peak / size, f"{name}, {label}, MB more": (peak - size) / 1e6}
    return facts


if __name__ == "__main__":
    main()
