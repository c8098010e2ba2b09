"""What loading costs, as ratios inside one run: `python benchmarks/load.py [--repeats 15] [--json]`.

- `import zoo` against bare Python, each in processes of their own; which heavy modules it brings.
- A cached `load_model` of CAiD's U-Net and of y-Aware's DenseNet against what a script does without the zoo: build the
  library's class, `torch.load` the same weights, copy them in. Libraries are imported before either is timed; the two
  take turns.
- Peak memory of a load beyond what the libraries hold, against the size of the network in float32.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from measuring import cached_against_by_hand, machine, print_facts, seconds_of

NAME = "caid-resnet50-unet.chestxray14-800"
DENSENET = "yaware-densenet121"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("zoo").setLevel(logging.ERROR)  # each load says whose weights it has
    results = {"machine": machine()} | import_time(args.repeats) | load_time(args.repeats) | peak_memory()
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


def load_time(repeats: int) -> dict[str, Any]:
    """Medians of a cached `load_model` and of building, `torch.load` and copying, for each network."""
    import segmentation_models_pytorch as smp
    import timm  # noqa: F401 (libraries are imported before anything is timed)
    import torch
    from monai.networks.nets import DenseNet121

    import zoo

    def unet() -> Any:
        return smp.Unet("resnet50", encoder_weights=None, classes=1, activation="sigmoid")

    def densenet() -> Any:
        return DenseNet121(3, 1, 1024)

    results: dict[str, Any] = {}
    for label, name, build in (("U-Net", NAME, unet), ("DenseNet", DENSENET, densenet)):
        results |= cached_against_by_hand(
            label,
            name.split(".")[0],
            build().state_dict(),
            lambda path, build=build: build().load_state_dict(torch.load(path, weights_only=True)),
            repeats,
        )
    shipped = statistics.median(seconds_of(lambda: zoo.load_model(NAME)) for _ in range(repeats))
    return results | {"U-Net, load_model of the shipped half file, ms": 1e3 * shipped}


def peak_memory() -> dict[str, Any]:
    """Peak of resident memory beyond what the libraries and one build hold, over the network's size in float32.

    Of the first load, which widens the shipped file into the cache; and of a cached one after which every value was
    read, since mapped values are in memory only once they are.
    """
    probe = f"""
import ctypes, gc, sys, torch, zoo, zoo.loading
model = zoo.load_model("caid-resnet50-unet", pretrained=False)
size = sum(t.numel() * 4 for t in model.state_dict().values())
del model
gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = status("VmRSS")
model = zoo.load_model({NAME!r})
if sys.argv[1] == "read":
    for tensor in model.state_dict().values():
        tensor.sum()
print((status("VmHWM") - before) / size)
"""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("load", "read"):
            command, environment = [sys.executable, "-c", probe, what], os.environ | {"ZOO_HOME": folder}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            ratios.append(float(done.stdout))
    return {"peak memory of the first load, of float32": ratios[0], "peak memory of a cached load, read": ratios[1]}


if __name__ == "__main__":
    main()
