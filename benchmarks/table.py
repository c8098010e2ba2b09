"""What the benchmarks share: the machine that the figures are of, and rows printed as they come."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping

import torch


def machine() -> str:
    """Cores, accelerator, Python and torch that the figures are of."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {device}, Python {sys.version.split()[0]}, torch {torch.__version__}"


def print_rows(rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows of the same columns as a Markdown table, each when it is there."""
    for i, row in enumerate(rows):
        if i == 0:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        values = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(values) + " |", flush=True)
