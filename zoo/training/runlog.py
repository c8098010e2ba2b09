"""The record of a run: one JSON line an epoch, TensorBoard events on request, and a picture of the curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointFormatError, OptionError
from zoo.files import write_atomically, write_text
from zoo.messages import install_hint
from zoo.progress import duration, say_in_time
from zoo.training.pictures import new_figure
from zoo.training.saving import writing

Metrics = dict[str, float]

MOST_NUMBERS = 8
"""Most numbers in a line of metrics; some tasks have one for each class."""


class RunLog:
    """Writer of `log.jsonl` in `out`; lines of epochs that a resumed run does again are dropped first."""

    def __init__(self, out: Path, *, first_epoch: int, enabled: bool, tensorboard: bool) -> None:
        self.file, self.enabled = out / "log.jsonl", enabled
        self.writer: Any = None
        if not enabled:
            return
        for package in ("matplotlib", "tensorboard") if tensorboard else ("matplotlib",):
            if find_spec(package) is None:  # checked now: the curves are drawn after days
                raise OptionError(f"the record of a run needs the package {package}: {install_hint(package, 'train')}")
        self.lines = read_finished(self.file, first_epoch)
        self._write()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=first_epoch + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Add one epoch to the file, before `last.pt` says that it is done, and say it."""
        if not self.enabled:
            return
        self.lines.append(line)
        self._write()
        shown = ", ".join(f"{k} {v:.4g}" for k, v in line.items() if k not in ("epoch", "seconds"))
        say_in_time(f"epoch {line['epoch']}: {shown}, {duration(line['seconds'])}")
        if self.writer is not None:
            for name, value in line.items():
                self.writer.add_scalar(name, value, line["epoch"])

    def _write(self) -> None:
        with writing(self.file):
            write_text(self.file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def close(self) -> None:
        """Draw `curves.png`."""
        if not self.enabled:
            return
        if self.writer is not None:
            self.writer.close()
        plot_curves(self.lines, self.file.with_name("curves.png"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def read_finished(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Read the lines of the epochs that a run has finished; lines behind them are of an epoch that is done again.

    Epochs are counted from 1; lines of runs that counted from 0 come with the present numbers.

    Raises:
        CheckpointFormatError: A line is missing or damaged.
    """
    try:
        texts = path.read_text("utf-8", "replace").splitlines() if epochs else []
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read; a line for each of {epochs} epochs is expected") from error
    lines: list[dict[str, Any]] = []
    first = 1
    for number in range(1, epochs + 1):
        try:
            line = json.loads(texts[number - 1])
        except (ValueError, IndexError):
            line = None
        found = line.get("epoch") if isinstance(line, dict) else None
        if number == 1 and found == 0:
            first = 0
        if found != number - 1 + first:
            raise CheckpointFormatError(f"{path}, line {number}: the metrics of epoch {number} are missing or damaged")
        lines.append({**line, "epoch": number})
    return lines


def last_metrics(out: Path) -> Metrics:
    """Metrics of the last epoch of a finished run, from its folder."""
    return {name: value for name, value in read_log(out / "log.jsonl")[-1].items() if name != "seconds"}


def in_words(metrics: Mapping[str, Any]) -> str:
    """The first few numbers among metrics, each with its interval where there is one, or a mean and its deviation."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if "mean" in numbers:
        return f"{numbers['mean']:.4g}" + (f" ± {numbers['std']:.2g}" if "std" in numbers else "")
    shown = list(numbers.items())[:MOST_NUMBERS]
    return ", ".join(f"{name} {value:.4g}{_interval(metrics.get(f'{name}_interval'))}" for name, value in shown)


def _interval(found: Any) -> str:
    if not isinstance(found, list):
        return ""
    return " (no interval)" if None in found else f" (95 % {found[0]:.3g} to {found[1]:.3g})"


def plot_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw every metric of a log against the epoch, training and validation in one panel."""
    keys = list(dict.fromkeys(key for line in lines for key in line if key not in ("epoch", "seconds")))
    names = list(dict.fromkeys(key.removeprefix("val_") for key in keys))
    if not names:
        return
    figure = new_figure(4 * len(names), 3.2)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in keys:
                axes.plot([line["epoch"] for line in lines], [line.get(key, math.nan) for line in lines], label=label)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
