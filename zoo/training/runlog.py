"""The record of a run: one JSON line an epoch, TensorBoard events on request, and a picture of the curves."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import OptionError
from zoo.extras import install_hint
from zoo.files import write_atomically

Metrics = dict[str, float]


class RunLog:
    """Writes `log.jsonl` in `out`; lines of epochs that a resumed run does again are dropped first."""

    def __init__(self, out: Path, *, first_epoch: int, enabled: bool, tensorboard: bool) -> None:
        self.file, self.enabled = out / "log.jsonl", enabled
        self.writer: Any = None
        if not enabled:
            return
        for package in ("matplotlib", *(["tensorboard"] if tensorboard else [])):
            if find_spec(package) is None:  # said now: the curves are drawn after days
                raise OptionError(f"the record of a run needs the package {package}: {install_hint(package, 'train')}")
        self.lines = [line for line in read_log(self.file) if line["epoch"] < first_epoch]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_atomically(self.file, lambda path: path.write_text(text))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=first_epoch)

    def write(self, line: dict[str, Any]) -> None:
        """Add one epoch, on disk and on screen."""
        if not self.enabled:
            return
        self.lines.append(line)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(name, value, line["epoch"])

    def close(self) -> None:
        """Draw `curves.png`."""
        if not self.enabled:
            return
        if self.writer is not None:
            self.writer.close()
        plot_curves(self.lines, self.file.with_name("curves.png"))


def say(text: str) -> None:
    """Tell whoever follows a run how it goes, or what to do after it: on stderr, for stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def last_metrics(out: Path) -> Metrics:
    """Metrics of the last epoch of the run in a folder, which has finished."""
    return {name: value for name, value in read_log(out / "log.jsonl")[-1].items() if name != "seconds"}


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw every metric of a log against the epoch, training and validation in one panel."""
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(key for line in lines for key in line if key not in ("epoch", "seconds")))
    names = list(dict.fromkeys(key.removeprefix("val_") for key in keys))
    if not names:
        return
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in keys:
                axes.plot([line["epoch"] for line in lines], [line.get(key, math.nan) for line in lines], label=label)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
