"""What MONAI SSL's networks take to load and to pre-train: `python benchmarks/monai_ssl.py [--only load] [--json]`.

- load: a cached `load_model("monai-ssl-unetr")` of a whole UNETR, and of a pre-trained ViT whose decoder is made fresh,
  against what a script does without the zoo: build MONAI's class, `torch.load` the same file, copy. Libraries are
  imported before either is timed; the two take turns, and the medians count.
- loss, step: `ReconstructionContrast` against the formulation of MONAI's tutorial (reconstruction error, plus that
  times `monai.losses.ContrastiveLoss` of the flattened images), in turns: the losses of given images with their
  gradient, and a whole step of training with the same network and Adam. Peak memory is what a process that does two
  such steps takes beyond the libraries, each formulation in a process of its own. The defaults take several GB, and a
  step most of a minute on two cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import cached_against_by_hand, machine, print_facts, seconds_of
from monai.losses.contrastive import ContrastiveLoss
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.monai_ssl.method import TEMPERATURE, ReconstructionContrast
from zoo.entries.monai_ssl.model import vit_autoencoder

MODEL = "monai-ssl-unetr"
FORMULATIONS = ("ours", "tutorial")
ALLOWED = 1e-4
"""Largest relative difference of the two losses: the tutorial's float32 sums over 96^3 voxels are off by some 1e-5."""

Views = dict[str, Tensor]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of loading and of the losses")
    parser.add_argument("--steps", type=int, default=3, help="repeats of whole steps")
    parser.add_argument("--batch", type=int, default=8, help="crops; there are two views of each")
    parser.add_argument("--size", type=int, default=96, help="voxels along a side of the crops")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", choices=["load", "loss", "step"], help="one part")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)  # part and formulation whose memory is measured
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("zoo").setLevel(logging.ERROR)  # each load says whose weights it has
    if args.probe:
        print(peak_of(*args.probe, args))
        return
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "load": lambda: load_times(args.repeats),
        "loss": lambda: training("loss", args.repeats, args),
        "step": lambda: training("step", args.steps, args),
    }
    results: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    for name, part in parts.items():
        if args.only in (None, name):
            results |= part()
    print_facts(results, as_json=args.json)


def load_times(repeats: int) -> dict[str, Any]:
    """Medians of both ways of loading, for a file of each kind."""
    whole, encoder = build_unetr().state_dict(), ViTAutoEnc(1, (96,) * 3, (16,) * 3).state_dict()
    files = {
        "whole UNETR": (whole, lambda path: build_unetr().load_state_dict(read(path))),
        "UNETR from a ViT": ({"state_dict": encoder}, lambda path: fill_encoder(build_unetr(), read(path))),
    }
    results = {}
    for label, (content, by_hand) in files.items():
        results |= cached_against_by_hand(label, MODEL, content, by_hand, repeats)
    return results


def build_unetr() -> UNETR:
    """MONAI's class with the tutorial's arguments."""
    return UNETR(1, 14, (96,) * 3, feature_size=16, hidden_size=768, mlp_dim=3072, num_heads=12, proj_type="conv")


def read(path: Path) -> dict[str, Any]:
    """Read a file as a script does."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def fill_encoder(network: UNETR, content: dict[str, Any]) -> None:
    """Copy what the auto-encoder shares with the UNETR's transformer."""
    mine = network.vit.state_dict()
    network.vit.load_state_dict({name: content["state_dict"].get(name, mine[name]) for name in mine})


class Tutorial(nn.Module):
    """The same objective as MONAI's tutorial formulates it: two passes, images flattened, MONAI's loss.

    Project-MONAI/tutorials, self_supervised_pretraining/vit_unetr_ssl/ssl_train.ipynb.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.contrast = network, ContrastiveLoss(temperature=TEMPERATURE)

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Losses of the views."""
        first, second = (self.network(views[name]) for name in ("view_1", "view_2"))
        reconstruction = F.l1_loss(first, views["target"])
        contrast = self.contrast(first.flatten(1), second.flatten(1))
        return {"loss": reconstruction + contrast * reconstruction}


def build(part: str, formulation: str, network: nn.Module, views: Views) -> Callable[[], Tensor]:
    """What one repeat does: the losses and their gradient, or a step of Adam; returns the loss."""
    method = ReconstructionContrast(network) if formulation == "ours" else Tutorial(network)
    method.train()
    leaves = [views["view_1"], views["view_2"]] if part == "loss" else list(network.parameters())
    optimizer = torch.optim.Adam(leaves, lr=0.0)  # so that repeats have one loss

    def once() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = method(views)["loss"]
        torch.autograd.backward(loss)
        if part == "step":
            optimizer.step()
        return loss.detach()

    return once


def material(part: str, args: argparse.Namespace) -> tuple[nn.Module, Views]:
    """Network and views: for the losses alone the views are the images that a network made."""
    torch.manual_seed(0)
    target = torch.rand(args.batch, 1, *(args.size,) * 3)
    views = {"target": target} | {f"view_{i}": (target + 0.3 * torch.randn_like(target)) for i in (1, 2)}
    if part == "step":
        return vit_autoencoder(img_size=args.size), views
    for name in ("view_1", "view_2"):
        views[name].requires_grad_()
    return nn.Identity(), views


def training(part: str, repeats: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians in seconds of both formulations, in turns, and the memory of each."""
    network, views = material(part, args)
    calls = {name: build(part, name, network, views) for name in FORMULATIONS}
    ours, theirs = (call() for call in calls.values())
    assert (ours - theirs).abs() <= ALLOWED * theirs.abs(), (part, float(ours), float(theirs))
    times = [[seconds_of(call) for call in calls.values()] for _ in range(repeats)]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    del network, views, calls
    memory = [measure_peak(part, name, args) for name in FORMULATIONS]
    label = f"{part}, {args.batch} x {args.size}^3"
    return {
        f"{label}, ours, s": seconds[0],
        f"{label}, tutorial, s": seconds[1],
        f"{label}, ours takes, of the tutorial's time": seconds[0] / seconds[1],
        f"{label}, ours, peak MB": memory[0],
        f"{label}, tutorial, peak MB": memory[1],
        f"{label}, ours takes, of the tutorial's memory": memory[0] / memory[1],
    }


def measure_peak(part: str, formulation: str, args: argparse.Namespace) -> float:
    """Peak in MB of a process that does nothing else."""
    flags = ["--batch", args.batch, "--size", args.size, "--threads", args.threads, "--probe", part, formulation]
    command = [sys.executable, __file__, *(str(flag) for flag in flags)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_of(part: str, formulation: str, args: argparse.Namespace) -> float:
    """Peak of resident memory of two repeats in this process, beyond what libraries hold, in MB."""
    before = status("VmRSS")
    network, views = material(part, args)
    once = build(part, formulation, network, views)
    for _ in range(2):  # the second beside the optimiser's state
        once()
    return (status("VmHWM") - before) / 1e6


def status(key: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
